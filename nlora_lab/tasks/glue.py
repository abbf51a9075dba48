"""The GLUE tasks: their columns, classes and measures.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", ICLR 2019. The
test split on the hub has no labels, so the validation split (of MNLI the matched one) is what results are given for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.tasks.files import Part

HUB = "nyu-mll/glue"
HIGHEST = 5.0  # of STS-B's scores, from 0


@dataclass(frozen=True)
class GlueTask:
    """Columns of the text (one or two), class names in the order of their numbers (none: a score), measures."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    measures: tuple[str, ...] = ("accuracy",)


_PAIR, _ENTAILS = ("sentence1", "sentence2"), ("entailment", "not_entailment")
GLUE: dict[str, GlueTask] = {
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(_PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "qnli": GlueTask(("question", "sentence"), _ENTAILS),
    "rte": GlueTask(_PAIR, _ENTAILS),
    "stsb": GlueTask(_PAIR, (), ("pearson", "spearman")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": GlueTask(("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "wnli": GlueTask(_PAIR, ("not_entailment", "entailment")),
}
WORDS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}


def glue_rows(name: str, part: Part) -> list[dict[str, Any]]:
    """``text``, ``pair`` and ``label`` of every row of a part; QQP has a few blank questions, and they stay.

    Raises :class:`InputError` naming the row of a label that is out of range.
    """
    task = GLUE[name]
    texts = [part.texts(column, empty=True) for column in task.columns]
    pairs = texts[1] if len(texts) == 2 else [""] * len(part)
    labels = [read_label(part.where, row, cell, task.labels) for row, cell in enumerate(part.column("label"), start=1)]
    return [{"text": t, "pair": p, "label": n} for t, p, n in zip(texts[0], pairs, labels, strict=True)]


def read_label(where: str, row: int, cell: Any, labels: Sequence[str]) -> int | float:
    """The class number that ``cell`` says, as a number or a name; where there are no classes, the score, 0 to 5."""
    if isinstance(cell, str) and cell.strip() in labels:
        return labels.index(cell.strip())
    try:
        number = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        number = math.nan
    if not labels and 0 <= number <= HIGHEST:
        return number
    if number in range(len(labels)):
        return int(number)
    allowed = ", ".join(f"{i} ({name})" for i, name in enumerate(labels)) or f"a number from 0 to {HIGHEST:g}"
    hint = "; -1 marks a test split without labels, so leave that out" if number == -1 else "; correct it"
    raise InputError(f"{where}, row {row}: label={cell!r} is not one of: {allowed}{hint}")


def measured(measures: Sequence[str], said: Sequence[float], truth: Sequence[float]) -> dict[str, float]:
    """Each measure of what was ``said`` (N,) against the ``truth`` (N,), by scikit-learn and scipy.

    F1 is that of class 1. Where one side has only one value, correlations are not defined, and given as 0.
    """
    return {name: _measure(name, said, truth) for name in measures}


def _measure(name: str, said: Sequence[float], truth: Sequence[float]) -> float:
    from scipy import stats
    from sklearn import metrics

    if name == "accuracy":
        return float(metrics.accuracy_score(truth, said))
    if name == "f1":
        return float(metrics.f1_score(truth, said, zero_division=0.0))
    if len(set(said)) < 2 or len(set(truth)) < 2:
        return 0.0
    if name == "matthews":
        return float(metrics.matthews_corrcoef(truth, said))
    if not all(map(math.isfinite, said)):
        return math.nan
    return float({"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name](said, truth).statistic)
