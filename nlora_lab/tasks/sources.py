"""Where the rows of a task come from: a file, a folder of files by split, or a dataset on the Hugging Face hub.

Files are JSONL, JSON, CSV, TSV or Parquet. A file in a folder has the name of its split, such as ``train.jsonl`` or
``train-00000-of-00001.parquet``.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from nlora_lab.core import documents
from nlora_lab.core.documents import parse_json
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import expand_path
from nlora_lab.models.hub import check_reachable
from nlora_lab.models.names import HUB_ID

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SPLIT_NAME = re.compile(r"([A-Za-z_]+)(?:-[\w.-]*)?$")  # train, train-00000-of-00001
SPLIT_ALIASES = {"dev": "validation", "valid": "validation", "val": "validation"}
DOWNLOAD_AGAIN = "save or download it again"
WRITE_AN_OBJECT = 'write {"column": "text", ...}'


@dataclass(frozen=True)
class Part:
    """Rows of one split, by column: the rows of one file, or of a dataset on the hub.

    Attributes:
        where: names the part in error messages.
        columns: the cells of each column. A missing cell is ``None``.
        label_names: the names of the classes in the column ``label``, if the hub gives them.
    """

    where: str
    columns: dict[str, list[Any]]
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return max(map(len, self.columns.values()), default=0)

    def column(self, name: str) -> list[Any]:
        """Return the cells of a column.

        Args:
            name: the name of the column.

        Returns:
            One cell per row.

        Raises:
            InputError: the column is missing. The message lists the columns that the part has.
        """
        if name not in self.columns:
            raise InputError(
                f"{self.where} has no column {name!r}, only {', '.join(map(str, self.columns)) or 'none'}; "
                "rename the column that holds it"
            )
        return self.columns[name]

    def texts(self, name: str, empty: bool = False) -> list[str]:
        """Return the cells of a column, and check that all of them are text.

        Args:
            name: the name of the column.
            empty: whether a cell may be blank.

        Returns:
            One text per row.

        Raises:
            InputError: a cell is missing, blank or not text. The message names its row.
        """
        for row, cell in enumerate(cells := self.column(name), start=1):
            if not isinstance(cell, str) or not (empty or cell.strip()):
                problem = "is missing" if cell is None else "is blank" if cell == "" else f"is {_shortened(cell)}"
                raise InputError(
                    f"{self.where}, row {row}: {name!r} {problem}; it must be text{'' if empty else ', and not blank'}"
                )
        return cells


def _shortened(cell: object) -> str:
    text = repr(cell)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(cell).__name__})"


@dataclass(frozen=True)
class Source:
    """The splits of a dataset. A split is read when you ask for it. A single file is one split, ``train``.

    Attributes:
        where: the path or the hub id, for error messages.
        kind: "file", "folder" or "hub".
        splits: reads the parts of each split.
    """

    where: str
    kind: Literal["file", "folder", "hub"]
    splits: dict[str, Callable[[], list[Part]]]

    def read(self, *names: str) -> list[Part]:
        """Read the first of these splits that exists.

        Args:
            names: names of splits, in order of preference.

        Returns:
            The parts of the split. At least one part has rows.

        Raises:
            InputError: none of the splits exists, or the split is empty, or a file cannot be read.
        """
        name = next((name for name in names if name in self.splits), None)
        if name is None:
            raise InputError(
                f"{self.where} has no split {names[0]!r}, only {', '.join(self.splits) or 'none'}; "
                f"add {names[0]}.jsonl or {names[0]}-*.parquet"
            )
        parts = self.splits[name]()
        if not any(map(len, parts)):
            raise InputError(f"{parts[0].where if parts else self.where} is empty; it takes at least one row")
        return parts


def open_source(place: str | Path, config: str | None = None, subfolders: Sequence[str] = ()) -> Source:
    """Open a file, a folder of files, or a dataset on the hub. Code from the hub is never run.

    Args:
        place: a path, or a hub id such as "openai/gsm8k".
        config: the configuration of the dataset on the hub.
        subfolders: where to look for splits that the folder itself does not hold.

    Returns:
        The source.

    Raises:
        InputError: ``place`` is none of the three, the folder holds no data file, or the hub does not give the dataset.
    """
    kind, path = find_source(place)
    if kind == "file":
        return Source(str(path), "file", {"train": lambda: [read_file(path)]})
    if kind == "folder":
        files = _split_files([path, *(path / name for name in subfolders)])
        if not files:
            raise InputError(f"the folder {path} holds no data file; add train.jsonl or train-*.parquet")
        return Source(str(path), "folder", {split: partial(_read_files, paths) for split, paths in files.items()})
    return _open_hub(str(place), config)


def find_source(place: str | Path) -> tuple[Literal["file", "folder", "hub"], Path]:
    """Find out what ``place`` means, without reading it.

    Args:
        place: as for ``open_source``.

    Returns:
        The kind, and the path, which means nothing for the hub.

    Raises:
        InputError: ``place`` is neither a file nor a folder, and cannot be a hub id, or the folder is empty.
    """
    path = expand_path(place, "data")
    try:
        is_file, is_folder = path.is_file(), bool(str(place)) and path.is_dir()  # "" would be the current folder
    except (OSError, ValueError):  # the path is too long, or has a NUL in it
        is_file = is_folder = False
    if is_folder and next(path.iterdir(), None) is None:
        raise InputError(f"data={str(place)!r} holds no data file, it is empty; give a folder with some")
    if is_file or is_folder:
        return ("file" if is_file else "folder"), path
    if isinstance(place, Path) or path.suffix.lower() in ENDINGS or not HUB_ID.fullmatch(place):
        raise InputError(
            f"data={str(place)!r} does not exist; give a file that ends in {', '.join(ENDINGS)}, "
            "a folder of such files, or a hub id such as 'openai/gsm8k'"
        )
    return "hub", path


def _split_files(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Find the data files by split. Each split comes from the first folder that has it.

    "dev" counts as "validation", and "dev_matched" as "validation_matched".
    """
    splits: dict[str, list[Path]] = {}
    for folder in folders:
        folder_splits: dict[str, list[Path]] = {}
        try:
            files = sorted(folder.iterdir()) if folder.is_dir() else []
        except OSError as error:
            raise InputError(f"{folder} cannot be read ({error}); check its permissions") from error
        for file in files:
            match = SPLIT_NAME.match(file.stem)
            if file.suffix.lower() in ENDINGS and match:
                first, _, rest = match.group(1).lower().partition("_")
                split = "_".join([SPLIT_ALIASES.get(first, first), *([rest] if rest else [])])
                folder_splits.setdefault(split, []).append(file)
        splits = {**folder_splits, **splits}
    return splits


def _read_files(paths: Sequence[Path]) -> list[Part]:
    return [read_file(path) for path in paths]


# --- datasets on the hub ---


def _open_hub(hub_id: str, config: str | None) -> Source:
    import datasets

    in_cache = (Path(datasets.config.HF_DATASETS_CACHE) / hub_id.replace("/", "___")).is_dir()
    check_reachable(hub_id, in_cache=in_cache, kind="data")
    try:
        with _no_scripts():
            loaded = datasets.load_dataset(hub_id, config)
    except Exception as error:  # datasets raises its own classes, OSError, ValueError, RuntimeError, ...
        raise InputError(_explain(hub_id, config, error)) from error
    return Source(
        hub_id, "hub", {str(split): partial(_hub_part, hub_id, split, rows) for split, rows in loaded.items()}
    )


@contextmanager
def _no_scripts() -> Iterator[None]:
    """Let datasets run no script of a repository. Version 3 would ask on stdin, or obey an environment variable."""
    from datasets import config

    name = "HF_DATASETS_TRUST_REMOTE_CODE"  # which version 4 no longer has
    former = getattr(config, name, None)
    setattr(config, name, False)
    try:
        yield
    finally:
        setattr(config, name, former)


def _hub_part(hub_id: str, split: str, rows: Any) -> list[Part]:
    names = getattr(rows.features.get("label"), "names", None) or ()
    return [Part(f"{hub_id} ({split})", rows.to_dict(), tuple(names))]


def _explain(hub_id: str, config: str | None, error: Exception) -> str:
    """Say in one line why the hub did not give a dataset, and what to do."""
    reason, kind = _reason(error), type(error).__name__
    if "gated" in reason.lower() or "401" in reason or "403" in reason:
        return f"data={hub_id!r} is gated or private; accept its licence on the hub and run 'hf auth login'"
    if kind == "DatasetNotFoundError" or "404" in reason:
        return f"data={hub_id!r} is not on the hub, or private; check the id on huggingface.co/datasets"
    if "scripts" in reason or "trust_remote_code" in reason:
        return f"data={hub_id!r} needs code of its own, which is never run here; choose a dataset in Parquet files"
    part = f" (config {config!r})" if config else ""
    return (
        f"data={hub_id!r}{part} could not be loaded from the hub ({reason[:200]}); check the id and the connection, "
        "or give a local file or folder as data"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --- files ---
# The readers of pandas and datasets would lose behaviour that the tests hold: they do not name the line of a mistake,
# they accept rows that are too short, and they change values (1 becomes 1.0 beside a gap, "NA" becomes None).


def read_file(path: Path) -> Part:
    """Read the rows of one file. Its ending says which kind of file it is.

    Args:
        path: a file that ends in ``.jsonl``, ``.json`` (an array or JSON lines), ``.csv``, ``.tsv`` or ``.parquet``.

    Returns:
        The rows by column.

    Raises:
        InputError: the file cannot be read. The message names the file, and the line if the file has lines.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"{path} ends in {ending or 'nothing'!r}; data files end in {', '.join(ENDINGS)}")
    if ending == ".parquet":
        return Part(str(path), _parquet_columns(path))
    text = read_text(path, "it must be a file of text in UTF-8")
    if ending in (".csv", ".tsv"):
        return Part(str(path), _table_columns(path, text, tabs=ending == ".tsv"))
    is_array = ending == ".json" and text.lstrip().startswith("[")
    rows = _array_rows(path, text) if is_array else [row for _, row in json_lines(path, text)]
    return Part(str(path), _by_column(rows))


def read_text(path: Path, remedy: str) -> str:
    """Read a UTF-8 file. An ``InputError`` names the file and ends with ``remedy``."""
    try:
        return documents.read_text(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {remedy}") from error


def json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not blank. An ``InputError`` names file and line."""
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() also splits inside strings
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not JSON ({error}); {DOWNLOAD_AGAIN}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is not an object; {WRITE_AN_OBJECT}")
        yield number, row


def _array_rows(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        rows = parse_json(text)
    except ValueError as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path}{line} is not JSON ({error}); {DOWNLOAD_AGAIN}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number} is not an object; {WRITE_AN_OBJECT}")
    return list(rows)


def _by_column(rows: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """Turn rows into columns. A cell that a row lacks is ``None``."""
    rows = list(rows)
    return {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}


def _table_columns(path: Path, text: str, tabs: bool) -> dict[str, list[Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default is shorter than a long document
    # a quotation mark in a TSV file is an ordinary character, as in the files of GLUE
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    reader = csv.reader(StringIO(text), **style)
    try:
        header = next(reader, [])
        _check_names(f"{path}, line 1", header)
        columns: dict[str, list[Any]] = {name: [] for name in header}
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num} has {len(row)} cells, and line 1 has {len(header)}; "
                    f"{'take out its tabs' if tabs else 'put cells with commas between quotation marks'}"
                )
            for name, cell in zip(header, row, strict=True):
                columns[name].append(cell)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} cannot be read ({error}); {DOWNLOAD_AGAIN}") from error
    return columns


def _check_names(where: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise InputError(f"{where} names a column twice ({', '.join(names)}); rename one")


def _parquet_columns(path: Path) -> dict[str, list[Any]]:
    from pyarrow import ArrowException, parquet

    try:
        documents.check_regular(path)
        table = parquet.ParquetFile(path).read()
        _check_names(str(path), table.column_names)
        columns: dict[str, list[Any]] = table.to_pydict()
    except InputError:
        raise
    except (ArrowException, OSError, ValueError) as error:
        reason = _reason(error)[:150]
        raise InputError(f"{path} is truncated or is not a Parquet file ({reason}); {DOWNLOAD_AGAIN}") from error
    return columns
