"""Measure the time from a key on a slider until the page shows the new figure, in a real browser.

    python benchmarks/slider_in_browser.py            # print the table and write results/slider.json
    python benchmarks/slider_in_browser.py --quick    # press a few keys, to see whether it runs; write nothing
    python benchmarks/slider_in_browser.py --show     # print the table of the record, measure nothing

The time runs from the keydown event of the page until after the frame that shows the last change of the figure. The
same notebook holds two peers that compute nothing: they draw a copy of the lab's figure with numbers moved at random.
One is a bare ``go.FigureWidget`` that an ``IntSlider`` updates. The other is displayed again in a cleared ``Output``.
The lab and the peers take turns, one key each. The script needs what the browser tests need: the ``test`` extra, and
Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
RECORD = HERE / "results" / "slider.json"
sys.path.insert(0, str(HERE.parent / "tests"))

from browser.page import SIZE, Notebook, open_browser, why_no_browser  # noqa: E402
from browser.server import JupyterServer  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

KEYS, QUICK_KEYS, WARM_UP = 40, 4, 3
TALL = {"width": SIZE["width"], "height": 2800}  # the lab and its peers in view together
QUIET = 400  # milliseconds without a change after which the figure is complete
VERSIONS = ("jupyterlab", "ipykernel", "ipywidgets", "plotly", "anywidget", "nlora-lab")


@dataclass(frozen=True)
class Lab:
    """A lab to measure: the cell that shows it, the label of the slider to move, and its figure."""

    name: str
    source: str
    slider: str
    figure: str = "lab._figure.widget"


LABS = [
    Lab("NystromLab", "lab = nl.NystromLab()\nlab", "rank r"),
    Lab("FineTuneLab", "lab = nl.FineTuneLab()\nlab", "learning rate"),
]

SETUP = """
import ipywidgets as widgets
import nlora_lab as nl
import numpy as np
import plotly.graph_objects as go
from IPython.display import clear_output, display
"""
COPY = """
copied = go.Figure({figure})
random = np.random.default_rng(0)

def moved():
    changes = []
    for trace in copied.data:
        key = "z" if trace.type == "heatmap" else "x" if trace.type == "bar" else "y"
        values = np.array([] if trace[key] is None else trace[key], dtype=float)
        changes.append({{key: values * random.uniform(0.9, 1.1, values.shape)}})
    return changes
"""
BARE, REDISPLAYED = "bare FigureWidget", "cleared Output, displayed again"
PEERS = {
    BARE: """
bare = go.FigureWidget(copied)
bare_slider = widgets.IntSlider(8, 1, 96, description="bare")

def update(_):
    with bare.batch_update():
        for trace, change in zip(bare.data, moved()):
            trace.update(change)

bare_slider.observe(update, "value")
widgets.VBox([bare_slider, bare])
""",
    REDISPLAYED: """
output = widgets.Output()
again_slider = widgets.IntSlider(8, 1, 96, description="again")

def display_again(_=None):
    figure = go.Figure(copied)
    for trace, change in zip(figure.data, moved()):
        trace.update(change)
    with output:
        clear_output(wait=True)
        display(figure)

again_slider.observe(display_again, "value")
display_again()
widgets.VBox([again_slider, output])
""",
}
SLIDERS = {BARE: "bare", REDISPLAYED: "again"}

# Records when something inside a figure changes, and when the frame after it has been painted. A figure that is
# displayed again counts as a change too.
WATCH = """
() => {
  const watch = window.watch = {};
  const inFigure = node => node.nodeType === 1
    && (node.closest('.js-plotly-plot') || node.querySelector('.js-plotly-plot'));
  document.addEventListener('keydown', event => {
    Object.assign(watch, {key: event.timeStamp, changes: 0, painted: null});
  }, true);
  new MutationObserver(records => {
    if (!watch.key || !records.some(r => inFigure(r.target) || [...r.addedNodes].some(inFigure))) return;
    watch.changes += 1;
    watch.last = performance.now();
    requestAnimationFrame(() => {
      const after = new MessageChannel();  // its message arrives after the frame has been painted
      after.port1.onmessage = () => { watch.painted = performance.now() };
      after.port2.postMessage(0);
    });
  }).observe(document.body, {subtree: true, childList: true, attributes: true});
}
"""
DONE = "quiet => watch.changes > 0 && watch.painted > watch.last && performance.now() - watch.last > quiet"


@dataclass
class Row:
    """One line of the table, with the milliseconds of every key."""

    lab: str
    what: str
    figure: str
    times: list[float] = field(default_factory=list)

    @property
    def middle(self) -> float:
        return median(self.times)

    @property
    def slow(self) -> float:
        return quantiles(self.times, n=10, method="inclusive")[8]


def measure(lab: Lab, context: BrowserContext, server: JupyterServer, keys: int) -> list[Row]:
    """Open a notebook with the lab and its peers, and press ``keys`` keys on each slider, in turn."""
    copy = COPY.format(figure=lab.figure)
    cells = [cell.strip() for cell in (SETUP, lab.source, copy, *PEERS.values())]
    notebook = Notebook(context, server, f"slider-{lab.name}", cells)
    notebook.page.set_viewport_size(TALL)
    notebook.run_all()
    notebook.until(lambda: len(notebook.figures()) > len(PEERS), 60, "all figures are shown")
    notebook.wait_for_figure()
    size = figure_size(notebook)
    rows = [Row(lab.name, what, size) for what in (lab.name, *PEERS)]
    notebook.page.evaluate(WATCH)
    for i in range(WARM_UP + keys):
        for row in rows:
            # ten keys to the right, then ten to the left, so that no slider reaches its end
            elapsed = press(notebook, SLIDERS.get(row.what, lab.slider), "ArrowLeft" if i // 10 % 2 else "ArrowRight")
            if i >= WARM_UP:
                row.times.append(elapsed)
    notebook.screenshot("measured", TALL["width"], TALL["height"])
    notebook.close()
    server.end_kernels()
    return rows


def press(notebook: Notebook, label: str, key: str) -> float:
    """Press a key on a slider. Return the milliseconds until its figure has been painted."""
    handle = notebook.slider(label)
    handle.focus()
    notebook.page.evaluate("() => { watch.key = 0 }")
    notebook.page.keyboard.press(key)
    notebook.page.wait_for_function(DONE, arg=QUIET, timeout=30_000)
    return float(notebook.page.evaluate("() => watch.painted - watch.key"))


def figure_size(notebook: Notebook) -> str:
    """The number of traces and of numbers in the first figure on the page, which is that of the lab."""
    traces = notebook.figures()[0]
    numbers = sum(len(row) if isinstance(row, list) else 1 for t in traces for k in "xyz" for row in t[k] or [])
    return f"{len(traces)} traces, {numbers:,} numbers"


# --- the record and the table ---


def table(rows: list[Row]) -> str:
    head = [
        "| lab | drawn by | figure | median | 90th percentile | relative to the bare figure |",
        "|---|---|---|---|---|---|",
    ]
    bare = {row.lab: row.middle for row in rows if row.what == BARE}
    lines = [
        f"| {r.lab} | {'the lab' if r.what == r.lab else r.what} | {r.figure} | {r.middle:.0f} ms | {r.slow:.0f} ms | "
        f"{r.middle / bare[r.lab]:.2f}× |"
        for r in rows
    ]
    return "\n".join([*head, *lines])


def record(rows: list[Row], browser: str) -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "browser": browser,
        "versions": {name: version(name) for name in VERSIONS},
        "rows": [asdict(row) | {"times": [round(t, 1) for t in row.times]} for row in rows],
    }


def stored_table(stored: dict[str, Any]) -> str:
    """The table of a record."""
    return table([Row(**row) for row in stored["rows"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="press a few keys, write nothing")
    parser.add_argument("--only", choices=[lab.name for lab in LABS], help="measure one lab")
    parser.add_argument("--out", type=Path, help="file of the record")
    parser.add_argument("--show", action="store_true", help="print the record, measure nothing")
    options = parser.parse_args()
    if options.show:
        print(stored_table(json.loads(RECORD.read_text(encoding="utf-8"))))
        return
    if missing := why_no_browser():
        parser.error(missing)
    rows = []
    with open_browser() as browser, TemporaryDirectory() as folder, JupyterServer(Path(folder)) as server:
        context = browser.new_context(viewport=SIZE)
        for lab in LABS:
            if options.only in (None, lab.name):
                print(f"measuring {lab.name} …", file=sys.stderr, flush=True)
                rows += measure(lab, context, server, QUICK_KEYS if options.quick else KEYS)
        result = record(rows, f"Chromium {browser.version}")
    print(
        f"{result['browser']}, plotly {result['versions']['plotly']}, {result['cpus']} CPUs\n\n{stored_table(result)}"
    )
    out = options.out or (None if options.quick or options.only else RECORD)
    if out is not None:
        out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
