"""Runs: the config that decides one, its record, stores of records, and the recorded runs that ship."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
