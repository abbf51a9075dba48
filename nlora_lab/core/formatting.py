"""The printed forms of bytes, durations and learning rates. Each quantity has one form in the complete package."""

from __future__ import annotations

UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def format_bytes(size: float) -> str:
    """Print a number of bytes in binary units: ``4.6 GiB``, ``310 MiB``, ``12.0 KiB``, ``512 bytes``.

    Args:
        size: the number of bytes.

    Returns:
        The number in the largest unit that it fills, with one decimal below a hundred.
    """
    for factor, unit in UNITS:
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if size < 100 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size:.0f} bytes"


def format_duration(seconds: float) -> str:
    """Print a duration: ``45 s``, ``3 min 20 s``, ``2 h 5 min``.

    Args:
        seconds: the duration in seconds.

    Returns:
        The duration to the second below an hour, and to the minute above.
    """
    total = max(0, round(seconds))
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def format_rate(rate: float) -> str:
    """Print a learning rate with at most two digits: ``2e-4``, ``1.6e-2``.

    Args:
        rate: the learning rate.

    Returns:
        The mantissa and the exponent, without the zero that Python puts before a short exponent.
    """
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
