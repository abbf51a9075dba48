"""What a run needs in memory and time before it starts, and named recipes for real models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
