"""Eigenvalues against dense Hessians, and what is measured of a run against the run itself."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from factories import tiny_llama
from torch import nn

from nlora_lab.analysis import curvature
from nlora_lab.analysis.curvature import PREDICTORS, _Tuning, curvature_of, curvature_table, rate_predictors
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.lanczos import Hessian, flat, largest_eigenvalue, split
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import RunConfig
from nlora_lab.tasks.registry import load_task
from nlora_lab.training import loop as training
from nlora_lab.training.loop import fine_tune

QUICK = {"steps": 4, "batch_size": 4, "task": "entailment", "lr": 1e-3, "device": "cpu"}
SHAPES = [(3, 4), (5,), (1, 2)]
SIZE = 19


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def symmetric(eigenvalues, seed=0):
    n = len(eigenvalues)
    Q = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)).Q
    return Q @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ Q.T


def quadratic(H, shapes=SHAPES, dtype=torch.float64):
    """A loss with the Hessian ``H``, and its parameters away from the minimum."""
    parameters = [torch.randn(s, generator=seeded(i), dtype=dtype).requires_grad_() for i, s in enumerate(shapes)]
    H = H.to(dtype)

    def loss():
        x = torch.cat([p.reshape(-1) for p in parameters])
        return x @ H @ x / 2 + x.sum()

    return loss, parameters


def network(dtype=torch.float64):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    x = torch.randn(20, 4, generator=seeded(1), dtype=dtype)
    y = torch.randint(0, 3, (20,), generator=seeded(2))
    return (lambda: nn.functional.cross_entropy(net(x), y)), list(net.parameters()), net, x, y


def dense_of(net, x, y):
    """The whole Hessian, by torch's own function."""
    names, tensors = zip(*((n, p.detach()) for n, p in net.named_parameters()), strict=True)

    def loss(row):
        parts = dict(zip(names, split(row, tensors), strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(net, parts, (x,)), y)

    return torch.autograd.functional.hessian(loss, flat(tensors))


def by_size(H):
    values = torch.linalg.eigvalsh(H)
    return float(values[values.abs().argmax()])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_by_magnitude_comes_with_its_sign_and_vector(sign):
    H = symmetric([sign * 7.0, *torch.linspace(-4, 4, SIZE - 1).tolist()])
    found = largest_eigenvalue(*quadratic(H), rtol=1e-8, generator=seeded())
    assert found.value == pytest.approx(sign * 7, rel=1e-12)
    assert found.converged
    assert found.residual <= 1e-8
    assert [tuple(part.shape) for part in found.vector] == SHAPES
    u = flat(found.vector)
    assert float(u.norm()) == pytest.approx(1)
    assert float((H @ u - found.value * u).norm()) < 1e-7


def test_the_top_is_the_most_upward_one():
    H = symmetric([-9.0, *torch.linspace(-4, 3, SIZE - 1).tolist()])
    assert largest_eigenvalue(*quadratic(H), rtol=1e-6, top=True).value == pytest.approx(3, rel=1e-9)
    below = symmetric(torch.linspace(-9, -2, SIZE).tolist())
    assert largest_eigenvalue(*quadratic(below), rtol=1e-6, top=True).value == pytest.approx(-2, rel=1e-9)


def test_a_pair_of_opposite_signs_which_stalls_power_iteration():
    H = symmetric([5.0, -5.0, *torch.linspace(-1, 1, SIZE - 2).tolist()])
    found = largest_eigenvalue(*quadratic(H), rtol=1e-6)
    assert abs(found.value) == pytest.approx(5, rel=1e-9)
    assert found.converged


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_a_network_against_its_dense_hessian(dtype, close):
    loss, parameters, net, x, y = network(dtype)
    H = dense_of(net, x, y)
    for top in (False, True):
        found = largest_eigenvalue(loss, parameters, iterations=60, rtol=1e-5, top=top)
        wanted = float(torch.linalg.eigvalsh(H)[-1]) if top else by_size(H)
        assert found.value == pytest.approx(wanted, rel=close)
    hessian = Hessian(loss, parameters)
    columns = torch.stack([hessian.times(e) for e in torch.eye(len(H), dtype=dtype)])
    assert torch.allclose(columns, H, atol=100 * torch.finfo(dtype).eps)
    assert hessian.loss == pytest.approx(loss().item())


def test_seen_through_adams_scale_it_is_the_dense_matrix_divided_on_both_sides():
    loss, parameters, net, x, y = network()
    H = dense_of(net, x, y)
    scale = [torch.rand(p.shape, generator=seeded(5), dtype=p.dtype) + 0.01 for p in parameters]
    D = flat(scale)
    found = largest_eigenvalue(loss, parameters, iterations=60, rtol=1e-8, scale=scale)
    wanted = H / (D[:, None] * D[None, :]).sqrt()
    assert found.value == pytest.approx(by_size(wanted), rel=1e-9)
    u = flat(found.vector)
    assert float((wanted @ u - found.value * u).norm()) < 1e-6 * abs(found.value)
    # what has an infinite scale takes no part
    scale[0].fill_(math.inf)
    kept = slice(parameters[0].numel(), None)
    found = largest_eigenvalue(loss, parameters, iterations=60, rtol=1e-8, scale=scale)
    assert found.value == pytest.approx(by_size(wanted[kept, kept]), rel=1e-9)
    assert not found.vector[0].abs().max() > 1e-8


def test_a_hessian_of_zeros():
    p, q, unused = (torch.randn(3, generator=seeded(i)).requires_grad_() for i in range(3))
    for loss in (lambda: p.sum() + 2 * q.sum(), lambda: (p * 3).sum() + 0 * (q * q).sum()):
        found = largest_eigenvalue(loss, [p, q, unused])
        assert (found.value, found.residual, found.converged) == (0, 0, True)
        assert found.iterations == 1


def test_the_smallest_problems_end_as_soon_as_there_is_nothing_left():
    p = torch.tensor([2.0], requires_grad=True)
    found = largest_eigenvalue(lambda: (p**3).sum(), [p], rtol=0)
    assert (found.value, found.iterations, found.converged) == (pytest.approx(12), 1, True)
    q = torch.randn(50, generator=seeded(), requires_grad=True)
    found = largest_eigenvalue(lambda: -q.square().sum(), [q], rtol=0)
    assert (found.value, found.iterations, found.converged) == (pytest.approx(-2), 1, True)


def test_too_few_iterations_are_told_and_the_residual_is_the_true_one():
    H = symmetric(torch.linspace(1, 2, SIZE).tolist())
    for iterations in (1, 2, 4):
        found = largest_eigenvalue(*quadratic(H), iterations=iterations, rtol=1e-9, generator=seeded(4))
        u = flat(found.vector)
        assert found.residual == pytest.approx(float((H @ u - found.value * u).norm()) / found.value, rel=1e-8)
        assert not found.converged
        assert found.iterations == iterations
    assert largest_eigenvalue(*quadratic(H), iterations=500, rtol=0).iterations <= SIZE


def test_the_loss_is_computed_once_and_the_generator_decides():
    loss, parameters = quadratic(symmetric(torch.linspace(-1, 2, SIZE).tolist()))
    calls = []

    def counted():
        calls.append(1)
        return loss()

    first, second, other = (
        largest_eigenvalue(counted, parameters, iterations=3, generator=seeded(s)) for s in (1, 1, 2)
    )
    assert len(calls) == 3
    assert first == second != other


def test_attention_has_a_second_derivative_here():
    torch.manual_seed(0)
    model = tiny_llama(hidden_size=16, num_hidden_layers=1).eval()
    assert model.config._attn_implementation == "sdpa"
    ids = torch.randint(0, 97, (2, 9), generator=seeded(1))
    model.requires_grad_(False)
    p = model.model.layers[0].input_layernorm.weight
    p.requires_grad_(True)
    found = largest_eigenvalue(lambda: model(input_ids=ids, labels=ids).loss, [p], rtol=1e-4)
    step, columns = 1e-2, []
    for e in torch.eye(len(p)):  # differences of gradients
        slopes = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(e, alpha=sign * step)
            slopes.append(torch.autograd.grad(model(input_ids=ids, labels=ids).loss, [p])[0])
            with torch.no_grad():
                p.sub_(e, alpha=sign * step)
        columns.append((slopes[0] - slopes[1]) / (2 * step))
    H = torch.stack(columns)
    assert found.value == pytest.approx(by_size((H + H.T) / 2), rel=0.01)


X = torch.ones(3, requires_grad=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"rtol": -1}, "rtol=-1"),
        ({"rtol": math.nan}, "rtol=nan"),
        ({"rtol": True}, "rtol=True"),
        ({"generator": 3}, "generator=3"),
        ({"scale": [torch.ones(2)]}, "of its shape"),
        ({"scale": []}, "of its shape"),
        ({"scale": [torch.zeros(3)]}, "positive"),
        ({"scale": [torch.full((3,), math.nan)]}, "positive"),
        ({"parameters": []}, "nothing to vary"),
        ({"parameters": [torch.ones(3)]}, "requires_grad"),
        ({"loss": lambda: X * 2}, "one number"),
        ({"loss": lambda: torch.tensor(1.0)}, "depends on the parameters"),
        ({"loss": lambda: (X * math.inf).sum()}, "not finite"),
        ({"loss": lambda: (X - 1).abs().sqrt().sum()}, "not finite"),
    ],
)
def test_bad_input_of_an_eigenvalue_is_named(options, words):
    with pytest.raises(InputError, match=words):
        largest_eigenvalue(**{"loss": lambda: X.square().sum(), "parameters": [X], **options})


def test_a_second_derivative_that_is_not_finite_gives_nan_and_raises_nothing():
    p = torch.zeros(2, requires_grad=True)
    found = largest_eigenvalue(lambda: (p.abs() ** 1.5).sum(), [p])
    assert math.isnan(found.value)
    assert not found.converged


@pytest.fixture(scope="module", autouse=True)
def short():
    """Runs on a few items, and nothing measured at their end."""
    task = load_task(QUICK["task"])
    task = replace(task, train=task.train.select(range(64)), validation=task.validation.select(range(8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "finish", lambda *args, **kwargs: None)
        patch.setattr(training, "task_of", lambda cfg: task)
        patch.setattr(curvature, "load_task", lambda *args, **kwargs: task)
        yield


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_is_measured_where_its_run_is(name):
    cfg = RunConfig(method=name, **QUICK)
    run = fine_tune(cfg)
    for at in (0, 2):
        found = curvature_of(cfg, at_step=at, iterations=5, rtol=0.3)
        assert found.loss == pytest.approx(run.steps[at].loss, rel=1e-4)
        assert found.gradient == pytest.approx(run.steps[at].grad_norm, rel=1e-3)
        assert found.linearity == pytest.approx(1, abs=0.03)
        numbers = [found.row()[key] for key in PREDICTORS]
        assert all(isinstance(v, float) and not math.isnan(v) for v in numbers)
        assert min(numbers[:2]) > 0
        assert found.seconds < 60


@pytest.mark.parametrize("name", ["lora", "nlora", "dora", "full"])
@pytest.mark.parametrize("at_step", [0, 3])
def test_the_next_step_is_the_one_that_torchs_adam_makes(name, at_step):
    cfg = RunConfig(method=name, clip_norm=0.1, **QUICK)
    tuning = _Tuning(cfg, at_step + 1)
    tuning.train(at_step)
    step, scale = tuning.next_step(tuning.feed[at_step:])
    before = flat(tuning.parameters).clone()
    tuning.model(**tuning.feed[at_step]).loss.backward()
    torch.nn.utils.clip_grad_norm_(tuning.parameters, 0.1)
    for group in tuning.adam.param_groups:
        group["lr"] = 1.0  # so that the step stands out of the rounding of NLoRA's large factors
    tuning.adam.step()
    moved = before - flat(tuning.parameters)
    assert torch.allclose(step, moved, atol=1e-3)
    still = scale.isinf()
    assert bool((step[still] == 0).all())
    # at the start only B moves, of three quarters of its numbers in this model; DoRA's lengths move too
    share = float(still.float().mean())
    assert 0.2 < share < 0.8 if at_step == 0 and name in ("lora", "dora") else share < 0.1


@pytest.mark.parametrize("batches", [1, 2])
def test_an_adapter_against_its_dense_hessian(batches):
    cfg = RunConfig(method="inttune", rank=2, **{**QUICK, "batch_size": 2})
    found = curvature_of(cfg, batches=batches, iterations=100, rtol=1e-3)
    tuning = _Tuning(cfg, batches)
    tuning.train(0)
    tuning.model.set_attn_implementation("eager")
    loss = torch.stack([tuning.model(**b).loss for b in tuning.feed]).mean()
    g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss, tuning.parameters, create_graph=True)])
    H = torch.stack([flat(torch.autograd.grad(entry, tuning.parameters, retain_graph=True)) for entry in g])
    assert len(H) == 28 * 4
    g = g.detach()
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found.gradient == pytest.approx(float(g.norm()), rel=1e-4)
    assert found.largest.value == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-3)
    slopes = [flat(torch.autograd.grad(tuning.model(**b).loss, tuning.parameters)) for b in tuning.feed]
    shares = [0.999 ** (batches - 1 - i) * 0.001 / (1 - 0.999**batches) for i in range(batches)]
    v = sum(share * s.square() for share, s in zip(shares, slopes, strict=True))
    shares = [0.9 ** (batches - 1 - i) * 0.1 / (1 - 0.9**batches) for i in range(batches)]
    m = sum(share * s for share, s in zip(shares, slopes, strict=True))
    D = v.sqrt() + 1e-8
    scaled = (H / (D[:, None] * D[None, :]).sqrt()).double()
    assert found.preconditioned.value == pytest.approx(float(torch.linalg.eigvalsh(scaled)[-1]), rel=0.01)
    step = m / D
    bend = float(step @ H @ step)
    assert found.model_rate == pytest.approx(float(g @ step) / bend if bend > 0 else math.inf, rel=0.02)


@pytest.mark.parametrize("name", ["lora", "nlora", "pissa", "full"])
def test_a_steps_effect_is_the_derivative_along_it(name):
    cfg = RunConfig(method=name, **QUICK)
    found = curvature_of(cfg, iterations=1)
    tuning = _Tuning(cfg, 1)
    tuning.train(0)
    batch = tuning.feed[0]
    step, _ = tuning.next_step([batch])
    before = flat(tuning.parameters).clone()
    tuning.effects(step, batch)
    assert torch.equal(before, flat(tuning.parameters))

    # in float64, for differences so small that nothing is curved
    tuning.model.double()
    with torch.no_grad():
        logits, weights = tuning._logits(batch), tuning._weights()
        sizes = sum(float(view.weight.norm()) ** 2 for view in tuning.subject.layers()) ** 0.5
        with tuning._moved(step.double(), 1e-7):
            change = tuning._logits(batch) - logits
            moved = sum(float((a - b).norm()) ** 2 for a, b in zip(tuning._weights(), weights, strict=True)) ** 0.5
    assert found.weight_change == pytest.approx(moved / sizes / 1e-7, rel=0.01)
    assert found.logit_change == pytest.approx(float(change.norm() / logits.norm()) / 1e-7, rel=0.03)


def test_in_lora_the_first_step_is_that_of_b_times_a():
    """Adam's first step is the sign of the gradient where there is one: ``sign(∂B) A`` for a rate of 1."""
    cfg = RunConfig(method="lora", **QUICK)
    tuning = _Tuning(cfg, 1)
    tuning.model(**tuning.feed[0]).loss.backward()
    layers = list(tuning.subject.layers())
    moved = math.hypot(*(float((v.gradients["B"].sign() @ v.factors["A"]).norm()) for v in layers))
    size = math.hypot(*(float(v.weight.norm()) for v in layers))
    assert curvature_of(cfg, iterations=1).weight_change == pytest.approx(moved / size, rel=0.01)


def test_scaling_an_adapter_scales_what_adam_sees_by_as_much():
    """rsLoRA is LoRA times √r. Only B moves at first: g grows by √r, H by r, and H over ``√v`` by √r."""
    lora, rslora = (curvature_of(RunConfig(method=m, rank=4, **QUICK), rtol=1e-3) for m in ("lora", "rslora"))
    assert rslora.gradient == pytest.approx(2 * lora.gradient, rel=1e-4)
    for name in ("weight_change", "logit_change"):
        assert getattr(rslora, name) == pytest.approx(2 * getattr(lora, name), rel=0.01)
    assert rslora.preconditioned.value == pytest.approx(2 * lora.preconditioned.value, rel=0.03)  # eps does not scale
    assert rslora.model_rate == pytest.approx(lora.model_rate / 2, rel=0.01)


def test_at_the_start_the_rate_plays_no_part():
    first, second = (
        replace(curvature_of(replace(RunConfig(**QUICK), lr=lr), iterations=2), seconds=0) for lr in (1e-4, 1)
    )
    assert replace(first, config=second.config) == second


@pytest.mark.parametrize(
    ("cfg", "options", "words"),
    [
        ({}, {"at_step": -1}, "at_step=-1"),
        ({}, {"at_step": 5}, "from 0 to 4"),
        ({}, {"batches": 0}, "batches=0"),
        ({}, {"iterations": 1.5}, "iterations=1.5"),
        ({}, {"rtol": 1}, "rtol=1"),
        ({"rank": 500}, {}, "rank=500"),
        ({"lr": 1e30}, {"at_step": 3}, "diverged in step"),
    ],
)
def test_bad_input_of_a_run_is_named(cfg, options, words):
    with pytest.raises(InputError, match=words):
        curvature_of(RunConfig(**{**QUICK, **cfg}), **options)


class Recorded:
    """Recordings that know one method's best rate."""

    def best(self, task, method, rank, init):
        assert (task, rank, init) == (QUICK["task"], 8, None)
        return SimpleNamespace(lr=0.07) if method == "inttune" else None


def test_a_table_has_a_row_a_method_at_its_own_best_rate(monkeypatch):
    monkeypatch.setattr("nlora_lab.runs.shipped.recorded_runs", lambda store, model: Recorded())
    settings = {**QUICK, "iterations": 2}
    del settings["lr"]
    table = curvature_table(["inttune", "lora-xs"], **settings)
    assert list(table["method"]) == ["inttune", "lora-xs"]
    assert list(table["label"]) == [METHODS[m].label for m in table["method"]]
    assert list(table["rate"]) == [0.07, RunConfig.lr]
    assert table["best_rate"][0] == 0.07
    assert math.isnan(table["best_rate"][1])
    assert set(PREDICTORS) <= set(table)
    fixed = curvature_table("inttune", **{**settings, "lr": 3e-3})
    assert list(fixed["rate"]) == [3e-3]
    assert fixed["largest"][0] == table["largest"][0]
    with pytest.raises(InputError, match="sed"):
        curvature_table(["lora"], sed=1)
    with pytest.raises(InputError, match="loraa"):
        curvature_table(["loraa"])


def made_up(rates, **columns):
    return pd.DataFrame({"best_rate": rates, **{name: columns.get(name, rates) for name in PREDICTORS}})


def test_a_power_law_is_found_and_the_best_predictor_comes_first():
    rates = [1e-4, 1e-3, 5e-3, 1e-1]
    noisy = [3.0, 1.0, 2.0, 1.0]
    table = made_up(rates, largest=[4 / r**2 for r in rates], gradient=noisy, model_rate=[*rates[:3], math.inf])
    found = rate_predictors(table).set_index("quantity")
    assert list(found.index)[-1] == "gradient"
    assert found.loc["largest", "slope"] == pytest.approx(-0.5)
    assert found.loc["largest", "spearman"] == pytest.approx(-1)
    assert found.loc["largest", "spread"] == pytest.approx(0, abs=1e-9)
    assert dict(found["methods"]) == {**dict.fromkeys(PREDICTORS, 4), "model_rate": 3}
    from scipy.stats import spearmanr

    assert found.loc["gradient", "spearman"] == pytest.approx(spearmanr(noisy, rates).statistic)


def test_a_table_that_cannot_be_judged_is_named():
    with pytest.raises(InputError, match="'best_rate'"):
        rate_predictors(pd.DataFrame({"method": ["lora"]}))
    with pytest.raises(InputError, match="only 2 methods"):
        rate_predictors(made_up([1e-3, math.nan, 1e-2, -1]))
