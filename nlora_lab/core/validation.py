"""Checks of values from the caller. Each rule and its wording stand here once.

Every check raises ``InputError`` with one line that names the value, what is allowed, and the remedy.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

from nlora_lab.core.errors import InputError


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Check that ``value`` is one of ``allowed``.

    Args:
        name: the name of the argument or option, for the message.
        value: the value to check.
        allowed: the values to choose from. The message lists them in this order.

    Raises:
        InputError: ``value`` is not among them.
    """
    choices = list(allowed)
    # compared with its own kind only: an array has no single truth, and True is not 1
    if not any(value is choice or (isinstance(value, type(choice)) and value == choice) for choice in choices):
        raise InputError(f"{name}={value!r} is not known; choose one of: {', '.join(map(str, choices))}")


def whole_number(value: object) -> int | None:
    """Read ``value`` as a whole number.

    Args:
        value: anything. Whole numbers of Python and of numpy count.

    Returns:
        The number as an ``int``. ``None`` for a truth value, a tensor and everything else.
    """
    # operator.index accepts numpy's bool and torch's tensors, but nobody means a rank or a count by them
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool") or hasattr(value, "requires_grad"):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_whole_number(
    name: str, value: object, low: int = 1, high: int | None = None, *, remedy: str = "", limit: str = ""
) -> int:
    """Check that ``value`` is a whole number from ``low`` to ``high``.

    Args:
        name: the name of the argument or option, for the message.
        value: the value to check.
        low: the smallest number allowed.
        high: the largest number allowed, or ``None`` for no upper end.
        remedy: what to do instead, without a full stop.
        limit: where ``high`` comes from, for example ``"min(4, 6) = 4"``. It is printed instead of the number.

    Returns:
        The number as an ``int``.

    Raises:
        InputError: the value is not such a number.
    """
    number = whole_number(value)
    if number is None or number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {limit or high}"
        raise InputError(f"{name}={value!r} must be a whole number {bounds}{'; ' + remedy if remedy else ''}")
    return number


def environment_number(name: str, default: int, low: int = 0) -> int:
    """Read a whole number from the environment.

    Args:
        name: the name of the variable.
        default: the number where the variable is not set, or is empty.
        low: the smallest number allowed.

    Returns:
        The number.

    Raises:
        InputError: the variable holds something else.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
    return check_whole_number(name, text if number is None else number, low, remedy=f"or unset {name}")


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    low: float | None = None,
    below: float | None = None,
    remedy: str = "",
) -> float:
    """Check that ``value`` is a finite number within bounds.

    Args:
        name: the name of the argument or option, for the message.
        value: the value to check.
        above: the number must be greater than this.
        low: the number must be at least this.
        below: the number must be smaller than this.
        remedy: what to do instead, without a full stop.

    Returns:
        The number, unchanged.

    Raises:
        InputError: the value is not such a number.
    """
    tests: tuple[tuple[float | None, str, Callable[[float, float], bool]], ...] = (
        (above, "above", operator.gt),
        (low, "at least", operator.ge),
        (below, "below", operator.lt),
    )
    bounds = [(words, bound, holds) for bound, words, holds in tests if bound is not None]
    number = value
    if hasattr(value, "shape"):  # a single number of numpy has a shape, and so do arrays and tensors
        number = value.item() if value.shape == () and type(value).__module__ == "numpy" else None
    try:
        is_number = hasattr(number, "__float__") and not isinstance(number, bool | str)
        is_right = is_number and bool(abs(number) < 1e300) and all(holds(number, bound) for _, bound, holds in bounds)
    except (TypeError, ValueError, ArithmeticError):  # a class of numbers, a decimal NaN, a table
        is_right = False
    if not is_right:
        words = " and ".join(f"{text} {bound:g}" for text, bound, _ in bounds)
        raise InputError(f"{name}={value!r} must be a number {words}".rstrip() + (f"; {remedy}" if remedy else ""))
    return value  # type: ignore[no-any-return]


def check_text(name: str, value: object, remedy: str = "") -> str:
    """Check that ``value`` is text and not blank.

    Args:
        name: the name of the argument or option, for the message.
        value: the value to check.
        remedy: what to do instead, without a full stop.

    Returns:
        The text, unchanged.

    Raises:
        InputError: the value is not text, or is blank.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name}={value!r} must be text, and not blank{'; ' + remedy if remedy else ''}")
    return value
