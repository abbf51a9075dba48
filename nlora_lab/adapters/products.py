r"""The update ``B N A − B0 N0 A0``, written so that nothing large is subtracted.

With :math:`\Delta A = A - A_0`, and the same for N and B,

.. math:: B N A - B_0 N_0 A_0 = \Delta B\,(N A) + B_0\,(\Delta N\,A_0 + N\,\Delta A).

Every term holds a difference that is exactly zero until a factor moves. So step 0 is the base model bit for bit, in any
precision, and in whatever order a matrix product sums. After step 0, rounding is in units of the update. This matters
where the start is large beside W, as it is with leading pivots: two large products would have to cancel.

This is the only place that says how a start is subtracted. The forward pass uses ``subtract_start``. Merging, the
export and the batched training of several adapters use ``update_pair``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nlora_lab.core.array_types import Float

Factors = tuple[Float[Tensor, "*layers r n"], Float[Tensor, "*layers r r"], Float[Tensor, "*layers m r"]]
"""A (r, n), N (r, r), B (m, r): the order in which they act on x."""

AnyFactors = tuple[Float[Tensor, "*layers r n"], Float[Tensor, "*layers r r"] | None, Float[Tensor, "*layers m r"]]
"""A (r, n), N (r, r), B (m, r). N is ``None`` for a method of two factors."""

Start = tuple[
    Float[Tensor, "*layers r n"] | None, Float[Tensor, "*layers r r"] | None, Float[Tensor, "*layers m r"] | None
]
"""A0 (r, n), N0 (r, r), B0 (m, r), the part of the start that is subtracted. ``None`` where nothing is."""

NO_START: Start = (None, None, None)


def subtract_start(
    factors: Factors, start: Start
) -> tuple[Float[Tensor, "*layers k n"], Float[Tensor, "*layers k k"], Float[Tensor, "*layers m k"]]:
    """Return three factors whose product is ``B N A − B0 N0 A0``.

    A complete start doubles the rank: ``A′ = [A0; ΔA]``, ``N′ = [[N, N], [ΔN, N]]``, ``B′ = [ΔB, B0]``. One matrix
    product then serves the pair of A, and one the pair of B. If only N has a start, N′ is ``N − N0``.

    Args:
        factors: the current A (r, n), N (r, r) and B (m, r), with any leading dimensions.
        start: A0, N0 and B0 in the same shapes, or ``None`` for each that is not subtracted.

    Returns:
        A′ (k, n), N′ (k, k) and B′ (m, k), with k = 2r for a complete start and k = r otherwise.
    """
    A, N, B = factors
    A0, N0, B0 = start
    if A0 is None or N0 is None or B0 is None:
        return A, N if N0 is None else N - N0, B
    core = torch.cat([torch.cat([N, N], dim=-1), torch.cat([N - N0, N], dim=-1)], dim=-2)
    return torch.cat([A0, A - A0], dim=-2), core, torch.cat([B - B0, B0], dim=-1)


def update_pair(
    factors: AnyFactors, start: Start = NO_START, scale: float = 1.0
) -> tuple[Float[Tensor, "*layers m k"], Float[Tensor, "*layers k n"]]:
    """Return two matrices whose product is the update ``s·(B N A − B0 N0 A0)``.

    Without a start the pair is ``(s·B N, A)``. If only N has a start, it is ``(s·B (N − N0), A)``. With a complete
    start it is ``(s·[ΔB, B0], [N A; N A − N0 A0])``, where the last difference is formed as ``ΔN A0 + N ΔA``.

    Args:
        factors: the current A (r, n), N (r, r) or ``None``, and B (m, r). Several layers of one shape may be batched
            in leading dimensions.
        start: A0, N0 and B0 in the same shapes, or ``None`` for each that is not subtracted.
        scale: the scale s of the adapter.

    Returns:
        left (m, k) and right (k, n) in the dtype of the factors, with k = 2r for a complete start and k = r otherwise.
        Differentiable in the factors.
    """
    A, N, B = factors
    A0, N0, B0 = start
    if A0 is None or B0 is None:
        core = N if N is None or N0 is None else N - N0
        left, right = B if core is None else B @ core, A
    else:
        left = torch.cat([B - B0, B0], dim=-1)
        if N is None or N0 is None:
            right = torch.cat([A, A - A0], dim=-2)
        elif A.ndim > 2:
            right = torch.cat([N @ A, (N - N0) @ A0 + N @ (A - A0)], dim=-2)
        else:  # the same sums in another order: both are kept, so that results stay what they were to the last bit
            inner, core, _ = subtract_start((A, N, B), start)
            right = core @ inner
    return left if scale == 1.0 else left * scale, right


def add_update(
    result: Float[Tensor, "*rows m"], x: Float[Tensor, "*rows n"], factors: Factors, scale: float
) -> Float[Tensor, "*rows m"]:
    """Return ``result + s·B N A x``.

    The sum with ``result`` and the product with B are one pass over ``result`` where dtypes allow it.

    Args:
        result: the output of the base layer, (*rows, m).
        x: the input of the adapter, (*rows, n).
        factors: A (r, n), N (r, r) and B (m, r).
        scale: the scale s.

    Returns:
        The sum, (*rows, m).
    """
    A, N, B = factors
    z = F.linear(F.linear(x, A), N)
    # autocast makes the three dtypes one by itself
    alike = autocasting(result) or result.dtype == z.dtype == B.dtype
    if result.ndim < 2 or not alike:
        return result + F.linear(z, B) * scale
    flat = torch.addmm(result.reshape(-1, result.shape[-1]), z.reshape(-1, z.shape[-1]), B.T, alpha=scale)
    return flat.view(result.shape)


def autocasting(x: Tensor) -> bool:
    """Return whether a matrix product of ``x`` would now run in the dtype of autocast."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def at_least_float32(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ``value`` detached, in float32 or in its own dtype where that is wider."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))
