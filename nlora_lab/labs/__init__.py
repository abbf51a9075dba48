"""Labs: panels of widgets for notebooks. Python code can do everything that a click can do."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
