"""Stopping a run from outside: by a signal, a button or another thread.

A function that loads, trains or evaluates calls its argument ``should_stop`` again and again. When the answer is
``True``, it ends at the next safe point.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

StopCheck = Callable[[], bool]
"""A function that returns whether to stop. It is called often, so it must return at once."""


class Interrupted(KeyboardInterrupt):
    """``should_stop`` returned ``True`` in the middle of a computation. It is handled like Ctrl-C."""


def never_stop() -> bool:
    """Return ``False``: the stop check of a computation that nobody stops."""
    return False


def raise_if_stopped(should_stop: StopCheck) -> None:
    """Raise an exception if the computation is to stop.

    Args:
        should_stop: the stop check to call.

    Raises:
        Interrupted: ``should_stop`` returned ``True``.
    """
    if should_stop():
        raise Interrupted


@contextmanager
def stop_on_signal(enabled: bool = True) -> Iterator[StopCheck]:
    """Turn Ctrl-C and SIGTERM into a request to stop, so that a run ends between two steps with a checkpoint.

    Job queues send SIGTERM before they kill a process. A second Ctrl-C interrupts at once. The former signal handlers
    are restored at the end of the block.

    Args:
        enabled: ``False`` changes nothing. Neither does a thread other than the main one, which alone receives signals.

    Yields:
        A stop check that returns ``True`` from the first signal on.
    """
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield never_stop
        return
    stopped = threading.Event()
    former: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    for name in (signal.SIGINT, signal.SIGTERM):
        former[name] = signal.signal(name, handle)
    try:
        yield stopped.is_set
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
