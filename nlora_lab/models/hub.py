"""The Hugging Face hub: whether it can be reached, what is in its cache, commits, and what its errors mean.

Downloads lie in the cache of the hub's own client (``HF_HOME``), where transformers finds them too.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.models.names import CONFIG, INDEX, SINGLE
from nlora_lab.models.safetensors import read_index

UNREACHABLE = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ProxyError")
REMEDIES = {
    "model": "load it once with a connection, or use model='embedded', which needs no network",
    "data": "load it once with a connection, or give a local file or folder as data",
}


def cached_file(hub_id: str, file: str, revision: str | None = None) -> Path | None:
    """Return the path of a model's ``file`` in the cache of the hub, or ``None`` if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(hub_id, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def is_cached(hub_id: str, revision: str | None = None) -> bool:
    """Return whether the config and all weight files of a model are in the cache of the hub."""
    config = cached_file(hub_id, CONFIG, revision)
    return config is not None and has_weights(config.parent)


def has_weights(snapshot: Path) -> bool:
    """Return whether a folder of the cache holds all weight files: those in its index, or any if it has no index."""
    index = next(iter(sorted(snapshot.glob(INDEX))), None)
    if (snapshot / SINGLE).is_file() or index is None:
        return any(snapshot.glob("*.safetensors"))
    try:
        return all(file.is_file() for file in read_index(index))
    except ModelError:
        return False  # the loader will say what is wrong with the index


def check_reachable(
    hub_id: str,
    revision: str | None = None,
    *,
    in_cache: bool | None = None,
    kind: Literal["model", "data"] = "model",
) -> None:
    """Check within seconds that something can be loaded: from the cache of the hub, or from the hub itself.

    The hub's own client retries for a minute before it gives up.

    Args:
        hub_id: the id of a model or a dataset, ``owner/name``.
        revision: the branch, tag or commit of a model. ``None`` means its main branch.
        in_cache: whether everything needed is in the cache. ``None`` looks for the config of a model there.
        kind: "model" or "data", as which the message names the id.

    Raises:
        InputError: the id is not in the cache, and the hub cannot be reached. For a model it is a ``ModelError``.
    """
    from huggingface_hub import constants, get_session

    if in_cache is None:
        in_cache = cached_file(hub_id, CONFIG, revision) is not None
    if in_cache:
        return
    error_class = ModelError if kind == "model" else InputError
    if constants.HF_HUB_OFFLINE:
        raise error_class(f"{kind}={hub_id!r} is not in the cache and HF_HUB_OFFLINE is set; {REMEDIES[kind]}")
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # the HTTP library's own classes, which differ between versions
        raise error_class(_unreachable(hub_id, error, kind)) from error


def check_revision(revision: object, source: object) -> None:
    """Check that a revision can be used.

    Args:
        revision: the branch, tag or commit, or ``None``.
        source: what the model is loaded from. Only a hub id, which is text, has revisions.

    Raises:
        ModelError: the revision is not text, or the source is not a hub id.
    """
    if revision is None:
        return
    if not isinstance(revision, str) or not revision.strip():
        raise ModelError(f"revision={revision!r} must be a branch, a tag or a commit hash; leave it out for the newest")
    if not isinstance(source, str):
        raise ModelError(f"revision={revision!r} is for models on the hub only; leave it out, or give a hub id")


def find_commit(hub_id: str, revision: str | None = None) -> str:
    """Find the commit that a revision means: on the hub or, if that cannot be reached, in the cache.

    Args:
        hub_id: the id of a model.
        revision: the branch, tag or commit. ``None`` means the main branch.

    Returns:
        The commit hash.

    Raises:
        Exception: whatever the hub's client raises. ``explain`` turns it into a message.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:  # by way of a file: the cache then notes what the revision meant, for the next time without a network
        return Path(hf_hub_download(hub_id, CONFIG, revision=revision)).parent.name
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:  # no config, as in a repository of adapters
        return str(HfApi().model_info(hub_id, revision=revision, timeout=30).sha)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the download bars of the hub's client: for a file as small as a config they are only noise."""
    from huggingface_hub import utils

    bars: Any = utils  # which exports these without saying so to type checkers
    had_bars = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            bars.enable_progress_bars()


def explain(hub_id: str, error: BaseException, revision: str | None = None) -> str:
    """Turn an error of the hub's client, or of transformers on top of it, into one line with a remedy.

    Args:
        hub_id: the id of the model.
        error: the error.
        revision: the revision that was requested.

    Returns:
        The message.
    """
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
    if is_unreachable(error):
        return _unreachable(hub_id, causes[-1], "model")
    if "HfHubHTTPError" not in kinds:
        return f"model={hub_id!r} cannot be loaded ({first}); choose another revision, or another model"
    return (
        f"model={hub_id!r} could not be loaded from the hub ({first}); check the id and the connection, "
        "or use model='embedded', which needs no network"
    )


def is_unreachable(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, means that the hub cannot be reached."""
    # by name: the HTTP library behind the hub's client is not the same in all its versions
    return any(
        type(cause).__name__ in UNREACHABLE or type(cause).__name__.endswith(("ConnectError", "Timeout"))
        for cause in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _unreachable(hub_id: str, error: BaseException, kind: str) -> str:
    reason = (" ".join(str(error).split()) or type(error).__name__)[:100]
    return f"{kind}={hub_id!r} is not in the cache and the hub is out of reach ({reason}); {REMEDIES[kind]}"
