"""The exercises of the course with their checks and solutions, and the predictions."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
