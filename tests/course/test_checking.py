"""Every entry of the table: the stub is not accepted, the solution is, each known mistake gets its own hint."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from factories import ROOT

import nlora_lab as nl
from nlora_lab.course.checking import WrongAnswer, check, exercise, solution
from nlora_lab.course.comparison import TOLERANCE, agree, comparable
from nlora_lab.course.registry import ALL_EXERCISES, NOTEBOOKS
from nlora_lab.course.solutions_01_low_rank import best
from nlora_lab.course.solutions_02_nystrom import schur
from nlora_lab.course.solutions_03_spectra_of_a_transformer import layers_where_nystrom_helps

ALL = list(ALL_EXERCISES.values())
FUNCTIONS = [entry for entry in ALL if entry.inputs]
NUMBERS = [entry for entry in ALL if not entry.inputs]
MISTAKES = [pytest.param(a, m, id=f"{a.number}-{i}") for a in ALL for i, m in enumerate(a.mistakes)]


def by_number(entry):
    return entry.number


def fail(*_):
    raise ZeroDivisionError("oh dear")


def test_the_exercises_are_complete_and_stand_in_the_file_of_their_notebook():
    assert list(ALL_EXERCISES) == (
        "1.1 1.2 1.3 2.1 2.2 2.3 2.4 3.1 3.2 4.1 4.2 4.3 5.1 5.2 6.1 6.2 7.1 7.2 8.1 8.2".split()
    )
    for notebook in NOTEBOOKS:
        name = notebook.__name__.partition("solutions_")[2]
        assert (ROOT / "notebooks" / f"{name}.ipynb").is_file()
        assert {int(entry.number.split(".")[0]) for entry in notebook.EXERCISES} == {int(name[:2])}
    assert len({entry.title for entry in ALL}) == len(ALL)
    assert len(NUMBERS) == 6
    for entry in ALL:
        assert len(entry.mistakes) >= 3
        hints = [m.hint for m in entry.mistakes]
        assert len(set(hints)) == len(hints)
        assert re.search(r"about \d lines?", entry.question), entry.number


@pytest.mark.parametrize("entry", ALL, ids=by_number)
def test_the_stub_is_nudged(entry, capsys):
    stubs = [...] + [lambda *_: ..., lambda *_: ... @ torch.ones(2, 2), lambda *_: ....T] * bool(entry.inputs)
    for stub in stubs:
        assert check(entry.number, stub) is False
        out = capsys.readouterr().out
        assert entry.number in out
        assert "waits for your answer" in out


@pytest.mark.parametrize("entry", ALL, ids=by_number)
def test_the_solution_is_right(entry, capsys):
    assert check(entry.number, entry.solution) is True
    assert capsys.readouterr().out == f"Exercise {entry.number}: well done. {entry.means}\n"


@pytest.mark.parametrize(("entry", "mistake"), MISTAKES)
def test_each_known_mistake_gets_its_own_hint(entry, mistake):
    with pytest.raises(WrongAnswer) as caught:
        check(entry.number, mistake.answer)
    assert str(caught.value) == f"Exercise {entry.number}: {mistake.hint}"


@pytest.mark.parametrize("entry", FUNCTIONS, ids=by_number)
@pytest.mark.parametrize(
    "result",
    [None, "x", float("nan"), 1e99, [], {}, object(), (1, 2, 3), torch.zeros(3, 2, 4), torch.full((9, 7), torch.nan),
     torch.ones(9, 7, dtype=torch.complex64), torch.empty(9, 7, device="meta"), torch.ones(9, 7).to_sparse(),
     np.array(["a", "b"]), np.zeros((2, 2)), range(3), True, 1j],
    ids=lambda value: str(value).split(" at ")[0],
)  # fmt: skip
def test_a_function_that_returns_junk_is_told_so(entry, result):
    with pytest.raises(WrongAnswer, match=rf"Exercise {entry.number}: .*(returned|always empty)"):
        check(entry.number, lambda *_: result)


@pytest.mark.parametrize("entry", ALL, ids=by_number)
@pytest.mark.parametrize("answer", [None, "x", "93", float("nan"), float("inf"), 10**400, [], torch.zeros(2, 2), True])
def test_junk_for_an_answer_is_told_so(entry, answer):
    with pytest.raises(WrongAnswer, match=f"Exercise {entry.number}: it asks for"):
        check(entry.number, answer)


@pytest.mark.parametrize("entry", FUNCTIONS, ids=by_number)
def test_a_function_that_raises_is_told_what_and_on_which_input(entry):
    with pytest.raises(
        WrongAnswer, match=r"called with \w+ .*, your function raised ZeroDivisionError: oh dear$"
    ) as caught:
        check(entry.number, fail)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(WrongAnswer, match=r"raised TypeError: .*takes 0 positional arguments"):
        check(entry.number, lambda: 1)


@pytest.mark.parametrize("entry", FUNCTIONS, ids=by_number)
def test_a_function_may_write_on_its_arguments(entry):
    def spoiling(*arguments):
        value = entry.solution(*arguments)
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                argument.zero_()
            elif hasattr(argument, "loc"):
                argument.loc[:, "nystrom_r8"] = 2.0
        return value

    assert check(entry.number, spoiling)


def test_a_mistake_that_shows_only_on_wide_matrices_is_found():
    with pytest.raises(WrongAnswer, match=r"W of shape \(6, 10\), r = 2"):
        check("1.1", lambda W, r: best(W, r) if W.shape[0] > W.shape[1] else torch.zeros_like(W))


def test_calling_the_function_oneself_is_a_known_mistake():
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
    assert max(r for r in range(1, n + 1) if r * m + r * n < m * n) == ALL_EXERCISES["1.2"].solution


def test_matrices_of_numpy_and_with_gradients_are_read():
    assert check("1.1", lambda W, r: best(W, r).numpy())
    assert check("1.1", lambda W, r: best(W.requires_grad_(), r))
    assert check("1.1", lambda W, r: best(W.float(), r))
    assert check("2.1", lambda W, r: nl.nystrom(W, r).product())
    assert check("1.3", lambda W: nl.spectra.stable_rank(W))
    assert check("3.1", lambda m, n, std: nl.spectra.marchenko_pastur(m, n, std)[1])
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
    with pytest.raises(WrongAnswer, match=r"returned a list of length 1 instead of 3; missing: \(1, 'mlp.up_proj'\)"):
        check("3.2", lambda t: layers_where_nystrom_helps(t)[:1])
    with pytest.raises(WrongAnswer, match=r"too many: \(9, 'x'\)"):
        check("3.2", lambda t: [*layers_where_nystrom_helps(t), (9, "x")])


def test_numbers_that_are_only_near_are_not_right():
    assert agree(1.0 + TOLERANCE / 2, 1.0)
    assert not agree(1.0 + TOLERANCE * 2, 1.0)
    assert not agree(1e-6, 0.0)
    with pytest.raises(WrongAnswer, match=r"norm .*, and the relative error of yours is 0.01"):
        check("1.1", lambda W, r: 1.01 * best(W, r))


def test_the_numbers_do_not_depend_on_the_global_seed():
    torch.manual_seed(5)
    first = [entry.inputs()[0] for entry in FUNCTIONS]
    state = torch.get_rng_state()
    again = [entry.inputs()[0] for entry in FUNCTIONS]
    assert torch.equal(state, torch.get_rng_state())
    for one, two in zip(first, again, strict=True):
        assert [str(a) for a in one] == [str(a) for a in two]


def test_the_leading_blocks_are_far_from_singular():
    for W, r in ALL_EXERCISES["2.1"].inputs():
        assert torch.linalg.cond(W[:r, :r]) < 100


def test_what_is_no_answer_is_none():
    class Liar:
        ndim, shape = 0, ()

        def item(self):
            raise RuntimeError

    for nothing in (None, "2", True, Liar(), {}, object(), torch.tensor(True)):
        assert comparable(nothing) is None


@pytest.mark.parametrize("entry", ALL, ids=by_number)
def test_question_and_solution_are_shown_as_they_are(entry):
    text = exercise(entry.number)
    assert repr(text) == text
    assert text.startswith(f"Exercise {entry.number}: {entry.title}\n\n{entry.question}")
    assert "relative error of 0.0001" in text
    shown = solution(entry.number)
    assert repr(shown) == shown
    if entry.inputs:
        assert shown.startswith(f"def {entry.solution.__name__}(")
        assert f"{entry.solution.__name__}(" in entry.question
    else:
        assert shown == f"{entry.solution}\n{entry.reason}"


@pytest.mark.parametrize("call", [exercise, solution, lambda number: check(number, 1)])
def test_an_unknown_number_lists_the_known(call):
    with pytest.raises(nl.InputError, match=r"'9.9' is not known; choose one of: 1.1, 1.2, .*3.2") as caught:
        call("9.9")
    assert not isinstance(caught.value, WrongAnswer)


def test_the_names_are_public():
    assert (nl.check, nl.exercise, nl.solution) == (check, exercise, solution)
    assert nl.course.WrongAnswer is WrongAnswer
    assert issubclass(WrongAnswer, nl.InputError)
    assert nl.check(2.2, 2)
