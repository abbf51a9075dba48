"""Evaluation: the answers of a model to the items of a task, and the measures of these answers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
