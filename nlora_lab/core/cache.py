"""On-disk cache for results that are slow to compute."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from nlora_lab.core.documents import read_json

OVERRIDE = "NLORA_LAB_CACHE"


def cache_folder() -> Path:
    """Return the cache folder of this user. It can be deleted at any time.

    Returns:
        The folder that the environment variable ``NLORA_LAB_CACHE`` names, or the platform's usual place.
    """
    override = os.environ.get(OVERRIDE)
    if override:
        return Path(override).expanduser()
    try:
        from platformdirs import user_cache_dir
    except ImportError:  # a bare GPU node, which runs Linux
        return Path.home() / ".cache" / "nlora-lab"
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
        part = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # a temporary name of its own: other threads and processes may be writing the same document
            handle, part = tempfile.mkstemp(".part", dir=target.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file)
            os.replace(part, target)
        except OSError:
            if part is not None:
                with suppress(OSError):
                    os.unlink(part)
