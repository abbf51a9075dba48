"""An elimination step by step, and the errors of all blocks of a matrix."""

from __future__ import annotations

import math

import pytest
import torch

import nlora_lab as nl
from nlora_lab.plots import block_errors, elimination, elimination_step, elimination_steps
from nlora_lab.plots.figure import Points


def small(seed=0, m=6, n=6):
    return torch.randint(-5, 6, (m, n), generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("pivots", ["leading", "cross"])
def test_each_panel_holds_what_the_library_leaves(pivots):
    W = small()
    panels = elimination(W, 3, pivots=pivots).figure().panels
    rows, cols = nl.lowrank.choose_pivots(W, 3, pivots)
    assert [p.marks[0].framed for p in panels] == [*zip(rows.tolist(), cols.tolist(), strict=True), None]
    for k, panel in enumerate(panels[1:], start=1):
        left = nl.nystrom(W, k, pivots=(rows[:k], cols[:k])).residual(W)
        shown = torch.tensor(panel.marks[0].levels)
        assert shown[rows[:k]].isnan().all()
        assert shown[:, cols[:k]].isnan().all()
        assert torch.allclose(shown.nan_to_num(0).double(), left, atol=1e-5)
        assert f"{left.norm() / W.norm():.2f} of ‖W‖" in panel.heading
        assert {(label.y, label.x) for label in panel.labels} == set(map(tuple, shown.isnan().nonzero().tolist()))
        assert {label.text for label in panel.labels} == {"0"}


def test_the_picture_is_drawn_by_both_renderers():
    picture = elimination(small(1, 4, 5), 2, pivots="cross")
    assert picture.png().startswith(b"\x89PNG")
    assert len(picture.plotly()[0]) == 3
    assert repr(picture) == "an elimination of a 4 × 5 matrix in 2 steps, and what each step leaves"


@pytest.mark.parametrize("pivots", ["leading", "cross"])
def test_a_step_shows_a_difference_of_what_the_library_leaves(pivots):
    W = small(3, 5, 6)
    rows, cols = nl.lowrank.choose_pivots(W, 4, pivots)
    made = elimination_steps(W, 4, pivots)
    assert [step.pivot for step in made] == list(zip(rows.tolist(), cols.tolist(), strict=True))
    left = [W, *(nl.nystrom(W, k, pivots=(rows[:k], cols[:k])).residual(W) for k in (1, 2, 3, 4))]
    for k, step in enumerate(made, start=1):
        before, subtracted, after = (panel.marks[0] for panel in elimination_step(made, k).figure().panels)
        assert before.framed == subtracted.framed == step.pivot
        assert torch.allclose(torch.tensor(before.levels).nan_to_num(0).double(), left[k - 1], atol=1e-5)
        assert torch.allclose(torch.tensor(after.levels).nan_to_num(0).double(), left[k], atol=1e-5)
        assert torch.allclose(step.subtracted, left[k - 1] - left[k], atol=1e-5)
        shown = torch.tensor(subtracted.levels).nan_to_num(0).double()
        assert torch.allclose(shown, step.subtracted, atol=1e-5)  # nothing is hidden in what is drawn white


@pytest.mark.parametrize("step", [0, 3, 1.5])
def test_a_step_that_was_not_made_is_refused(step):
    with pytest.raises(nl.InputError, match="step"):
        elimination_step(elimination_steps(small(), 2), step)


@pytest.mark.parametrize(
    ("W", "steps", "message"),
    [(small(0, 13, 4), 1, "at most 12 × 12"), (small(), 5, "steps"), (torch.zeros(3, 3), 1, "zero"),
     (torch.eye(3).flip(0), 1, "the pivot of step 1 is zero")],
)  # fmt: skip
def test_what_cannot_be_eliminated_is_refused(W, steps, message):
    with pytest.raises(nl.InputError, match=message):
        elimination(W, steps)


def test_blocks_are_points_and_three_of_them_have_names():
    W = nl.lowrank.with_spectrum(1 / torch.arange(1.0, 9, dtype=torch.float64))
    picture = block_errors(W, 2)
    every, *named = [mark for mark in picture.figure().panels[0].marks if isinstance(mark, Points)]
    assert len(every.x) == 784
    assert [mark.name for mark in named] == ["maximal volume", "leading block", "complete pivoting"]
    left = W - nl.nystrom(W, 2).product()
    sigma = torch.linalg.svdvals(W)[2]
    assert math.isclose(named[1].y[0], (left.abs().max() / sigma).item(), rel_tol=1e-6)
    assert named[0].x[0] == 1
    assert named[0].y[0] < 3
    assert picture.png().startswith(b"\x89PNG")


def test_a_matrix_of_that_rank_has_no_errors_to_draw():
    with pytest.raises(nl.InputError, match="every block is exact"):
        block_errors(torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 5)), 1)


def test_a_singular_leading_block_is_not_drawn():
    W = small(2)
    W[:2, :2] = 0
    names = [mark.name for mark in block_errors(W, 2).figure().panels[0].marks]
    assert "leading block" not in names
    assert "complete pivoting" in names
