"""What can go wrong on the caller's side, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """A value the caller gave cannot be used; the message names it and says what to do instead."""


class ModelError(InputError):
    """A model folder or hub id that cannot be loaded."""


class StoreError(InputError):
    """A store of runs that cannot be written."""


class FitError(InputError):
    """What is asked for will not fit into the memory that is free."""


def one_of(what: str, value: object, allowed: Iterable[object]) -> None:
    """Raise :class:`InputError` unless ``value`` is one of ``allowed``; the message lists them."""
    choices = list(allowed)
    if value not in choices:
        raise InputError(f"{what}={value!r} is not known; choose one of: {', '.join(map(str, choices))}")
