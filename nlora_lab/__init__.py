"""nlora_lab: understand low-rank fine-tuning by touching it.

``import nlora_lab as nl`` is quick. torch, transformers, plotly and other large libraries load when you first use a
name that needs them. The names that most people need are here. All other names are in their package, for example
``nl.plots.valleys``.
"""

from nlora_lab.core.files import package_version
from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
__version__ = package_version()
