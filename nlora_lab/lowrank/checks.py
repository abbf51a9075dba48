"""What a matrix, a rank and a tolerance must be, and the two ways a block can be in trouble."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import whole_number


class IllConditionedWarning(UserWarning):
    """The chosen block was numerically singular; the message says by how much and what was done."""


class SingularBlockError(InputError):
    """The chosen block cannot be inverted in any useful sense, pseudo-inverse included."""


def check_matrix(W: Tensor, what: str = "W") -> Tensor:
    """``W`` (…, m, n) detached, in float32 or better; :class:`InputError` names what is wrong with it."""
    work = check_kind(W, what)
    # a sum is one pass without a mask; only where it is not finite (it may overflow) look at every entry
    if not bool(torch.isfinite(work.sum())) and not bool(torch.isfinite(work).all()):
        raise InputError(f"{what} holds NaN or infinity; clean it before approximating it")
    return work


def check_kind(W: Tensor, what: str = "W") -> Tensor:
    """:func:`check_matrix` without a look at the values."""
    if not isinstance(W, Tensor):
        raise InputError(f"{what} must be a 2-D torch tensor, not {type(W).__name__}; torch.as_tensor makes one")
    if W.ndim < 2:
        raise InputError(f"{what} must be a 2-D tensor (or a batch of them), not {tuple(W.shape)}; reshape it first")
    if W.layout != torch.strided:
        raise InputError(f"{what} must be dense, not {W.layout}; call to_dense() first")
    if not W.is_floating_point():
        raise InputError(f"{what} must be real floating point, not {W.dtype}; convert it first")
    if W.is_meta:
        raise InputError(f"{what} is on the meta device and has no values; load the weights first")
    if 0 in W.shape:
        raise InputError(f"{what} of shape {tuple(W.shape)} is empty")
    work = W.detach()
    return work if work.dtype in (torch.float32, torch.float64) else work.to(torch.float32)


def check_rank(rank: int, shape: tuple[int, ...], what: str = "rank") -> int:
    """``rank`` if it is a whole number from 1 to ``min(m, n)``, else :class:`InputError`."""
    m, n = shape[-2:]
    number = whole_number(rank)
    if number is None or not 1 <= number <= min(m, n):
        raise InputError(f"{what}={rank!r} must be a whole number from 1 to min{(m, n)} = {min(m, n)}")
    return number


def check_count(what: str, value: int, low: int, high: int) -> int:
    """``value`` if it is a whole number from ``low`` to ``high``, else :class:`InputError`."""
    number = whole_number(value)
    if number is None or not low <= number <= high:
        raise InputError(f"{what}={value!r} must be a whole number from {low} to {high}")
    return number


def check_rtol(rtol: float | None) -> None:
    """Raise :class:`InputError` unless ``rtol`` is ``None`` or at least 0 and below 1."""
    if rtol is None:
        return
    if isinstance(rtol, bool) or not isinstance(rtol, int | float | np.floating) or not 0 <= rtol < 1:
        raise InputError(f"rtol={rtol!r} must be at least 0 and below 1; None takes eps · max(block shape)")


def check_generator(generator: torch.Generator | None) -> None:
    """Raise :class:`InputError` unless ``generator`` is ``None`` or a torch generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(f"generator={generator!r}: make one with torch.Generator().manual_seed(0)")


def default_rtol(block: Tensor, dtype: torch.dtype) -> float:
    """``eps · max(shape)`` of the dtype the matrix is known in, as numpy and torch have it."""
    return torch.finfo(dtype).eps * max(block.shape[-2:])


def rescaled(W: Tensor) -> tuple[Tensor, float]:
    """``(W · s, s)`` with a power of two s that keeps squares of W's entries within range; s = 1 for ordinary W.

    Nothing is lost by it: only exponents change.
    """
    low, high = torch.aminmax(W)  # one pass, and nothing of W's size
    largest = max(-float(low), float(high))
    if largest == 0 or 2.0**-30 < largest < 2.0**30:
        return W, 1.0
    exponent = max(-1000, min(1000, -math.frexp(largest)[1]))  # 2^exponent has to be a float itself
    # a factor beyond the dtype's own range is applied in two halves
    half = exponent // 2
    return W * 2.0**half * 2.0 ** (exponent - half), 2.0**exponent


def to_float64(t: Tensor) -> Tensor:
    """``t`` in float64, for small systems; on the CPU where the device has no float64 (Apple's MPS)."""
    return t.to("cpu", torch.float64) if t.device.type == "mps" else t.to(torch.float64)


def standard_normal(*shape: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers on ``like``'s device and in its dtype, drawn where the generator lives."""
    where = like.device if generator is None else generator.device
    return torch.randn(*shape, generator=generator, device=where, dtype=like.dtype).to(like.device)
