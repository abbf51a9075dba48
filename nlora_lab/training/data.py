"""The rows of a run as the model takes them, and the check that packed rows keep their examples apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.core.errors import InputError
from nlora_lab.evaluation.generation import label_tokens
from nlora_lab.models.batch_limits import FORWARD_ROWS, rows_per_forward
from nlora_lab.models.loading import position_limit
from nlora_lab.runs.config import RunConfig
from nlora_lab.tasks.batches import BatchOrder, LengthOrder
from nlora_lab.tasks.encoding import Encoded, encode_task, pack
from nlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE_ROWS = 100  # validation rows of a measurement on the way: it costs about as much as three training steps


def token_limit(cfg: RunConfig, model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the tokens that a training row may have: ``max_length``, or fewer if the model has fewer positions."""
    limits = [cfg.max_length, position_limit(model, tokenizer)]
    return min((limit for limit in limits if limit), default=None)


@dataclass
class TrainingData:
    """The rows of a run as the model takes them.

    Attributes:
        cfg: the config of the run.
        task: the task.
        tokenizer: the tokenizer of the model.
        limit: tokens of a training row. Longer rows are cut.
        positions: tokens that the model itself has room for. Answers may be that long, however short rows are cut.
    """

    cfg: RunConfig
    task: Task
    tokenizer: Any
    limit: int | None
    positions: int | None = None

    def __post_init__(self) -> None:
        if self.task.kind == "choice":
            label_tokens(self.tokenizer, self.task.labels)  # raises before training if they cannot be told apart
        if self.cfg.batching == "packed" and self.task.head:
            raise InputError("batching='packed' is for text; a classifier reads one example per row: use 'length'")

    @cached_property
    def training(self) -> Encoded:
        """The training rows, packed if the config says so."""
        encoded = encode_task(self.task.train, self.task, self.tokenizer, self.limit)
        return pack(encoded, self.cfg.max_length or encoded.longest) if self.cfg.batching == "packed" else encoded

    @cached_property
    def validation(self) -> Encoded:
        """The rows by which learning rates are chosen."""
        return encode_task(self.task.validation, self.task, self.tokenizer, self.limit)

    @cached_property
    def probe(self) -> Encoded:
        """The validation rows that a run is measured on while it trains."""
        return replace(self.validation, rows=self.validation.rows[:PROBE_ROWS])

    @cached_property
    def test(self) -> Encoded:
        """The test rows with their targets."""
        return encode_task(self.task.test, self.task, self.tokenizer, self.limit)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the training rows. A checkpoint trained on different rows cannot be resumed."""
        digest = hashlib.sha256()
        for row in self.training.rows:
            digest.update(repr((row["input_ids"], row["labels"])).encode())
        return digest.hexdigest()

    @property
    def rows_per_pass(self) -> int:
        """How many validation rows go through the model at a time."""
        return FORWARD_ROWS if self.task.head else rows_per_forward(self.validation.longest, len(self.tokenizer))

    def order(self) -> BatchOrder | LengthOrder:
        """Return which rows make up the batch of each step."""
        c = self.cfg
        if c.batching == "length":
            lengths = [len(row["input_ids"]) for row in self.training.rows]
            return LengthOrder(lengths, c.steps, c.batch_size, c.seed)
        return BatchOrder(len(self.training.rows), c.steps, c.batch_size, c.seed)


@torch.no_grad()
def check_packing(model: Any, data: TrainingData) -> None:
    """Check that ``model`` keeps packed examples apart, which several architectures do not.

    The test puts two examples into one row. The logits of the second one must not change with the first one.

    Args:
        model: the model.
        data: the rows of the run.

    Raises:
        InputError: packed examples see each other.
    """
    tokens = torch.tensor([3, 5, 7, 11, 13, 17]) % len(data.tokenizer)
    pairs = [torch.cat([first, tokens])[None] for first in (tokens, tokens.flip(0))]
    positions = torch.arange(len(tokens)).repeat(2)[None]
    was_training, logits = model.training, []
    model.eval()
    try:
        for ids in pairs:
            logits.append(model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, len(tokens) :])
    except TypeError:  # the model takes no positions
        logits = []
    finally:
        model.train(was_training)
    if not logits or not torch.allclose(logits[0], logits[1], atol=1e-3 * float(logits[0].abs().max())):
        raise InputError(
            f"batching='packed': in {data.cfg.model!r} packed examples see one another; use batching='length'"
        )


class RemainingBatches:
    """The batches of an order that are left after the first ones. A batch sampler like the order itself.

    Args:
        order: a batch sampler with a ``batch_size`` and a ``seed``.
        done: the number of batches to skip.
    """

    def __init__(self, order: Any, done: int) -> None:
        self.order, self.done = order, done
        self.batch_size, self.seed = order.batch_size, order.seed

    def __len__(self) -> int:
        return len(self.order) - self.done

    def __iter__(self) -> Iterator[list[int]]:
        return islice(iter(self.order), self.done, None)
