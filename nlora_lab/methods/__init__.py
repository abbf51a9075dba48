"""The fine-tuning methods: one table, attaching a method to a model, and counting what it trains."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
