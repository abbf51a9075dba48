"""Measures of the singular values of a matrix, and the singular values that noise would have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nlora_lab.core.array_types import Float, Float64
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_number, check_whole_number
from nlora_lab.lowrank.checks import check_rank, check_single_matrix, is_real
from nlora_lab.lowrank.svd import singular_values


def _normalised_spectrum(
    W: Float[Tensor, "m n"] | Float[Tensor, " k"],
) -> Float64[Tensor, " k"]:
    """The singular values divided by the largest: no measure depends on the scale, and large squares overflow."""
    if isinstance(W, Tensor) and W.ndim == 1:
        if not is_real(W) or W.is_meta or W.layout != torch.strided:
            raise InputError(f"singular values must be dense real numbers, not {W.dtype} ({W.layout}, {W.device})")
        s = W.detach().to(torch.float64)
        if len(s) == 0 or not bool(torch.isfinite(s).all()) or bool((s < 0).any()):
            raise InputError("singular values must be finite, at least 0, and at least one in number")
    else:
        s = singular_values(check_single_matrix(W)).to(torch.float64)
    top = float(s.max())
    return s / top if top > 0 else s


def stable_rank(W: Float[Tensor, "m n"] | Float[Tensor, " k"]) -> float:
    """Compute the stable rank ``‖W‖_F² / σ₁²``, which lies between 1 and the rank.

    It hardly changes when ``W`` changes a little.

    Args:
        W: the matrix, (m, n), or its singular values, (k,) in any order; any floating dtype.

    Returns:
        The stable rank; 0 for the zero matrix.

    Raises:
        InputError: ``W`` is not one finite matrix, nor a vector of finite numbers that are at least 0.
    """
    s = _normalised_spectrum(W)
    return float(s.square().sum() / s.max().square()) if bool(s.any()) else 0.0


def effective_rank(W: Float[Tensor, "m n"] | Float[Tensor, " k"]) -> float:
    """Compute the effective rank ``exp(H)``, which lies between 1 and the rank.

    H is the entropy of ``p_k = σ_k / Σσ``. Source: Roy and Vetterli (2007).

    Args:
        W: the matrix, (m, n), or its singular values, (k,) in any order; any floating dtype.

    Returns:
        The effective rank; 0 for the zero matrix.

    Raises:
        InputError: ``W`` is not one finite matrix, nor a vector of finite numbers that are at least 0.
    """
    s = _normalised_spectrum(W)
    if not bool(s.any()):
        return 0.0
    p = s / s.sum()
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def power_law(W: Float[Tensor, "m n"] | Float[Tensor, " k"]) -> float:
    """Fit the power law ``σ_k ~ k^-p`` to a spectrum and return its exponent p.

    p comes from the line ``log σ_k = c − p log k``, fitted by least squares to the first half of the spectrum. 0 is a
    flat spectrum. 1/2 is the slowest decay at which low rank begins to pay. 1 is a steep decay.

    Args:
        W: the matrix, (m, n), or its singular values, (k,) in any order; any floating dtype.

    Returns:
        The exponent p; NaN if the first half (or the first four values) holds a zero, or there are fewer than four
        values.

    Raises:
        InputError: ``W`` is not one finite matrix, nor a vector of finite numbers that are at least 0.
    """
    s = _normalised_spectrum(W).sort(descending=True).values
    s = s[: max(4, len(s) // 2)]
    if len(s) < 4 or not bool((s > 0).all()):
        return math.nan
    x, y = torch.arange(1, len(s) + 1, dtype=torch.float64).log().to(s.device), s.log()
    x = x - x.mean()
    return -float((x * (y - y.mean())).sum() / x.square().sum())


def leading_leverage(U: Float[Tensor, "m k"], rank: int) -> float:
    """Compute how much of a subspace lies in its first rows.

    The subspace is spanned by the first r columns of ``U``. The measure is ``(m / r) · mean_{i < r} ‖U_r[i]‖²``. 1 is
    the average over a random choice of r rows. 0 means that the first r rows miss the subspace, and m / r that they
    hold all of it.

    Args:
        U: a matrix with orthonormal columns, (m, k), any floating dtype.
        rank: r, from 1 to k.

    Returns:
        The leverage, from 0 to m / r.
    """
    return float(U.shape[0] / rank * U[:rank, :rank].square().sum() / rank)


def marchenko_pastur(m: int, n: int, std: float) -> tuple[float, float]:
    """Compute the smallest and the largest singular value to expect of noise.

    Noise is an m × n matrix of independent entries with mean 0 and standard deviation ``std``, where m and n are large.
    Its singular values lie between ``std · |√m − √n|`` and ``std · (√m + √n)`` (Marchenko and Pastur 1967). A matrix of
    this size strays across the edge by a percent or two, so one value just above it means nothing. A value far above it
    is not noise.

    Args:
        m: the number of rows.
        n: the number of columns.
        std: the standard deviation of the entries.

    Returns:
        The lower and the upper edge.

    Raises:
        InputError: a size is not a whole number of at least 1, or ``std`` is not a positive finite number.
    """
    check_whole_number("m", m, 1, 10**9)
    check_whole_number("n", n, 1, 10**9)
    check_number("std", std, above=1e-150, below=1e150, remedy="it is the spread of the entries")
    return std * abs(math.sqrt(m) - math.sqrt(n)), std * (math.sqrt(m) + math.sqrt(n))


def marchenko_pastur_values(m: int, n: int, std: float) -> Float64[Tensor, " k"]:
    """Compute the complete spectrum that noise would have.

    Its values are the quantiles (k − ½) / min(m, n) of the Marchenko–Pastur law, integrated numerically.

    Args:
        m: the number of rows.
        n: the number of columns.
        std: the standard deviation of the entries.

    Returns:
        The min(m, n) singular values, largest first, float64.

    Raises:
        InputError: a size is not a whole number of at least 1, or ``std`` is not a positive finite number.
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


def block_condition(W: Float[Tensor, "m n"], rank: int) -> float:
    """Compute the condition number ``σ₁ / σ_r`` of the leading block ``W[:r, :r]``.

    Args:
        W: the matrix, (m, n), any floating dtype.
        rank: the size r of the block, from 1 to min(m, n).

    Returns:
        The condition number; infinite if the block is singular.

    Raises:
        InputError: ``W`` is not one finite matrix, or the rank is out of range.
    """
    work = check_single_matrix(W)
    rank = check_rank(rank, tuple(work.shape))
    s = torch.linalg.svdvals(work[:rank, :rank].to("cpu", torch.float64))
    return float(s[0] / s[-1]) if s[-1] > 0 else math.inf
