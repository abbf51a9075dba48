"""What can go wrong on the caller's side, and nothing else."""

from __future__ import annotations


class InputError(ValueError):
    """A value the caller gave cannot be used; the message names it and says what to do instead."""


class ModelError(InputError):
    """A model folder or hub id that cannot be loaded."""


class StoreError(InputError):
    """A store of runs that cannot be written."""


class FitError(InputError):
    """What is asked for will not fit into the memory that is free."""
