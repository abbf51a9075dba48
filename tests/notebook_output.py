"""How notebook outputs are compared by ``pytest --nbval``.

nbval compares printed text exactly. Sums taken in another order (another processor, another number
of threads) move the last digits, so here a printed decimal may differ by one in its last digit.
Whole numbers and all other text stay exact.
"""

from __future__ import annotations

import re

DECIMAL = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")


def same_printed(a: str, b: str) -> bool:
    """Equal but for decimals that differ by one in the last digit they print."""
    if DECIMAL.split(a) != DECIMAL.split(b):
        return False
    pairs = zip(DECIMAL.findall(a), DECIMAL.findall(b), strict=True)
    return all(
        _last_digit(x) == _last_digit(y) and abs(float(x) - float(y)) <= 1.001 * _last_digit(x) for x, y in pairs
    )


def _last_digit(number: str) -> float:
    mantissa, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


class Printed(str):
    """Text that equals another as :func:`same_printed` says."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and same_printed(str(self), str(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def install() -> None:
    """Make nbval compare text as :class:`Printed`."""
    from nbval.plugin import IPyNbCell

    exact = IPyNbCell.sanitize

    def sanitize(self: IPyNbCell, value: object) -> object:
        clean = exact(self, value)
        return Printed(clean) if isinstance(clean, str) else clean

    if not getattr(IPyNbCell.sanitize, "tolerant", False):
        sanitize.tolerant = True  # type: ignore[attr-defined]
        IPyNbCell.sanitize = sanitize
