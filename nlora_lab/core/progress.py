"""A progress line with the time left, for terminals and for logs."""

from __future__ import annotations

import sys
from functools import partial
from threading import RLock
from typing import Any, TextIO

from tqdm import tqdm


class ProgressLine:
    """One line that rewrites itself in a terminal. In a log, a new line every ``quiet`` seconds.

    Args:
        total: the number of units of equal cost, for example optimiser steps over all runs.
        stream: where the line is written (default: stderr).
        quiet: seconds between two lines in a log.
        silent: print nothing. Use this in all processes but one.
        ends: show the line of the last unit, however short the work was.
    """

    def __init__(
        self, total: int, stream: TextIO | None = None, quiet: float = 10.0, *, silent: bool = False, ends: bool = True
    ) -> None:
        self._ends = ends
        self._out = _Output(None if silent else stream or sys.stderr)
        self._bar: Any = _Bar(
            total=total, file=self._out, bar_format="{desc}  {percentage:.0f} %  {remaining} left", leave=False,
            mininterval=0.1 if self._out.live else quiet, miniters=0, smoothing=0, delay=1e-9, position=0,
        )  # fmt: skip

    def advance(self, text: str, by: int = 1) -> None:
        """Count finished units and show the progress.

        Args:
            text: what is being done now.
            by: the number of units that were finished since the last call.
        """
        self._bar.set_description_str(text, refresh=False)
        if not self._bar.update(by) and self._ends and self._bar.n >= self._bar.total:
            self._bar.refresh()

    def skip(self, units: int) -> None:
        """Remove units from the total, for example because a run ended early.

        Args:
            units: the number of units that will not be done.
        """
        self._bar.total = max(self._bar.total - units, self._bar.n, 1)

    def say(self, text: str) -> None:
        """Print a line that stays.

        Args:
            text: the line, without a line break.
        """
        self.close()
        self._out.write(text + "\n")

    def close(self) -> None:
        """Clear the live line. A later ``advance`` shows it again."""
        self._bar.clear()


class StageProgress:
    """A ``ProgressLine`` that begins anew with each stage of a computation.

    Args:
        stream: as for ``ProgressLine``.
        quiet: as for ``ProgressLine``. A stage that is shorter is not shown in a log.
        silent: as for ``ProgressLine``.
    """

    def __init__(self, stream: TextIO | None = None, quiet: float = 10.0, *, silent: bool = False) -> None:
        self._start: Any = partial(ProgressLine, stream=stream, quiet=quiet, silent=silent, ends=False)
        self._stage, self._done = ("", 0), 0
        self._line: ProgressLine | None = None

    def __call__(self, text: str, done: int, total: int) -> None:
        """Show how far a stage is.

        Args:
            text: the name of the stage.
            done: the units of it that are done.
            total: its units, of equal cost.
        """
        if self._line is None or (text, total) != self._stage:
            self.close()
            self._line, self._stage, self._done = self._start(total), (text, total), 0
        if done > self._done:  # a batch that did not fit into memory is done again in halves
            self._line.advance(text, done - self._done)
            self._done = done
        if done >= total:
            self.close()

    def close(self) -> None:
        """Clear the live line."""
        if self._line is not None:
            self._line.close()
        self._line = None


class NotebookProgress:
    """The same as a bar in the output of a notebook cell.

    Args:
        total: the number of units of equal cost.
    """

    def __init__(self, total: int) -> None:
        from tqdm.notebook import tqdm as notebook_tqdm

        form = "{percentage:.0f} %{bar}{remaining} left  {desc}"
        self._bar: Any = notebook_tqdm(total=total, bar_format=form, leave=False, smoothing=0)

    def advance(self, text: str, by: int = 1) -> None:
        """Count finished units and show the progress. ``text``: what was done."""
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(by)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def show_progress(total: int) -> ProgressLine | NotebookProgress:
    """Return a bar in a notebook, and a line on stderr everywhere else. ``total``: see ``ProgressLine``."""
    return NotebookProgress(total) if "ipykernel.zmqshell" in sys.modules else ProgressLine(total)


class _Bar(tqdm):  # type: ignore[misc]
    """tqdm without a thread of its own, a lock between processes, and a last write by the garbage collector."""

    monitor_interval = 0

    def __del__(self) -> None:
        pass


_Bar.set_lock(RLock())


class _Output:
    """A stream for tqdm, which alone ends the run on a broken pipe and rewrites its line in logs too."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None: nobody reads
        self.live = stream is not None and stream.isatty()

    def write(self, text: str) -> None:
        if not self.live and not (text := text.strip("\r\n ")):
            return
        try:
            if self._stream is not None:
                self._stream.write(text if self.live else text + "\n")
                self._stream.flush()
        except (OSError, ValueError):
            self._stream = None

    def flush(self) -> None:
        """Do nothing: every write is flushed."""
