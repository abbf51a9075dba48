"""The generated tasks: drawn from a seed, and shipped as JSONL at the default difficulty.

``word-problems`` has two to four dependent operations, written out and followed by "The answer is N.". A model is
scored by exact match of N under greedy decoding. ``entailment`` asks whether a claim follows from a fact. A model is
scored by which of " yes", " no" and " maybe" is likeliest as the next token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import shipped_folder
from nlora_lab.core.validation import check_choice
from nlora_lab.tasks.sources import json_lines, read_text
from nlora_lab.tasks.task import Item, Task, make_rows
from nlora_lab.tasks.vocabulary import CONTAINERS, GAIN_VERBS, LOSS_VERBS, THINGS, count, people, plural

SIZES = {"train": 6400, "validation": 200, "test": 200}  # 6,400 = 400 steps of 16 rows, each row once
DIFFICULTIES = ("easy", "medium", "hard")
DEFAULT_DIFFICULTY = "medium"
LARGEST = 60  # the largest value in a word problem: the embedded model adds up to here without mistakes
FIELDS = ("prompt", "target", "answer")


@dataclass(frozen=True)
class TaskGenerator:
    """How the items of a generated task are drawn.

    Attributes:
        make: ``make(rng, difficulty)`` draws one item.
        labels: the answers to choose from. Empty if the answer is generated text.
    """

    make: Callable[[Random, str], Item]
    labels: tuple[str, ...] = ()


def word_problem(rng: Random, difficulty: str) -> Item:
    """Draw a story problem with 2 (easy), 2 to 3 (medium) or 3 to 4 (hard) operations."""
    operations = {"easy": (2, 2), "medium": (2, 3), "hard": (3, 4)}[difficulty]
    while True:
        item = _try_word_problem(rng, rng.randint(*operations))
        if item is not None:
            return item


def _try_word_problem(rng: Random, operations: int) -> Item | None:
    """Draw a problem with this number of operations, or return ``None`` if a value goes out of range."""
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
        # the kinds 2 and 3 turn to another person, so they only come at the end
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
    """Draw a fact about a number and a claim that is true ("yes"), false ("no") or left open ("maybe").

    Fact and claim say "more than" or "less than" a number. Suppose that Ana has more than 20 pears. Then "more than
    15" is true, "less than 18" is false, and "more than 30" is left open.

    At the difficulty "easy" the fact says "more than", and the two numbers are at least 6 apart. At "medium" they are
    at least 2 apart. At "hard" the fact may also say "less than". The answer is drawn first, each of the three with
    the same chance.
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


TASKS: dict[str, TaskGenerator] = {
    "word-problems": TaskGenerator(word_problem),
    "entailment": TaskGenerator(entailment, labels=("yes", "no", "maybe")),
}
"""The generated tasks by name."""


def generate(name: str, difficulty: str = DEFAULT_DIFFICULTY) -> dict[str, list[Item]]:
    """Generate all splits of a task. The items are the same every time.

    Args:
        name: a name in ``TASKS``.
        difficulty: "easy", "medium" or "hard".

    Returns:
        The items by split: 6,400 for "train", 200 for "validation", 200 for "test". No prompt occurs twice, within a
        split or across splits.
    """
    generator = TASKS[name]
    rng = Random(f"{name}-{difficulty}")
    prompts: set[str] = set()

    def new_items() -> Iterator[Item]:
        while True:
            item = generator.make(rng, difficulty)
            if item["prompt"] not in prompts:
                prompts.add(item["prompt"])
                yield item

    stream = new_items()
    return {split: [next(stream) for _ in range(n)] for split, n in reversed(SIZES.items())}


def to_jsonl(items: list[Item]) -> str:
    """Return the items as JSONL: one JSON object per line, keys in order, a newline at the end."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def load_generated(name: str, folder: str | Path | None = None, difficulty: str | None = None) -> Task:
    """Load a generated task: read its default difficulty from the shipped files, and generate the others.

    Args:
        name: a name in ``TASKS``.
        folder: a folder to read the items from instead. ``load_task`` says what it must hold.
        difficulty: "easy", "medium" (the default) or "hard".

    Returns:
        The task.

    Raises:
        InputError: a file of the folder cannot be read or used.
    """
    level = difficulty or DEFAULT_DIFFICULTY
    if folder is not None:
        return _task_of(name, f"from {folder}", _read_folder(Path(folder)))
    if level == DEFAULT_DIFFICULTY:
        return _shipped_task(shipped_folder("data") / "tasks" / name)
    return _task_of(name, level, generate(name, level))


@cache
def _shipped_task(folder: Path) -> Task:
    """Load a task at its default difficulty, once: its files do not change, and every run loads its task."""
    return _task_of(folder.name, DEFAULT_DIFFICULTY, _read_folder(folder))


def _task_of(name: str, level: str, items: dict[str, list[Item]]) -> Task:
    labels = TASKS[name].labels
    if labels:
        for item in (item for split in items.values() for item in split):
            check_choice("answer", item["answer"], labels)
    splits = {split: make_rows(rows) for split, rows in items.items()}
    return Task(name, level, labels=labels, kind="choice" if labels else "text", **splits)


def first_items(name: str, n: int) -> list[Item]:
    """Read the first test items of a generated task at its default difficulty, without importing ``datasets``.

    Args:
        name: a name in ``TASKS``.
        n: the number of items.

    Returns:
        The first ``n`` test items.

    Raises:
        InputError: the name is not known.
    """
    check_choice("task", name, TASKS)
    return _read_items(shipped_folder("data") / "tasks" / name / "test.jsonl")[:n]


def _read_folder(folder: Path) -> dict[str, list[Item]]:
    """Read the items of all splits. Without a validation file, the last 5 % of the training items are held out."""
    items = {split: _read_items(folder / f"{split}.jsonl") for split in ("train", "test")}
    if (folder / "validation.jsonl").exists():
        items["validation"] = _read_items(folder / "validation.jsonl")
    else:
        held_out = max(1, len(items["train"]) // 20)
        if held_out >= len(items["train"]):
            raise InputError(f"{folder / 'train.jsonl'} has {len(items['train'])} item; it takes at least 2")
        items["train"], items["validation"] = items["train"][:-held_out], items["train"][-held_out:]
    return items


def _read_items(path: Path) -> list[Item]:
    items = []
    for number, row in json_lines(path, read_text(path, "a task folder holds train.jsonl and test.jsonl")):
        try:
            item = {key: row[key] for key in FIELDS}
        except KeyError as error:
            raise InputError(f"{path}, line {number} needs the fields {', '.join(FIELDS)}; missing: {error}") from error
        if not all(isinstance(value, str) and value for value in item.values()):
            raise InputError(f"{path}, line {number}: {', '.join(FIELDS)} must be text, and not empty")
        items.append(item)
    if not items:
        raise InputError(f"{path} is empty; it takes at least one item")
    return items
