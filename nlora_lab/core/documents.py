"""Reading JSON from files that somebody else may have written: configs, indexes, records, rows, headers, caches.

``json.loads`` accepts what no writer meant: a key twice, of which the last one counts, and text that no file can hold.
It ends with a ``RecursionError`` where lists are nested too deep. A file may also be a pipe that never ends.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

MOST_DIGITS = 1000  # of a whole number
MOST_BYTES = 2**30  # of a document


def parse_json(text: str) -> Any:
    """Parse a JSON document.

    Args:
        text: the document.

    Returns:
        Its value. ``NaN`` and ``Infinity``, which Python writes, are read.

    Raises:
        ValueError: the text is not JSON, is nested too deep, has a key twice in one object, a whole number of more than
            1000 digits, or half of a surrogate pair. The message says which.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_whole_number)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"it has half of a surrogate pair, {error.object[error.start]!r}") from None
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.

    Returns:
        Its value.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: it is not JSON in UTF-8 (see ``parse_json``), or is larger than 1 GiB.
    """
    return parse_json(read_text(path))


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.

    Returns:
        The text.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: it is not UTF-8, or is larger than 1 GiB.
    """
    check_regular(path)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES} bytes")
    return path.read_text(encoding="utf-8-sig")


def check_regular(path: Path) -> None:
    """Check that a path is a regular file, or a link to one. Opening a pipe or a device may wait for ever.

    Args:
        path: the path.

    Raises:
        OSError: the path does not exist, or is something else.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is not a regular file")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"it has the key {key[:40]!r} twice in one object")
        made[key] = value
    return made


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)
