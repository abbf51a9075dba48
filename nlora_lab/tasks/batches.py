"""From a task's rows to padded batches: one order for every method, prompts outside the loss.

How rows become token ids is in :mod:`nlora_lab.tasks.encoding`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import torch

from nlora_lab.core.errors import InputError
from nlora_lab.models.batch_limits import READ_ROWS
from nlora_lab.tasks.encoding import IGNORED, Encoded, encode, encode_task, pack

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORED", "BatchOrder", "Collate", "Encoded", "LengthOrder", "Order", "encode", "encode_task", "pack",
    "plain_batches", "training_batches",
]  # fmt: skip
POOL = 50  # batches that are sorted by length together


class Order(Protocol):
    """A batch sampler with a seed, such as :class:`BatchOrder` and :class:`LengthOrder`."""

    @property
    def seed(self) -> int:
        """What the order was drawn with."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[list[int]]: ...


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


class LengthOrder:
    """As :class:`BatchOrder`, in batches of rows of similar length: less padding.

    Every epoch is shuffled and taken in pools of 50 batches; each pool is sorted by length, cut into batches, and these
    shuffled. Every row comes once an epoch. ``lengths``: of every row, in tokens.
    """

    def __init__(self, lengths: Sequence[int], steps: int, batch_size: int, seed: int) -> None:
        if not lengths:
            raise InputError("the training split is empty")
        self.lengths, self.steps, self.batch_size, self.seed = list(lengths), steps, batch_size, seed

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.lengths)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._batches(), self.steps)

    def _batches(self) -> Iterator[list[int]]:
        rng, size = Random(f"lengths-{self.seed}"), self.batch_size
        begun = list[int]()  # what the epoch before left over: its batch is filled up from this one
        while True:
            order = rng.sample(range(self.rows), self.rows)
            missing = size - len(begun) if begun else 0
            begun += order[:missing]
            if len(begun) == size:
                yield begun
                begun = []
            elif begun:
                continue  # fewer rows than a batch takes
            whole = missing + (self.rows - missing) // size * size
            for start in range(missing, whole, POOL * size):
                pool = sorted(order[start : min(start + POOL * size, whole)], key=self.lengths.__getitem__)
                batches = [pool[i : i + size] for i in range(0, len(pool), size)]
                rng.shuffle(batches)
                yield from batches
            begun = order[whole:]


class Collate:
    """Right-pads encoded rows to the longest: ``input_ids``, ``attention_mask``, ``labels``, (B, T) int64.

    Rows of a classifier have ``labels`` (B,), int64 or, for scores, float32, and ``token_type_ids`` (B, T) where the
    tokenizer makes them. Packed rows have ``position_ids`` (B, T) in place of the mask: from positions that begin anew
    transformers derives that examples do not see one another, but only where there is no mask and no cache, so
    ``use_cache`` is False with them.
    """

    def __init__(self, pad: int) -> None:
        self.fill = {"input_ids": pad, "attention_mask": 0, "labels": IGNORED}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Pad and stack ``rows``."""
        longest, packed = max(len(row["input_ids"]) for row in rows), "position_ids" in rows[0]
        rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        batch: dict[str, Any] = {
            key: torch.tensor([_padded(row[key], longest, fill) for row in rows])
            for key, fill in {**self.fill, "token_type_ids": 0}.items()
            if key in rows[0] and not (packed and key == "attention_mask")
        }
        if packed:
            # the padding is an example of its own, that no other sees
            batch["position_ids"] = torch.tensor(
                [[*row["position_ids"], *range(longest - len(row["position_ids"]))] for row in rows]
            )
            batch["use_cache"] = False
        return batch


def _padded(value: Any, longest: int, fill: int) -> Any:
    """A list of a row filled up; a single label as it is."""
    return value + [fill] * (longest - len(value)) if isinstance(value, list) else value


def training_batches(rows: Dataset | Encoded, tokenizer: PreTrainedTokenizerBase, order: Order) -> DataLoader[Any]:
    """The batches of a run in its order; ``rows`` with ``prompt`` and ``target``, or already encoded."""
    from torch.utils.data import DataLoader

    pad = int(tokenizer.pad_token_id)
    own = torch.Generator().manual_seed(order.seed)  # or the loader draws from the global one
    return DataLoader(_encoded(rows, tokenizer), batch_sampler=order, collate_fn=Collate(pad), generator=own)  # type: ignore[arg-type]


def plain_batches(
    rows: Dataset | Encoded, tokenizer: PreTrainedTokenizerBase, device: torch.device, size: int = READ_ROWS
) -> Iterator[dict[str, Any]]:
    """Every row once, in order, on ``device``."""
    encoded, collate = _encoded(rows, tokenizer), Collate(int(tokenizer.pad_token_id))
    for start in range(0, len(encoded), size):
        batch = collate(encoded[start : start + size])
        yield {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _encoded(rows: Dataset | Encoded, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    return rows.rows if isinstance(rows, Encoded) else encode(rows, tokenizer)
