"""The tasks by name: which tasks exist, and how to load one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice, check_whole_number
from nlora_lab.tasks.external import load_external
from nlora_lab.tasks.generated import DIFFICULTIES, TASKS, load_generated
from nlora_lab.tasks.glue import GLUE, MEASURE_NAMES
from nlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset

EXTERNAL_TASKS: dict[str, str] = {
    "gsm8k": "school problems in words, worked out (openai/gsm8k)",
    "metamath": "problems of GSM8K and MATH in many wordings, for training (meta-math/MetaMathQA)",
    **{name: f"GLUE's {name}: {' and '.join(MEASURE_NAMES[m] for m in task.measures)}" for name, task in GLUE.items()},
    "own": "two columns of your own data: a file, a folder, or a dataset on the hub",
}
"""The tasks that are not generated, each with a description in one line."""


def check_task(name: str, difficulty: str | None) -> None:
    """Check that a task exists and that it has the difficulty.

    Args:
        name: a name in ``TASKS`` or ``EXTERNAL_TASKS``.
        difficulty: "easy", "medium" or "hard" for a generated task. ``None`` fits every task.

    Raises:
        InputError: the task or the difficulty is not known, or a difficulty is given for an external task.
    """
    check_choice("task", name, [*TASKS, *EXTERNAL_TASKS])
    if difficulty is not None:
        check_choice("difficulty", difficulty, DIFFICULTIES)
        if name not in TASKS:
            raise InputError(
                f"difficulty={difficulty!r}: the task {name!r} has no difficulties; leave it out, "
                f"or choose one of: {', '.join(TASKS)}"
            )


def load_task(
    name: str = "word-problems",
    path: str | Path | None = None,
    difficulty: str | None = None,
    *,
    columns: str | None = None,
    train_rows: int | None = None,
    test_rows: int | None = None,
) -> Task:
    """Load a task by its name.

    The generated tasks (``TASKS``) have 6,400 training, 200 validation and 200 test rows. Their default difficulty is
    read from the shipped files, the others are generated. The external tasks (``EXTERNAL_TASKS``) come from the hub,
    or from your files. The module ``nlora_lab.tasks.external`` describes their formats and splits. All splits are the
    same every time.

    Args:
        name: a name in ``TASKS`` or ``EXTERNAL_TASKS``.
        path: where the rows come from instead. For an external task: a file, a folder or a hub id. For a generated
            task: a folder with ``train.jsonl`` and ``test.jsonl``, in which every line has the fields ``prompt``,
            ``target`` and ``answer``. If it has no ``validation.jsonl``, the last 5 % of the training rows are held
            out.
        difficulty: "easy", "medium" (the default) or "hard", for a generated task only.
        columns: the two columns of the task "own", separated by a comma: "question,answer". By default they are found
            by their usual names.
        train_rows: take only the first N training rows.
        test_rows: take only the first N test rows.

    Returns:
        The task, with its splits as ``datasets.Dataset``.

    Raises:
        InputError: a name is not known, or the data cannot be read or used. The message names file and row.
    """
    check_task(name, difficulty)
    for parameter, rows in (("train_rows", train_rows), ("test_rows", test_rows)):
        if rows is not None:
            check_whole_number(parameter, rows, remedy="leave it out for all rows")
    if columns is not None and name != "own":
        raise InputError(f"columns={columns!r}: the task {name!r} has fixed columns; leave it out, or use task='own'")
    task = load_generated(name, path, difficulty) if name in TASKS else load_external(name, path, columns)
    return replace(task, train=_first(task.train, train_rows), test=_first(task.test, test_rows))


def _first(rows: Dataset, n: int | None) -> Dataset:
    return rows if n is None else rows.select(range(min(n, len(rows))))
