"""Every entry of the table: the stub is not accepted, the solution is, each known mistake gets its own hint."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import nlora_lab as nl
from nlora_lab.course.checking import EXERCISES, TOLERANCE, WrongAnswer, agree, check, exercise, plain, solution
from nlora_lab.course.solutions import TABLE, best, layers_where_nystrom_helps, schur
from nlora_lab.course.solutions_adapters import TABLE as ADAPTERS
from nlora_lab.course.solutions_lab import TABLE as LAB
from nlora_lab.course.solutions_paper import TABLE as PAPER
from nlora_lab.course.solutions_rates import TABLE as RATES
from nlora_lab.course.solutions_real import TABLE as REAL

ALL = list(EXERCISES.values())
FUNCTIONS = [asked for asked in ALL if asked.inputs]
NUMBERS = [asked for asked in ALL if not asked.inputs]
MISTAKES = [pytest.param(a, m, id=f"{a.number}-{i}") for a in ALL for i, m in enumerate(a.mistakes)]


def by_number(asked):
    return asked.number


def fail(*_):
    raise ZeroDivisionError("oh dear")


def test_the_table_is_whole():
    assert [n for n in EXERCISES if n < "4"] == ["1.1", "1.2", "1.3", "2.1", "2.2", "2.3", "2.4", "3.1", "3.2"]
    later = [n for n in EXERCISES if n > "4"]
    assert later == ["4.1", "4.2", "4.3", "5.1", "5.2", "6.1", "6.2", "7.1", "7.2", "8.1", "8.2"]
    assert sum(map(len, (TABLE, ADAPTERS, LAB, RATES, PAPER, REAL))) == len(EXERCISES)
    assert len({asked.title for asked in ALL}) == len(ALL)
    assert len(NUMBERS) == 6
    for asked in ALL:
        assert len(asked.mistakes) >= 3
        hints = [m.hint for m in asked.mistakes]
        assert len(set(hints)) == len(hints)
        assert re.search(r"about \d lines?", asked.question), asked.number


@pytest.mark.parametrize("asked", ALL, ids=by_number)
def test_the_stub_is_nudged(asked, capsys):
    stubs = [...] + [lambda *_: ..., lambda *_: ... @ torch.ones(2, 2), lambda *_: ....T] * bool(asked.inputs)
    for stub in stubs:
        assert check(asked.number, stub) is False
        out = capsys.readouterr().out
        assert asked.number in out
        assert "waits for your answer" in out


@pytest.mark.parametrize("asked", ALL, ids=by_number)
def test_the_solution_is_right(asked, capsys):
    assert check(asked.number, asked.solution) is True
    assert capsys.readouterr().out == f"Exercise {asked.number}: well done. {asked.means}\n"


@pytest.mark.parametrize(("asked", "mistake"), MISTAKES)
def test_each_known_mistake_gets_its_own_hint(asked, mistake):
    with pytest.raises(WrongAnswer) as caught:
        check(asked.number, mistake.answer)
    assert str(caught.value) == f"Exercise {asked.number}: {mistake.hint}"


@pytest.mark.parametrize("asked", FUNCTIONS, ids=by_number)
@pytest.mark.parametrize(
    "result",
    [None, "x", float("nan"), 1e99, [], {}, object(), (1, 2, 3), torch.zeros(3, 2, 4), torch.full((9, 7), torch.nan),
     torch.ones(9, 7, dtype=torch.complex64), torch.empty(9, 7, device="meta"), torch.ones(9, 7).to_sparse(),
     np.array(["a", "b"]), np.zeros((2, 2)), range(3), True, 1j],
    ids=lambda value: str(value).split(" at ")[0],
)  # fmt: skip
def test_a_function_that_returns_junk_is_told_so(asked, result):
    with pytest.raises(WrongAnswer, match=rf"Exercise {asked.number}: .*(returned|always empty)"):
        check(asked.number, lambda *_: result)


@pytest.mark.parametrize("asked", ALL, ids=by_number)
@pytest.mark.parametrize("answer", [None, "x", "93", float("nan"), float("inf"), 10**400, [], torch.zeros(2, 2), True])
def test_junk_for_an_answer_is_told_so(asked, answer):
    with pytest.raises(WrongAnswer, match=f"Exercise {asked.number}: it asks for"):
        check(asked.number, answer)


@pytest.mark.parametrize("asked", FUNCTIONS, ids=by_number)
def test_a_function_that_raises_is_told_what_and_on_which_input(asked):
    with pytest.raises(
        WrongAnswer, match=r"called with \w+ .*, your function raised ZeroDivisionError: oh dear$"
    ) as caught:
        check(asked.number, fail)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(WrongAnswer, match=r"raised TypeError: .*takes 0 positional arguments"):
        check(asked.number, lambda: 1)


@pytest.mark.parametrize("asked", FUNCTIONS, ids=by_number)
def test_a_function_may_write_on_its_arguments(asked):
    def spoiling(*arguments):
        value = asked.solution(*arguments)
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                argument.zero_()
            elif hasattr(argument, "loc"):
                argument.loc[:, "nystrom_r8"] = 2.0
        return value

    assert check(asked.number, spoiling)


def test_a_mistake_that_shows_only_on_wide_matrices_is_found():
    with pytest.raises(WrongAnswer, match=r"W of shape \(6, 10\), r = 2"):
        check("1.1", lambda W, r: best(W, r) if W.shape[0] > W.shape[1] else torch.zeros_like(W))


def test_calling_the_function_oneself_is_a_known_slip():
    with pytest.raises(WrongAnswer, match=r"without calling it: check\(\"2.3\", schur\)"):
        check("2.3", schur(torch.eye(4) + 1, 2))


def test_numbers_of_every_kind_are_read():
    for two in (2, 2.0, np.float32(2), np.int64(2), np.array([2.0]), torch.tensor(2), torch.tensor([2.0]), 2.00001):
        assert check("2.2", two), two
    with pytest.raises(WrongAnswer, match=r"the residual x − 4·\(1/2\)·1 is 1, and it has to be 0"):
        check("2.2", 3)
    with pytest.raises(WrongAnswer, match=r"rank 70 takes .* = 33,600 numbers, and W itself .* = 45,056"):
        check("1.2", 70)


def test_the_break_even_rank_by_counting():
    m, n = 352, 128
    assert max(r for r in range(1, n + 1) if r * m + r * n < m * n) == EXERCISES["1.2"].solution


def test_matrices_of_numpy_and_with_gradients_are_read():
    assert check("1.1", lambda W, r: best(W, r).numpy())
    assert check("1.1", lambda W, r: best(W.requires_grad_(), r))
    assert check("1.1", lambda W, r: best(W.float(), r))
    assert check("2.1", lambda W, r: nl.nystrom(W, r).product())
    assert check("1.3", lambda W: nl.stable_rank(W))
    assert check("3.1", lambda m, n, std: nl.marchenko_pastur(m, n, std)[1])
    assert check("2.4", lambda W, rows, cols: nl.nystrom(W, len(rows), pivots=(rows, cols), core="optimal").core)


def test_pairs_come_as_any_collection_in_any_order():
    def table_of(table):
        return table[table.nystrom_r8 < 1][["layer", "module"]]

    for form in (
        lambda t: layers_where_nystrom_helps(t)[::-1],
        lambda t: set(layers_where_nystrom_helps(t)),
        lambda t: [list(pair) for pair in layers_where_nystrom_helps(t)],
        table_of,
        lambda t: table_of(t).to_numpy(),
        lambda t: [tuple(row) for row in table_of(t).values],
    ):
        assert check("3.2", form)
    with pytest.raises(
        WrongAnswer, match=r"returned a list of 1; one of 3 was asked for; missing: \(1, 'mlp.up_proj'\)"
    ):
        check("3.2", lambda t: layers_where_nystrom_helps(t)[:1])
    with pytest.raises(WrongAnswer, match=r"not asked for: \(9, 'x'\)"):
        check("3.2", lambda t: [*layers_where_nystrom_helps(t), (9, "x")])


def test_numbers_that_are_only_near_are_not_right():
    assert agree(1.0 + TOLERANCE / 2, 1.0)
    assert not agree(1.0 + TOLERANCE * 2, 1.0)
    assert not agree(1e-6, 0.0)
    with pytest.raises(WrongAnswer, match=r"norm .* off by 0.01 of that"):
        check("1.1", lambda W, r: 1.01 * best(W, r))


def test_the_numbers_do_not_depend_on_the_global_seed():
    torch.manual_seed(5)
    first = [asked.inputs()[0] for asked in FUNCTIONS]
    state = torch.get_rng_state()
    again = [asked.inputs()[0] for asked in FUNCTIONS]
    assert torch.equal(state, torch.get_rng_state())
    for one, two in zip(first, again, strict=True):
        assert [str(a) for a in one] == [str(a) for a in two]


def test_the_leading_blocks_are_far_from_singular():
    for W, r in EXERCISES["2.1"].inputs():
        assert torch.linalg.cond(W[:r, :r]) < 100


def test_what_is_no_answer_is_none():
    class Liar:
        ndim, shape = 0, ()

        def item(self):
            raise RuntimeError

    for nothing in (None, "2", True, Liar(), {}, object(), torch.tensor(True)):
        assert plain(nothing) is None


@pytest.mark.parametrize("asked", ALL, ids=by_number)
def test_question_and_solution_are_shown_as_they_are(asked):
    text = exercise(asked.number)
    assert repr(text) == text
    assert text.startswith(f"Exercise {asked.number}: {asked.title}\n\n{asked.question}")
    assert "relative error of 0.0001" in text
    shown = solution(asked.number)
    assert repr(shown) == shown
    if asked.inputs:
        assert shown.startswith(f"def {asked.solution.__name__}(")
        assert f"{asked.solution.__name__}(" in asked.question
    else:
        assert shown == f"{asked.solution}\n{asked.reason}"


@pytest.mark.parametrize("call", [exercise, solution, lambda number: check(number, 1)])
def test_an_unknown_number_lists_the_known(call):
    with pytest.raises(nl.InputError, match=r"'9.9' is not known; choose one of: 1.1, 1.2, .*3.2") as caught:
        call("9.9")
    assert not isinstance(caught.value, WrongAnswer)


def test_the_doors_are_public():
    assert (nl.check, nl.exercise, nl.solution, nl.WrongAnswer) == (check, exercise, solution, WrongAnswer)
    assert issubclass(nl.WrongAnswer, nl.InputError)
    assert nl.check(2.2, 2)
