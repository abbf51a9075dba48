"""The cache of a scan: the numbers of each matrix by its content, and the content of each weight file.

A matrix is known by a digest of its values. The same matrix in another file or another model is therefore measured
once. For each file the cache also notes the digests of its matrices, so that an unchanged file is not read again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlora_lab.core.array_types import Shaped
from nlora_lab.core.cache import Cache
from nlora_lab.models.weights import Weight
from nlora_lab.spectra.matrix_numbers import PLAIN_COLUMNS, rank_columns

FORMAT = 2  # of a cached row: raise it whenever a number would come out differently


def content_digest(W: Shaped[Tensor, "..."]) -> str:
    """Return a digest of the values, the dtype and the shape of ``W``."""
    flat = W.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{flat.dtype} {tuple(flat.shape)}".encode(), digest_size=16)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass
class RowCache:
    """Rows of a scan by the content of their matrix, and the content that each file had when it was last read.

    A damaged entry counts as missing.

    Args:
        cache: where the entries are stored.
    """

    cache: Cache

    def digest(self, weight: Weight) -> str | None:
        """Return the digest of ``weight`` from the last scan, or ``None`` if its file has changed since or is new."""
        file = _file_stamp(weight)
        if file is None:
            return None
        entry = self.cache.get(_file_entry(file[0]))
        if not isinstance(entry, dict) or entry.get("stamp") != file[1]:
            return None
        digests = entry.get("digests")
        digest = digests.get(weight.name) if isinstance(digests, dict) else None
        return digest if isinstance(digest, str) else None

    def put_digest(self, weight: Weight, digest: str) -> None:
        """Note the digest of ``weight`` for the state its file is in now."""
        file = _file_stamp(weight)
        if file is None:
            return
        name, stamp = _file_entry(file[0]), file[1]
        entry = self.cache.get(name)
        if not isinstance(entry, dict) or entry.get("stamp") != stamp or not isinstance(entry.get("digests"), dict):
            entry = {"stamp": stamp, "digests": {}}
        entry["digests"][weight.name] = digest
        self.cache.put(name, entry)

    def row(self, digest: str, ranks: Sequence[int], shape: tuple[int, int]) -> dict[str, float] | None:
        """Return the row of a matrix (m, n), or ``None`` if it is missing or incomplete."""
        entry = self.cache.get(_row_entry(digest, ranks))
        if not isinstance(entry, dict) or not all(map(_is_number, entry.values())):
            return None
        usable = [r for r in ranks if r <= min(shape)] if entry.get("std") else []
        complete = entry.keys() == {*PLAIN_COLUMNS, *rank_columns(usable)}
        return {column: float(value) for column, value in entry.items()} if complete else None

    def put_row(self, digest: str, ranks: Sequence[int], row: dict[str, float]) -> None:
        """Store the row of a matrix."""
        # JSON has neither NaN nor infinity, but a condition number can be infinite
        entry = {column: value if math.isfinite(value) else str(value) for column, value in row.items()}
        self.cache.put(_row_entry(digest, ranks), entry)


def _file_entry(name: str) -> str:
    return f"files/{hashlib.sha256(name.encode()).hexdigest()[:24]}"


def _row_entry(digest: str, ranks: Sequence[int]) -> str:
    suffix = hashlib.sha256(repr(list(ranks)).encode()).hexdigest()[:12]  # a file's name has room for few ranks
    return f"spectra/{FORMAT}/{digest}-{suffix}"


def _is_number(value: object) -> bool:
    return value in ("inf", "nan") or (isinstance(value, int | float) and not isinstance(value, bool))


def _file_stamp(weight: Weight) -> tuple[str, list[int]] | None:
    """A name for the file of a weight and a stamp that changes with the file; ``None`` for a live model.

    On the hub the name is that of the content, whatever the commit, and needs no file on this machine.
    """
    if weight.shard is not None:
        return weight.shard.content, [weight.shard.size]
    if weight.file is None:
        return None
    state = weight.file.stat()
    return str(weight.file.resolve()), [state.st_size, state.st_mtime_ns]
