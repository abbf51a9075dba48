"""Reading the NLoRA paper: what it prints, what follows from that, and what our recorded runs say to it.

The paper is Guo, Chang and Wu, *NLoRA: Nyström-Initiated Low-Rank Adaptation for Large Language Models*,
arXiv 2502.14482, Findings of EMNLP 2025; its code is github.com/TracyGuo2001/NLoRA. What it prints stands in
:mod:`~nlora_lab.paper.printed` as data, each table with its source; everything else is computed. :func:`ledger` goes
through the claims one by one.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
