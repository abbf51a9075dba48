"""The table of methods: its entries, their colours, and the parameter counts that follow from it."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from factories import ARCHITECTURES, VARIANTS, adapted, base_model

import nlora_lab as nl
from nlora_lab.methods.attachment import attach
from nlora_lab.methods.parameters import parameter_table, trainable_parameters
from nlora_lab.methods.table import METHODS, variant
from nlora_lab.plots.matplotlib_renderer import DASHES

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def lab(colour, blindness):
    """Return CIELAB of a hex colour as somebody with this colour vision sees it."""
    rgb = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=torch.float64)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    visible = (torch.tensor(BLINDNESS[blindness], dtype=torch.float64) @ linear).clamp(0, 1)
    x, y, z = torch.tensor(XYZ, dtype=torch.float64) @ visible / torch.tensor([0.9505, 1.0, 1.089], dtype=torch.float64)
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return torch.tensor([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def test_both_renderers_can_draw_every_dash():
    assert {method.dash for method in METHODS.values()} <= set(DASHES)


def test_what_freezes_the_base_leaves_its_weights_alone():
    for name, method in METHODS.items():
        model, base = adapted("llama", (name, None)), base_model("llama")
        weights = [p for n, p in model.named_parameters() if "lora_" not in n]
        untouched = all(torch.equal(p, q) for p, q in zip(weights, base.parameters(), strict=True))
        assert method.freezes_base == (untouched and not any(p.requires_grad for p in weights)), name


@pytest.mark.parametrize("blindness", list(BLINDNESS))
def test_colours_tell_methods_apart_together_with_the_dash(blindness):
    for a, b in itertools.combinations(METHODS.values(), 2):
        distance = float((lab(a.colour, blindness) - lab(b.colour, blindness)).norm())
        assert distance > (20 if a.dash == b.dash else 7), (a.name, b.name, distance)
    for method in METHODS.values():  # readable as a line on a white page
        assert lab(method.colour, "none")[0] < 78, method.name


TABLE = {
    "LLaMA-2-7B": ("LlamaConfig", 319_815_680, 323_485_696, 3_670_016),
    "Mistral-7B": ("MistralConfig", 335_544_320, 339_214_336, 3_670_016),
    "Gemma-7B": ("GemmaConfig", 400_031_744, 403_243_008, 3_211_264),
}
SIZES = {
    "LLaMA-2-7B": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "Mistral-7B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000,
    },
    "Gemma-7B": {
        "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 16, "head_dim": 256, "vocab_size": 256000,
    },
}  # fmt: skip


@pytest.mark.parametrize("model", list(TABLE))
def test_the_papers_parameter_counts_at_rank_128(model):
    import transformers

    kind, lora, slora, inttune = TABLE[model]
    table = parameter_table(getattr(transformers, kind)(**SIZES[model]), rank=128).set_index("method")
    assert list(table.index) == list(METHODS)
    for name in ("lora", "rslora", "pissa", "olora"):
        assert table.trainable[name] == lora
    for name in ("slora", "nlora", "nlora-pivoted", "nlora-core", "nlora-balanced", "nlora-released"):
        assert table.trainable[name] == slora
    assert table.trainable["inttune"] == table.trainable["lora-xs"] == inttune
    assert table.beyond_lora["slora"] == inttune
    assert table.trainable["dora"] > lora
    assert table.share["full"] == 1


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(x for x in v if x))
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_the_table_counts_what_attaching_trains(architecture, variant):
    counted = parameter_table(base_model(architecture), rank=4, methods=[variant[0]])
    assert list(counted.method) == [variant[0]]
    if (variant[0], architecture) != ("olora", "gpt2"):
        assert counted.trainable[0] == trainable_parameters(adapted(architecture, variant))


def test_a_table_of_named_modules_and_from_every_kind_of_source(tmp_path):
    model = base_model("llama")
    table = parameter_table(model, 4, ["q_proj", "v_proj"], ["lora", "inttune"])
    assert list(table.trainable) == [2 * 4 * (64 + 48), 4 * 16]
    assert list(parameter_table(model, 4, r".*\.1\.mlp\.up_proj", ["lora"]).trainable) == [4 * 80]
    model.config.save_pretrained(tmp_path)
    sources = (model, model.config, tmp_path, str(tmp_path))
    counts = {tuple(parameter_table(s, 4, methods=["lora", "slora", "dora"]).trainable) for s in sources}
    assert len(counts) == 1
    assert nl.parameter_table("embedded", methods=["slora"]).trainable[0] == 80_640
    assert list(parameter_table(model, 4)) == ["method", "label", "trains", "trainable", "share", "beyond_lora"]


def test_what_no_table_can_be_made_of_is_named(tmp_path):
    model = base_model("llama")
    with pytest.raises(nl.InputError, match=r"rank=17 is above 16, the smaller side of .*k_proj"):
        parameter_table(model, 17)
    with pytest.raises(nl.InputError, match="rank=0"):
        parameter_table(model, 0)
    with pytest.raises(nl.InputError, match="'q_porj' matches no module"):
        parameter_table(model, 4, ["q_porj"])
    with pytest.raises(nl.InputError, match="embed_tokens is a Embedding"):
        parameter_table(model, 4, ["embed_tokens"])
    with pytest.raises(nl.InputError, match="method='lorra'"):
        parameter_table(model, 4, methods=["lorra"])
    with pytest.raises(nl.InputError, match="has an adapter already"):
        parameter_table(adapted("llama", ("slora", None)), 4)
    with pytest.raises(nl.ModelError, match="no architecture can be built"):
        parameter_table(tmp_path)
    with pytest.raises(nl.ModelError, match="int is not a config"):
        parameter_table(3)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-thing"}))
    with pytest.raises(nl.ModelError, match="no architecture can be built"):
        parameter_table(tmp_path)


def test_attach_takes_a_method_that_is_not_in_the_table():
    method = variant("nlora", "mine", "My start", pivots="cross")
    model = attach(base_model("llama"), method, np.int64(3), task_type=None)
    config = model.peft_config["default"]
    assert (config.pivots, config.r, type(config.r)) == ("cross", 3, int)
    with pytest.raises(nl.InputError, match="method='mine' is not known"):
        attach(base_model("llama"), "mine")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("lorra", "mine", "Mine"), {}, "method='lorra'"),
        (("full", "mine", "Mine"), {"dropout": 0.1}, "full has no options"),
        (("nlora", "my start", "Mine"), {}, "name='my start'"),
        (("nlora", "mine", "Mine"), {"colour": "red"}, "colour='red'"),
        (("nlora", "mine", "Mine"), {"dash": "wavy"}, "dash='wavy'"),
        (("nlora", "mine", "Mine"), {"train": "N"}, "train='N' changes what is trained"),
        (("nlora", "mine", "Mine"), {"pivot": "cross"}, "mine: pivot='cross' is not an option"),
        (("nlora", "mine", "Mine"), {"pivots": "best"}, "pivots='best'"),
    ],
)
def test_a_bad_variant_is_named(arguments, options, message):
    with pytest.raises(nl.InputError, match=message):
        variant(*arguments, **options)
