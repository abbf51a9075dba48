"""Measure the settings that save memory or time: milliseconds per training step, tokens per second.

    python benchmarks/settings.py                  # measure, write results/settings.json, print the table
    python benchmarks/settings.py --show           # print the table of the record, measure nothing
    python benchmarks/settings.py --device cuda    # measure on a GPU, write results/settings-cuda.json

NLoRA trains at rank 8 on word problems with the embedded model, in batches of 16 rows. The settings take turns, once
per round. The first steps include loading and compiling, so they have their own column. Tokens are those of the
examples, without padding.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "compile": {"compile": True},
    "checkpointing": {"checkpointing": True},
    "accumulation 4": {"accumulation": 4},
    "batches by length": {"batching": "length"},
    "packed": {"batching": "packed", "max_length": 256, "batch_size": 4},
    "bf16": {"precision": "bf16"},
}
WARM_UP, STEPS = 6, 26  # steps; those of the warm-up are reported apart


def config(setting: str, device: str) -> Any:
    from nlora_lab.runs.config import RunConfig

    return RunConfig(method="nlora", lr=1e-4, **{"steps": STEPS + 1, "device": device, **SETTINGS[setting]})


def tokens(cfg: Any) -> list[int]:
    """The tokens of every step, without padding."""
    from nlora_lab.models.loading import load_model
    from nlora_lab.runs.resolution import resolve
    from nlora_lab.training.data import TrainingData

    data = TrainingData(cfg, resolve(cfg).task, load_model()[1], cfg.max_length)
    lengths = [len(row["input_ids"]) for row in data.training.rows]
    return [sum(lengths[i] for i in rows) for rows in data.order()]


def run(cfg: Any) -> tuple[float, list[float]]:
    """Seconds of all warm-up steps together, and of each step after them."""
    from nlora_lab.training.loop import fine_tune

    times = [time.perf_counter()]

    def on_step(step: Any) -> bool:
        times.append(time.perf_counter())
        return step.step == STEPS

    fine_tune(cfg, on_step)
    return times[WARM_UP] - times[0], [b - a for a, b in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)]


def measure(device: str, rounds: int) -> dict[str, Any]:
    configs = {name: config(name, device) for name in SETTINGS}
    counts = {name: tokens(cfg)[WARM_UP:STEPS] for name, cfg in configs.items()}
    steps: dict[str, list[float]] = {name: [] for name in SETTINGS}
    rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
    warm_up: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for number in range(rounds):
        for name in list(SETTINGS)[:: 1 if number % 2 else -1]:
            first, each = run(configs[name])
            warm_up[name].append(first)
            steps[name].append(1000 * statistics.median(each))
            rates[name].append(sum(counts[name]) / sum(each))
            print(f"round {number + 1} of {rounds}, {name}: {steps[name][-1]:.0f} ms", file=sys.stderr, flush=True)
    return {
        name: {
            "step": statistics.median(steps[name]),
            "tokens": statistics.median(rates[name]),
            "ratio": statistics.median(a / b for a, b in zip(rates[name], rates["plain"], strict=True)),
            "first": max(warm_up[name]),
        }
        for name in SETTINGS
    }


def table(record: dict[str, Any]) -> str:
    lines = [
        f"{record['device']}, torch {record['versions']['torch']}",
        "",
        f"| setting | ms per step | tokens per second | relative to plain | first {WARM_UP} steps, at most, s |",
        "|---|---|---|---|---|",
    ]
    for name, row in record["settings"].items():
        lines.append(
            f"| {name} | {row['step']:.0f} | {row['tokens']:,.0f} | {row['ratio']:.2f}× | {row['first']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument("--show", action="store_true", help="print the record, measure nothing")
    options = parser.parse_args()
    file = RESULTS / ("settings.json" if options.device == "cpu" else f"settings-{options.device}.json")
    if not options.show:
        os.environ.pop("NLORA_LAB_DEVICE", None)
        import torch

        from nlora_lab.core.devices import find_device
        from nlora_lab.runs.run import versions

        if options.device == "cpu":
            torch.set_num_threads(1)
        record = {
            "device": f"{find_device(options.device).words} ({platform.machine()})",
            "versions": versions(),
            "settings": measure(options.device, options.rounds),
        }
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(file.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
