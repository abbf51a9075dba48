"""Models: their names, loading them, their layers and weights, and the Hugging Face hub."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
