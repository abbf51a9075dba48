"""Errors, checks of values, files, devices and progress: everything that the other packages share."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
