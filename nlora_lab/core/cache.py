"""Where results that are cheap to keep and dear to compute are kept, and how."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs

OVERRIDE = "NLORA_LAB_CACHE"


def cache_folder() -> Path:
    """The cache of this user, or what ``NLORA_LAB_CACHE`` says. It can be deleted at any time."""
    named = os.environ.get(OVERRIDE)
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("nlora-lab", appauthor=False))


class Cache:
    """Small JSON documents by name, below one folder.

    A document is written whole or not at all. Where the folder cannot be written, or a document cannot be
    read, it is as if there were none: a cache never ends a computation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> Any:
        """The document called ``name``, or ``None``."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def put(self, name: str, document: Any) -> None:
        """Keep ``document`` as ``name``, replacing an older one."""
        target = self.folder / f"{name}.json"
        part = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # a name of its own: other threads and processes may be writing the same document
            handle, part = tempfile.mkstemp(".part", dir=target.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file)
            os.replace(part, target)
        except OSError:
            if part is not None:
                with suppress(OSError):
                    os.unlink(part)
