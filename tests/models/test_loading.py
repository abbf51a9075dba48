from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.core.files import shipped_folder
from nlora_lab.models import loading as models
from nlora_lab.models.layers import linear_layers
from nlora_lab.models.loading import config_limit, load_model, revision_of
from nlora_lab.models.names import check_config

EMBEDDED = shipped_folder("data") / "embedded"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(EMBEDDED, tmp_path / "model")


def test_the_embedded_model_is_small_and_complete(embedded):
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
    remaining = {k: v for k, v in weights.items() if ".layers.2." not in k}
    assert 0 < len(remaining) < len(weights)
    save_file(remaining, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 9 tensors, model\.layers\.2"):
        load_model(str(copy))


def test_a_broken_config_and_a_missing_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(copy))
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
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


# --- real architectures, and classifiers ---

SIZES = {
    "vocab_size": 896, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
FEWER_KEYS = {**SIZES, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 896, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
CAUSAL = {
    "Llama": FEWER_KEYS, "Mistral": FEWER_KEYS, "Gemma": {**FEWER_KEYS, "head_dim": 8}, "Qwen2": FEWER_KEYS,
    "GPT2": {**GPT2, "eos_token_id": 2},
}  # fmt: skip
ENCODERS = ("Bert", "Roberta", "Deberta", "DebertaV2")


@pytest.fixture
def saved(tmp_path):
    """Saves a tiny random model of an architecture, with the embedded tokenizer (888 tokens, and 896 rows)."""

    def save(name, task="", **changes):
        import transformers

        sizes = {**CAUSAL.get(name, SIZES), **changes}
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**sizes)
        kind = task or ("MaskedLM" if name in ENCODERS else {"GPT2": "LMHeadModel"}.get(name, "CausalLM"))
        model = getattr(transformers, f"{name}{kind if kind == 'LMHeadModel' else 'For' + kind}")(config)
        folder = tmp_path / name
        model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(EMBEDDED / file, folder)
        return str(folder)

    return save


def seeded(*args, **kwargs):
    torch.manual_seed(1)
    return load_model(*args, **kwargs)[0]


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_of_each_architecture(saved, name):
    folder = saved(name)
    model, tokenizer = load_model(folder)
    ids = tokenizer("Ana has 12 pears.", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (*ids.shape, 896)
    assert len(tokenizer) < model.get_input_embeddings().weight.shape[0] == 896
    assert revision_of(model) == ""
    assert tokenizer.pad_token_id is not None


@pytest.mark.parametrize("head", [1, 3])
@pytest.mark.parametrize("name", [*CAUSAL, *ENCODERS])
def test_a_classifier_of_each_architecture(saved, name, head):
    folder = saved(name)
    torch.manual_seed(1)
    model, tokenizer = load_model(folder, head=head)
    batch = tokenizer(["Ana has 12 pears.", "Bo"], padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    logits = model(**batch).logits
    assert logits.shape == (2, head)
    assert model.config.problem_type == ("regression" if head == 1 else "single_label_classification")
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    assert not model.training
    alone = model(**tokenizer("Bo", return_tensors="pt", return_token_type_ids=False)).logits  # padding changes nothing
    assert torch.allclose(alone[0], logits[1], atol=1e-4)
    again = seeded(folder, head=head)
    assert torch.equal(again(**batch).logits, logits)  # the seed decides the head
    body = dict(model.base_model.named_parameters())
    causal = load_file(f"{folder}/model.safetensors")
    known = [key for key in body if f"{model.base_model_prefix}.{key}" in causal]
    assert len(known) > 10
    assert all(torch.equal(body[key], causal[f"{model.base_model_prefix}.{key}"]) for key in known)


@pytest.mark.parametrize("token", ["abc", [[2]], {"a": 1}, True, 2.5, "3", -1, [2, "3"]])
def test_an_end_token_that_cannot_be_one_is_refused(copy, token):
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": token}))
    with pytest.raises(InputError, match="generation_config"):
        load_model(str(copy))


def test_a_file_that_transformers_would_pass_over_is_refused(copy):
    (copy / "generation_config.json").write_bytes(b'\xef\xbb\xbf{"eos_token_id": [3, 2]}')
    with pytest.raises(InputError, match=r"generation_config\.json begins with a byte order mark"):
        load_model(str(copy))


@pytest.mark.parametrize(
    ("named", "limit", "expected"),
    [
        ("max_position_embeddings", 64, 64), ("max_seq_len", 16, 16), ("max_position_embeddings", -1, None),
        ("max_position_embeddings", None, None), ("model_max_length", 32, 32), ("model_max_length", int(1e30), None),
    ],
)  # fmt: skip
def test_the_limit_of_a_model_is_that_of_its_config_or_its_tokenizer(named, limit, expected):
    tokenizer = SimpleNamespace(model_max_length=int(1e30))
    config = SimpleNamespace()
    setattr(tokenizer if named == "model_max_length" else config, named, limit)
    assert config_limit(config, tokenizer) == expected


@pytest.mark.parametrize("named", ["max_position_embeddings", "model_max_length"])
@pytest.mark.parametrize("limit", ["64", -5, True, 2.5])
def test_a_limit_that_cannot_be_one_is_named_by_its_field(named, limit):
    tokenizer, config = SimpleNamespace(model_max_length=int(1e30)), SimpleNamespace()
    setattr(tokenizer if named == "model_max_length" else config, named, limit)
    with pytest.raises(InputError, match=f"{named} of the model"):
        config_limit(config, tokenizer)


def test_a_head_in_the_weights_is_used_if_it_fits_and_drawn_if_not(saved):
    folder = saved("Bert", "SequenceClassification", num_labels=3)
    stored = load_file(f"{folder}/model.safetensors")
    same, other = seeded(folder, head=3), seeded(folder, head=2)
    assert torch.equal(same.classifier.weight, stored["classifier.weight"])
    assert torch.equal(same.bert.pooler.dense.weight, stored["bert.pooler.dense.weight"])
    assert other.classifier.weight.shape == (2, 32)
    assert torch.equal(other.bert.pooler.dense.weight, stored["bert.pooler.dense.weight"])
    assert other.config.num_labels == 2


@pytest.mark.parametrize("head", [0, 2])
def test_only_the_head_may_be_missing_or_of_another_size(saved, head):
    file = f"{saved('Llama')}/model.safetensors"
    whole = load_file(file)
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in whole.items() if k != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"lack 1 tensors, {lost}"):
        load_model(file.rpartition("/")[0], head=head)
    save_file({**whole, lost: whole[lost][:8].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=lost if head else "cannot be loaded"):
        load_model(file.rpartition("/")[0], head=head)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_not_a_language_model(saved, name):
    with pytest.raises(ModelError, match=r"is not a causal language model .* choose a classification task"):
        load_model(saved(name))


def test_an_encoder_configured_as_a_decoder_is_a_language_model(saved):
    model, _ = load_model(saved("Roberta", "CausalLM", is_decoder=True))
    assert type(model).__name__ == "RobertaForCausalLM"


def test_a_type_without_a_classifier_is_named():
    from transformers import GitConfig

    with pytest.raises(ModelError, match="no classifier for the type 'git'"):
        models._check_type("x", GitConfig(), 2)


def test_an_encoder_needs_a_padding_token_and_no_end_token(saved):
    config = Path(saved("Bert")) / "tokenizer_config.json"
    tokens = json.loads(config.read_text())
    del tokens["eos_token"]
    config.write_text(json.dumps(tokens))
    assert load_model(str(config.parent), head=2)[1].eos_token is None
    del tokens["pad_token"]
    config.write_text(json.dumps(tokens))
    with pytest.raises(ModelError, match="no padding token; set pad_token"):
        load_model(str(config.parent), head=2)


def test_a_causal_classifier_without_a_padding_token_pads_with_the_end_token(saved):
    config = Path(saved("Llama")) / "tokenizer_config.json"
    tokens = json.loads(config.read_text())
    del tokens["pad_token"]
    config.write_text(json.dumps(tokens))
    model, tokenizer = load_model(str(config.parent), head=2)
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def test_the_requested_dtype_overrides_the_stored_one(saved):
    folder = saved("Llama")
    half = load_model(folder, dtype="bfloat16")[0]
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(folder)
    for dtype in (None, "float32"):
        assert {p.dtype for p in load_model(folder, dtype=dtype)[0].parameters()} == {torch.float32}
    weights = load_file(f"{folder}/model.safetensors")
    weights["model.norm.weight"][3] = float("inf")
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight .* NaN or infinity"):
        load_model(folder, dtype="bfloat16")


def test_nan_is_detected_piece_by_piece():
    for at in (0, 2**24 - 1, 2**24, 2**24 + 2):
        weight = torch.zeros(1, 2**24 + 3, dtype=torch.bfloat16)
        assert models._is_finite(weight)
        weight[0, at] = float("nan")
        assert not models._is_finite(weight)


def test_the_requested_attention_is_used(saved):
    folder = saved("Llama")
    for attention in ("sdpa", "eager"):
        assert load_model(folder, attention=attention)[0].config._attn_implementation == attention
    with pytest.raises(ModelError, match=r"attention='sdpa' does not work for .* use 'eager'"):
        load_model(saved("Deberta"), head=2, attention="sdpa")


@pytest.mark.parametrize(("package", "card"), [(False, False), (False, True), (True, False)])
def test_flash_attention_needs_its_package_and_a_card(monkeypatch, package, card):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: object() if package else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    with pytest.raises(ModelError, match=r"needs .*; use attention='sdpa'") as caught:
        load_model(attention="flash_attention_2")
    assert ("pip install flash-attn" in str(caught.value), "a CUDA card" in str(caught.value)) == (
        not package,
        not card,
    )


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"head": -1}, "head=-1"), ({"head": True}, "head=True"), ({"head": 2.0}, r"head=2\.0"),
        ({"dtype": "float16"}, "dtype='float16' is not known"), ({"attention": "fast"}, "attention='fast'"),
        ({"revision": "v1"}, "for models on the hub only"), ({"revision": ""}, "revision=''"),
    ],
)  # fmt: skip
def test_a_bad_option_is_named(options, names):
    with pytest.raises(InputError, match=names):
        load_model(**options)


def test_a_new_head_is_not_reported_as_missing(saved, capsys):
    from transformers.utils import logging

    before = logging.get_verbosity()
    folder = saved("Llama")
    capsys.readouterr()
    load_model(folder, head=2)
    assert capsys.readouterr() == ("", "")
    assert logging.get_verbosity() == before


@pytest.mark.parametrize(("field", "value"), [("num_hidden_layers", -1), ("n_layer", 20_000), ("num_labels", 10**9)])
def test_a_size_that_no_model_has_is_named(field, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", field: value}))
    with pytest.raises(ModelError, match=f"{field}={value}, and it must be from "):
        check_config(tmp_path / "config.json")
