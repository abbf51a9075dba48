"""Tasks: the rows of generated, public and your own data, and how rows become batches."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
