"""What would make a run fit into the memory there is: changes of its config, or another device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nlora_lab.core.devices import Device
from nlora_lab.core.formatting import format_bytes
from nlora_lab.estimates.conditions import SPARE, estimate_device, free_memory, resolve_on
from nlora_lab.estimates.memory import memory_needed
from nlora_lab.estimates.row_lengths import run_lengths
from nlora_lab.estimates.shapes import Architecture
from nlora_lab.estimates.throughput import CARDS
from nlora_lab.methods.table import get_method
from nlora_lab.runs.config import RunConfig


def advice(arch: Architecture, cfg: RunConfig, device: Device, usable: float, head: int = 0) -> tuple[str, ...]:
    """Find changes that make a run fit.

    Args:
        arch: the architecture of the model.
        cfg: the config of the run, which does not fit.
        device: the device of the run.
        usable: the bytes that the run may take there.
        head: the outputs of a classification head, or 0 for a language model.

    Returns:
        Up to three changes that are enough alone, the smallest first, as "checkpointing=True (3.1 GiB)". If none is,
        one line with several changes together, or with a card on which the run fits. Empty if nothing helps.
    """

    def total(candidate: RunConfig) -> int:
        return memory_needed(arch, resolve_on(candidate, device), head=head).total

    alone, combined, parts = dict[str, str](), cfg, dict[str, str]()
    for name, changes in _changes(arch, cfg, device):
        words = ", ".join(f"{key}={value!r}" for key, value in changes.items())
        # the smallest change of each setting is enough
        if name not in alone and (bytes_needed := total(replace(cfg, **changes))) <= usable:
            alone[name] = f"{words} ({format_bytes(bytes_needed)})"
        if total(combined) > usable and total(joined := replace(combined, **changes)) < total(combined):
            combined, parts[name] = joined, words
    if alone:
        return tuple(alone.values())[:3]
    together = ", ".join(parts.values())
    if parts and total(combined) <= usable:
        return (f"{together} together ({format_bytes(total(combined))})",)
    return _another_card(arch, cfg, device, head) or _another_card(arch, combined, device, head, together)


def _changes(arch: Architecture, cfg: RunConfig, device: Device) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes that may save memory, by setting: first those that leave the result alone, then those that do not."""
    for parts in range(cfg.accumulation + 1, cfg.batch_size + 1):
        if cfg.batch_size % parts == 0:
            yield "accumulation", {"accumulation": parts}
    if not cfg.checkpointing:
        yield "checkpointing", {"checkpointing": True}
    has_units = device.kind not in CARDS or CARDS[device.kind].bf16 > 0
    if device.precision != "bf16" and has_units and device.kind != "mps":
        yield "precision", {"precision": "bf16"}
    longest = run_lengths(arch, cfg).longest
    if longest >= 64:
        yield "max_length", {"max_length": longest // 2}
    if get_method(cfg.method).build is None:
        yield "method", {"method": "lora"}
    elif cfg.rank > 8:
        yield "rank", {"rank": 8}


def _another_card(arch: Architecture, cfg: RunConfig, device: Device, head: int, changes: str = "") -> tuple[str, ...]:
    """The first card of the table on which ``cfg`` fits; ``changes`` says what was changed for it."""
    for name, card in CARDS.items():
        other = estimate_device(cfg, name)
        total = memory_needed(arch, resolve_on(cfg, other), head=head).total
        if name != device.kind and total <= free_memory(other) * (1 - SPARE):
            suffix = f", with {changes}" if changes else ""
            return (f"another device, such as {card.words}{suffix} ({format_bytes(total)})",)
    return ()
