"""What an adapter is put on, and which options are refused before anything trains."""

from __future__ import annotations

import math

import pytest
from factories import base_model, few_rows, move, save_model, tiny_mixtral

import nlora_lab as nl
from nlora_lab.methods.attachment import attach
from nlora_lab.methods.parameters import parameter_table, trainable_parameters
from nlora_lab.methods.plain_lora import check_plain
from nlora_lab.methods.table import variant
from nlora_lab.training.export import save_merged

PEFT_METHODS = ["lora", "dora", "pissa"]


@pytest.mark.filterwarnings("ignore:.*get no adapter")
@pytest.mark.parametrize("method", [*PEFT_METHODS, "nlora"])
def test_beside_fused_experts_the_linear_layers_train_and_nothing_else(method):
    """PEFT would also wrap the experts, under the names that they had in older checkpoints."""
    expected = parameter_table(tiny_mixtral(), 2, methods=[method]).trainable[0]
    model = attach(tiny_mixtral(), method, 2)
    assert trainable_parameters(model) == expected
    assert all(".self_attn." in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore:.*get no adapter", "ignore:Adapter .default.", "ignore:Model has .tie")
@pytest.mark.parametrize("options", [{}, {"trainable_token_indices": [1, 2, 3]}])
def test_a_run_is_measured_whatever_else_peft_has_wrapped(tmp_path, monkeypatch, options):
    folder = save_model("Llama", tmp_path / "model")
    monkeypatch.setitem(nl.METHODS, "v", variant("lora", "v", "V", **options))
    with few_rows(16, 4, 4):
        run = nl.fine_tune(nl.RunConfig("v", rank=2, model=folder, steps=2, batch_size=4, lr=1e-2))
    assert run.metrics["distance"] > 0
    assert math.isfinite(run.final_loss)


def test_an_adapter_on_parameters_is_refused_before_it_trains():
    with pytest.raises(nl.InputError, match="target_modules leads to parameters that are not linear layers"):
        attach(base_model("llama"), "lora", 2, target_modules=["q_proj"], target_parameters=["down_proj.weight"])


@pytest.mark.parametrize("method", ["lora", "slora"])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"modules_to_save": "lm_head"}, r"modules_to_save='lm_head' must be a list"),
        ({"layers_to_transform": [True]}, "layers_to_transform"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\]=0"),
        ({"rank_pattern": {"q_proj": 2.5}}, r"rank_pattern\['q_proj'\]=2.5"),
        ({"rank_pattern": {"q_proj": "2"}}, r"rank_pattern\['q_proj'\]='2'"),
        ({"rank_pattern": {"q_proj": 40}}, "rank=40 is above 32, the smaller side of model.layers.0.self_attn.q_proj"),
        ({"alpha_pattern": {"q_proj": 0}}, r"alpha_pattern\['q_proj'\]=0"),
        ({"alpha_pattern": {"q_proj": -4.0}}, r"alpha_pattern\['q_proj'\]=-4.0"),
        ({"alpha_pattern": {"q_proj": math.nan}}, r"alpha_pattern\['q_proj'\]=nan"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": 5}, "target_modules=5 must be names of modules"),
        ({"target_modules": ["q_proj", 3]}, r"target_modules=\['q_proj', 3\] must be names"),
        ({"no_such_option": 1}, "PEFT cannot put .*no_such_option"),
        ({"rank_pattern": {"(": 1}}, r"rank_pattern: .\(. is not a regular expression"),
        ({"target_modules": "["}, r"target_modules: '\[' is not a regular expression"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(method, options, named):
    with pytest.raises(nl.InputError, match=named):
        attach(base_model("llama"), method, 2, **options)


def test_a_regular_expression_may_set_flags():
    model = attach(base_model("llama"), "lora", 2, target_modules="(?i).*Q_PROJ")
    assert {n.split(".")[-4] for n, _ in model.named_parameters() if "lora_A" in n} == {"q_proj"}


@pytest.mark.parametrize(
    "options", [{"layers_pattern": "blocks", "layers_to_transform": [0]}, {"trainable_token_indices": [5000]}]
)
def test_what_peft_refuses_is_one_line(options):
    with pytest.raises(nl.InputError, match="PEFT cannot put LoRA on this LlamaForCausalLM"):
        attach(base_model("llama"), "lora", 2, target_modules=["q_proj"], **options)


@pytest.mark.filterwarnings("ignore:Model has .tie_word")
@pytest.mark.parametrize("method", [*PEFT_METHODS, "nlora"])
def test_a_weight_of_two_modules_gets_no_adapter(tmp_path, method):
    model, _ = nl.load_model(save_model("Llama", tmp_path / "tied", tie_word_embeddings=True))
    with pytest.raises(nl.InputError, match=r"lm_head shares its weight with model.embed_tokens"):
        attach(model, method, 2, target_modules=["q_proj", "lm_head"])


@pytest.mark.filterwarnings("ignore:Model has .tie_word", "ignore:Model with .tie_word", "ignore:Setting .save_embed")
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_foreign_adapter_on_a_weight_of_two_modules_is_not_merged(tmp_path, target):
    from peft import LoraConfig, get_peft_model

    folder = save_model("Llama", tmp_path / "tied", tie_word_embeddings=True)
    base, _ = nl.load_model(folder)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", target]))
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(nl.InputError, match="shares its weight with"):
        save_merged(tmp_path / "adapter", tmp_path / "merged", folder)
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore:.*get no adapter")
def test_lora_on_the_attention_of_a_mixture_is_a_plain_lora():
    model = attach(tiny_mixtral(), "lora", 2, target_modules=["q_proj"])
    check_plain(model.peft_config["default"], "LoRA")
