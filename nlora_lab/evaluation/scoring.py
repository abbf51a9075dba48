"""Scoring a model on a task: greedy answers, the likeliest label as the next token, or a classification head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.core.devices import is_out_of_memory, release_memory
from nlora_lab.core.errors import InputError
from nlora_lab.core.interrupts import StopCheck, never_stop, raise_if_stopped
from nlora_lab.models.batch_limits import ANSWERED_ROWS, cached_bytes, tokens_at_once
from nlora_lab.tasks.batches import Collate
from nlora_lab.tasks.encoding import as_asked, encode_task, last_tokens, prompt_ids, uses_chat
from nlora_lab.tasks.final_answers import final_number as final_number

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from nlora_lab.tasks.task import Task

NEAR = 0.5  # a score as near as this counts as right in an Answer


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


@torch.no_grad()
def answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, task: Task, split: str = "test", limit: int | None = None,
    should_stop: StopCheck = never_stop, shots: int = 0, max_new_tokens: int | None = None, max_length: int | None = None,
) -> list[Answer]:  # fmt: skip
    """The model's answer to each of the first ``limit`` items of a split (all by default).

    ``should_stop`` is asked before every token, and its yes raises :class:`nlora_lab.core.interrupts.Interrupted`: an accuracy of some
    of the items must not pass for that of all.

    Args:
        shots: put so many worked training examples before each prompt (:func:`nlora_lab.tasks.external.few_shot`).
        max_new_tokens: of a generated answer; ``None`` is the longest target of the split and 8 more.
        max_length: tokens that the model can take, prompt and answer together; a prompt that is too long loses its
            beginning.

    Of "classes", ``said`` is the name of the class; of "score", the number, which is right within half a point.
    """
    rows = _first_rows(task, split, limit)
    if task.head:
        _prefix(task, shots)  # a head takes none, and this says so
        return _headed(task, rows, _outputs(model, tokenizer, task, rows, max_length, should_stop))
    ids = prompt_ids(_prefixed(task, rows, shots), tokenizer, uses_chat(task, tokenizer))
    new = 0 if task.kind == "choice" else max_new_tokens or longest_answer(tokenizer, rows)
    if max_length is not None:  # with room for the answer, but never most of the prompt for it
        room = max(max_length - new, max_length // 2, 1)
        ids = [last_tokens(one, room, tokenizer) for one in ids]
    said: list[str] = []
    with _evaluating(model):
        for start, end in _spans([len(one) for one in ids], new, _token_bytes(model)):
            raise_if_stopped(should_stop)
            if task.kind == "choice":
                lead = "" if uses_chat(task, tokenizer) else " "
                ask = partial(_choose, model, tokenizer, labels=task.labels, lead=lead)
            else:
                left = max_length - max(map(len, ids[start:end])) if max_length is not None else new
                ask = partial(_continued, model, tokenizer, new_tokens=max(1, min(new, left)), should_stop=should_stop)
            said += ask(ids[start:end]) if _is_sharded(model) else _by_halves(ask, ids[start:end])
    return mark_answers(task, rows, said)


def task_prompts(
    task: Task, tokenizer: PreTrainedTokenizerBase, split: str = "test", limit: int | None = None, shots: int = 0
) -> list[str]:
    """The prompts as :func:`answers` puts them to a model, as text: for another program to answer."""
    return as_asked(_prefixed(task, _first_rows(task, split, limit), shots), tokenizer, uses_chat(task, tokenizer))


def mark_answers(task: Task, rows: Dataset, said: Sequence[str]) -> list[Answer]:
    """What was ``said`` to each of ``rows`` (of a task of text), marked right or wrong."""
    read = said if task.kind == "choice" else [task.final(text) for text in said]
    right = [one == truth for one, truth in zip(read, rows["answer"], strict=True)]
    return [Answer(*row) for row in zip(rows["prompt"], said, rows["answer"], right, strict=True)]


def measure(
    model: Any, tokenizer: PreTrainedTokenizerBase, task: Task, split: str = "test", limit: int | None = None,
    should_stop: StopCheck = never_stop, max_length: int | None = None, shots: int = 0,
) -> tuple[list[Answer], dict[str, float]]:  # fmt: skip
    """The model's answers, as :func:`answers` gives them, and the task's measures of them.

    "accuracy" is among them, but not for a score; what else, says ``task.measures``: "f1", "matthews", "pearson",
    "spearman" (:func:`nlora_lab.tasks.glue.measured`).
    """
    if not task.head:
        given = answers(model, tokenizer, task, split, limit, should_stop, shots, max_length=max_length)
        return given, {"accuracy": accuracy(given)}
    from nlora_lab.tasks.glue import measured

    rows = _first_rows(task, split, limit)
    _prefix(task, shots)  # a head takes none, and this says so
    outputs = _outputs(model, tokenizer, task, rows, max_length, should_stop)
    said = (outputs[:, 0] if task.kind == "score" else outputs.argmax(-1)).tolist()
    return _headed(task, rows, outputs), measured(task.measures, said, list(rows["label"]))


def accuracy(given: Sequence[Answer]) -> float:
    """The share of correct answers, 0 to 1."""
    return sum(a.correct for a in given) / len(given)


@torch.no_grad()
def mean_loss(model: Any, batches: Any, should_stop: StopCheck = never_stop) -> float:
    """Mean cross-entropy in nats a target token over ready-made batches, prompts left out; ``should_stop`` as above.

    Of a classifier, whose labels are (B,), the mean loss of an example: for scores that is the squared error.
    """
    total = tokens = 0.0
    with _evaluating(model):
        for batch in batches:
            raise_if_stopped(should_stop)
            labels = batch["labels"]
            counted = len(labels) if labels.ndim == 1 else int((labels[:, 1:] != -100).sum())
            total += float(model(**batch).loss) * counted
            tokens += counted
    return total / tokens


def _first_rows(task: Task, split: str, limit: int | None) -> Dataset:
    rows: Dataset = getattr(task, split)
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _prefixed(task: Task, rows: Dataset, shots: int) -> list[str]:
    prefix = _prefix(task, shots)
    return [prefix + prompt for prompt in rows["prompt"]]


def _prefix(task: Task, shots: int) -> str:
    if not shots:
        return ""
    from nlora_lab.tasks.external import few_shot

    return few_shot(task, shots)


def _token_bytes(model: Any) -> int:
    return cached_bytes(model.config, model.dtype.itemsize) if hasattr(model, "config") else 0


def _spans(lengths: Sequence[int], new: int, cached: int = 0) -> Iterator[tuple[int, int]]:
    """Where batches start and end, in order: as many prompts as :mod:`nlora_lab.models.batch_limits` allows, with padding."""
    start, longest, tokens = 0, 0, tokens_at_once(cached)
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > start and (i - start == ANSWERED_ROWS or (i - start + 1) * (longest + new) > tokens):
            yield start, i
            start, longest = i, length
    if lengths:
        yield start, len(lengths)


def _by_halves(ask: Callable[[list[list[int]]], list[str]], ids: list[list[int]]) -> list[str]:
    """``ask(ids)``; where the memory does not suffice for all of them at once, by halves."""
    try:
        return ask(ids)
    except (MemoryError, RuntimeError) as error:
        if len(ids) == 1 or not is_out_of_memory(error):
            raise
    # only here: the error held what was computed
    release_memory()
    half = len(ids) // 2
    return _by_halves(ask, ids[:half]) + _by_halves(ask, ids[half:])


def _is_sharded(model: Any) -> bool:
    """Whether other processes hold parts of the weights (FSDP), so that all have to ask the same number of times."""
    return any(type(weight).__name__ == "DTensor" for weight in model.parameters())


def longest_answer(tokenizer: PreTrainedTokenizerBase, rows: Any) -> int:
    """Tokens that an answer to one of ``rows`` may have: the longest target's, and a few more."""
    ids = tokenizer(list(rows["target"]), add_special_tokens=False)["input_ids"]
    return max(map(len, ids)) + 8  # room for a wrong answer that runs a little long


def _left_padded(model: Any, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` (B, T), so that the last position is the end of every prompt."""
    longest, pad = max(map(len, ids)), int(tokenizer.pad_token_id)
    padded = [[pad] * (longest - len(one)) + one for one in ids]
    mask = [[0] * (longest - len(one)) + [1] * len(one) for one in ids]
    return {
        "input_ids": torch.tensor(padded, device=model.device),
        "attention_mask": torch.tensor(mask, device=model.device),
    }


def greedy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    new_tokens: int,
    should_stop: StopCheck = never_stop,
) -> list[str]:
    """The likeliest continuation of each prompt, up to ``</s>`` or ``new_tokens``; one batch, with a KV cache."""
    return _continued(model, tokenizer, prompt_ids(prompts, tokenizer), new_tokens, should_stop)


@torch.no_grad()
def _continued(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]], new_tokens: int, should_stop: StopCheck
) -> list[str]:
    def go_on(ids: torch.Tensor, _: object, **__: object) -> torch.Tensor:
        raise_if_stopped(should_stop)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # none of the prompts ends because of this

    batch = _left_padded(model, tokenizer, ids)
    with _plain_greedy(model, tokenizer):
        out = model.generate(
            **batch, max_new_tokens=new_tokens, do_sample=False, num_beams=1, pad_token_id=tokenizer.pad_token_id,
            stopping_criteria=[go_on],
        )  # fmt: skip
    return list(tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True))


@contextmanager
def _plain_greedy(model: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Without what the checkpoint prefers: a penalty for repetition is not greedy, and costs right answers."""
    from transformers import GenerationConfig

    inner = getattr(getattr(model, "base_model", None), "model", None)
    owners: list[Any] = [m for m in (model, inner) if _has_settings(m)]
    before = [owner.generation_config for owner in owners]
    ends = getattr(before[0], "eos_token_id", None) if before else None
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig(eos_token_id=ends or tokenizer.eos_token_id, use_cache=True)
        yield
    finally:
        for owner, own in zip(owners, before, strict=True):
            owner.generation_config = own


def _has_settings(model: Any) -> bool:
    return getattr(model, "generation_config", None) is not None


def label_tokens(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], lead: str = " ") -> list[int]:
    """The token of each label, after a space (``lead``), that tells it from the others; or :class:`InputError`."""
    return _told_apart(tokenizer, labels, lead)[1]


def _told_apart(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], lead: str) -> tuple[list[int], list[int]]:
    """The tokens with which every label begins, and the next one of each.

    With some tokenizers (Llama 2's) every text begins with a token of its own for the space before it.
    """
    ids = [list(tokenizer(f"{lead}{label}", add_special_tokens=False)["input_ids"]) for label in labels]
    shared: list[int] = []
    while all(len(one) > len(shared) + 1 for one in ids) and len({one[len(shared)] for one in ids}) == 1:
        shared.append(ids[0][len(shared)])
    nexts = [one[len(shared)] for one in ids]
    if len(set(nexts)) != len(nexts):
        raise InputError(f"the labels {', '.join(labels)} share a first token in this tokenizer; rename them")
    return shared, nexts


def _choose(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], labels: Sequence[str], lead: str
) -> list[str]:
    shared, ids = _told_apart(tokenizer, labels, lead)
    batch = _left_padded(model, tokenizer, [[*prompt, *shared] for prompt in prompts])
    # generate() derives positions from the mask; a plain forward pass has to be told
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    logits = model(**batch, position_ids=positions).logits[:, -1, ids]  # (B, labels)
    return [labels[i] for i in logits.argmax(-1).tolist()]


@torch.no_grad()
def _outputs(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Dataset,
    max_length: int | None,
    should_stop: StopCheck,
) -> torch.Tensor:
    """What the head gives for every row, (N, labels) float32 on the CPU."""
    encoded = encode_task(rows, task, tokenizer, max_length).rows
    collate, outputs = Collate(int(tokenizer.pad_token_id)), []
    with _evaluating(model):
        for start, end in _spans([len(row["input_ids"]) for row in encoded], 0):
            raise_if_stopped(should_stop)
            batch = {k: v.to(model.device) for k, v in collate(encoded[start:end]).items() if k != "labels"}
            outputs.append(model(**batch).logits.float().cpu())
    return torch.cat(outputs)


def _headed(task: Task, rows: Dataset, outputs: torch.Tensor) -> list[Answer]:
    """The outputs (N, labels) of a head as answers."""
    prompts = [f"{text}\n{pair}" if pair else text for text, pair in zip(rows["text"], rows["pair"], strict=True)]
    truth = list(rows["label"])
    if task.kind == "score":
        scores = outputs[:, 0].tolist()
        return [
            Answer(prompt, f"{said:.3f}", f"{true:g}", abs(said - true) <= NEAR)
            for prompt, said, true in zip(prompts, scores, truth, strict=True)
        ]
    return [
        Answer(prompt, task.labels[said], task.labels[true], said == true)
        for prompt, said, true in zip(prompts, outputs.argmax(-1).tolist(), truth, strict=True)
    ]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
