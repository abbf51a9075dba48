"""The exercises of notebooks 01 to 03 against the library, and answers that are right in another way."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import pytest
import torch

import nlora_lab as nl
from nlora_lab.course.checking import check
from nlora_lab.course.exercises import LEVELS
from nlora_lab.course.registry import ALL_EXERCISES
from nlora_lab.course.solutions.notebook_01 import rank_for, sketched_svd
from nlora_lab.course.solutions.notebook_02 import largest_volume
from nlora_lab.course.solutions.notebook_03 import rank_correlation, share_by_chance


@pytest.mark.parametrize("notebook", "123")
def test_each_notebook_has_exercises_of_every_level(notebook):
    levels = {entry.level for number, entry in ALL_EXERCISES.items() if number.startswith(f"{notebook}.")}
    assert levels == set(LEVELS)


def test_the_rank_for_an_error_is_where_the_curve_crosses_it():
    for s, error in ALL_EXERCISES["1.4"].inputs():
        curve = nl.error_curve(nl.lowrank.with_spectrum(s), len(s) - 1, "svd").tolist()
        r = rank_for(s, error)
        assert curve[r - 1] <= error < curve[r - 2]


def test_a_loop_over_the_ranks_is_right_too():
    def by_loop(s, error):
        for r in range(len(s) + 1):
            if s[r:].norm() / s.norm() <= error:
                return r
        return len(s)

    assert check("1.4", by_loop)
    assert check("1.4", lambda s, error: float(by_loop(s, error)))
    assert check("1.4", lambda s, error: torch.tensor(by_loop(s, error)))


def test_the_sketch_is_the_library_with_the_same_random_columns(monkeypatch):
    for W, r, X, steps in ALL_EXERCISES["1.5"].inputs():
        monkeypatch.setattr("nlora_lab.lowrank.svd.standard_normal", lambda *_, X=X, **__: X)
        library = nl.lowrank.randomized_svd(W, r, X.shape[1] - r, steps)
        assert torch.allclose(sketched_svd(W, r, X, steps), library.product(), atol=1e-10)


def test_power_steps_need_no_qr_in_between():
    def with_one_qr(W, r, X, steps):
        Y = W @ X
        for _ in range(steps):
            Y = W @ (W.T @ Y)
        Q, _ = torch.linalg.qr(Y)
        return Q @ nl.truncated_svd(Q.T @ W, r).product()

    assert check("1.5", with_one_qr)


def test_the_largest_block_is_the_first_of_all_blocks():
    for W, r in ALL_EXERCISES["2.7"].inputs():
        blocks = nl.lowrank.all_blocks(W, r)
        assert largest_volume(W, r).tolist() == [blocks.rows[0].tolist(), blocks.cols[0].tolist()]


def test_a_block_by_loops_is_right_too():
    def by_loops(W, r):
        most, found = -1.0, None
        for rows in itertools.combinations(range(len(W)), r):
            for cols in itertools.combinations(range(W.shape[1]), r):
                volume = abs(torch.linalg.det(W[list(rows)][:, list(cols)]).item())
                if volume > most:
                    most, found = volume, [rows, cols]
        return torch.tensor(found).float()

    assert check("2.7", by_loops)


def test_the_entries_that_are_read_by_counting():
    read = torch.zeros(4096, 4096, dtype=torch.bool)
    read[:128], read[:, :128] = True, True
    assert int(read.sum()) == ALL_EXERCISES["2.8"].solution


def test_the_ratio_of_the_edges_is_that_of_the_law():
    low, high = nl.spectra.marchenko_pastur(352, 128, 0.02)
    assert math.isclose(high / low, ALL_EXERCISES["3.3"].solution, rel_tol=1e-6)
    assert check("3.3", 4.04)
    assert not check("3.3", 4.1)


def test_the_rank_correlation_in_three_other_ways():
    def of_ranks(table, a, b):
        x, y = (torch.tensor(table[c].to_numpy()).argsort().argsort().double() for c in (a, b))
        return torch.corrcoef(torch.stack([x, y]))[0, 1]

    assert check("3.4", of_ranks)
    assert check("3.4", lambda t, a, b: t[[a, b]].rank().corr().iloc[0, 1])
    assert check("3.4", lambda t, a, b: t[a].rank().corr(t[b].rank()))


def test_the_share_by_chance_with_pandas_is_the_same():
    def with_pandas(x, y, orders):
        table = pd.DataFrame({"x": x.numpy(), "y": y.numpy()})
        found = abs(rank_correlation(table, "x", "y"))
        shuffled = [abs(rank_correlation(table.assign(y=y[order].numpy()), "x", "y")) for order in orders]
        return sum(value >= found for value in shuffled) / len(orders)

    assert check("3.5", with_pandas)


def test_a_strong_relation_is_hardly_ever_chance_and_none_often_is():
    x = torch.arange(12.0)
    orders = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(i)) for i in range(200)])
    assert share_by_chance(x, x**3, orders) == 0
    assert share_by_chance(x, (x - 5.4).abs(), orders) > 0.3


@pytest.mark.parametrize("number", ["1.4", "3.5"])
def test_long_vectors_are_described_by_their_shape(number, capsys):
    check(number, lambda *_: -1)
    assert max(map(len, capsys.readouterr().out.splitlines())) < 200
