"""Checkpoints and models whose tensors are not the matrices themselves."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from factories import tiny_gpt2, tiny_llama, tiny_mixtral
from safetensors.torch import save_file
from torch import nn

from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.models.safetensors import GATE_UP, find_transposed
from nlora_lab.models.weights import list_weights

W = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
INTEGERS = {dtype: torch.ones(8, 4, dtype=dtype) for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32)}
LAYOUTS = {
    "MLX": {"a.weight": torch.ones(8, 2, dtype=torch.uint32), "a.scales": W[:, :2].half(), "a.biases": W[:, :2].half()},
    "int8": {"a.weight": INTEGERS[torch.int8], "a.SCB": torch.ones(8)},
    "bnb 4 bit": {"a.weight": torch.ones(64, 1, dtype=torch.uint8), "a.weight.absmax": torch.ones(2)},
    "GPTQ": {"a.qweight": INTEGERS[torch.int32], "a.scales": W[:2], "a.qzeros": INTEGERS[torch.int32]},
    "compressed": {"a.weight_packed": INTEGERS[torch.int32], "a.weight_scale": W[:, :1]},
    "fp8": {"a.weight": W.to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.ones(1, 1)},
    "fp8, one scale": {"a.weight": W.to(torch.float8_e5m2), "a.weight_scale": torch.tensor(2.0)},
    "MXFP4": {"e.gate_proj_blocks": torch.ones(2, 4, 4, 8, dtype=torch.uint8), "e.gate_proj_scales": W},
    "quanto": {"a.weight._data": INTEGERS[torch.int8], "a.weight._scale": W[:, :1]},
    "HQQ": {"a.W_q": INTEGERS[torch.uint8], "a.scale": W, "a.zero": W},
    "a scaled float": {"a.weight": W.half(), "a.weight_scale": W[:, :1]},
    "16 bits": {"a.weight": INTEGERS[torch.int16]},
    "64 bits": {"a.weight": INTEGERS[torch.int8].long()},
    "signs": {"a.weight": INTEGERS[torch.int8].bool()},
    "QuIP#": {"a.Qidxs": INTEGERS[torch.int8].long(), "a.SV": torch.ones(8)},
    "one long vector": {"a.weight": torch.ones(64, dtype=torch.uint8)},
    "a codebook": {"a.codes": INTEGERS[torch.int8].long(), "a.codebook": W},
    "centroids": {"a.indices": INTEGERS[torch.int8].long(), "a.centroids.weight": W},
    "one bit": {"a.signs": INTEGERS[torch.int8].bool(), "a.magnitude": torch.ones(8)},
    "experts": {"e.experts.down_proj": torch.ones(2, 8, 4, dtype=torch.int64)},
    "fp8, the largest value": {"a.weight": W.to(torch.float8_e4m3fn), "a.weight_amax": torch.tensor(2.0)},
    "fp8, one letter": {"a.weight": W.to(torch.float8_e4m3fn), "a.s": torch.tensor(2.0)},
    "torchao": {"a._weight_qdata": W.to(torch.float8_e4m3fn), "a._weight_scale": torch.ones(8, 1)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", [False, True])
def test_a_quantised_checkpoint_is_refused_by_its_tensors(layout, split, tmp_path):
    """Also where the scale is in another file than the weight."""
    tensors = {k: v.clone() for k, v in {**LAYOUTS[layout], "norm.weight": torch.ones(8), "b.weight": W}.items()}
    if not split:
        save_file(tensors, tmp_path / "model.safetensors")
    else:
        for number, (name, tensor) in enumerate(tensors.items()):
            save_file({name: tensor}, tmp_path / f"part-{number}.safetensors")
        index = {name: f"part-{number}.safetensors" for number, name in enumerate(tensors)}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(InputError, match=r"holds quantised weights \((a|e)\..*unquantised"):
        list_weights(tmp_path)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quantization_config": {"quant_method": "bitnet"}}, "quantization_config: bitnet"),
        ({"quantization": {"bits": 4}}, "quantization: no method"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "quantization_config: awq"),
        ({"language_config": {"quantization_config": {"quant_method": "fp8"}}}, "quantization_config: fp8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compression_config: compressed"),
        ({"thinker": {"text_config": {"quantization_config": {"quant_method": "awq"}}}}, "quantization_config: awq"),
    ],
)
def test_a_quantised_checkpoint_is_refused_by_its_config(config, named, tmp_path):
    save_file({"a.weight": W}, tmp_path / "model.safetensors")
    assert len(list_weights(tmp_path)) == 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=named):
        list_weights(tmp_path)


def test_buffers_and_scales_of_other_things_are_not_quantisation(tmp_path):
    tensors = {
        "h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8), "h.0.attn.c.weight": W,
        "embeddings.position_ids": torch.ones(1, 8, dtype=torch.int32), "tgt_mask": INTEGERS[torch.int8].bool(),
        "attention_bias_idxs": INTEGERS[torch.int8].long(), "relative_position_index": INTEGERS[torch.int8].long(),
        "bias": torch.ones(8, 8, dtype=torch.bool), "logit_scale": torch.tensor(1.0),
        "layer.weight": torch.ones(8), "layer.scale": torch.ones(8),
        "plain8.weight": W.to(torch.float8_e4m3fn),
    }  # fmt: skip
    save_file(tensors, tmp_path / "model.safetensors")
    assert {w.name for w in list_weights(tmp_path)} == {"h.0.attn.c.weight", "plain8.weight"}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_a_weight_that_is_computed_from_several_tensors_is_refused(kind, old, tmp_path):
    model = nn.Sequential(nn.Linear(16, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(nn.utils if old else nn.utils.parametrizations, kind)(model[0])
    with pytest.raises(InputError, match="computed from several tensors"):
        list_weights(model)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="computed from several tensors"):
        list_weights(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.weight", "a.weight_mask"), "computed from several tensors"),
        (("a.weight.U", "a.weight.V"), "computed from several tensors"),
        (("a.base_layer.weight", "a.lora_A.weight", "a.lora_B.weight"), "an adapter beside its weights"),
        (("a.weight", "a.lora_A.default.weight"), "an adapter beside its weights"),
    ],
)
def test_a_weight_that_other_tensors_change_is_refused(names, message, tmp_path):
    save_file({name: W.clone() for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message):
        list_weights(tmp_path)


def test_an_adapter_alone_has_weights_like_any_file(tmp_path):
    save_file({"a.lora_A.weight": W, "a.lora_B.weight": W.clone()}, tmp_path / "adapter_model.safetensors")
    assert len(list_weights(tmp_path / "adapter_model.safetensors")) == 2


def test_one_weight_in_two_files_is_refused(tmp_path):
    for rank in (0, 1):
        save_file({"a.weight": W}, tmp_path / f"model-rank{rank}.safetensors")
    with pytest.raises(InputError, match=r"a\.weight is in several files"):
        list_weights(tmp_path)


class Dynamic(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("values", torch.ones(8, 8, dtype=torch.int8))


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8).to_sparse())


class Int8(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)


class Gptq(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.ones(8, 8, dtype=torch.int32))


class Fp8(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(W.to(torch.float8_e4m3fn), requires_grad=False)
        self.weight_scale_inv = nn.Parameter(torch.ones(1, 1))


@pytest.mark.parametrize("layer", [Int8, Gptq, Fp8, Dynamic, Sparse])
def test_a_quantised_layer_of_a_live_model_is_refused(layer):
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj = layer()
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj.* has quantised weights"):
        list_weights(model)


def test_the_experts_of_a_live_model_are_those_of_its_folder(tmp_path):
    model = tiny_mixtral()
    live = {w.name: w for w in list_weights(model)}
    gate_up = [name for name in live if "gate_up_proj" in name]
    assert [live[name].shape for name in gate_up] == [(96, 32)] * 3
    assert torch.equal(live[gate_up[1]].read(), model.model.layers[0].mlp.experts.gate_up_proj[1])
    assert live[gate_up[1]].place == (0, "mlp.experts.gate_up_proj.1")
    model.save_pretrained(tmp_path / "by transformers")
    by_expert = list_weights(tmp_path / "by transformers")
    assert sum(w.shape[0] * w.shape[1] for w in by_expert) == sum(w.shape[0] * w.shape[1] for w in live.values())
    tensors = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    stored = {w.name: w for w in list_weights(tmp_path / "model.safetensors")}
    assert set(stored) == set(live)
    assert all(torch.equal(stored[name].read(), live[name].read()) for name in live)
    turned = {k: v.mT.contiguous() if "experts." in k else v for k, v in tensors.items()}
    save_file(turned, tmp_path / "model.safetensors")
    again = {w.name: w for w in list_weights(tmp_path)}
    assert {name: w.shape for name, w in again.items()} == {name: w.shape for name, w in live.items()}
    assert all(torch.equal(again[name].read(), live[name].read()) for name in live)


@pytest.mark.parametrize("name", ["gpt_oss", "aria_text", "llama4_text", "qwen3_moe", "openai_privacy_filter"])
def test_the_experts_of_every_architecture_are_listed_as_out_and_in(name):
    """By the product that the layer itself computes: gate and up take what the model is wide, down gives it."""
    from transformers import CONFIG_MAPPING, AutoModel

    size = {"hidden_size": 32, "intermediate_size": 24, "moe_intermediate_size": 24, "num_hidden_layers": 1}
    experts = {"num_local_experts": 3, "num_experts": 3, "moe_num_experts": 3, "num_experts_per_tok": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 50}
    config = CONFIG_MAPPING[name](**size, **experts, **heads, layer_types=["full_attention"], pad_token_id=0)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    shapes = {n: list(p.shape) for n, p in model.named_parameters()}
    turned = find_transposed(shapes)
    (gate_up,) = (n for n in shapes if GATE_UP.search(n) and len(shapes[n]) == 3)
    out, inside = reversed(shapes[gate_up][1:]) if gate_up in turned else shapes[gate_up][1:]
    assert (out, inside) == (48, 32)


@pytest.mark.parametrize("parts", [False, True])
def test_a_conv1d_is_known_without_the_type_of_the_model(parts, tmp_path):
    """In a file without a config, and as the decoder of a model of several parts."""
    model = tiny_gpt2()
    prefix, kind = ("decoder.", "vision-encoder-decoder") if parts else ("", None)
    tensors = {prefix + name: p.detach().clone() for name, p in model.named_parameters()}
    tensors["encoder.h.0.attn.c_attn.weight"] = torch.ones(96, 32)  # of a linear layer that is called alike
    tensors["encoder.h.0.mlp.c_proj.weight"] = torch.ones(32, 128)
    save_file(tensors, tmp_path / "model.safetensors")
    if kind:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "decoder": {"model_type": "gpt2"}}))
    stored = {w.name.removeprefix(prefix): w for w in list_weights(tmp_path)}
    for w in list_weights(model):
        assert stored[w.name].shape == w.shape
        assert torch.equal(stored[w.name].read(), w.read())
    assert stored["encoder.h.0.attn.c_attn.weight"].shape == (96, 32)
    assert stored["encoder.h.0.mlp.c_proj.weight"].shape == (32, 128)


def test_experts_that_are_called_linear_are_listed(tmp_path):
    save_file({"h.0.mlp.input_linear.weight": torch.ones(3, 8, 16), "a.conv.weight": torch.ones(3, 8, 16)},
              tmp_path / "model.safetensors")  # fmt: skip
    assert [w.name for w in list_weights(tmp_path)] == [f"h.0.mlp.input_linear.weight.{i}" for i in range(3)]


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.q_weight": (8, 16), "a.q_scale": (8, 1)}, {"a.weight": (8, 16), "a.wscales": (8, 2)},
        {"a.weight": (8, 16), "a.scaling_factor": (8, 1)}, {"a.weight": (8, 16), "a.weight_qscale": (8, 1)},
    ],
)  # fmt: skip
def test_a_scale_by_another_name_is_no_matrix(tensors, tmp_path):
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="is a scale"):
        list_weights(tmp_path)


def test_the_vectors_of_scales_beside_plain_weights_are_no_layout(tmp_path):
    tensors = {"a.weight": torch.ones(8, 16), "a.fc_scaling_factor": torch.ones(8)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert [w.name for w in list_weights(tmp_path)] == ["a.weight"]


def test_an_index_into_a_table_is_no_mask(tmp_path):
    tensors = {"a.weight_idx": torch.ones(8, 16, dtype=torch.int8), "a.weight_lut": torch.ones(8, 16)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"a\.weight_idx is I8"):
        list_weights(tmp_path)


@pytest.mark.parametrize("name", ["scale", "scales", "zeros"])
def test_a_live_scale_is_refused_as_its_file_is(name, tmp_path):
    layer = nn.Linear(16, 8)
    layer.register_parameter(name, nn.Parameter(torch.ones(8, 1)))
    model = nn.Sequential(layer)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for source in (model, tmp_path):
        with pytest.raises(InputError, match="quantised weights"):
            list_weights(source)


def test_three_axes_that_are_not_experts_are_left_out_with_a_word(tmp_path):
    """XLNet's axes are the input, the heads, and the width of a head: no slice of it is a matrix of the model."""
    from transformers import XLNetConfig, XLNetModel

    model = XLNetModel(XLNetConfig(vocab_size=50, d_model=32, n_layer=1, n_head=4, d_inner=48))
    model.save_pretrained(tmp_path)
    listed = []
    for source in (model, tmp_path):
        with pytest.warns(UserWarning, match=r"left out.*three axes, such as layer\.0\.rel_attn\.k \(6 in all\)"):
            listed.append({w.name: w.shape for w in list_weights(source)})
    assert listed[0] == listed[1]
    assert listed[0]["layer.0.ff.layer_1.weight"] == (48, 32)


def test_plain_models_are_listed():
    assert len(list_weights(tiny_llama())) == 16
    assert len(list_weights(tiny_gpt2())) == 10
