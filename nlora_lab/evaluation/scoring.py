"""Scoring a model on a task: its answers, whether they are right, and the measures of the task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.core.interrupts import StopCheck, never_stop, raise_if_stopped
from nlora_lab.core.validation import check_choice, check_whole_number
from nlora_lab.evaluation.generation import (
    TEXT,
    batch_spans,
    choose_labels,
    continue_prompts,
    evaluation_mode,
    longest_answer,
)
from nlora_lab.evaluation.progress import report
from nlora_lab.models.heads import check_end_tokens
from nlora_lab.tasks.batches import Collate
from nlora_lab.tasks.encoding import (
    IGNORED,
    encode_task,
    few_shot,
    prompt_ids,
    prompt_texts,
    uses_chat,
)
from nlora_lab.tasks.glue import compute_measures

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from nlora_lab.tasks.task import Task

SPLITS = ("train", "validation", "test")
SCORE_TOLERANCE = 0.5  # a score counts as correct in an Answer if it is at most this far from the truth


@dataclass(frozen=True)
class Answer:
    """The answer of a model to one item of a task.

    Attributes:
        prompt: the prompt, or the text and the pair that a classifier reads.
        text: the generated text, the chosen label, the name of the class, or the score.
        expected: the right answer.
        correct: whether the answer counts as right.
    """

    prompt: str
    text: str
    expected: str
    correct: bool

    def __str__(self) -> str:
        mark = "right" if self.correct else f"wrong, {self.expected} is right"
        return f"{self.prompt}\n  →{self.text if self.text.startswith(' ') else ' ' + self.text}   [{mark}]\n"


def answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    split: str = "test",
    limit: int | None = None,
    should_stop: StopCheck = never_stop,
    shots: int = 0,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
) -> list[Answer]:
    """Let a model answer the items of a task.

    Args:
        model: a model that fits the kind of the task.
        tokenizer: its tokenizer.
        task: the task.
        split: "train", "validation" or "test".
        limit: answer only the first N items.
        should_stop: called before every batch and every generated token. If it returns True, no answers are returned,
            because an accuracy of some items must not pass for the accuracy of all.
        shots: put this many worked training examples before each prompt.
        max_new_tokens: the largest number of tokens in a generated answer. By default it is the length of the longest
            target of the split plus 8.
        max_length: the largest number of tokens that prompt and answer may have together. A prompt that is too long
            loses its beginning.

    Returns:
        One answer per item. For the kind "score", an answer within 0.5 of the truth counts as correct.

    Raises:
        InputError: ``shots`` does not fit the task, or a limit is not a whole number of at least 1.
        Interrupted: ``should_stop`` returned True.
    """
    rows = _first_rows(task, split, limit)
    _check_lengths(max_length, max_new_tokens)
    if task.head:
        return _head_answers(task, rows, _head_outputs(model, tokenizer, task, rows, max_length, shots, should_stop))
    new_tokens = 0
    if task.kind != "choice":
        new_tokens = longest_answer(tokenizer, rows) if max_new_tokens is None else max_new_tokens
    ids = task_prompt_ids(task, tokenizer, rows, shots, new_tokens, max_length)
    if task.kind == "choice":
        lead = "" if uses_chat(task, tokenizer) else " "
        texts = choose_labels(model, tokenizer, ids, task.labels, lead, should_stop)
    else:
        texts = continue_prompts(model, tokenizer, ids, new_tokens, max_length, should_stop)
    return mark_answers(task, rows, texts)


def task_prompts(
    task: Task, tokenizer: PreTrainedTokenizerBase, split: str = "test", limit: int | None = None, shots: int = 0
) -> list[str]:
    """Return the prompts that ``answers`` puts to a model, as text. Another program can answer these.

    Args:
        task: a task that is answered in text or by a choice.
        tokenizer: the tokenizer of the model.
        split: "train", "validation" or "test".
        limit: return only the first N prompts.
        shots: put this many worked training examples before each prompt.

    Returns:
        One text per item.

    Raises:
        InputError: ``shots`` does not fit the task.
    """
    return prompt_texts(_prompts(task, _first_rows(task, split, limit), shots), tokenizer, uses_chat(task, tokenizer))


def task_prompt_ids(
    task: Task, tokenizer: PreTrainedTokenizerBase, rows: Dataset, shots: int, new_tokens: int, max_length: int | None
) -> list[list[int]]:
    """Return the token ids of the prompts that ``answers`` puts to a model.

    Args:
        task: a task that is answered in text or by a choice.
        tokenizer: the tokenizer of the model.
        rows: the items.
        shots: put this many worked training examples before each prompt.
        new_tokens: the largest number of tokens in an answer.
        max_length: the largest number of tokens that prompt and answer may have together. ``None`` cuts nothing.

    Returns:
        One list of token ids per item.

    Raises:
        InputError: ``shots`` does not fit the task.
    """
    room = None
    if max_length is not None:  # leave room for the answer, but at least half of the tokens for the prompt
        _check_lengths(max_length)
        room = max(max_length - new_tokens, max_length // 2)
    return prompt_ids(_prompts(task, rows, shots), tokenizer, uses_chat(task, tokenizer), limit=room)


def mark_answers(task: Task, rows: Dataset, texts: Sequence[str]) -> list[Answer]:
    """Mark answers in text as right or wrong.

    Args:
        task: a task that is answered in text or by a choice.
        rows: the items.
        texts: the answer to each item.

    Returns:
        One answer per item.
    """
    final = texts if task.kind == "choice" else [task.final(text) for text in texts]
    correct = [answer == truth for answer, truth in zip(final, rows["answer"], strict=True)]
    return [Answer(*fields) for fields in zip(rows["prompt"], texts, rows["answer"], correct, strict=True)]


def measure(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    split: str = "test",
    limit: int | None = None,
    should_stop: StopCheck = never_stop,
    max_length: int | None = None,
    shots: int = 0,
) -> tuple[list[Answer], dict[str, float]]:
    """Let a model answer the items of a task, and compute the measures of the task.

    Args:
        model: a model that fits the kind of the task.
        tokenizer: its tokenizer.
        task: the task.
        split: "train", "validation" or "test".
        limit: use only the first N items.
        should_stop: as for ``answers``.
        max_length: as for ``answers``.
        shots: put this many worked training examples before each prompt.

    Returns:
        The answers, and the measures by name. Text and choices have "accuracy". Classes and scores have the
        measures in ``task.measures``: "accuracy", "f1", "matthews", "pearson", "spearman".

    Raises:
        InputError: ``shots`` does not fit the task, or a limit is not a whole number of at least 1.
        Interrupted: ``should_stop`` returned True.
    """
    if not task.head:
        results = answers(model, tokenizer, task, split, limit, should_stop, shots, max_length=max_length)
        return results, {"accuracy": accuracy(results)}
    rows = _first_rows(task, split, limit)
    _check_lengths(max_length)
    outputs = _head_outputs(model, tokenizer, task, rows, max_length, shots, should_stop)
    predictions = (outputs[:, 0] if task.kind == "score" else outputs.argmax(-1)).tolist()
    return _head_answers(task, rows, outputs), compute_measures(task.measures, predictions, list(rows["label"]))


def accuracy(results: Sequence[Answer]) -> float:
    """Compute the share of correct answers.

    Args:
        results: at least one answer.

    Returns:
        The share, 0 to 1.
    """
    return sum(answer.correct for answer in results) / len(results)


@torch.no_grad()
def mean_loss(model: Any, batches: Any, should_stop: StopCheck = never_stop) -> float:
    """Compute the mean cross-entropy over the target tokens of all batches.

    Args:
        model: a model that returns its loss.
        batches: padded batches on the device of the model, as ``plain_batches`` yields them.
        should_stop: called before every batch.

    Returns:
        The mean loss in nats per target token. For a classifier it is the mean loss per example, which for scores is
        the squared error.

    Raises:
        Interrupted: ``should_stop`` returned True.
    """
    total = count = 0.0
    with evaluation_mode(model):
        for batch in batches:
            raise_if_stopped(should_stop)
            labels = batch["labels"]
            targets = len(labels) if labels.ndim == 1 else int((labels[:, 1:] != IGNORED).sum())
            total += float(model(**batch).loss) * targets
            count += targets
    return total / count


@torch.no_grad()
def loss_and_exact(model: Any, batches: Any, should_stop: StopCheck = never_stop) -> tuple[float, float]:
    """Compute the loss on targets, and the share of targets that the model finds likeliest token for token.

    Args:
        model: a model that returns its loss and its logits.
        batches: as for ``mean_loss``.
        should_stop: as for ``mean_loss``.

    Returns:
        ``mean_loss``, and the share, 0 to 1, of the rows in which every token of the target has the highest of all
        logits, given the true tokens before it. Greedy decoding writes exactly these targets. For a classifier it is
        the share of right classes, and NaN for scores.

    Raises:
        Interrupted: ``should_stop`` returned True.
    """
    total = count = right = rows = 0.0
    with evaluation_mode(model):
        for batch in batches:
            raise_if_stopped(should_stop)
            labels, outputs = batch["labels"], model(**batch)
            if labels.ndim == 1:
                is_right, targets = outputs.logits.argmax(-1) == labels, len(labels)
            else:
                goals = labels[:, 1:]
                is_right = ((outputs.logits[:, :-1].argmax(-1) == goals) | (goals == IGNORED)).all(-1)
                targets = int((goals != IGNORED).sum())
            total, count = total + float(outputs.loss) * targets, count + targets
            right, rows = right + int(is_right.sum()), rows + len(labels)
    return total / count, math.nan if labels.is_floating_point() else right / rows


def _first_rows(task: Task, split: str, limit: int | None) -> Dataset:
    check_choice("split", split, SPLITS)
    rows: Dataset = getattr(task, split)
    if limit is None:
        return rows
    return rows.select(range(min(check_whole_number("limit", limit, remedy="leave it out for all"), len(rows))))


def _check_lengths(max_length: int | None, max_new_tokens: int | None = None) -> None:
    for name, value, low in (("max_length", max_length, 2), ("max_new_tokens", max_new_tokens, 1)):
        if value is not None:
            check_whole_number(name, value, low, remedy="leave it out for the default")


def _prompts(task: Task, rows: Dataset, shots: int) -> list[str]:
    examples = few_shot(task, shots)
    return [examples + prompt for prompt in rows["prompt"]]


# --- classification heads ---


@torch.no_grad()
def _head_outputs(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Dataset,
    max_length: int | None,
    shots: int,
    should_stop: StopCheck,
) -> torch.Tensor:
    """Return the outputs of the head for every row, (N, outputs) float32 on the CPU."""
    few_shot(task, shots)  # raises: a head takes no examples
    encoded = encode_task(rows, task, tokenizer, max_length).rows
    check_end_tokens(model, tokenizer, encoded)
    collate, outputs = Collate(int(tokenizer.pad_token_id)), []
    with evaluation_mode(model):
        for start, end in batch_spans([len(row["input_ids"]) for row in encoded], 0):
            raise_if_stopped(should_stop)
            report(TEXT, start, len(encoded))
            batch = {k: v.to(model.device) for k, v in collate(encoded[start:end]).items() if k != "labels"}
            outputs.append(model(**batch).logits.float().cpu())
    report(TEXT, len(encoded), len(encoded))
    return torch.cat(outputs)


def _head_answers(task: Task, rows: Dataset, outputs: torch.Tensor) -> list[Answer]:
    """Turn the outputs of a head, (N, outputs), into answers."""
    prompts = [f"{text}\n{pair}" if pair else text for text, pair in zip(rows["text"], rows["pair"], strict=True)]
    truth = list(rows["label"])
    if task.kind == "score":
        return [
            Answer(prompt, f"{score:.3f}", f"{true:g}", abs(score - true) <= SCORE_TOLERANCE)
            for prompt, score, true in zip(prompts, outputs[:, 0].tolist(), truth, strict=True)
        ]
    return [
        Answer(prompt, task.labels[label], task.labels[true], label == true)
        for prompt, label, true in zip(prompts, outputs.argmax(-1).tolist(), truth, strict=True)
    ]
