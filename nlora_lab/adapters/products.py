r"""The update ``B N A − B0 N0 A0`` written so that nothing large is ever subtracted.

With :math:`\Delta A = A - A_0`, and the same for N and B,

.. math:: B N A - B_0 N_0 A_0 = \Delta B\,(N A) + B_0\,(\Delta N\,A_0 + N\,\Delta A).

Every term holds a difference that is exactly zero as long as the factors have not moved: step 0 is the
base model bit for bit, in any precision and whatever order a matrix product sums in. And where the start
is large beside W, as the leading pivots' is, two large products need not cancel: rounding is in units of
the update. The same four blocks serve the step, the merge and the export.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nlora_lab.adapters.start import Factors


def stacked(now: Factors, start: Factors) -> Factors:
    """``(A′, N′, B′)`` of twice the rank with ``B′ N′ A′ = B N A − B0 N0 A0``: shapes (2r, n), (2r, 2r), (m, 2r).

    ``A′ = [A0; ΔA]``, ``N′ = [[N, N], [ΔN, N]]``, ``B′ = [ΔB, B0]``: one matrix product for the pair of A,
    one for the pair of B.
    """
    (A, N, B), (A0, N0, B0) = now, start
    core = torch.cat([torch.cat([N, N], dim=1), torch.cat([N - N0, N], dim=1)])
    return torch.cat([A0, A - A0]), core, torch.cat([B - B0, B0], dim=1)


def pair(factors: Factors, start: Factors | None) -> tuple[Tensor, Tensor]:
    """``left (m, k) @ right (k, n)`` equal to the update: k = r, or 2r for one with a whole start subtracted.

    Without a start ``(B N, A)``; with one ``([ΔB, B0], [N A; N A − N0 A0])``.
    """
    A, N, B = factors
    if start is None:
        return B @ N, A
    A0, core, left = stacked(factors, start)
    return left, core @ A0


def apply(factors: Factors, x: Tensor) -> tuple[Tensor, Tensor]:
    """``(z, B)`` with ``z = N A x`` (…, r), so that the update of ``x`` (…, n) is ``z Bᵀ`` (…, m)."""
    A, N, B = factors
    return F.linear(F.linear(x, A), N), B


def add_product(result: Tensor, z: Tensor, B: Tensor, scale: float) -> Tensor:
    """``result + scale · z Bᵀ`` for result (…, m), z (…, r), B (m, r): in one pass over ``result`` where it can."""
    # autocast makes the three dtypes one by itself
    alike = autocasting(result) or result.dtype == z.dtype == B.dtype
    if result.ndim < 2 or not alike:
        return result + F.linear(z, B) * scale
    flat = torch.addmm(result.reshape(-1, result.shape[-1]), z.reshape(-1, z.shape[-1]), B.T, alpha=scale)
    return flat.view(result.shape)


def autocasting(x: Tensor) -> bool:
    """Whether a matrix product of ``x`` now runs in autocast's dtype."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
