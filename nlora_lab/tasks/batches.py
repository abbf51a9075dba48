"""From encoded rows to padded batches, in a seeded order that is the same for every method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import torch

from nlora_lab.core.errors import InputError
from nlora_lab.models.batch_limits import FORWARD_ROWS
from nlora_lab.tasks.encoding import IGNORED, Encoded, encode

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

POOL_BATCHES = 50  # batches whose rows are sorted by length together


class Order(Protocol):
    """A batch sampler with a seed, such as ``BatchOrder`` and ``LengthOrder``."""

    @property
    def seed(self) -> int:
        """The seed that the order is drawn with."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[list[int]]: ...


class BatchOrder:
    """The rows of each step: a seeded order, epoch after epoch, the same for every method.

    This is a batch sampler for ``DataLoader``. It yields one list of row numbers per step. A longer order begins with
    the same batches.

    Args:
        rows: the number of training rows.
        steps: the number of batches.
        batch_size: rows per batch.
        seed: the seed of the order.

    Raises:
        InputError: there are no rows.
    """

    def __init__(self, rows: int, steps: int, batch_size: int, seed: int) -> None:
        if rows < 1:
            raise InputError("the training split is empty; give at least one row")
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
    """A seeded order whose batches hold rows of similar length, which saves padding.

    Each epoch is shuffled and divided into pools of 50 batches. A pool is sorted by length and cut into batches, and
    the batches are shuffled. Every row comes once per epoch. A longer order begins with the same batches.

    Args:
        lengths: the length of every training row in tokens.
        steps: the number of batches.
        batch_size: rows per batch.
        seed: the seed of the order.

    Raises:
        InputError: there are no rows.
    """

    def __init__(self, lengths: Sequence[int], steps: int, batch_size: int, seed: int) -> None:
        if not lengths:
            raise InputError("the training split is empty; give at least one row")
        self.lengths, self.steps, self.batch_size, self.seed = list(lengths), steps, batch_size, seed

    @property
    def rows(self) -> int:
        """The number of training rows."""
        return len(self.lengths)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._batches(), self.steps)

    def _batches(self) -> Iterator[list[int]]:
        rng, size = Random(f"lengths-{self.seed}"), self.batch_size
        unfinished = list[int]()  # rows left over from an epoch: the next epoch completes their batch
        while True:
            order = rng.sample(range(self.rows), self.rows)
            missing = size - len(unfinished) if unfinished else 0
            unfinished += order[:missing]
            if len(unfinished) == size:
                yield unfinished
                unfinished = []
            elif unfinished:
                continue  # there are fewer rows than a batch takes
            end = missing + (self.rows - missing) // size * size
            for start in range(missing, end, POOL_BATCHES * size):
                pool = sorted(order[start : min(start + POOL_BATCHES * size, end)], key=self.lengths.__getitem__)
                batches = [pool[i : i + size] for i in range(0, len(pool), size)]
                rng.shuffle(batches)
                yield from batches
            unfinished = order[end:]


class Collate:
    """Pad encoded rows on the right to the longest row, and stack them.

    A batch has ``input_ids``, ``attention_mask`` and ``labels``, (B, T) int64. For a classifier ``labels`` is (B,),
    int64 for classes and float32 for scores, and there are ``token_type_ids`` (B, T) if the tokenizer makes them.

    Packed rows have ``position_ids`` (B, T) instead of the mask. transformers keeps examples apart where the positions
    begin at 0 again, but only without a mask and without a cache. So ``use_cache`` is False for packed rows.

    Args:
        pad: the token id of the padding.
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
            # the padding counts as an example of its own, which no other example sees
            batch["position_ids"] = torch.tensor(
                [[*row["position_ids"], *range(longest - len(row["position_ids"]))] for row in rows]
            )
            batch["use_cache"] = False
        return batch


def _padded(value: Any, longest: int, fill: int) -> Any:
    """Fill up a list. A single label is returned unchanged."""
    return value + [fill] * (longest - len(value)) if isinstance(value, list) else value


def training_batches(rows: Dataset | Encoded, tokenizer: PreTrainedTokenizerBase, order: Order) -> DataLoader[Any]:
    """Load the batches of a run in its order.

    Args:
        rows: encoded rows, or rows with ``prompt`` and ``target``.
        tokenizer: the tokenizer of the model.
        order: which rows make up each batch.

    Returns:
        A loader that yields one padded batch per step, on the CPU.
    """
    from torch.utils.data import DataLoader

    pad = int(tokenizer.pad_token_id)
    generator = torch.Generator().manual_seed(order.seed)  # otherwise the loader draws from the global generator
    return DataLoader(
        _encoded_rows(rows, tokenizer),  # type: ignore[arg-type]
        batch_sampler=order,
        collate_fn=Collate(pad),
        generator=generator,
    )


def plain_batches(
    rows: Dataset | Encoded, tokenizer: PreTrainedTokenizerBase, device: torch.device, size: int = FORWARD_ROWS
) -> Iterator[dict[str, Any]]:
    """Yield padded batches of all rows, in order.

    Args:
        rows: encoded rows, or rows with ``prompt`` and ``target``.
        tokenizer: the tokenizer of the model.
        device: where the tensors go.
        size: rows per batch.

    Yields:
        One batch after the other. Every row comes once.
    """
    encoded, collate = _encoded_rows(rows, tokenizer), Collate(int(tokenizer.pad_token_id))
    for start in range(0, len(encoded), size):
        batch = collate(encoded[start : start + size])
        yield {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _encoded_rows(rows: Dataset | Encoded, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    return rows.rows if isinstance(rows, Encoded) else encode(rows, tokenizer)
