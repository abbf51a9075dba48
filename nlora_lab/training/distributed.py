"""One run over several processes (``accelerate launch``): who does what, and the numbers that must come out the same.

Every process holds the same config and sees the same batches; accelerate gives each its slice of a batch. What is
averaged over processes is weighted by what was averaged inside them, so that a step is that of one process with
the whole batch, to rounding.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlora_lab.core.devices import Device
from nlora_lab.core.errors import InputError
from nlora_lab.models.layers import full_tensor
from nlora_lab.tasks.batches import IGNORED

if TYPE_CHECKING:
    from accelerate import Accelerator

    from nlora_lab.runs.config import RunConfig

Batch = dict[str, Any]
"""What goes to the model by name: tensors with a row an example, and single settings."""


def is_main() -> bool:
    """Whether this process is the one that speaks and writes: the only one, or the launch's first."""
    return int(os.environ.get("RANK", "0")) == 0


def make_accelerator(device: Device) -> Accelerator:
    """An Accelerator for ``device``; slices of one batch go to each process, so the batch size is global."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs

    # accelerate keeps one device and precision a process; a run on another one has to make it forget
    placed, precise = PartialState._shared_state, AcceleratorState._shared_state
    elsewhere = bool(placed) and placed["device"].type != device.kind
    if elsewhere or (precise and precise.get("_mixed_precision") != device.precision):
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=device.kind == "cpu",
        mixed_precision=device.precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        # the buffers of these models are constants, and with a residual as large as the adapters
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.num_processes > 1 and device.kind == "cpu" and _wants_shards():
        _shard_on_the_cpu(accelerator)
    return accelerator


def _wants_shards() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _shard_on_the_cpu(accelerator: Accelerator) -> None:
    """``accelerate launch --use_fsdp`` without a card: accelerate shards on cards alone, torch over gloo too."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    # reads the launch's other settings from the environment, as Accelerator does where there are cards
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    for state in (PartialState._shared_state, AcceleratorState._shared_state):  # each is copied over the other at times
        state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def prepare(accelerator: Accelerator, *parts: Any) -> Any:
    """Accelerate's ``prepare``."""
    with warnings.catch_warnings():
        # torch 2.13 is about to call this option otherwise; earlier versions know no other name
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return accelerator.prepare(*parts)


def unwrap(accelerator: Accelerator, model: Any) -> Any:
    """The model inside what :func:`prepare` returned; a sharded one can generate too."""
    inner = accelerator.unwrap_model(model)
    if is_sharded(accelerator) and hasattr(inner, "generate"):
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(inner, "generate")  # gathers the weights as forward does
    return inner


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the weights (FSDP)."""
    return bool(str(accelerator.distributed_type).endswith("FSDP"))


def check_processes(cfg: RunConfig, accelerator: Accelerator) -> None:
    """Raise :class:`InputError` where the batch cannot be shared out, or the launch asks for FSDP's old kind."""
    if cfg.batch_size % accelerator.num_processes:
        raise InputError(
            f"batch_size={cfg.batch_size} cannot be divided by {accelerator.num_processes} processes; "
            f"choose a multiple of {accelerator.num_processes}"
        )
    if is_sharded(accelerator) and not accelerator.is_fsdp2:
        raise InputError("FSDP version 1 cannot shard frozen and trained weights together; add --fsdp_version 2")


def parts_of(cfg: RunConfig, accelerator: Accelerator) -> int:
    """In how many parts a process's share of a batch goes through the model: ``accumulation`` is that of all together.

    So the rows that are on a card at a time stay the same, however many cards there are.
    """
    return math.ceil(cfg.accumulation / int(accelerator.num_processes))


def backward(accelerator: Accelerator, model: Any, batch: Batch, parts: int = 1) -> Tensor:
    """Leave the gradients of the mean loss over all processes' batches, and return that loss, a scalar.

    The mean is over targets (tokens, or the labels of a classifier), whichever process and part they are in.
    ``batch`` is this process's; it goes through the model in ``parts`` equal parts, one after the other.
    """
    if parts == 1 and accelerator.num_processes == 1:
        loss: Tensor = model(**batch).loss
        accelerator.backward(loss)
        return loss.detach()
    pieces = split(batch, parts)
    counts = [count_targets(piece) for piece in pieces]
    everywhere = torch.stack(counts).sum().float()
    share = accelerator.num_processes / accelerator.reduce(everywhere.clone(), "sum")  # gradients get averaged
    total = torch.zeros((), device=everywhere.device)
    for number, (piece, count) in enumerate(zip(pieces, counts, strict=True), start=1):
        with nullcontext() if number == parts else accelerator.no_sync(model):
            loss = model(**piece).loss * (count * share)
            accelerator.backward(loss)
        total += loss.detach().float()
    mean: Tensor = accelerator.reduce(total, "mean")
    return mean


def split(batch: Batch, parts: int) -> Sequence[Batch]:
    """``batch`` in ``parts`` of as many rows each, or one more."""
    if parts == 1:
        return [batch]
    chunks = {
        key: value.tensor_split(parts) if isinstance(value, Tensor) else [value] * parts for key, value in batch.items()
    }
    return [{key: chunk[i] for key, chunk in chunks.items()} for i in range(parts)]


def count_targets(batch: Batch) -> Tensor:
    """How many labels the loss of ``batch`` averages over: next tokens (B, T), or one a row (B,)."""
    labels = batch["labels"]
    return (labels[:, 1:] != IGNORED).sum() if labels.ndim == 2 else torch.tensor(len(labels), device=labels.device)


def clip(accelerator: Accelerator, weights: Iterable[Tensor], most: float | None) -> float:
    """Clip the gradients of ``weights`` to the norm ``most`` (``None``: leave them); the norm they had."""
    norm = full_tensor(accelerator.clip_grad_norm_(list(weights), most or math.inf))
    return float(norm)


def trained_weights(model: Any) -> dict[str, Tensor]:
    """Copies of what trains, by name, on the CPU; whole in every process."""
    return {n: full_tensor(p.detach()).cpu().clone() for n, p in model.named_parameters() if p.requires_grad}


def any_of(accelerator: Accelerator, wanted: bool) -> bool:
    """Whether one process at least wants it: they go on, or end, together."""
    if accelerator.num_processes == 1:
        return wanted
    votes = accelerator.reduce(torch.tensor(float(wanted), device=accelerator.device), "sum")
    return bool(votes > 0)


def several() -> bool:
    """Whether other processes take part in this run."""
    from accelerate.state import PartialState

    return bool(PartialState._shared_state.get("num_processes", 1) > 1)


def part_of(rows: int) -> range | None:
    """The rows that this process is to measure; ``None`` for all: where it is the only one, where each holds a part of
    the weights, so that all must go in step (FSDP), and where there are not enough rows.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    shared = PartialState._shared_state
    count, index = shared.get("num_processes", 1), shared.get("process_index", 0)
    if count == 1 or rows < count or shared.get("distributed_type") == DistributedType.FSDP:
        return None
    each = math.ceil(rows / count)
    return range(min(index * each, rows), min((index + 1) * each, rows))


def everybodys(found: list[Any]) -> list[Any]:
    """What all processes have found, in their order. To be called in every process."""
    from accelerate.utils import gather_object

    return list(gather_object(found))
