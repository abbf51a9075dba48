"""Errors, checks of values, files, devices, progress and statistics: everything that the other packages share."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
