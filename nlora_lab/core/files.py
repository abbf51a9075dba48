"""Where the shipped data lies, in a clone and in an installed wheel alike; and how every file is written."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nlora_lab.core.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(name: str) -> Path:
    """The folder ``name`` ("data" or "notebooks") that came with the package.

    A wheel carries it inside the package; in a clone it stands at the top level.
    """
    for place in (_PACKAGE / "_shipped" / name, _PACKAGE.parent / name):
        if place.is_dir():
            return place
    raise InputError(f"the {name}/ folder is missing beside {_PACKAGE}; install nlora-lab again")


def expand_path(path: str | Path) -> Path:
    """``path`` with a leading ``~`` replaced by the home folder; :class:`InputError` where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"path={str(path)!r} cannot be found ({error}); write it out") from error


def write_atomically(path: Path, text: str) -> Path:
    """Write ``text`` (UTF-8) into the file ``path`` as :func:`atomic_file` does, and return it."""
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file to write that becomes ``path`` in the end, or is gone: whole or not at all. Missing folders are made.

    Raises :class:`InputError` where that cannot be done.
    """
    part = path.parent / f"{path.name}.{uuid.uuid4().hex}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be written ({error}); make room, or choose another place") from error
    finally:  # where it was not renamed, whatever the reason: an interrupt too
        with suppress(OSError, ValueError):
            part.unlink(missing_ok=True)


def check_writable(folder: Path, called: str) -> None:
    """Raise :class:`InputError` if no file can be made in ``folder``, which the caller knows as ``called``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        raise InputError(f"{called} cannot be written ({error}); choose another folder") from error
