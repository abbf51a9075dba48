"""Every entry of the table: the stub is not accepted, the solution is, each known mistake gets its own hint."""

from __future__ import annotations

import math
import re
from statistics import median

import numpy as np
import pytest
import torch
from factories import ROOT

import nlora_lab as nl
from nlora_lab.course.checking import _outcome, check, exercise, solution
from nlora_lab.course.comparison import TOLERANCE, agree, comparable
from nlora_lab.course.exercises import LEVELS
from nlora_lab.course.registry import ALL_EXERCISES, ALL_QUESTIONS, NOTEBOOKS
from nlora_lab.course.solutions.notebook_01 import best, stable_rank
from nlora_lab.course.solutions.notebook_02 import eliminate, residual_eigenvalues, schur
from nlora_lab.course.solutions.notebook_03 import layers_where_nystrom_helps
from nlora_lab.course.solutions.notebook_04 import SLoRALayer, new_core, repaired, step_of_product
from nlora_lab.course.solutions.notebook_05 import first_step
from nlora_lab.course.solutions.notebook_06 import chosen
from nlora_lab.course.solutions.notebook_07 import mean_gain, z_of
from nlora_lab.course.solutions.notebook_08 import next_runs
from nlora_lab.course.solutions.notebook_09 import leads

ALL = list(ALL_EXERCISES.values())
FUNCTIONS = [entry for entry in ALL if entry.inputs]
NUMBERS = [entry for entry in ALL if not entry.inputs]
MISTAKES = [pytest.param(a, m, id=f"{a.number}-{i}") for a in ALL for i, m in enumerate(a.mistakes)]


def by_number(entry):
    return entry.number


def fail(*_):
    raise ZeroDivisionError("oh dear")


@pytest.fixture
def refused(capsys):
    """Call ``check`` with a wrong answer. Return what it prints, at most three lines."""

    def call(number, answer):
        capsys.readouterr()
        assert check(number, answer) is False
        text = capsys.readouterr().out
        assert text.startswith(f"Exercise {number}, not yet: ")
        lines = text.splitlines()
        assert 2 <= len(lines) <= 3
        assert lines[-1].endswith(f'nl.solution("{number}") shows a solution.')
        return text

    return call


def test_the_exercises_are_complete_and_stand_in_the_file_of_their_notebook():
    counts = {"1": 5, "2": 8, "3": 5, "4": 7, "5": 5, "6": 4, "7": 4, "8": 4, "9": 3}
    assert list(ALL_EXERCISES) == [f"{n}.{i + 1}" for n, count in counts.items() for i in range(count)]
    for notebook in NOTEBOOKS:
        number = notebook.__name__.rpartition("notebook_")[2]
        assert len(list((ROOT / "notebooks").glob(f"{number}_*.ipynb"))) == 1
        assert {int(entry.number.split(".")[0]) for entry in notebook.EXERCISES} == {int(number)}
        assert {int(entry.number.split(".")[0]) for entry in notebook.QUESTIONS} == {int(number)}
    assert len({entry.title for entry in ALL}) == len(ALL)
    assert len(NUMBERS) == 9
    for entry in ALL:
        assert len(entry.mistakes) >= 3
        hints = [m.hint for m in entry.mistakes]
        assert len(set(hints)) == len(hints)
        assert re.search(r"about \d+ lines?", entry.question), entry.number


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
def test_each_known_mistake_gets_its_own_hint(entry, mistake, refused):
    first = refused(entry.number, mistake.answer).splitlines()[0]
    assert first == f"Exercise {entry.number}, not yet: {mistake.hint}"


@pytest.mark.parametrize(("entry", "mistake"), [p for p in MISTAKES if p.values[0].inputs])
def test_a_mistake_shows_on_two_inputs_at_least(entry, mistake):
    """Or a hint would rest on a single input, where another mistake may give the same."""
    trials = range(len(entry.inputs()))
    outcomes = [(_outcome(entry, mistake.answer, i), _outcome(entry, entry.solution, i)) for i in trials]
    assert sum(not agree(wrong, right, entry.digits) for wrong, right in outcomes) >= 2


def test_a_hint_needs_the_mistake_on_every_input(refused):
    """The largest rate often has the highest loss too, and one table alone fits several mistakes."""
    tables = [tried for (tried,) in ALL_EXERCISES["6.1"].inputs()]

    def right_but_once(tried):
        return max(tried, key=lambda rate: median(tried[rate])) if tried == tables[0] else chosen(tried)

    for wrong in (max, min, right_but_once):
        assert "step by step" in refused("6.1", wrong)
    for wrong in (max, min):
        assert "step by step" in refused("5.1", lambda tried, wrong=wrong: wrong(row[0] for row in tried))


def test_mistakes_that_raise_are_known(refused):
    assert "square U and a square Vh" in refused("1.1", lambda W, r: _by_svd(W, r, lambda s: s))
    assert "diag(s) does not fit" in refused(
        "1.1", lambda W, r: _by_svd(W, r, lambda s: s * (torch.arange(len(s)) < r))
    )
    assert "a percentage is under the root" in refused("7.2", _in_percent)
    assert "the result is complex" in refused("7.2", lambda a, b, n: (a - b) / (a + b - (a + b) ** 2 / 2) ** 0.5)


def _by_svd(W, r, change):
    U, s, Vh = torch.linalg.svd(W)
    return U @ torch.diag(change(s)) @ Vh


def _in_percent(first, second, items):
    p = (first + second) / 2
    return (first - second) / math.sqrt(2 * p * (1 - p) / items)


@pytest.mark.parametrize("entry", FUNCTIONS, ids=by_number)
@pytest.mark.parametrize(
    "result",
    [None, "x", float("nan"), 1e99, [], {}, object(), (1, 2, 3), torch.zeros(3, 2, 4), torch.full((9, 7), torch.nan),
     torch.ones(9, 7, dtype=torch.complex64), torch.empty(9, 7, device="meta"), torch.ones(9, 7).to_sparse(),
     np.array(["a", "b"]), np.zeros((2, 2)), range(3), True, 1j],
    ids=lambda value: str(value).split(" at ")[0],
)  # fmt: skip
def test_a_function_that_returns_junk_is_told_so(entry, result, refused):
    assert re.search("returned|raised|complex", refused(entry.number, lambda *_: result))


@pytest.mark.parametrize("entry", ALL, ids=by_number)
@pytest.mark.parametrize("answer", [None, "x", "93", float("nan"), float("inf"), 10**400, [], torch.zeros(2, 2), True])
def test_junk_for_an_answer_is_told_so(entry, answer, refused):
    assert "not yet: it asks for" in refused(entry.number, answer)


@pytest.mark.parametrize("entry", FUNCTIONS, ids=by_number)
def test_a_function_that_raises_is_told_what_and_where(entry, refused):
    hint, numbers, _ = refused(entry.number, fail).splitlines()
    assert hint.endswith("it stops with ZeroDivisionError: oh dear")
    assert re.match(r"Called with \w+ .*, your function raised ZeroDivisionError in the line: raise Zero", numbers)
    assert "TypeError: " in refused(entry.number, lambda: 1)


@pytest.mark.parametrize("entry", [e for e in FUNCTIONS if e.probe is None], ids=by_number)
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


def test_a_mistake_that_shows_only_on_wide_matrices_is_found(refused):
    wrong = refused("1.1", lambda W, r: best(W, r) if W.shape[0] > W.shape[1] else torch.zeros_like(W))
    assert "W of shape (6, 10), r = 2" in wrong


def test_calling_the_function_oneself_is_a_known_mistake(refused):
    assert 'Pass it without calling it: check("2.3", schur)' in refused("2.3", schur(torch.eye(4) + 1, 2))


def test_numbers_of_every_kind_are_read(refused):
    for two in (2, 2.0, np.float32(2), np.int64(2), np.array([2.0]), torch.tensor(2), torch.tensor([2.0]), 2.00001):
        assert check("2.2", two), two
    assert "the residual x − 4·(1/2)·1 is 1, and it has to be 0" in refused("2.2", 3)
    assert re.search(r"rank 70 takes .* = 33,600 numbers, and W itself .* = 45,056", refused("1.2", 70))


def test_a_number_is_right_to_the_digits_asked(refused):
    for rate in (0.00354, 0.003536, 1e-2 / math.sqrt(8), np.float32(0.0035355)):
        assert check("5.2", rate), rate
    for rate in (0.0035, 0.00355, 0.0036):
        assert "times as large as LoRA's" in refused("5.2", rate)
    assert "0.0035 is near. The exercise asks for 3 significant digits" in refused("5.2", 0.0035)
    assert check("7.1", lambda ours, theirs: round(mean_gain(ours, theirs), 2))
    assert "is 7.46" not in refused("7.1", lambda ours, theirs: round(mean_gain(ours, theirs)))
    assert "3 significant digits are enough" in exercise("5.2")


def test_a_whole_number_has_to_be_exact(refused):
    assert check("4.1", 917_504)
    assert check("4.1", np.int64(917_504))
    for number in (917_500, 917_505, 917_503, 9.175e5):
        assert "is near. The exercise asks for every digit" in refused("4.1", number)
    assert "has to be exact" in exercise("4.1")
    assert "bytes" in exercise("8.1")
    assert "instead of" in refused("8.1", lambda frozen, trained: 2 * frozen + 16 * trained + 1)


def test_the_frobenius_norm_by_another_name_is_explained(refused):
    assert "W.norm(2) is the Frobenius norm too" in refused("1.3", lambda W: W.norm() ** 2 / W.norm(2) ** 2)
    assert check("1.3", lambda W: stable_rank(W).item())


def test_the_hint_on_pooling_is_for_pooling_alone(refused):
    def one_share(first, second, items):
        p = first / 100
        return (first - second) / 100 / math.sqrt(2 * p * (1 - p) / items)

    assert "step by step" in refused("7.2", one_share)
    assert "one share" in refused("7.2", lambda a, b, n: z_of(a, b, n) * math.sqrt(2))


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


def test_pairs_come_as_any_collection_in_any_order(refused):
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
    short = refused("3.2", lambda t: layers_where_nystrom_helps(t)[:1])
    assert "returned a list of length 1 instead of 3; missing: (1, 'mlp.up_proj')" in short
    assert "too many: (9, 'x')" in refused("3.2", lambda t: [*layers_where_nystrom_helps(t), (9, "x")])


def test_numbers_that_are_only_near_are_not_right(refused):
    assert agree(1.0 + TOLERANCE / 2, 1.0)
    assert not agree(1.0 + TOLERANCE * 2, 1.0)
    assert not agree(1e-6, 0.0)
    assert "and the relative error of yours is 0.01" in refused("1.1", lambda W, r: 1.01 * best(W, r))


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
    first, question = text.split("\n\n", 1)
    minutes = f" ({entry.level}, {LEVELS[entry.level]})" if entry.level else ""
    assert first == f"Exercise {entry.number}: {entry.title}{minutes}"
    assert question.startswith(entry.question)
    assert re.search("relative error of 0.0001|significant digits are enough|has to be exact", text)
    shown = solution(entry.number)
    assert repr(shown) == shown
    if entry.inputs:
        assert re.match(rf"(def|class) {entry.solution.__name__}\(", shown)
        assert f"{entry.solution.__name__}(" in entry.question
    else:
        number, _, reason = shown.partition("\n")
        assert math.isclose(float(number), entry.solution, rel_tol=1e-5)
        assert reason == entry.reason


@pytest.mark.parametrize("call", [exercise, solution, lambda number: check(number, 1)])
def test_an_unknown_number_lists_the_known(call):
    with pytest.raises(nl.InputError, match=r"'9.9' is not known; choose one of: 1.1, 1.2, .*3.2"):
        call("9.9")


def test_the_closing_questions_have_answers():
    assert list(ALL_QUESTIONS) == [
        *(f"{n}.Q{i}" for n in range(8) for i in (1, 2, 3)), "8.Q1", "9.Q1", "9.Q2", "9.Q3",
    ]  # fmt: skip
    for number, question in ALL_QUESTIONS.items():
        assert repr(solution(number)) == question.answer
        assert len(question.answer) > 100
        assert max(map(len, question.answer.splitlines())) <= 104  # a notebook does not wrap it


def test_the_names_are_public():
    assert (nl.check, nl.exercise, nl.solution) == (check, exercise, solution)
    assert nl.check(2.2, 2)


def test_the_levels_are_marked_and_some_exercises_build_something():
    assert {entry.level for entry in ALL} <= {"", *LEVELS}
    builds = [entry.number for entry in ALL if entry.level == "build"]
    assert builds == ["1.5", "2.5", "2.6", "3.5", "4.4", "4.7", "5.3", "5.4", "6.4", "7.4", "8.4"]
    assert {entry.number[0] for entry in ALL if not entry.level} <= {"6", "7"}


def test_a_kernel_leaves_no_negative_eigenvalue_and_the_third_matrix_does():
    smallest = [residual_eigenvalues(K, J)[0].item() for K, J in ALL_EXERCISES["2.5"].inputs()]
    assert smallest[0] > -1e-12
    assert smallest[1] > -1e-12
    assert smallest[2] < -0.1


def test_elimination_by_hand_is_the_library_with_complete_pivoting():
    for W, r in ALL_EXERCISES["2.6"].inputs():
        assert torch.allclose(eliminate(W, r), nl.nystrom(W, r, pivots="cross").residual(W), atol=1e-10)


def test_the_stub_of_a_class_is_nudged_and_a_wrong_name_is_told(refused, capsys):
    class Stub(torch.nn.Module):
        def __init__(self, W, r, alpha):
            super().__init__()

        def forward(self, x):
            return ...

    class Renamed(SLoRALayer):
        def __init__(self, W, r, alpha):
            super().__init__(W, r, alpha)
            self.core = self.N
            del self.N

        def forward(self, x):
            return x @ self.W.T + self.s * (x @ self.A.T @ self.core.T @ self.B.T)

    assert check("4.4", Stub) is False
    assert "waits for your answer" in capsys.readouterr().out
    assert "has no attribute 'N'" in refused("4.4", Renamed)

    class Doubled(SLoRALayer):
        def __init__(self, W, r, alpha):
            super().__init__(W, r, alpha)
            self.s = 2 * self.s

    assert "asked ['adds x (B N A)ᵀ times 3.00'], yours ['adds x (B N A)ᵀ times 6.00']" in refused("4.4", Doubled)


def test_a_layer_by_another_way_is_right():
    class Other(torch.nn.Module):
        def __init__(self, W, r, alpha):
            super().__init__()
            self.base = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
            self.base.weight = torch.nn.Parameter(W, requires_grad=False)
            self.A = torch.nn.Parameter(torch.randn(r, W.shape[1]))
            self.N = torch.nn.Parameter(torch.eye(r))
            self.B = torch.nn.Parameter(torch.zeros(W.shape[0], r))
            self.scale = alpha / r

        def forward(self, x):
            return self.base(x) + self.scale * x @ (self.B @ self.N @ self.A).T

    assert check("4.4", Other)


def test_the_first_step_is_what_adam_does():
    for A, G, eta, s in ALL_EXERCISES["5.3"].inputs():
        B = torch.zeros(G.shape, dtype=G.dtype, requires_grad=True)
        optimizer = torch.optim.Adam([B], lr=eta)
        (B * G).sum().backward()
        optimizer.step()
        assert math.isclose((s * B @ A).norm().item(), first_step(A, G, eta, s).item(), rel_tol=1e-5)


def test_the_first_step_of_a_product_is_what_adam_does():
    for B, N, A, G, eta in ALL_EXERCISES["4.7"].inputs():
        factors = [f.clone().requires_grad_() for f in (B, N, A)]
        optimizer = torch.optim.Adam(factors, lr=eta)
        (factors[0] @ factors[1] @ factors[2] * G).sum().backward()
        optimizer.step()
        moved = (factors[0] @ factors[1] @ factors[2]).detach() - B @ N @ A
        assert math.isclose(moved.norm().item(), step_of_product(B, N, A, G, eta), rel_tol=1e-5)


def test_other_factors_have_the_same_product():
    for N, P, Q in ALL_EXERCISES["4.6"].inputs():
        assert torch.allclose(P @ new_core(N, P, Q) @ Q, N)


def test_the_repaired_loop_descends_and_leaves_its_start_alone():
    for x, y, w, eta, steps in ALL_EXERCISES["4.5"].inputs():
        before = w.clone()
        after = repaired(x, y, w, eta, steps)
        assert torch.equal(w, before)
        assert (x @ after - y).square().mean() < (x @ w - y).square().mean()


def test_the_second_stage_widens_and_then_repeats():
    ladder = (1e-3, 1e-2, 1e-1)
    assert next_runs({"lora": {1e-3: 1.0, 1e-2: 0.5}}, ladder) == [("lora", 1e-1, 0)]
    seeds = [("lora", 1e-2, seed) for seed in (1, 2, 3, 4)]
    assert next_runs({"lora": {1e-3: 1.0, 1e-2: 0.5, 1e-1: 0.9}}, ladder) == seeds


def test_who_leads_on_the_recorded_runs_depends_on_the_rate():
    runs = nl.recorded_runs()
    by_rate = [nl.analysis.at_each_rate(name, runs) for name in ("pissa", "lora")]
    pissa, lora = ({float(rate): [run.accuracy for run in g] for rate, g in groups.items()} for groups in by_rate)
    shared = set(pissa) & set(lora)
    assert 0 < len(leads(pissa, lora)) < len(shared)
