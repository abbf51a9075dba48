"""Training: one run, or several runs on one base model, with checkpoints, recording and export."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
