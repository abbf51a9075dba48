"""The arithmetic and the time of a run by formula: floating-point operations, memory traffic, and kernel launches."""

from __future__ import annotations

import math
from dataclasses import replace

from nlora_lab.estimates.conditions import run_setting
from nlora_lab.estimates.memory import answered_at_once, cached_bytes, memory_needed
from nlora_lab.estimates.row_lengths import RowLengths, task_rows
from nlora_lab.estimates.shapes import Architecture, adapter_sizes
from nlora_lab.estimates.throughput import CARDS, Speed, measured_speed, published_speed
from nlora_lab.runs.resolution import ResolvedRun

UPDATE = 7  # numbers that AdamW reads and writes per trained parameter: weight, gradient, two means


def step_flops(arch: Architecture, run: ResolvedRun, length: int, head: int = 0) -> float:
    """Count the floating-point operations of one optimiser step. A multiply-add counts as two.

    With N = ``Architecture.multiplied()``, a token costs 2N forward, and 2N backward for the gradient of the
    activations. Full fine-tuning adds 2N for the gradient of the weights. An adapter adds 2 forward and 4 backward per
    parameter, 2 per frozen one, and twice that where a start is subtracted. Checkpointing adds the forward pass of the
    layers. Attention costs 4 T q per layer forward and twice that backward. Nothing is saved for the causal half.

    Args:
        arch: the architecture of the model.
        run: the resolved run.
        length: the tokens T in a row.
        head: the outputs of a classification head, or 0 for a language model.

    Returns:
        The number of operations.
    """
    cfg, added = run.config, adapter_sizes(arch, run, head)
    N = arch.multiplied(head)
    attention = 4 * length * arch.query_width * arch.layers
    per_token = 3 * attention + (6 if added.full else 4) * N
    if not added.full:
        per_token += 6 * added.copied if added.copied else 6 * added.trained + 4 * added.frozen
    if cfg.checkpointing:
        per_token += 2 * (N - (head or arch.vocabulary) * arch.hidden) + attention
    return float(per_token * cfg.batch_size * length)


def forward_flops(arch: Architecture, head: int = 0) -> float:
    """Count the floating-point operations per token in a forward pass, without those of attention."""
    return 2.0 * arch.multiplied(head)


def device_speed(arch: Architecture, run: ResolvedRun) -> Speed:
    """Find the speed of the device of a run.

    Args:
        arch: the architecture of the model, whose widest layer is what a device here multiplies.
        run: the resolved run.

    Returns:
        The measured speed of a device here, or the published one of a card that is not.
    """
    bf16 = run_setting(arch, run).autocast
    if run.device.kind in CARDS:
        return published_speed(run.device.kind, bf16)
    widest = max(((m, n) for _, m, n in arch.linears), key=lambda shape: shape[0] * shape[1])
    return measured_speed(run.device, widest, bf16)


def step_seconds(arch: Architecture, run: ResolvedRun, lengths: RowLengths, speed: Speed, head: int = 0) -> float:
    """Compute the time of one optimiser step.

    It is the operations and the memory traffic, each over the rate of the device, and the time to launch the layers.

    Args:
        arch: the architecture of the model.
        run: the resolved run.
        lengths: the tokens of its rows.
        speed: the speed of the device.
        head: the outputs of a classification head, or 0 for a language model.

    Returns:
        The time in seconds.
    """
    cfg = run.config
    plain = replace(run, config=replace(cfg, checkpointing=False))
    memory = memory_needed(arch, plain, replace(lengths, longest=lengths.padded), head)
    traffic = speed.passes * cfg.accumulation * (memory.activations + memory.logits) + UPDATE * memory.gradients
    computing = step_flops(arch, run, lengths.padded, head) / speed.flops + traffic / speed.bandwidth
    launching = cfg.accumulation * len(arch.linears) * speed.launch * (4 / 3 if cfg.checkpointing else 1)
    return max(computing, launching) if speed.overlaps else computing + launching


def evaluation_seconds(arch: Architecture, run: ResolvedRun, lengths: RowLengths, speed: Speed, head: int = 0) -> float:
    """Compute the time to answer the test rows and to measure the validation loss.

    A generated token takes at least the time to read all weights once, however few rows are answered together.

    Args:
        arch: the architecture of the model.
        run: the resolved run.
        lengths: the tokens of its rows.
        speed: the speed of the device.
        head: the outputs of a classification head, or 0 for a language model.

    Returns:
        The time in seconds.
    """
    setting, rows = run_setting(arch, run), task_rows(run.config)
    per_token = forward_flops(arch, head) / speed.flops
    test, generates = min(run.config.test_rows or rows.test, rows.test), bool(lengths.answer) and not head
    seconds = (0 if generates else test) * lengths.padded * per_token
    seconds += rows.validation * lengths.padded * per_token
    if generates:
        cached = cached_bytes(arch, setting)
        limit = answered_at_once(lengths, cached)
        together = min(test, limit)
        cache = together * (lengths.prompt + lengths.answer / 2) * cached
        reading = (arch.multiplied() * setting.weight_bytes + 2 * cache) / speed.bandwidth
        computing = max(reading, together * per_token)
        launching = len(arch.linears) * speed.launch / 3
        token = max(computing, launching) if speed.overlaps else computing + launching
        seconds += math.ceil(test / limit) * lengths.answer * token + test * lengths.prompt * per_token
    return seconds
