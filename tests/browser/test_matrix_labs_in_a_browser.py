"""The labs of matrices as a student uses them: Run All, the keyboard, a reloaded page."""

from __future__ import annotations

import pytest


def move(notebook, key):
    """Move the rank by keyboard until the figure shows something else, and return that."""
    before, at = notebook.figures(), notebook.value("rank r")
    notebook.move("rank r", key)
    notebook.until(lambda: notebook.figures() != before, 30, "the figure follows the slider")
    assert notebook.value("rank r") != at
    return notebook.figures()


@pytest.mark.parametrize("lab", ["SvdLab", "SpectrumLab"])
def test_the_rank_moves_the_figure_and_after_a_reload_again(open_notebook, lab):
    notebook = open_notebook("import nlora_lab as nl", f"lab = nl.{lab}()\nlab")
    notebook.run_all()
    notebook.wait_for_figure()
    notebook.screenshot()
    notebook.screenshot(width=900)
    first = notebook.figures()
    assert len(first) == 1
    assert all(t["x"] or t["y"] or t["z"] for t in first[0])
    move(notebook, "ArrowRight")
    assert notebook.run("print(lab.rank.value)") == "9"
    assert move(notebook, "ArrowLeft") == first

    move(notebook, "ArrowRight")
    notebook.save()
    notebook.reload()
    assert notebook.run("print(lab.rank.value)") == "9"  # the kernel kept running
    notebook.run_all()
    notebook.wait_for_figure()
    assert notebook.run("print(lab.rank.value)") == "8"
    move(notebook, "ArrowRight")
    assert notebook.run("print(lab.rank.value)") == "9"

    assert len(notebook.requests) > 20
    assert notebook.outside() == []


def test_the_nystrom_lab_follows_the_keyboard_and_python(open_notebook):
    notebook = open_notebook("import nlora_lab as nl", "lab = nl.NystromLab()\nlab")
    notebook.run_all()
    lab = notebook.wait_for_lab()
    notebook.screenshot()
    notebook.screenshot(width=900)

    def line():
        return lab.get_by_role("status").inner_text()

    def settled():
        expected = notebook.run("print(lab.summary())")
        notebook.until(lambda: line() == expected, 20, f"the page says: {expected}")

    settled()
    lab.get_by_label("rank r", exact=True).focus()
    notebook.page.keyboard.press("ArrowRight")
    notebook.until(lambda: notebook.run("print(lab.rank.value)") == "9", 20, "Python follows the slider")
    settled()
    for change in ("pivots.value = 'cross'", "core.value = 'optimal'", "matrix.value = 'power'", "p.value = 1.5"):
        notebook.run(f"lab.{change}")
        settled()
    assert notebook.errors == []


def test_an_elimination_waits_for_its_button_and_then_plays_all_steps(open_notebook):
    matrix = "W = torch.randint(-5, 6, (6, 6), generator=torch.Generator().manual_seed(0)).double()"
    notebook = open_notebook("import torch, nlora_lab as nl", matrix, "lab = nl.labs.EliminationLab(W, 3)\nlab")
    notebook.run_all()
    notebook.wait_for_figure()
    first = notebook.figures()
    notebook.screenshot()
    assert notebook.run("print(lab.step.value)") == "1"  # it has not moved by itself
    notebook.page.locator(".widget-play button").first.click()
    notebook.until(lambda: notebook.run("print(lab.step.value)") == "3", 30, "the last step")
    notebook.until(lambda: notebook.figures() != first, 30, "the figure follows the slider")
    notebook.screenshot(width=900)
    notebook.page.locator(".widget-play .fa-play").wait_for()  # it has come to its end
    notebook.move("step", "ArrowLeft")
    notebook.until(lambda: notebook.run("print(lab.step.value)") == "2", 30, "the slider goes back")
    assert notebook.errors == []
