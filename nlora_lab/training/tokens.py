"""One training example as the model sees it: its tokens, and which of them count in the loss."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.runs.config import RunConfig
from nlora_lab.tasks.encoding import IGNORED, encode_task
from nlora_lab.tasks.task import Task

TARGET_STYLE = "background:#0072b233;border-bottom:2px solid #0072b2"


@dataclass(frozen=True)
class Tokens:
    """Tokens as text. A notebook underlines those that count in the loss.

    Attributes:
        texts: the tokens.
        learned: for each token whether it counts in the loss.
    """

    texts: tuple[str, ...]
    learned: tuple[bool, ...]

    def __repr__(self) -> str:
        rows = (("given", False), ("to be learnt", True))
        return "\n".join(f"{name:<13}{'|'.join(self._select(is_target))}" for name, is_target in rows)

    def _select(self, is_target: bool) -> list[str]:
        return [text for text, learned in zip(self.texts, self.learned, strict=True) if learned is is_target]

    def _repr_html_(self) -> str:
        spans = (
            f"<span style='padding:1px 2px;margin:1px;border:1px solid #8884;{TARGET_STYLE if is_target else ''}'>"
            f"{html.escape(text)}</span>"
            for text, is_target in zip(self.texts, self.learned, strict=True)
        )
        return f"<div style='line-height:2;font-family:monospace'>{''.join(spans)}</div>"


def tokens_of(source: RunConfig | Task, tokenizer: Any = None, row: int = 0, max_length: int | None = None) -> Tokens:
    """Show the tokens of a training row. Only tokens of the target count in the loss, never tokens of the prompt.

    Args:
        source: a run, or a task.
        tokenizer: the tokenizer. A run's own tokenizer is loaded by default; a task needs one.
        row: the number of the training row, from 0.
        max_length: tokens after which the row is cut. A run has its own.

    Returns:
        The tokens.

    Raises:
        InputError: a task without a tokenizer, the task of a classifier, whose loss is about a label, or a row that
            does not exist.
    """
    task, limit = (source, max_length) if isinstance(source, Task) else _of_run(source)
    if tokenizer is None:
        if isinstance(source, Task):
            raise InputError("a task alone has no tokenizer; give one, or a RunConfig")
        tokenizer = _tokenizer(source)
    if task.head:
        raise InputError(f"task {task.name!r} is a classifier's: its loss is about a label, not about tokens")
    if not 0 <= row < len(task.train):
        raise InputError(f"row={row} does not exist; the training rows are 0 to {len(task.train) - 1}")
    (example,) = encode_task(task.train.select([row]), task, tokenizer, limit).rows
    learned = tuple(label != IGNORED for label in example["labels"])
    return Tokens(_texts(example["input_ids"], tokenizer), learned)


def _tokenizer(cfg: RunConfig) -> Any:
    """Load the tokenizer of the run's model, without the model."""
    from transformers import AutoTokenizer

    from nlora_lab.models.names import check_model

    try:
        source, revision = check_model(cfg.model), cfg.revision or "main"
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, …
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"the tokenizer of {cfg.model!r} cannot be loaded ({reason}); check the name") from error


def _of_run(cfg: RunConfig) -> tuple[Task, int | None]:
    from nlora_lab.runs.resolution import resolve

    return resolve(cfg).task, cfg.max_length


def _texts(ids: Sequence[int], tokenizer: Any) -> tuple[str, ...]:
    """Decode each token by itself, with ⏎ for a line break."""
    return tuple(tokenizer.decode([one]).replace("\n", "⏎") for one in ids)
