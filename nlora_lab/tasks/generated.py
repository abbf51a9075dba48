"""tasks.generated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from nlora_lab.tasks.task import Item
from nlora_lab.tasks.vocabulary import CONTAINERS, GAIN_VERBS, LOSS_VERBS, THINGS, count, people, plural

if TYPE_CHECKING:
    pass

SIZES = {"train": 6400, "validation": 200, "test": 200}  # 6,400 = 400 steps of 16, each item once
DIFFICULTIES = ("easy", "medium", "hard")
LARGEST = 60  # no value on the way is above this: the embedded model's sums are certain up to there


@dataclass(frozen=True)
class TaskGenerator:
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


TASKS: dict[str, TaskGenerator] = {
    "word-problems": TaskGenerator(word_problem),
    "entailment": TaskGenerator(entailment, labels=("yes", "no", "maybe")),
}
DEFAULT_DIFFICULTY = "medium"


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
