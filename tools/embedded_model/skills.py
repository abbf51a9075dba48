"""What a pretrained model can do before any tuning; the numbers in the model card."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from nlora_lab.evaluation.scoring import accuracy, answers, greedy
from nlora_lab.tasks.generated import TASKS
from nlora_lab.tasks.registry import load_task
from tools.embedded_model.corpus import one_step, ordering, scene, sum_fact

ITEMS = 300


def skills(model: Any, tokenizer: Any) -> dict[str, float]:
    """Share of right answers, 0 to 1, on 300 fresh prompts each, and on the two tasks' test items."""
    rng = Random("skills")
    sums = [sum_fact(rng).rpartition("=") for _ in range(ITEMS)]
    # a line of sums is how the text shows them, so a first sum stands in front
    prompts = [f"3+4=7. {left}=" for left, _, _ in sums]
    problems = [one_step(rng) for _ in range(ITEMS)]
    scenes = [scene(rng) for _ in range(ITEMS)]
    return {
        "sums": _share(greedy(model, tokenizer, prompts, 4), [f"{right}." for _, _, right in sums]),
        "one-step problems": _share(*_asked(model, tokenizer, problems, r"[^=]*=\d+\.")),
        "more or less": _share(*_related(model, tokenizer, [ordering(rng) for _ in range(ITEMS)])),
        "finding a fact": _share(*_asked(model, tokenizer, scenes, r"[^.]*[.]")),
        **{name: accuracy(answers(model, tokenizer, load_task(name))) for name in TASKS},
    }


def _asked(model: Any, tokenizer: Any, texts: list[str], part: str) -> tuple[list[str], list[str]]:
    """What the model says after "A:", and what it should have said first."""
    halves = [text.partition("A:") for text in texts]
    wanted = [re.match(part, right) for _, _, right in halves]
    said = greedy(model, tokenizer, [left + mark for left, mark, _ in halves], 24)
    return said, [w.group() if w else "" for w in wanted]


def _related(model: Any, tokenizer: Any, texts: list[str]) -> tuple[list[str], list[str]]:
    """What the model says after the last colon of each text, and what it should."""
    halves = [text.rpartition(":") for text in texts]
    return greedy(model, tokenizer, [left + mark for left, mark, _ in halves], 4), [right for *_, right in halves]


def _share(said: list[str], wanted: list[str]) -> float:
    right = sum(s.startswith(w) for s, w in zip(said, wanted, strict=True))
    return round(right / len(said), 4)
