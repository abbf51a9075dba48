"""The fold: the start is subtracted from the weight once, and added back whenever the adapter goes."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from factories import ARCHITECTURES, adapted, apart, base_logits, base_model, layers, logits, move
from peft import PeftModel, get_peft_model

from nlora_lab.adapters import inttune, nlora, save_as_lora, slora

CLOSE = 2e-5  # of the largest logit; the starts below are of W's own size
FOLDED = {
    "nlora": lambda **o: nlora(4, pivots="cross", fold=True, **o),
    "balanced": lambda **o: nlora(4, core="optimal", balance=True, fold=True, **o),
    "inttune": lambda **o: inttune(4, pivots="cross", fold=True, **o),
}
folded = pytest.mark.parametrize("name", list(FOLDED))


def make(architecture, name, **options):
    return get_peft_model(base_model(architecture), FOLDED[name](**options)).eval()


def weights(model):
    return [layer.base_matrix().detach().clone() for layer in layers(model)]


@folded
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_step_0_is_unchanged_to_rounding_and_disabling_gives_the_residual(architecture, name, ids):
    base, model = base_model(architecture), make(architecture, name, alpha=6.0)
    assert apart(logits(model, ids), logits(base, ids)) < CLOSE
    plain = get_peft_model(base_model(architecture), FOLDED[name](alpha=6.0))
    for config in plain.peft_config.values():
        assert config.fold
    originals = [m.weight for m in base.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    for layer in layers(model):
        start = layer.start_weight("default")
        W = layer.base_matrix() + start
        assert any(
            o.shape == W.shape and torch.allclose(o, W, atol=1e-5) for o in (*originals, *(o.T for o in originals))
        )
    for layer in layers(model):
        layer.nlora_N["default"].weight.data.mul_(1.5)  # moved, so that an active adapter would show
    assert apart(logits(model, ids), logits(base, ids)) > 1e-2
    with model.disable_adapter():
        assert apart(logits(model, ids), logits(base, ids)) < CLOSE  # W again, to rounding
    assert apart(logits(model, ids), logits(base, ids)) > 1e-2


@folded
def test_folded_and_unfolded_train_alike(name, ids):
    """The same losses, step for step."""
    losses = {}
    for fold in (False, True):
        config = FOLDED[name]()
        config.fold = fold
        model = get_peft_model(base_model("llama"), config)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
        losses[fold] = []
        for _ in range(8):
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[fold].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    assert losses[True][-1] < losses[True][0] - 0.05


@folded
def test_merge_unmerge_delete_and_unload_add_the_start_back(name, ids):
    base = base_logits("llama", ids)
    model = make("llama", name, alpha=6.0)
    move(model)
    tuned, residual = logits(model, ids), weights(model)
    assert apart(tuned, base) > 1e-2
    model.merge_adapter()
    assert apart(logits(model, ids), tuned) < CLOSE
    model.unmerge_adapter()
    assert apart(logits(model, ids), tuned) < CLOSE
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(model), residual, strict=True))
    unloaded = copy.deepcopy(model).unload()
    assert apart(logits(unloaded, ids), base) < CLOSE
    merged = copy.deepcopy(model).merge_and_unload()
    assert apart(logits(merged, ids), tuned) < CLOSE
    model.delete_adapter("default")  # a PeftModel without any adapter does not run, PEFT's own neither
    assert apart(logits(model.base_model.model, ids), base) < CLOSE


@folded
def test_a_second_adapter_does_not_see_the_fold(name, ids):
    base = base_logits("llama", ids)
    model = make("llama", name)
    move(model)
    tuned = logits(model, ids)
    model.add_adapter("second", nlora(3))
    model.add_adapter("third", nlora(2, fold=True, pivots="qr"))
    for other in ("second", "third"):
        model.set_adapter(other)
        assert apart(logits(model, ids), base) < CLOSE  # it starts from W, not from the residual
    first = dict(zip("ABC", layers(model), strict=False))["A"]
    W = base_model("llama").model.layers[0].self_attn.q_proj.weight
    assert torch.allclose(first.original_matrix(), W, atol=1e-5)
    model.set_adapter("default")
    assert apart(logits(model, ids), tuned) < CLOSE
    with pytest.warns(UserWarning, match="active which is now deleted"):
        model.delete_adapter("default")
    model.set_adapter("second")
    assert apart(logits(model, ids), base) < CLOSE
    assert apart(logits(model.unload(), ids), base) < CLOSE


@folded
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_on_the_original_base_folds_what_was_folded(name, low, dtype, ids, tmp_path):
    model = make("llama", name)
    move(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model("llama", dtype), tmp_path, low_cpu_mem_usage=low).eval()
    assert all("default" in layer.folds.applied for layer in layers(loaded))  # at once, not at the first forward
    close = CLOSE if dtype == torch.float32 else 0.05
    assert apart(logits(loaded, ids), logits(model, ids)) < close
    for a, b in zip(layers(loaded), layers(model), strict=True):
        for ours, theirs in zip(a.start_factors("default"), b.start_factors("default"), strict=True):
            assert torch.equal(ours, theirs)
    assert apart(logits(loaded, ids), base_logits("llama", ids)) > 1e-2


def test_a_fold_with_drawn_pivots_is_that_of_the_file(ids, tmp_path):
    """The fold uses the pivots of the file, not those that another seed would draw."""
    torch.manual_seed(1)
    model = get_peft_model(base_model("llama"), nlora(4, pivots="random", core="optimal", fold=True)).eval()
    move(model)
    model.save_pretrained(tmp_path)
    for low in (False, True):
        base = base_model("llama")
        torch.manual_seed(2)
        loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low).eval()
        assert apart(logits(loaded, ids), logits(model, ids)) < CLOSE
        assert apart(logits(loaded.unload(), ids), base_logits("llama", ids)) < CLOSE


def test_transformers_own_loading_folds_too(ids, tmp_path):
    torch.manual_seed(1)
    model = get_peft_model(base_model("llama"), nlora(4, pivots="random", core="optimal", fold=True)).eval()
    move(model)
    model.save_pretrained(tmp_path)
    base = base_model("llama")
    torch.manual_seed(2)
    base.load_adapter(str(tmp_path))
    assert apart(logits(base, ids), logits(model, ids)) < CLOSE
    base.delete_adapter("default")
    assert apart(logits(base, ids), base_logits("llama", ids)) < CLOSE


@pytest.mark.parametrize("assign", [False, True])
def test_a_complete_state_dict_comes_already_folded(assign, ids):
    """A checkpoint of the complete model holds the folded weight, which must not be folded twice."""
    model = make("llama", "nlora")
    move(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = get_peft_model(base_model("llama"), nlora(4, pivots="qr", fold=True)).eval()
    other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert torch.equal(logits(other, ids), logits(model, ids))
    assert apart(logits(other.unload(), ids), base_logits("llama", ids)) < CLOSE


@folded
def test_export_is_for_the_original_base(name, ids, tmp_path):
    model = make("llama", name, alpha=6.0)
    move(model)
    lora = PeftModel.from_pretrained(base_model("llama"), save_as_lora(model, tmp_path)).eval()
    assert apart(logits(lora, ids), logits(model, ids)) < CLOSE


def test_moving_and_copying_the_model_does_not_fold_again(ids):
    model = make("llama", "nlora")
    move(model)
    tuned = logits(model, ids)
    assert apart(logits(copy.deepcopy(model), ids), tuned) == 0
    twice = copy.deepcopy(model).double().float()
    assert torch.equal(logits(twice, ids), tuned)


def test_a_failed_injection_beside_a_fold_leaves_it(ids):
    model = make("llama", "nlora")
    tuned, residual = logits(model, ids), weights(model)
    with pytest.raises(ValueError, match="r=40"):
        model.add_adapter("second", slora(40))
    assert torch.equal(logits(model, ids), tuned)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), residual, strict=True))
    assert adapted("llama", ("slora", None)).peft_config["default"].fold is False
