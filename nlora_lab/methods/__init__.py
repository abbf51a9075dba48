"""The fine-tuning methods: one table, attaching a method to a model, and counting what it trains."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
