"""The categories of PEFT's own test suite, run on our configs.

docs/adapters.md lists the categories that do not apply to this method, with reasons. A test below keeps that list and
the code in step.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from factories import (
    PRESETS,
    ROOT,
    adapted,
    apart,
    base_logits,
    base_model,
    layers,
    logits,
    move,
    tiny_llama,
    tolerance,
)
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import nn

from nlora_lab.adapters import NLoraConfig, NLoraLayer, NLoraModel, nlora, slora
from nlora_lab.core.errors import InputError

presets = pytest.mark.parametrize("name", list(PRESETS))
architectures = pytest.mark.parametrize("architecture", ["llama", "gpt2"])


def make(name, architecture="llama", r=4, **options):
    torch.manual_seed(1)
    return get_peft_model(base_model(architecture), PRESETS[name](r, **options)).eval()


class Block(nn.Module):
    """A model with a config-less structure, as PEFT's custom-model tests use."""

    def __init__(self):
        super().__init__()
        self.lin0, self.lin1, self.norm = nn.Linear(6, 10), nn.Linear(10, 6), nn.LayerNorm(10)

    def forward(self, x):
        return self.lin1(torch.relu(self.norm(self.lin0(x))))


@presets
def test_config_round_trip_pickle_and_unknown_keys(name, tmp_path):
    config = PRESETS[name](4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    config.save_pretrained(tmp_path)
    assert NLoraConfig.from_pretrained(tmp_path).to_dict() == {**config.to_dict()}
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is NLoraConfig
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 4', '"r": 4, "from_the_future": true'))
    with pytest.warns(UserWarning, match="from_the_future"):  # PEFT's forward compatibility
        NLoraConfig.from_pretrained(tmp_path)


@presets
@architectures
def test_attributes_and_prepare_for_training(name, architecture, ids):
    model = make(name, architecture)
    assert hasattr(model, "save_pretrained")
    assert hasattr(model, "from_pretrained")
    assert hasattr(model, "push_to_hub")
    embedded = model.get_input_embeddings()(ids)
    assert not embedded.requires_grad
    model.enable_input_require_grads()
    assert model.get_input_embeddings()(ids).requires_grad


@presets
def test_the_model_status_is_regular(name):
    status = make(name).get_model_status()
    assert status.enabled
    assert status.active_adapters == status.available_adapters == ["default"]
    assert status.merged_adapters == []
    assert status.requires_grad == {"default": "irregular"} or status.requires_grad == {"default": True}
    assert status.devices == {"default": ["cpu"]}


@presets
def test_loading_with_is_trainable_trains_what_trains(name, ids, tmp_path):
    model = make(name)
    move(model)
    model.save_pretrained(tmp_path)
    expected = {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = PeftModel.from_pretrained(base_model("llama"), tmp_path)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen.training
    trainable = PeftModel.from_pretrained(base_model("llama"), tmp_path, is_trainable=True)
    assert {n for n, p in trainable.named_parameters() if p.requires_grad} == expected


@presets
@architectures
@pytest.mark.parametrize("low", [False, True])
def test_save_pretrained_keeps_the_base_name_and_the_state(name, architecture, low, ids, tmp_path):
    model = make(name, architecture)
    move(model)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (tmp_path / "config.json").exists()
    loaded = PeftModel.from_pretrained(base_model(architecture), tmp_path, low_cpu_mem_usage=low)
    ours, theirs = (get_peft_model_state_dict(m, save_embedding_layers=False) for m in (model, loaded))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@presets
def test_save_selected_adapters_into_their_own_folders(name, ids, tmp_path):
    model = make(name)
    model.add_adapter("other", PRESETS[name](2))
    model.save_pretrained(tmp_path, selected_adapters=["other"])
    assert not (tmp_path / "adapter_config.json").exists()
    assert (tmp_path / "other" / "adapter_config.json").is_file()
    with pytest.raises(ValueError, match="invalid `selected_adapters`"):
        model.save_pretrained(tmp_path, selected_adapters=["absent"])


@presets
def test_loading_several_adapters_into_one_model(name, ids, tmp_path):
    tuned = {}
    for seed, adapter in enumerate(("one", "two")):
        model = make(name)
        move(model, seed=seed)
        tuned[adapter] = logits(model, ids)
        model.save_pretrained(tmp_path / adapter)
    model = PeftModel.from_pretrained(base_model("llama"), tmp_path / "one", adapter_name="one")
    result = model.load_adapter(tmp_path / "two", "two")
    assert result.missing_keys == []
    assert result.unexpected_keys == []
    for adapter in ("two", "one"):
        model.set_adapter(adapter)
        assert apart(logits(model, ids), tuned[adapter]) < 1e-6
    with pytest.raises(ValueError, match="absent"):
        model.set_adapter("absent")


@presets
def test_the_state_dict_of_an_injected_model(name, ids):
    """inject_adapter_in_model and set_peft_model_state_dict, as diffusers uses them."""
    model, config = base_model("llama"), PRESETS[name](4)
    torch.manual_seed(1)
    model = inject_adapter_in_model(config, model)
    move(model)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert state
    for low in (False, True):
        other = inject_adapter_in_model(PRESETS[name](4), base_model("llama"), low_cpu_mem_usage=low)
        result = set_peft_model_state_dict(other, state, low_cpu_mem_usage=low)
        assert result.unexpected_keys == []
        assert torch.equal(logits(other, ids), logits(model, ids))
    from_state = inject_adapter_in_model(PRESETS[name](4), base_model("llama"), state_dict=state)
    assert sum(isinstance(m, NLoraLayer) for m in from_state.modules()) == 14


def test_a_base_layer_whose_name_holds_the_prefix(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.nlora_A, self.lin = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.lin(self.nlora_A(x))

    torch.manual_seed(0)
    net = Named()
    model = get_peft_model(copy.deepcopy(net), nlora(2, target_modules=["lin"]))
    assert not model.base_model.model.nlora_A.weight.requires_grad
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(net, tmp_path)
    x = torch.randn(3, 5)
    assert torch.equal(loaded(x), model(x))


@presets
@architectures
def test_merge_layers_saved_and_loaded_as_a_plain_model(name, architecture, ids, tmp_path):
    model = make(name, architecture)
    move(model)
    tuned, close = logits(model, ids), tolerance(model)
    merged = model.merge_and_unload()
    assert not hasattr(merged, "peft_config")
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert apart(logits(again, ids), tuned) <= close


@presets
def test_merging_fp16(name, ids):
    torch.manual_seed(1)
    model = get_peft_model(base_model("llama", torch.float16), PRESETS[name](4))
    merged = model.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {torch.float16}
    assert torch.isfinite(logits(merged, ids)).all()


@presets
def test_merging_several_adapters_one_after_the_other(name, ids):
    model = make(name, pivots="cross") if name in ("nlora", "inttune") else make(name)
    model.add_adapter("second", PRESETS[name](3))
    base = base_logits("llama", ids)
    tuned = {}
    for adapter in ("default", "second"):
        model.set_adapter(adapter)
        move(model, seed=len(adapter))
        tuned[adapter] = logits(model, ids)
    close = tolerance(model) + 1e-4
    both = copy.deepcopy(model)
    both.base_model.set_adapter(["default", "second"])
    together = logits(both, ids)
    both.merge_adapter()
    assert apart(logits(both, ids), together) < close
    both.unmerge_adapter()
    assert apart(logits(both, ids), together) < close
    model.set_adapter("default")
    model.merge_adapter()
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    with pytest.warns(UserWarning, match="Already following adapters were merged default"):
        model.merge_adapter(adapter_names=["second"])
    assert apart(logits(model, ids), together) < close
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("default")
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    assert apart(logits(model, ids), tuned["default"]) < close
    only = model.merge_and_unload(adapter_names=["second"])
    assert apart(logits(only, ids), tuned["second"]) < close
    assert apart(tuned["second"], base) > 1e-3


@presets
def test_setting_an_adapter_on_a_merged_model_unmerges_first(name, ids):
    model = make(name)
    move(model)
    tuned, close = logits(model, ids), tolerance(model)
    model.add_adapter("second", PRESETS[name](2))
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        model.set_adapter("second")
    model.set_adapter("default")
    assert apart(logits(model, ids), tuned) <= close
    model.merge_adapter()
    with model.disable_adapter():
        assert apart(logits(model, ids), base_logits("llama", ids)) <= close


@presets
def test_unload_gives_the_base_back_and_can_be_wrapped_again(name, ids):
    model = make(name)
    move(model)
    base = model.unload()
    assert torch.equal(logits(base, ids), base_logits("llama", ids))
    again = get_peft_model(base, PRESETS[name](3))
    assert sum(isinstance(m, NLoraLayer) for m in again.modules()) == 14


@presets
@architectures
def test_training_with_layer_indexing(name, architecture, ids):
    targets = ["q_proj", "down_proj"] if architecture == "llama" else ["c_attn"]
    pattern = {"llama": "layers", "gpt2": "h"}[architecture]
    model = make(name, architecture, target_modules=targets, layers_to_transform=[0], layers_pattern=[pattern])
    model(ids, labels=ids).loss.backward()
    with_grad = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_grad
    assert all(f".{pattern}.0." in n and "nlora_" in n for n in with_grad)


@presets
def test_passing_input_embeds_and_generating(name, ids):
    model = make(name, task_type="CAUSAL_LM")
    move(model)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded).logits.detach(), logits(model, ids))
    out = model.generate(input_ids=ids, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert out.shape == (3, 14)


@presets
def test_bf16_inference_and_autocast_training(name, ids):
    model = make(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    half = get_peft_model(base_model("llama", torch.bfloat16), PRESETS[name](4), autocast_adapter_dtype=False)
    assert logits(half, ids).dtype == torch.bfloat16


@presets
def test_deep_copy_and_whole_model_pickle(name, ids, tmp_path):
    model = make(name)
    move(model)
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(logits(other, ids), logits(model, ids))


@presets
def test_delete_active_inactive_and_unknown(name, ids):
    model = make(name)
    model.add_adapter("second", PRESETS[name](2))
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("second")
    model.add_adapter("third", PRESETS[name](2))
    with pytest.warns(UserWarning, match="default was active"):
        model.delete_adapter("default")
    assert model.active_adapters == ["third"]
    for layer in layers(model):
        assert set(layer.r) == set(layer.scaling) == {"third"}
        assert "default" not in layer.frozen_peft_weight_names


@presets
def test_the_same_name_twice_and_another_kind_are_refused(name):
    model = make(name)
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", PRESETS[name](2))
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("plain", LoraConfig(target_modules=["q_proj"]))
    assert list(model.peft_config) == ["default"]


@presets
def test_requires_grad_follows_the_active_adapter_on_different_layers(name):
    model = make(name, target_modules=["q_proj"])
    model.add_adapter("second", PRESETS[name](2, target_modules=["v_proj"]))
    expected = {"default": "q_proj", "second": "v_proj"}
    for adapter in ("default", "second", "default"):
        model.set_adapter(adapter)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained
        assert all(expected[adapter] in n and f".{adapter}." in n for n in trained)


@presets
def test_a_custom_model_with_biases(name):
    torch.manual_seed(3)
    net, x = Block(), torch.randn(4, 6)
    base = net(x)
    model = get_peft_model(copy.deepcopy(net), PRESETS[name](3, target_modules=["lin0", "lin1"]))
    assert isinstance(model.base_model, NLoraModel)
    with model.disable_adapter():
        assert torch.equal(model(x), base)
    model(x).sum().backward()
    assert model.base_model.model.lin0.bias is not None  # the base layer's, as transformers' code may ask
    before = model(x).detach()
    assert apart(model.merge_and_unload()(x).detach(), before) < 1e-5


def test_pefts_own_conversion_to_lora_by_svd(ids):
    model = adapted("llama", ("slora", None))
    move(model)
    config, state = convert_to_lora(model, rank=4)
    lora = get_peft_model(base_model("llama"), config).eval()
    set_peft_model_state_dict(lora, state)
    assert apart(logits(lora, ids), logits(model, ids)) < 1e-4


def test_rank_patterns_that_match_nothing_are_reported():
    with pytest.raises(InputError, match="rank_pattern: 'no_such' matches no module"):
        get_peft_model(base_model("llama"), slora(4, rank_pattern={"no_such": 2}))


def test_excluded_modules_that_match_nothing_are_reported():
    with pytest.raises(InputError, match="exclude_modules: 'no_such' matches no module"):
        get_peft_model(base_model("llama"), slora(4, exclude_modules=["no_such"]))


def test_what_the_documentation_calls_not_applicable_is_not_there():
    rows = (ROOT / "docs" / "adapters.md").read_text().split("## Which parts of PEFT do not apply, and why")[1]
    assert "| `add_weighted_adapter` |" in rows
    assert not hasattr(get_peft_model(tiny_llama(), slora(4)).base_model, "add_weighted_adapter")
