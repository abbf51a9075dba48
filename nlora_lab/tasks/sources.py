"""Where the rows of a task come from: a file, a folder of files by split, or a dataset on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import expand_path
from nlora_lab.models.names import HUB_ID
from nlora_lab.tasks.files import ENDINGS, Part, read_file, split_files


@dataclass(frozen=True)
class Source:
    """The splits of a dataset, each read when it is asked for; a single file is all ``train``."""

    where: str
    kind: Literal["file", "folder", "hub"]
    splits: dict[str, Callable[[], list[Part]]]

    def read(self, *names: str) -> list[Part]:
        """The parts of the first of these splits that is there; :class:`InputError` where none is, or it is empty."""
        found = next((name for name in names if name in self.splits), None)
        if found is None:
            raise InputError(
                f"{self.where} has no split {names[0]!r}, only {', '.join(self.splits) or 'none'}; "
                f"add {names[0]}.jsonl or {names[0]}-*.parquet"
            )
        parts = self.splits[found]()
        if not any(map(len, parts)):
            raise InputError(f"{parts[0].where if parts else self.where} is empty; it takes at least one row")
        return parts


def open_source(place: str | Path, config: str | None = None, folders: Sequence[str] = ()) -> Source:
    """The source that ``place`` names: a file, a folder, or a hub id with its ``config``.

    In a folder, the sub-folders ``folders`` are looked in after it. Raises :class:`InputError` for what is
    none of the three, and for a dataset that cannot be loaded from the hub. Code from the hub is never run.
    """
    path = expand_path(place)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # too long, a NUL in it
        is_file = is_folder = False
    if is_file:
        return Source(str(path), "file", {"train": lambda: [read_file(path)]})
    if is_folder:
        return _folder(path, [path, *(path / name for name in folders)])
    if isinstance(place, Path) or path.suffix.lower() in ENDINGS or not HUB_ID.fullmatch(place):
        raise InputError(
            f"data={str(place)!r} is not there; give a file that ends in {', '.join(ENDINGS)}, "
            "a folder of them, or a hub id such as 'openai/gsm8k'"
        )
    return _hub(place, config)


def _folder(path: Path, folders: Sequence[Path]) -> Source:
    files = split_files(folders)
    if not files:
        raise InputError(f"the folder {path} holds no data file; put train.jsonl or train-*.parquet there")
    return Source(str(path), "folder", {split: partial(_read_all, paths) for split, paths in files.items()})


def _read_all(paths: Sequence[Path]) -> list[Part]:
    return [read_file(path) for path in paths]


def _hub(hub_id: str, config: str | None) -> Source:
    import datasets

    check_reachable(hub_id)
    try:
        loaded = datasets.load_dataset(hub_id, config)
    except Exception as error:  # datasets raises its own, OSError, ValueError, RuntimeError, ...
        raise InputError(_explain(hub_id, config, error)) from error
    return Source(
        hub_id, "hub", {str(split): partial(_hub_part, hub_id, split, rows) for split, rows in loaded.items()}
    )


def _hub_part(hub_id: str, split: str, rows: Any) -> list[Part]:
    names = getattr(rows.features.get("label"), "names", None) or ()
    return [Part(f"{hub_id} ({split})", rows.to_dict(), tuple(names))]


def check_reachable(hub_id: str) -> None:
    """Say within seconds that there is no network; the hub's own client retries for half a minute."""
    from datasets import config
    from huggingface_hub import constants, get_session

    if (Path(config.HF_DATASETS_CACHE) / hub_id.replace("/", "___")).is_dir():
        return
    remedy = "load it once with a connection, or give a local file or folder as data"
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"data={hub_id!r} is not in the cache and HF_HUB_OFFLINE is set; {remedy}")
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # the HTTP library's own classes, which differ between versions
        raise InputError(
            f"data={hub_id!r} is not in the cache and the hub is out of reach ({_first(error)[:100]}); {remedy}"
        ) from error


def _explain(hub_id: str, config: str | None, error: Exception) -> str:
    first, kind = _first(error), type(error).__name__
    if "gated" in first.lower() or "401" in first or "403" in first:
        return f"data={hub_id!r} is gated or private; accept its licence on the hub and run 'hf auth login'"
    if kind == "DatasetNotFoundError" or "404" in first:
        return f"data={hub_id!r} is not on the hub, or private; check the id on huggingface.co/datasets"
    if "scripts" in first or "trust_remote_code" in first:
        return f"data={hub_id!r} needs code of its own, which is never run here; choose one that is kept as Parquet"
    part = f" (config {config!r})" if config else ""
    return (
        f"data={hub_id!r}{part} could not be loaded from the hub ({first[:200]}); check the id and the connection, "
        "or give a local file or folder as data"
    )


def _first(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
