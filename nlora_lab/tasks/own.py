"""The task "own": which two columns of your data hold it, and whether it asks for text or for a class."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.tasks.sources import Part

USUAL_COLUMNS = (
    ("prompt", "target"), ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"),
    ("question", "answer"), ("instruction", "output"), ("text", "label"),
)  # fmt: skip
MOST_CLASSES = 200


def find_columns(part: Part, columns: str | None) -> tuple[str, str]:
    """Find the two columns of a task.

    Args:
        part: rows of the data.
        columns: the names of two columns, separated by a comma. ``None`` takes the first pair of ``USUAL_COLUMNS``.

    Returns:
        The names of the two columns.

    Raises:
        InputError: the data do not have the columns, or ``columns`` does not name two.
    """
    if columns is None:
        for first, second in USUAL_COLUMNS:
            if first in part.columns and second in part.columns:
                return first, second
        raise InputError(
            f"{part.where} has the columns {', '.join(map(str, part.columns)) or 'none'}, none of the usual pairs; "
            "name two of them, such as columns='question,answer'"
        )
    names = [name.strip() for name in columns.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise InputError(f"columns={columns!r} must name two columns, separated by a comma: 'question,answer'")
    for name in names:
        part.column(name)
    return names[0], names[1]


def text_rows(part: Part, columns: tuple[str, str]) -> list[dict[str, str]]:
    """Make rows of ``prompt``, ``target`` and ``answer`` (the complete target) from two columns of text.

    If neither prompt nor target has white space where they meet, a space is put between them. Data in the form of
    Alpaca have a column ``input`` beside ``instruction``. Its text goes below the instruction.
    """
    prompts, targets = part.texts(columns[0]), part.texts(columns[1])
    if columns[0] == "instruction" and "input" in part.columns:
        inputs = [_input_text(part, row, cell) for row, cell in enumerate(part.column("input"), start=1)]
        prompts = [f"{p}\n{i}" if i.strip() else p for p, i in zip(prompts, inputs, strict=True)]
    return [
        {"prompt": p, "target": t if p[-1].isspace() or t[0].isspace() else f" {t}", "answer": t.strip()}
        for p, t in zip(prompts, targets, strict=True)
    ]


def _input_text(part: Part, row: int, cell: Any) -> str:
    """The text of a cell of ``input``. A missing cell is "", and a number counts as its digits."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, float) and math.isnan(cell):  # what pandas writes for a missing cell
        return ""
    if isinstance(cell, float) and math.isinf(cell):
        raise InputError(
            f"{part.where}, row {row}: input={cell!r} must be text, a finite number, or left out; "
            "write a number larger than 1e308 as text"
        )
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        raise InputError(f"{part.where}, row {row}: input={cell!r} must be text, a number, or left out")
    return str(cell)


def class_names(parts: Sequence[Part], column: str) -> tuple[str, ...]:
    """Return the names of the classes in a column.

    Args:
        parts: the training rows.
        column: the name of the column.

    Returns:
        The names that the hub gives, or else the different values of the column, sorted.

    Raises:
        InputError: the column holds fewer than 2 or more than 200 classes, or a cell cannot be a class.
    """
    if column == "label" and parts[0].label_names:
        return parts[0].label_names
    values = {class_of(part, row, cell) for part in parts for row, cell in enumerate(part.column(column), start=1)}
    are_numbers = all(re.fullmatch("-?[0-9]+", value) for value in values)
    names = tuple(sorted(values, key=int) if are_numbers else sorted(values))
    if not 2 <= len(names) <= MOST_CLASSES:
        raise InputError(
            f"{parts[0].where}: column {column!r} holds {len(names)} different "
            f"value{'s' if len(names) > 1 else ''}; use 2 to {MOST_CLASSES} classes, "
            "or rename the column, such as to 'answer', if it holds text to generate"
        )
    return names


LONGEST_LABEL = 200  # characters in the name of a class


def class_of(part: Part, row: int, cell: Any) -> str:
    """Return the class in a cell as text. An ``InputError`` names a cell that is neither a whole number nor text."""
    is_number = isinstance(cell, int) and not isinstance(cell, bool)
    if not is_number and not (isinstance(cell, str) and cell.strip()):
        raise InputError(f"{part.where}, row {row}: label={cell!r} must be a whole number or text, and not blank")
    if len(str(cell)) > LONGEST_LABEL:
        raise InputError(
            f"{part.where}, row {row}: label={str(cell)[:40]!r} has {len(str(cell)):,} characters, and the name of a "
            f"class has {LONGEST_LABEL} at most; name another column"
        )
    return str(cell).strip()


def class_rows(part: Part, columns: tuple[str, str], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Make rows of ``text``, ``pair`` ("") and ``label`` (the number of the class).

    Args:
        part: rows of the data.
        columns: the column of the text, and the column of the class.
        labels: the names of the classes in the order of their numbers.

    Returns:
        One row per row of the part.

    Raises:
        InputError: a class is not among the labels. The message names its row.
    """
    texts, rows = part.texts(columns[0]), []
    for row, (text, cell) in enumerate(zip(texts, part.column(columns[1]), strict=True), start=1):
        label = class_of(part, row, cell)
        if part.label_names and isinstance(cell, int) and 0 <= cell < len(labels):
            label = labels[cell]  # the hub stores the number of a class, and the names elsewhere
        if label not in labels:
            raise InputError(
                f"{part.where}, row {row}: label={cell!r} is not one of the classes of the training split: "
                f"{', '.join(labels)}; correct it, or leave the row out"
            )
        rows.append({"text": text, "pair": "", "label": labels.index(label)})
    return rows
