"""The exercises of notebook 03, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlora_lab.course.exercises import Exercise, Mistake, Question, normal_matrix

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


def _scans_to_rank() -> list[tuple[Any, ...]]:
    """Three tables of a scan, each with the names of two columns. No value comes twice."""
    import pandas as pd

    rows = [
        (0.71, 12.4, 1.3, 57.0), (0.88, 4.7, 0.6, 16.0), (0.84, 22.3, 0.9, 80.0), (0.74, 5.4, 1.9, 20.0),
        (0.87, 3.2, 0.7, 25.0), (0.81, 189.5, 1.1, 940.0), (0.89, 1.9, 1.2, 6.9),
    ]  # fmt: skip
    columns = ["svd_r8", "nystrom_r8", "leverage_r8", "cond_r8"]
    table = pd.DataFrame(rows, columns=columns)
    return [
        (table, "svd_r8", "nystrom_r8"),
        (table.iloc[[4, 0, 3, 6, 2, 5]], "cond_r8", "nystrom_r8"),
        (table.iloc[[6, 5, 4, 3, 2, 1, 0]], "leverage_r8", "svd_r8"),
    ]


def rank_correlation(table: DataFrame, a: str, b: str) -> float:
    """Correlate the ranks of two columns (Spearman)."""
    return float(table[a].rank().corr(table[b].rank()))


def share_by_chance(x: Tensor, y: Tensor, orders: Tensor) -> Tensor:
    """Count the shuffles whose rank correlation is at least as large in size as the one without a shuffle."""
    x, y = (v.argsort().argsort().double() for v in (x, y))
    found = torch.corrcoef(torch.stack([x, y]))[0, 1]
    shuffled = torch.stack([torch.corrcoef(torch.stack([x, y[order]]))[0, 1] for order in orders])
    return (shuffled.abs() >= found.abs()).double().mean()


def _values_and_orders() -> list[tuple[Any, ...]]:
    """Two vectors and many orders each. No order gives exactly the correlation of the two: rounding decides nothing."""
    trials = []
    for slope, n, seed in ((0.5, 11, 1), (0.3, 14, 2), (-0.6, 12, 3)):
        x, noise = normal_matrix(2, n, seed)
        y = (slope * x + noise).exp()  # ranks do not see the exponential, and a plain correlation does
        first, second = x.argsort().argsort(), y.argsort().argsort()
        draw = torch.Generator().manual_seed(seed)
        orders = torch.stack([torch.randperm(n, generator=draw) for _ in range(400)])
        products = (first * second[orders]).sum(1)
        same = int((first * second).sum())
        ties = (products == same) | (products == n * (n - 1) ** 2 // 2 - same)
        trials.append((x, y, orders[~ties][:300]))
    return trials


def _shuffled(
    count: Callable[[Tensor, Tensor], Tensor], ranks: bool = True, whole: bool = False
) -> Callable[..., Tensor]:
    """``share_by_chance`` with another way to count, without ranks, or as a number instead of a share."""

    def run(x: Tensor, y: Tensor, orders: Tensor) -> Tensor:
        if ranks:
            x, y = (v.argsort().argsort().double() for v in (x, y))
        found = torch.corrcoef(torch.stack([x, y]))[0, 1]
        values = torch.stack([torch.corrcoef(torch.stack([x, y[order]]))[0, 1] for order in orders])
        counted = count(values, found).double()
        return counted.sum() if whole else counted.mean()

    return run


def _correlation(x: Tensor, y: Tensor, orders: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([v.argsort().argsort().double() for v in (x, y)]))[0, 1].abs()


def _ratio_of_edges(ratio: float) -> str:
    return f"largest = {ratio:.3g} × smallest, and √352 + √128 = 30.1, √352 − √128 = 7.45"


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
    Exercise(
        "3.3",
        "tall is well conditioned",
        "The weight gate_proj of a fresh model is a 352 × 128 matrix of independent entries. By the law above, how\n"
        "many times as large as its smallest singular value is its largest? One number (about 1 line).",
        (352**0.5 + 128**0.5) / (352**0.5 - 128**0.5),
        "The condition number of a tall random matrix is small, and std plays no part. For a square one the law puts "
        "the smallest singular value at 0. That is why 2r rows and r columns repaired the block in notebook 2.",
        (
            Mistake(352 / 128, "that is the ratio of the two sides. Divide the upper edge by the lower edge."),
            Mistake((352 / 128) ** 0.5, "that is √m / √n. The edges are √m + √n and √m − √n: divide them."),
            Mistake(((352**0.5 + 128**0.5) / (352**0.5 - 128**0.5)) ** 2,
                "that is squared, the ratio for the eigenvalues of WᵀW. The question is about singular values."),
            Mistake((352**0.5 - 128**0.5) / (352**0.5 + 128**0.5),
                "that is the smallest divided by the largest. Turn the fraction over."),
            Mistake((352 + 128) / (352 - 128), "the roots are missing. The edges are √m + √n and √m − √n."),
            Mistake(352**0.5 + 128**0.5, "that is the largest singular value at std = 1. Divide it by the smallest."),
            Mistake(((352 + 128) / (352 - 128)) ** 0.5, "√(m + n) is not √m + √n. Take the roots of the sides first."),
        ),
        gives=_ratio_of_edges,
        reason="(√352 + √128) / (√352 − √128) = 30.08 / 7.448 = 4.04. std is in both edges and cancels.",
        digits=3,
        level="warm-up",
    ),
    Exercise(
        "3.4",
        "audit a claim",
        "Somebody claims: where the best possible error is low, the leading block's error is low too. Ask the scan.\n"
        "Write rank_correlation(table, a, b): replace the values of the columns a and b by their ranks, and return\n"
        "the correlation of the ranks (Spearman; about 1 line, with pandas' .rank() and .corr()).",
        rank_correlation,
        "Now ask the embedded model with table = layers, svd_r8 and nystrom_r8. What is left of the claim?",
        (
            Mistake(lambda table, a, b: table[a].corr(table[b]),
                "that is the correlation of the values. One large error decides it. Take the ranks first: .rank()."),
            Mistake(lambda table, a, b: table[a].argsort().corr(table[b].argsort()),
                "argsort gives the order of the rows, not the rank of each row. Use .rank()."),
            Mistake(lambda table, a, b: -rank_correlation(table, a, b),
                "the sign is wrong. Rank both columns in the same direction."),
            Mistake(lambda table, a, b: rank_correlation(table, a, b) ** 2,
                "that is squared, the explained share. It hides the sign. Return the correlation itself."),
            Mistake(lambda table, a, b: table[a].rank().cov(table[b].rank()),
                "that is the covariance of the ranks. It grows with the number of rows. Use .corr()."),
            Mistake(lambda table, a, b: table[[a, b]].corr("kendall").iloc[0, 1],
                "that is Kendall's correlation, which counts pairs of rows. The question asks for Spearman's."),
            Mistake(lambda table, a, b: table[[a, b]].corr("spearman"),
                "that is the table of all correlations. Return the one number between a and b."),
        ),
        inputs=_scans_to_rank,
        level="understand",
    ),
    Exercise(
        "3.5",
        "by chance?",
        "Can chance give such a rank correlation? Shuffle one of the two columns many times and count. x and y are\n"
        "(n,) tensors, and each row of orders holds n indices: y[order] is y shuffled. Write\n"
        "share_by_chance(x, y, orders): the share, from 0 to 1, of the shuffles whose rank correlation with x is at\n"
        "least as large, in size, as that of x and y (about 5 lines; use torch.corrcoef). Return one number.",
        share_by_chance,
        "This is a permutation test. It assumes nothing about the numbers, except that every order is as likely.",
        (
            Mistake(_shuffled(lambda values, found: values >= found),
                "you compared with the sign. A correlation of −0.9 is as surprising as one of 0.9: compare sizes."),
            Mistake(_shuffled(lambda values, found: abs(values) < abs(found)),
                "you counted the shuffles with a smaller correlation. Count those that are at least as large."),
            Mistake(_shuffled(lambda values, found: abs(values) >= abs(found), whole=True),
                "that is the number of orders. Divide by how many there are."),
            Mistake(_shuffled(lambda values, found: abs(values) >= abs(found), ranks=False),
                "you correlated the values. Take the ranks of both lists first."),
            Mistake(_shuffled(lambda values, found: values <= found),
                "you counted the shuffles that lie lower, with the sign. Compare sizes, and count the larger ones."),
            Mistake(_correlation,
                "that is the correlation itself. Say how many of the shuffles reach it."),
        ),
        inputs=_values_and_orders,
        level="build",
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
