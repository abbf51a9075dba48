"""Checkpoints and models whose tensors are not the matrices themselves."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from factories import tiny_gpt2, tiny_llama, tiny_mixtral
from safetensors.torch import save_file
from torch import nn

from nlora_lab.core.errors import InputError
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
        "embeddings.position_ids": torch.ones(1, 8, dtype=torch.int32), "table": torch.ones(4, 4, dtype=torch.int64),
        "logit_scale": torch.tensor(1.0), "layer.weight": torch.ones(8), "layer.scale": torch.ones(8),
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


@pytest.mark.parametrize("layer", [Int8, Gptq, Fp8])
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
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    turned = {w.name: w for w in list_weights(tmp_path)}
    assert turned[gate_up[0]].shape == (32, 96)
    assert torch.equal(turned[gate_up[0]].read(), live[gate_up[0]].read().T)


def test_plain_models_are_listed():
    assert len(list_weights(tiny_llama())) == 16
    assert len(list_weights(tiny_gpt2())) == 10
