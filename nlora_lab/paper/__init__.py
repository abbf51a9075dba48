"""Read the NLoRA paper: what it reports, what follows from that, and what the recorded runs say about it.

The paper is Guo, Chang and Wu, *NLoRA: Nyström-Initiated Low-Rank Adaptation for Large Language Models*,
arXiv 2502.14482, Findings of EMNLP 2025. Its code is github.com/TracyGuo2001/NLoRA.

The figures that the paper reports are data in ``reported_figures``, each with its source. Everything else is computed.
``ledger`` goes through the claims one by one.
"""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
