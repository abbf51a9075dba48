"""Runs: the config that decides one, its record, stores of records, and the recorded runs that ship."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
