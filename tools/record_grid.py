"""The grid of recorded runs: which runs it asks for, and the command that makes those that are missing.

    python -m tools.record_grid --show     # how much of the grid is recorded
    python -m tools.record_grid --pack     # make what is missing, then pack the records

The command can be interrupted at any time. Run it again to resume.
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
from nlora_lab.runs.config import SHARED_RATE, RunConfig
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.run import KEPT_ANSWERS
from nlora_lab.runs.shipped import BATCH, BEFORE, RANK, STEPS, recorded_runs, shipped_store
from nlora_lab.runs.store import RunStore, run_key
from nlora_lab.sweeps.engine import sweep
from nlora_lab.sweeps.grid import coverage
from nlora_lab.tasks.generated import TASKS

WORDS = next(iter(TASKS))
STARTS = METHODS["slora"].inits[1:]  # of N, but the default
LADDER = [float(f"{c}e{e}") for e in range(-5, 1) for c in (1, 2, 5)]  # a learner reads 1, 2, 5 without counting
SPAN = {  # each method's own useful range of rates, from starved to past the cliff
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
FIRST = ("lora", "slora", "nlora")  # the lab opens on them
RANKS = (1, 2, 4, 32, 16)  # the ends first
AROUND = {"lora": (5e-3, 1e-2, 2e-2), "slora": (5e-3, 1e-2, 2e-2), "nlora": (5e-5, 1e-4, 5e-4)}  # their best rates
WIDER = {"lora": (2e-3, 5e-2), "slora": (2e-3, 5e-2), "nlora": (2e-5, 1e-3)}  # at other ranks the best may lie further
DRIFT = {1: 1, 2: 1, 4: 0, 16: -1, 32: -1}  # by so many rungs the best rate of the first methods moves from rank 8
SEEDS = (0, 1, 2)
FIVE_SEEDS = (*SEEDS, 3, 4)  # where a verdict is asked for: fewer pairs allow none
AT_ONE_RATE = (*FIRST, "nlora-released", "inttune")


def rates(method: str) -> list[float]:
    """The recorded rates of a method: its own range, and the shared one."""
    low, high = SPAN[method]
    own = [rate for rate in LADDER if low * 0.99 <= rate <= high * 1.01]
    return sorted({*own, SHARED_RATE})


def _config(task: str, method: str, lr: float, seed: int, rank: int = RANK, init: str | None = None) -> RunConfig:
    return RunConfig(
        method=method, task=task, lr=lr, seed=seed, rank=rank, init=init, steps=STEPS, batch_size=BATCH, device="cpu"
    )


def recorded_grid() -> list[RunConfig]:
    """Every config of the grid that does not hang on what the others found (see :func:`finalists`, :func:`ranked`)."""
    grid = _opening()
    grid += [
        _config(WORDS, "slora", lr, s, init=init) for s in SEEDS[1:] for init in STARTS for lr in (SHARED_RATE, 1e-2)
    ]
    grid += [_config(task, m, lr, s) for s in SEEDS for task in TASKS for m in SPAN for lr in rates(m)]
    return list(dict.fromkeys(grid))


def _opening() -> list[RunConfig]:
    """One seed of every method and rate, and what the lab's other sliders ask for."""
    others = [name for name in SPAN if name not in FIRST]
    grid = [_config(task, m, lr, 0) for task in TASKS for m in FIRST for lr in rates(m)]
    grid += [_config(WORDS, m, lr, 0) for m in others for lr in rates(m)]
    grid += [_config(WORDS, m, lr, seed) for seed in SEEDS[1:] for m in FIRST for lr in (SHARED_RATE, *AROUND[m])]
    for tried in (AROUND, WIDER):
        grid += [_config(WORDS, m, lr, 0, rank) for rank in RANKS for m in FIRST for lr in (SHARED_RATE, *tried[m])]
    grid += [_config(WORDS, "slora", lr, 0, init=init) for init in STARTS for lr in (SHARED_RATE, *AROUND["slora"])]
    grid += [_config(task, m, lr, 0) for task in TASKS for m in others for lr in rates(m)]
    return grid


def finalists(known: RecordedRuns) -> list[RunConfig]:
    """Five seeds at the best rate of each method so far, by validation loss, and three at the rates beside it.

    Five as well beside NLoRA's best, which is said to be the shared rate; for each start of N and for the first methods
    at every rank, at the best rate of each; and at the shared rate for what the paper compares there. Where the best of
    those few rates is the last one tried, the next one too.
    """
    final, near = [], []
    for task, method in product(TASKS, SPAN):
        best = known.best(task, method, RANK)
        if best is None:
            continue
        final += [_config(task, method, best.lr, seed) for seed in FIVE_SEEDS]
        beside = [lr for pair in pairwise(rates(method)) if best.lr in pair for lr in pair if lr != best.lr]
        near += [_config(task, method, lr, s) for lr in beside for s in (FIVE_SEEDS if method == "nlora" else SEEDS)]
    final += [_config(t, m, SHARED_RATE, seed) for t in TASKS for m in AT_ONE_RATE for seed in FIVE_SEEDS]
    return list(dict.fromkeys([*final, *_cells(known), *near]))


def _cells(known: RecordedRuns) -> list[RunConfig]:
    """Five seeds of what the ledger compares away from rank 8 and from the default start of N."""
    at_both = [("lora", 1, None), ("slora", 1, None), *(("slora", RANK, init) for init in STARTS)]
    at_own = [*at_both, *((method, rank, None) for rank in RANKS for method in FIRST)]
    bests = {cell: best.lr for cell in at_own if (best := known.best(WORDS, *cell)) is not None}
    asked = [*bests.items(), *((cell, SHARED_RATE) for cell in at_both if cell in bests)]
    grid = [_config(WORDS, method, lr, seed, rank, init) for (method, rank, init), lr in asked for seed in FIVE_SEEDS]
    for (method, rank, init), lr in bests.items():
        tried = [point.lr for point in known.valley(WORDS, method, rank, init)]
        further = [_rung(lr, step) for step, end in ((-1, tried[0]), (1, tried[-1])) if lr == end]
        grid += [_config(WORDS, method, rate, 0, rank, init) for rate in further]
    return grid


def ranked(known: RecordedRuns) -> list[RunConfig]:
    """One run of each further method at each other rank, at its best rate of rank 8, moved as that of the first moves.

    With a scale of 1 every number moves the weights, so the more there are, the sooner a rate is too high.
    """
    others = [name for name in SPAN if name not in FIRST and get_method(name).build is not None]
    bests = {name: best.lr for name in others if (best := known.best(WORDS, name, RANK)) is not None}
    return [_config(WORDS, name, _rung(lr, DRIFT[rank]), 0, rank) for rank in RANKS for name, lr in bests.items()]


def _rung(rate: float, steps: int) -> float:
    """The rate so many rungs of the ladder above the one that is nearest to ``rate``: a store may hold others."""
    near = min(range(len(LADDER)), key=lambda i: abs(math.log(LADDER[i] / rate)))
    return LADDER[min(max(near + steps, 0), len(LADDER) - 1)]


def recorded_parts(store: RunStore) -> Iterator[list[RunConfig]]:
    """What is to be made, part by part, the most telling first: so that whatever there is of it is of use.

    Where the finalists are is known only when the part before them is there, and they may move while they are made.
    """
    yield _opening()
    yield from _settle(store, finalists)
    yield recorded_grid()
    yield from _settle(store, lambda known: [*finalists(known), *ranked(known)])


def _settle(store: RunStore, asked: Callable[[RecordedRuns], list[RunConfig]]) -> Iterator[list[RunConfig]]:
    """What is missing of ``asked``, until what was made no longer changes it."""
    while True:
        there = store.keys()
        missing = [cfg for cfg in asked(recorded_runs(store)) if run_key(cfg) not in there]
        if not missing:
            return
        yield missing


def whole_grid(store: RunStore) -> list[RunConfig]:
    """Every config that is asked for, as far as what is in ``store`` already says where."""
    known = recorded_runs(store)
    return list(dict.fromkeys([*recorded_grid(), *finalists(known), *ranked(known)]))


def record_before(folder: Path) -> Path:
    """Measure :func:`base_answers` for every task and write it into ``folder``."""
    from nlora_lab.evaluation.scoring import accuracy, answers
    from nlora_lab.models.loading import load_model
    from nlora_lab.tasks.registry import load_task

    model, tokenizer = load_model()
    found = {}
    for name in TASKS:
        given = answers(model, tokenizer, load_task(name))
        found[name] = {"accuracy": accuracy(given), "answers": [a.said for a in given[:KEPT_ANSWERS]]}
    (folder / BEFORE).parent.mkdir(parents=True, exist_ok=True)
    (folder / BEFORE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return folder / BEFORE


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing of the grid. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.record_grid", description="Record the grid of runs that ships."
    )
    parser.add_argument("--store", type=Path, help="folder of the records (default: data/results)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: cpu, as the grid says)")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core)")
    parser.add_argument("--pack", action="store_true", help="afterwards, write one file per task and method")
    parser.add_argument("--show", action="store_true", help="make nothing; print how much of the grid is recorded")
    parser.add_argument("--before", action="store_true", help="measure the model before any tuning, and nothing else")
    options = parser.parse_args(argv)
    store = shipped_store() if options.store is None else RunStore(options.store)
    if options.show:
        print(coverage(whole_grid(store), store))
        return 0
    if options.before:
        print(record_before(store.path))
        return 0
    try:
        for part in recorded_parts(store):
            configs = part if options.device is None else [replace(cfg, device=options.device) for cfg in part]
            sweep(configs, store, options.workers)
    finally:
        if options.pack:
            print(f"packed {store.pack()} records", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
