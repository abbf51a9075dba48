"""FineTuneLab as a student meets it: Run, Stop and the sliders by keyboard, a page that goes away, a kernel too."""

from __future__ import annotations

from itertools import pairwise

import pytest

FEW, MANY = 60, 900  # steps: soon over; not over before it is stopped


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
    """The number of points of every trace on the page, by figure and trace."""
    figures = notebook.figures()
    return {(i, j): len(t["x"] or []) for i, traces in enumerate(figures) for j, t in enumerate(traces)}


def run_until_it_grows(notebook, key="Enter", times=2):
    """Presses Run and sees a curve grow more than once."""
    seen = [lengths(notebook)]

    def grown():
        seen.append(lengths(notebook))
        more = [sum(b.get(at, 0) > a[at] for a, b in pairwise(seen) if at in a) for at in seen[-1]]
        return max(more, default=0) >= times

    notebook.press("Run", key)
    notebook.until(grown, 60, "a curve grows")
    assert notebook.run("print(lab.running)") == "True"


def until_done(notebook, seconds=90):
    notebook.until(lambda: notebook.run("print(lab.running)") == "False", seconds, "the run ends")


def told(notebook):
    """For every run: how many steps were kept, and whether it was stopped."""
    return notebook.run("print(*[(len(r.steps), r.stopped) for r in lab.runs])")


def test_run_by_keyboard_draws_while_other_cells_run(open_lab):
    notebook = open_lab(FEW)
    notebook.screenshot("before")
    notebook.screenshot("before", width=900)
    run_until_it_grows(notebook)
    notebook.screenshot("during")
    assert notebook.run("print(6 * 7, lab.running)") == "42 True"
    until_done(notebook)
    assert told(notebook) == f"({FEW}, False)"
    notebook.screenshot("after")
    notebook.screenshot("after", width=900)


def test_stop_by_keyboard_keeps_what_was_trained(open_lab):
    notebook = open_lab(MANY)
    run_until_it_grows(notebook, key="Space")
    notebook.press("Stop", key="Space")
    until_done(notebook, 20)
    assert notebook.run("print([r.stopped for r in lab.runs])") == "[True]"
    assert notebook.run("print(0 < len(lab.runs[-1].steps) < lab.steps.value)") == "True"
    run_until_it_grows(notebook)  # and it can be started again
    notebook.press("Stop")
    until_done(notebook, 20)
    assert notebook.run("print([r.stopped for r in lab.runs])") == "[True, True]"


def test_a_slider_moved_by_keyboard_changes_what_the_figure_shows(open_lab):
    notebook = open_lab(FEW)
    before = notebook.shown()
    notebook.move("learning rate", "ArrowRight")
    notebook.until(lambda: notebook.shown() != before, 30, "the figure follows the learning rate")
    assert notebook.run("print(f'{lab.lr.value:.1e}')") == "2.5e-04"


@pytest.mark.parametrize("how", ["reload", "close"])
def test_a_run_outlives_its_page(open_lab, how):
    notebook = open_lab(FEW)
    run_until_it_grows(notebook)
    if how == "reload":
        notebook.reload()
    else:
        notebook.close()
        notebook.open()
    until_done(notebook)
    assert told(notebook) == f"({FEW}, False)"
    notebook.run("lab", keep=True)
    notebook.wait_for_figure()
    run_until_it_grows(notebook)
    notebook.press("Stop")
    until_done(notebook, 20)
    assert told(notebook).startswith(f"({FEW}, False) (")


def test_after_a_kernel_restart_in_mid_run_everything_works_again(open_lab):
    notebook = open_lab(MANY)
    run_until_it_grows(notebook)
    notebook.restart_kernel()
    assert notebook.run("print('lab' in globals())") == "False"
    notebook.run_all()
    notebook.wait_for_figure()
    run_until_it_grows(notebook)
    notebook.press("Stop")
    until_done(notebook, 20)
    assert notebook.run("print(len(lab.runs), lab.runs[-1].stopped)") == "1 True"
