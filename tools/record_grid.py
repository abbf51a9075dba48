"""Record the grid of runs that ships in ``data/results``.

    python -m tools.record_grid --show     # print how much of the grid is recorded
    python -m tools.record_grid --pack     # make the missing runs, then pack the records

You can interrupt the command at any time. Run it again to resume.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.models.names import SHIPPED
from nlora_lab.runs.config import SHARED_RATE, RunConfig
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.rate_points import validation_loss
from nlora_lab.runs.run import KEPT_ANSWERS
from nlora_lab.runs.shipped import BATCH, BEFORE, RANK, STEPS, recorded_runs, shipped_store
from nlora_lab.runs.store import RunStore, run_key
from nlora_lab.sweeps.engine import sweep
from nlora_lab.sweeps.grid import coverage
from nlora_lab.tasks.generated import TASKS

MAIN_TASK = next(iter(TASKS))  # the other ranks and starts are recorded on this task alone
MAIN_METHODS = ("lora", "slora", "nlora")  # the lab opens on these, so their runs come first
# the NLoRA paper compares the first five at one rate, and notebook 09 audits such a comparison of the last
SHARED_RATE_METHODS = (*MAIN_METHODS, "nlora-released", "inttune", "pissa")

SEEDS = (0, 1, 2)
FIVE_SEEDS = (*SEEDS, 3, 4)  # a comparison gives no verdict on fewer than five pairs of seeds
OTHER_INITS = METHODS["slora"].inits[1:]  # every start of N except the default
OTHER_RANKS = (1, 2, 4, 32, 16)  # the smallest and the largest come before 16: they show most of the trend

# Three rates per decade. Readers recognise 1, 2, 5 at once, and no gap is wider than a factor of 2.5.
RATE_LADDER = [float(f"{digit}e{exponent}") for exponent in range(-5, 1) for digit in (1, 2, 5)]

# The rates at which each method is useful, from too small to learn in 250 steps to so large that it breaks.
RATE_RANGES = {
    "full": (5e-5, 5e-3),
    "lora": (5e-4, 5e-2),
    "rslora": (2e-4, 2e-2),
    "dora": (5e-4, 5e-2),
    "pissa": (1e-4, 2e-2),
    "olora": (5e-5, 2e-2),
    "lora-xs": (1e-3, 2e-1),
    "slora": (5e-4, 5e-2),
    "nlora": (1e-5, 2e-3),
    "nlora-pivoted": (1e-4, 1e-2),
    "nlora-core": (5e-4, 5e-2),
    "nlora-balanced": (1e-4, 1e-2),
    "nlora-released": (5e-4, 5e-2),
    "inttune": (2e-3, 5e-1),
}

# Rates around the best one of each main method at rank 8. They are enough for a first look at other ranks and seeds.
NEAR_BEST_RATES = {"lora": (5e-3, 1e-2, 2e-2), "slora": (5e-3, 1e-2, 2e-2), "nlora": (5e-5, 1e-4, 5e-4)}

# One more rate on each side, because the best rate at another rank may lie further out.
WIDER_RATES = {"lora": (2e-3, 5e-2), "slora": (2e-3, 5e-2), "nlora": (2e-5, 1e-3)}

# By rank, how many steps on the ladder the best rate lies above that at rank 8, as measured with the main methods.
# The further methods get one run per rank, at a rate moved by that much.
RANK_SHIFTS = {1: 1, 2: 1, 4: 0, 16: -1, 32: -1}


def recorded_rates(method: str) -> list[float]:
    """Return the rates of a method in the grid: the ladder within its range, and the shared rate."""
    low, high = RATE_RANGES[method]
    ladder = [rate for rate in RATE_LADDER if low * 0.99 <= rate <= high * 1.01]
    return sorted({*ladder, SHARED_RATE})


def _config(task: str, method: str, lr: float, seed: int, rank: int = RANK, init: str | None = None) -> RunConfig:
    return RunConfig(
        method=method, task=task, lr=lr, seed=seed, rank=rank, init=init, steps=STEPS, batch_size=BATCH, device="cpu"
    )


def fixed_grid() -> list[RunConfig]:
    """Return every config that does not depend on the results of other runs.

    The rest of the grid is in ``best_rate_configs`` and ``other_rank_configs``.
    """
    grid = _first_part()
    grid += [
        _config(MAIN_TASK, "slora", lr, s, init=init)
        for s in SEEDS[1:]
        for init in OTHER_INITS
        for lr in (SHARED_RATE, 1e-2)
    ]
    grid += [_config(task, m, lr, s) for s in SEEDS for task in TASKS for m in RATE_RANGES for lr in recorded_rates(m)]
    return list(dict.fromkeys(grid))


def _first_part() -> list[RunConfig]:
    """One seed of every method and rate, and what the other sliders of the lab need."""
    others = [name for name in RATE_RANGES if name not in MAIN_METHODS]
    grid = [_config(task, m, lr, 0) for task in TASKS for m in MAIN_METHODS for lr in recorded_rates(m)]
    grid += [_config(MAIN_TASK, m, lr, 0) for m in others for lr in recorded_rates(m)]
    grid += [
        _config(MAIN_TASK, m, lr, seed)
        for seed in SEEDS[1:]
        for m in MAIN_METHODS
        for lr in (SHARED_RATE, *NEAR_BEST_RATES[m])
    ]
    for rates in (NEAR_BEST_RATES, WIDER_RATES):
        grid += [
            _config(MAIN_TASK, m, lr, 0, rank)
            for rank in OTHER_RANKS
            for m in MAIN_METHODS
            for lr in (SHARED_RATE, *rates[m])
        ]
    slora_rates = (SHARED_RATE, *NEAR_BEST_RATES["slora"])
    grid += [_config(MAIN_TASK, "slora", lr, 0, init=init) for init in OTHER_INITS for lr in slora_rates]
    grid += [_config(task, m, lr, 0) for task in TASKS for m in others for lr in recorded_rates(m)]
    return grid


def best_rate_configs(recorded: RecordedRuns) -> list[RunConfig]:
    """Return the configs at and near the best rates so far, which are chosen by validation loss.

    - Five seeds at the best rate of each method, and three at the neighbouring rates. NLoRA gets five there too: they
      test the claim that its best rate is the shared one.
    - Five seeds at the shared rate, for the methods that the paper or notebook 09 compares at one rate.
    - Five seeds at the best rate of each start of N, and of each main method at every rank. Where that rate is the last
      one tried, one run at the next rate too.
    """
    at_best, near_best = [], []
    for task, method in product(TASKS, RATE_RANGES):
        best = recorded.best(task, method, RANK)
        if best is None:
            continue
        at_best += [_config(task, method, best.lr, seed) for seed in FIVE_SEEDS]
        pairs = [pair for pair in pairwise(recorded_rates(method)) if best.lr in pair]
        neighbours = [lr for pair in pairs for lr in pair if lr != best.lr]
        seeds = FIVE_SEEDS if method == "nlora" else SEEDS
        near_best += [_config(task, method, lr, seed) for lr in neighbours for seed in seeds]
    at_shared = [_config(t, m, SHARED_RATE, seed) for t in TASKS for m in SHARED_RATE_METHODS for seed in FIVE_SEEDS]
    return list(dict.fromkeys([*at_best, *at_shared, *_other_ranks_and_starts(recorded), *near_best]))


def _other_ranks_and_starts(recorded: RecordedRuns) -> list[RunConfig]:
    """Five seeds of what is compared at ranks other than 8 and with starts of N other than the default."""
    at_both_rates = [("lora", 1, None), ("slora", 1, None), *(("slora", RANK, init) for init in OTHER_INITS)]
    at_best_rate = [*at_both_rates, *((method, rank, None) for rank in OTHER_RANKS for method in MAIN_METHODS)]
    best = {cell: point.lr for cell in at_best_rate if (point := recorded.best(MAIN_TASK, *cell)) is not None}
    wanted_rates = [*best.items(), *((cell, SHARED_RATE) for cell in at_both_rates if cell in best)]
    grid = [
        _config(MAIN_TASK, method, lr, seed, rank, init)
        for (method, rank, init), lr in wanted_rates
        for seed in FIVE_SEEDS
    ]
    for (method, rank, init), lr in best.items():
        tried = [point.lr for point in recorded.valley(MAIN_TASK, method, rank, init)]
        further = [_ladder_rate(lr, step) for step, end in ((-1, tried[0]), (1, tried[-1])) if lr == end]
        grid += [_config(MAIN_TASK, method, rate, 0, rank, init) for rate in further]
    return grid


def other_rank_configs(recorded: RecordedRuns) -> list[RunConfig]:
    """Return one config for each further method at each rank other than 8.

    The rate is the method's best rung of the ladder at rank 8, moved by ``RANK_SHIFTS``. With a scale of 1 every
    trained number moves the weights, so the more numbers there are, the lower the rate that is too high.
    """
    others = [name for name in RATE_RANGES if name not in MAIN_METHODS and get_method(name).build is not None]
    best = {name: lr for name in others if (lr := _best_rung(recorded, name)) is not None}
    return [
        _config(MAIN_TASK, name, _ladder_rate(lr, RANK_SHIFTS[rank]), 0, rank)
        for rank in OTHER_RANKS
        for name, lr in best.items()
    ]


def _best_rung(recorded: RecordedRuns, method: str) -> float | None:
    """The rung of the ladder with the lowest validation loss. The finer rates of other plans count if there is none."""
    losses = {point.lr: validation_loss(point) for point in recorded.valley(MAIN_TASK, method, RANK)}
    finite = {lr: loss for lr, loss in losses.items() if math.isfinite(loss)}
    rungs = finite.keys() & set(RATE_LADDER) or finite.keys()
    return min(sorted(rungs), key=lambda lr: finite[lr], default=None)


def _ladder_rate(rate: float, steps: int) -> float:
    """The rate ``steps`` above the rung nearest to ``rate``. A store may hold rates that are not on the ladder."""
    nearest = min(range(len(RATE_LADDER)), key=lambda i: abs(math.log(RATE_LADDER[i] / rate)))
    return RATE_LADDER[min(max(nearest + steps, 0), len(RATE_LADDER) - 1)]


def grid_parts(store: RunStore) -> Iterator[list[RunConfig]]:
    """Yield the parts of the grid, the most useful first, so that an incomplete recording can be used too.

    The best rates are known only when the runs before them are made, and they may change while more runs are made.
    """
    yield _first_part()
    yield from _until_complete(store, best_rate_configs)
    yield fixed_grid()
    yield from _until_complete(store, lambda recorded: [*best_rate_configs(recorded), *other_rank_configs(recorded)])


def _until_complete(
    store: RunStore, configs_for: Callable[[RecordedRuns], list[RunConfig]]
) -> Iterator[list[RunConfig]]:
    """Yield the missing configs until the new runs no longer change which configs are needed."""
    while True:
        finished = store.keys()
        missing = [cfg for cfg in configs_for(recorded_runs(store)) if run_key(cfg) not in finished]
        if not missing:
            return
        yield missing


def complete_grid(store: RunStore) -> list[RunConfig]:
    """Return every config of the grid, as far as the runs in ``store`` determine it."""
    recorded = recorded_runs(store)
    return list(dict.fromkeys([*fixed_grid(), *best_rate_configs(recorded), *other_rank_configs(recorded)]))


def record_base_answers(folder: Path, name: str) -> Path:
    """Measure a model that ships before any tuning on every task, and write the result into ``folder``."""
    from nlora_lab.evaluation.scoring import accuracy, answers
    from nlora_lab.models.loading import load_model
    from nlora_lab.tasks.registry import load_task

    model, tokenizer = load_model(name)
    results = {}
    for task in TASKS:
        marked = answers(model, tokenizer, load_task(task))
        results[task] = {"accuracy": accuracy(marked), "answers": [answer.text for answer in marked[:KEPT_ANSWERS]]}
    file = folder / BEFORE / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return file


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing runs of the grid, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.record_grid", description="Record the grid of runs that ships."
    )
    parser.add_argument("--store", type=Path, help="folder of the records (default: data/results)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: cpu, as the grid says)")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core)")
    parser.add_argument("--pack", action="store_true", help="afterwards, write one file per task and method")
    parser.add_argument("--show", action="store_true", help="make nothing; print how much of the grid is recorded")
    parser.add_argument("--before", action="store_true", help="measure the models before any tuning, and nothing else")
    options = parser.parse_args(argv)
    store = shipped_store() if options.store is None else RunStore(options.store)
    if options.show:
        print(coverage(complete_grid(store), store))
        return 0
    if options.before:
        for name in SHIPPED:
            print(record_base_answers(store.path, name))
        return 0
    try:
        for part in grid_parts(store):
            configs = part if options.device is None else [replace(cfg, device=options.device) for cfg in part]
            sweep(configs, store, workers=options.workers)
    finally:
        if options.pack:
            print(f"packed {store.pack()} records", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
