"""Scoring a model on a task: greedy answers, or the likeliest label as the next token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.errors import InputError
from nlora_lab.halting import Asked, heed, never

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nlora_lab.tasks import Task

ANSWER = re.compile(r"The answer is (-?\d+)\.")
BATCH = 100  # prompts at a time


@dataclass(frozen=True)
class Answer:
    """What the model said to one item."""

    prompt: str
    said: str
    expected: str
    correct: bool

    def __str__(self) -> str:
        mark = "right" if self.correct else f"wrong, {self.expected} is right"
        return f"{self.prompt}\n  →{self.said if self.said.startswith(' ') else ' ' + self.said}   [{mark}]\n"


def final_number(text: str) -> str | None:
    """N of the first "The answer is N.", or None; ``"012"`` is not read as 12."""
    found = ANSWER.search(text)
    return found.group(1) if found else None


@torch.no_grad()
def answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, task: Task, split: str = "test", limit: int | None = None,
    halted: Asked = never,
) -> list[Answer]:  # fmt: skip
    """The model's answer to each of the first ``limit`` items of a split (all by default).

    ``halted`` is asked before every token, and its yes raises :class:`nlora_lab.halting.Halted`: an accuracy of some
    of the items must not pass for that of all.
    """
    rows = getattr(task, split)
    rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
    prompts, expected = rows["prompt"], rows["answer"]
    given: list[Answer] = []
    with _evaluating(model):
        for start in range(0, len(prompts), BATCH):
            heed(halted)
            batch, truth = list(prompts[start : start + BATCH]), expected[start : start + BATCH]
            if task.labels:
                said = _choose(model, tokenizer, batch, task.labels)
                right = [s == t for s, t in zip(said, truth, strict=True)]
            else:
                said = greedy(model, tokenizer, batch, _longest_target(tokenizer, rows), halted)
                right = [final_number(s) == t for s, t in zip(said, truth, strict=True)]
            given += [Answer(*row) for row in zip(batch, said, truth, right, strict=True)]
    return given


def accuracy(given: Sequence[Answer]) -> float:
    """The share of correct answers, 0 to 1."""
    return sum(a.correct for a in given) / len(given)


@torch.no_grad()
def mean_loss(model: Any, batches: Any, halted: Asked = never) -> float:
    """Mean cross-entropy in nats a target token over ready-made batches, prompts left out; ``halted`` as above."""
    total = tokens = 0.0
    with _evaluating(model):
        for batch in batches:
            heed(halted)
            counted = int((batch["labels"][:, 1:] != -100).sum())
            total += float(model(**batch).loss) * counted
            tokens += counted
    return total / tokens


def _longest_target(tokenizer: PreTrainedTokenizerBase, rows: Any) -> int:
    ids = tokenizer(list(rows["target"]), add_special_tokens=False)["input_ids"]
    return max(map(len, ids)) + 8  # room for a wrong answer that runs a little long


def _encode(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> dict[str, torch.Tensor]:
    """Left-padded (B, T), so that the last position is the end of every prompt."""
    batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", return_token_type_ids=False)
    return {k: v.to(model.device) for k, v in batch.items()}


@torch.no_grad()
def greedy(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[str], new_tokens: int, halted: Asked = never
) -> list[str]:
    """The likeliest continuation of each prompt, up to ``</s>`` or ``new_tokens``; one batch, with a KV cache."""

    def go_on(ids: torch.Tensor, _: object, **__: object) -> torch.Tensor:
        heed(halted)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # none of the prompts ends because of this

    batch = _encode(model, tokenizer, prompts)
    out = model.generate(
        **batch, max_new_tokens=new_tokens, do_sample=False, num_beams=1, pad_token_id=tokenizer.pad_token_id,
        stopping_criteria=[go_on],
    )  # fmt: skip
    return list(tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True))


def label_tokens(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[int]:
    """The first token of " label" for each label; they must differ, or :class:`InputError`."""
    ids = [tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0] for label in labels]
    if len(set(ids)) != len(ids):
        raise InputError(f"the labels {', '.join(labels)} share a first token in this tokenizer; rename them")
    return ids


def _choose(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[str], labels: Sequence[str]) -> list[str]:
    ids = label_tokens(tokenizer, labels)
    batch = _encode(model, tokenizer, prompts)
    # generate() derives positions from the mask; a plain forward pass has to be told
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    logits = model(**batch, position_ids=positions).logits[:, -1, ids]  # (B, labels)
    return [labels[i] for i in logits.argmax(-1).tolist()]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
