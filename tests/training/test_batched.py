"""Lifted adapters on stacked layers make the function, and the gradients, that they make in the model of PEFT."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from factories import ADAPTERS, BROKEN_IN_PEFT, apart, move, variant_id
from factories import adapted as adapted_model
from factories import base_model as plain_model
from torch import nn

from nlora_lab.core.devices import Device
from nlora_lab.evaluation.generation import greedy
from nlora_lab.methods.table import METHODS
from nlora_lab.runs import resolution
from nlora_lab.runs.config import RunConfig
from nlora_lab.training import measurement, setup
from nlora_lab.training.batched import trainer
from nlora_lab.training.batched.adapters import CannotBatch, ExtractedAdapter, update
from nlora_lab.training.batched.model import BatchedLinear, BatchedModel, ObservedBatchedAdapter, _Product
from nlora_lab.training.layer_views import ObservedPeftModel
from nlora_lab.training.loop import fine_tune
from nlora_lab.training.races import race

ARCHITECTURES = ("llama", "gpt2", "neox")
QUICK = {"steps": 3, "batch_size": 4, "task": "entailment"}
WORKING = [
    (architecture, v)
    for architecture in ARCHITECTURES
    for v in ADAPTERS
    if v[1] in (None, "kaiming", "orthogonal") and (v[0], architecture) not in BROKEN_IN_PEFT
]


@pytest.fixture
def unmeasured(monkeypatch):
    """Runs are trained, but nothing is asked of them at the end, which takes most of a short run's time."""
    monkeypatch.setattr(measurement, "measure_result", lambda *args: None)


def base_model(architecture):
    """The kit's, without dropout: a model that has some is refused."""
    model = plain_model(architecture)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def adapted(architecture, chosen, seed=1):
    return adapted_model(architecture, chosen, seed, base=base_model(architecture))


def other(base, **options):
    """The method ``base`` with more options of its PEFT config, whatever they are."""
    build = METHODS[base].build
    given = {**build.keywords, "variant": {**build.keywords["variant"], **options}}
    return replace(METHODS[base], name="mine", build=partial(build.func, **given))


def case_id(case):
    return f"{case[0]}-{variant_id(case[1])}"


def pair(case, seed=1):
    """A PEFT model away from its start, and the same adapter lifted out of it."""
    architecture, chosen = case
    model = adapted(architecture, chosen, seed=seed)
    adapter = ExtractedAdapter(model, base_model(architecture))
    move(model, seed)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for shape, letters in adapter._names.items():
            for factor, names in letters.items():
                adapter.factors[shape][factor].copy_(torch.stack([own[name] for name in names]))
    return model, adapter


def loss(logits):
    """Something with a gradient of its own at every logit."""
    return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()


@pytest.mark.parametrize("case", WORKING, ids=case_id)
def test_an_adapter_on_the_stack_has_the_logits_gradients_and_weights_of_pefts(case, ids):
    model, adapter = pair(case)
    stack = BatchedModel(base_model(case[0]), [adapter]).eval()
    with stack.active([adapter]):
        logits = stack(input_ids=ids).logits
        loss(logits).backward()
    expected = model(input_ids=ids).logits
    loss(expected).backward()
    assert apart(logits.detach(), expected.detach()) < 1e-4
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    size = torch.stack([g.norm() for g in grads.values()]).norm()
    for shape, letters in adapter._names.items():
        for factor, names in letters.items():
            for name, grad in zip(names, adapter.factors[shape][factor].grad, strict=True):
                assert (grad - grads[name]).norm() < 1e-3 * grads[name].norm() + 1e-6 * size, name
    assert list(adapter.weights()) == list(grads)
    own = dict(model.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in adapter.weights().items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_company_changes_nothing_but_rounding(architecture, ids):
    """All methods at once, their parts of the batch different: each part is what that adapter gives alone."""
    cases = [case for case in WORKING if case[0] == architecture]
    adapters = [pair(case, seed=i)[1] for i, case in enumerate(cases)]
    stack = BatchedModel(base_model(architecture), adapters).eval()
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randint(0, 97, (len(adapters), *ids.shape), generator=generator)

    def grads():
        return [[p.grad.clone() for p in a.parameters()] for a in adapters]

    with stack.active(adapters):
        logits = stack(input_ids=inputs.flatten(0, 1)).logits.unflatten(0, inputs.shape[:2])
        sum(loss(part) for part in logits).backward()
    together = grads()
    for i, adapter in enumerate(adapters):
        for p in adapter.parameters():
            p.grad = None
        with stack.active([adapter]):
            own = stack(input_ids=inputs[i]).logits
            loss(own).backward()
        assert apart(logits[i].detach(), own.detach()) < 1e-5
    for here, alone in zip(together, grads(), strict=True):
        scale = max(float(g.norm()) for g in alone)
        for a, b in zip(here, alone, strict=True):
            assert float((a - b).norm()) < 1e-4 * scale


@pytest.mark.parametrize("case", WORKING, ids=case_id)
def test_an_exact_start_is_the_base_bit_for_bit_and_the_base_comes_back(case, ids):
    model, base = adapted(*case), base_model(case[0])
    adapter = ExtractedAdapter(model, base)
    stack = BatchedModel(base, [adapter]).eval()
    with torch.no_grad():
        expected = base_model(case[0])(input_ids=ids).logits
        untouched = stack(input_ids=ids).logits
        with stack.active([adapter, adapter]):
            started = stack(input_ids=ids.repeat(2, 1)).logits
            with stack.disable_adapter():
                assert torch.equal(stack(input_ids=ids).logits, untouched)
        assert torch.equal(stack(input_ids=ids).logits, untouched)
    assert apart(untouched, expected) < 1e-5
    with stack.single(adapter):
        alone = stack(input_ids=ids).logits
    if METHODS[case[1][0]].step0 == "exact":
        assert torch.equal(alone, untouched)
    if METHODS[case[1][0]].step0 != "changed":
        assert apart(started[: len(ids)], untouched) < 1e-3


def test_one_adapter_that_is_lost_takes_no_other_with_it(ids):
    adapters = [pair(("llama", (name, None)), seed=i)[1] for i, name in enumerate(("lora", "slora", "dora", "lora"))]
    stack = BatchedModel(base_model("llama"), adapters).eval()

    def gradients():
        for adapter in adapters:
            for p in adapter.parameters():
                p.grad = None
        with stack.active(adapters):
            logits = stack(input_ids=ids.repeat(4, 1)).logits
            sum(loss(part) for part in logits.unflatten(0, (4, -1))).backward()
        return [[p.grad.clone() for p in a.parameters()] for a in adapters]

    before = gradients()
    with torch.no_grad():
        adapters[1].parameters()[0].fill_(float("nan"))
    after = gradients()
    assert not all(g.isfinite().all() for g in after[1])
    for i in (0, 2, 3):
        for a, b in zip(before[i], after[i], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("biased", [True, False])
def test_the_product_has_the_gradient_of_its_formula(biased):
    torch.manual_seed(0)

    def some(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    x, weight = some(4, 5, 6), some(7, 6).detach()
    bias = some(7).detach() if biased else None
    gain = some(1, 1, 7)
    parts = [some(2, 7, 3), some(2, 3, 6), None, some(1, 7, 2), some(1, 2, 6), gain, some(1, 7, 1), some(1, 1, 6), None]
    assert torch.autograd.gradcheck(lambda *p: _Product.apply(p[0], weight, bias, *p[1:]), (x, *parts))
    by_hand = torch.cat([
        x[:2] @ weight.T + x[:2] @ parts[1].mT @ parts[0].mT,
        (x[2:3] @ weight.T + x[2:3] @ parts[4].mT @ parts[3].mT) * gain,
        x[3:] @ weight.T + x[3:] @ parts[7].mT @ parts[6].mT,
    ])  # fmt: skip
    by_hand = by_hand if bias is None else by_hand + bias
    torch.testing.assert_close(_Product.apply(x, weight, bias, *parts), by_hand)


def test_frozen_factors_get_no_gradient(ids):
    _, adapter = pair(("llama", ("lora-xs", None)))
    stack = BatchedModel(base_model("llama"), [adapter]).eval()
    with stack.active([adapter]):
        loss(stack(input_ids=ids).logits).backward()
    for factors in adapter.factors.values():
        assert factors["A"].grad is None
        assert factors["B"].grad is None
        assert factors["N"].grad.abs().sum() > 0
    assert all(p.grad is None for p in stack.parameters())


def test_a_stack_writes_text_as_the_model_of_peft_does(embedded):
    _, tokenizer = embedded
    prompts = ["Ana has 3 pears. She buys 4 more. Q: How many pears does Ana have? A:", "Ben has 2 hats."]
    model, _ = setup.build(RunConfig(method="nlora-released"))  # changed from the start
    base = setup.load_model()[0]
    stack = BatchedModel(base, [adapter := ExtractedAdapter(model, base)]).eval()
    with stack.single(adapter):
        said = greedy(stack, tokenizer, prompts, 12)
    assert said == greedy(model.eval(), tokenizer, prompts, 12)
    assert said != greedy(stack, tokenizer, prompts, 12)  # outside of it, the base


@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "slora", "nlora", "inttune", "nlora-released"])
def test_a_look_at_the_stack_sees_what_a_look_at_pefts_layers_sees(name, ids):
    architecture = "gpt2"
    model, base = adapted(architecture, (name, None)), base_model(architecture)
    theirs = ObservedPeftModel(model, base if METHODS[name].writes_base else None)
    adapter = ExtractedAdapter(model, base_model(architecture))
    move(model)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for shape, letters in adapter._names.items():
            for factor, names in letters.items():
                adapter.factors[shape][factor].copy_(torch.stack([own[n] for n in names]))
    stack = BatchedModel(base_model(architecture), [adapter]).eval()
    with stack.active([adapter]):
        loss(stack(input_ids=ids).logits).backward()
    loss(model(input_ids=ids).logits).backward()
    mine = list(ObservedBatchedAdapter(stack, adapter).layers())
    expected_views = list(theirs.layers())
    assert [v.name for v in mine] == [v.name for v in expected_views]
    assert len(mine) == 8
    for a, b in zip(mine, expected_views, strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-5, atol=1e-5)
        assert set(a.factors) == set(b.factors) == set(a.gradients) == set(b.gradients)
        assert all(torch.equal(a.factors[f], b.factors[f]) for f in a.factors)
        assert not any(t.requires_grad for t in (*a.factors.values(), *a.gradients.values()))
        dense, expected = a.change.dense(), b.change.dense()
        assert float((dense - expected).norm()) < 1e-4 * float(expected.norm() + a.weight.norm())
        assert a.change.norm() == pytest.approx(b.change.norm(), rel=1e-3)


def test_a_start_that_is_not_what_the_weight_lacks_is_refused():
    model = adapted("llama", ("pissa", None))
    layer = next(m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "get_base_layer"))
    with torch.no_grad():
        layer.get_base_layer().weight += 0.1
    with pytest.raises(CannotBatch, match="not W less the start"):
        ExtractedAdapter(model, base_model("llama"))


@pytest.mark.parametrize(
    ("base", "options", "why"),
    [
        ("nlora", {"fold": True}, "folded"),
        ("slora", {"dropout": 0.1}, "drops out"),
        ("lora", {"modules_to_save": ["lm_head"]}, "more than its factors"),
        ("lora", {"rank_pattern": {"q_proj": 2}}, "scales its layers differently"),
        ("slora", {"rank_pattern": {"q_proj": 2}}, "one rank"),
    ],
)
def test_an_adapter_that_is_more_than_an_update_is_refused(monkeypatch, base, options, why):
    monkeypatch.setitem(METHODS, "mine", other(base, **options))
    with pytest.raises(CannotBatch, match=why):
        ExtractedAdapter(adapted("llama", ("mine", None)), base_model("llama"))


def test_variants_that_cannot_be_stacked_run_alone_between_those_that_can(unmeasured, monkeypatch):
    made = {
        "folded": other("nlora", fold=True),
        "some": other("lora", exclude_modules=["q_proj"]),
    }
    for name, method in made.items():
        monkeypatch.setitem(METHODS, name, method)
    configs = [RunConfig(method=m, **QUICK) for m in ("lora", "folded", "slora", "some")]
    runs = race(configs)
    assert [r.config for r in runs] == configs
    assert [r.together for r in runs] == [2, 1, 2, 1]


def test_a_layer_that_sees_only_some_tokens_is_noticed_and_the_race_goes_one_by_one(unmeasured, monkeypatch, ids):
    left, right = torch.zeros(2, 4, 1), torch.zeros(2, 1, 6)
    layer = BatchedLinear(nn.Linear(6, 4))
    layer.groups, layer.expected_rows = [(left, right, None)], {4, 12}
    assert layer(torch.ones(4, 3, 6)).shape == (4, 3, 4)
    assert layer(torch.ones(4, 6)).shape == (4, 4)
    with pytest.raises(CannotBatch, match="all tokens"):
        layer(torch.ones(5, 6))

    def partly(self, **inputs):
        for stacked in self.layers.values():
            stacked.expected_rows = {1}
        return self.model(**inputs)

    monkeypatch.setattr(BatchedModel, "forward", partly)
    heard = []
    runs = race([RunConfig(method=m, **QUICK) for m in ("lora", "slora")], on_step=lambda c, s: heard.append(c.method))
    assert [r.together for r in runs] == [1, 1]
    assert heard == ["lora"] * 3 + ["slora"] * 3


def test_how_many_go_through_the_model_at_once_makes_no_difference(unmeasured, monkeypatch):
    names = ("lora", "nlora-core", "dora", "inttune")
    configs = [RunConfig(method=m, seed=i % 2, lr=1e-3, **QUICK) for i, m in enumerate(names)]
    histories = []
    for tokens in (1, 300, 10**9):
        monkeypatch.setattr(trainer, "CPU_TOKENS", tokens)
        histories.append([[s.loss for s in run.steps] for run in race(configs)])
    for history in histories[1:]:
        for a, b in zip(history, histories[0], strict=True):
            assert a == pytest.approx(b, rel=1e-5)


def test_under_autocast_a_race_is_the_runs_one_by_one_to_its_rounding(unmeasured, monkeypatch):
    def half(wanted=None):
        return Device("cpu", "bf16", "CPU, bfloat16 autocast")

    monkeypatch.setattr(resolution, "find_device", half)
    names = ("lora", "slora", "nlora-core", "pissa", "dora", "inttune")
    runs = race([RunConfig(method=m, lr=1e-3, **QUICK) for m in names])
    for run in runs:
        assert run.together == len(names)
        assert run.device == "CPU, bfloat16 autocast"
        alone = fine_tune(run.config)
        assert [s.loss for s in run.steps] == pytest.approx([s.loss for s in alone.steps], rel=3e-2)
        assert run.metrics["step0_change"] == pytest.approx(alone.metrics["step0_change"], abs=1e-5)
    first = {run.steps[0].loss for run in runs if METHODS[run.config.method].step0 == "exact"}
    assert len(first) == 1  # differences are zero in any precision


def test_updates_of_a_moved_adapter_are_the_dense_formula():
    torch.manual_seed(0)
    A, N, B = (torch.randn(2, *s, dtype=torch.float64) for s in ((3, 6), (3, 3), (5, 3)))
    A0, N0, B0 = (torch.randn_like(t) for t in (A, N, B))
    W = [torch.randn(5, 6, dtype=torch.float64) for _ in range(2)]
    expected = {
        (True, "none"): B @ N @ A, (False, "none"): B @ A, (True, "N"): B @ (N - N0) @ A,
        (True, "ANB"): B @ N @ A - B0 @ N0 @ A0, (False, "AB"): B @ A - B0 @ A0,
    }  # fmt: skip
    for (core, kept), dense in expected.items():
        now = {"A": A, "N": N, "B": B} if core else {"A": A, "B": B}
        start = {f: t for f, t in {"A": A0, "N": N0, "B": B0}.items() if f in kept and kept != "none"}
        left, right, gain = update(now, start, 0.5, W)
        assert gain is None
        torch.testing.assert_close(left @ right, 0.5 * dense)
    m = torch.rand(2, 5, dtype=torch.float64)
    left, right, gain = update({"A": A, "B": B, "m": m}, {}, 0.5, W)
    moved = torch.stack(W) + 0.5 * B @ A
    torch.testing.assert_close(gain[:, 0], m / moved.norm(dim=2))
