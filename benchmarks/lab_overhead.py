"""What watching costs: training with the live panel against the same training without it, in turn, in one kernel.

    python benchmarks/lab_overhead.py            # about six minutes on two cores
    python benchmarks/lab_overhead.py --write    # and keep the record in results/

The panel runs in a real kernel, so that every message to the page is made and sent; it draws, records what is
inside the adapters, and moves its progress bar. Compared is the time of the training loop alone, by `Run.seconds`.
Asked for: at most 3 % more. PyTorch has one thread, as it has when the sweeps record.
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
from nlora_lab.records import versions
lab = nl.FineTuneLab({methods!r}, figures="plotly")
lab.lr.value, lab.steps.value = 1e-3, {steps}
lab._tabs.selected_index = 3  # the most expensive tab: what is inside
display(lab)
rows = []
for turn in range({rounds}):
    pair = {{}}
    for what in ("panel", "bare") if turn % 2 else ("bare", "panel"):
        if what == "panel":
            before = len(lab.runs)
            lab.run.click()
            runs = lab.wait()[before:]
        else:
            runs = nl.race(lab.configs())
        pair[what] = sum(run.seconds for run in runs)
    rows.append(pair)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = [measure(m, options.steps, options.rounds) for m in (("lora",), ("lora", "slora", "nlora"))]
    print("| methods | without the panel | with it | ratio, median (quartiles) | asked for | reached |")
    print("|---|---|---|---|---|---|")
    for result in found:
        bare, panel = (statistics.median(r[k] for r in result["rows"]) for k in ("bare", "panel"))
        low, middle, high = quartiles([r["panel"] / r["bare"] for r in result["rows"]])
        reached = "yes" if middle <= 1.03 else "**no**"
        names = ", ".join(result["methods"])
        print(f"| {names} | {bare:.2f} s | {panel:.2f} s | {middle:.3f} ({low:.3f}–{high:.3f}) | ≤ 1.03 | {reached} |")
    how = f"{options.steps} steps of 16 word problems, {options.rounds} rounds"
    print(f"\n{found[0]['device']}, {how}", file=sys.stderr)
    if options.write:
        RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
