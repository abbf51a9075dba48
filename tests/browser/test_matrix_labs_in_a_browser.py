"""NystromLab and SpectrumLab as a student meets them: Run All, then the keyboard."""

from __future__ import annotations

import pytest

LABS = ["NystromLab", "SpectrumLab"]


@pytest.fixture(params=LABS)
def notebook(request, open_notebook):
    return open_notebook("import nlora_lab as nl", f"lab = nl.{request.param}()\nlab")


def moves(notebook, key="ArrowRight"):
    """Moves the rank by keyboard; what the figure drew before and draws after it."""
    before, at = notebook.figures(), notebook.value("rank r")
    notebook.move("rank r", key)
    notebook.until(lambda: notebook.figures() != before, 30, "the figure follows the slider")
    assert notebook.value("rank r") != at
    return before, notebook.figures()


def test_run_all_then_the_rank_moves_the_figure(notebook):
    notebook.run_all()
    notebook.wait_for_figure()
    notebook.screenshot("first")
    notebook.screenshot("first", width=900)
    before, after = moves(notebook)
    assert [len(traces) for traces in before] == [len(traces) for traces in after]
    assert notebook.run("print(lab.rank.value)") == "9"
    moves(notebook, "ArrowLeft")
    assert notebook.figures() == before
    assert len(notebook.requests) > 20
    assert notebook.outside() == []


def test_after_a_reload_it_is_usable_once_run_again(notebook):
    notebook.run_all()
    notebook.wait_for_figure()
    moves(notebook)
    notebook.save()
    notebook.reload()
    assert notebook.run("print(lab.rank.value)") == "9"  # the kernel went on
    notebook.run_all()
    notebook.wait_for_figure()
    assert notebook.run("print(lab.rank.value)") == "8"
    moves(notebook)
    assert notebook.run("print(lab.rank.value)") == "9"
