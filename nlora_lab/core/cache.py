"""On-disk cache for results that are slow to compute."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from nlora_lab.core.documents import read_json
from nlora_lab.core.files import expand_path, part_of, remove_parts

OVERRIDE = "NLORA_LAB_CACHE"


def cache_folder() -> Path:
    """Return the cache folder of this user. It can be deleted at any time.

    Returns:
        The folder that the environment variable ``NLORA_LAB_CACHE`` names, or the platform's usual place.

    Raises:
        InputError: that folder is in a home folder that does not exist.
    """
    override = os.environ.get(OVERRIDE)
    if override:
        return expand_path(override, OVERRIDE)
    try:
        from platformdirs import user_cache_dir
    except ImportError:  # a bare GPU node, which runs Linux
        return expand_path("~/.cache/nlora-lab", OVERRIDE)
    return Path(user_cache_dir("nlora-lab", appauthor=False))


class Cache:
    """A cache of small JSON documents, each a file of its own in one folder.

    The cache never ends a computation. If the folder cannot be written, nothing is stored. If a document cannot be
    read, it counts as missing. A document is written completely or not at all.

    Attributes:
        folder: the folder of the documents.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> Any:
        """Return a document.

        Args:
            name: the name that the document was stored under.

        Returns:
            The document, or ``None`` if it is missing or cannot be read.
        """
        try:
            return read_json(self.folder / f"{name}.json")
        except (OSError, ValueError):
            return None

    def put(self, name: str, document: Any) -> None:
        """Store a document. An older one of the same name is replaced.

        Args:
            name: the name of the document. A slash makes a folder.
            document: anything that JSON can hold.
        """
        target = self.folder / f"{name}.json"
        part = part_of(target)  # a name of its own: other threads and processes may be writing the same document
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(document), encoding="utf-8")
            os.replace(part, target)
        except OSError:
            pass
        finally:  # after an interrupt too
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what killed processes left half-written. What other processes are writing stays."""
        for folder, _, names in os.walk(self.folder):  # which passes over folders that cannot be read
            if any(name.endswith(".part") for name in names):
                remove_parts(Path(folder))
