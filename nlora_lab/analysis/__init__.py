"""Analysis of finished runs: choosing rates, comparing methods, and the curvature that predicts a rate."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
