"""Checks of matrices, ranks and tolerances, and the small helpers that keep the arithmetic in range."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nlora_lab.core.array_types import Float
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_number, check_whole_number


class IllConditionedWarning(UserWarning):
    """The chosen block is numerically singular. The message says by how much, and what was done about it."""


class SingularBlockError(InputError):
    """The chosen block cannot be inverted: even its pseudo-inverse does not fit into the dtype."""


def check_matrix(W: Float[Tensor, "*batch m n"], name: str = "W") -> Float[Tensor, "*batch m n"]:
    """Check that ``W`` is a finite matrix, or a batch of them, and return it ready for arithmetic.

    Args:
        W: the matrix, (..., m, n), any floating dtype.
        name: what the caller knows the matrix as.

    Returns:
        ``W``, detached, (..., m, n): in its own dtype if that is float32 or float64, else in float32. It shares memory
        with ``W`` unless the dtype changed.

    Raises:
        InputError: ``W`` is not a tensor, has fewer than two dimensions, is empty, sparse, complex, integer or on the
            meta device, holds NaN or infinity, or has entries so large that its norm may not fit into the dtype.
    """
    work = check_matrix_form(W, name)
    largest = _largest(work)  # one pass without a mask
    if not math.isfinite(largest):
        raise InputError(f"{name} holds NaN or infinity; clean it before approximating it")
    if largest > torch.finfo(work.dtype).max / (MARGIN * math.sqrt(work.shape[-2] * work.shape[-1])):
        wider = ", or give it in float64" if work.dtype == torch.float32 else ""
        raise InputError(
            f"{name} has entries up to {largest:.1e}, and its singular values may not fit into {work.dtype}; "
            f"scale it down{wider}"
        )
    return work


MARGIN = 100  # for what a random sketch of the matrix may be larger than its norm


def _largest(W: Float[Tensor, "*batch m n"]) -> float:
    """The largest size of an entry; NaN or infinite if one is."""
    by_row = W if W.stride(-1) <= W.stride(-2) else W.mT  # in the order of memory: across it takes forty times as long
    low, high = torch.aminmax(by_row)  # one pass, and nothing of W's size
    return max(-float(low), float(high)) if not bool(low.isnan()) else math.nan


def check_matrix_form(W: Float[Tensor, "*batch m n"], name: str = "W") -> Float[Tensor, "*batch m n"]:
    """Check everything that ``check_matrix`` checks except the values, and return the same as it does."""
    if not isinstance(W, Tensor):
        raise InputError(f"{name} must be a 2-D torch tensor, not {type(W).__name__}; torch.as_tensor makes one")
    if W.ndim < 2:
        raise InputError(f"{name} must be a 2-D tensor (or a batch of them), not {tuple(W.shape)}; reshape it first")
    if W.layout != torch.strided:
        raise InputError(f"{name} must be dense, not {W.layout}; call to_dense() first")
    if not is_real(W):
        raise InputError(f"{name} must be real floating point, not {W.dtype}; convert it first")
    if W.is_meta:
        raise InputError(f"{name} is on the meta device and has no values; load the weights first")
    if 0 in W.shape:
        raise InputError(f"{name} of shape {tuple(W.shape)} is empty; give at least one row and one column")
    work = W.detach()
    return work if work.dtype in (torch.float32, torch.float64) else work.to(torch.float32)


def is_real(t: Tensor) -> bool:
    """Return whether a tensor holds real floating-point numbers, one in each entry."""
    return t.is_floating_point() and not str(t.dtype).endswith("_x2")  # two numbers of four bits in a byte


def check_single_matrix(W: Float[Tensor, "m n"], name: str = "W") -> Float[Tensor, "m n"]:
    """Check as ``check_matrix`` does, and that ``W`` is one matrix instead of a batch.

    Args:
        W: the matrix, (m, n), any floating dtype.
        name: what the caller knows the matrix as.

    Returns:
        ``W``, detached, (m, n), in float32 or float64.

    Raises:
        InputError: ``W`` is not one finite matrix.
    """
    work = check_matrix(W, name)
    if work.ndim != 2:
        raise InputError(f"{name} must be one matrix, not a batch {tuple(work.shape)}; measure them one by one")
    return work


def check_nonzero(size: Float[Tensor, "*batch"]) -> None:
    """Check that no matrix is zero, by the ``size`` of each: a norm, or its largest entry, (...)."""
    if not bool((size > 0).all()):
        raise InputError("W is the zero matrix, so a relative error has no meaning; give another matrix")


def check_rank(rank: int, shape: tuple[int, ...], name: str = "rank") -> int:
    """Check that ``rank`` is a possible rank of a matrix.

    Args:
        rank: the rank.
        shape: the shape of the matrix, (..., m, n).
        name: what the caller knows the rank as.

    Returns:
        The rank as an ``int``.

    Raises:
        InputError: ``rank`` is not a whole number from 1 to min(m, n).
    """
    m, n = shape[-2:]
    return check_whole_number(name, rank, 1, min(m, n), limit=f"min{(m, n)} = {min(m, n)}")


def check_rtol(rtol: float, remedy: str = "for example 0.01") -> None:
    """Check that a relative tolerance is a number of at least 0 and below 1.

    Args:
        rtol: the tolerance.
        remedy: what the message recommends.

    Raises:
        InputError: ``rtol`` is not such a number.
    """
    check_number("rtol", rtol, low=0, below=1, remedy=remedy)


def check_generator(generator: torch.Generator | None) -> None:
    """Check that ``generator`` is a torch generator or ``None``.

    Args:
        generator: the source of random numbers. ``None`` means torch's global one.

    Raises:
        InputError: ``generator`` is something else.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(
            f"generator={generator!r} must be a torch.Generator or None; make one with torch.Generator().manual_seed(0)"
        )


def default_rtol(block: Float[Tensor, "*batch m n"], dtype: torch.dtype) -> float:
    """Return ``eps · max(m, n)`` for the dtype that the matrix is known in, as numpy and torch do."""
    return torch.finfo(dtype).eps * max(block.shape[-2:])


def rescaled(W: Float[Tensor, "*batch m n"]) -> tuple[Float[Tensor, "*batch m n"], float]:
    """Scale ``W`` so that the squares of its entries stay within range.

    The factor s is a power of two, so only exponents change and no digit is lost. An ordinary ``W``, whose largest
    entry lies between 2⁻³⁰ and 2³⁰, comes back unchanged.

    Args:
        W: the matrix, (..., m, n), float32 or float64.

    Returns:
        ``W · s``, (..., m, n), in the dtype of ``W``, and the factor s.
    """
    largest = _largest(W)
    if largest == 0 or 2.0**-30 < largest < 2.0**30:
        return W, 1.0
    exponent = max(-1000, min(1000, -math.frexp(largest)[1]))  # 2^exponent has to be a float itself
    # a factor beyond the dtype's own range is applied in two halves
    half = exponent // 2
    return W * 2.0**half * 2.0 ** (exponent - half), 2.0**exponent


def to_float64(t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Convert a small tensor to float64 for an accurate solution.

    Args:
        t: a tensor of any shape and floating dtype.

    Returns:
        The tensor in float64, on its device. A tensor on Apple's MPS comes to the CPU, since MPS has no float64.
    """
    return t.to("cpu", torch.float64) if t.device.type == "mps" else t.to(torch.float64)


def standard_normal(*shape: int, like: Float[Tensor, "..."], generator: torch.Generator | None) -> Float[Tensor, "..."]:
    """Draw standard normal numbers on the generator's device.

    Args:
        *shape: the shape of the result.
        like: the tensor whose dtype and device the result takes.
        generator: the source of random numbers. ``None`` draws from torch's global one, on the device of ``like``.

    Returns:
        The numbers, in the dtype and on the device of ``like``.
    """
    device = like.device if generator is None else generator.device
    return torch.randn(*shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
