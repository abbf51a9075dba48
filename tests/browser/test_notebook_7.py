"""The labs in Notebook 7, which takes keys before a control sees them."""

from __future__ import annotations

import pytest

from browser.page import Notebook
from browser.server import JupyterServer


@pytest.fixture(scope="module")
def server(context, tmp_path_factory):
    with JupyterServer(tmp_path_factory.mktemp("notebook7"), "notebook") as started:
        yield started


def test_the_arrow_keys_move_the_sliders_of_both_labs(open_notebook):
    notebook: Notebook = open_notebook(
        "import nlora_lab as nl", "lab = nl.FineTuneLab()\nlab", "matrices = nl.NystromLab()\nmatrices"
    )
    notebook.run_all()
    assert notebook.wait_for_lab()
    for name, value in (("learning rate", "lab.lr.value"), ("rank r", "matrices.rank.value")):
        slider = notebook.page.get_by_role("slider", name=name).last
        slider.focus()
        before = notebook.run(f"print({value})")
        slider.focus()
        notebook.page.keyboard.press("ArrowRight")
        notebook.until(lambda before=before, value=value: notebook.run(f"print({value})") != before, 20, name)
    notebook.screenshot("labs", 1366, 768)


def test_run_by_keyboard(open_notebook):
    notebook: Notebook = open_notebook(
        "import nlora_lab as nl", 'lab = nl.FineTuneLab("lora")\nlab.steps.value = 3\nlab'
    )
    notebook.run_all()
    button = notebook.wait_for_lab().get_by_role("button", name="▶ Run")
    button.focus()
    notebook.page.keyboard.press("Enter")
    notebook.until(lambda: notebook.run("print(*[len(run.steps) for run in lab.wait()])", 120) == "3", 120, "a run")
