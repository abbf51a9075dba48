"""The exercises of notebook 03, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nlora_lab.course.exercises import Exercise, Mistake, Question

if TYPE_CHECKING:
    from pandas import DataFrame


def _shapes_and_deviations() -> list[tuple[Any, ...]]:
    return [(352, 128, 0.02), (64, 1000, 0.5), (128, 128, 3.0)]


def _scans() -> list[tuple[Any, ...]]:
    """Three tables as ``nl.scan`` returns them. Nyström helps layers of the first and the last, none of the second."""
    import pandas as pd

    columns = ["layer", "module", "nystrom_r8", "svd_r8"]
    helped = [
        (0, "self_attn.q_proj", 0.83, 0.55), (0, "mlp.up_proj", 3.4, 0.87), (1, "self_attn.q_proj", 12.0, 0.71),
        (1, "mlp.up_proj", 0.97, 0.86), (2, "self_attn.q_proj", 0.62, 0.6), (2, "mlp.up_proj", 190.0, 0.88),
        (3, "self_attn.q_proj", 4.7, 0.74),
    ]  # fmt: skip
    none = [(0, "self_attn.v_proj", 2.9, 0.88), (1, "self_attn.v_proj", 1.2, 0.83), (2, "mlp.gate_proj", 53.0, 0.78)]
    few = [(5, "mlp.up_proj", 0.91, 0.8), (4, "mlp.up_proj", 1.3, 0.7), (5, "mlp.down_proj", 6.0, 0.9)]
    return [(pd.DataFrame(rows, columns=columns),) for rows in (helped, none, few)]


def marchenko_pastur_edge(m: int, n: int, std: float) -> float:
    """Return std · (√m + √n)."""
    return float(std * (m**0.5 + n**0.5))


def layers_where_nystrom_helps(table: DataFrame) -> list[tuple[Any, ...]]:
    """Select the rows whose error is below 1."""
    good = table[table["nystrom_r8"] < 1]
    return list(zip(good["layer"], good["module"], strict=True))


def _pairs_where(condition: Callable[[DataFrame], Any]) -> Callable[[DataFrame], Any]:
    return lambda table: list(table[condition(table)][["layer", "module"]].itertuples(index=False, name=None))


# a mistake and its hint are one paragraph here, not five lines
# fmt: off
EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "3.1",
        "the edge of noise",
        "Write marchenko_pastur_edge(m, n, std): the largest singular value to expect of a large m × n matrix of\n"
        "independent entries with mean 0 and standard deviation std (about 1 line). Return one number.",
        marchenko_pastur_edge,
        "A singular value far above this edge is not noise. One just above it may be chance.",
        (
            Mistake(lambda m, n, std: std * (m + n) ** 0.5,
                "√(m + n) is not √m + √n. Add the roots of the two sides."),
            Mistake(lambda m, n, std: m**0.5 + n**0.5,
                "std is missing: if you double the entries, every singular value doubles."),
            Mistake(lambda m, n, std: (std * (m**0.5 + n**0.5)) ** 2,
                "that is squared, the edge of the eigenvalues of WᵀW. Take the root."),
            Mistake(lambda m, n, std: std**2 * (m**0.5 + n**0.5),
                "you multiplied by the variance, std². Singular values grow as std."),
            Mistake(lambda m, n, std: std * abs(m**0.5 - n**0.5),
                "that is the lower edge, where the smallest singular value lies. The largest has a plus."),
            Mistake(lambda m, n, std: std * (m * n) ** 0.5,
                "std·√(m n) is the Frobenius norm to expect: all singular values together, not the largest."),
        ),
        inputs=_shapes_and_deviations,
        level="warm-up",
    ),
    Exercise(
        "3.2",
        "where Nyström helps",
        "The table of a scan has one row per weight matrix, with the columns layer, module, nystrom_r8 and svd_r8.\n"
        "The last two are relative errors at rank 8. Write layers_where_nystrom_helps(table): the list of\n"
        "(layer, module) pairs whose Nyström error is smaller than the error of approximating the weight by zero\n"
        "(about 2 lines; any order).",
        layers_where_nystrom_helps,
        "Now try it on a model's own scan. In the embedded model the list is empty.",
        (
            Mistake(_pairs_where(lambda t: t["nystrom_r8"] < t["svd_r8"]),
                "you compared with the SVD, which nothing of the same rank can beat, so the list is always empty. "
                "What is the relative error of the zero matrix?"),
            Mistake(_pairs_where(lambda t: t["nystrom_r8"] > 1),
                "those are the layers where Nyström is worse than zero. A smaller error is better."),
            Mistake(_pairs_where(lambda t: t["svd_r8"] < 1),
                "you looked at svd_r8, the best possible, which is always below 1. The question is about nystrom_r8."),
            Mistake(lambda t: t["nystrom_r8"] < 1,
                "those are True and False, one per row. Use them to choose the rows: table[...]."),
            Mistake(lambda t: t[t["nystrom_r8"] < 1],
                "the rows are right, but they have all columns. Return only layer and module, as a list of pairs."),
            Mistake(lambda t: t[t["nystrom_r8"] < 1].index,
                "those are the numbers of the rows. Return the values in the columns layer and module."),
            Mistake(lambda t: t[t["nystrom_r8"] < 1]["layer"],
                "those are the layers alone. A layer has several weights: return (layer, module) pairs."),
        ),
        inputs=_scans,
        level="understand",
    ),
)
# fmt: on

QUESTIONS: tuple[Question, ...] = (
    Question(
        "3.Q1",
        "The stable rank says how much of W lies in few directions. It says how good a start of rank 4 that is\n"
        "taken from W can be: for q_proj (stable rank 5.6) better than for an MLP matrix (about 30). It says\n"
        "nothing about the rank of the change that a task needs.",
    ),
    Question(
        "3.Q2",
        "A direction that all tokens share. Here the first right singular vector is nearly the mean of all\n"
        "embeddings (the cosine of the two is 0.997 in size). Tokens have different amounts of it, so a part\n"
        "remains when the mean is subtracted: the largest singular value falls from 47.9 to 29.5.",
    ),
    Question(
        "3.Q3",
        "No. The transposed matrix has the same singular values. Its leading block is the transposed block, with\n"
        "the same condition number, and the error is the same.",
    ),
)
