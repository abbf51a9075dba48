"""Errors, validation, files, devices, progress and statistics: what every other package stands on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
