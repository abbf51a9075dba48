from __future__ import annotations

import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlora_lab.errors import ModelError
from nlora_lab.files import shipped
from nlora_lab.models import linear_layers, load_model

EMBEDDED = shipped("data") / "embedded"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(EMBEDDED, tmp_path / "model")


def test_the_embedded_model_is_small_and_whole(embedded):
    model, tokenizer = embedded
    assert sum(p.numel() for p in model.parameters()) == 917_632
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert len(tokenizer) == model.config.vocab_size == 888
    assert sum(f.stat().st_size for f in EMBEDDED.iterdir()) < 5_000_000
    assert tokenizer.decode(tokenizer("Ana has 12 pears.")["input_ids"]) == "<s>Ana has 12 pears."
    assert len(tokenizer("12", add_special_tokens=False)["input_ids"]) == 2


def test_the_weights_have_spectra_of_their_own_not_those_of_noise(embedded):
    """Independent entries would put the largest singular value at the Marchenko-Pastur edge, ratio 1."""
    ratios = []
    for layer in linear_layers(embedded[0]).values():
        W = layer.weight.detach()
        edge = float(W.std()) * (W.shape[0] ** 0.5 + W.shape[1] ** 0.5)
        ratios.append(float(torch.linalg.matrix_norm(W, 2)) / edge)
    assert sorted(ratios)[len(ratios) // 2] > 1.3
    assert max(ratios) > 2


def test_a_folder_of_the_same_layout_loads(copy, embedded):
    model, _ = load_model(str(copy))
    assert torch.equal(model.lm_head.weight, embedded[0].lm_head.weight)


def test_the_output_head_is_not_a_layer_to_adapt(embedded):
    names = linear_layers(embedded[0])
    assert len(names) == 28
    assert not any("lm_head" in n for n in names)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_model(str(tmp_path))


def test_a_folder_without_weights(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        load_model(str(copy))


def test_a_pickle_is_refused_with_the_reason(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="a pickle, which can run code"):
        load_model(str(copy))


@pytest.mark.parametrize("keep", [0, 5, 3000, 1_000_000])
def test_truncated_weights(copy, keep):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelError, match="truncated or not safetensors"):
        load_model(str(copy))


def test_a_model_with_code_of_its_own_is_refused_and_the_code_not_run(copy, tmp_path, monkeypatch):
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ModelError, match="code of its own"):
        load_model(str(copy))
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_without_an_end_is_named(copy):
    (copy / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match="no end-of-text token"):
        load_model(str(copy))


def test_a_tokenizer_that_does_not_fit_is_named(copy):
    _, tokenizer = load_model(str(copy))
    tokenizer.add_tokens(["one too many"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(ModelError, match="889 tokens and the model 888"):
        load_model(str(copy))


def test_nan_in_a_weight_is_named(copy):
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight .* NaN"):
        load_model(str(copy))


def test_a_checkpoint_with_missing_tensors_is_refused(copy):
    weights = load_file(copy / "model.safetensors")
    kept = {k: v for k, v in weights.items() if ".layers.2." not in k}
    assert 0 < len(kept) < len(weights)
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 9 tensors, model\.layers\.2"):
        load_model(str(copy))


def test_a_broken_config_and_a_missing_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(copy))
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(copy))


@pytest.mark.parametrize(
    "name",
    ["nope", "", "a/b/c", "/no/such/folder", "owner/na me", "../nope", "./modle", "~nobodyatall/x", "x" * 5000, "a\0b"],
)
def test_an_unknown_name(name):
    with pytest.raises(ModelError, match="is not known: use 'embedded'"):
        load_model(name)


def test_offline_a_hub_id_fails_at_once_with_a_remedy(monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set; load it once"):
        load_model("nobody/nothing")

    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ModelError, match="out of reach"):
        load_model("nobody/nothing")
