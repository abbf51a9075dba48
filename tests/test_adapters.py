"""What every three-factor adapter must do, on every architecture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from nlora_lab.adapters import NLoraConfig, NLoraLayer, nlora, nlora_released, slora
from nlora_lab.errors import InputError
from nlora_lab.inits import CORE_INITS
from nlora_lab.lowrank import nystrom

PRESETS = {
    "nlora": nlora,
    "nlora-optimal": lambda r, **o: nlora(r, core="optimal", **o),
    "released": nlora_released,
    **{f"slora-{init}": (lambda r, init=init, **o: slora(r, init=init, **o)) for init in CORE_INITS},
}
preset = pytest.mark.parametrize("preset", list(PRESETS))


def adapted(make_model, name, r=4, **options):
    torch.manual_seed(1)
    return get_peft_model(make_model(), PRESETS[name](r, **options)).eval()


def layers(model):
    found = [m for m in model.modules() if isinstance(m, NLoraLayer)]
    assert len(found) >= 8
    return found


@torch.no_grad()
def move(model, seed=11):
    """Move the active factors far enough that a wrong merge or an empty file would show.

    Not so far that the update dwarfs W: a network with such weights is chaotic, and then rounding shows.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(model):
        factors = [getattr(layer, f"nlora_{f}")[layer.active_adapters[0]].weight for f in "ANB"]
        product = torch.stack([torch.linalg.matrix_norm(f, 2) for f in factors]).prod()
        by = 0.3 / float((product / torch.linalg.matrix_norm(layer.base_matrix(), 2)).clamp(min=1))
        for factor in factors:
            spread = float(factor.std()) or 0.5
            factor += by * spread * torch.randn(factor.shape, generator=generator)


def tolerance(model):
    """Rounding is in units of the products, now and at the start, which can be large beside W."""
    worst = 1.0
    for layer in layers(model):
        for names in (("A", "N", "B"), ("A0", "N0", "B0")):
            if "default" in getattr(layer, f"nlora_{names[0]}"):
                A, N, B = (layer._factor(f, "default") for f in names)
                worst = max(worst, layer.scaling["default"] * float((B @ N @ A).norm() / layer.base_matrix().norm()))
    return 1e-5 * worst


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


@preset
def test_step_0_is_the_base_model_exactly_except_as_released(make_model, preset, ids):
    base, model = logits(make_model(), ids), adapted(make_model, preset)
    if preset == "released":
        assert (logits(model, ids) - base).abs().max() > 1e-6
    else:
        assert torch.equal(logits(model, ids), base)


@preset
def test_the_factors_are_what_the_derivation_says(make_model, preset):
    for layer in layers(adapted(make_model, preset)):
        W, (A, N, B) = layer.base_matrix(), (getattr(layer, f"nlora_{f}")["default"].weight for f in "ANB")
        assert A.shape == (4, W.shape[1])
        assert N.shape == (4, 4)
        assert B.shape == (W.shape[0], 4)
        if preset.startswith("slora"):
            assert not B.any()
            assert A.any()
            assert N.any()
        else:
            assert torch.equal(A, W[:4, :])
            assert torch.equal(B, W[:, :4])
            core = {"nlora": "pinv", "nlora-optimal": "optimal", "released": "block"}[preset]
            assert torch.allclose(N, nystrom(W, 4, core=core).core)


@preset
def test_only_the_three_factors_train_and_the_rest_stays_bit_for_bit(make_model, preset, ids):
    model = adapted(make_model, preset)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 3 * len(layers(model))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):  # with B = 0, A and N only move from the second step on
        model(ids, labels=ids).loss.backward()
        assert all((p.grad is not None) == (n in trained) for n, p in model.named_parameters())
        optimizer.step()
        optimizer.zero_grad()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trained


@preset
def test_disabling_gives_the_base_back_exactly(make_model, preset, ids):
    model = adapted(make_model, preset)
    move(model)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), logits(make_model(), ids))
    assert not torch.allclose(logits(model, ids), logits(make_model(), ids), atol=1e-3)


@preset
def test_merge_unmerge_and_unload(make_model, preset, ids):
    model = adapted(make_model, preset, alpha=6.0)
    move(model)
    tuned, base, close = logits(model, ids), logits(make_model(), ids), tolerance(model)
    assert (tuned - base).abs().max() > 10 * close * tuned.abs().max()
    assert torch.isfinite(tuned).all()
    model.merge_adapter(safe_merge=True)
    assert (logits(model, ids) - tuned).abs().max() <= close * tuned.abs().max()
    model.unmerge_adapter()
    assert (logits(model, ids) - tuned).abs().max() <= close * tuned.abs().max()
    merged = model.merge_and_unload()
    assert not any(isinstance(m, NLoraLayer) for m in merged.modules())
    assert (logits(merged, ids) - tuned).abs().max() <= close * tuned.abs().max()


LOAD = """
import sys, torch
sys.path.insert(0, {tests!r})
import nlora_lab.adapters
from peft import PeftModel
from support import ARCHITECTURES
torch.manual_seed(7)
base = ARCHITECTURES[{architecture!r}]().eval()
torch.manual_seed(999)
model = PeftModel.from_pretrained(base, {folder!r}).eval()
torch.save(model(torch.load({ids!r}, weights_only=True)).logits.detach(), {out!r})
"""


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("preset", ["nlora", "released", "slora-kaiming"])
def test_saved_and_loaded_in_a_new_process(tmp_path, architecture, preset, ids):
    from support import ARCHITECTURES

    def make_model():
        torch.manual_seed(7)
        return ARCHITECTURES[architecture]().eval()

    model = adapted(make_model, preset)
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    torch.save(ids, tmp_path / "ids")
    places = {"folder": str(tmp_path / "adapter"), "ids": str(tmp_path / "ids"), "out": str(tmp_path / "out")}
    code = LOAD.format(tests=str(Path(__file__).parent), architecture=architecture, **places)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    loaded = torch.load(tmp_path / "out", weights_only=True)
    assert torch.allclose(loaded, logits(model, ids), atol=1e-6)
    assert not torch.allclose(loaded, logits(make_model(), ids), atol=1e-3)


def test_without_this_package_stock_peft_refuses_the_adapter(tmp_path, ids):
    from support import tiny_llama

    get_peft_model(tiny_llama(), nlora(4)).save_pretrained(tmp_path)
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "NLORA" in done.stderr


@pytest.mark.parametrize("preset", ["nlora", "slora-kaiming"])
def test_a_second_adapter_is_whole_and_independent(make_model, preset, ids):
    model = adapted(make_model, preset)
    move(model)
    first = logits(model, ids)
    model.add_adapter("second", PRESETS["nlora"](2))
    model.set_adapter("second")
    assert torch.equal(logits(model, ids), logits(make_model(), ids))
    move(model, seed=5)
    second = logits(model, ids)
    assert not torch.allclose(second, first, atol=1e-3)
    model.set_adapter("default")
    assert torch.equal(logits(model, ids), first)
    frozen = [
        p for layer in layers(model) for d in (layer.nlora_A0, layer.nlora_N0, layer.nlora_B0) for p in d.parameters()
    ]
    assert not any(p.requires_grad for p in frozen)
    with pytest.warns(UserWarning, match="Adapter default was active"):
        model.delete_adapter("default")
    model.set_adapter("second")
    assert torch.equal(logits(model, ids), second)


def test_alpha_scales_the_update(make_model, ids):
    one, two = adapted(make_model, "released"), adapted(make_model, "released", alpha=8.0)
    for a, b in zip(layers(one), layers(two), strict=True):
        assert torch.allclose(2 * a.get_delta_weight("default"), b.get_delta_weight("default"))


def test_in_bfloat16_step_0_is_still_exact_and_training_is_finite(ids):
    from support import tiny_llama

    torch.manual_seed(7)
    base = tiny_llama().to(torch.bfloat16).eval()
    before = logits(base, ids)
    model = get_peft_model(base, nlora(4)).eval()
    assert torch.equal(logits(model, ids), before)
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_loads_with_low_cpu_memory_use(tmp_path, ids):
    from support import tiny_llama

    def make_model():
        torch.manual_seed(7)
        return tiny_llama().eval()

    model = adapted(make_model, "nlora")
    move(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.allclose(logits(loaded, ids), logits(model, ids), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"r": 0}, "r=0"),
        ({"r": 2.5}, "r=2.5"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"init": "zeros"}, "nothing can learn"),
        ({"init": "best"}, "init='best'"),
        ({"start": "warm"}, "start='warm'"),
        ({"core": "inverse", "start": "nystrom"}, "core='inverse'"),
        ({"residual": True}, "residual=True"),
    ],
)
def test_a_bad_config_is_named(options, names):
    with pytest.raises(InputError, match=names):
        NLoraConfig(**options)


def test_layers_it_cannot_sit_on_are_named():
    from support import tiny_llama

    with pytest.raises(InputError, match=r"r=33 is above .*q_proj"):
        get_peft_model(tiny_llama(), nlora(33))
    with pytest.raises(InputError, match="embed_tokens is a Embedding"):
        get_peft_model(tiny_llama(), nlora(4, target_modules=["embed_tokens"]))
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.ones(48, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="up_proj has quantised weights"):
        get_peft_model(model, slora(4, target_modules=["up_proj"]))


def test_under_bf16_autocast_the_two_products_are_not_rounded_before_they_are_subtracted(embedded):
    """On the embedded model, after a few steps: hardly further from float32 than the base model itself."""
    from nlora_lab.models import load_model

    torch.manual_seed(0)
    model = get_peft_model(load_model()[0], nlora(8)).eval()
    tokens = embedded[1](["Ana has 12 pears. She finds 5 more. Q: How many pears does Ana have? A: 12+5=17."])
    ids = torch.tensor(tokens["input_ids"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    for _ in range(3):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def error(use):
        exact = logits(use, ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return float((logits(use, ids).float() - exact).norm() / exact.norm())

    assert error(model) < 3 * error(embedded[0]) < 0.03
