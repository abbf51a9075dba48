"""Ending a run from outside: who loads, trains or measures asks ``should_stop`` again and again, and ends at its yes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

StopCheck = Callable[[], bool]
"""Whether someone wants the end; asked often, so it should answer at once."""


class Interrupted(KeyboardInterrupt):
    """``should_stop`` said yes in the middle of something; it is handled as an interrupt (Ctrl-C) is."""


def never_stop() -> bool:
    """Nobody wants the end."""
    return False


def raise_if_stopped(should_stop: StopCheck) -> None:
    """Raise :class:`Interrupted` if ``should_stop`` says yes."""
    if should_stop():
        raise Interrupted


@contextmanager
def stop_on_signal(wanted: bool = True) -> Iterator[StopCheck]:
    """What is to be asked, and says yes once Ctrl-C was pressed or the process is to end (SIGTERM, as a queue sends).

    So a run ends between two steps, with a checkpoint. A second Ctrl-C interrupts at once. Where not ``wanted``, or in
    another thread than the main one, which alone hears signals, nothing is changed.
    """
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield never_stop
        return
    heard = threading.Event()
    before: dict[int, Any] = {}

    def hear(number: int, frame: Any) -> None:
        if heard.is_set():
            raise KeyboardInterrupt
        heard.set()

    for name in (signal.SIGINT, signal.SIGTERM):
        before[name] = signal.signal(name, hear)
    try:
        yield heard.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
