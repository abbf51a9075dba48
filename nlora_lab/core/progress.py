"""A progress line with the time left, for terminals and for logs."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from nlora_lab.core.formatting import format_duration


class ProgressLine:
    """One line that rewrites itself in a terminal; in a log, a new line every ``quiet`` seconds.

    ``total`` counts units of equal cost, such as optimiser steps over all runs. ``silent``: say nothing (for all but
    one of several processes).
    """

    def __init__(self, total: int, stream: TextIO | None = None, quiet: float = 10.0, *, silent: bool = False) -> None:
        self.total, self.done = total, 0
        # None where there is no terminal at all
        self._stream: TextIO | None = None if silent else stream or sys.stderr
        self._live = self._stream is not None and self._stream.isatty()
        self._every = 0.1 if self._live else quiet
        self._started = self._said = time.monotonic()
        self._width = 0

    def advance(self, text: str, by: int = 1) -> None:
        """``by`` more units are done; ``text`` says where we are."""
        self.done += by
        now = time.monotonic()
        if now - self._said < self._every and self.done < self.total:
            return
        self._said = now
        left = format_duration((now - self._started) / self.done * (self.total - self.done)) if self.done else "…"
        self._write(f"{text}  {100 * self.done // self.total} %  {left} left")

    def skip(self, units: int) -> None:
        """These units will not be done (a run ended early)."""
        self.total = max(self.total - units, self.done, 1)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.close()
        self._put(text + "\n")

    def close(self) -> None:
        """Clear the live line."""
        if self._live and self._width:
            self._put("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, line: str) -> None:
        if self._live:
            self._put("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._put(line + "\n")

    def _put(self, text: str) -> None:
        """Write, unless nobody listens any more: progress must never end a run."""
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None
