"""How far an evaluation is, for whoever wants to show it.

An evaluation reports here. Without a listener nothing is shown: the workers of a sweep share one terminal, and the
labs have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Listener = Callable[[str, int, int], None]
"""Called with what is being measured, the units that are done, and all units, which cost about the same."""

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def report_to(listener: Listener) -> Iterator[None]:
    """Tell a listener about all evaluations of this thread in this block.

    Args:
        listener: called often, so it must return at once.
    """
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def report(text: str, done: int, total: int) -> None:
    """Tell the listener, if there is one, how far an evaluation is.

    Args:
        text: what is being measured.
        done: the units that are done.
        total: all units.
    """
    listener = _LISTENER.get()
    if listener is not None:
        listener(text, done, total)


def reported(batches: Iterable[Any], text: str, rows: int) -> Iterator[Any]:
    """Yield batches, and report the rows of those that are done.

    Args:
        batches: batches with ``input_ids``.
        text: what is being measured.
        rows: the rows of all batches.

    Yields:
        The batches.
    """
    done = 0
    for batch in batches:
        report(text, done, rows)
        yield batch
        done += len(batch["input_ids"])
    report(text, rows, rows)
