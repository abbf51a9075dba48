"""Reading rows from files: JSONL, JSON, CSV, TSV and Parquet; one file, or a folder of them by split."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from nlora_lab.core.errors import InputError

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
NAMED = re.compile(r"([A-Za-z_]+)(?:-[\w.-]*)?$")  # train, train-00000-of-00001
ALIASES = {"dev": "validation", "valid": "validation", "val": "validation"}
AGAIN = "save or download it again"


@dataclass(frozen=True)
class Part:
    """Some rows of one split, by column: those of one file, or of a dataset on the hub.

    ``where`` names it in messages; ``names`` are those of the classes in ``label``, where the hub says them.
    """

    where: str
    columns: dict[str, list[Any]]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return max(map(len, self.columns.values()), default=0)

    def column(self, name: str) -> list[Any]:
        """The cells of a column; :class:`InputError` lists the columns that there are."""
        if name not in self.columns:
            raise InputError(
                f"{self.where} has no column {name!r}, only {', '.join(map(str, self.columns)) or 'none'}; "
                "rename the one that holds it"
            )
        return self.columns[name]

    def texts(self, name: str, empty: bool = False) -> list[str]:
        """The cells of a column, all text; :class:`InputError` names the row of one that is not, or is blank."""
        for row, cell in enumerate(cells := self.column(name), start=1):
            if not isinstance(cell, str) or not (empty or cell.strip()):
                what = "is missing" if cell is None else "is blank" if cell == "" else f"is {_short(cell)}"
                raise InputError(
                    f"{self.where}, row {row}: {name!r} {what}; it must be text{'' if empty else ', and not blank'}"
                )
        return cells


def _short(cell: object) -> str:
    text = repr(cell)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(cell).__name__})"


def split_files(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The data files in ``folders`` by split: ``train.jsonl``, or ``train-*.parquet`` as the hub keeps them.

    A split comes from the first folder that has it. ``dev`` is ``validation``, ``dev_matched`` ``validation_matched``.
    """
    found: dict[str, list[Path]] = {}
    for folder in folders:
        here: dict[str, list[Path]] = {}
        try:
            files = sorted(folder.iterdir()) if folder.is_dir() else []
        except OSError as error:
            raise InputError(f"{folder} cannot be read ({error}); check its permissions") from error
        for file in files:
            named = NAMED.match(file.stem)
            if file.suffix.lower() in ENDINGS and named:
                first, _, rest = named.group(1).lower().partition("_")
                here.setdefault("_".join([ALIASES.get(first, first), *([rest] if rest else [])]), []).append(file)
        found = {**here, **found}
    return found


def read_file(path: Path) -> Part:
    """The rows of one file, of the kind that its ending says.

    Raises :class:`InputError` naming the file, and the line where there are lines, of what cannot be read.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"{path} ends in {ending or 'nothing'!r}; data files end in {', '.join(ENDINGS)}")
    if ending == ".parquet":
        return Part(str(path), _parquet(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); it must be a file of text in UTF-8") from error
    if ending in (".csv", ".tsv"):
        return Part(str(path), _table(path, text, tabs=ending == ".tsv"))
    array = ending == ".json" and text.lstrip().startswith("[")
    return Part(str(path), by_column(_array(path, text) if array else _lines(path, text)))


def by_column(rows: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows turned into columns; a cell that a row lacks is None."""
    rows = list(rows)
    return {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}


def _lines(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() also splits inside strings
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is not JSON ({error}); {AGAIN}") from error
        if not isinstance(rows[-1], dict):
            raise InputError(f'{path}, line {number} is no object; write {{"question": ..., "answer": ...}}')
    return rows


def _array(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path}{line} is not JSON ({error}); {AGAIN}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f'{path}, row {number} is no object; write {{"question": ..., "answer": ...}}')
    return list(rows)


def _table(path: Path, text: str, tabs: bool) -> dict[str, list[Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default is shorter than a long document
    # in a TSV a quotation mark is only a quotation mark, as in GLUE's own files
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    reader = csv.reader(StringIO(text), **style)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise InputError(f"{path}, line 1 names a column twice ({', '.join(header)}); rename one")
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
        raise InputError(f"{path}, line {reader.line_num} cannot be read ({error}); {AGAIN}") from error
    return columns


def _parquet(path: Path) -> dict[str, list[Any]]:
    from pyarrow import ArrowException, parquet

    try:
        columns: dict[str, list[Any]] = parquet.ParquetFile(path).read().to_pydict()
    except (ArrowException, OSError, ValueError) as error:
        first = " ".join(str(error).split())[:150]
        raise InputError(f"{path} is truncated or no Parquet file ({first}); {AGAIN}") from error
    return columns
