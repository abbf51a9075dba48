"""Where the shipped data lies, in a clone and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path

from nlora_lab.errors import InputError

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder ``name`` ("data" or "notebooks") that came with the package.

    A wheel carries it inside the package; in a clone it stands at the top level.
    """
    for place in (_PACKAGE / "_shipped" / name, _PACKAGE.parent / name):
        if place.is_dir():
            return place
    raise InputError(f"the {name}/ folder is missing beside {_PACKAGE}; install nlora-lab again")
