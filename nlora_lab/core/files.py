"""The folders that ship with the package, and how files are written."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import re
import shutil
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


def expand_path(path: str | Path, name: str = "path") -> Path:
    """Return a path with a leading ``~`` replaced by the home folder.

    Args:
        path: any path.
        name: what the caller knows the path as, for the message.

    Returns:
        The path without ``~``.

    Raises:
        InputError: the home folder does not exist, or the path is blank or no path.
    """
    if not isinstance(path, str | os.PathLike) or not str(path).strip():
        raise InputError(f"{name}={path!r} must be a path, and not blank; write the full path")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name}={str(path)!r} cannot be found ({error}); write the full path") from error


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
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_parts(path.parent, f"{glob.escape(path.name)}.*")
        yield part
        os.replace(part, path)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be written ({error}); make room, or choose another place") from error
    finally:  # after any failure to rename it, an interrupt included
        with suppress(OSError, ValueError):
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write a folder completely or not at all, as ``atomic_file`` does for a file.

    If ``path`` is a folder with something in it, the new files are moved into it one by one at the end. The configs, by
    which a folder is taken for a model or an adapter, are moved last, and the old ones are removed first. So nobody
    reads new weights with an old config if this process is killed meanwhile.

    Args:
        path: the folder to write in the end. Missing folders are created.

    Yields:
        The path of a new temporary folder beside it.

    Raises:
        OSError: the folder cannot be written.
    """
    part = part_of(path)
    part.mkdir(parents=True)
    remove_parts(path.parent, f"{glob.escape(path.name)}.*")
    try:
        yield part
        if path.is_dir() and any(path.iterdir()):
            news = sorted(part.iterdir(), key=lambda new: new.name in CONFIGS)
            for new in news:
                if new.name in CONFIGS:
                    (path / new.name).unlink(missing_ok=True)
            for new in news:
                os.replace(new, path / new.name)
        else:
            with suppress(FileNotFoundError):
                path.rmdir()  # an empty folder
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def part_of(path: Path) -> Path:
    """Return a name for a file or folder that is being written, beside the path that it will have in the end.

    The name says which process of which machine writes, so that ``remove_parts`` knows what is in use.

    Args:
        path: the path in the end.

    Returns:
        A path in the same folder, different for each call. It is hidden and ends in ``.part``.
    """
    return path.parent / f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.part"


def remove_parts(folder: Path, pattern: str = "*") -> None:
    """Remove what killed processes of this machine left half-written, by the names of ``part_of``.

    Args:
        folder: the folder. Folders in it are not looked into.
        pattern: the names in the end, as a glob pattern.
    """
    with suppress(OSError):
        for part in folder.glob(f".{pattern}.part"):
            owner = PART.search(part.name)
            if owner is None or owner[1] != _machine() or _exists(int(owner[2])):
                continue
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part, ignore_errors=True)
            else:
                with suppress(OSError):
                    part.unlink(missing_ok=True)


CONFIGS = ("config.json", "adapter_config.json")
PART = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{12}\.part$")


def _exists(process: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(process))


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


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
