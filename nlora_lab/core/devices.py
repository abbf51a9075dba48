"""The device and precision of a run, and the memory that it uses."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice

DEVICES = ("cuda", "mps", "cpu")
OVERRIDE = "NLORA_LAB_DEVICE"


@dataclass(frozen=True)
class Device:
    """A device and the precision of a run on it.

    Attributes:
        kind: "cuda", "mps" or "cpu".
        precision: "bf16" (bfloat16 autocast) or "no" (float32), as accelerate names them.
        words: a description for people, for example "CPU, 2 threads, float32".
    """

    kind: str
    precision: str
    words: str


def find_device(name: str | None = None) -> Device:
    """Return the device with a name, or the best device of this machine.

    The best device is CUDA, then Apple's MPS, then the CPU. The environment variable ``NLORA_LAB_DEVICE`` overrides
    ``name``. CUDA cards with bfloat16 units run under bfloat16 autocast. Every other device runs in float32.

    Args:
        name: "cuda", "mps" or "cpu", or ``None`` for the best device.

    Returns:
        The device with its precision and a description.

    Raises:
        InputError: the name or the variable is not known, or this machine has no such device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    override = os.environ.get(OVERRIDE)
    if name is not None:  # checked where it is overridden too
        check_choice("device", name, DEVICES)
    if override:
        check_choice(OVERRIDE, override, DEVICES)
    kind = override or name or next(d for d in DEVICES if available[d])
    if not available[kind]:
        source = OVERRIDE if override else "device"
        raise InputError(f"{source}={kind!r} is not available on this machine; leave it out, or use 'cpu'")
    if kind == "cuda":
        # without this flag torch counts slow emulation (on a T4, for example) as support
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        card = torch.cuda.get_device_name()
        return Device(kind, "bf16" if bf16 else "no", f"{card}, {'bfloat16 autocast' if bf16 else 'float32'}")
    if kind == "mps":
        return Device(kind, "no", "Apple GPU, float32")
    threads = torch.get_num_threads()
    return Device(kind, "no", f"CPU, {threads} thread{'s' if threads != 1 else ''}, float32")


def processor() -> str:
    """Return the name of this machine's processor, as its operating system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor without a name there
        return platform.processor() or platform.machine()


class PeakMemory:
    """The highest memory use so far.

    On CUDA this is the peak of torch's allocator since the start. On other devices it is the highest resident size of
    the complete process at the calls of ``look``, because the operating system keeps no peak for a part of a process.

    Args:
        kind: the device: "cuda", "mps" or "cpu".

    Attributes:
        bytes: the peak in bytes.
    """

    def __init__(self, kind: str) -> None:
        import psutil
        import torch

        self._kind, self._process, self.bytes = kind, psutil.Process(), 0
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.look()

    def look(self) -> None:
        """Read the memory use (about 20 µs)."""
        import torch

        now = torch.cuda.max_memory_allocated() if self._kind == "cuda" else self._process.memory_info().rss
        self.bytes = max(self.bytes, int(now))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory could not be allocated, on a card or on the CPU.

    Args:
        error: any exception.

    Returns:
        ``True`` for Python's ``MemoryError``, torch's ``OutOfMemoryError`` and torch's message for the CPU.
    """
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def release_memory() -> None:
    """Free memory that nothing refers to any more. Call this after an allocation has failed."""
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()  # without a card it does nothing
