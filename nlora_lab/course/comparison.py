"""Comparing a learner's answer with the right one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-4  # relative: the float32 of a learner's own conversions passes, no known mistake does


@dataclass(frozen=True)
class Raised:
    """The exception that a function raised instead of returning a value.

    Attributes:
        error: the exception.
    """

    error: Exception


def agree(answer: Any, target: Any, digits: int = 0) -> bool:
    """Return whether two outcomes are the same.

    Args:
        answer: what the learner's function returned, a number, or ``Raised``.
        target: the same of the solution or of a known mistake.
        digits: how many significant digits of a number have to be right. 0 means ``TOLERANCE``.

    Returns:
        ``True`` if all values are equal within the tolerance, or if both raised the same exception. A whole number has
        to be the same whole number.
    """
    if isinstance(target, Raised):
        raised = isinstance(answer, Raised)
        return raised and (type(answer.error), str(answer.error)) == (type(target.error), str(target.error))
    value, right = comparable(answer), comparable(target)
    if isinstance(right, Tensor):
        if not isinstance(value, Tensor) or value.shape != right.shape:
            return False
        return norm(value - right) <= TOLERANCE * norm(right)  # False if NaN or infinity is in it
    if isinstance(right, float):
        allowed = _allowed(right, isinstance(target, int), digits)
        return isinstance(value, float) and abs(value - right) <= allowed
    return isinstance(value, list) and isinstance(right, list) and sorted(value) == sorted(right)


def comparable(value: Any) -> Tensor | float | list[str] | None:
    """Convert a value to one of the three kinds of answers.

    Args:
        value: anything.

    Returns:
        A float for one number. A float64 tensor on the CPU for an array or tensor. For a list (also a set, a tuple, a
        column or a table) the text of each item, with numpy's numbers as Python's. ``None`` for everything else.
    """
    try:
        if hasattr(value, "to_frame") or hasattr(value, "itertuples"):  # pandas, not imported here
            return [repr(_item(row)) for row in _rows(value)]
        number = _number(value)
        if number is not None:
            return number
        if isinstance(value, Tensor) or (hasattr(value, "tolist") and hasattr(value, "ndim")):
            return _tensor(value)
        if isinstance(value, list | tuple | set | frozenset):
            return [repr(_item(item)) for item in value]
    except Exception:  # an object that breaks its own protocol is not an answer
        return None
    return None


def _allowed(right: float, whole: bool, digits: int) -> float:
    """The largest difference from the right number that still counts as right."""
    if digits and right:
        unit: float = 10.0 ** (math.floor(math.log10(abs(right))) - digits + 1)
        return 0.501 * unit  # half a unit of the last digit asked, and the rounding of a half
    allowed = TOLERANCE * max(abs(right), TOLERANCE)
    return min(allowed, 0.49) if whole else allowed


def norm(X: Tensor) -> float:
    """Return the Frobenius norm of a tensor of any shape."""
    return float(torch.linalg.vector_norm(X))


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) or hasattr(value, "ndim"):
        if math.prod(value.shape) != 1:
            return None
        value = value.item()
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def _tensor(value: Any) -> Tensor | list[str]:
    if not isinstance(value, Tensor):
        if getattr(value.dtype, "kind", "O") in "OSUT":  # an array of words or of pairs
            return [repr(_item(item)) for item in value.tolist()]
        value = torch.tensor(value.tolist())
    if value.is_complex() or value.ndim == 0:
        raise TypeError("complex numbers and single truth values are not an answer to any exercise")
    dense: Tensor = value.detach() if value.layout == torch.strided else value.detach().to_dense()
    return dense.to("cpu", torch.float64)


def _rows(table: Any) -> list[Any]:
    return list(table.itertuples(index=False, name=None)) if hasattr(table, "itertuples") else list(table)


def _item(item: Any) -> Any:
    if isinstance(item, tuple | list):
        return tuple(_item(part) for part in item)
    return item.item() if hasattr(item, "item") else item
