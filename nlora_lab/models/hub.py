"""Models on the Hugging Face hub: which commit a name means, what is in its weight files, and one file at a time.

What was fetched lies in the hub's own cache (``HF_HOME``), where transformers finds it too.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlora_lab.core.cache import Cache
from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.core.formatting import format_bytes

CONFIG = "config.json"
SINGLE = "model.safetensors"
LOCAL_REMEDY = "load it once with a connection, or use model='embedded', which needs no network"
OUT_OF_REACH = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ProxyError")
HEADERS_AT_ONCE = 8
Tensors = dict[str, tuple[str, list[int]]]
"""Of each tensor in a file: its dtype in safetensors' words, and its shape."""


@dataclass(eq=False)
class Shard:
    """A weight file on the hub as of one commit. It is downloaded when it is first wanted.

    Args:
        etag: what the hub names the content by; "" if it does not say.
        tensors: what the file holds, known from its header.
        keep: whether it is downloaded to the hub's cache; if not, to a folder that :meth:`forget` removes.
        tell: called with a line for the reader before a download.
    """

    hub_id: str
    commit: str
    name: str
    size: int
    etag: str
    tensors: Tensors
    keep: bool = True
    tell: Callable[[str], None] | None = None
    _own: Path | None = field(default=None, init=False)

    @property
    def content(self) -> str:
        """A name for what the file holds: equal only for equal files."""
        return f"hub {self.etag}" if self.etag else f"hub {self.hub_id}@{self.commit}/{self.name}"

    def here(self) -> Path | None:
        """The file on this machine, or ``None``."""
        if self._own is not None:
            return self._own / self.name
        return cached(self.hub_id, self.name, self.commit)

    def fetch(self) -> Path:
        """The file on this machine, downloaded if need be. Raises :class:`ModelError` with a remedy."""
        from huggingface_hub import hf_hub_download

        there = self.here()
        if there is not None:
            return there
        if self.tell is not None:
            self.tell(f"downloading {self.name} ({format_bytes(self.size)})")
        try:
            if self.keep:
                return Path(hf_hub_download(self.hub_id, self.name, revision=self.commit))
            own = _folder_beside_the_cache(self.hub_id)
            try:
                hf_hub_download(self.hub_id, self.name, revision=self.commit, local_dir=own)
            except BaseException:  # a Ctrl-C too must not leave half a shard on the disk
                shutil.rmtree(own, ignore_errors=True)
                raise
        except Exception as error:
            raise ModelError(f"{self.name} could not be downloaded: {explain(self.hub_id, error)}") from error
        self._own = own
        return own / self.name

    def forget(self) -> None:
        """Delete the file, if it was downloaded here with ``keep=False``; other files are left alone."""
        own, self._own = self._own, None
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)


def _folder_beside_the_cache(hub_id: str) -> Path:
    """A new folder on the disk that the user chose for downloads.

    Not the cache itself: a file there may be shared with other commits and other models.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    place = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model")
    place.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="scan-", dir=place))


# --- what is in the cache, and whether the hub can be reached ---


def cached(hub_id: str, file: str, revision: str | None = None) -> Path | None:
    """``file`` of a model as it lies in the hub's cache, or ``None``."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def is_cached(hub_id: str, revision: str | None = None) -> bool:
    """Whether config and weights of a model are all in the hub's cache."""
    config = cached(hub_id, CONFIG, revision)
    return config is not None and _has_weights(config.parent)


def _has_weights(snapshot: Path) -> bool:
    """Whether all weight files are in a folder of the cache: what its index names, or else any."""
    index = next(iter(sorted(snapshot.glob("*.safetensors.index.json"))), None)
    if (snapshot / SINGLE).is_file() or index is None:
        return any(snapshot.glob("*.safetensors"))
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((snapshot / file).is_file() for file in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # it is for the loader to say what is wrong with it


def check_reachable(hub_id: str, there: bool | None = None, revision: str | None = None) -> None:
    """Say within seconds that there is no network; the hub's own client retries for a minute.

    ``there``: whether what is needed is in the cache; by default, whether the config is.
    """
    from huggingface_hub import constants, get_session

    if there if there is not None else cached(hub_id, CONFIG, revision) is not None:
        return
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"model={hub_id!r} is not in the cache and HF_HUB_OFFLINE is set; {LOCAL_REMEDY}")
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # the HTTP library's own classes, which differ between versions
        raise ModelError(_unreachable(hub_id, error)) from error


def check_revision(revision: object, source: object) -> None:
    """Raise :class:`ModelError` for a revision that is no text, or of a ``source`` that is no hub id (text)."""
    if revision is None:
        return
    if not isinstance(revision, str) or not revision.strip():
        raise ModelError(f"revision={revision!r} must be a branch, a tag or a commit hash; leave it out for the newest")
    if not isinstance(source, str):
        raise ModelError(f"revision={revision!r} is for models on the hub only; leave it out, or give a hub id")


def find_commit(hub_id: str, revision: str | None = None) -> str:
    """The commit hash that ``revision`` (a branch, a tag, a commit; default: the main branch) means.

    As the hub has it now or, where it cannot be reached, as the cache has it. Raises what the hub's client
    raises, for :func:`explain`.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:  # by way of a file: that notes in the cache what the name meant, for the next time without a network
        return Path(hf_hub_download(hub_id, CONFIG, revision=revision)).parent.name
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:  # no config, as in a repository of adapters
        return str(HfApi().model_info(hub_id, revision=revision, timeout=30).sha)


# --- what is in the weight files ---


def shards(hub_id: str, revision: str | None = None, kept: Cache | None = None) -> list[Shard] | Path:
    """The weight files of a model and all that is in them, without downloading one; in the order of their names.

    ``kept``: where the answer is kept for the next time, by commit. Where the hub cannot be reached and
    nothing is kept, the folder of the hub's cache instead. Raises :class:`ModelError` with a remedy.
    """
    check_reachable(hub_id, revision=revision)
    try:
        with without_bars():
            commit = find_commit(hub_id, revision)
            found = _recall(hub_id, commit, kept)
            if found is None:
                found = _ask(hub_id, commit)
                _remember(found, kept)
            return found
    except InputError:
        raise
    except Exception as error:  # the hub's own classes: missing, gated, offline, interrupted
        config = cached(hub_id, CONFIG, revision)
        if config is not None and _is_out_of_reach(error) and _has_weights(config.parent):
            return config.parent
        raise ModelError(explain(hub_id, error, revision)) from error


def _ask(hub_id: str, commit: str) -> list[Shard]:
    from huggingface_hub import HfApi, hf_hub_download

    siblings = HfApi().model_info(hub_id, revision=commit, files_metadata=True, timeout=30).siblings or []
    there = {s.rfilename: s for s in siblings if "/" not in s.rfilename}
    index = next((name for name in sorted(there) if name.endswith(".safetensors.index.json")), None)
    if index is not None:
        from nlora_lab.models.safetensors import of_index

        listed = of_index(Path(hf_hub_download(hub_id, index, revision=commit)))
        wanted = {file.name: names for file, names in listed.items()}
        missing = next((name for name in wanted if name not in there), None)
        if missing is not None:
            raise ModelError(f"{index} of {hub_id!r} names {missing}, which is not there; choose another revision")
    else:
        wanted = dict.fromkeys(_without_index(hub_id, there))
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        headers = list(pool.map(lambda name: _header(hub_id, commit, name), wanted))
    return [
        Shard(hub_id, commit, name, there[name].size or 0, _etag(there[name]), _only(tensors, names))
        for (name, names), tensors in zip(wanted.items(), headers, strict=True)
    ]


def _without_index(hub_id: str, there: dict[str, Any]) -> list[str]:
    files = sorted(name for name in there if name.endswith(".safetensors"))
    if files:
        return [SINGLE] if SINGLE in files else files
    pickled = next((name for name in there if name.endswith((".bin", ".pt", ".pth", ".ckpt"))), None)
    if pickled is not None:
        raise ModelError(
            f"{hub_id!r} has its weights in {pickled}, a pickle, which can run code when opened; choose a model or a "
            "revision with .safetensors files"
        )
    raise ModelError(f"{hub_id!r} holds no .safetensors file; choose a model that has them")


def _header(hub_id: str, commit: str, name: str) -> Tensors:
    """What a weight file holds, from its first bytes (some 100 kB)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    local = cached(hub_id, name, commit)
    if local is not None:
        from nlora_lab.models.safetensors import header

        return header(local)
    try:
        read = HfApi().parse_safetensors_file_metadata(hub_id, name, revision=commit)
    except SafetensorsParsingError as error:
        raise ModelError(
            f"{name} of {hub_id!r} is truncated or not safetensors; choose another revision or model"
        ) from error
    return {tensor: (info.dtype, list(info.shape)) for tensor, info in sorted(read.tensors.items())}


def _only(tensors: Tensors, names: set[str] | None) -> Tensors:
    return tensors if names is None else {name: what for name, what in tensors.items() if name in names}


def _etag(sibling: Any) -> str:
    """The SHA-256 of a large file, git's own hash of a small one: both name the content."""
    return str((sibling.lfs.sha256 if sibling.lfs else None) or sibling.blob_id or "")


def _recall(hub_id: str, commit: str, kept: Cache | None) -> list[Shard] | None:
    if kept is None:
        return None
    document: Any = kept.get(_document(hub_id, commit))
    try:
        return [
            Shard(hub_id, commit, name, int(size), str(etag), {t: (str(d), [int(n) for n in s]) for t, d, s in tensors})
            for name, size, etag, tensors in document
        ] or None
    except (TypeError, ValueError):  # none there, or spoilt: then the hub is asked again
        return None


def _remember(found: list[Shard], kept: Cache | None) -> None:
    if kept is None or not found:
        return
    document = [[s.name, s.size, s.etag, [[t, *what] for t, what in s.tensors.items()]] for s in found]
    kept.put(_document(found[0].hub_id, found[0].commit), document)


def _document(hub_id: str, commit: str) -> str:
    return f"hub/{hub_id.replace('/', '--')}-{commit}"


@contextmanager
def without_bars() -> Iterator[None]:
    """No download bars: for files as small as a config they say nothing."""
    from huggingface_hub import utils

    bars: Any = utils  # which exports these without saying so to type checkers
    had_bars = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            bars.enable_progress_bars()


# --- what went wrong ---


def explain(hub_id: str, error: BaseException, revision: str | None = None) -> str:
    """One line on what the hub's client, or transformers on top of it, failed with, and what to do."""
    causes = list(_chain(error))
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    status = {getattr(getattr(cause, "response", None), "status_code", None) for cause in causes}
    first = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if "GatedRepoError" in kinds or ("RepositoryNotFoundError" not in kinds and status & {401, 403}):
        return f"model={hub_id!r} is gated or private; accept its licence on the hub and run 'hf auth login'"
    if "RepositoryNotFoundError" in kinds:
        return f"model={hub_id!r} is not on the hub, or is private; check the id, or run 'hf auth login' to see it"
    if "RevisionNotFoundError" in kinds:
        return (
            f"revision={revision!r} of {hub_id!r} is not on the hub; use a branch, a tag or a full commit hash, "
            "or leave it out"
        )
    if 429 in status:
        return f"the hub has had too many requests ({hub_id!r}); wait some minutes, or run 'hf auth login'"
    if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
        return f"the disk is full ({hub_id!r}); free some space: 'hf cache ls' lists what the cache holds"
    if _is_out_of_reach(error):
        return _unreachable(hub_id, causes[-1])
    if "HfHubHTTPError" not in kinds:
        return f"model={hub_id!r} cannot be loaded ({first}); choose another revision, or another model"
    return (
        f"model={hub_id!r} could not be loaded from the hub ({first}); check the id and the connection, "
        "or use model='embedded', which needs no network"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_out_of_reach(error: BaseException) -> bool:
    # by name: the HTTP library behind the hub's client is not the same in all its versions
    return any(
        type(cause).__name__ in OUT_OF_REACH or type(cause).__name__.endswith(("ConnectError", "Timeout"))
        for cause in _chain(error)
    )


def _unreachable(hub_id: str, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:100]
    return f"model={hub_id!r} is not in the cache and the hub is out of reach ({reason}); {LOCAL_REMEDY}"
