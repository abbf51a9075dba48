"""Training: one run, or several runs on one base model, with checkpoints, recording and export."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
