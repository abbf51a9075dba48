"""What a run is made of: its base model, the adapter on it, and its batches."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.batches import BatchOrder, Encoded, LengthOrder, encode_task, pack
from nlora_lab.config import RunConfig
from nlora_lab.devices import Device, run_device
from nlora_lab.errors import InputError
from nlora_lab.evaluation import label_tokens
from nlora_lab.glue import GLUE
from nlora_lab.methods import attach, get_method
from nlora_lab.models import EMBEDDED, LOADING, load_model, revision_of
from nlora_lab.portions import READ_ROWS, read_at_once
from nlora_lab.tasks import TASKS, Task, load_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def task_of(cfg: RunConfig) -> Task:
    """The task of ``cfg``, as many rows as it asks for; its prompts go through a chat template if there is one."""
    task = load_task(
        cfg.task, cfg.data, cfg.difficulty, columns=cfg.columns, train_rows=cfg.train_rows, test_rows=cfg.test_rows
    )
    return replace(task, chat=True) if cfg.task not in TASKS and task.kind == "text" else task


def base_dtype(cfg: RunConfig, device: Device) -> str:
    """The dtype of the weights as loaded: bfloat16 where they stay frozen and the device has units for it.

    What writes the base weights (full fine-tuning, PiSSA, OLoRA) keeps them in float32: steps and differences would
    be lost in bfloat16's eight bits. So does the embedded model, unless ``precision`` says otherwise: it is small.
    """
    method = get_method(cfg.method)
    frozen = method.build is not None and not method.writes_base
    wanted = cfg.precision == "bf16" or (cfg.precision is None and cfg.model != EMBEDDED and device.precision == "bf16")
    return "bfloat16" if frozen and wanted else "float32"


def load_base(cfg: RunConfig, head: int = 0) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model of ``cfg`` on the CPU without an adapter, and its tokenizer; ``head``: see :func:`load_model`."""
    return load_model(
        cfg.model, head=head, revision=cfg.revision, dtype=base_dtype(cfg, run_device(cfg)), attention=cfg.attention
    )


def build(cfg: RunConfig, head: int | None = None) -> tuple[Any, Any]:
    """The base model with the adapter of ``cfg``, seeded, on the CPU; and the tokenizer.

    ``head``: the outputs of a classification head, 0 for a language model; ``None`` asks the task.
    """
    outputs = head_of(cfg) if head is None else head
    with LOADING:  # another thread must not draw from the global generator in between
        torch.manual_seed(cfg.seed)  # a new head is drawn while loading
        base, tokenizer = load_base(cfg, outputs)
        torch.manual_seed(cfg.seed)
        options: dict[str, Any] = {"dropout": cfg.dropout} if cfg.dropout else {}
        model = attach(base, cfg.method, cfg.rank, cfg.alpha, cfg.init, target_modules=targets_of(cfg), **options)
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


def targets_of(cfg: RunConfig) -> str | list[str]:
    """The layers to adapt, as PEFT takes them."""
    if cfg.target_modules is None:
        return "all-linear"
    return [name.strip() for name in cfg.target_modules.split(",") if name.strip()]


def untouched(cfg: RunConfig, head: int = 0) -> Any:
    """The base model once more, on the CPU, for what writes its weights; else ``None``."""
    method = get_method(cfg.method)
    if method.build is not None and not method.writes_base:
        return None
    with LOADING:
        torch.manual_seed(cfg.seed)  # the same new head as in build
        return load_base(cfg, head)[0]


def head_of(cfg: RunConfig) -> int:
    """The outputs of the head that the task of ``cfg`` needs; only of the user's own rows it takes a look."""
    if cfg.task in GLUE:
        return max(1, len(GLUE[cfg.task].labels))  # without labels it is a score
    return task_of(cfg).head if cfg.task == "own" else 0


def longest_allowed(cfg: RunConfig | None, model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """``max_length``, but no more tokens than the model has positions for; these alone without a config."""
    limits = [cfg.max_length if cfg is not None else None, getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)  # RoBERTa's begin behind the padding's
    if tokenizer.model_max_length < 1e9:  # transformers' word for "no limit" is 1e30
        limits.append(tokenizer.model_max_length)
    known = [limit for limit in limits if limit]
    return min(known, default=None)


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
