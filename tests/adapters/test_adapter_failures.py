"""After any failure the base model is as it was: the same modules, weights and trainable flags."""

from __future__ import annotations

import pytest
import torch
from factories import adapted, base_model, layers, logits, move
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn

from nlora_lab.adapters import NLoraLayer, NLoraModel, inttune, nlora, slora
from nlora_lab.core.errors import InputError


def state(model):
    """Everything an injection could change: which modules, which weights, which flags."""
    modules = {name: id(module) for name, module in model.named_modules()}
    weights = {name: (id(p), p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    return modules, weights


def same(before, after):
    assert before[0] == after[0]
    assert before[1].keys() == after[1].keys()
    for name, (where, value, flag) in before[1].items():
        assert where == after[1][name][0]
        assert torch.equal(value, after[1][name][1]) or value.isnan().any()
        assert flag == after[1][name][2]


class OwnWeight(nn.Parameter):
    """As the weights of quantising libraries are: floating-point to look at, with a layout of their own."""


def own_kind(model):
    model.model.layers[1].mlp.up_proj.weight = OwnWeight(model.model.layers[1].mlp.up_proj.weight.data)


def quantised(model):
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.ones(48, 32, dtype=torch.int8), requires_grad=False)


def float8(model):
    weight = model.model.layers[1].mlp.up_proj.weight.data.to(torch.float8_e4m3fn)
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(weight, requires_grad=False)


def packed(model):
    model.model.layers[1].mlp.up_proj.qweight = torch.ones(3)


def nan(model):
    model.model.layers[1].mlp.down_proj.weight.data[3, 3] = torch.nan


def other_peft(model):
    from peft import inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(target_modules=["down_proj"]), model, "other")


def untouched(model):
    pass


FAILURES = {
    "rank above one layer": (untouched, nlora(4, rank_pattern={"1.mlp.down_proj": 40}), "r=40 .*1.mlp.down_proj"),
    "quantised": (quantised, nlora(4), r"layers\.1\.mlp\.up_proj has quantised weights \(torch.int8\).*unquantised"),
    "own kind": (own_kind, slora(4), r"up_proj has weights of type OwnWeight, quantised or sharded"),
    "float8": (float8, slora(4), r"up_proj has quantised weights \(torch.float8"),
    "packed": (packed, slora(4), r"up_proj has quantised weights"),
    "nan in a late layer": (nan, nlora(4), r"layers\.1\.mlp\.down_proj holds NaN"),
    "nan, folded": (nan, nlora(4, fold=True), r"down_proj holds NaN"),
    "embedding": (untouched, nlora(4, target_modules=["q_proj", "embed_tokens"]), "embed_tokens is a Embedding"),
    "another method's layer": (other_peft, nlora(4, target_modules=["down_proj"]), "another PEFT method"),
}


@pytest.mark.filterwarnings("ignore:You are trying to modify|Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("failure", list(FAILURES))
def test_a_failed_injection_leaves_the_base_model_untouched(failure):
    spoil, config, message = FAILURES[failure]
    model = base_model("llama")
    spoil(model)
    for i, p in enumerate(p for p in model.parameters() if p.is_floating_point()):
        p.requires_grad_(i % 3 > 0)  # a pattern of its own
    before, targets = state(model), config.target_modules
    with pytest.raises(InputError, match=message):
        get_peft_model(model, config)
    same(before, state(model))
    assert config.target_modules == targets


def test_a_tied_output_layer_is_refused_and_a_free_one_is_not(ids):
    tied = base_model("gpt2")
    before = state(tied)
    with pytest.raises(InputError, match=r"lm_head shares its weight with transformer\.wte"):
        get_peft_model(tied, nlora(4, target_modules=["lm_head", "c_attn"]))
    same(before, state(tied))
    model = get_peft_model(base_model("llama"), nlora(4, target_modules=["lm_head"]))
    assert torch.equal(logits(model, ids), logits(base_model("llama"), ids))


def test_unknown_targets_are_named():
    model = base_model("llama")
    before = state(model)
    with pytest.raises(InputError, match=r"target_modules: 'q_porj' matches no module"):
        get_peft_model(model, nlora(4, target_modules=["q_porj"]))
    same(before, state(model))


@pytest.mark.parametrize("fold", [False, True])
def test_a_failure_half_way_is_rolled_back(monkeypatch, fold):
    """An error that no check foresees, in the ninth layer."""
    model, layers_updated = base_model("llama"), []
    real = NLoraLayer.update_layer

    def failing(layer, *args, **kwargs):
        layers_updated.append(layer)
        if len(layers_updated) == 9:
            raise MemoryError("no more")
        real(layer, *args, **kwargs)

    monkeypatch.setattr(NLoraLayer, "update_layer", failing)
    before = state(model)
    with pytest.raises(MemoryError):
        get_peft_model(model, nlora(4, fold=fold))
    assert len(layers_updated) == 9
    same(before, state(model))


def test_a_failed_second_adapter_leaves_the_first_one_complete(ids):
    model = adapted("llama", ("nlora", None))
    move(model)
    tuned, before = logits(model, ids), state(model)
    with pytest.raises(InputError, match="r=40"):
        model.add_adapter("second", inttune(4, rank_pattern={"1.mlp.down_proj": 40}))
    same(before, state(model))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model, ids), tuned)
    model.add_adapter("second", inttune(4))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # PEFT, of every second adapter
def test_the_same_for_transformers_own_add_adapter(ids):
    model = base_model("llama")
    model.add_adapter(nlora(4), "first")
    move(model)
    tuned, before = logits(model, ids), state(model)
    with pytest.raises(InputError, match="r=40"):
        model.add_adapter(slora(4, rank_pattern={"1.mlp.down_proj": 40}), "second")
    same(before, state(model))
    assert list(model.peft_config) == ["first"]
    assert torch.equal(logits(model, ids), tuned)


def saved(folder, architecture="llama", config=None):
    model = get_peft_model(base_model(architecture), config or nlora(4))
    move(model)
    model.save_pretrained(folder)
    return folder


def test_an_adapter_of_another_base_names_the_shapes(tmp_path):
    from factories import tiny_llama

    saved(tmp_path)
    wider = tiny_llama(hidden_size=40).eval()
    before = state(wider)
    with pytest.raises(
        InputError, match=r"nlora_B.* is \(32, 4\) in the file and \(40, 4\) in this model.*another base"
    ):
        PeftModel.from_pretrained(wider, tmp_path)
    same(before, state(wider))
    shallow = tiny_llama(num_hidden_layers=1).eval()
    before = state(shallow)
    with pytest.raises(InputError, match=r"layers\.1\..* for which this model has no layer.*another base"):
        PeftModel.from_pretrained(shallow, tmp_path)
    same(before, state(shallow))
    deeper = adapted("llama", ("nlora", None))
    before = state(deeper)
    other = saved(tmp_path / "gpt2", "gpt2")
    with pytest.raises((InputError, NoMatchingPeftModuleError)):
        deeper.load_adapter(other, "second")
    same(before, state(deeper))
    assert list(deeper.peft_config) == ["default"]


def test_a_wrong_file_does_not_remove_the_adapter_it_was_to_replace(tmp_path, ids):
    """This happens when training is resumed from the checkpoint of another model."""
    saved(tmp_path, config=nlora(3))
    model = adapted("llama", ("nlora", None))
    move(model)
    tuned, before = logits(model, ids), state(model)
    with pytest.raises(InputError, match="another base"):
        model.load_adapter(tmp_path, "default")
    same(before, state(model))
    assert torch.equal(logits(model, ids), tuned)
    loaded = PeftModel.from_pretrained(base_model("llama"), tmp_path)  # a loaded adapter is kept as well
    saved(tmp_path / "other")
    before = state(loaded)
    with pytest.raises(InputError, match="another base"):
        loaded.load_adapter(tmp_path / "other", "default")
    same(before, state(loaded))


def test_a_file_without_its_start_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "_N0" not in k}, path)
    model = base_model("llama")
    before = state(model)
    with pytest.raises(InputError, match=r"lacks .*nlora_N0.* \(4, 4\)"):
        PeftModel.from_pretrained(model, tmp_path)
    same(before, state(model))


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("damage", ["cut short", "overwritten", "empty"])
def test_a_corrupt_adapter_file_is_found_before_anything_changes(tmp_path, damage, low):
    saved(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    complete = path.read_bytes()
    path.write_bytes({"cut short": complete[: len(complete) // 2], "overwritten": b"x" * 5000, "empty": b""}[damage])
    model = base_model("llama")
    before = state(model)
    with pytest.raises(InputError, match="not a complete adapter file"):
        PeftModel.from_pretrained(model, tmp_path, low_cpu_mem_usage=low)
    same(before, state(model))


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_merging_nan_is_refused_and_changes_nothing(merge):
    model = adapted("llama", ("nlora", None))
    layers(model)[3].nlora_B["default"].weight.data[0, 0] = torch.nan
    before = state(model)
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.o_proj.*NaN"):
        getattr(model, merge)(safe_merge=True)
    same(before, state(model))
    model.merge_adapter()  # PEFT's default does not check
    assert layers(model)[3].base_matrix().isnan().any()


def test_a_batch_of_several_adapters_is_refused_not_ignored(ids):
    model = adapted("llama", ("slora", None))
    with pytest.raises(InputError, match="adapter_names"):
        model(ids, adapter_names=["default"] * len(ids))
    assert isinstance(model.base_model, NLoraModel)
