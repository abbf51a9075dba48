"""Compare a race of eight runs with the same eight runs one by one, in seconds of training.

    python benchmarks/race.py                  # measure, write results/race.json, print the table
    python benchmarks/race.py --show           # print the table of the record, measure nothing
    python benchmarks/race.py --device cuda    # measure on a GPU, write results/race-cuda.json

Eight methods train on word problems with the embedded model, at rank 8 and at rates at which each learns. Every round
times one race and the eight single runs, in an order that alternates. A ratio is taken *within* a round, so that a busy
moment of the machine affects both. Loading and evaluation do not count: the time is the sum of ``Run.seconds``. The
targets are ratios of at most 1.15 on a CPU and 0.35 on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
RATES = {
    "lora": 1e-2, "slora": 1e-2, "rslora": 5e-3, "nlora": 1e-4, "nlora-core": 5e-3, "nlora-balanced": 1e-3,
    "pissa": 2e-3, "inttune": 2e-2,
}  # fmt: skip
BATCHES = (16, 4)
STEPS = 16


def make_configs(batch_size: int, device: str, steps: int = STEPS, rates: dict[str, float] = RATES) -> list[Any]:
    from nlora_lab.runs.config import RunConfig

    # one step more than the runs make: a stopped run is not evaluated. Few rows are encoded in less time
    shared = {"steps": steps + 1, "train_rows": 512, "batch_size": batch_size, "device": device}
    return [RunConfig(method=method, lr=lr, **shared) for method, lr in rates.items()]


def run_together(configs: list[Any]) -> list[Any]:
    from nlora_lab.training.races import race

    # stop on the event of the last run: by then all runs have made the step
    runs = race(configs, lambda cfg, step: cfg is configs[-1] and step.step == cfg.steps - 1)
    assert {run.together for run in runs} == {len(configs)}
    return runs


def run_one_by_one(configs: list[Any]) -> list[Any]:
    from nlora_lab.training.loop import fine_tune

    return [fine_tune(cfg, lambda step, cfg=cfg: step.step == cfg.steps - 1) for cfg in configs]


def seconds(runs: list[Any]) -> float:
    assert all(len(run.steps) == run.config.steps - 1 for run in runs)
    return sum(run.seconds for run in runs)


def measure(
    batch_size: int, device: str, rounds: int, steps: int = STEPS, rates: dict[str, float] = RATES
) -> dict[str, Any]:
    configs = make_configs(batch_size, device, steps, rates)
    ways = {"race": run_together, "one by one": run_one_by_one}
    times: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, int] = {}
    for number in range(-1, rounds):  # the first round is a warm-up
        for way in list(ways)[:: 1 if number % 2 else -1]:
            runs = ways[way](configs)
            if number >= 0:
                times[way].append(seconds(runs))
                memory[way] = max(run.peak_memory for run in runs)
        print(f"batch {batch_size}, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    ratios = [a / b for a, b in zip(times["race"], times["one by one"], strict=True)]
    seconds_by_way: dict[str, Any] = {way: spread(values) for way, values in times.items()}
    return {**seconds_by_way, "ratio": spread(ratios), "peak_memory": memory}


def spread(values: list[float]) -> dict[str, float]:
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"lower": round(lower, 4), "median": round(middle, 4), "upper": round(upper, 4)}


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    lines = [
        f"{record['device']}. {len(record['field'])} methods ({', '.join(record['field'])}), rank 8, {record['steps']} "
        f"steps. Medians of {record['rounds']} rounds, quartiles in brackets.",
        "",
        "| batch | race, s | one by one, s | race / one by one |",
        "|---|---|---|---|",
    ]
    for size, row in record["batches"].items():
        cells = [
            "{median:.{d}f} ({lower:.{d}f}–{upper:.{d}f})".format(**row[key], d=digits)
            for key, digits in (("race", 2), ("one by one", 2), ("ratio", 3))
        ]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the record, measure nothing")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=9, help="number of rounds (default: 9)")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="batch sizes (default: 16 4)")
    options = parser.parse_args()
    file = RESULTS / ("race.json" if options.device == "cpu" else f"race-{options.device}.json")
    if not options.show:
        import torch

        from nlora_lab.runs.run import versions

        warnings.filterwarnings("ignore", category=FutureWarning)
        os.environ["NLORA_LAB_DEVICE"] = options.device
        torch.set_num_threads(1)
        name = f"CPU ({platform.machine()}), one thread" if options.device == "cpu" else torch.cuda.get_device_name()
        record = {
            "device": name,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "rounds": options.rounds,
            "steps": STEPS,
            "field": list(RATES),
            "batches": {str(size): measure(size, options.device, options.rounds) for size in options.batches},
        }
        file.write_text(json.dumps(record, indent=1) + "\n")
    print(table(json.loads(file.read_text())))


if __name__ == "__main__":
    main()
