"""Answers in text: greedy continuations, and the choice of the likeliest label as the next token.

Prompts are padded on the left, so the last position is the end of every prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.core.devices import is_out_of_memory, release_memory
from nlora_lab.core.errors import InputError
from nlora_lab.core.interrupts import StopCheck, never_stop, raise_if_stopped
from nlora_lab.core.validation import check_whole_number
from nlora_lab.evaluation.progress import report
from nlora_lab.models.batch_limits import ANSWER_ROWS, kv_bytes_per_token, tokens_per_batch
from nlora_lab.models.loading import end_tokens
from nlora_lab.tasks.encoding import prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnToken = Callable[[int], None]
"""Called with the number of tokens that each row of a batch has by now."""

TEXT = "answering test items"
SPARE_TOKENS = 8  # room for a wrong answer that is a little longer than the longest target


def longest_answer(tokenizer: PreTrainedTokenizerBase, rows: Any) -> int:
    """Return how many tokens an answer may have: those of the longest target of ``rows``, and 8 more."""
    ids = tokenizer(list(rows["target"]), add_special_tokens=False)["input_ids"]
    return max(map(len, ids)) + SPARE_TOKENS


# --- greedy continuations ---


def greedy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    new_tokens: int,
    should_stop: StopCheck = never_stop,
) -> list[str]:
    """Continue prompts with the likeliest tokens, as one batch with a KV cache.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: the texts to continue.
        new_tokens: the largest number of new tokens. A continuation also ends at ``</s>``.
        should_stop: called before every token. If it returns True, generation ends.

    Returns:
        The continuation of each prompt, without special tokens.

    Raises:
        InputError: ``new_tokens`` is not a whole number of at least 1.
        Interrupted: ``should_stop`` returned True.
    """
    check_whole_number("new_tokens", new_tokens)
    return _continue_batch(model, tokenizer, prompt_ids(prompts, tokenizer), new_tokens, should_stop)


def continue_prompts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[list[int]],
    new_tokens: int,
    max_length: int | None,
    should_stop: StopCheck,
) -> list[str]:
    """Continue any number of prompts with the likeliest tokens, in batches that fit into memory.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        ids: the token ids of each prompt.
        new_tokens: the largest number of new tokens.
        max_length: the largest number of tokens that prompt and continuation may have together.
        should_stop: called before every batch and every token.

    Returns:
        The continuation of each prompt.

    Raises:
        Interrupted: ``should_stop`` returned True.
    """

    def answer(longest: int, batch: list[list[int]], on_token: OnToken) -> list[str]:
        room = new_tokens if max_length is None else max_length - longest
        return _continue_batch(model, tokenizer, batch, max(1, min(new_tokens, room)), should_stop, on_token)

    return _answer_in_batches(model, ids, new_tokens, answer, should_stop)


@torch.no_grad()
def _continue_batch(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[list[int]],
    new_tokens: int,
    should_stop: StopCheck,
    on_token: OnToken | None = None,
) -> list[str]:
    tokens = count(1)

    def check_stop(ids: torch.Tensor, _: object, **__: object) -> torch.Tensor:
        raise_if_stopped(should_stop)
        if on_token is not None:
            on_token(next(tokens))
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # this criterion ends no prompt

    batch = pad_left(model, tokenizer, ids)
    with _plain_settings(model, tokenizer):
        out = model.generate(
            **batch,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
            stopping_criteria=[check_stop],
        )
    return list(tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True))


@contextmanager
def _plain_settings(model: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Replace the generation settings of a checkpoint. A penalty for repetition, for one, costs right answers."""
    from transformers import GenerationConfig

    inner = getattr(getattr(model, "base_model", None), "model", None)
    owners: list[Any] = [m for m in (model, inner) if getattr(m, "generation_config", None) is not None]
    before = [owner.generation_config for owner in owners]
    ends = end_tokens(model, tokenizer)
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig(eos_token_id=ends, use_cache=True)
        yield
    finally:
        for owner, settings in zip(owners, before, strict=True):
            owner.generation_config = settings


# --- the choice of a label ---


def choose_labels(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[list[int]],
    labels: Sequence[str],
    lead: str,
    should_stop: StopCheck,
) -> list[str]:
    """Choose the label that is likeliest as the next token after each prompt.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        ids: the token ids of each prompt.
        labels: the labels to choose from.
        lead: the text between prompt and label, " " or "".
        should_stop: called before every batch.

    Returns:
        One label per prompt.

    Raises:
        Interrupted: ``should_stop`` returned True.
    """

    def answer(_longest: int, batch: list[list[int]], on_token: OnToken) -> list[str]:
        return _choose_batch(model, tokenizer, batch, labels, lead)

    return _answer_in_batches(model, ids, 0, answer, should_stop)


@torch.no_grad()
def _choose_batch(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]], labels: Sequence[str], lead: str
) -> list[str]:
    shared, tokens = split_labels(tokenizer, labels, lead)
    batch = pad_left(model, tokenizer, [[*prompt, *shared] for prompt in ids])
    # generate() derives the positions from the mask, and a forward pass does not
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    logits = model(**batch, position_ids=positions).logits[:, -1, tokens]  # (B, labels)
    return [labels[i] for i in logits.argmax(-1).tolist()]


def label_tokens(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], lead: str = " ") -> list[int]:
    """Return the token that distinguishes each label from the others.

    Args:
        tokenizer: the tokenizer of the model.
        labels: the labels.
        lead: the text before a label, " " or "".

    Returns:
        One token id per label.

    Raises:
        InputError: two labels begin with the same token.
    """
    return split_labels(tokenizer, labels, lead)[1]


def split_labels(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], lead: str) -> tuple[list[int], list[int]]:
    """Return the tokens that all labels begin with, and the next token of each label.

    With the tokenizer of Llama 2, for example, every text begins with a token for the space before it.
    """
    ids = [list(tokenizer(f"{lead}{label}", add_special_tokens=False)["input_ids"]) for label in labels]
    shared: list[int] = []
    while all(len(label) > len(shared) + 1 for label in ids) and len({label[len(shared)] for label in ids}) == 1:
        shared.append(ids[0][len(shared)])
    tokens = [label[len(shared)] for label in ids]
    if len(set(tokens)) != len(tokens):
        raise InputError(f"the labels {', '.join(labels)} share a first token in this tokenizer; rename them")
    return shared, tokens


# --- batches ---


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode, and restore its mode at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def pad_left(model: Any, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """Pad prompts on the left. Return ``input_ids`` and ``attention_mask``, (B, T), on the device of the model."""
    longest, pad = max(map(len, ids)), int(tokenizer.pad_token_id)
    padded = [[pad] * (longest - len(prompt)) + prompt for prompt in ids]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in ids]
    return {
        "input_ids": torch.tensor(padded, device=model.device),
        "attention_mask": torch.tensor(mask, device=model.device),
    }


def batch_spans(lengths: Sequence[int], new_tokens: int, token_bytes: int = 0) -> Iterator[tuple[int, int]]:
    """Divide rows into batches, in order, within the limits of ``nlora_lab.models.batch_limits``.

    Args:
        lengths: the length of each row in tokens.
        new_tokens: the tokens to generate per row.
        token_bytes: bytes of keys and values that the model keeps per token.

    Yields:
        The first row of a batch, and the row after its last.
    """
    start, longest, limit = 0, 0, tokens_per_batch(token_bytes)
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > start and (i - start == ANSWER_ROWS or (i - start + 1) * (longest + new_tokens) > limit):
            yield start, i
            start, longest = i, length
    if lengths:
        yield start, len(lengths)


def _answer_in_batches(
    model: Any,
    ids: list[list[int]],
    new_tokens: int,
    answer: Callable[[int, list[list[int]], OnToken], list[str]],
    should_stop: StopCheck,
) -> list[str]:
    """Call ``answer(longest, batch, on_token)`` for one batch after the other. ``longest``: of its prompts, in tokens.

    A row counts as done in as many parts as it may have new tokens.
    """
    parts = max(1, new_tokens)
    total = len(ids) * parts
    token_bytes = kv_bytes_per_token(model.config, model.dtype.itemsize) if hasattr(model, "config") else 0
    # with FSDP each process holds a part of the weights, so all must make the same number of passes
    sharded = any(type(weight).__name__ == "DTensor" for weight in model.parameters())
    texts: list[str] = []
    with evaluation_mode(model):
        for start, end in batch_spans([len(prompt) for prompt in ids], new_tokens, token_bytes):
            raise_if_stopped(should_stop)
            batch = ids[start:end]
            report(TEXT, start * parts, total)

            def on_token(tokens: int, start: int = start, rows: int = end - start) -> None:
                report(TEXT, start * parts + rows * tokens, total)

            def answer_batch(
                part: list[list[int]], longest: int = max(map(len, batch)), on_token: OnToken = on_token
            ) -> list[str]:
                return answer(longest, part, on_token)

            texts += answer_batch(batch) if sharded else _halve_if_out_of_memory(answer_batch, batch)
    report(TEXT, total, total)
    return texts


def _halve_if_out_of_memory(answer: Callable[[list[list[int]]], list[str]], ids: list[list[int]]) -> list[str]:
    """Call ``answer(ids)``. If the memory does not suffice, answer the two halves one after the other."""
    try:
        return answer(ids)
    except (MemoryError, RuntimeError) as error:
        if len(ids) == 1 or not is_out_of_memory(error):
            raise
    # outside of the except block: the error holds on to the tensors of the failed pass
    release_memory()
    half = len(ids) // 2
    return _halve_if_out_of_memory(answer, ids[:half]) + _halve_if_out_of_memory(answer, ids[half:])
