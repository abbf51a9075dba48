"""Evaluation: the answers of a model to the items of a task, and the measures of these answers."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
