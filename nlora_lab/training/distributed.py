"""One run over several processes (``accelerate launch``), with the numbers of a single process.

Every process holds the same config and draws the same batches. Accelerate gives each process its slice of a batch.
Means over processes are weighted by the number of targets in each, so a step equals the step of one process on the
complete batch, to rounding.
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
from nlora_lab.core.validation import environment_number
from nlora_lab.models.layers import full_tensor
from nlora_lab.tasks.encoding import IGNORED

if TYPE_CHECKING:
    from accelerate import Accelerator

    from nlora_lab.runs.config import RunConfig

Batch = dict[str, Any]
"""The inputs of the model by name: tensors with one row per example, and single settings."""


def is_main() -> bool:
    """Whether this process prints and writes files: the only process, or the first one of a launch."""
    return environment_number("RANK", 0) == 0


def make_accelerator(device: Device) -> Accelerator:
    """Make accelerate's ``Accelerator`` for a device.

    Args:
        device: the device and its precision.

    Returns:
        The accelerator. It gives each process a slice of one batch, so the batch size counts all processes.

    Raises:
        InputError: the environment does not describe a launch.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs

    check_launch()
    # accelerate keeps one device and precision per process; a run on another one has to reset them
    placed, precise = PartialState._shared_state, AcceleratorState._shared_state
    elsewhere = bool(placed) and placed["device"].type != device.kind
    if elsewhere or (precise and precise.get("_mixed_precision") != device.precision):
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(
            cpu=device.kind == "cpu",
            mixed_precision=device.precision,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            # the buffers of these models are constants, and with a residual as large as the adapters
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except ValueError as error:  # a variable of ACCELERATE_… that is not what it should be
        raise InputError(f"accelerate cannot start ({error}); start with accelerate launch, or unset it") from error
    if accelerator.num_processes > 1 and device.kind == "cpu" and _fsdp_requested():
        _shard_on_the_cpu(accelerator)
    return accelerator


def check_launch() -> None:
    """Check the variables that a launcher of several processes sets, which accelerate and torch read as numbers.

    Raises:
        InputError: one of them is not a whole number within its range.
    """
    for name, low in LAUNCH_VARIABLES.items():
        environment_number(name, low, low)


LAUNCH_VARIABLES = {"RANK": 0, "LOCAL_RANK": -1, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 1}
"""By name, the smallest number that each may hold."""


def _fsdp_requested() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _shard_on_the_cpu(accelerator: Accelerator) -> None:
    """Turn FSDP on for ``accelerate launch --use_fsdp`` without a card. Accelerate itself shards on cards only."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    # reads the launch's other settings from the environment, as Accelerator does on cards
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    for state in (PartialState._shared_state, AcceleratorState._shared_state):  # one may be copied over the other
        state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def prepare(accelerator: Accelerator, *parts: Any) -> Any:
    """Prepare model, optimiser, batches and schedule with accelerate's ``prepare``, in the order given."""
    with warnings.catch_warnings():
        # torch 2.13 is about to rename this option; earlier versions know no other name
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return accelerator.prepare(*parts)


def unwrap(accelerator: Accelerator, model: Any) -> Any:
    """Return the model inside what :func:`prepare` made of it. A sharded model can generate as well."""
    inner = accelerator.unwrap_model(model)
    if is_sharded(accelerator) and hasattr(inner, "generate"):
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(inner, "generate")  # gathers the weights as forward does
    return inner


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the weights (FSDP)."""
    return bool(str(accelerator.distributed_type).endswith("FSDP"))


def is_distributed() -> bool:
    """Whether other processes take part in this run."""
    from accelerate.state import PartialState

    return bool(PartialState._shared_state.get("num_processes", 1) > 1)


def check_processes(cfg: RunConfig, accelerator: Accelerator) -> None:
    """Check that the run can be divided among the processes.

    Args:
        cfg: the config of the run.
        accelerator: knows the number of processes and whether they shard the weights.

    Raises:
        InputError: the batch cannot be divided by the number of processes, or FSDP has version 1.
    """
    if cfg.batch_size % accelerator.num_processes:
        raise InputError(
            f"batch_size={cfg.batch_size} cannot be divided by {accelerator.num_processes} processes; "
            f"choose a multiple of {accelerator.num_processes}"
        )
    if is_sharded(accelerator) and not accelerator.is_fsdp2:
        raise InputError("FSDP version 1 cannot shard frozen and trained weights together; add --fsdp_version 2")


def parts_of(cfg: RunConfig, accelerator: Accelerator) -> int:
    """Return the number of micro-batches that one process makes of its slice of a batch.

    ``accumulation`` counts the micro-batches of all processes. So the rows on one card at a time are the same with
    any number of cards.
    """
    return math.ceil(cfg.accumulation / int(accelerator.num_processes))


def backward(accelerator: Accelerator, model: Any, batch: Batch, parts: int = 1) -> Tensor:
    """Compute the mean loss over the batches of all processes, and its gradients.

    The mean is over targets: tokens, or the labels of a classifier. It does not matter which process and which
    micro-batch they are in.

    Args:
        accelerator: runs the backward pass and averages over processes.
        model: a model that returns its loss.
        batch: the slice of this process.
        parts: the number of micro-batches that ``batch`` is divided into, one after the other.

    Returns:
        The mean loss, a scalar tensor without a graph. The gradients are left in the parameters.
    """
    if parts == 1 and accelerator.num_processes == 1:
        loss: Tensor = model(**batch).loss
        accelerator.backward(loss)
        return loss.detach()
    micro_batches = split(batch, parts)
    counts = [count_targets(micro_batch) for micro_batch in micro_batches]
    targets = torch.stack(counts).sum().float()
    share = accelerator.num_processes / accelerator.reduce(targets.clone(), "sum")  # gradients get averaged
    total = torch.zeros((), device=targets.device)
    for number, (micro_batch, count) in enumerate(zip(micro_batches, counts, strict=True), start=1):
        with nullcontext() if number == parts else accelerator.no_sync(model):
            loss = model(**micro_batch).loss * (count * share)
            accelerator.backward(loss)
        total += loss.detach().float()
    mean: Tensor = accelerator.reduce(total, "mean")
    return mean


def split(batch: Batch, parts: int) -> Sequence[Batch]:
    """Divide ``batch`` into ``parts`` micro-batches whose numbers of rows differ by at most one."""
    if parts == 1:
        return [batch]
    chunks = {
        key: value.tensor_split(parts) if isinstance(value, Tensor) else [value] * parts for key, value in batch.items()
    }
    return [{key: chunk[i] for key, chunk in chunks.items()} for i in range(parts)]


def count_targets(batch: Batch) -> Tensor:
    """Count the labels that the loss of ``batch`` averages over: next tokens (B, T), or one label per row (B,)."""
    labels = batch["labels"]
    return (labels[:, 1:] != IGNORED).sum() if labels.ndim == 2 else torch.tensor(len(labels), device=labels.device)


def clip(accelerator: Accelerator, parameters: Iterable[Tensor], max_norm: float | None) -> float:
    """Clip gradients to the norm ``max_norm``, or leave them alone for ``None``. Return the norm before clipping."""
    norm = full_tensor(accelerator.clip_grad_norm_(list(parameters), max_norm or math.inf))
    return float(norm)


def trained_weights(model: Any) -> dict[str, Tensor]:
    """Return copies of the trained parameters by name, on the CPU, complete in every process."""
    return {n: full_tensor(p.detach()).cpu().clone() for n, p in model.named_parameters() if p.requires_grad}


def any_process(accelerator: Accelerator, vote: bool) -> bool:
    """Whether at least one process votes True. All processes get the same answer, so they end together."""
    if accelerator.num_processes == 1:
        return vote
    votes = accelerator.reduce(torch.tensor(float(vote), device=accelerator.device), "sum")
    return bool(votes > 0)


def share_of_rows(rows: int) -> range | None:
    """Choose the rows that this process measures.

    Args:
        rows: the number of rows that all processes measure together.

    Returns:
        The row numbers of this process. ``None`` means all rows: this is the only process, there are fewer rows than
        processes, or each process holds a part of the weights (FSDP) and they must make every step together.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    shared = PartialState._shared_state
    count, index = shared.get("num_processes", 1), shared.get("process_index", 0)
    if count == 1 or rows < count or shared.get("distributed_type") == DistributedType.FSDP:
        return None
    each = math.ceil(rows / count)
    return range(min(index * each, rows), min((index + 1) * each, rows))


def gather_lists(items: list[Any]) -> list[Any]:
    """Join the lists of all processes, in the order of the processes. Call this in every process."""
    from accelerate.utils import gather_object

    return list(gather_object(items))
