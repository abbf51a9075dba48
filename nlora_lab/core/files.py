"""The folders that ship with the package, and how files are written."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nlora_lab.core.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(name: str) -> Path:
    """Return a folder that ships with the package.

    A wheel carries the folder inside the package. In a clone it lies at the top level.

    Args:
        name: "data" or "notebooks".

    Returns:
        The path of the folder.

    Raises:
        InputError: the folder is missing.
    """
    for place in (_PACKAGE / "_shipped" / name, _PACKAGE.parent / name):
        if place.is_dir():
            return place
    raise InputError(f"the folder {name}/ is missing beside {_PACKAGE}; install nlora-lab again")


def package_version() -> str:
    """Return the version of this package, also in a clone that is not installed.

    Returns:
        The version of the installed package, or else the one in ``pyproject.toml`` beside the package.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nlora-lab")
    except PackageNotFoundError:
        import tomllib

        with (_PACKAGE.parent / "pyproject.toml").open("rb") as file:
            return str(tomllib.load(file)["project"]["version"])


def expand_path(path: str | Path) -> Path:
    """Return a path with a leading ``~`` replaced by the home folder.

    Args:
        path: any path.

    Returns:
        The path without ``~``.

    Raises:
        InputError: the home folder does not exist.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"path={str(path)!r} cannot be found ({error}); write the full path") from error


def write_atomically(path: Path, text: str) -> Path:
    """Write a text file completely or not at all (see ``atomic_file``).

    Args:
        path: the file. Missing folders are created.
        text: the content, written as UTF-8.

    Returns:
        The path of the file.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file completely or not at all.

    Write into the path that the ``with`` statement gives. At the end of the block that file is renamed to ``path``.
    If the block is left by an exception, it is deleted and ``path`` stays unchanged.

    Args:
        path: the file to write in the end. Missing folders are created.

    Yields:
        The path of a temporary file in the same folder.

    Raises:
        InputError: the file cannot be written.
    """
    part = path.parent / f"{path.name}.{uuid.uuid4().hex}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be written ({error}); make room, or choose another place") from error
    finally:  # after any failure to rename it, an interrupt included
        with suppress(OSError, ValueError):
            part.unlink(missing_ok=True)


def check_writable(folder: Path, name: str) -> None:
    """Check that files can be created in a folder. A missing folder is created.

    Args:
        folder: the folder.
        name: what the caller knows the folder as, for the message.

    Raises:
        InputError: no file can be created in the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be written ({error}); choose another folder") from error
