"""The exceptions for mistakes that the caller can mend."""

from __future__ import annotations


class InputError(ValueError):
    """A value from the caller cannot be used. The message names the value and the remedy."""


class ModelError(InputError):
    """A model folder or hub id cannot be loaded."""


class StoreError(InputError):
    """A store of runs cannot be written."""


class CheckpointError(InputError):
    """A checkpoint of a run cannot be used. The message names the file."""


class FitError(InputError):
    """A run needs more memory than is free."""
