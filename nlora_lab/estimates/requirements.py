"""What a run will take in memory and time, before anything is loaded: :func:`estimate` and :func:`check_fit`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nlora_lab.core.devices import DEVICES, Device
from nlora_lab.core.errors import FitError, InputError, ModelError
from nlora_lab.core.formatting import format_bytes
from nlora_lab.estimates.memory import (
    FLOAT,
    HALF,
    Architecture,
    Lengths,
    Memory,
    Setting,
    answer_flops,
    answered_at_once,
    architecture,
    memory,
    rounds,
    sizes,
    step_flops,
)
from nlora_lab.estimates.row_lengths import row_lengths
from nlora_lab.estimates.throughput import CARDS, CONTEXT, Speed, measured, published
from nlora_lab.methods.table import get_method
from nlora_lab.models.loading import meta_body
from nlora_lab.runs.resolution import resolve, run_device

if TYPE_CHECKING:
    from nlora_lab.runs.config import RunConfig

MEMORY_FACTOR, TIME_FACTOR = 1.4, 1.5
"""Within these factors of what was measured the estimates of training lie, on one thread of a CPU with nothing else
running: benchmarks/results/estimates.json. Evaluation was not compared, and no card."""
SPARE = 0.05  # of the free memory, for what no formula sees
UPDATE = 7  # numbers that AdamW reads and writes for each trained one: weight, gradient, two averages


OVERRIDE = "NLORA_LAB_MEMORY_CHECK"  # "off": run although it will not fit by the estimate


@dataclass(frozen=True)
class Estimate:
    """What a run is reckoned to take. Bytes, seconds, and floating-point operations; an estimate, not a measurement.

    The bytes ``weights``, ``adapter``, ``gradients``, ``optimizer``, ``activations``, ``logits``, ``evaluation``, and
    at the worst moments ``training`` and ``total``, are those of :class:`nlora_lab.estimates.memory.Memory`, where their
    formulas stand.

    Attributes:
        flops: of all training steps (:func:`nlora_lab.estimates.memory.step_flops`).
        seconds_a_step: operations, and memory traffic, each over the device's rate, and the time to ask for the layers.
        seconds: of training, ``steps`` times that; loading is left out.
        evaluation_seconds: of the answers to the test rows and of the validation loss. A generated token takes at
            least the time to read all weights once, bytes / bandwidth, however few rows are answered together.
        trained: numbers that train.
        device: in words. ``speed``: what its rate was taken from, in words.
        budget: bytes free on the device now; of a named card, those of an empty one.
        fits: whether total is below 95 % of the budget.
        why: that comparison in words. ``advice``: changes that by this estimate help, the smallest first.
        assumed: what was assumed, in words.
    """

    cfg: RunConfig = field(repr=False)
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    evaluation: int
    training: int
    total: int
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
        """All of it but the config, for JSON; advice as a list."""
        return {k: v for k, v in asdict(replace(self, cfg=None)).items() if k != "cfg"}  # type: ignore[arg-type]

    def __repr__(self) -> str:
        c = self.cfg
        parts = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "evaluation", "total")
        rows = [(name, format_bytes(getattr(self, name))) for name in parts]
        rows += [("training", f"{_time(self.seconds)}, {c.steps:,} steps of {_time(self.seconds_a_step)}")]
        rows += [("evaluation time", _time(self.evaluation_seconds)), ("operations", f"{self.flops:.2e}")]
        lines = [f"{c.method}, rank {c.rank}, on {c.model}: {self.trained:,} numbers train", f"on {self.device}"]
        lines += [f"  {name:<16}{value:>12}" if name in parts else f"  {name:<16}{value}" for name, value in rows]
        lines += [self.why, *(f"  - {word}" for word in self.advice)]
        return "\n".join([*lines, f"An estimate: {self.assumed}; speed {self.speed}. {FOUND}"])

    __str__ = __repr__


FOUND = (
    f"On a CPU, memory of training was found within a factor of {MEMORY_FACTOR:g} of what was measured, time within "
    f"{TIME_FACTOR:g}; evaluation, and all on a card, was not measured."
)


def estimate(cfg: RunConfig, device: str | None = None, *, head: int | None = None, config: Any = None) -> Estimate:
    """What ``cfg`` will take in memory and time, from the shapes in its model's config; no weight is loaded.

    ``device``: "cuda", "mps" or "cpu" (default: the run's own), whose speed is measured in under half a second; or a
    card that need not be here: T4, L4, A100, A100-80GB, H100. ``head``: the outputs of a classification head; ``None``
    asks the task. ``config``: a transformers config, or shapes, to use instead of the model's own, as where that is
    out of reach.

    Raises :class:`nlora_lab.InputError` for an unknown device, a rank above a layer's smaller side, and a model whose
    config cannot be found (:class:`nlora_lab.ModelError`).
    """
    arch = config if isinstance(config, Architecture) else None
    if arch is None:
        arch = architecture(cfg.model, cfg.revision) if config is None else sizes(meta_body(config))
    place = place_of(cfg, device)
    head = resolve(cfg).head if head is None else head
    lengths, assumed = lengths_of(cfg, arch)
    setting = setting_of(cfg, arch, place)
    held = memory(arch, cfg, lengths, setting, head)
    speed = speed_of(arch, place, setting)
    step, evaluated = times_of(arch, cfg, lengths, setting, speed, head)
    budget = free_memory(place)
    fits = held.total <= budget * (1 - SPARE)
    return Estimate(
        cfg=cfg,
        **asdict(held),
        trained=held.gradients // FLOAT,
        flops=cfg.steps * step_flops(arch, cfg, lengths.padded, head),
        seconds_a_step=step,
        seconds=cfg.steps * step,
        evaluation_seconds=evaluated,
        device=place.words,
        speed=speed.words,
        budget=budget,
        fits=fits,
        why=_why(held, budget, fits, place.words),
        advice=() if fits else advice(arch, cfg, place, head),
        assumed=assumed,
    )


def check_fit(cfg: RunConfig, device: Device | str | None = None) -> None:
    """Raise :class:`FitError`, with numbers and a remedy, if ``cfg`` will not fit into the memory free now.

    Quick (no speed is measured, architectures are kept), and silent where the architecture cannot be told from a
    config: then loading the model says why. Over several processes each holds its share of the batch; where they share
    the weights too (FSDP), nothing is refused. ``NLORA_LAB_MEMORY_CHECK=off`` in the environment tries it anyway.
    """
    if os.environ.get(OVERRIDE) == "off" or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return
    place = device if isinstance(device, Device) else place_of(cfg, device)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and cfg.batch_size % processes == 0:
        parts = -(-cfg.accumulation // processes)
        size = cfg.batch_size // processes
        cfg = replace(cfg, batch_size=size, accumulation=parts if size % parts == 0 else 1)
    try:
        arch, held = _held(cfg, place)
    except ModelError:
        return
    budget = free_memory(place)
    if held.total > budget * (1 - SPARE):
        words = advice(arch, cfg, place, resolve(cfg).head)
        raise FitError(
            f"{_why(held, budget, False, place.words)} Try {'; or '.join(words) or 'a smaller model'}. "
            f"To try it all the same, set {OVERRIDE}=off"
        )


def how_many_fit(cfgs: Iterable[RunConfig]) -> int | None:
    """How many such runs fit side by side into the memory free now, each as large as the largest; at least one.

    ``None`` where no architecture can be told from a config. Raises :class:`InputError` for a rank above a layer's
    smaller side.
    """
    room: list[int] = []
    for cfg in cfgs:
        place = place_of(cfg)
        with suppress(ModelError):
            room.append(int(free_memory(place) * (1 - SPARE) // _held(cfg, place)[1].total))
    return max(1, min(room)) if room else None


def _held(cfg: RunConfig, place: Device) -> tuple[Architecture, Memory]:
    arch = architecture(cfg.model, cfg.revision)
    return arch, memory(arch, cfg, lengths_of(cfg, arch)[0], setting_of(cfg, arch, place), resolve(cfg).head)


def place_of(cfg: RunConfig, wanted: str | None = None) -> Device:
    """The device in words: one here, or a named card in the precision a run would take on it."""
    if wanted is None or wanted in DEVICES:
        return run_device(cfg if wanted is None else replace(cfg, device=wanted))
    if wanted not in CARDS:
        raise InputError(f"device={wanted!r} is not known; choose one of: {', '.join((*DEVICES, *CARDS))}")
    half = cfg.precision == "bf16" or (cfg.precision is None and CARDS[wanted].bf16 > 0)
    words = f"{CARDS[wanted].words} (not here), {'bfloat16 autocast' if half else 'float32'}"
    return Device(wanted, "bf16" if half else "no", words)


def setting_of(cfg: RunConfig, arch: Architecture, place: Device) -> Setting:
    """How the run computes on that device, as :mod:`nlora_lab.training.setup` decides it."""
    kept = HALF if resolve(cfg, place).dtype == "bfloat16" else FLOAT
    on_cpu = place.kind in ("cpu", "mps")
    # dropout on the attention weights leaves only the written-out way on a CPU
    eager = cfg.attention == "eager" or (cfg.attention is None and not arch.sdpa) or (arch.dropout and on_cpu)
    return Setting(place.precision == "bf16", kept, eager, on_cpu)


def lengths_of(cfg: RunConfig, arch: Architecture) -> tuple[Lengths, str]:
    """The tokens of the task's rows under the run's limits, and in words where they are from."""
    seen, source = row_lengths(cfg)
    limit = min((n for n in (cfg.max_length, arch.positions) if n), default=seen.longest)
    longest, padded = min(seen.longest, limit), min(seen.padded, limit)
    if cfg.batching == "packed" and cfg.max_length:
        longest = padded = cfg.max_length
    words = f"rows of {padded} tokens in the mean, padding included, and up to {longest} ({source})"
    return Lengths(longest, padded, min(seen.prompt, limit), seen.answer), words


def free_memory(place: Device) -> int:
    """Bytes free on a device now; of a card that is not here, its memory without what CUDA itself takes."""
    if place.kind in CARDS:
        return int(CARDS[place.kind].memory - CONTEXT)
    if place.kind == "cuda":
        import torch

        # what torch holds for later allocations is free too
        held = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0] + held)
    import psutil

    return int(psutil.virtual_memory().available)


def speed_of(arch: Architecture, place: Device, setting: Setting) -> Speed:
    """What a step is reckoned with: measured on a device here with the model's widest layer, or a card's published."""
    if place.kind in CARDS:
        return published(place.kind, setting.autocast)
    widest = max(((m, n) for _, m, n in arch.linears), key=lambda shape: shape[0] * shape[1])
    return measured(place, widest, setting.autocast)


def times_of(
    arch: Architecture, cfg: RunConfig, lengths: Lengths, setting: Setting, speed: Speed, head: int = 0
) -> tuple[float, float]:
    """Seconds of a step, and of the evaluation."""
    usual = memory(arch, replace(cfg, checkpointing=False), replace(lengths, longest=lengths.padded), setting, head)
    traffic = speed.passes * cfg.accumulation * (usual.activations + usual.logits) + UPDATE * usual.gradients
    step = step_flops(arch, cfg, lengths.padded, head) / speed.flops + traffic / speed.bandwidth
    asked = cfg.accumulation * len(arch.linears) * speed.launch * (4 / 3 if cfg.checkpointing else 1)
    step = max(step, asked) if speed.overlaps else step + asked

    seen, per_token = row_lengths(cfg)[0], answer_flops(arch, head) / speed.flops
    forward = len(arch.linears) * speed.launch / 3
    test = min(cfg.test_rows or seen.test, seen.test)
    seconds = (test if head or not lengths.answer else 0) * lengths.padded * per_token
    seconds += seen.validation * lengths.padded * per_token
    if lengths.answer and not head:
        most = answered_at_once(lengths, arch.layers * 2 * arch.cached * setting.width)
        batches = rounds(test, most)
        together = min(test, most)
        cache = together * (lengths.prompt + lengths.answer / 2) * arch.layers * 2 * arch.cached * setting.width
        read = (arch.multiplied() * setting.kept + 2 * cache) / speed.bandwidth
        token = max(read, together * per_token)
        token = max(token, forward) if speed.overlaps else token + forward
        seconds += batches * lengths.answer * token + test * lengths.prompt * per_token
    return step, seconds


def advice(arch: Architecture, cfg: RunConfig, place: Device, head: int = 0) -> tuple[str, ...]:
    """What would make ``cfg`` fit, the smallest change first: up to three that do it alone, else several together."""
    budget = free_memory(place) * (1 - SPARE)

    def needs(candidate: RunConfig) -> int:
        there = place if candidate.precision is None else replace(place, precision=WORDS[candidate.precision])
        return memory(arch, candidate, lengths_of(candidate, arch)[0], setting_of(candidate, arch, there), head).total

    found, best, together = dict[str, str](), cfg, dict[str, str]()
    for name, changes in _changes(cfg, arch, place):
        words = ", ".join(f"{key}={value!r}" for key, value in changes.items())
        # where a smaller change of the same setting does it already, that is the one to name
        if name not in found and needs(changed := replace(cfg, **changes)) <= budget:
            found[name] = f"{words} ({format_bytes(needs(changed))})"
        if needs(best) > budget and needs(joined := replace(best, **changes)) < needs(best):
            best, together[name] = joined, words
    if found:
        return tuple(found.values())[:3]
    every = ", ".join(together.values())
    if together and needs(best) <= budget:
        return (f"{every} together ({format_bytes(needs(best))})",)
    return _elsewhere(arch, cfg, place, head, "") or _elsewhere(arch, best, place, head, every)


WORDS = {"bf16": "bf16", "float32": "no"}  # a config's names of the precisions, and a Device's


def _changes(cfg: RunConfig, arch: Architecture, place: Device) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes that may save memory, by setting: first those that leave the result alone, then those that do not."""
    for parts in range(cfg.accumulation + 1, cfg.batch_size + 1):
        if cfg.batch_size % parts == 0:
            yield "accumulation", {"accumulation": parts}
    if not cfg.checkpointing:
        yield "checkpointing", {"checkpointing": True}
    has_units = place.kind not in CARDS or CARDS[place.kind].bf16 > 0
    if place.precision != "bf16" and has_units and place.kind != "mps":
        yield "precision", {"precision": "bf16"}
    longest = lengths_of(cfg, arch)[0].longest
    if longest >= 64:
        yield "max_length", {"max_length": longest // 2}
    if get_method(cfg.method).build is None:
        yield "method", {"method": "lora"}
    elif cfg.rank > 8:
        yield "rank", {"rank": 8}


def _elsewhere(arch: Architecture, cfg: RunConfig, place: Device, head: int, changed: str) -> tuple[str, ...]:
    """The smallest named card that it fits on; ``changed``: what was changed for it, in words."""
    for name in CARDS:
        card = place_of(cfg, name)
        held = memory(arch, cfg, lengths_of(cfg, arch)[0], setting_of(cfg, arch, card), head)
        if name != place.kind and held.total <= free_memory(card) * (1 - SPARE):
            with_it = f", with {changed}" if changed else ""
            return (f"another device, such as {CARDS[name].words}{with_it} ({format_bytes(held.total)})",)
    return ()


def _why(held: Memory, budget: int, fits: bool, device: str) -> str:
    if fits:
        return f"It fits: about {format_bytes(held.total)} of the {format_bytes(budget)} free on {device}."
    parts = {k: v for k, v in asdict(held).items() if k not in ("training", "total")}
    most = max(parts, key=lambda name: parts[name])
    return (
        f"It will not fit: about {format_bytes(held.total)} by estimate, and {format_bytes(budget)} are free on {device}; "
        f"most of it is {most}, {format_bytes(parts[most])}."
    )


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return (
        f"{seconds:.1f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
