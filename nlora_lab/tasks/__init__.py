"""Tasks: the rows of generated, public and your own data, and how rows become batches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
