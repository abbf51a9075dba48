"""The conditions of a run: its device, how it computes there, and how much memory is free."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nlora_lab.core.devices import DEVICES, Device
from nlora_lab.core.validation import check_choice
from nlora_lab.estimates.shapes import Architecture
from nlora_lab.estimates.throughput import CARDS
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import ResolvedRun, resolve, run_device

FLOAT32, BFLOAT16 = 4, 2  # bytes per number
CUDA_OVERHEAD = 0.8 * 2**30  # bytes of a card that CUDA's context, its workspaces and the allocator's gaps take
SPARE = 0.05  # share of the free memory that is left for what no formula sees


@dataclass(frozen=True)
class Setting:
    """How a run computes on its device.

    Attributes:
        autocast: whether it computes in bfloat16 under autocast.
        weight_bytes: bytes per frozen weight of the model.
        eager_attention: whether attention saves its weights, which grow with the square of the length.
        on_cpu: whether it takes the memory of the machine itself. Apple's GPU does, too.
    """

    autocast: bool
    weight_bytes: int
    eager_attention: bool
    on_cpu: bool

    @property
    def activation_bytes(self) -> int:
        """Bytes per number of most activations."""
        return BFLOAT16 if self.autocast else FLOAT32


def run_setting(arch: Architecture, run: ResolvedRun) -> Setting:
    """Decide how a run computes, as ``nlora_lab.training.setup`` sets it up.

    Args:
        arch: the architecture of the model.
        run: the resolved run.

    Returns:
        The setting.
    """
    attention, on_cpu = run.config.attention, run.device.kind in ("cpu", "mps")
    # with dropout on the attention weights a CPU has only the eager way
    eager = attention == "eager" or (attention is None and not arch.has_sdpa) or (arch.dropout and on_cpu)
    weight_bytes = BFLOAT16 if run.dtype == "bfloat16" else FLOAT32
    return Setting(run.device.precision == "bf16", weight_bytes, eager, on_cpu)


def estimate_device(cfg: RunConfig, name: str | None = None) -> Device:
    """Find the device to estimate for, in the precision that a run takes on it.

    Args:
        cfg: the config of the run.
        name: "cuda", "mps" or "cpu", or a card that need not be here (a key of ``CARDS``). Default: the device
            of the run.

    Returns:
        The device. The ``kind`` of a card that is not here is its name.

    Raises:
        InputError: the device is unknown, or it should be here and is not.
    """
    if name is None or name in DEVICES:
        return run_device(cfg if name is None else replace(cfg, device=name))
    check_choice("device", name, (*DEVICES, *CARDS))
    half = cfg.precision == "bf16" or (cfg.precision is None and CARDS[name].bf16 > 0)
    words = f"{CARDS[name].words} (not here), {'bfloat16 autocast' if half else 'float32'}"
    return Device(name, "bf16" if half else "no", words)


def resolve_on(cfg: RunConfig, device: Device) -> ResolvedRun:
    """Resolve a run for ``device``, in the precision that ``cfg`` names, if it names one."""
    if cfg.precision is not None:
        device = replace(device, precision="bf16" if cfg.precision == "bf16" else "no")
    return resolve(cfg, device)


def free_memory(device: Device) -> int:
    """Look up how much memory of a device is free now.

    Args:
        device: a device here, or a card as ``estimate_device`` returns it.

    Returns:
        Bytes. For a card that is not here: its memory without what CUDA itself takes.
    """
    if device.kind in CARDS:
        return int(CARDS[device.kind].memory - CUDA_OVERHEAD)
    if device.kind == "cuda":
        import torch

        # torch keeps memory for later allocations, which is free too
        reserved = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0] + reserved)
    import psutil

    return int(psutil.virtual_memory().available)
