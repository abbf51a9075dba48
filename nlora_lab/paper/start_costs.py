"""What a start costs: Nyström beside the decompositions that other methods start from."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import check_count
from nlora_lab.lowrank.cross import nystrom

if TYPE_CHECKING:
    import pandas as pd

Way = Callable[[], list[Tensor]]


def start_times(shape: tuple[int, int] = (1024, 1024), rank: int = 128, rounds: int = 7, seed: int = 0) -> pd.DataFrame:
    """How long four starts of one weight matrix take on this machine, and how near they come to it; one row a start.

    The starts take turns, ``rounds`` times after a warm-up. Columns: milliseconds (median), low and high (the quickest
    and the slowest round), times (of Nyström's median) and error (relative, Frobenius; 1 is that of W ≈ 0). The
    matrix, float32, has the singular values 1, 1/√2, 1/√3, … and random singular vectors.
    """
    import pandas as pd

    check_count("rounds", rounds, 1, 10**6)
    if not 1 <= rank <= min(shape):
        raise InputError(f"rank={rank!r} must be from 1 to {min(shape)}, the smaller side")
    W = _decaying(shape, seed)
    ways = _ways(W, rank)
    took: dict[str, list[float]] = {name: [] for name in ways}
    factors: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(rounds + 1):
            for name, way in ways.items():
                begun = time.perf_counter()
                factors[name] = way()
                took[name].append(1e3 * (time.perf_counter() - begun))
    rows = {}
    for name, (_, *times) in took.items():
        off = torch.linalg.matrix_norm(W - torch.linalg.multi_dot(factors[name])) / torch.linalg.matrix_norm(W)
        rows[name] = {"milliseconds": median(times), "low": min(times), "high": max(times), "error": float(off)}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("start")
    frame.insert(3, "times", frame["milliseconds"] / frame["milliseconds"]["Nyström"])
    return frame


def _decaying(shape: tuple[int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    k = min(shape)
    left, right = (torch.linalg.qr(torch.randn(side, k, generator=generator)).Q for side in shape)
    W: Tensor = left / torch.arange(1, k + 1).sqrt() @ right.T
    return W


def _ways(W: Tensor, rank: int) -> dict[str, Way]:
    """What makes the factors of each start."""

    def leading() -> list[Tensor]:
        found = nystrom(W, rank)
        return [found.left, found.core, found.right]

    def sketched() -> list[Tensor]:
        U, S, V = torch.svd_lowrank(W, q=min(rank + 8, *W.shape), niter=2)
        return [U[:, :rank] * S[:rank], V[:, :rank].T]

    def triangular() -> list[Tensor]:
        Q, R = torch.linalg.qr(W)
        return [Q[:, :rank], R[:rank]]

    def full() -> list[Tensor]:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return [U[:, :rank] * S[:rank], Vh[:rank]]

    return {"Nyström": leading, "randomised SVD": sketched, "QR": triangular, "full SVD": full}
