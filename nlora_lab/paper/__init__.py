"""Reading the NLoRA paper: what it prints, what follows from that, and what our recorded runs say to it.

The paper is Guo, Chang and Wu, *NLoRA: Nyström-Initiated Low-Rank Adaptation for Large Language Models*,
arXiv 2502.14482, Findings of EMNLP 2025; its code is github.com/TracyGuo2001/NLoRA. What it prints stands in
:mod:`~nlora_lab.paper.printed` as data, each table with its source; everything else is computed. :func:`ledger` goes
through the claims one by one.
"""

from nlora_lab.paper.arithmetic import (
    Difference,
    averages,
    cells,
    difference,
    headline,
    llama_2_7b,
    mean_of_relative,
    parameters,
    points,
    questions_needed,
    relative,
    relative_of_means,
    scales,
)
from nlora_lab.paper.book import Claim, Finding, Sheet, ledger, sheet
from nlora_lab.paper.checks import claims
from nlora_lab.paper.evidence import beside, by_rank, own_rates, sooner, starts_of_n, step0_changes
from nlora_lab.paper.picture import differences
from nlora_lab.paper.plans import plan
from nlora_lab.paper.printed import FIGURE_4, FIGURE_RANKS, GSM8K, INTTUNE, Reported
from nlora_lab.paper.starts import start_times

__all__ = [
    "FIGURE_4",
    "FIGURE_RANKS",
    "GSM8K",
    "INTTUNE",
    "Claim",
    "Difference",
    "Finding",
    "Reported",
    "Sheet",
    "averages",
    "beside",
    "by_rank",
    "cells",
    "claims",
    "difference",
    "differences",
    "headline",
    "ledger",
    "llama_2_7b",
    "mean_of_relative",
    "own_rates",
    "parameters",
    "plan",
    "points",
    "questions_needed",
    "relative",
    "relative_of_means",
    "scales",
    "sheet",
    "sooner",
    "start_times",
    "starts_of_n",
    "step0_changes",
]
