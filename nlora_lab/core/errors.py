"""The exceptions for mistakes that the caller can mend."""

from __future__ import annotations

LONGEST = 1500  # characters of a message, of which a value may be a file's content


class InputError(ValueError):
    """A value from the caller cannot be used. The message names the value and the remedy, in one line.

    Args:
        message: the message. Its lines are joined, and the middle of a very long one is left out.
    """

    def __init__(self, message: str = "") -> None:
        line = " ".join(part.strip() for part in message.splitlines()) if message.strip().count("\n") else message
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}")


class ModelError(InputError):
    """A model folder or hub id cannot be loaded."""


class StoreError(InputError):
    """A store of runs cannot be written."""


class CheckpointError(InputError):
    """A checkpoint of a run cannot be used. The message names the file."""


class FitError(InputError):
    """A run needs more memory than is free."""
