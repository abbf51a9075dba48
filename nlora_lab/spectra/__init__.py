"""The singular values of weight matrices: measures of a spectrum, and the scan of a complete model."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
