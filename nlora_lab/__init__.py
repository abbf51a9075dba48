"""nlora_lab: understand low-rank fine-tuning by touching it.

``import nlora_lab as nl`` is quick. torch, transformers, plotly and other large libraries load when you first use a
name that needs them. The names that most people need are here. All other names are in their package, for example
``nl.plots.valleys``.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("nlora-lab")
