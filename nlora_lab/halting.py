"""Ending a run from outside: who loads, trains or measures asks ``halted`` again and again, and ends at its yes."""

from __future__ import annotations

from collections.abc import Callable

Asked = Callable[[], bool]
"""Whether someone wants the end; asked often, so it should answer at once."""


class Halted(KeyboardInterrupt):
    """``halted`` said yes in the middle of something; it is handled as an interrupt (Ctrl-C) is."""


def never() -> bool:
    """Nobody wants the end."""
    return False


def heed(halted: Asked) -> None:
    """Raise :class:`Halted` if ``halted`` says yes."""
    if halted():
        raise Halted
