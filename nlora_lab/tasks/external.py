"""The tasks that are not generated: GSM8K, MetaMathQA, GLUE, and a user's own data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.tasks.files import Part
from nlora_lab.tasks.final_answers import full_answer, marked_answer
from nlora_lab.tasks.glue import GLUE, HUB, glue_rows
from nlora_lab.tasks.gsm8k import GSM8K, METAMATH, gsm8k_rows, metamath_groups, metamath_rows
from nlora_lab.tasks.own import class_names, class_rows, find_columns, text_rows
from nlora_lab.tasks.sources import Source, open_source
from nlora_lab.tasks.task import Task

Row = dict[str, Any]
VALIDATION = (20, 500)  # one row in 20, and 500 at most
TEST = (10, 1000)  # where the data have no test split of their own


@dataclass(frozen=True)
class Reading:
    """How the parts of a split become rows; ``groups`` gives every row's group, which splitting keeps together.

    ``test``: the split that results are given for, by its possible names; none where the test rows may be held off.
    """

    convert: Callable[[Part], list[Row]]
    task: dict[str, Any]
    groups: Callable[[Part], list[str]] | None = None
    test: tuple[str, ...] = ()


def load_real(name: str, path: str | Path | None = None, columns: str | None = None) -> Task:
    """The real task called ``name``, from the hub or, with ``path``, from a file, a folder or another hub id.

    - "gsm8k": ``openai/gsm8k``. Files have the columns ``question`` and ``answer``, the final answer after "####". The
      calculator notes ``<<48/2=24>>`` are left out of the target.
    - "metamath": ``meta-math/MetaMathQA`` for training (``query``, ``response``); its test split is GSM8K's. A folder
      holds ``MetaMathQA-395K.json`` and GSM8K's test file.
    - GLUE's, such as "sst2": ``nyu-mll/glue``. A folder is ``glue`` or ``glue/sst2``. Its test split has no labels:
      ``test`` is its validation split, for MNLI the matched one.
    - "own": two columns of ``path``, found by their usual names or named by ``columns``. A column ``label`` holds
      classes, any other the text to generate, which is right if it is the same as a whole.

    Files are JSONL, JSON, CSV, TSV (without quoting) or Parquet, in a folder called by split: ``train.jsonl``,
    ``main/train-00000-of-00001.parquet``. Splits are the same every time. ``validation`` is that of the data for
    "gsm8k", "metamath" and "own", where there is one; else at most 5 % and at most 500 of the training rows, drawn with
    a fixed seed. A single file has no splits: test rows are held off in the same way before that, at most 10 % and at
    most 1,000; so they are where a folder or hub dataset for "metamath" or "own" has no test split. Rows of one prompt
    stay together, and for "metamath" those of one original question.

    Raises :class:`InputError`, naming file and row, for what cannot be read or used.
    """
    source = open_source(*_place(name, path))
    train = source.read(*(("metamathqa", "train") if name == "metamath" else ("train",)))
    reading = _own(train, columns) if name == "own" else READINGS[name]
    rows = {"train": _rows(reading, train)}
    groups = _groups(reading, train, rows["train"])
    rows["test"] = _test_rows(name, source, reading)
    if not rows["test"]:
        rows["train"], groups, rows["test"] = hold_out(rows["train"], groups, TEST, "test", source.where)
    if "validation" in source.splits and "validation" not in reading.test:
        rows["validation"] = _rows(reading, source.read("validation"))
    else:
        rows["train"], _, rows["validation"] = hold_out(rows["train"], groups, VALIDATION, "validation", source.where)
    from datasets import Dataset

    return Task(name, f"from {source.where}", **reading.task, **{s: Dataset.from_list(r) for s, r in rows.items()})


def _place(name: str, path: str | Path | None) -> tuple[str | Path, str | None, tuple[str, ...]]:
    """What to open: the place, its configuration on the hub, and the sub-folders to look in."""
    if name == "own":
        if path is None:
            raise InputError("task='own' needs data: a file, a folder of train.jsonl and test.jsonl, or a hub id")
        return path, None, ("data",)
    if name in GLUE:
        return path or HUB, name, (name, "data")
    return (path or GSM8K, "main", ("main",)) if name == "gsm8k" else (path or METAMATH, None, ("main", "gsm8k"))


def _own(train: Sequence[Part], columns: str | None) -> Reading:
    pair = find_columns(train[0], columns)
    if pair[1] != "label":
        return Reading(partial(text_rows, columns=pair), {"final": full_answer})
    labels = class_names(train, "label")
    return Reading(partial(class_rows, columns=pair, labels=labels), {"kind": "classes", "labels": labels})


def _glue(name: str) -> Reading:
    task, kind = GLUE[name], "classes" if GLUE[name].labels else "score"
    test = ("validation_matched", "validation") if name == "mnli" else ("validation",)
    kept = {"kind": kind, "labels": task.labels, "measures": task.measures}
    return Reading(partial(glue_rows, name), kept, test=test)


READINGS: dict[str, Reading] = {
    "gsm8k": Reading(gsm8k_rows, {"final": marked_answer}, test=("test",)),
    "metamath": Reading(metamath_rows, {"final": marked_answer}, groups=metamath_groups),
    **{name: _glue(name) for name in GLUE},
}


def _rows(reading: Reading, parts: Sequence[Part]) -> list[Row]:
    return [row for part in parts for row in reading.convert(part)]


def _groups(reading: Reading, parts: Sequence[Part], rows: Sequence[Row]) -> list[str]:
    if reading.groups is not None:
        return [group for part in parts for group in reading.groups(part)]
    return [row["prompt"] if "prompt" in row else f"{row['text']}\n{row['pair']}" for row in rows]


def _test_rows(name: str, source: Source, reading: Reading) -> list[Row]:
    """The rows of the test split, or none where they are to be held off the training rows."""
    if source.kind == "file":
        return []
    if name == "metamath" and source.kind == "hub":
        return _rows(READINGS["gsm8k"], open_source(GSM8K, "main").read("test"))
    if not reading.test and "test" not in source.splits:
        return []
    return _rows(READINGS["gsm8k"] if name == "metamath" else reading, source.read(*reading.test or ("test",)))


def hold_out(
    rows: Sequence[Row], groups: Sequence[str], share: tuple[int, int], split: str, where: str
) -> tuple[list[Row], list[str], list[Row]]:
    """The rows that stay, their groups, and those held off: one in ``share[0]``, ``share[1]`` at most, at least one.

    Drawn with a fixed seed, whole groups at a time; all stay in their order. Raises :class:`InputError` for rows of
    only one group.
    """
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    if len(members) < 2:
        raise InputError(
            f"{where} has {len(rows)} row{'s' if len(rows) > 1 else ''} of one prompt to train on, "
            f"and {split} rows are held off; it takes at least 2 that differ"
        )
    wanted, held = min(max(1, len(rows) // share[0]), share[1]), set[int]()
    for group in Random(f"{split} rows").sample(sorted(members), len(members)):
        if len(held) + len(members[group]) <= wanted:
            held.update(members[group])
        if len(held) == wanted:
            break
    if not held:
        smallest = min(members.values(), key=len)
        held = set(smallest)
    kept = [i for i in range(len(rows)) if i not in held]
    return [rows[i] for i in kept], [groups[i] for i in kept], [rows[i] for i in sorted(held)]


def few_shot(task: Task, k: int) -> str:
    """The first ``k`` training examples, worked out, to put before a prompt: how base models are evaluated.

    Raises :class:`InputError` for a task whose answers are not text, and for more examples than there are.
    """
    if task.kind not in ("text", "choice"):
        raise InputError(f"shots={k}: {task.name} is answered by a classification head, which takes no examples; use 0")
    if not isinstance(k, int) or isinstance(k, bool) or not 0 <= k <= len(task.train):
        raise InputError(f"shots={k!r} must be a whole number from 0 to {len(task.train)}, the training rows there are")
    return "".join(f"{row['prompt']}{row['target']}\n\n" for row in task.train.select(range(k)))
