"""Sweeps: an executor makes every run of a grid, and the process that sweeps writes the runs into one store."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
