"""From a task's rows to padded batches: one order for every method, prompts outside the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that cross-entropy leaves out


class BatchOrder:
    """Which rows make up each step's batch: seeded, epoch after epoch, the same for every method.

    A batch sampler for ``DataLoader``: yields ``steps`` lists of ``batch_size`` row numbers.
    """

    def __init__(self, rows: int, steps: int, batch_size: int, seed: int) -> None:
        if rows < 1:
            raise InputError("the training split is empty")
        self.rows, self.steps, self.batch_size, self.seed = rows, steps, batch_size, seed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        rng, waiting = Random(f"batches-{self.seed}"), list[int]()
        for _ in range(self.steps):
            while len(waiting) < self.batch_size:
                waiting += rng.sample(range(self.rows), self.rows)
            yield waiting[: self.batch_size]
            waiting = waiting[self.batch_size :]


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """Token ids and labels of every row: ``<s> prompt target </s>``, the prompt's labels ignored."""
    prompts = tokenizer(list(rows["prompt"]))["input_ids"]
    targets = tokenizer(list(rows["target"]), add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [
        {"input_ids": [*p, *t, *end], "labels": [IGNORED] * len(p) + [*t, *end]}
        for p, t in zip(prompts, targets, strict=True)
    ]


class Collate:
    """Right-pads encoded rows to the longest: ``input_ids``, ``attention_mask``, ``labels``, (B, T) int64."""

    def __init__(self, pad: int) -> None:
        self.fill = {"input_ids": pad, "attention_mask": 0, "labels": IGNORED}

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Pad and stack ``rows``."""
        longest = max(len(row["input_ids"]) for row in rows)
        rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        return {
            key: torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows])
            for key, fill in self.fill.items()
        }


def training_batches(rows: Dataset, tokenizer: PreTrainedTokenizerBase, order: BatchOrder) -> DataLoader[Any]:
    """The batches of a run in its order."""
    from torch.utils.data import DataLoader

    pad = int(tokenizer.pad_token_id)
    own = torch.Generator().manual_seed(order.seed)  # or the loader draws from the global one
    return DataLoader(encode(rows, tokenizer), batch_sampler=order, collate_fn=Collate(pad), generator=own)  # type: ignore[arg-type]


def plain_batches(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, device: torch.device, size: int = 50
) -> Iterator[dict[str, torch.Tensor]]:
    """Every row once, in order, on ``device``."""
    encoded, collate = encode(rows, tokenizer), Collate(int(tokenizer.pad_token_id))
    for start in range(0, len(encoded), size):
        yield {k: v.to(device) for k, v in collate(encoded[start : start + size]).items()}
