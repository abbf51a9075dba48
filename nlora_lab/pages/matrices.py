"""What a page needs of a matrix in order to compute its Nyström approximations by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nlora_lab.lowrank.cross import CORES
from nlora_lab.lowrank.pivots import PIVOTS

PAGE_ENTRIES = 128 * 384
"""Entries of the largest matrix that a page computes within a frame."""

TOLERANCES = [("default", 0.0), *((f"{t:g}", t) for t in (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3))]

FACTS = {"pivots": list(PIVOTS), "cores": list(CORES), "tolerances": [list(pair) for pair in TOLERANCES]}
"""The choices of the menus in the page."""


def entry_of(
    W: Tensor, max_rank: int, sigma: Sequence[float], best: Sequence[float], *, with_numbers: bool = True
) -> dict[str, Any]:
    """Return a matrix as ``static/nystrom_controls.js`` reads it.

    Args:
        W: the matrix, (m, n), float32 or float64.
        max_rank: the largest rank of the slider.
        sigma: its singular values.
        best: the relative errors of the best approximations of rank 1 to ``max_rank``.
        with_numbers: whether the page computes; else the kernel does, and the entries are left out.

    Returns:
        The entry. Its "random" are the rows and columns that ``pivots="random"`` draws from seed 0.
    """
    generator = torch.Generator().manual_seed(0)
    entry = {
        "m": W.shape[0],
        "n": W.shape[1],
        "max_rank": max_rank,
        "eps": torch.finfo(W.dtype).eps,
        "sigma": list(sigma),
        "best": list(best),
        "random": [torch.randperm(size, generator=generator).tolist() for size in W.shape],
    }
    return {**entry, "W": W.cpu().contiguous().numpy().tobytes()} if with_numbers else entry
