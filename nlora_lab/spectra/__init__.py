"""The singular values of weight matrices: measures of a spectrum, and the scan of a complete model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
