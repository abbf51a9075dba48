"""A user's own data: which two columns hold it, and what it asks of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.tasks.files import Part

USUAL = (
    ("prompt", "target"), ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"),
    ("question", "answer"), ("instruction", "output"), ("text", "label"),
)  # fmt: skip
MOST_CLASSES = 200


def find_columns(part: Part, columns: str | None) -> tuple[str, str]:
    """The two columns: those that ``columns`` names with a comma, or the first pair of usual names that is there."""
    if columns is None:
        for first, second in USUAL:
            if first in part.columns and second in part.columns:
                return first, second
        raise InputError(
            f"{part.where} has the columns {', '.join(map(str, part.columns)) or 'none'}, none of the usual pairs; "
            "name two of them, such as columns='question,answer'"
        )
    names = [name.strip() for name in columns.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise InputError(f"columns={columns!r} must name two columns with a comma: 'question,answer'")
    for name in names:
        part.column(name)
    return names[0], names[1]


def text_rows(part: Part, columns: tuple[str, str]) -> list[dict[str, str]]:
    """``prompt``, ``target`` and ``answer`` (the whole target) of every row.

    A space is put between prompt and target where neither has white space there. What Alpaca's form of data has in a
    column ``input`` beside ``instruction`` is put below the instruction.
    """
    prompts, targets = part.texts(columns[0]), part.texts(columns[1])
    if columns[0] == "instruction" and "input" in part.columns:
        more = [cell or "" for cell in part.column("input")]
        prompts = [f"{p}\n{m}" if m else p for p, m in zip(prompts, more, strict=True)]
    return [
        {"prompt": p, "target": t if p[-1].isspace() or t[0].isspace() else f" {t}", "answer": t.strip()}
        for p, t in zip(prompts, targets, strict=True)
    ]


def class_names(parts: Sequence[Part], column: str) -> tuple[str, ...]:
    """The names of the classes in a column: the hub's where it says them, else the values, sorted."""
    if column == "label" and parts[0].names:
        return parts[0].names
    values = {class_of(part, row, cell) for part in parts for row, cell in enumerate(part.column(column), start=1)}
    numbers = all(re.fullmatch("-?[0-9]+", value) for value in values)
    names = tuple(sorted(values, key=int) if numbers else sorted(values))
    if not 2 <= len(names) <= MOST_CLASSES:
        raise InputError(
            f"{parts[0].where}: column {column!r} holds {len(names)} different "
            f"value{'s' if len(names) > 1 else ''}; classes take 2 to {MOST_CLASSES}, "
            "and a text to be generated a column of another name, such as 'answer'"
        )
    return names


def class_of(part: Part, row: int, cell: Any) -> str:
    """A cell's class as text; :class:`InputError` for one that is neither a whole number nor text."""
    whole = isinstance(cell, int) and not isinstance(cell, bool)
    if not whole and not (isinstance(cell, str) and cell.strip()):
        raise InputError(f"{part.where}, row {row}: label={cell!r} must be a whole number or text, and not blank")
    return str(cell).strip()


def class_rows(part: Part, columns: tuple[str, str], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """``text``, ``pair`` (blank) and ``label`` (a number) of every row; :class:`InputError` for an unknown class."""
    texts, rows = part.texts(columns[0]), []
    for row, (text, cell) in enumerate(zip(texts, part.column(columns[1]), strict=True), start=1):
        said = class_of(part, row, cell)
        if part.names and isinstance(cell, int) and 0 <= cell < len(labels):
            said = labels[cell]  # the hub keeps numbers, and their names apart
        if said not in labels:
            raise InputError(
                f"{part.where}, row {row}: label={cell!r} is none of the training split's: {', '.join(labels)}; "
                "correct it, or leave the row out"
            )
        rows.append({"text": text, "pair": "", "label": labels.index(said)})
    return rows
