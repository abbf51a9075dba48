"""The README's first table: LoRA, SLoRA and NLoRA at one rate, and each at a rate of its own.

    python benchmarks/first_table.py          # run what is missing, two processes of one thread each
    python benchmarks/first_table.py --show   # only print the tables from the records

Every method is tried at each of its rates with seed 0; its own rate is the one with the lowest
*validation* loss. That rate and the paper's 2e-4 are then repeated with two more seeds. The test split
is never used to choose. One JSON record a run stands in results/first_table/; a run that has one is not
repeated, so the script can be stopped and started at will. Delete the records after `make model`:
they are of the model that was there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run

STORE = Path(__file__).parent / "results" / "first_table"
SHARED = 2e-4
SEEDS = (0, 1, 2)
RATES = {
    "lora": (SHARED, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    "slora": (SHARED, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    "nlora": (2.5e-5, 5e-5, 1e-4, SHARED, 4e-4, 8e-4, 1.6e-3),
}
TASKS = ("word-problems", "entailment")


def place(cfg: RunConfig) -> Path:
    return STORE / f"{cfg.task}-{cfg.method}-lr{cfg.lr:g}-seed{cfg.seed}-steps{cfg.steps}.json"


def run_one(cfg: RunConfig) -> str:
    import torch

    from nlora_lab.training.loop import fine_tune

    torch.set_num_threads(1)
    run = fine_tune(cfg)
    if run.stopped:
        return f"{place(cfg).name}: interrupted, not kept"
    return run.save(place(cfg)).name


def run_missing(configs: Iterable[RunConfig], workers: int = 2) -> None:
    missing = [c for c in configs if not place(c).exists()]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for i, name in enumerate(pool.map(run_one, missing), start=1):
            print(f"{i}/{len(missing)} {name}", file=sys.stderr, flush=True)


def config(task: str, method: str, lr: float, seed: int, steps: int = 250) -> RunConfig:
    return RunConfig(task=task, method=method, lr=lr, seed=seed, steps=steps, device="cpu")


def load(cfg: RunConfig) -> Run:
    run = Run.load(place(cfg))
    if run.stopped or run.config != cfg:
        raise SystemExit(f"{place(cfg)} is not a finished run of {cfg}; delete it and start again")
    return run


def own_rate(task: str, method: str) -> float:
    """The rate with the lowest validation loss at seed 0."""
    runs = [load(config(task, method, lr, 0)) for lr in RATES[method]]
    return min((r for r in runs if not r.diverged), key=lambda r: r.metrics["validation_loss"]).config.lr


def everything(task: str) -> list[RunConfig]:
    return [config(task, m, lr, seed) for m in RATES for lr in (SHARED, own_rate(task, m)) for seed in SEEDS]


def competence() -> list[RunConfig]:
    """What 400 steps reach: full fine-tuning, and LoRA at its own rate."""
    return [config(t, m, lr, 0, 400) for t in TASKS for m, lr in (("full", 1e-3), ("lora", own_rate(t, "lora")))]


def spread(values: list[float], form: str) -> str:
    """Median and range."""
    low, middle, high = sorted(values)
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def table(task: str) -> str:
    lines = [
        "| method | parameters | rate | final loss | accuracy, % |",
        "|---|---|---|---|---|",
    ]
    for own in (False, True):
        for method in RATES:
            rate = own_rate(task, method) if own else SHARED
            runs = [load(config(task, method, rate, seed)) for seed in SEEDS]
            loss = spread([r.final_loss for r in runs], ".3f")
            right = spread([100 * r.accuracy for r in runs], ".1f")
            label = f"{METHODS[method].label}{', own rate' if own else ''}"
            lines.append(f"| {label} | {runs[0].trainable:,} | {rate:g} | {loss} | {right} |")
    return "\n".join(lines)


def valleys(task: str) -> str:
    """Validation loss and test accuracy at every rate, seed 0."""
    lines = ["| method | rate | validation loss | final training loss | accuracy, % |", "|---|---|---|---|---|"]
    for method, rates in RATES.items():
        for rate in rates:
            r = load(config(task, method, rate, 0))
            row = (
                ("diverged", "–", "–")
                if r.diverged
                else (f"{r.metrics['validation_loss']:.3f}", f"{r.final_loss:.3f}", f"{100 * r.accuracy:.1f}")
            )
            lines.append(f"| {METHODS[method].label} | {rate:g} | {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for task in TASKS:
        if not options.show:
            run_missing([config(task, m, lr, 0) for m, rates in RATES.items() for lr in rates], options.workers)
            run_missing(everything(task), options.workers)
        print(f"\n{task}, 250 steps of 16, rank 8; median (range) over seeds {SEEDS}\n\n{table(task)}")
        print(f"\nEvery rate, seed 0\n\n{valleys(task)}")
    if not options.show:
        run_missing(competence(), options.workers)
    print("\n400 steps, seed 0")
    for cfg in competence():
        run = load(cfg)
        print(f"- {cfg.task}, {cfg.method} at {cfg.lr:g}: loss {run.final_loss:.3f}, {run.accuracy:.1%} right")


if __name__ == "__main__":
    main()
