"""Measure in a real browser how fast a slider of a lab answers: one key at a time, and dragged with the mouse.

    python benchmarks/slider_in_browser.py            # print the tables and write results/slider.json
    python benchmarks/slider_in_browser.py --quick    # a few keys, to see whether it runs; write nothing
    python benchmarks/slider_in_browser.py --show     # print the tables of the record, measure nothing

A notebook in JupyterLab holds a lab, and a peer: the same figure as a ``FigureWidget`` of plotly that follows a slider
of ipywidgets through the kernel, which is how the lab was drawn before it drew itself. Lab and peer take turns, one key
each. The time runs from the keydown event of the page until after the frame that shows the last change of the figure.
Then the mouse drags each slider, with 30 moves a second. A slider that cannot follow leaves a backlog: the last change
of the figure comes long after the last move. The script needs what the browser tests need: the ``test`` extra, and
Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
RECORD = HERE / "results" / "slider.json"
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from browser.page import SIZE, Notebook  # noqa: E402
from browser.server import JupyterServer  # noqa: E402

from tools.browser import open_browser, why_no_browser  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator

KEYS, QUICK_KEYS, WARM_UP = 80, 4, 3
MOVES, QUICK_MOVES, MOVES_PER_SECOND = 90, 15, 30
TALL = {"width": SIZE["width"], "height": 1800}  # the lab and its peer in view together
QUIET = 400  # milliseconds without a change after which the figure is complete
TARGETS = {"median": 32, "slow": 60}
VERSIONS = ("jupyterlab", "ipykernel", "ipywidgets", "plotly", "anywidget", "nlora-lab")


@dataclass(frozen=True)
class Case:
    """A lab to measure: what makes it, the label of its slider, and its peer's slider, which sets that control."""

    name: str
    source: str
    label: str
    peer_slider: str


RATE = "lr, widgets.FloatLogSlider(2e-4, min=-5, max=0"
CASES = [
    Case("NystromLab", "nl.NystromLab()", "rank r", "rank, widgets.IntSlider(8, 1, 96"),
    Case("FineTuneLab, 3 methods", "nl.FineTuneLab()", "learning rate", RATE),
    Case("FineTuneLab, 14 methods", "nl.FineTuneLab(nl.METHODS)", "learning rate", RATE),
]  # fmt: skip

CELLS = """
import ipywidgets as widgets
import nlora_lab as nl
from nlora_lab.labs.figures import PlotlyFigure

---
lab = {source}
lab
---
behind = {source}
figure = PlotlyFigure(behind.drawing())
control, slider = behind.{peer_slider}, description="peer")

def follow(_):
    control.value = slider.value
    figure.draw(behind.drawing())

slider.observe(follow, "value")
widgets.VBox([slider, figure.widget])
"""
THE_LAB, PEER = "the lab", "FigureWidget"

# Records the moves of the mouse, and the time after every frame in which a figure has changed.
WATCH = """
() => {
  const watch = window.watch = {key: 0, frames: [], moves: []};
  let changed = false;
  const after = new MessageChannel();  // its message arrives after the frame has been painted
  after.port1.onmessage = () => {
    if (changed) watch.frames.push(performance.now());
    changed = false;
  };
  const frame = () => { after.port2.postMessage(0); requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
  const inFigure = node => node.nodeType === 1 && node.closest('.nlora-lab .figure, .js-plotly-plot');
  new MutationObserver(records => changed ||= records.some(r => inFigure(r.target)))
    .observe(document.body, {subtree: true, childList: true, attributes: true});
  document.addEventListener('keydown', event => { watch.frames = []; watch.key = event.timeStamp }, true);
  document.addEventListener('pointermove', event => { if (event.buttons) watch.moves.push(event.timeStamp) }, true);
}
"""
DONE = "quiet => watch.frames.length && performance.now() - watch.frames.at(-1) > quiet"


@dataclass
class Row:
    """What was measured of one figure, in milliseconds.

    Attributes:
        lab: the lab, and how many methods are ticked.
        what: what draws the figure.
        times: from each key to the painted figure.
        moves: the number of moves of the mouse that reached the page.
        frames: the number of frames in which the figure changed meanwhile.
        lags: from each move to the next frame in which the figure changed.
        rest: from the last move to the last change.
    """

    lab: str
    what: str
    times: list[float] = field(default_factory=list)
    moves: int = 0
    frames: int = 0
    lags: list[float] = field(default_factory=list)
    rest: float = 0.0

    @property
    def middle(self) -> float:
        return median(self.times)

    @property
    def slow(self) -> float:
        return slowest(self.times)


def slowest(times: list[float]) -> float:
    """The 95th percentile."""
    return quantiles(times, n=20, method="inclusive")[18]


def measure(case: Case, context: BrowserContext, server: JupyterServer, keys: int, moves: int) -> list[Row]:
    """Open a notebook with the lab and its peer, press keys on each slider in turn, then drag each."""
    cells = [cell.strip() for cell in CELLS.format(**asdict(case)).split("---")]
    notebook = Notebook(context, server, "slider-" + "".join(filter(str.isalnum, case.name)), cells)
    notebook.page.set_viewport_size(TALL)
    notebook.run_all()
    notebook.wait_for_lab()
    notebook.wait_for_figure()
    rows = [Row(case.name, what) for what in (THE_LAB, PEER)]
    notebook.page.evaluate(WATCH)
    for i in range(WARM_UP + keys):
        for row in rows:
            # ten keys to the right, then ten to the left, so that no slider reaches its end
            elapsed = press(notebook, slider_of(notebook, case, row), "ArrowLeft" if i // 10 % 2 else "ArrowRight")
            if i >= WARM_UP:
                row.times.append(elapsed)
    for row in rows:
        drag(notebook, slider_of(notebook, case, row), row, moves)
    notebook.screenshot("measured", TALL["width"], TALL["height"])
    notebook.close()
    server.end_kernels()
    return rows


def slider_of(notebook: Notebook, case: Case, row: Row) -> Locator:
    return notebook.slider("peer") if row.what == PEER else notebook.wait_for_lab().get_by_label(case.label, exact=True)


def press(notebook: Notebook, slider: Locator, key: str) -> float:
    """Press a key on a slider. Return the milliseconds until its figure has been painted."""
    slider.focus()
    notebook.page.keyboard.press(key)
    notebook.page.wait_for_function(DONE, arg=QUIET, timeout=30_000)
    return float(notebook.page.evaluate("() => watch.frames.at(-1) - watch.key"))


def drag(notebook: Notebook, slider: Locator, row: Row, moves: int) -> None:
    """Drag a slider to and fro with the mouse, about a step per move, and fill in what was seen of it."""
    page, box = notebook.page, slider.bounding_box()
    assert box is not None
    # a native slider takes a press anywhere; ipywidgets' handle is where it is, on a track of about 200 pixels
    x, y = box["x"] + (box["width"] / 2 if row.what == PEER else box["width"] / 3), box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.wait_for_timeout(2 * QUIET)
    page.evaluate("() => { watch.frames = []; watch.moves = [] }")
    begun = time.monotonic()
    for i in range(moves):
        time.sleep(max(0.0, begun + i / MOVES_PER_SECOND - time.monotonic()))
        page.mouse.move(x + 4 * (14 - abs(i % 30 - 15)), y)  # about a step of the slider per move
    page.wait_for_function(DONE, arg=3 * QUIET, timeout=60_000)
    page.mouse.up()
    seen, frames = page.evaluate("() => [watch.moves, watch.frames]")
    row.moves, row.frames = len(seen), len(frames)
    row.lags = [next((f for f in frames if f > moved), frames[-1]) - moved for moved in seen]
    row.rest = max(0.0, frames[-1] - seen[-1])


# --- the record and the tables ---


def tables(rows: list[Row]) -> str:
    """The table of the keys, and that of the drags."""
    keys = [
        "| lab | drawn by | key → painted, median | 95th percentile | target | reached |",
        "|---|---|---|---|---|---|",
    ]
    drags = [
        "| lab | drawn by | moves | frames with a change | move → painted, 95th percentile | last move → last change |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        target = f"≤ {TARGETS['median']}, ≤ {TARGETS['slow']} ms" if r.what == THE_LAB else "–"
        reached = "yes" if r.middle <= TARGETS["median"] and r.slow <= TARGETS["slow"] else "**no**"
        last = reached if r.what == THE_LAB else "–"
        keys.append(f"| {r.lab} | {r.what} | {r.middle:.0f} ms | {r.slow:.0f} ms | {target} | {last} |")
        drags.append(f"| {r.lab} | {r.what} | {r.moves} | {r.frames} | {slowest(r.lags):.0f} ms | {r.rest:.0f} ms |")
    return "\n".join([*keys, "", *drags])


def record(rows: list[Row], browser: str, load: list[float]) -> dict[str, Any]:
    def rounded(value: Any) -> Any:
        return [round(t, 1) for t in value] if isinstance(value, list) else value

    return {
        "cpus": os.cpu_count(),
        "load": load,
        "browser": browser,
        "versions": {name: version(name) for name in VERSIONS},
        "rows": [{k: rounded(v) for k, v in asdict(row).items()} | {"rest": round(row.rest, 1)} for row in rows],
    }


def stored_tables(stored: dict[str, Any]) -> str:
    """The tables of a record."""
    return tables([Row(**row) for row in stored["rows"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="press a few keys, write nothing")
    parser.add_argument("--only", choices=[case.name for case in CASES], help="measure one lab")
    parser.add_argument("--out", type=Path, help="file of the record")
    parser.add_argument("--show", action="store_true", help="print the record, measure nothing")
    options = parser.parse_args()
    if options.show:
        print(stored_tables(json.loads(RECORD.read_text(encoding="utf-8"))))
        return
    if missing := why_no_browser():
        parser.error(missing)
    rows, load = [], [os.getloadavg()[0]]
    keys, moves = (QUICK_KEYS, QUICK_MOVES) if options.quick else (KEYS, MOVES)
    with open_browser() as browser, TemporaryDirectory() as folder, JupyterServer(Path(folder)) as server:
        context = browser.new_context(viewport=SIZE)
        for case in CASES:
            if options.only in (None, case.name):
                print(f"measuring {case.name} …", file=sys.stderr, flush=True)
                rows += measure(case, context, server, keys, moves)
                load.append(os.getloadavg()[0])
        result = record(rows, f"Chromium {browser.version}", [round(average, 1) for average in load])
    averages = ", ".join(map(str, result["load"]))
    print(f"{result['browser']}, {result['cpus']} CPUs, load {averages}\n\n{stored_tables(result)}")
    out = options.out or (None if options.quick or options.only else RECORD)
    if out is not None:
        out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
