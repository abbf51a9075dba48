"""Measure what a sweep costs beside the runs themselves: milliseconds per run, with runs that take no time.

    python benchmarks/sweeps.py           # measure, write results/sweeps.json, print the table
    python benchmarks/sweeps.py --show    # print the table of the record, measure nothing

A sweep of 1,000 runs over two workers takes turns with the same 1,000 calls handed to the same executor directly. The
executors are the one of this machine and a Dask cluster of two worker processes. The last row plans a grid of 100,000
runs, as ``nlora-lab sweep --show`` does, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Executor, wait
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
RUNS, ROUNDS = 1000, 3
PLAN = """
import resource, time
start = time.perf_counter()
from nlora_lab.runs.store import RunStore
from nlora_lab.sweeps.grid import coverage
methods, rates = ["lora", "slora", "nlora", "pissa", "dora"], [1e-4 * 1.1**i for i in range(40)]
grid = {"method": methods, "lr": rates, "seed": range(100), "rank": [1, 2, 4, 8, 16]}
assert coverage(grid, RunStore("no-such-folder")).rpartition("\\n")[2].startswith("0 of 100000 runs")
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def make_at_once(settings: Any, sources: str) -> Any:
    """Return the record of a run of one step without making it."""
    from nlora_lab.runs.config import RunConfig
    from nlora_lab.runs.run import Run, Step

    return [
        Run(RunConfig(**s), (Step(1, 1.0, 1e-3, 1.0),), {"accuracy": 0.5}, 1, 1.0, 1).to_json() for s in settings
    ], {}


def sweep_once(executor: Executor) -> float:
    """Milliseconds per run of a sweep."""
    from nlora_lab.sweeps import engine

    engine.make_runs = make_at_once
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        rows = engine.sweep({"seed": list(range(RUNS)), "steps": 1}, folder, executor, progress=False)
        assert len(rows) == RUNS
        return (time.perf_counter() - start) * 1000 / RUNS


def call_once(executor: Executor) -> float:
    """Milliseconds per call of the same work without a sweep."""
    from dataclasses import asdict

    from nlora_lab.runs.config import RunConfig

    start = time.perf_counter()
    futures = [executor.submit(make_at_once, [asdict(RunConfig(seed=i, steps=1))], "") for i in range(RUNS)]
    assert all(future.result()[0] for future in wait(futures).done)
    return (time.perf_counter() - start) * 1000 / RUNS


def measure(name: str, executor: Executor) -> dict[str, Any]:
    call_once(executor)  # the workers import the package
    rounds = [(sweep_once(executor), call_once(executor)) for _ in range(ROUNDS)]
    sweep_ms, call_ms = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {"executor": name, "sweep_ms": sweep_ms, "call_ms": call_ms}


def measure_all() -> dict[str, Any]:
    from distributed import Client, LocalCluster

    from nlora_lab.sweeps.local import LocalExecutor

    rows = []
    with LocalExecutor([{"OMP_NUM_THREADS": "1"}] * 2) as executor:
        rows.append(measure("this machine, 2 processes", executor))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        rows.append(measure("Dask, 2 worker processes", client.get_executor()))
    plan = subprocess.run([sys.executable, "-c", PLAN], capture_output=True, text=True, check=True)
    seconds, memory = map(float, plan.stdout.split())
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return {"machine": machine, "runs": RUNS, "rows": rows, "plan": {"seconds": seconds, "bytes": memory}}


def table(record: dict[str, Any]) -> str:
    lines = ["| executor | sweep, ms per run | bare calls, ms per call | target |", "|---|---|---|---|"]
    lines += [
        f"| {row['executor']} | {row['sweep_ms']:.1f} | {row['call_ms']:.1f} | ≤ 20 ms |" for row in record["rows"]
    ]
    plan = record["plan"]
    lines += ["", f"Planning 100,000 runs took {plan['seconds']:.1f} s and {plan['bytes'] / 2**20:,.0f} MiB."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the table of the record, measure nothing")
    options = parser.parse_args()
    place = RESULTS / "sweeps.json"
    if not options.show:
        place.write_text(json.dumps(measure_all(), indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(place.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
