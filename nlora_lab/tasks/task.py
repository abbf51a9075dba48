"""tasks.task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nlora_lab.tasks.final_answers import final_number, full_answer
from nlora_lab.tasks.glue import WORDS

if TYPE_CHECKING:
    from datasets import Dataset
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
    :func:`nlora_lab.evaluation.scoring.measure` gives.
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
            return f"exact match of the {'whole answer' if self.final is full_answer else 'final number'}"
        return " and ".join(WORDS[name] for name in self.measures)
