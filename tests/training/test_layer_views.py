"""What is seen of a layer is what is there: for every method, against dense matrices measured from outside."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from factories import BROKEN_IN_PEFT, adapted, base_model, tolerance

from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS
from nlora_lab.models.layers import PEFT_PREFIX, layer_shape, linear_layers
from nlora_lab.training.layer_views import ObservedPeftModel, WeightChange, relative_distance

RANK = 4
FACTORS = {m.name: m.trains.replace(", ", "") for m in METHODS.values()} | {"full": "W", "dora": "ABm"}
CASES = [(a, name) for name in METHODS for a in ("llama", "gpt2") if (name, a) not in BROKEN_IN_PEFT]


def effective(layer):
    """The matrix (m, n) by which ``layer`` multiplies: what it does to the unit vectors."""
    n = layer_shape(getattr(layer, "base_layer", layer))[1]
    with torch.no_grad():
        return (layer(torch.eye(n)) - layer(torch.zeros(1, n))).T


def backward(model, ids):
    model(input_ids=ids, labels=ids).loss.backward()


def steps(model, ids, count=3):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(count):
        optimizer.zero_grad()
        backward(model, ids)
        optimizer.step()
    optimizer.zero_grad()


def subject_of(architecture, name):
    """A model with the method attached, its view, and the untouched base."""
    model, base = adapted(architecture, (name, None)), base_model(architecture)
    return model, ObservedPeftModel(model, base if name == "full" or METHODS[name].writes_base else None), base


def layer_of(model, name):
    return model.get_submodule((PEFT_PREFIX if hasattr(model, "peft_config") else "") + name)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def seen(request, ids):
    """(method, model, untouched base, views before any step, views after some and with gradients)."""
    architecture, name = request.param
    model, subject, base = subject_of(architecture, name)
    before = [(v.change.dense().clone(), v.gradients) for v in subject.layers()]
    steps(model, ids)
    backward(model, ids)
    return name, model, base, before, list(subject.layers())


def test_the_change_is_that_of_the_effective_weight_from_the_original_one(seen):
    name, model, base, _, views = seen
    unit = tolerance(model)
    for view in views:
        W, now = effective(base.get_submodule(view.name)), effective(layer_of(model, view.name))
        assert torch.allclose(view.weight, W, atol=1e-6 * float(W.norm()))
        change = view.change.dense()
        assert change.shape == W.shape
        assert float((change - (now - W)).norm()) < unit * float(W.norm()), view.name
        assert float(change.norm()) > 1e-4 * float(W.norm()), (name, view.name)


def test_nothing_has_changed_before_the_first_step(seen):
    name, _, _, before, views = seen
    for (change, gradients), view in zip(before, views, strict=True):
        assert gradients == {}
        size = float(change.norm() / view.weight.norm())
        if METHODS[name].step0 == "exact":
            assert size == 0
        elif METHODS[name].step0 == "near":
            assert size < 1e-4
        else:
            assert size > 1e-2


def test_every_adapted_layer_is_there_in_the_models_order(seen):
    _, _, base, _, views = seen
    assert [v.name for v in views] == list(linear_layers(base))
    assert len(views) in (8, 14)


def test_factors_and_gradients_are_those_that_train(seen):
    name, model, _, _, views = seen
    held = {p.data_ptr(): p for p in model.parameters() if p.requires_grad}
    for view in views:
        m, n = view.weight.shape
        shapes = {"A": (RANK, n), "N": (RANK, RANK), "B": (m, RANK), "m": (m,), "W": (m, n)}
        expected = set(FACTORS[name])
        assert set(view.factors) == set(view.gradients) == expected
        for factor in expected:
            value, gradient = view.factors[factor], view.gradients[factor]
            assert tuple(value.shape) == tuple(gradient.shape) == shapes[factor], (view.name, factor)
            p = held[value.data_ptr()]  # the live one
            flipped = p.shape != value.shape or not torch.equal(p, value)
            assert torch.equal(gradient, p.grad.T if flipped else p.grad)
            assert not value.requires_grad


def test_singular_values_and_norms_are_those_of_the_dense_change(seen):
    for view in seen[-1]:
        change = view.change
        dense, values = change.dense().double(), change.singular_values()
        true = torch.linalg.svdvals(dense)
        assert values.dtype == torch.float64
        assert len(values) <= len(true)
        padded = torch.nn.functional.pad(values, (0, len(true) - len(values)))
        assert torch.allclose(padded, true, rtol=1e-6, atol=2e-6 * float(true[0]))
        assert change.norm() == pytest.approx(float(true.norm()), rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["full", "slora", "nlora", "pissa"])
def test_the_distance_is_over_all_layers_together(architecture, name, ids):
    model, subject, base = subject_of(architecture, name)
    start = relative_distance(subject.layers())
    assert start < 1e-6 if METHODS[name].step0 == "near" else start == 0
    steps(model, ids, 2)
    before = [effective(layer) for layer in linear_layers(base).values()]
    after = [effective(layer_of(model, n)) for n in linear_layers(base)]
    moved = math.sqrt(sum(float((b - a).norm()) ** 2 for a, b in zip(before, after, strict=True)))
    size = math.sqrt(sum(float(a.norm()) ** 2 for a in before))
    assert relative_distance(subject.layers()) == pytest.approx(moved / size, rel=1e-3)
    assert relative_distance(iter([])) == 0


def test_a_folded_adapter_changes_by_as_much_as_one_that_keeps_its_start_aside(ids):
    seen = []
    for fold in (False, True):
        model = adapted("llama", ("nlora-pivoted", None), fold=fold)
        subject = ObservedPeftModel(model)
        start = [view.weight.clone() for view in subject.layers()]
        steps(model, ids, 2)
        seen.append([(W, view.change.dense()) for W, view in zip(start, subject.layers(), strict=True)])
    for (W, aside), (V, folded) in zip(*seen, strict=True):
        assert torch.allclose(W, V, atol=1e-5 * float(W.norm()))
        assert float((aside - folded).norm()) < 0.02 * float(aside.norm())


def random_change(m, n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return WeightChange(torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator))


@pytest.mark.parametrize("shape", [(30, 20, 4), (20, 30, 4), (6, 50, 9), (50, 6, 9), (7, 7, 7), (5, 9, 1)])
def test_a_product_and_its_dense_matrix_have_the_same_values(shape):
    change = random_change(*shape)
    values, dense = change.singular_values(), WeightChange(change.dense())
    assert torch.allclose(values, dense.singular_values()[: len(values)], rtol=1e-5, atol=1e-5)
    assert len(values) == min(shape)
    assert change.norm() == pytest.approx(dense.norm(), rel=1e-6)


@pytest.mark.parametrize("shape", [(30, 20, 4), (20, 30, 4), (6, 50, 9)])
@pytest.mark.parametrize("dense", [False, True])
def test_the_leading_values_are_the_first_ones_with_zeros_after_them(shape, dense):
    product = random_change(*shape)
    change = WeightChange(product.dense()) if dense else product
    true = torch.linalg.svdvals(product.dense().double())
    for count in (1, 3, 12):
        values, size = change.leading(count)
        assert len(values) == count
        expected = (true.tolist() + [0.0] * count)[:count]
        assert values == pytest.approx(expected, rel=1e-5, abs=1e-3 * float(true[0]) if dense else 1e-5)
        assert size == pytest.approx(float(true.norm()), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_leading_values_and_raises_nothing(bad):
    for change in (random_change(8, 6, 2), WeightChange(torch.ones(8, 6)), WeightChange(torch.ones(6, 8))):
        change.left[0, 0] = bad
        values, size = change.leading(3)
        assert all(math.isnan(v) for v in values)
        assert not math.isfinite(size)
    assert WeightChange(torch.zeros(4, 3)).leading(2) == ([0.0, 0.0], 0.0)
    assert WeightChange(torch.zeros(4, 2), torch.ones(2, 5)).leading(3) == ([0.0, 0.0, 0.0], 0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_changes_keep_their_values(scale):
    change = random_change(12, 10, 3)
    scaled = WeightChange(change.left * scale, change.right)
    assert torch.allclose(scaled.singular_values() / scale, change.singular_values(), rtol=1e-5)
    assert scaled.norm() / scale == pytest.approx(change.norm(), rel=1e-5)
    dense, size = WeightChange(scaled.dense()).leading(2)
    assert [v / scale for v in dense] == pytest.approx(change.singular_values()[:2].tolist(), rel=1e-4)
    assert size / scale == pytest.approx(change.norm(), rel=1e-5)


def test_a_change_that_cancels_is_not_seen_as_more_than_its_rounding():
    change = random_change(40, 30, 3)
    cancelling = WeightChange(torch.cat([change.left, -change.left], 1), torch.cat([change.right, change.right]))
    assert float(cancelling.singular_values()[0]) < 1e-12 * change.norm()
    assert cancelling.norm() < 1e-6 * change.norm()
    nothing = WeightChange(torch.zeros(5, 2), torch.ones(2, 3))
    assert nothing.norm() == 0
    assert not nothing.singular_values().any()


def test_a_view_of_the_base_is_not_moved_by_training(ids):
    """Full fine-tuning trains the very tensors; W must stay that of the untouched base."""
    model, subject, base = subject_of("llama", "full")
    kept = copy.deepcopy(base.state_dict())
    steps(model, ids, 1)
    for view in subject.layers():
        assert torch.equal(view.weight, kept[f"{view.name}.weight"])
        assert not torch.equal(view.factors["W"], view.weight)


def test_full_fine_tuning_needs_the_untouched_model():
    with pytest.raises(InputError, match="untouched"):
        ObservedPeftModel(adapted("llama", ("full", None)))
