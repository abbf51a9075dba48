"""The weight files of a model on the hub: what they hold, known without a download, and one download at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from nlora_lab.core.cache import Cache
from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.core.formatting import format_bytes
from nlora_lab.models.hub import (
    cached_file,
    check_reachable,
    explain,
    find_commit,
    has_weights,
    is_unreachable,
    without_bars,
)
from nlora_lab.models.names import CONFIG, INDEX, SINGLE, is_pickle
from nlora_lab.models.safetensors import Header, read_header, read_index

PARALLEL_HEADERS = 8


@dataclass(eq=False)
class Shard:
    """A weight file on the hub, as of one commit. It is downloaded when it is first needed.

    Attributes:
        hub_id: the model that the file belongs to.
        commit: the commit hash.
        name: the name of the file.
        size: its size in bytes.
        etag: the name that the hub gives to the content; "" if it gives none.
        header: what the file holds.
        keep: whether a download goes to the hub's cache. If not, it goes to a folder that ``discard`` removes.
        report: called with one line of text before a download.
    """

    hub_id: str
    commit: str
    name: str
    size: int
    etag: str
    header: Header
    keep: bool = True
    report: Callable[[str], None] | None = None
    _temporary: Path | None = field(default=None, init=False)

    @property
    def content(self) -> str:
        """A name for the content of the file. Two names are equal only if the contents are."""
        return f"hub {self.etag}" if self.etag else f"hub {self.hub_id}@{self.commit}/{self.name}"

    def local_file(self) -> Path | None:
        """Return the file on this machine, or ``None`` if it is not here."""
        if self._temporary is not None:
            return self._temporary / self.name
        return cached_file(self.hub_id, self.name, self.commit)

    def download(self) -> Path:
        """Return the file on this machine. Download it first if it is not here.

        Returns:
            The path of the file.

        Raises:
            ModelError: the download failed.
        """
        from huggingface_hub import hf_hub_download

        local = self.local_file()
        if local is not None:
            return local
        if self.report is not None:
            self.report(f"downloading {self.name} ({format_bytes(self.size)})")
        try:
            if self.keep:
                return Path(hf_hub_download(self.hub_id, self.name, revision=self.commit))
            folder = _temporary_folder(self.hub_id)
            try:
                hf_hub_download(self.hub_id, self.name, revision=self.commit, local_dir=folder)
            except BaseException:  # a Ctrl-C too must not leave half a file on the disk
                shutil.rmtree(folder, ignore_errors=True)
                raise
        except Exception as error:
            raise ModelError(f"{self.name} could not be downloaded: {explain(self.hub_id, error)}") from error
        self._temporary = folder
        return folder / self.name

    def discard(self) -> None:
        """Delete the file if it was downloaded with ``keep=False``. Other files stay."""
        folder, self._temporary = self._temporary, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder(hub_id: str) -> Path:
    """A new folder on the disk that the user chose for downloads.

    It is not the cache itself: a file there may be shared with other commits and other models.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    parent = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model")
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="scan-", dir=parent))


def list_shards(hub_id: str, revision: str | None = None, cache: Cache | None = None) -> list[Shard] | Path:
    """List the weight files of a model on the hub and what they hold, without downloading one.

    Args:
        hub_id: the id of the model.
        revision: the branch, tag or commit. ``None`` means the main branch.
        cache: where the answer is stored for the next time, by commit.

    Returns:
        The files in the order of their names. If the hub cannot be reached and the answer is not stored, the folder of
        the model in the hub's cache.

    Raises:
        ModelError: the model cannot be read, with a remedy.
    """
    check_reachable(hub_id, revision)
    try:
        with without_bars():
            commit = find_commit(hub_id, revision)
            shards = _load_listing(hub_id, commit, cache)
            if shards is None:
                shards = _fetch_listing(hub_id, commit)
                _store_listing(shards, cache)
            return shards
    except InputError:
        raise
    except Exception as error:  # the hub's own classes: missing, gated, offline, interrupted
        config = cached_file(hub_id, CONFIG, revision)
        if config is not None and is_unreachable(error) and has_weights(config.parent):
            return config.parent
        raise ModelError(explain(hub_id, error, revision)) from error


def _fetch_listing(hub_id: str, commit: str) -> list[Shard]:
    from huggingface_hub import HfApi, hf_hub_download

    siblings = HfApi().model_info(hub_id, revision=commit, files_metadata=True, timeout=30).siblings or []
    on_hub = {s.rfilename: s for s in siblings if "/" not in s.rfilename}
    index = next((name for name in sorted(on_hub) if fnmatch(name, INDEX)), None)
    tensors: dict[str, set[str] | None]
    if index is not None:
        listed = read_index(Path(hf_hub_download(hub_id, index, revision=commit)))
        tensors = {file.name: names for file, names in listed.items()}
        missing = next((name for name in tensors if name not in on_hub), None)
        if missing is not None:
            raise ModelError(f"{index} of {hub_id!r} names {missing}, which is missing; choose another revision")
    else:
        tensors = dict.fromkeys(_weight_files(hub_id, sorted(on_hub)))
    with ThreadPoolExecutor(PARALLEL_HEADERS) as pool:
        headers = list(pool.map(lambda name: _fetch_header(hub_id, commit, name), tensors))
    return [
        Shard(hub_id, commit, file, on_hub[file].size or 0, _etag(on_hub[file]), _only(header, names))
        for (file, names), header in zip(tensors.items(), headers, strict=True)
    ]


def _weight_files(hub_id: str, names: list[str]) -> list[str]:
    """The weight files among the files of a model without an index."""
    files = [name for name in names if name.endswith(".safetensors")]
    if files:
        return [SINGLE] if SINGLE in files else files
    pickle = next(filter(is_pickle, names), None)
    if pickle is not None:
        raise ModelError(
            f"{hub_id!r} has its weights in {pickle}, a pickle, which can run code when opened; choose a model or a "
            "revision with .safetensors files"
        )
    raise ModelError(f"{hub_id!r} holds no .safetensors file; choose a model that has one")


def _fetch_header(hub_id: str, commit: str, name: str) -> Header:
    """What a weight file holds, from its first bytes (about 100 kB)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    local = cached_file(hub_id, name, commit)
    if local is not None:
        return read_header(local)
    try:
        metadata = HfApi().parse_safetensors_file_metadata(hub_id, name, revision=commit)
    except SafetensorsParsingError as error:
        raise ModelError(
            f"{name} of {hub_id!r} is truncated or not safetensors; choose another revision or model"
        ) from error
    return {tensor: (info.dtype, list(info.shape)) for tensor, info in sorted(metadata.tensors.items())}


def _only(header: Header, names: set[str] | None) -> Header:
    return header if names is None else {name: entry for name, entry in header.items() if name in names}


def _etag(sibling: Any) -> str:
    """The SHA-256 of a large file, or git's own hash of a small one. Both name the content."""
    return str((sibling.lfs.sha256 if sibling.lfs else None) or sibling.blob_id or "")


def _load_listing(hub_id: str, commit: str, cache: Cache | None) -> list[Shard] | None:
    if cache is None:
        return None
    document: Any = cache.get(_document(hub_id, commit))
    try:
        return [
            Shard(hub_id, commit, name, int(size), str(etag), {t: (str(d), [int(n) for n in s]) for t, d, s in tensors})
            for name, size, etag, tensors in document
        ] or None
    except (TypeError, ValueError):  # missing or damaged: the hub is asked again
        return None


def _store_listing(shards: list[Shard], cache: Cache | None) -> None:
    if cache is None or not shards:
        return
    document = [[s.name, s.size, s.etag, [[tensor, *entry] for tensor, entry in s.header.items()]] for s in shards]
    cache.put(_document(shards[0].hub_id, shards[0].commit), document)


def _document(hub_id: str, commit: str) -> str:
    return f"hub/{hub_id.replace('/', '--')}-{commit}"
