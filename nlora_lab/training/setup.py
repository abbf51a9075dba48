"""What a run is made of: its base model, the adapter on it, and its batches."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.core.errors import InputError
from nlora_lab.evaluation.scoring import label_tokens
from nlora_lab.methods.attachment import attach
from nlora_lab.models.batch_limits import READ_ROWS, read_at_once
from nlora_lab.models.loading import LOADING_LOCK, load_model, position_limit, revision_of
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import ResolvedRun, resolve
from nlora_lab.tasks.batches import BatchOrder, Encoded, LengthOrder, encode_task, pack
from nlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_base(run: ResolvedRun, head: int = 0) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model of ``run`` on the CPU without an adapter, and its tokenizer; ``head``: see :func:`load_model`."""
    c = run.config
    return load_model(c.model, head=head, revision=c.revision, dtype=run.dtype, attention=c.attention)


def build(cfg: RunConfig, head: int | None = None) -> tuple[Any, Any]:
    """The base model with the adapter of ``cfg``, seeded, on the CPU; and the tokenizer.

    ``head``: the outputs of a classification head, 0 for a language model; ``None`` asks the task.
    """
    run = resolve(cfg)
    outputs = run.head if head is None else head
    with LOADING_LOCK:  # another thread must not draw from the global generator in between
        torch.manual_seed(cfg.seed)  # a new head is drawn while loading
        base, tokenizer = load_base(run, outputs)
        torch.manual_seed(cfg.seed)
        options: dict[str, Any] = {"dropout": cfg.dropout} if cfg.dropout else {}
        model = attach(base, cfg.method, cfg.rank, cfg.alpha, cfg.init, target_modules=run.targets, **options)
    for tuned in getattr(model, "peft_config", {}).values():
        tuned.revision = revision_of(base) or None  # the adapter is saved with the commit it belongs to
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # a new head comes in the dtype of the base
    if outputs:
        _widen_inputs(model)
    if cfg.checkpointing:
        # transformers 5.2x is giving the method another name
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model, tokenizer


def _widen_inputs(model: Any) -> None:
    """Let a head in float32 sit on a body in bfloat16 outside of autocast too, as adapters do."""

    def widen(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(module.weight.dtype) if torch.is_tensor(x) else x for x in inputs)

    for name, module in model.named_modules():
        if ".modules_to_save." in name and module._parameters.get("weight") is not None:
            module.register_forward_pre_hook(widen)


def untouched(cfg: RunConfig, head: int = 0) -> Any:
    """The base model once more, on the CPU, for what writes its weights; else ``None``."""
    run = resolve(cfg)
    if run.method.freezes_base:
        return None
    with LOADING_LOCK:
        torch.manual_seed(cfg.seed)  # the same new head as in build
        return load_base(run, head)[0]


def token_limit(cfg: RunConfig, model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """``max_length``, but no more tokens than the model has positions for."""
    limits = [cfg.max_length, position_limit(model, tokenizer)]
    return min((limit for limit in limits if limit), default=None)


@dataclass
class Data:
    """The rows of a run as the model takes them."""

    cfg: RunConfig
    task: Task
    tokenizer: Any
    limit: int | None
    positions: int | None = None
    """What the model itself has room for: answers are not cut at what the training rows are."""

    def __post_init__(self) -> None:
        if self.task.kind == "choice":
            label_tokens(self.tokenizer, self.task.labels)  # they must differ, and that is to be known before training
        if self.cfg.batching == "packed" and self.task.head:
            raise InputError("batching='packed' is for text; a classifier reads one example a row: use 'length'")

    @cached_property
    def training(self) -> Encoded:
        """The training rows; packed, if the config says so."""
        encoded = encode_task(self.task.train, self.task, self.tokenizer, self.limit)
        return pack(encoded, self.cfg.max_length or encoded.longest) if self.cfg.batching == "packed" else encoded

    @cached_property
    def validation(self) -> Encoded:
        """The rows that learning rates are chosen by."""
        return encode_task(self.task.validation, self.task, self.tokenizer, self.limit)

    @cached_property
    def digest(self) -> str:
        """Of the training rows: what was learnt from others is not to be gone on from."""
        seen = hashlib.sha256()
        for row in self.training.rows:
            seen.update(repr((row["input_ids"], row["labels"])).encode())
        return seen.hexdigest()

    @property
    def at_once(self) -> int:
        """How many validation rows go through the model at a time."""
        return READ_ROWS if self.task.head else read_at_once(self.validation.longest, len(self.tokenizer))

    def order(self) -> BatchOrder | LengthOrder:
        """Which rows make up each step's batch."""
        c = self.cfg
        if c.batching == "length":
            lengths = [len(row["input_ids"]) for row in self.training.rows]
            return LengthOrder(lengths, c.steps, c.batch_size, c.seed)
        return BatchOrder(len(self.training.rows), c.steps, c.batch_size, c.seed)


@torch.no_grad()
def check_packing(model: Any, data: Data) -> None:
    """Raise :class:`InputError` if ``model`` lets packed examples see one another, as several architectures do.

    Tried: two examples in one row, and whether the second one's logits stay when the first is another.
    """
    tokens = torch.tensor([3, 5, 7, 11, 13, 17]) % len(data.tokenizer)
    pairs = [torch.cat([first, tokens])[None] for first in (tokens, tokens.flip(0))]
    positions = torch.arange(len(tokens)).repeat(2)[None]
    was_training, seen = model.training, []
    model.eval()
    try:
        for ids in pairs:
            seen.append(model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, len(tokens) :])
    except TypeError:  # it takes no positions
        seen = []
    finally:
        model.train(was_training)
    if not seen or not torch.allclose(seen[0], seen[1], atol=1e-3 * float(seen[0].abs().max())):
        raise InputError(
            f"batching='packed': in {data.cfg.model!r} packed examples see one another; use batching='length'"
        )
