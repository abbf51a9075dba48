"""What a run needs in memory and time before it starts, and named recipes for real models."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
