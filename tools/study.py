"""Record the study behind the course's conclusions: budgets, fine ladders of rates, fresh seeds, replicates.

    python -m tools.study --show     # print the parts of the plan, and how much of each is recorded
    python -m tools.study            # make the missing runs, the most useful first

The runs on renumbered copies need folders ``renumbered-1`` to ``renumbered-5`` in the working folder. They are written
there if they are missing.

The contrasts on fresh seeds were fixed before the first of these runs: SLoRA, NLoRA and NLoRA as released against
LoRA, at 500 steps, each at the best of three rates by validation loss on seeds 0, 1 and 2. Primary measure:
``log_test_loss``. Test: that of ``nl.compare`` (Welch, unpaired, in the family of the planned comparisons).

The same comparison on ten seeds more (15 to 24) was fixed after the first one had been read, and before its own first
run: the same methods and NLoRA balanced, the same rates, measure and test. Its question is whether the verdicts come
out again. All twenty seeds together give the interval.

You can interrupt the command at any time. Run it again to resume. The middles of the ladders are the best rates of the
grid that was recorded before. The order of the parts, and the part of NLoRA as released, were settled while runs of the
first part came in.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

from nlora_lab.analysis.fresh_seeds import DECLARED
from nlora_lab.models.names import EMBEDDED
from nlora_lab.models.symmetry import save_renumbered
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.store import RunStore, run_key
from nlora_lab.sweeps.engine import sweep
from nlora_lab.sweeps.grid import coverage

STORE = Path(__file__).resolve().parent.parent / "data" / "results"
TASK = "word-problems"
MEASURE_EVERY = 25

# Where each method's ladder has its middle: the best rate of the recorded grid. LoRA's lay between two rungs of it.
MIDDLE = {
    "lora": 0.0141,
    "slora": 0.01,
    "nlora": 2e-4,
    "rslora": 0.005,
    "pissa": 0.01,
    "nlora-released": 0.02,
    "nlora-balanced": 0.005,
}
BUDGET_METHODS = ("lora", "slora", "nlora", "rslora", "pissa")
LADDER_SEEDS = tuple(DECLARED[EMBEDDED].chosen_on)  # a rate is chosen on these
FIRST_SEEDS = (0, 1, 2, 3, 4)
REPLICATES = (1, 2, 3, 4)  # of seeds 0 and 1
REPEATED = {
    "lora": (0.005, 0.0141, 0.02),
    "slora": (0.005, 0.01, 0.02),
    "nlora": (1e-4, 2e-4, 5e-4),
}  # rates of records

CONTRAST_METHODS = ("lora", "slora", "nlora", "nlora-released")
COPIES = tuple(f"renumbered-{seed}" for seed in range(1, 6))
LOTTERY_RATES = {8: (2e-4, 1e-4), 4: (2e-4, 5e-4), 16: (2e-4,), 32: (2e-4,), 2: (2e-4,), 1: (2e-4,)}  # by rank
FRESH_SEEDS = range(5, 15)  # no rate was chosen on them
SECOND_SEEDS = range(15, 25)  # the comparison on fresh seeds again
LORA_PLUS_A, LORA_PLUS_B = (0.002, 0.005, 0.01, 0.02), (0.005, 0.01, 0.02, 0.05)  # rates of A, rates of B
BALANCED_RATES = (0.00354, 0.005, 0.00707)
FIRST_STEPS: tuple[dict[str, Any], ...] = (
    {"warmup": 0.1}, {"clip_norm": 1.0}, {"warmup": 0.0}, {"warmup": 0.2}, {"batch_size": 8},
)  # fmt: skip
# rungs of the ladders at 250 steps that looked better with three seeds than the best rate of the grid: two more seeds
SEEN_ON_LADDERS = {"nlora-balanced": 0.00354, "pissa": 0.00707, "rslora": 0.00707, "nlora": 2.83e-4}
LARGE_BATCH = 64
# LoRA's scales s = alpha / r at other ranks than 8, where s is 1: alpha held fixed gives s = 8 / r, alpha / √r √(8 / r)
SCALED_RATES = {
    (2, 4.0): (0.0025, 0.005, 0.01, 0.02),
    (2, 2.0): (0.0025, 0.005, 0.01, 0.02),
    (32, 0.5): (0.005, 0.01, 0.02, 0.04),
    (32, 0.25): (0.005, 0.01, 0.02, 0.04, 0.08),  # 0.005 was added: 0.01 was the best and the lowest
}
# N A has the size of A / √3, so with this scale the first step of B changes the model as much as LoRA's does
FIRST_STEP_OF_LORA = 3**0.5
CHOSEN = {"lora": 0.00997, "slora": 0.0141, "nlora": 2e-4, "nlora-released": 0.02}  # on LADDER_SEEDS, at 500 steps


def ladder(method: str) -> tuple[float, ...]:
    """Return the five rates of a method: steps of √2 over two octaves, to three digits, ascending."""
    return tuple(float(f"{MIDDLE[method] * 2 ** (k / 2):.3g}") for k in (-2, -1, 0, 1, 2))


def config(method: str, lr: float, seed: int, steps: int, **changes: Any) -> RunConfig:
    """Return a config of the study."""
    settings = {"task": TASK, "device": "cpu", "measure_every": MEASURE_EVERY, **changes}
    return RunConfig(method=method, lr=lr, seed=seed, steps=steps, **settings)


def budgets(steps: Sequence[int], methods: Sequence[str] = BUDGET_METHODS) -> list[RunConfig]:
    """Return five seeds of some methods at some budgets, all at the middle of their ladders."""
    return [
        config(method, MIDDLE[method], seed, budget) for seed in FIRST_SEEDS for budget in steps for method in methods
    ]


def ladders(steps: Sequence[int], methods: Sequence[str]) -> list[RunConfig]:
    """Return every rate of the ladders with the same seeds for all."""
    return [
        config(method, lr, seed, budget)
        for budget in steps
        for seed in LADDER_SEEDS
        for method in methods
        for lr in ladder(method)
    ]


def replicates() -> list[RunConfig]:
    """Return repetitions of two seeds of three methods, below, at and above their best rates."""
    return [
        config(method, lr, seed, 250, replicate=replicate)
        for replicate in REPLICATES
        for method, rates in REPEATED.items()
        for lr in rates
        for seed in (0, 1)
    ]


def repeated_records() -> list[RunConfig]:
    """Return one repetition each of about one in 32 recorded runs: all methods, ranks, rates and tasks."""
    usual = {run_key(run.config): run.config for run in RunStore(STORE) if is_usual(run.config)}
    # drawn by their keys, so that further records change nothing
    return [replace(cfg, replicate=1, device="cpu") for key, cfg in usual.items() if crc32(key.encode()) % 32 == 0]


def is_usual(cfg: RunConfig) -> bool:
    """Whether a run is one of the recorded grid: on the embedded model, with the usual settings, and no repetition."""
    usual = {"model": EMBEDDED, "steps": 250, "replicate": 0, "lr_ratio": 1.0, "warmup": 0.03, "clip_norm": None}
    return cfg.batch_size == 16 and all(getattr(cfg, name) == value for name, value in usual.items())


def middle_rungs() -> list[RunConfig]:
    """Return the three middle rates of the ladders at 500 steps, of the methods that are compared on fresh seeds."""
    return [
        config(method, lr, seed, 500)
        for seed in LADDER_SEEDS
        for method in CONTRAST_METHODS
        for lr in ladder(method)[1:4]
    ]


def fresh_seeds() -> list[RunConfig]:
    """Return ten further seeds of the methods that are compared, at the rates that the first seeds chose."""
    return [config(method, lr, seed, 500) for seed in FRESH_SEEDS for method, lr in CHOSEN.items()]


def fresh_seeds_again() -> list[RunConfig]:
    """Return a second ten seeds of the same methods, and of NLoRA balanced, at the same rates."""
    chosen = {**CHOSEN, "nlora-balanced": 0.005}
    return [config(method, lr, seed, 500) for seed in SECOND_SEEDS for method, lr in chosen.items()]


def lottery() -> list[RunConfig]:
    """Return NLoRA on the model and on five renumbered copies, six ranks. Write the copies first."""
    for name in COPIES:
        if not Path(name).exists():
            save_renumbered(name, seed=int(name.rpartition("-")[2]))
    return [
        config("nlora", lr, 0, 250, model=model, rank=rank)
        for rank, rates in LOTTERY_RATES.items()
        for lr in rates
        for model in (EMBEDDED, *COPIES)
    ]


def around_the_choice() -> list[RunConfig]:
    """Return NLoRA on fresh seeds at the next rate, which its first three seeds preferred, and NLoRA balanced."""
    choosing = [config("nlora-balanced", lr, seed, 500) for seed in LADDER_SEEDS for lr in BALANCED_RATES]
    fresh = [("nlora", 2.83e-4), ("nlora-balanced", 0.005)]  # 0.005 was the best of the three
    return choosing + [config(method, lr, seed, 500) for method, lr in fresh for seed in FRESH_SEEDS]


def lora_plus() -> list[RunConfig]:
    """Return LoRA on a plane of two rates, without the cells of equal rates, which are LoRA's."""
    plane = [(of_a, of_b) for of_a in LORA_PLUS_A for of_b in LORA_PLUS_B if of_a != of_b]
    return [config("lora", of_a, seed, 250, lr_ratio=of_b / of_a) for seed in (0, 1) for of_a, of_b in plane]


def first_steps() -> list[RunConfig]:
    """Return NLoRA at three rates with other first steps: is its low best rate an artefact of them?"""
    return [
        config("nlora", lr, seed, 250, **change)
        for seed in LADDER_SEEDS
        for change in FIRST_STEPS
        for lr in (2e-4, 5e-4, 1e-3)
    ]


def second_look() -> list[RunConfig]:
    """Return the seeds 3 and 4 at the rungs that looked better, so that they have as many seeds as the best rates.

    Two of the four stayed better, and have runs of 500 steps, too.
    """
    seen = [config(method, lr, seed, 250) for seed in (3, 4) for method, lr in SEEN_ON_LADDERS.items()]
    return seen + [config(m, SEEN_ON_LADDERS[m], seed, 500) for seed in FIRST_SEEDS for m in ("pissa", "rslora")]


def large_batches() -> list[RunConfig]:
    """Return NLoRA at three rates with batches of 64 instead of 16, and the same number of steps."""
    return [
        config("nlora", lr, seed, 250, batch_size=LARGE_BATCH) for seed in LADDER_SEEDS for lr in (2e-4, 5e-4, 1e-3)
    ]


def rank_transfer() -> list[RunConfig]:
    """Return LoRA at ranks 2 and 32 with alpha / r and alpha / √r: under which scale does the best rate stay?"""
    return [
        config("lora", lr, seed, 250, rank=rank, alpha=rank * scale)
        for seed in (0, 1)
        for (rank, scale), rates in SCALED_RATES.items()
        for lr in rates
    ]


def scaled_slora() -> list[RunConfig]:
    """Return SLoRA with a scale that gives it LoRA's first step, at LoRA's best rate and around it."""
    return [
        config("slora", lr, seed, 250, alpha=8 * FIRST_STEP_OF_LORA)
        for seed in LADDER_SEEDS
        for lr in (0.005, 0.00707, 0.01, 0.0141)
    ]


PARTS: dict[str, Callable[[], list[RunConfig]]] = {
    "budgets of 250 and 500 steps": lambda: budgets((250, 500)),
    "NLoRA as released, 500 steps": lambda: budgets((500,), ("nlora-released",)),
    "NLoRA on renumbered copies": lottery,
    "three rates at 500 steps": middle_rungs,
    "fresh seeds at 500 steps": fresh_seeds,
    "NLoRA at the next rate and balanced, 500 steps": around_the_choice,
    "LoRA+": lora_plus,
    "repetitions of random records": repeated_records,
    "NLoRA with other first steps": first_steps,
    "a second look at the rungs that looked better": second_look,
    "SLoRA with LoRA's first step": scaled_slora,
    "rates at other ranks": rank_transfer,
    "NLoRA with large batches": large_batches,
    "budgets of 125 and 1000 steps": lambda: budgets((125, 1000)),
    "NLoRA as released, 125 and 1000 steps": lambda: budgets((125, 1000), ("nlora-released",)),
    "fresh seeds again": fresh_seeds_again,
    "replicates": replicates,
    "ladders at 500 steps": lambda: ladders((500,), BUDGET_METHODS),
    "ladders at 250 steps": lambda: ladders((250,), BUDGET_METHODS),
    "ladders of the variants": lambda: ladders((500, 250), tuple(m for m in MIDDLE if m not in BUDGET_METHODS)),
    "ladders at 125 and 1000 steps": lambda: ladders((125, 1000), BUDGET_METHODS),
}


def missing(store: RunStore) -> Iterator[tuple[str, list[RunConfig]]]:
    """Yield each part of the plan that the store lacks runs of, with those runs."""
    for name, part in PARTS.items():
        finished = store.keys()
        if configs := [cfg for cfg in part() if run_key(cfg) not in finished]:
            yield name, configs


def record(
    name: str, show: Callable[[RunStore], None], parts: Callable[[RunStore], Iterator[list[RunConfig]]],
    argv: Sequence[str] | None,
) -> int:  # fmt: skip
    """Run the command of a plan: make its missing runs, or show what is recorded, and return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m tools.{name}", description="Record the missing runs of a plan.")
    parser.add_argument("--store", type=Path, default=STORE, help="folder of the records (default: data/results)")
    parser.add_argument("--pack", action="store_true", help="afterwards, write one file per task and method")
    parser.add_argument("--show", action="store_true", help="make no run; print how much of the plan is recorded")
    options = parser.parse_args(argv)
    store = RunStore(options.store)
    if options.show:
        show(store)
        return 0
    try:
        for configs in parts(store):
            sweep(configs, store)
    finally:
        if options.pack:
            print(f"packed {store.pack()} records", file=sys.stderr)
    return 0


def show_parts(store: RunStore) -> None:
    """Print how much of each part is recorded."""
    for name, part in PARTS.items():
        print(f"{name}: {coverage(part(), store)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing runs of the study, and return the exit code."""
    return record("study", show_parts, lambda store: (configs for _, configs in missing(store)), argv)


if __name__ == "__main__":
    sys.exit(main())
