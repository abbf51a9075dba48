"""Loading the tasks that are not generated: GSM8K, MetaMathQA, GLUE, and your own data.

Formats:

- "gsm8k": ``openai/gsm8k``. The columns are ``question`` and ``answer``, with the final answer after "####". The
  calculator notes ``<<48/2=24>>`` are left out of the target.
- "metamath": ``meta-math/MetaMathQA`` for training, with the columns ``query`` and ``response``. Its test split is that
  of GSM8K. A folder holds ``MetaMathQA-395K.json`` and the test file of GSM8K.
- GLUE, such as "sst2": ``nyu-mll/glue``. A folder is ``glue`` or ``glue/sst2``. The test split of GLUE has no labels.
  So ``test`` is its validation split, for MNLI the matched one.
- "own": two columns of your data, found by their usual names or named by ``columns``. A column ``label`` holds
  classes. Any other column holds text to generate. The text is right if it equals the target.

Files are JSONL, JSON, CSV, TSV (without quoting) or Parquet. In a folder they are named by split: ``train.jsonl``,
``main/train-00000-of-00001.parquet``.

Splits, which are the same every time:

- ``validation`` is the validation split of the data for "gsm8k", "metamath" and "own", if they have one. Otherwise
  training rows are held out with a fixed seed: 5 %, at most 500.
- A single file has no splits. Test rows are held out first: 10 %, at most 1,000. The same is done for a folder or hub
  dataset without a test split, for "metamath" and "own".
- Rows with the same prompt stay in the same split. For "metamath" the same holds for all wordings of one problem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.tasks.final_answers import full_answer, marked_answer
from nlora_lab.tasks.glue import GLUE, GLUE_ID, glue_rows
from nlora_lab.tasks.gsm8k import GSM8K_ID, METAMATH_ID, gsm8k_rows, metamath_groups, metamath_rows
from nlora_lab.tasks.own import class_names, class_rows, find_columns, text_rows
from nlora_lab.tasks.sources import Part, Source, open_source
from nlora_lab.tasks.task import Row, Task, make_rows

VALIDATION_SHARE = (20, 500)  # one row in 20, at most 500
TEST_SHARE = (10, 1000)


@dataclass(frozen=True)
class TaskFormat:
    """How the rows of an external task are made from its data.

    Attributes:
        rows: makes the rows of the task from a part of a split.
        fields: what ``Task`` needs besides name and rows, such as ``kind`` and ``labels``.
        groups: returns a group for each row of a part. A group is never divided between splits. Without this function
            the rows with the same prompt are a group.
        test_splits: the splits to report results on, in order of preference. Empty if test rows may be held out.
    """

    rows: Callable[[Part], list[Row]]
    fields: dict[str, Any]
    groups: Callable[[Part], list[str]] | None = None
    test_splits: tuple[str, ...] = ()


def load_external(name: str, path: str | Path | None = None, columns: str | None = None) -> Task:
    """Load an external task from the hub, or from your files. The docstring of this module describes both.

    Args:
        name: "gsm8k", "metamath", a name in ``GLUE``, or "own".
        path: a file, a folder or a hub id to read the rows from. Required for "own".
        columns: the two columns of the task "own", separated by a comma. By default they are found by their names.

    Returns:
        The task.

    Raises:
        InputError: the data cannot be read or used. The message names file and row.
    """
    source = open_source(*_place(name, path))
    train = source.read(*(("metamathqa", "train") if name == "metamath" else ("train",)))
    task_format = _own_format(train, columns) if name == "own" else FORMATS[name]
    rows = {"train": _rows(task_format, train)}
    groups = _groups(task_format, train, rows["train"])
    rows["test"] = _test_rows(name, source, task_format)
    if not rows["test"]:
        rows["train"], groups, rows["test"] = hold_out(rows["train"], groups, TEST_SHARE, "test", source.where)
    if "validation" in source.splits and "validation" not in task_format.test_splits:
        rows["validation"] = _rows(task_format, source.read("validation"))
    else:
        rows["train"], _, rows["validation"] = hold_out(
            rows["train"], groups, VALIDATION_SHARE, "validation", source.where
        )
    splits = {split: make_rows(split_rows) for split, split_rows in rows.items()}
    return Task(name, f"from {source.where}", **task_format.fields, **splits)


def _place(name: str, path: str | Path | None) -> tuple[str | Path, str | None, tuple[str, ...]]:
    """Return what ``open_source`` takes: the place, its configuration on the hub, and the subfolders to look in."""
    if name == "own":
        if path is None:
            raise InputError("task='own' needs data: a file, a folder of train.jsonl and test.jsonl, or a hub id")
        return path, None, ("data",)
    if name in GLUE:
        return path or GLUE_ID, name, (name, "data")
    return (path or GSM8K_ID, "main", ("main",)) if name == "gsm8k" else (path or METAMATH_ID, None, ("main", "gsm8k"))


def _own_format(train: Sequence[Part], columns: str | None) -> TaskFormat:
    pair = find_columns(train[0], columns)
    if pair[1] != "label":
        return TaskFormat(partial(text_rows, columns=pair), {"final": full_answer})
    labels = class_names(train, "label")
    return TaskFormat(partial(class_rows, columns=pair, labels=labels), {"kind": "classes", "labels": labels})


def _glue_format(name: str) -> TaskFormat:
    task = GLUE[name]
    fields = {"kind": "classes" if task.labels else "score", "labels": task.labels, "measures": task.measures}
    test_splits = ("validation_matched", "validation") if name == "mnli" else ("validation",)
    return TaskFormat(partial(glue_rows, name), fields, test_splits=test_splits)


FORMATS: dict[str, TaskFormat] = {
    "gsm8k": TaskFormat(gsm8k_rows, {"final": marked_answer}, test_splits=("test",)),
    "metamath": TaskFormat(metamath_rows, {"final": marked_answer}, groups=metamath_groups),
    **{name: _glue_format(name) for name in GLUE},
}


def _rows(task_format: TaskFormat, parts: Sequence[Part]) -> list[Row]:
    return [row for part in parts for row in task_format.rows(part)]


def _groups(task_format: TaskFormat, parts: Sequence[Part], rows: Sequence[Row]) -> list[str]:
    if task_format.groups is not None:
        return [group for part in parts for group in task_format.groups(part)]
    return [row["prompt"] if "prompt" in row else f"{row['text']}\n{row['pair']}" for row in rows]


def _test_rows(name: str, source: Source, task_format: TaskFormat) -> list[Row]:
    """Return the rows of the test split, or no rows if they must be held out from the training rows."""
    if source.kind == "file":
        return []
    if name == "metamath" and source.kind == "hub":
        return _rows(FORMATS["gsm8k"], open_source(GSM8K_ID, "main").read("test"))
    if not task_format.test_splits and "test" not in source.splits:
        return []
    parts = source.read(*task_format.test_splits or ("test",))
    return _rows(FORMATS["gsm8k"] if name == "metamath" else task_format, parts)


def hold_out(
    rows: Sequence[Row], groups: Sequence[str], share: tuple[int, int], split: str, where: str
) -> tuple[list[Row], list[str], list[Row]]:
    """Hold out some rows, drawn with a fixed seed. Groups stay together, and rows keep their order.

    Args:
        rows: the training rows.
        groups: the group of each row.
        share: one row in ``share[0]`` is held out, but at most ``share[1]`` rows, and at least one.
        split: the name of the split that the rows are held out for. It seeds the draw.
        where: names the data in the error message.

    Returns:
        The rows that stay, their groups, and the rows that are held out.

    Raises:
        InputError: all rows are in one group.
    """
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    if len(members) < 2:
        raise InputError(
            f"{where} has {len(rows)} row{'s' if len(rows) > 1 else ''} of one prompt to train on, "
            f"and {split} rows are held out; it takes at least 2 rows with different prompts"
        )
    size, held_out = min(max(1, len(rows) // share[0]), share[1]), set[int]()
    for group in Random(f"{split} rows").sample(sorted(members), len(members)):
        if len(held_out) + len(members[group]) <= size:
            held_out.update(members[group])
        if len(held_out) == size:
            break
    if not held_out:  # every group is larger than that
        smallest = min(members.values(), key=len)
        held_out = set(smallest)
    staying = [i for i in range(len(rows)) if i not in held_out]
    return [rows[i] for i in staying], [groups[i] for i in staying], [rows[i] for i in sorted(held_out)]
