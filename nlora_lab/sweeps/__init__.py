"""Sweeps: worker processes make every run of a grid and write the runs into one store."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
