"""Analysis of finished runs: choosing rates, comparing methods, and the curvature that predicts a rate."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
