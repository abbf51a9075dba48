"""What a pretrained model can do before any tuning. These numbers stand in the model card."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from nlora_lab.evaluation.generation import greedy
from nlora_lab.evaluation.scoring import accuracy, answers
from nlora_lab.tasks.generated import TASKS
from nlora_lab.tasks.registry import load_task
from tools.embedded_model.corpus import one_step, ordering, scene, sum_fact

ITEMS = 300  # new prompts per skill


def skills(model: Any, tokenizer: Any) -> dict[str, float]:
    """Measure the skills of a model: 300 new prompts for each kind of text, and the test items of the two tasks.

    Returns:
        By skill, the share of right answers, 0 to 1.
    """
    rng = Random("skills")
    sums = [sum_fact(rng).rpartition("=") for _ in range(ITEMS)]
    # the corpus shows sums in a line of several, so another sum comes first
    prompts = [f"3+4=7. {left}=" for left, _, _ in sums]
    problems = [one_step(rng) for _ in range(ITEMS)]
    scenes = [scene(rng) for _ in range(ITEMS)]
    return {
        "sums": _share(greedy(model, tokenizer, prompts, 4), [f"{right}." for _, _, right in sums]),
        "one-step problems": _share(*_answers_to_questions(model, tokenizer, problems, r"[^=]*=\d+\.")),
        "more or less": _share(*_last_words(model, tokenizer, [ordering(rng) for _ in range(ITEMS)])),
        "finding a fact": _share(*_answers_to_questions(model, tokenizer, scenes, r"[^.]*[.]")),
        **{name: accuracy(answers(model, tokenizer, load_task(name))) for name in TASKS},
    }


def _answers_to_questions(model: Any, tokenizer: Any, texts: list[str], part: str) -> tuple[list[str], list[str]]:
    """What the model writes after "A:", and how the right answer begins: its match with the pattern ``part``."""
    halves = [text.partition("A:") for text in texts]
    matches = [re.match(part, right) for _, _, right in halves]
    outputs = greedy(model, tokenizer, [left + mark for left, mark, _ in halves], 24)
    return outputs, [match.group() if match else "" for match in matches]


def _last_words(model: Any, tokenizer: Any, texts: list[str]) -> tuple[list[str], list[str]]:
    """What the model writes after the last colon of each text, and what the text has there."""
    halves = [text.rpartition(":") for text in texts]
    return greedy(model, tokenizer, [left + mark for left, mark, _ in halves], 4), [right for *_, right in halves]


def _share(outputs: list[str], expected: list[str]) -> float:
    right = sum(output.startswith(answer) for output, answer in zip(outputs, expected, strict=True))
    return round(right / len(outputs), 4)
