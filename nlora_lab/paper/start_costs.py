"""What a start costs: the Nyström start and the decompositions that other methods start from."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlora_lab.core.validation import check_whole_number
from nlora_lab.lowrank.cross import nystrom

if TYPE_CHECKING:
    import pandas as pd

Factorisation = Callable[[], list[Tensor]]


def start_times(shape: tuple[int, int] = (1024, 1024), rank: int = 128, rounds: int = 7, seed: int = 0) -> pd.DataFrame:
    """Measure how long four starts of one weight matrix take on this machine, and how close each comes to the matrix.

    The starts take turns, so that a busy moment slows down all of them. The first round is a warm-up and does not
    count. The matrix is float32 and has the singular values 1, 1/√2, 1/√3, … with random singular vectors.

    Args:
        shape: rows and columns of the matrix.
        rank: the rank of the starts.
        rounds: how many times each start is measured.
        seed: the seed of the matrix and of the randomised SVD.

    Returns:
        One row per start. Columns: milliseconds (median), low and high (the fastest and the slowest round), times (the
        median in units of Nyström's) and error (relative, in the Frobenius norm; 1 is the error of W ≈ 0).

    Raises:
        InputError: ``rank`` or ``rounds`` is not a whole number in its range.
    """
    import pandas as pd

    check_whole_number("rounds", rounds, 1, 10**6)
    check_whole_number("rank", rank, 1, min(shape), limit=f"{min(shape)}, the smaller side of the matrix")
    W = _decaying_matrix(shape, seed)
    starts = _factorisations(W, rank)
    times: dict[str, list[float]] = {name: [] for name in starts}
    factors: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(rounds + 1):
            for name, factorise in starts.items():
                begin = time.perf_counter()
                factors[name] = factorise()
                times[name].append(1e3 * (time.perf_counter() - begin))
    rows = {}
    for name, (_, *counted) in times.items():
        error = torch.linalg.matrix_norm(W - torch.linalg.multi_dot(factors[name])) / torch.linalg.matrix_norm(W)
        rows[name] = {"milliseconds": median(counted), "low": min(counted), "high": max(counted), "error": float(error)}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("start")
    frame.insert(3, "times", frame["milliseconds"] / frame["milliseconds"]["Nyström"])
    return frame


def _decaying_matrix(shape: tuple[int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    k = min(shape)
    left, right = (torch.linalg.qr(torch.randn(side, k, generator=generator)).Q for side in shape)
    W: Tensor = left / torch.arange(1, k + 1).sqrt() @ right.T
    return W


def _factorisations(W: Tensor, rank: int) -> dict[str, Factorisation]:
    """By name, a function that computes the factors of that start."""

    def leading_block() -> list[Tensor]:
        start = nystrom(W, rank)
        return [start.left, start.core, start.right]

    def randomised_svd() -> list[Tensor]:
        U, S, V = torch.svd_lowrank(W, q=min(rank + 8, *W.shape), niter=2)
        return [U[:, :rank] * S[:rank], V[:, :rank].T]

    def qr() -> list[Tensor]:
        Q, R = torch.linalg.qr(W)
        return [Q[:, :rank], R[:rank]]

    def full_svd() -> list[Tensor]:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return [U[:, :rank] * S[:rank], Vh[:rank]]

    return {"Nyström": leading_block, "randomised SVD": randomised_svd, "QR": qr, "full SVD": full_svd}
