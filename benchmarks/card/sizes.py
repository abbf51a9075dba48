"""How large the measurements are: in full for a card of 80 GB, or tiny, so that a test can run the command."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import race
from roofline import BATCH, LENGTH, LLAMA_1B, LLAMA_7B
from scan_memory import Llama

VARIANTS: dict[str, dict[str, Any]] = {
    "compile": {"compile": True},
    "checkpointing": {"checkpointing": True},
    "eager attention": {"attention": "eager"},
    "flash attention": {"attention": "flash_attention_2"},
}


@dataclass(frozen=True)
class Sizes:
    """Shapes, steps and repetitions of every part."""

    race_steps: int = 16
    tiny: bool = False
    race_rounds: int = 2
    race_batches: tuple[int, ...] = race.BATCHES
    race_methods: int = 8
    shapes: dict[str, Any] = field(default_factory=lambda: LLAMA_1B)
    batch: int = BATCH
    length: int = LENGTH
    steps: int = 10
    step_methods: tuple[str, ...] = (
        "lora", "slora", "nlora", "inttune", "nlora-pivoted", "nlora-core", "nlora-balanced", "nlora-released",
        "lora-xs", "rslora", "dora", "full",
    )  # fmt: skip
    varied: tuple[str, ...] = ("lora", "nlora")
    variants: tuple[str, ...] = tuple(VARIANTS)
    layers: dict[tuple[int, int], int] = field(default_factory=lambda: LLAMA_7B)
    starts: int = 5
    checkpoints: tuple[Llama, ...] = ()
    repeat_steps: int = 20
    path_steps: int = 10
    grid_runs: int = 40
    grid_changes: dict[str, Any] = field(default_factory=dict)
    grid_together: int = 8


def llama_7b(layers: int) -> Llama:
    """A checkpoint of Llama-2-7B's shapes with this many layers, in bfloat16."""
    import torch

    return Llama(32000, 4096, 11008, 4096, layers, torch.bfloat16)


def sizes_of(tiny: bool) -> Sizes:
    """The sizes of the command, in full or tiny."""
    if not tiny:
        return Sizes(checkpoints=(llama_7b(4), llama_7b(32)))
    shapes = {**LLAMA_1B, "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
              "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    return Sizes(
        tiny=True, race_steps=1, race_batches=(4,), race_methods=2, shapes=shapes, batch=2, length=16, steps=2,
        step_methods=("lora", "slora", "nlora", "inttune"), varied=("nlora",),
        variants=("checkpointing", "eager attention", "flash attention"), layers={(64, 64): 4, (96, 64): 2}, starts=2,
        checkpoints=(Llama(96, 64, 80, 32, 1),), repeat_steps=2, path_steps=2, grid_runs=2,
        grid_changes={"steps": 1, "test_rows": 2, "train_rows": 64}, grid_together=2,
    )  # fmt: skip
