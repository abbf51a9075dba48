"""Stopping a run from outside: by a signal, a button or another thread.

A function that loads, trains or evaluates calls its argument ``should_stop`` again and again. When the answer is
``True``, it ends at the next safe point.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

StopCheck = Callable[[], bool]
"""A function that returns whether to stop. It is called often, so it must return at once."""


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a command: Ctrl-C, the end of a job in a queue, and a terminal or an ssh connection that is closed."""


class Interrupted(KeyboardInterrupt):
    """``should_stop`` returned ``True`` in the middle of a computation. It is handled like Ctrl-C."""


class Signalled(Interrupted):
    """A signal came. ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class StopSignal:
    """A stop check that returns ``True`` from the first signal on.

    Attributes:
        number: the number of that signal, or ``None`` before it.
        patient: whether the first signal only asks. Set it to ``False`` while there is nothing to finish, and the
            first signal raises ``Signalled`` too.
    """

    number: int | None = None
    patient = True

    def __call__(self) -> bool:
        """Return whether a signal came."""
        return self.number is not None


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


def signal_number(interrupt: KeyboardInterrupt) -> int:
    """Return the number of the signal behind an interrupt. Without one it is that of Ctrl-C."""
    return interrupt.number if isinstance(interrupt, Signalled) else int(signal.SIGINT)


def exit_status(number: int) -> int:
    """Return the exit status of a process that a signal ended, as shells count it: 130, 143 or 129."""
    return 128 + number


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raise ``Signalled`` at each signal of ``SIGNALS``, so that a command can say what is kept.

    A signal that this process was told to ignore, as ``nohup`` does with SIGHUP, stays ignored. A thread other than
    the main one, which alone receives signals, changes nothing.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        raise Signalled(number)

    with _handlers(handle):
        yield


@contextmanager
def stop_on_signal(stop: StopSignal | None = None) -> Iterator[StopSignal]:
    """Turn the first signal of ``SIGNALS`` into a request to stop, so that a run ends between two steps.

    A second signal raises ``Signalled`` at once. Otherwise this is like ``raise_on_signal``.

    Args:
        stop: the stop check to use. ``None`` makes one.

    Yields:
        The stop check.
    """
    stop = StopSignal() if stop is None else stop

    def handle(number: int, frame: FrameType | None) -> None:
        only_asks = stop.patient and not stop()
        stop.number = number if stop.number is None else stop.number
        if not only_asks:
            raise Signalled(number)

    with _handlers(handle):
        yield stop


@contextmanager
def _handlers(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let ``handle`` handle the signals in this block. The former handlers are restored at its end."""
    former: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        wanted = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        former = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
