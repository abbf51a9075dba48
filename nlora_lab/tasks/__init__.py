"""Tasks: generated and public ones, your own rows, and the way from rows to batches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
