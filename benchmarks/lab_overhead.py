"""Compare training with the live panel of the lab and the same training without it.

    python benchmarks/lab_overhead.py            # about six minutes on two cores
    python benchmarks/lab_overhead.py --write    # also write results/lab_overhead.json

Both take turns in one Jupyter kernel, so that the panel sends every message to the page. The panel draws, records what
happens inside the adapters, and moves its progress bar. The time is that of the training loop alone (`Run.seconds`).
The target is at most 3 % more. PyTorch has one thread, as in a sweep.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

RECORD = Path(__file__).parent / "results" / "lab_overhead.json"
CELL = """
import json, warnings
import torch
torch.set_num_threads(1)
import nlora_lab as nl
from nlora_lab.runs.run import versions
lab = nl.FineTuneLab({methods!r}, figures="plotly")
lab.lr.value, lab.steps.value = 1e-3, {steps}
lab.open("inside")  # the most expensive tab
display(lab)
rows = []
for turn in range({rounds}):
    seconds = {{}}
    for way in ("panel", "bare") if turn % 2 else ("bare", "panel"):
        if way == "panel":
            before = len(lab.runs)
            lab.run.click()
            runs = lab.wait()[before:]
        else:
            runs = nl.race(lab.configs())
        seconds[way] = sum(run.seconds for run in runs)
    rows.append(seconds)
print(json.dumps({{"rows": rows, "device": lab.runs[0].device, "versions": versions()}}))
"""


def measure(methods: tuple[str, ...], steps: int, rounds: int) -> dict:
    cell = nbformat.v4.new_code_cell(CELL.format(methods=methods, steps=steps, rounds=rounds))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, timeout=1800, store_widget_state=False).execute()
    printed = "".join(o.text for o in notebook.cells[0].outputs if o.get("name") == "stdout")
    return {"methods": methods, "steps": steps, **json.loads(printed)}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps per run (default: 60)")
    parser.add_argument("--write", action="store_true", help="write the record into results/")
    options = parser.parse_args()
    results = [measure(m, options.steps, options.rounds) for m in (("lora",), ("lora", "slora", "nlora"))]
    print("| methods | without the panel | with it | ratio, median (quartiles) | target | reached |")
    print("|---|---|---|---|---|---|")
    for result in results:
        bare, panel = (statistics.median(r[k] for r in result["rows"]) for k in ("bare", "panel"))
        low, middle, high = quartiles([r["panel"] / r["bare"] for r in result["rows"]])
        reached = "yes" if middle <= 1.03 else "**no**"
        names = ", ".join(result["methods"])
        print(f"| {names} | {bare:.2f} s | {panel:.2f} s | {middle:.3f} ({low:.3f}–{high:.3f}) | ≤ 1.03 | {reached} |")
    settings = f"{options.steps} steps of 16 word problems, {options.rounds} rounds"
    print(f"\n{results[0]['device']}, {settings}", file=sys.stderr)
    if options.write:
        RECORD.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
