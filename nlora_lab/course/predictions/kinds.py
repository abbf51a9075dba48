"""The three kinds of predictions: a choice, a number, and a curve at a few points.

Each kind reads a guess and a measurement, prints them, compares them, and sums up those of a class.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice, check_number, check_text

MOST_CHOICES, MOST_POINTS = 12, 12  # more do not fit on a page


@dataclass(frozen=True)
class Choice:
    """A choice from a list.

    Attributes:
        choices: the texts to choose from.
    """

    choices: tuple[str, ...]

    def __post_init__(self) -> None:
        for choice in self.choices:
            check_text("choices", choice)
        if not 2 <= len(self.choices) <= MOST_CHOICES or len(set(self.choices)) < len(self.choices):
            raise InputError(f"choices={list(self.choices)!r} must be 2 to {MOST_CHOICES} different texts")

    def guess(self, value: object) -> str:
        """Check a guess and return it."""
        check_choice("guess", value, self.choices)
        return str(value)

    def measurement(self, value: object) -> str:
        """Check a measurement and return it."""
        check_choice("answer", value, self.choices)
        return str(value)

    def text(self, value: str) -> str:
        """Print a value."""
        return value

    def compare(self, guess: str, measured: str) -> str:
        """Say how far a guess is from the measurement."""
        return "as you said" if guess == measured else "not as you said"

    def pooled(self, values: Sequence[str]) -> str:
        """Sum up the values of a class: each with its count, the most frequent first."""
        return ", ".join(f"{value}: {count}" for value, count in Counter(values).most_common())

    def range(self) -> str:
        """Say what can be guessed."""
        return f"choose one of: {', '.join(self.choices)}"


@dataclass(frozen=True)
class Number:
    """A number.

    Attributes:
        low: the smallest guess, or ``None``.
        high: the largest guess, or ``None``.
        log: compare by the factor, and not by the difference.
        unit: what stands behind the number, for example "%".
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    unit: str = ""

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log)

    def guess(self, value: object) -> float:
        """Check a guess and return it."""
        return _bounded("guess", _plain(value), self.low, self.high)

    def measurement(self, value: object) -> float:
        """Check a measurement and return it. It may lie outside the range of guesses, and may be infinite."""
        return _real("answer", _plain(value))

    def text(self, value: float) -> str:
        """Print a value."""
        return f"{value:.4g}" + (f" {self.unit}" if self.unit else "")

    def compare(self, guess: float, measured: float) -> str:
        """Say how far a guess is from the measurement."""
        if guess == measured:
            return "as you said"
        side = "high" if guess > measured else "low"
        if self.log and guess > 0 and measured > 0:
            return f"{max(guess, measured) / min(guess, measured):.3g} times too {side}"
        return f"{abs(guess - measured):.3g} too {side}"

    def pooled(self, values: Sequence[float]) -> str:
        """Sum up the values of a class: the median, and the range."""
        if min(values) == max(values):
            return self.text(values[0])
        return f"{self.text(median(values))} ({min(values):.4g} to {max(values):.4g})"

    def range(self) -> str:
        """Say what can be guessed."""
        if self.low is None or self.high is None:
            return "a number" + (f" in {self.unit}" if self.unit else "")
        return f"a number from {self.low:g} to {self.text(self.high)}"


@dataclass(frozen=True)
class Curve:
    """The values of a curve at a few points.

    Attributes:
        at: the positions, for example ranks, in rising order.
        low: the smallest value.
        high: the largest value.
        log: compare by the factor, and not by the difference.
        unit: what stands behind a value.
    """

    at: tuple[float, ...]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    unit: str = ""

    def __post_init__(self) -> None:
        for place in self.at:
            check_number("at", place)
        if not 2 <= len(self.at) <= MOST_POINTS or sorted(set(self.at)) != list(self.at):
            raise InputError(f"at={list(self.at)!r} must be 2 to {MOST_POINTS} numbers in rising order")
        _check_range(self.low, self.high, self.log)

    def guess(self, value: object) -> list[float]:
        """Check a guess and return it."""
        return [_bounded("guess", v, self.low, self.high) for v in self._values("guess", value)]

    def measurement(self, value: object) -> list[float]:
        """Check a measurement and return it."""
        return [_real("answer", v) for v in self._values("answer", value)]

    def _values(self, name: str, value: object) -> list[Any]:
        values = _plain(value)
        if not isinstance(values, list | tuple) or len(values) != len(self.at):
            places = ", ".join(f"{place:g}" for place in self.at)
            raise InputError(f"{name} must be {len(self.at)} numbers, one at each of {places}; got {value!r:.80}")
        return [_plain(v) for v in values]

    def text(self, value: Sequence[float]) -> str:
        """Print a value."""
        return ", ".join(f"{v:.3g}" for v in value) + (f" {self.unit}" if self.unit else "")

    def compare(self, guess: Sequence[float], measured: Sequence[float]) -> str:
        """Say how far a guess is from the measurement: the mean distance over the points."""
        if self.log and min(*guess, *measured) > 0:
            factor = math.exp(fmean(abs(math.log(g / m)) for g, m in zip(guess, measured, strict=True)))
            return f"a factor of {factor:.3g} apart on average"
        return f"{fmean(abs(g - m) for g, m in zip(guess, measured, strict=True)):.3g} apart on average"

    def pooled(self, values: Sequence[Sequence[float]]) -> str:
        """Sum up the values of a class: the median at each point."""
        return self.text([median(column) for column in zip(*values, strict=True)])

    def range(self) -> str:
        """Say what can be guessed."""
        places = ", ".join(f"{place:g}" for place in self.at)
        return f"a curve: a number from {self.low:g} to {self.high:g} at each of {places}"


Kind = Choice | Number | Curve
KINDS: dict[str, type[Kind]] = {"choice": Choice, "number": Number, "curve": Curve}


def kind_name(kind: Kind) -> str:
    """Return the name of a kind in ``KINDS``."""
    return next(name for name, value in KINDS.items() if value is type(kind))


def _plain(value: Any) -> Any:
    """Plain Python values for the numbers and arrays of torch, numpy and pandas."""
    return value.tolist() if hasattr(value, "tolist") else value


def _check_range(low: float | None, high: float | None, log: bool) -> None:
    for name, end in (("low", low), ("high", high)):
        if end is not None:
            check_number(name, end, above=0 if log else None)
    if (low is None) != (high is None) or (low is not None and high is not None and low >= high):
        raise InputError(f"low={low!r} and high={high!r} must be two numbers, the smaller one first; or leave both out")


def _bounded(name: str, value: Any, low: float | None, high: float | None) -> float:
    number = float(check_number(name, value, low=low))
    if high is not None and number > high:
        raise InputError(f"{name}={value!r} must be a number from {low:g} to {high:g}")
    return number


def _real(name: str, value: Any) -> float:
    """A measured number: infinity is one (a loss that diverged), NaN is not."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (abs(value) > 1e300 and value not in (math.inf, -math.inf)) or value != value:
        raise InputError(f"{name}={value!r} must be a number")
    return float(value)
