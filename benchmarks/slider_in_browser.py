"""How long a slider's key takes until the page shows the new figure, in a real browser.

    python benchmarks/slider_in_browser.py            # prints the table and writes results/slider.json
    python benchmarks/slider_in_browser.py --quick    # a few keys: does it run? writes nothing
    python benchmarks/slider_in_browser.py --show     # prints the record, measures nothing

The time runs from the page's keydown event until after the frame that shows the figure's last change. In the
same notebook, by the same kernel, and a key each in turn, stand two peers that compute nothing: they draw a
copy of the lab's figure, with numbers moved at random. One is a bare ``go.FigureWidget`` which an ``IntSlider``
updates, the other is displayed anew in a cleared ``Output``. Needs what the browser tests need: the ``test``
extra, and Chromium or Chrome.
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
STORE = HERE / "results" / "slider.json"
sys.path.insert(0, str(HERE.parent / "tests"))

from browser.page import SIZE, Notebook, open_browser, why_no_browser  # noqa: E402
from browser.server import JupyterServer  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

KEYS, QUICK_KEYS, WARM_UP = 40, 4, 3
TALL = {"width": SIZE["width"], "height": 2800}  # the lab and its peers in view together
QUIET = 400  # milliseconds without a change: the figure is done
VERSIONS = ("jupyterlab", "ipykernel", "ipywidgets", "plotly", "anywidget", "nlora-lab")


@dataclass(frozen=True)
class Lab:
    """What is measured: a cell that shows a lab, the label of the slider to move, and the lab's figure."""

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
BARE, ANEW = "bare FigureWidget", "cleared Output, displayed anew"
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
    ANEW: """
output = widgets.Output()
anew_slider = widgets.IntSlider(8, 1, 96, description="anew")

def display_anew(_=None):
    figure = go.Figure(copied)
    for trace, change in zip(figure.data, moved()):
        trace.update(change)
    with output:
        clear_output(wait=True)
        display(figure)

anew_slider.observe(display_anew, "value")
display_anew()
widgets.VBox([anew_slider, output])
""",
}
SLIDERS = {BARE: "bare", ANEW: "anew"}

# Notes when something inside a figure changes and when the frame after it has been painted. That a figure is
# displayed anew is a change inside one too.
WATCH = """
() => {
  const seen = window.seen = {};
  const inFigure = node => node.nodeType === 1
    && (node.closest('.js-plotly-plot') || node.querySelector('.js-plotly-plot'));
  document.addEventListener('keydown', event => {
    Object.assign(seen, {key: event.timeStamp, changes: 0, painted: null});
  }, true);
  new MutationObserver(records => {
    if (!seen.key || !records.some(r => inFigure(r.target) || [...r.addedNodes].some(inFigure))) return;
    seen.changes += 1;
    seen.last = performance.now();
    requestAnimationFrame(() => {
      const after = new MessageChannel();  // heard once the frame has been painted
      after.port1.onmessage = () => { seen.painted = performance.now() };
      after.port2.postMessage(0);
    });
  }).observe(document.body, {subtree: true, childList: true, attributes: true});
}
"""
DONE = "quiet => seen.changes > 0 && seen.painted > seen.last && performance.now() - seen.last > quiet"


@dataclass
class Row:
    """The milliseconds of every key."""

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
    """A notebook with the lab and its peers; ``keys`` keys on each slider, in turn."""
    copy = COPY.format(figure=lab.figure)
    cells = [cell.strip() for cell in (SETUP, lab.source, copy, *PEERS.values())]
    notebook = Notebook(context, server, f"slider-{lab.name}", cells)
    notebook.page.set_viewport_size(TALL)
    notebook.run_all()
    notebook.until(lambda: len(notebook.figures()) > len(PEERS), 60, "all figures are there")
    notebook.wait_for_figure()
    size = figure_size(notebook)
    rows = [Row(lab.name, what, size) for what in (lab.name, *PEERS)]
    notebook.page.evaluate(WATCH)
    for i in range(WARM_UP + keys):
        for row in rows:
            # ten there and ten back, so that no slider comes to its end
            took = press(notebook, SLIDERS.get(row.what, lab.slider), "ArrowLeft" if i // 10 % 2 else "ArrowRight")
            if i >= WARM_UP:
                row.times.append(took)
    notebook.screenshot("measured", TALL["width"], TALL["height"])
    notebook.close()
    server.end_kernels()
    return rows


def press(notebook: Notebook, label: str, key: str) -> float:
    """One key on this slider; milliseconds until the figure it moves has been painted."""
    handle = notebook.slider(label)
    handle.focus()
    notebook.page.evaluate("() => { seen.key = 0 }")
    notebook.page.keyboard.press(key)
    notebook.page.wait_for_function(DONE, arg=QUIET, timeout=30_000)
    return float(notebook.page.evaluate("() => seen.painted - seen.key"))


def figure_size(notebook: Notebook) -> str:
    """How many traces the first figure on the page has, the lab's, and how many numbers."""
    traces = notebook.figures()[0]
    numbers = sum(len(row) if isinstance(row, list) else 1 for t in traces for k in "xyz" for row in t[k] or [])
    return f"{len(traces)} traces, {numbers:,} numbers"


# --- what is told ---


def table(rows: list[Row]) -> str:
    head = ["| lab | what | figure | median | 90th percentile | of the bare one |", "|---|---|---|---|---|---|"]
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


def stored(told: dict[str, Any]) -> str:
    """The table of a record."""
    return table([Row(**row) for row in told["rows"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=[lab.name for lab in LABS])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    if options.show:
        print(stored(json.loads(STORE.read_text(encoding="utf-8"))))
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
        told = record(rows, f"Chromium {browser.version}")
    print(f"{told['browser']}, plotly {told['versions']['plotly']}, {told['cpus']} CPUs\n\n{stored(told)}")
    out = options.out or (None if options.quick or options.only else STORE)
    if out is not None:
        out.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
