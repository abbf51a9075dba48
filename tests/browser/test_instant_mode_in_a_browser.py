"""After every change of the controls the page shows what the kernel has: no message is lost."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

LAB = "import nlora_lab as nl\nlab = nl.FineTuneLab()\nlab"
# of every trace: its name, its number of points, its last value
IN_KERNEL = """
import json
print(json.dumps([[t.name, len(t.x or ()), (list(t.y or ()) or [None])[-1]] for t in lab._figure.widget.data]))
"""


@pytest.fixture
def lab(open_notebook):
    notebook = open_notebook(LAB)
    notebook.run_all()
    notebook.wait_for_figure()
    return notebook


def on_page(notebook):
    traces = notebook.figures()[0]
    return [[t["name"], len(t["x"] or []), (t["y"] or [None])[-1]] for t in traces]


def in_kernel(notebook):
    rows: list[list[object]] = json.loads(notebook.run(IN_KERNEL))
    return rows


def same(a, b):
    return len(a) == len(b) and all(
        x[:2] == y[:2] and (x[2] == y[2] or abs(x[2] - y[2]) < 1e-9) for x, y in zip(a, b, strict=True)
    )


def settled(notebook, what):
    """Wait until the page shows what the kernel has, and return that."""
    traces = in_kernel(notebook)
    notebook.until(lambda: same(on_page(notebook), traces), 20, f"the page shows the figure after {what}")
    return traces


CHANGES = (
    "lab.method.value = ('lora', 'slora')",
    "lab.method.value = ('full', 'lora', 'nlora', 'pissa')",  # the first one comes before those that were shown
    "lab.lr.value = 5e-3",
    "lab.lr.value = 1e-5",
    "lab.task.value = 'entailment'",
    "lab.own_rates.value = True",
    "lab.task.value, lab.own_rates.value, lab.lr.value = 'word-problems', False, 2e-4",
)


def test_the_page_follows_every_control(lab):
    shown = [settled(lab, "opening")]
    for change in CHANGES:
        lab.run(change)
        shown.append(settled(lab, change))
    assert all(a != b for a, b in pairwise(shown))
    lab.screenshot("four-methods")
    lab.screenshot("four-methods", width=900)
    before, reading = on_page(lab), lab.value("learning rate")
    lab.move("learning rate", "ArrowRight", times=4)
    lab.until(lambda: on_page(lab) != before, 20, "the figure follows the keys")
    assert lab.value("learning rate") != reading
    settled(lab, "four keys")
