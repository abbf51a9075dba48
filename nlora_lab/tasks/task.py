"""A task: its rows by split, and how the answers of a model are read and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

from nlora_lab.tasks.final_answers import final_number, full_answer
from nlora_lab.tasks.glue import MEASURE_NAMES

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
"""One row of any task."""

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
        train: the training rows, a ``datasets.Dataset``, or a ``RowTable`` where that library is missing.
        validation: the rows to choose learning rates by.
        test: the rows to report results on.
        labels: the answers to choose from, or the names of the classes in the order of their numbers. Empty for the
            kinds "text" and "score".
        kind: "text", "choice", "classes" or "score".
        chat: whether prompts go through the chat template of the tokenizer, if it has one.
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


# --- rows ---


def make_rows(rows: Sequence[Row]) -> Dataset:
    """Make the rows of a split.

    Args:
        rows: one dictionary per row, all with the same keys.

    Returns:
        A ``datasets.Dataset``. Without that library, as on a bare GPU node, a ``RowTable``.
    """
    try:
        from datasets import Dataset
    except ModuleNotFoundError as error:
        if error.name != "datasets":  # the library is there, and something that it needs is not
            raise
        return RowTable(rows)
    return Dataset.from_list(rows)


class RowTable:
    """Rows with the part of the interface of ``datasets.Dataset`` that this package uses.

    Args:
        rows: one dictionary per row, all with the same keys.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self._rows[0]) if self._rows else []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(map(dict, self._rows))

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    @overload
    def __getitem__(self, key: slice) -> dict[str, list[Any]]: ...
    def __getitem__(self, key: int | str | slice) -> Row | list[Any] | dict[str, list[Any]]:
        """Return a row by its number, a column by its name, or the columns of a slice of rows."""
        if isinstance(key, str):
            return [row[key] for row in self._rows]
        if isinstance(key, slice):
            return {name: [row[name] for row in self._rows[key]] for name in self.column_names}
        return dict(self._rows[key])

    def select(self, numbers: Iterable[int]) -> RowTable:
        """Return the rows with these numbers, in this order."""
        return RowTable([self._rows[number] for number in numbers])
