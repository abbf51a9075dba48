"""The GLUE tasks: their columns, classes and measures.

The test split on the hub has no labels. Results are therefore reported on the validation split, for MNLI on the
matched one.

Source: Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.tasks.sources import Part

GLUE_ID = "nyu-mll/glue"
HIGHEST_SCORE = 5.0  # STS-B scores pairs from 0 to 5


@dataclass(frozen=True)
class GlueTask:
    """What distinguishes one GLUE task from another.

    Attributes:
        columns: the columns of the text, one or two.
        labels: the names of the classes in the order of their numbers. Empty for a score.
        measures: the names of the measures that the benchmark reports.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    measures: tuple[str, ...] = ("accuracy",)


_PAIR, _ENTAILMENT = ("sentence1", "sentence2"), ("entailment", "not_entailment")
GLUE: dict[str, GlueTask] = {
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(_PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "qnli": GlueTask(("question", "sentence"), _ENTAILMENT),
    "rte": GlueTask(_PAIR, _ENTAILMENT),
    "stsb": GlueTask(_PAIR, (), ("pearson", "spearman")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": GlueTask(("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "wnli": GlueTask(_PAIR, ("not_entailment", "entailment")),
}
"""The GLUE tasks by name."""

MEASURE_NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
"""What each measure is called in prose."""


def glue_rows(name: str, part: Part) -> list[dict[str, Any]]:
    """Make rows of ``text``, ``pair`` and ``label`` from the columns of a GLUE task.

    QQP has a few blank questions. They stay.

    Args:
        name: a name in ``GLUE``.
        part: rows of the task.

    Returns:
        One row per row of the part. ``pair`` is "" for a task with one text.

    Raises:
        InputError: a column is missing, or a label is out of range. The message names the row.
    """
    task = GLUE[name]
    texts = [part.texts(column, empty=True) for column in task.columns]
    pairs = texts[1] if len(texts) == 2 else [""] * len(part)
    labels = [read_label(part.where, row, cell, task.labels) for row, cell in enumerate(part.column("label"), start=1)]
    return [{"text": t, "pair": p, "label": n} for t, p, n in zip(texts[0], pairs, labels, strict=True)]


def read_label(where: str, row: int, cell: Any, labels: Sequence[str]) -> int | float:
    """Read a class or a score from a cell.

    Args:
        where: names the data in the error message.
        row: the number of the row, from 1.
        cell: the number of a class, its name, or a score.
        labels: the names of the classes in the order of their numbers. Empty for a score.

    Returns:
        The number of the class, or the score from 0 to 5.

    Raises:
        InputError: the cell is neither a class nor a score in range.
    """
    if isinstance(cell, str) and cell.strip() in labels:
        return labels.index(cell.strip())
    try:
        # float() reads "0_4" as 4
        number = math.nan if isinstance(cell, bool) or "_" in str(cell) else float(cell)
    except (TypeError, ValueError):
        number = math.nan
    if not labels and 0 <= number <= HIGHEST_SCORE:
        return number
    if number in range(len(labels)):
        return int(number)
    allowed = ", ".join(f"{i} ({name})" for i, name in enumerate(labels)) or f"a number from 0 to {HIGHEST_SCORE:g}"
    remedy = "-1 marks a test split without labels, so leave that out" if number == -1 else "correct it"
    raise InputError(f"{where}, row {row}: label={cell!r} is not one of: {allowed}; {remedy}")


def compute_measures(measures: Sequence[str], predictions: Sequence[float], truth: Sequence[float]) -> dict[str, float]:
    """Compute measures of predictions with scikit-learn and scipy.

    Args:
        measures: names in ``MEASURE_NAMES``.
        predictions: the predicted class numbers or scores, (N,).
        truth: the true class numbers or scores, (N,).

    Returns:
        The value of each measure. "f1" is the F1 of class 1. A correlation is undefined if the predictions or the
        truth have only one value. It is then given as 0.
    """
    return {name: _measure(name, predictions, truth) for name in measures}


def _measure(name: str, predictions: Sequence[float], truth: Sequence[float]) -> float:
    from scipy import stats
    from sklearn import metrics

    if name == "accuracy":
        return float(metrics.accuracy_score(truth, predictions))
    if name == "f1":
        return float(metrics.f1_score(truth, predictions, zero_division=0.0))
    if len(set(predictions)) < 2 or len(set(truth)) < 2:
        return 0.0
    if name == "matthews":
        return float(metrics.matthews_corrcoef(truth, predictions))
    if not all(map(math.isfinite, predictions)):
        return math.nan
    return float({"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name](predictions, truth).statistic)
