"""Which device a run uses, said in words, and how much memory it took."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice

if TYPE_CHECKING:
    pass

DEVICES = ("cuda", "mps", "cpu")
OVERRIDE = "NLORA_LAB_DEVICE"


@dataclass(frozen=True)
class Device:
    """A device and the precision a run takes on it."""

    kind: str  # "cuda", "mps" or "cpu"
    precision: str  # "bf16" (autocast) or "no" (float32), accelerate's words
    words: str


def find_device(wanted: str | None = None) -> Device:
    """The device asked for, or the best one here: CUDA, then Apple's MPS, then the CPU.

    ``NLORA_LAB_DEVICE`` in the environment overrides ``wanted``. CUDA cards with bf16 units run
    under bf16 autocast, everything else in float32. Raises :class:`InputError` if the device is
    unknown or not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = os.environ.get(OVERRIDE) or wanted or next(d for d in DEVICES if there[d])
    check_choice("device", kind, DEVICES)
    if not there[kind]:
        raise InputError(f"device={kind!r} is not there; leave device out, or use 'cpu'")
    if kind == "cuda":
        # without this flag torch counts slow emulation (a T4's) as support
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name()
        return Device(kind, "bf16" if bf16 else "no", f"{name}, {'bfloat16 autocast' if bf16 else 'float32'}")
    if kind == "mps":
        return Device(kind, "no", "Apple GPU, float32")
    threads = torch.get_num_threads()
    return Device(kind, "no", f"CPU, {threads} thread{'s' if threads != 1 else ''}, float32")


class PeakMemory:
    """The most memory seen at the moments :meth:`look` was called, in bytes.

    On CUDA the allocator's own peak since the start; elsewhere the resident size of this whole
    process, because the operating system keeps no peak for a part of one.
    """

    def __init__(self, kind: str) -> None:
        import psutil
        import torch

        self._kind, self._process, self.bytes = kind, psutil.Process(), 0
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.look()

    def look(self) -> None:
        """Take a reading (some 20 µs)."""
        import torch

        now = torch.cuda.max_memory_allocated() if self._kind == "cuda" else self._process.memory_info().rss
        self.bytes = max(self.bytes, int(now))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an allocation failed, on a card or on the CPU."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def release_memory() -> None:
    """Give back what nothing refers to any more, after an allocation has failed."""
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()  # without a card it does nothing
