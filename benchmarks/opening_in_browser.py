"""Measure in a real browser how long a lab takes from its cell to its first painted figure.

    python benchmarks/opening_in_browser.py           # print the table and write results/opening.json
    python benchmarks/opening_in_browser.py --quick   # one round, to see whether it runs; write nothing
    python benchmarks/opening_in_browser.py --show    # print the table of the record, measure nothing

A notebook in JupyterLab imports the library in its first cell. The time runs from the command that runs the second cell
until after the frame in which the figure of that cell is there. The kernel is restarted before every measurement, so
nothing was read before. The peer is the same figure as a ``FigureWidget`` of plotly, which is how the lab was drawn
before it drew itself. Lab and peer take turns. The script needs what the browser tests need: the ``test`` extra, and
Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).resolve().parent
RECORD = HERE / "results" / "opening.json"
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from browser.page import SIZE, Notebook  # noqa: E402
from browser.server import JupyterServer  # noqa: E402

from tools.browser import open_browser, why_no_browser  # noqa: E402

ROUNDS, TARGET = 7, 500  # milliseconds
VERSIONS = ("jupyterlab", "ipykernel", "ipywidgets", "plotly", "anywidget", "nlora-lab")
PLOTLY = "from nlora_lab.labs.figures import PlotlyFigure\nPlotlyFigure(nl.{lab}().drawing()).widget"
CASES = {
    ("FineTuneLab", "the lab"): ("nl.FineTuneLab()", ".nlora-lab .figure svg path"),
    ("FineTuneLab", "FigureWidget"): (PLOTLY.format(lab="FineTuneLab"), ".js-plotly-plot .main-svg path"),
    ("NystromLab", "the lab"): ("nl.NystromLab()", ".nlora-lab .figure svg path"),
    ("NystromLab", "FigureWidget"): (PLOTLY.format(lab="NystromLab"), ".js-plotly-plot .main-svg path"),
}

# Run the second cell; the message arrives after the frame with the figure has been painted.
OPEN = """
selector => new Promise(done => {
  panel().content.activeCellIndex = 1;
  const started = performance.now(), after = new MessageChannel();
  after.port1.onmessage = () => done(performance.now() - started);
  const look = () => document.querySelector(selector) ? after.port2.postMessage(0) : requestAnimationFrame(look);
  run('notebook:run-cell');
  requestAnimationFrame(look);
})
"""


def opening(notebook: Notebook, selector: str) -> float:
    """Restart the kernel, import the library, and return the milliseconds until the second cell has its figure."""
    notebook.restart_kernel()
    notebook._command("notebook:clear-all-cell-outputs", 30)
    notebook._evaluate("() => { panel().content.activeCellIndex = 0 }")
    notebook._command("notebook:run-cell", 60)
    notebook.page.wait_for_timeout(500)
    assert not notebook.page.locator(selector).count(), "the figure is there before its cell runs"
    return float(notebook._evaluate(OPEN, selector))


def table(rows: list[dict[str, Any]]) -> str:
    """The table of a record."""
    lines = ["| lab | drawn by | cell → painted, median | slowest | target | reached |", "|---|---|---|---|---|---|"]
    for row in rows:
        middle, slowest, own = median(row["times"]), max(row["times"]), row["what"] == "the lab"
        last = f"≤ {TARGET} ms | {'yes' if middle <= TARGET else '**no**'}" if own else "– | –"
        lines.append(f"| {row['lab']} | {row['what']} | {middle:.0f} ms | {slowest:.0f} ms | {last} |")
    return "\n".join(lines)


def measure(rounds: int) -> dict[str, Any]:
    """Open every lab and every peer in turn, and return the record."""
    load = [os.getloadavg()[0]]
    times: dict[tuple[str, str], list[float]] = {case: [] for case in CASES}
    with open_browser() as browser, TemporaryDirectory() as folder, JupyterServer(Path(folder)) as server:
        context = browser.new_context(viewport=SIZE)
        for turn in range(rounds):
            for number, (case, (source, selector)) in enumerate(CASES.items()):
                notebook = Notebook(context, server, f"opening-{number}-{turn}", ["import nlora_lab as nl", source])
                times[case].append(round(opening(notebook, selector), 1))
                notebook.close()
                server.end_kernels()
        chromium = f"Chromium {browser.version}"
    load.append(os.getloadavg()[0])
    return {
        "cpus": os.cpu_count(),
        "load": [round(average, 1) for average in load],
        "browser": chromium,
        "versions": {name: version(name) for name in VERSIONS},
        "rows": [{"lab": lab, "what": what, "times": taken} for (lab, what), taken in times.items()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, write nothing")
    parser.add_argument("--show", action="store_true", help="print the record, measure nothing")
    options = parser.parse_args()
    if options.show:
        print(table(json.loads(RECORD.read_text(encoding="utf-8"))["rows"]))
        return
    if missing := why_no_browser():
        parser.error(missing)
    result = measure(1 if options.quick else ROUNDS)
    averages = ", ".join(map(str, result["load"]))
    print(f"{result['browser']}, {result['cpus']} CPUs, load {averages}\n\n{table(result['rows'])}")
    if not options.quick:
        RECORD.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
