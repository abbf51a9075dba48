"""What a run needs in memory and time, before anything is loaded, and whether that fits here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from nlora_lab.core.devices import Device
from nlora_lab.core.errors import FitError, ModelError
from nlora_lab.core.formatting import format_bytes, format_duration
from nlora_lab.core.validation import check_choice, check_whole_number, environment_number
from nlora_lab.estimates.conditions import FLOAT32, SPARE, estimate_device, free_memory, resolve_on
from nlora_lab.estimates.memory import Memory, memory_needed
from nlora_lab.estimates.remedies import advice
from nlora_lab.estimates.row_lengths import run_lengths
from nlora_lab.estimates.shapes import Architecture, architecture_sizes, read_architecture
from nlora_lab.estimates.timing import device_speed, evaluation_seconds, step_flops, step_seconds
from nlora_lab.models.loading import meta_body
from nlora_lab.runs.config import RunConfig
from nlora_lab.tasks.sources import find_source

MEMORY_FACTOR, TIME_FACTOR = 1.4, 1.5
"""Estimates of training were within these factors of the measurement, on one thread of a CPU with nothing else running:
benchmarks/results/estimates.json. Evaluation and cards were not measured."""

MEMORY_CHECK = "NLORA_LAB_MEMORY_CHECK"
"""An environment variable. With "off", a run starts although it does not fit by the estimate."""

ACCURACY_NOTE = (
    f"On a CPU, the memory of training was within a factor of {MEMORY_FACTOR:g} of the measurement, and its time "
    f"within {TIME_FACTOR:g}. Evaluation was not measured, and no card was."
)


@dataclass(frozen=True)
class Estimate(Memory):
    """What a run needs. All numbers are estimates, not measurements.

    The bytes are those of ``Memory``, where their formulas stand: ``weights``, ``adapter``, ``gradients``,
    ``optimizer``, ``activations``, ``logits``, ``evaluation``, and at the worst moments ``training`` and ``total``.

    Attributes:
        cfg: the config of the run.
        trained: the number of trainable parameters.
        flops: floating-point operations of all training steps.
        seconds_a_step: seconds per training step.
        seconds: seconds of all training steps, without loading.
        evaluation_seconds: seconds to answer the test rows and to measure the validation loss.
        device: the device, in words.
        speed: the speed that the times assume, in words.
        budget: the bytes free on the device now. For a card that is not here, those of an empty one.
        fits: whether ``total`` is at most 95 % of ``budget``.
        why: that comparison in words.
        advice: changes that make the run fit, the smallest first. Empty if it fits.
        assumed: the lengths of the rows that were assumed, in words.
    """

    cfg: RunConfig = field(repr=False)
    trained: int
    flops: float
    seconds_a_step: float
    seconds: float
    evaluation_seconds: float
    device: str
    speed: str
    budget: int
    fits: bool
    why: str
    advice: tuple[str, ...]
    assumed: str

    def to_dict(self) -> dict[str, Any]:
        """Return all fields but the config, for JSON.

        Returns:
            Numbers and texts by field. ``advice`` is a list.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "cfg"}
        return {**values, "advice": list(self.advice)}

    def __repr__(self) -> str:
        c = self.cfg
        parts = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "evaluation", "total")
        lines = [f"{c.method}, rank {c.rank}, on {c.model}: {self.trained:,} trainable parameters", f"on {self.device}"]
        lines += [f"  {name:<16}{format_bytes(getattr(self, name)):>12}" for name in parts]
        lines += [
            f"  training        {_duration(self.seconds)}, {c.steps:,} steps of {_duration(self.seconds_a_step)}",
            f"  evaluation time {_duration(self.evaluation_seconds)}",
            f"  operations      {self.flops:.2e}",
        ]
        lines += [self.why, *(f"  - {change}" for change in self.advice)]
        lines.append(f"An estimate, for {self.assumed}. Speed: {self.speed}. {ACCURACY_NOTE}")
        return "\n".join(lines)

    __str__ = __repr__


def estimate(cfg: RunConfig, device: str | None = None, *, head: int | None = None, config: Any = None) -> Estimate:
    """Estimate what a run needs in memory and time. Only the config of its model is read, and no weights.

    Args:
        cfg: the config of the run.
        device: "cuda", "mps" or "cpu", whose speed is then measured in under half a second, or a card that need not be
            here: "T4", "L4", "A100", "A100-80GB" or "H100". Default: the device of the run.
        head: the outputs of a classification head, or 0 for a language model. Default: those of the task.
        config: a transformers config, or an ``Architecture``, to use instead of the model's own, for example where
            that cannot be reached.

    Returns:
        The estimate: bytes, seconds, whether the run fits, and what would help if it does not.

    Raises:
        InputError: the device is unknown or not available, the data of the run are not there, or the rank is above the
            smaller side of a layer.
        ModelError: the config of the model cannot be found or read.
    """
    if cfg.data is not None:
        find_source(cfg.data)  # nothing is read, but a file that is not there needs no estimate
    if head is not None:
        check_whole_number("head", head, low=0)
    arch = config if isinstance(config, Architecture) else None
    if arch is None:
        arch = read_architecture(cfg.model, cfg.revision) if config is None else architecture_sizes(meta_body(config))
    run = resolve_on(cfg, estimate_device(cfg, device))
    head = run.head if head is None else head
    lengths = run_lengths(arch, cfg)
    memory, speed = memory_needed(arch, run, lengths, head), device_speed(arch, run)
    step = step_seconds(arch, run, lengths, speed, head)
    budget = free_memory(run.device)
    usable = budget * (1 - SPARE)
    fits = memory.total <= usable
    return Estimate(
        **asdict(memory),
        cfg=cfg,
        trained=memory.gradients // FLOAT32,
        flops=cfg.steps * step_flops(arch, run, lengths.padded, head),
        seconds_a_step=step,
        seconds=cfg.steps * step,
        evaluation_seconds=evaluation_seconds(arch, run, lengths, speed, head),
        device=run.device.words,
        speed=speed.words,
        budget=budget,
        fits=fits,
        why=_comparison(memory, budget, fits, run.device.words),
        advice=() if fits else advice(arch, cfg, run.device, usable, head),
        assumed=lengths.description,
    )


def check_fit(cfg: RunConfig, device: Device | str | None = None) -> None:
    """Check that a run fits into the memory that is free now.

    The check is quick, because no speed is measured and architectures are cached. It passes where the architecture
    cannot be read from a config, because loading the model will say why. With several processes each holds its share
    of the batch. Under FSDP they share the weights too, and nothing is refused. ``NLORA_LAB_MEMORY_CHECK=off`` in the
    environment skips the check.

    Args:
        cfg: the config of the run.
        device: the device, or its name as for ``nl.estimate``. Default: the device of the run.

    Raises:
        FitError: the run does not fit. The message has the numbers and a remedy.
        InputError: the device is unknown or not available, or the rank is above the smaller side of a layer.
    """
    check_choice(MEMORY_CHECK, choice := os.environ.get(MEMORY_CHECK) or "on", ("on", "off"))
    if choice == "off" or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return
    if not isinstance(device, Device):
        device = estimate_device(cfg, device)
    cfg = _share_of_process(cfg, environment_number("WORLD_SIZE", 1, low=1))
    try:
        arch, memory = _memory_on(cfg, device)
    except ModelError:
        return
    budget = free_memory(device)
    usable = budget * (1 - SPARE)
    if memory.total > usable:
        changes = advice(arch, cfg, device, usable, resolve_on(cfg, device).head)
        raise FitError(
            f"{_comparison(memory, budget, False, device.words)} Try {'; or '.join(changes) or 'a smaller model'}. "
            f"To run it anyway, set {MEMORY_CHECK}=off"
        )


def how_many_fit(cfgs: Iterable[RunConfig]) -> int | None:
    """Count how many runs fit side by side into the memory that is free now.

    Args:
        cfgs: the configs of the runs. Each run counts as large as the largest of them.

    Returns:
        The number of runs, at least 1, or ``None`` where no architecture can be read from a config.

    Raises:
        InputError: a rank is above the smaller side of a layer.
    """
    counts: list[int] = []
    for cfg in cfgs:
        device = estimate_device(cfg)
        with suppress(ModelError):
            counts.append(int(free_memory(device) * (1 - SPARE) // _memory_on(cfg, device)[1].total))
    return max(1, min(counts)) if counts else None


def _memory_on(cfg: RunConfig, device: Device) -> tuple[Architecture, Memory]:
    arch = read_architecture(cfg.model, cfg.revision)
    return arch, memory_needed(arch, resolve_on(cfg, device))


def _share_of_process(cfg: RunConfig, processes: int) -> RunConfig:
    """The part of a run that each of several processes computes."""
    if processes == 1 or cfg.batch_size % processes:
        return cfg
    parts, size = -(-cfg.accumulation // processes), cfg.batch_size // processes
    return replace(cfg, batch_size=size, accumulation=parts if size % parts == 0 else 1)


def _comparison(memory: Memory, budget: int, fits: bool, device: str) -> str:
    """What a run needs beside what is free, in words."""
    if fits:
        return f"It fits: about {format_bytes(memory.total)} of the {format_bytes(budget)} free on {device}."
    parts = {name: size for name, size in asdict(memory).items() if name not in ("training", "total")}
    largest = max(parts, key=lambda name: parts[name])
    return (
        f"It will not fit: about {format_bytes(memory.total)} by estimate, and {format_bytes(budget)} are free on "
        f"{device}. The largest part is {largest}, {format_bytes(parts[largest])}."
    )


def _duration(seconds: float) -> str:
    """A duration, also one of less than ten seconds."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else format_duration(seconds)
