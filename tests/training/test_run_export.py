"""Exports of finished runs, in forms that other programs read."""

from __future__ import annotations

import copy
import json
from dataclasses import fields

import pytest
import torch
from factories import base_model
from peft import LoraConfig, PeftModel, get_peft_model

import nlora_lab as nl
from nlora_lab.core.errors import InputError
from nlora_lab.methods.attachment import attach
from nlora_lab.methods.plain_lora import PLAIN_FIELDS, check_plain, with_twice_the_rank
from nlora_lab.methods.table import METHODS, variant
from nlora_lab.training.export import tuned_model


def fine_tuned(monkeypatch, base, **options):
    name = f"{base}-mine"
    monkeypatch.setitem(METHODS, name, variant(base, name, "Mine", **options))
    return nl.fine_tune(nl.RunConfig(name, rank=3, alpha=5.0, lr=1e-3, steps=2, batch_size=2, test_rows=2))


@pytest.mark.parametrize("base", ["lora", "pissa", "olora", "slora", "nlora"])
def test_a_variant_with_rslora_is_exported_with_its_whole_move(base, monkeypatch, tmp_path):
    run = fine_tuned(monkeypatch, base, use_rslora=True)
    folder = nl.save_adapter(run, tmp_path / "lora", "lora")
    ids = torch.arange(3, 60)[None]
    model, _ = tuned_model(run)
    with torch.no_grad():
        untouched, live = nl.load_model()[0](ids).logits, model(ids).logits
        loaded = PeftModel.from_pretrained(nl.load_model()[0], folder).eval()(ids).logits
    assert float((loaded - live).norm()) < 0.02 * float((live - untouched).norm())


def test_a_variant_of_dora_is_not_written_as_lora(monkeypatch, tmp_path):
    run = fine_tuned(monkeypatch, "dora", use_rslora=True)
    with pytest.raises(InputError, match="Mine cannot be written as a plain LoRA adapter, because of use_dora=True"):
        nl.save_adapter(run, tmp_path / "lora", "lora")
    assert not (tmp_path / "lora").exists()


def test_a_variant_of_olora_is_checked_as_olora(monkeypatch):
    method = variant("olora", "mine", "Mine", use_rslora=True)
    with pytest.raises(InputError, match="Conv1D, which PEFT's OLoRA cannot start from"):
        attach(base_model("gpt2"), method, 2)


def test_every_option_of_lora_is_copied_or_refused():
    plain = LoraConfig()
    values = {"bias": "all", "init_lora_weights": "pissa", "lora_bias": True, "use_dora": True, "use_qalora": True}
    others = {field.name for field in fields(plain)} - PLAIN_FIELDS
    assert {"bias", "use_dora", "lora_bias", "layer_replication", "target_parameters"} <= others
    for name in others:
        changed = copy.copy(plain)
        object.__setattr__(changed, name, values.get(name, [1]))
        with pytest.raises(InputError, match=f"because of {name}="):
            check_plain(changed, "LoRA")
    check_plain(plain, "LoRA")


@pytest.mark.parametrize("rslora", [False, True])
def test_twice_the_rank_keeps_every_scale(rslora):
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, rank_pattern={"up_proj": 2}, alpha_pattern={"up_proj": 3, "q_proj": 5},
        target_modules=["up_proj", "q_proj", "v_proj"], lora_dropout=0.1,
        layers_to_transform=[1],
    )  # fmt: skip
    config.init_lora_weights = "olora"
    wide = with_twice_the_rank(config)
    assert (wide.lora_dropout, wide.layers_to_transform, wide.use_rslora) == (0.1, [1], rslora)
    config.init_lora_weights = True

    def scales(made):
        layers = get_peft_model(base_model("llama"), made).named_modules()
        return {n: (m.r["default"], m.scaling["default"]) for n, m in layers if hasattr(m, "lora_A")}

    narrow, doubled = scales(config), scales(wide)
    assert narrow.keys() == doubled.keys()
    assert len(narrow) == 3
    for name, (rank, scale) in narrow.items():
        assert doubled[name][0] == 2 * rank
        assert doubled[name][1] == pytest.approx(scale)
    assert json.dumps(wide.to_dict(), default=str)
