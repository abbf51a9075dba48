"""The fine-tuning tasks, loaded as ``datasets.Dataset``: generated from a seed and shipped as JSONL, or real ones.

``word-problems``: two to three dependent operations, written out, ending in "The answer is N.";
scored by exact match of N under greedy decoding. ``entailment``: does a claim follow from a fact;
scored by which of " yes", " no", " maybe" is likeliest as the next token.

The real tasks (:data:`REAL_TASKS`) come from the Hugging Face hub or from local files: :mod:`nlora_lab.real_tasks`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

from nlora_lab.errors import InputError, one_of
from nlora_lab.files import shipped
from nlora_lab.finals import final_number, whole_answer
from nlora_lab.glue import GLUE, WORDS
from nlora_lab.world import (
    CONTAINERS,
    GAIN_VERBS,
    LOSS_VERBS,
    THINGS,
    count,
    people,
    plural,
)

if TYPE_CHECKING:
    from datasets import Dataset

SIZES = {"train": 6400, "validation": 200, "test": 200}  # 6,400 = 400 steps of 16, each item once
FIELDS = ("prompt", "target", "answer")
DIFFICULTIES = ("easy", "medium", "hard")
LARGEST = 60  # no value on the way is above this: the embedded model's sums are certain up to there
Item = dict[str, str]


Kind = Literal["text", "choice", "classes", "score"]


@dataclass(frozen=True)
class Task:
    """A task with its three splits, and how a model's answers to it are read and measured.

    ``kind`` says what a model is asked for:

    - "text": an answer in words, generated; ``final`` reads the final answer from it.
    - "choice": which of ``labels`` is likeliest as the next token.
    - "classes": one of ``labels``, by a classification head.
    - "score": a number, by a head with one output.

    The rows of the first two have ``prompt``, ``target`` and ``answer``, all text; those of the last two ``text``,
    ``pair`` (the second text, blank where there is none) and ``label`` (the number of the class, or the score).

    ``chat``: prompts go through the tokenizer's chat template, where it has one. ``measures``: what
    :func:`nlora_lab.evaluation.measure` gives.
    """

    name: str
    difficulty: str
    train: Dataset = field(repr=False)
    validation: Dataset = field(repr=False)
    test: Dataset = field(repr=False)
    labels: tuple[str, ...] = ()
    kind: Kind = "text"
    chat: bool = False
    final: Callable[[str], str | None] = field(default=final_number, repr=False)
    measures: tuple[str, ...] = ("accuracy",)

    @property
    def head(self) -> int:
        """How many outputs the head of a model needs for it: 0 for a language model's own head."""
        return {"text": 0, "choice": 0, "classes": len(self.labels), "score": 1}[self.kind]

    @property
    def metric(self) -> str:
        """What is measured, in words; the first of several is the one to compare by."""
        if self.kind == "choice":
            return "accuracy of the next token"
        if self.kind == "text":
            return f"exact match of the {'whole answer' if self.final is whole_answer else 'final number'}"
        return " and ".join(WORDS[name] for name in self.measures)


@dataclass(frozen=True)
class Recipe:
    """How a task's items are made: ``make(rng, difficulty)`` draws one."""

    make: Callable[[Random, str], Item]
    labels: tuple[str, ...] = ()


def word_problem(rng: Random, difficulty: str) -> Item:
    """One story problem; 2, 2–3 or 3–4 operations for easy, medium, hard."""
    operations = {"easy": (2, 2), "medium": (2, 3), "hard": (3, 4)}[difficulty]
    while True:
        item = _try_word_problem(rng, rng.randint(*operations))
        if item is not None:
            return item


def _try_word_problem(rng: Random, operations: int) -> Item | None:
    """A problem with exactly that many operations, or None where the numbers ran out of range."""
    who, *others = people(rng, operations + 1)
    thing, steps = rng.choice(THINGS), []
    if rng.random() < 0.4:
        boxes, each = rng.randint(2, 6), rng.randint(2, 9)
        value = boxes * each
        steps.append(f"{boxes}*{each}={value}.")
        text = f"{who.name} has {count(boxes, rng.choice(CONTAINERS))} with {count(each, thing)} in each."
    else:
        value = rng.randint(3, 30)
        text = f"{who.name} has {count(value, thing)}."
    while len(steps) < operations:
        # the last two kinds turn to somebody else, so they only come at the end
        last = len(steps) == operations - 1
        other, kind, before = others.pop(), rng.randrange(4 if last else 2), value
        if kind == 0:
            n = rng.randint(1, 12)
            value += n
            text += f" {who.they.capitalize()} {rng.choice(GAIN_VERBS)} {n} more."
            steps.append(f"{before}+{n}={value}.")
        elif kind == 1:
            n = rng.randint(1, 12)
            value -= n
            loss = rng.choice([*(f"{v} {n} of them" for v in LOSS_VERBS), f"gives {n} to {other.name}"])
            text += f" {who.they.capitalize()} {loss}."
            steps.append(f"{before}-{n}={value}.")
        elif kind == 2:
            n = rng.randint(1, 12)
            value += n
            text += f" {other.name} has {n} more than {who.name}."
            steps.append(f"{before}+{n}={value}.")
            who = other
        else:
            value *= 2
            text += f" {other.name} has twice as many."
            steps.append(f"2*{before}={value}.")
            who = other
        if not 1 <= value <= LARGEST:
            return None
    prompt = f"{text} Q: How many {plural(thing)} does {who.name} have? A:"
    return {"prompt": prompt, "target": f" {' '.join(steps)} The answer is {value}.", "answer": str(value)}


def entailment(rng: Random, difficulty: str) -> Item:
    """Is a claim true, given a fact about a number: "yes", "no", or "maybe" where it leaves that open.

    Fact and claim say "more than" or "less than" some number. If Ana has more than 20 pears, then it
    is true that she has more than 15, false that she has less than 18, and open whether she has more
    than 30. easy: the fact says "more than" and the numbers are at least 6 apart. medium: at least 2
    apart. hard: the fact says "more than" or "less than". The answer is drawn first, each with equal
    chance.
    """
    answer = rng.choice(("yes", "no", "maybe"))
    who, thing = people(rng, 1)[0], rng.choice(THINGS)
    above = difficulty != "hard" or rng.random() < 0.5  # the fact says "more than"
    known = rng.randint(12, 48)
    claims_above = above == (answer == "yes") if answer != "maybe" else rng.random() < 0.5
    # 1 apart would leave no whole number between "more than 20" and "less than 21"
    apart = rng.randint(6 if difficulty == "easy" else 2, 11)
    # a claim is settled if its number lies on the known side: below for "more than", above for "less than"
    bound = known - apart if above == (answer != "maybe") else known + apart
    fact, claim = _amount(who.name, above, known, thing), _amount(who.name, claims_above, bound, thing)
    return {"prompt": f"{fact} Claim: {claim} True? A:", "target": f" {answer}", "answer": answer}


def _amount(name: str, above: bool, number: int, thing: str) -> str:
    return f"{name} has {'more' if above else 'less'} than {number} {plural(thing)}."


TASKS: dict[str, Recipe] = {
    "word-problems": Recipe(word_problem),
    "entailment": Recipe(entailment, labels=("yes", "no", "maybe")),
}
DEFAULT_DIFFICULTY = "medium"
REAL_TASKS: dict[str, str] = {
    "gsm8k": "school problems in words, worked out (openai/gsm8k)",
    "metamath": "GSM8K's and MATH's problems in many wordings, for training (meta-math/MetaMathQA)",
    **{name: f"GLUE's {name}: {' and '.join(WORDS[m] for m in task.measures)}" for name, task in GLUE.items()},
    "own": "two columns of your own data: a file, a folder, or a dataset on the hub",
}
"""The tasks that are not generated, each with a line on what it is."""


def generate(name: str, difficulty: str = DEFAULT_DIFFICULTY) -> dict[str, list[Item]]:
    """All splits of a task, the same every time; no prompt occurs twice, within or across splits."""
    recipe = TASKS[name]
    rng = Random(f"{name}-{difficulty}")
    seen: set[str] = set()

    def fresh() -> Iterator[Item]:
        while True:
            item = recipe.make(rng, difficulty)
            if item["prompt"] not in seen:
                seen.add(item["prompt"])
                yield item

    stream = fresh()
    return {split: [next(stream) for _ in range(n)] for split, n in reversed(SIZES.items())}


def to_jsonl(items: list[Item]) -> str:
    """One JSON object a line, keys in order, newline at the end."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def write_tasks(out: Path) -> None:
    """Write every task at its default difficulty to ``out/<task>/<split>.jsonl`` (``make tasks``)."""
    for name in TASKS:
        (out / name).mkdir(parents=True, exist_ok=True)
        for split, items in generate(name).items():
            (out / name / f"{split}.jsonl").write_text(to_jsonl(items), encoding="utf-8", newline="\n")


def check_task(name: str, difficulty: str | None) -> None:
    """Raise :class:`InputError` for an unknown task or difficulty, and for a difficulty of a real task."""
    one_of("task", name, [*TASKS, *REAL_TASKS])
    if difficulty is not None:
        one_of("difficulty", difficulty, DIFFICULTIES)
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
    "own", see :func:`nlora_lab.real_tasks.load_real`. ``train_rows`` and ``test_rows`` take the first so many rows.

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
        from nlora_lab.real_tasks import load_real

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
        rows = _read_folder(shipped("data") / "tasks" / name)
    else:
        rows = generate(name, level)
    labels = TASKS[name].labels
    if labels:
        for item in (item for items in rows.values() for item in items):
            one_of("answer", item["answer"], labels)
    splits = {split: Dataset.from_list(items) for split, items in rows.items()}
    return Task(name, level, labels=labels, kind="choice" if labels else "text", **splits)


def first_items(name: str, count: int) -> list[Item]:
    """The first test items of a shipped task at its default difficulty, read without ``datasets``."""
    one_of("task", name, TASKS)
    return _read(shipped("data") / "tasks" / name / "test.jsonl")[:count]


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
