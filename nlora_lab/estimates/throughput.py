"""How fast a device computes and moves memory: measured here in moments, or published for a card that is not here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from nlora_lab.core.devices import Device


@dataclass(frozen=True)
class Card:
    """The published peaks of a graphics card.

    Attributes:
        words: what it is called in full.
        float32: operations per second in float32.
        bf16: operations per second in bfloat16 (dense), or 0 if the card has no units for it.
        bandwidth: bytes per second from and to its memory.
        memory: bytes of its memory.
    """

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
"""Cards by name, from NVIDIA's data sheets of the T4, L4, A100 and H100 Tensor Core GPU, the smallest memory first.

Operations in float32 are those outside the tensor cores, because PyTorch uses TF32 only if told to. Operations in
bfloat16 are those of the tensor cores without sparsity. ``memory`` is about what the driver reports of 16 to 80 GB."""

SHARE_FLOAT32, SHARE_BF16, SHARE_BANDWIDTH = 0.55, 0.40, 0.75
"""The shares of a card's published peaks that a training step reaches. Assumed, not measured. For a T4 in float32 this
is 4.5 TFLOP/s, because its 70 W do not sustain the published clock."""

SHARE_MEASURED = 0.9
"""The share of the rate of one matrix product measured here that a step reaches. The product has the processor to
itself."""

LAUNCH_CPU, LAUNCH_CARD = 1.5e-4, 4e-4
"""Seconds to launch one adapted layer, forward and backward, however small it is. On the CPU from
benchmarks/estimates.py. On a card, which waits for Python to launch its kernels, assumed."""

PASSES_CPU, PASSES_CARD = 30, 4
"""How often each activation and logit is read or written, at the rate of an elementwise product of two vectors. On a
CPU from benchmarks/estimates.py: fresh memory is slow at its first touch. On a card, assumed."""


@dataclass(frozen=True)
class Speed:
    """The speed that an estimate of time assumes.

    Attributes:
        flops: floating-point operations per second.
        bandwidth: bytes per second.
        launch: seconds to launch one adapted layer, forward and backward.
        passes: how often each activation and logit is read or written.
        overlaps: whether launching and computing overlap, as on a card.
        words: where these numbers come from.
    """

    flops: float
    bandwidth: float
    launch: float
    passes: int
    overlaps: bool
    words: str


def published_speed(name: str, bf16: bool) -> Speed:
    """Return the speed of a card by its published peaks.

    Args:
        name: a key of ``CARDS``.
        bf16: whether it computes in bfloat16. A card without units for it computes in float32.

    Returns:
        The speed.
    """
    card = CARDS[name]
    share, peak = (SHARE_BF16, card.bf16) if bf16 and card.bf16 else (SHARE_FLOAT32, card.float32)
    dtype = "bfloat16" if peak == card.bf16 else "float32"
    words = f"{share:.0%} of its published {peak / 1e12:.3g} TFLOP/s in {dtype}"
    return Speed(peak * share, card.bandwidth * SHARE_BANDWIDTH, LAUNCH_CARD, PASSES_CARD, True, words)


def measured_speed(device: Device, shape: tuple[int, int], bf16: bool) -> Speed:
    """Measure the speed of a device here, in under half a second. The result is cached in this process.

    Args:
        device: the device.
        shape: outputs and inputs of the matrix that is multiplied.
        bf16: whether to multiply in bfloat16.

    Returns:
        The speed with nothing else running.
    """
    import torch

    return _measure(device.kind, shape, bf16, torch.get_num_threads())


@lru_cache(maxsize=16)
def _measure(kind: str, shape: tuple[int, int], bf16: bool, threads: int) -> Speed:
    import torch

    m, n = shape
    dtype = torch.bfloat16 if bf16 else torch.float32
    x, w = (torch.ones(rows, n, device=kind, dtype=dtype) for rows in (512, m))
    vector = torch.ones(2**22, device=kind)

    def wait() -> None:
        if kind != "cpu":
            (torch.cuda if kind == "cuda" else torch.mps).synchronize()

    with torch.no_grad():
        # on a CPU the processor time of this thread: a wall clock would count what other programs do
        clock = time.thread_time if kind == "cpu" else time.perf_counter
        product = _median_seconds(lambda: x @ w.T, wait, clock)
        elementwise = _median_seconds(lambda: vector * vector, wait, clock)
    flops, bandwidth = 2 * 512 * m * n / product * SHARE_MEASURED, 8 * vector.numel() / elementwise
    place = f"{threads} thread{'s' if threads != 1 else ''} here" if kind == "cpu" else f"{kind} here"
    words = f"{flops / 1e9:,.0f} GFLOP/s, {SHARE_MEASURED:.0%} of a product with a ({m}, {n}) matrix on {place}"
    if kind == "cpu":
        return Speed(flops, bandwidth, LAUNCH_CPU, PASSES_CPU, False, words)
    return Speed(flops, bandwidth, LAUNCH_CARD, PASSES_CARD, True, words)


def _median_seconds(
    work: Callable[[], object], wait: Callable[[], None], clock: Callable[[], float], limit: float = 0.12
) -> float:
    """The median time of ``work`` within ``limit`` seconds. The first call only allocates, and is not timed."""
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
