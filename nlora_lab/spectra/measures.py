"""Numbers that say what a matrix's singular values look like, and what those of noise would."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import check_count, check_matrix, check_rank
from nlora_lab.lowrank.svd import singular_values


def _spectrum(W_or_values: Tensor) -> Tensor:
    if isinstance(W_or_values, Tensor) and W_or_values.ndim == 1:
        if not W_or_values.is_floating_point() or W_or_values.is_meta or W_or_values.layout != torch.strided:
            raise InputError(f"singular values must be dense real numbers, not {W_or_values.dtype}")
        s = W_or_values.detach().to(torch.float64)
        if len(s) == 0 or not bool(torch.isfinite(s).all()) or bool((s < 0).any()):
            raise InputError("singular values must be finite, at least 0 and at least one")
    else:
        work = check_matrix(W_or_values)
        if work.ndim != 2:
            raise InputError(f"W must be one matrix, not a batch {tuple(work.shape)}; measure them one by one")
        s = singular_values(work).to(torch.float64)
    top = float(s.max())
    return s / top if top > 0 else s  # none of these numbers depends on the scale, and squares overflow


def stable_rank(W: Tensor) -> float:
    """``‖W‖_F² / σ₁²``, from 1 to the rank; ``W`` is a matrix (m, n) or its singular values (k,).

    It hardly moves when W does. 0 for the zero matrix.
    """
    s = _spectrum(W)
    return float(s.square().sum() / s.max().square()) if bool(s.any()) else 0.0


def effective_rank(W: Tensor) -> float:
    """``exp(H)``, H the entropy of ``p_k = σ_k / Σσ`` (Roy and Vetterli 2007), from 1 to the rank.

    ``W`` is a matrix (m, n) or its singular values (k,). 0 for the zero matrix.
    """
    s = _spectrum(W)
    if not bool(s.any()):
        return 0.0
    p = s / s.sum()
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def power_law(W: Tensor) -> float:
    """p of the line ``log σ_k = c − p log k`` fitted by least squares to the first half of the spectrum.

    0 is flat, 1/2 the slowest decay at which low rank begins to pay, 1 a steep one. NaN with fewer than
    four values above zero.
    """
    s = _spectrum(W).sort(descending=True).values
    s = s[: max(4, len(s) // 2)]
    if len(s) < 4 or not bool((s > 0).all()):
        return math.nan
    x, y = torch.arange(1, len(s) + 1, dtype=torch.float64).log().to(s.device), s.log()
    x = x - x.mean()
    return -float((x * (y - y.mean())).sum() / x.square().sum())


def leading_leverage(U: Tensor, rank: int) -> float:
    """How much of the subspace spanned by the first ``rank`` columns of ``U`` lies in its first rows.

    ``U`` (m, k) has orthonormal columns. ``(m / r) · mean_{i < r} ‖U_r[i]‖²``: 1 is what a random choice of
    r rows has on average, 0 means that the leading rows miss the subspace, m / r that they hold all of it.
    """
    return float(U.shape[0] / rank * U[:rank, :rank].square().sum() / rank)


def marchenko_pastur(m: int, n: int, std: float) -> tuple[float, float]:
    """The smallest and largest singular value to expect of an m × n matrix of independent entries.

    ``std · |√m − √n|`` and ``std · (√m + √n)`` (Marchenko and Pastur 1967), for entries of mean 0 and
    standard deviation ``std``, m and n large. A matrix of this size strays across the edge by a percent or two,
    so one value just above it means nothing; what stands far above is not noise.
    """
    _check_noise(m, n, std)
    return std * abs(math.sqrt(m) - math.sqrt(n)), std * (math.sqrt(m) + math.sqrt(n))


def marchenko_pastur_values(m: int, n: int, std: float) -> Tensor:
    """The whole spectrum noise would have: min(m, n) singular values in float64, largest first.

    The quantiles (k − ½) / min(m, n) of the Marchenko–Pastur law, integrated numerically.
    """
    low, high = marchenko_pastur(m, n, std)
    k = min(m, n)
    # σ² = a − b cos θ: the density's square roots at both edges, and its pole at σ = 0 when m = n, are gone in θ
    angle = torch.linspace(0, math.pi, 4001, dtype=torch.float64)
    a, b = (low**2 + high**2) / 2, (high**2 - low**2) / 2
    square = a - b * torch.cos(angle)
    density = torch.where(square > 0, (b * torch.sin(angle)).square() / square.clamp(min=1e-300), 2 * b)
    mass = torch.cumulative_trapezoid(density, angle)
    cdf = torch.cat([torch.zeros(1, dtype=torch.float64), mass / mass[-1]])
    quantiles = 1 - (torch.arange(k, dtype=torch.float64) + 0.5) / k
    at = torch.searchsorted(cdf, quantiles).clamp(1, len(cdf) - 1)
    share = (quantiles - cdf[at - 1]) / (cdf[at] - cdf[at - 1]).clamp(min=1e-300)
    return (a - b * torch.cos(angle[at - 1] + share * (angle[at] - angle[at - 1]))).clamp(min=0).sqrt()


def block_condition(W: Tensor, rank: int) -> float:
    """Condition number ``σ₁ / σ_r`` of the leading block ``W[:r, :r]``; infinite if it is singular."""
    work = check_matrix(W)
    if work.ndim != 2:
        raise InputError(f"W must be one matrix, not a batch {tuple(work.shape)}; measure them one by one")
    rank = check_rank(rank, tuple(work.shape))
    s = torch.linalg.svdvals(work[:rank, :rank].to("cpu", torch.float64))
    return float(s[0] / s[-1]) if s[-1] > 0 else math.inf


def _check_noise(m: int, n: int, std: float) -> None:
    check_count("m", m, 1, 10**9)
    check_count("n", n, 1, 10**9)
    if isinstance(std, bool) or not isinstance(std, int | float) or not 1e-150 < std < 1e150:
        raise InputError(f"std={std!r} must be positive and finite: it is the spread of the entries")
