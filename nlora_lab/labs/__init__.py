"""Labs: panels of widgets for notebooks. Python code can do everything that a click can do."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
