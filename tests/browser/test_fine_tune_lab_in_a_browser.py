"""FineTuneLab as a student uses it: Run, Stop and the sliders by keyboard, a reloaded page, a restarted kernel."""

from __future__ import annotations

from itertools import pairwise

import pytest

FEW, MANY = 150, 900  # steps: a run that ends soon, and one that does not end before it is stopped


@pytest.fixture
def open_lab(open_notebook):
    def opens(steps):
        notebook = open_notebook(
            "import nlora_lab as nl", f'lab = nl.FineTuneLab("lora")\nlab.steps.value = {steps}\nlab'
        )
        notebook.run_all()
        notebook.wait_for_figure()
        return notebook

    return opens


def lengths(notebook):
    """The number of points of every trace on the page."""
    return {t["uid"]: len(t["x"] or []) for traces in notebook.figures() for t in traces}


def run_until_it_grows(notebook, key="Enter", times=3):
    """Press Run, and wait until a curve has grown several times."""
    samples = [lengths(notebook)]

    def grown():
        samples.append(lengths(notebook))
        more = [sum(b.get(uid, 0) > a[uid] for a, b in pairwise(samples) if uid in a) for uid in samples[-1]]
        return max(more, default=0) >= times

    notebook.press("Run", key)
    notebook.until(grown, 60, "a curve grows")


def until_stopped(notebook):
    notebook.until(lambda: notebook.run("print(lab.running)") == "False", 20, "the run ends")


def kept_steps(notebook):
    """The number of steps of every run, and whether it was stopped. Waits for the last run."""
    return notebook.run("print(*[(len(r.steps), r.stopped) for r in lab.wait()])", 120)


def test_run_by_keyboard_draws_while_other_cells_run(open_lab):
    notebook = open_lab(FEW)
    notebook.screenshot("before")
    notebook.screenshot("before", width=900)
    run_until_it_grows(notebook)
    notebook.screenshot("during")
    assert notebook.run("print(6 * 7, lab.running)") == "42 True"
    assert kept_steps(notebook) == f"({FEW}, False)"
    notebook.screenshot("after")
    notebook.screenshot("after", width=900)


def test_stop_by_keyboard_keeps_what_was_trained(open_lab):
    notebook = open_lab(MANY)
    run_until_it_grows(notebook, key="Space")
    notebook.press("Stop", key="Space")
    until_stopped(notebook)
    assert notebook.run("print([r.stopped for r in lab.runs])") == "[True]"
    assert notebook.run("print(0 < len(lab.runs[-1].steps) < lab.steps.value)") == "True"
    run_until_it_grows(notebook)  # and it can be started again
    notebook.press("Stop")
    until_stopped(notebook)
    assert notebook.run("print([r.stopped for r in lab.runs])") == "[True, True]"


def test_a_slider_moved_by_keyboard_changes_what_the_figure_shows(open_lab):
    notebook = open_lab(FEW)
    before = notebook.shown()
    notebook.move("learning rate")
    notebook.until(lambda: notebook.shown() != before, 30, "the figure follows the learning rate")
    assert notebook.run("print(f'{lab.lr.value:.1e}')") == "2.5e-04"


def test_runs_outlive_their_page(open_lab):
    notebook = open_lab(FEW)
    run_until_it_grows(notebook)
    notebook.reload()
    assert kept_steps(notebook) == f"({FEW}, False)"

    notebook.run("lab", keep=True)
    notebook.wait_for_figure()
    run_until_it_grows(notebook)
    notebook.close()
    notebook.open()
    assert kept_steps(notebook) == f"({FEW}, False) ({FEW}, False)"

    notebook.run("lab", keep=True)
    notebook.wait_for_figure()
    run_until_it_grows(notebook)
    notebook.press("Stop")
    until_stopped(notebook)
    assert notebook.run("print([r.stopped for r in lab.runs])") == "[False, False, True]"


def test_after_a_kernel_restart_in_mid_run_everything_works_again(open_lab):
    notebook = open_lab(MANY)
    run_until_it_grows(notebook)
    notebook.restart_kernel()
    assert notebook.run("print('lab' in globals())") == "False"
    notebook.run_all()
    notebook.wait_for_figure()
    run_until_it_grows(notebook)
    notebook.press("Stop")
    until_stopped(notebook)
    assert notebook.run("print([r.stopped for r in lab.runs])") == "[True]"
