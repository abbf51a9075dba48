"""The fine-tuning tasks, loaded as ``datasets.Dataset``: generated from a seed and shipped as JSONL, or real ones.

``word-problems``: two to three dependent operations, written out, ending in "The answer is N.";
scored by exact match of N under greedy decoding. ``entailment``: does a claim follow from a fact;
scored by which of " yes", " no", " maybe" is likeliest as the next token.

The real tasks (:data:`REAL_TASKS`) come from the Hugging Face hub or from local files: :mod:`nlora_lab.tasks.external`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import shipped_folder
from nlora_lab.core.validation import check_choice
from nlora_lab.tasks.generated import DEFAULT_DIFFICULTY, DIFFICULTIES, TASKS, generate
from nlora_lab.tasks.glue import GLUE, WORDS
from nlora_lab.tasks.task import Item, Task

if TYPE_CHECKING:
    from datasets import Dataset
FIELDS = ("prompt", "target", "answer")
REAL_TASKS: dict[str, str] = {
    "gsm8k": "school problems in words, worked out (openai/gsm8k)",
    "metamath": "GSM8K's and MATH's problems in many wordings, for training (meta-math/MetaMathQA)",
    **{name: f"GLUE's {name}: {' and '.join(WORDS[m] for m in task.measures)}" for name, task in GLUE.items()},
    "own": "two columns of your own data: a file, a folder, or a dataset on the hub",
}
"""The tasks that are not generated, each with a line on what it is."""


def check_task(name: str, difficulty: str | None) -> None:
    """Raise :class:`InputError` for an unknown task or difficulty, and for a difficulty of a real task."""
    check_choice("task", name, [*TASKS, *REAL_TASKS])
    if difficulty is not None:
        check_choice("difficulty", difficulty, DIFFICULTIES)
        if name not in TASKS:
            raise InputError(
                f"difficulty={difficulty!r}: the task {name!r} has only its own; leave it out, "
                f"or choose one of: {', '.join(TASKS)}"
            )


def load_task(
    name: str = "word-problems", path: str | Path | None = None, difficulty: str | None = None, *,
    columns: str | None = None, train_rows: int | None = None, test_rows: int | None = None,
) -> Task:  # fmt: skip
    """The task called ``name``, at "easy", "medium" (default) or "hard" difficulty.

    The splits of a generated task are ``datasets.Dataset`` of 6,400, 200 and 200 rows. The default difficulty is read
    from the shipped files, the others are generated. ``path``: read the items from this folder instead,
    ``train.jsonl`` and ``test.jsonl`` with the fields ``prompt``, ``target`` and ``answer``;
    ``validation.jsonl`` or, where there is none, the last 5 % of the training items.

    For the real tasks (:data:`REAL_TASKS`), where ``path`` is a file, a folder or a hub id, and for the ``columns`` of
    "own", see :func:`nlora_lab.tasks.external.load_real`. ``train_rows`` and ``test_rows`` take the first so many rows.

    Raises :class:`InputError` for unknown names and for data that cannot be used.
    """
    check_task(name, difficulty)
    for what, rows in (("train_rows", train_rows), ("test_rows", test_rows)):
        if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 1):
            raise InputError(f"{what}={rows!r} must be a whole number of at least 1; leave it out for all")
    if columns is not None and name != "own":
        raise InputError(f"columns={columns!r}: the task {name!r} has its own; leave it out, or use task='own'")
    if name in TASKS:
        task = _load_generated(name, path, difficulty or DEFAULT_DIFFICULTY)
    else:
        from nlora_lab.tasks.external import load_real

        task = load_real(name, path, columns)
    return replace(task, train=_first(task.train, train_rows), test=_first(task.test, test_rows))


def _first(rows: Dataset, count: int | None) -> Dataset:
    return rows if count is None else rows.select(range(min(count, len(rows))))


def _load_generated(name: str, path: str | Path | None, level: str) -> Task:
    from datasets import Dataset

    rows: dict[str, list[Item]]
    if path is not None:
        level, rows = f"from {path}", _read_folder(Path(path))
    elif level == DEFAULT_DIFFICULTY:
        rows = _read_folder(shipped_folder("data") / "tasks" / name)
    else:
        rows = generate(name, level)
    labels = TASKS[name].labels
    if labels:
        for item in (item for items in rows.values() for item in items):
            check_choice("answer", item["answer"], labels)
    splits = {split: Dataset.from_list(items) for split, items in rows.items()}
    return Task(name, level, labels=labels, kind="choice" if labels else "text", **splits)


def first_items(name: str, count: int) -> list[Item]:
    """The first test items of a shipped task at its default difficulty, read without ``datasets``."""
    check_choice("task", name, TASKS)
    return _read(shipped_folder("data") / "tasks" / name / "test.jsonl")[:count]


def _read_folder(folder: Path) -> dict[str, list[Item]]:
    rows = {split: _read(folder / f"{split}.jsonl") for split in ("train", "test")}
    held = folder / "validation.jsonl"
    if held.exists():
        rows["validation"] = _read(held)
    else:
        cut = max(1, len(rows["train"]) // 20)
        if cut >= len(rows["train"]):
            raise InputError(f"{folder / 'train.jsonl'} has {len(rows['train'])} item; it takes at least 2")
        rows["train"], rows["validation"] = rows["train"][:-cut], rows["train"][-cut:]
    return rows


def _read(path: Path) -> list[Item]:
    """The items of a JSONL file; :class:`InputError` names file, line and what is missing."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() also splits inside strings
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); a task folder holds train.jsonl and test.jsonl") from error
    items = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            items.append({key: item[key] for key in FIELDS})
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is not JSON ({error})") from error
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number} needs the fields {', '.join(FIELDS)}; missing: {error}") from error
        if not all(isinstance(value, str) and value for value in items[-1].values()):
            raise InputError(f"{path}, line {number}: {', '.join(FIELDS)} must be text, and not empty")
    if not items:
        raise InputError(f"{path} is empty; it takes at least one item")
    return items
