"""A task: its rows by split, and how the answers of a model are read and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nlora_lab.tasks.final_answers import final_number, full_answer
from nlora_lab.tasks.glue import MEASURE_NAMES

if TYPE_CHECKING:
    from datasets import Dataset

Item = dict[str, str]
"""One row of a task that is answered in text: ``prompt``, ``target`` and ``answer``."""

Kind = Literal["text", "choice", "classes", "score"]
"""What a task asks of a model. ``Task`` explains the four kinds."""


@dataclass(frozen=True)
class Task:
    """A fine-tuning task with its three splits.

    The kind of a task says what a model must give:

    - "text": an answer in words, generated under greedy decoding. ``final`` reads the final answer from it.
    - "choice": the label that is likeliest as the next token.
    - "classes": one of the labels, from a classification head.
    - "score": a number, from a head with one output.

    Rows of the kinds "text" and "choice" have the columns ``prompt``, ``target`` and ``answer``, all text. Rows of the
    kinds "classes" and "score" have ``text``, ``pair`` (the second text, or "") and ``label``, which is the number of
    the class or the score.

    Attributes:
        name: the name of the task, as ``load_task`` takes it.
        difficulty: "easy", "medium" or "hard" for a generated task, else where the rows come from.
        train: the training rows, a ``datasets.Dataset``.
        validation: the rows to choose learning rates by.
        test: the rows to report results on.
        labels: the answers to choose from, or the names of the classes in the order of their numbers. Empty for the
            kinds "text" and "score".
        kind: "text", "choice", "classes" or "score".
        chat: whether prompts go through the chat template of the tokenizer, if it has one. External tasks in text do.
        final: reads the final answer from a generated text. It returns ``None`` if the text has none.
        measures: the names of the measures that ``measure`` computes. The first one is the one to compare runs by.
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
        """The number of outputs that the head of a model needs. 0 stands for the head of a language model."""
        return {"text": 0, "choice": 0, "classes": len(self.labels), "score": 1}[self.kind]

    @property
    def metric(self) -> str:
        """The measures of the task in words."""
        if self.kind == "choice":
            return "accuracy of the next token"
        if self.kind == "text":
            return f"exact match of the {'complete answer' if self.final is full_answer else 'final number'}"
        return " and ".join(MEASURE_NAMES[name] for name in self.measures)
