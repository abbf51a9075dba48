"""How fast a device multiplies and moves memory: measured here in moments, or published for a card elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from nlora_lab.core.devices import Device
from nlora_lab.core.validation import check_choice


@dataclass(frozen=True)
class Card:
    """A card's published peaks: operations a second (dense), bytes a second, bytes; ``bf16`` 0: no units for it."""

    words: str
    float32: float
    bf16: float
    bandwidth: float
    memory: float


CARDS = {
    "T4": Card("NVIDIA T4", 8.1e12, 0.0, 320e9, 15.0 * 2**30),
    "L4": Card("NVIDIA L4", 30.3e12, 121e12, 300e9, 22.5 * 2**30),
    "A100": Card("NVIDIA A100, 40 GB", 19.5e12, 312e12, 1555e9, 39.5 * 2**30),
    "A100-80GB": Card("NVIDIA A100, 80 GB", 19.5e12, 312e12, 2039e9, 79.2 * 2**30),
    "H100": Card("NVIDIA H100 SXM, 80 GB", 67e12, 989e12, 3350e9, 79.2 * 2**30),
}
"""NVIDIA's data sheets of the T4, L4, A100 and H100 Tensor Core GPU: float32 outside the tensor cores (PyTorch uses
TF32 only if asked to), bf16 in them, without sparsity. ``memory``: about what the driver shows of 16 to 80 GB."""

CONTEXT = 0.8 * 2**30  # bytes that CUDA's context, its libraries' workspaces and the allocator's gaps take of a card
SHARE_FLOAT32, SHARE_BF16, SHARE_BANDWIDTH = 0.55, 0.40, 0.75
"""Of a card's published peaks, what a training step is taken to reach. Assumed, not measured; for a T4 in float32 that
is 4.5 TFLOP/s, because its 70 W do not keep up the published clock."""
SHARE_MEASURED = 0.9  # of the rate of one matrix product measured here, which has the processor to itself
LAUNCH_CPU, LAUNCH_CARD = 1.5e-4, 4e-4
"""Seconds that one adapted layer takes to be asked for, forward and backward, however small it is. On the CPU as
benchmarks/estimates.py found it; on a card, which waits for Python to launch its kernels, assumed."""


PASSES_CPU, PASSES_CARD = 30, 4
"""Times that each activation and logit is read or written, at the rate of a plain product of two vectors. On a CPU as
benchmarks/estimates.py found it: fresh memory is slow at its first touch. On a card, assumed."""


@dataclass(frozen=True)
class Speed:
    """What a step is reckoned with: operations and bytes a second, seconds an adapted layer, passes over memory."""

    flops: float
    bandwidth: float
    launch: float
    passes: int
    overlaps: bool
    words: str


def published(name: str, bf16: bool) -> Speed:
    """A named card's speed; :class:`InputError` lists the known ones."""
    check_choice("device", name, CARDS)
    card = CARDS[name]
    share, peak = (SHARE_BF16, card.bf16) if bf16 and card.bf16 else (SHARE_FLOAT32, card.float32)
    words = (
        f"{share:.0%} of its published {peak / 1e12:.3g} TFLOP/s in {'bfloat16' if peak == card.bf16 else 'float32'}"
    )
    return Speed(peak * share, card.bandwidth * SHARE_BANDWIDTH, LAUNCH_CARD, PASSES_CARD, True, words)


def measured(device: Device, shape: tuple[int, int], bf16: bool) -> Speed:
    """The speed here with matrices of ``shape`` (out, in) and nothing else running: measured in moments, and kept."""
    import torch

    return _measure(device.kind, shape, bf16, torch.get_num_threads())


@lru_cache(maxsize=16)
def _measure(kind: str, shape: tuple[int, int], bf16: bool, threads: int) -> Speed:
    import torch

    m, n = shape
    dtype = torch.bfloat16 if bf16 else torch.float32
    x, w = (torch.ones(rows, n, device=kind, dtype=dtype) for rows in (512, m))
    long = torch.ones(2**22, device=kind)

    def wait() -> None:
        if kind != "cpu":
            (torch.cuda if kind == "cuda" else torch.mps).synchronize()

    with torch.no_grad():
        # on a CPU this thread's own processor time: the clock's would count what other programs do
        clock = time.thread_time if kind == "cpu" else time.perf_counter
        product = _seconds(lambda: x @ w.T, wait, clock)
        passes = _seconds(lambda: long * long, wait, clock)
    flops, bandwidth = 2 * 512 * m * n / product * SHARE_MEASURED, 8 * long.numel() / passes
    where = f"{threads} thread{'s' if threads != 1 else ''} here" if kind == "cpu" else f"{kind} here"
    words = f"{flops / 1e9:,.0f} GFLOP/s, {SHARE_MEASURED:.0%} of a product of ({m}, {n}) measured on {where}"
    if kind == "cpu":
        return Speed(flops, bandwidth, LAUNCH_CPU, PASSES_CPU, False, words)
    return Speed(flops, bandwidth, LAUNCH_CARD, PASSES_CARD, True, words)


def _seconds(
    work: Callable[[], object], wait: Callable[[], None], clock: Callable[[], float], limit: float = 0.12
) -> float:
    """The median time of ``work`` within ``limit`` seconds; the first time is for allocation alone."""
    work()
    wait()
    times: list[float] = []
    end = time.perf_counter() + limit
    while time.perf_counter() < end or not times:
        started = clock()
        work()
        wait()
        times.append(clock() - started)
    return sorted(times)[len(times) // 2]
