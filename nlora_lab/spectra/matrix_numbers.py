"""The numbers that a scan reports of one matrix: its spectrum, and how well low rank approximates it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nlora_lab.core.array_types import Float
from nlora_lab.lowrank.checks import check_single_matrix, rescaled
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.pivots import complete_pivoting
from nlora_lab.lowrank.svd import randomized_svd, singular_values, truncation_errors
from nlora_lab.spectra.measures import (
    block_condition,
    effective_rank,
    leading_leverage,
    marchenko_pastur,
    power_law,
    stable_rank,
)

PLAIN_COLUMNS = ("std", "stable_rank", "effective_rank", "power_law", "sigma_max", "above_noise")
RANK_COLUMNS = ("nystrom", "optimal", "cross", "svd", "cond", "leverage")
"""What is measured at each rank r. The column is called "nystrom_r8", for example."""
_CURVES: dict[str, dict[str, Any]] = {"nystrom": {}, "optimal": {"core": "optimal"}, "cross": {"pivots": "cross"}}


def rank_columns(ranks: Iterable[int]) -> list[str]:
    """Return the names of the columns at each of ``ranks``."""
    return [f"{kind}_r{r}" for kind in RANK_COLUMNS for r in ranks]


def measure(
    W: Float[Tensor, "m n"], ranks: Iterable[int], refill: Callable[[], Float[Tensor, "m n"]] | None = None
) -> dict[str, float]:
    """Measure the spectrum of a matrix and its approximations.

    Every number is deterministic: the random sketch behind ``leverage`` has a fixed seed.

    Args:
        W: the matrix, (m, n), any floating dtype.
        ranks: where to measure the approximations. Ranks above min(m, n) are left out.
        refill: reads the same matrix again, in any floating dtype. With it, ``W`` in float32 is overwritten meanwhile,
            so that it need not be copied: a large matrix takes half of the memory.

    Returns:
        The numbers by column, as ``scan`` describes them. A zero matrix has no relative errors, so its result has the
        plain columns only.

    Raises:
        InputError: ``W`` is not one finite matrix.
    """
    work, scale = rescaled(check_single_matrix(W))  # only std and sigma_max depend on the scale
    m, n = work.shape
    std = float(torch.linalg.vector_norm(work)) / math.sqrt(m * n)
    usable = [r for r in ranks if r <= min(m, n)] if std > 0 else []
    numbers = {"std": std / scale}
    if usable:
        numbers |= _approximation_errors(work, usable, refill if scale == 1 and W.dtype == torch.float32 else None)
        numbers |= _leading_block(work, usable)
    s = singular_values(work).double()
    numbers |= {
        "stable_rank": stable_rank(s),
        "effective_rank": effective_rank(s),
        "power_law": power_law(s),
        "sigma_max": float(s[0]) / scale,
        "above_noise": float((s > marchenko_pastur(m, n, std)[1]).sum()) if std > 0 else 0.0,
    }
    if usable:
        best = truncation_errors(s, max(usable)).tolist()
        numbers |= {f"svd_r{r}": best[r - 1] for r in usable}
    return numbers


def _approximation_errors(
    W: Float[Tensor, "m n"], ranks: Sequence[int], refill: Callable[[], Float[Tensor, "m n"]] | None
) -> dict[str, float]:
    """The errors of the cross approximations. One elimination of each kind serves all ranks."""
    pivots = None
    if refill is not None:
        pivots = complete_pivoting(W, max(ranks), in_place=True)
        W.copy_(refill())
    numbers: dict[str, float] = {}
    for kind, options in _CURVES.items():
        if kind == "cross" and pivots is not None:
            options = {"pivots": pivots}
        errors = error_curve(W, max(ranks), **options).tolist()
        numbers |= {f"{kind}_r{r}": errors[r - 1] for r in ranks}
    return numbers


def _leading_block(W: Float[Tensor, "m n"], ranks: Sequence[int]) -> dict[str, float]:
    """The condition of the leading block, and the leverage of the leading rows and columns."""
    # wide and well iterated at any rank: a flat spectrum is slow to separate
    sketch = randomized_svd(W, max(ranks), oversample=64, n_iter=4, generator=torch.Generator().manual_seed(0))
    numbers = {}
    for r in ranks:
        sides = leading_leverage(sketch.left, r), leading_leverage(sketch.right.mT, r)
        numbers[f"leverage_r{r}"] = sum(sides) / 2
        numbers[f"cond_r{r}"] = block_condition(W, r)
    return numbers
