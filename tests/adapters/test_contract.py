"""What every method of the table must do, with every init, on every architecture.

A new entry of METHODS is tested as soon as it is in the table. Where PEFT's own methods differ from ours, the entry
says so (``writes_base``, ``step0``), and the test asserts the difference instead of skipping it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pytest
import torch
from factories import (
    ADAPTERS,
    ARCHITECTURES,
    BROKEN_IN_PEFT,
    OURS,
    ROOT,
    VARIANTS,
    adapted,
    apart,
    base_logits,
    base_model,
    logits,
    move,
    tolerance,
    variant_id,
)
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from nlora_lab.adapters import NLoraLayer, save_as_lora
from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS
from nlora_lab.models.layers import layer_shape, linear_layers

GOLDEN = ROOT / "tests" / "golden" / "adapters.json"
LOW_PRECISION = 0.03  # bf16 has eight bits, so a logit of a two-layer model moves by about 1 %


def over(variants):
    """Parametrise a test over every variant on every architecture that it can be put on."""
    pairs = [(a, v) for a in ARCHITECTURES for v in variants if (v[0], a) not in BROKEN_IN_PEFT]
    assert len(pairs) >= 4 * len(variants) - len(BROKEN_IN_PEFT) >= 20
    return pytest.mark.parametrize(("architecture", "variant"), pairs, ids=[f"{a}-{variant_id(v)}" for a, v in pairs])


def test_the_suite_covers_the_table():
    assert {name for name, _ in VARIANTS} == set(METHODS)
    assert len(METHODS) >= 14
    assert {name for name, _ in OURS} == {
        "slora", "nlora", "nlora-pivoted", "nlora-core", "nlora-balanced", "nlora-released", "inttune", "lora-xs"
    }  # fmt: skip


@pytest.mark.parametrize(("method", "architecture"), list(BROKEN_IN_PEFT))
def test_what_peft_cannot_do_it_still_cannot(method, architecture, ids):
    with pytest.raises(InputError, match="cannot start from"):
        adapted(architecture, (method, None))
    config = METHODS[method].build(4, None, None, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base_model(architecture), config)
    with pytest.raises(RuntimeError):
        logits(model, ids)


@over(VARIANTS)
def test_step_0_is_what_the_table_says(architecture, variant, ids):
    base = base_logits(architecture, ids)
    start = logits(adapted(architecture, variant), ids)
    if METHODS[variant[0]].step0 == "exact":
        assert torch.equal(start, base)
    elif METHODS[variant[0]].step0 == "near":
        assert apart(start, base) < 1e-3
    else:
        assert apart(start, base) > 1e-2


@over(VARIANTS)
def test_what_trains_is_counted_and_nothing_else_moves(architecture, variant, ids):
    shapes = [layer_shape(layer) for layer in linear_layers(base_model(architecture)).values()]
    model = adapted(architecture, variant)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if variant[0] == "full":
        assert len(trained) == len(list(model.parameters()))
    else:
        assert sum(p.numel() for p in trained.values()) == sum(METHODS[variant[0]].cost(m, n, 4) for m, n in shapes)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    for _ in range(3):  # with B = 0, A and N only move from the second step on
        loss = model(ids, labels=ids).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all((p.grad is not None) == (n in trained) for n, p in model.named_parameters())
        optimizer.step()
        optimizer.zero_grad()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(trained)


@over(ADAPTERS)
def test_disabling_gives_the_base_back_exactly(architecture, variant, ids):
    model, base = adapted(architecture, variant), base_logits(architecture, ids)
    move(model)
    assert apart(logits(model, ids), base) > 1e-3
    with model.disable_adapter():
        if METHODS[variant[0]].writes_base:
            assert apart(logits(model, ids), base) > 1e-2  # it is the residual
        else:
            assert torch.equal(logits(model, ids), base)


@over(ADAPTERS)
def test_merged_unmerged_and_unloaded_are_the_same(architecture, variant, ids):
    model = adapted(architecture, variant, alpha=6.0)
    move(model)
    tuned, close = logits(model, ids), tolerance(model)
    assert apart(tuned, base_logits(architecture, ids)) > 10 * close
    model.merge_adapter(safe_merge=True)
    assert apart(logits(model, ids), tuned) <= close
    model.unmerge_adapter()
    assert apart(logits(model, ids), tuned) <= close
    merged = model.merge_and_unload()
    assert not any("lora" in n for n, _ in merged.named_modules())
    assert apart(logits(merged, ids), tuned) <= close


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")  # PEFT's LoRA says it about every GPT-2
@over(OURS)
def test_exported_to_plain_lora_it_is_the_same(architecture, variant, ids, tmp_path):
    model = adapted(architecture, variant, alpha=6.0)
    move(model)
    tuned, base, close = logits(model, ids), base_logits(architecture, ids), tolerance(model)
    assert apart(tuned, base) > 10 * close
    model.save_pretrained(tmp_path / "saved")
    folder, again = save_as_lora(model, tmp_path / "live"), save_as_lora(tmp_path / "saved", tmp_path / "folder")
    config, other = (json.loads((f / "adapter_config.json").read_text()) for f in (folder, again))
    for saved in (config, other):
        saved.pop("auto_mapping")  # PEFT adds it in save_pretrained
    assert config == other
    live, from_folder = (load_file(f / "adapter_model.safetensors") for f in (folder, again))
    assert live.keys() == from_folder.keys()
    assert all(torch.equal(live[k], from_folder[k]) for k in live)
    assert config["peft_type"] == "LORA"
    assert config["r"] == (8 if "nlora_A0" in kinds(model) else 4)
    lora = PeftModel.from_pretrained(base_model(architecture), folder).eval()
    assert not any(isinstance(m, NLoraLayer) for m in lora.modules())
    assert apart(logits(lora, ids), tuned) <= close


def kinds(model):
    """Return which factors an adapter has."""
    return {n.split(".")[-3] for n, _ in model.named_parameters() if ".nlora_" in n}


@over([v for v in ADAPTERS if not METHODS[v[0]].writes_base])
def test_further_adapters_are_complete_and_independent(architecture, variant, ids):
    model, base = adapted(architecture, variant), base_model(architecture)
    move(model)
    tuned = {"default": logits(model, ids)}
    for rank, name in ((2, "second"), (3, "third")):
        torch.manual_seed(rank)
        method = METHODS[variant[0]]
        model.add_adapter(name, method.build(rank, None, variant[1], target_modules="all-linear"))
        model.set_adapter(name)
        if method.step0 == "exact":
            assert torch.equal(logits(model, ids), logits(base, ids))
        move(model, seed=rank)
        tuned[name] = logits(model, ids)
    assert apart(tuned["second"], tuned["default"]) > 1e-3
    assert apart(tuned["third"], tuned["second"]) > 1e-3
    for name in ("default", "third", "second"):
        model.set_adapter(name)
        assert torch.equal(logits(model, ids), tuned[name])
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained
        assert all(f".{name}" in n for n in trained)
    model.delete_adapter("default")
    model.set_adapter("third")
    assert torch.equal(logits(model, ids), tuned["third"])
    model.set_adapter("second")
    assert torch.equal(logits(model, ids), tuned["second"])
    assert not any(".default." in n for n, _ in model.named_parameters())


@over(ADAPTERS)
def test_in_bfloat16_it_stays_within_tolerance_and_trains(architecture, variant, ids):
    exact = adapted(architecture, variant)
    model = adapted(architecture, variant, base=base_model(architecture, torch.bfloat16))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}  # PEFT's autocast_adapter_dtype
    base = apart(logits(base_model(architecture, torch.bfloat16), ids), base_logits(architecture, ids))
    assert apart(logits(model, ids), logits(exact, ids)) < LOW_PRECISION + 2 * base
    if METHODS[variant[0]].step0 == "exact":
        assert torch.equal(logits(model, ids), logits(base_model(architecture, torch.bfloat16), ids))
    move(model)
    model(ids, labels=ids).loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(torch.isfinite(g).all() for g in grads)
    assert any(g.any() for g in grads)


@over(VARIANTS)
def test_one_seed_one_adapter(architecture, variant):
    first, again, other = ([p.detach() for p in adapted(architecture, variant, s).parameters()] for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    changed = any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    drawn = METHODS[variant[0]].start.startswith(("A Kaiming", "A and N", "LoRA's")) or variant[0] == "lora-xs"
    assert changed == drawn


LOAD = """
import sys, torch, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.path.insert(0, {tests!r})
import nlora_lab.adapters
from factories import base_model
from peft import PeftModel
ids = torch.load({ids!r}, weights_only=True)
for folder in sorted(Path({folder!r}).iterdir()):
    base = base_model(folder.name.split(",")[0])
    torch.manual_seed(999)
    model = PeftModel.from_pretrained(base, folder).eval()
    torch.save(model(ids).logits.detach(), folder / "logits")
"""


def test_saved_and_loaded_in_a_new_process_with_another_seed(ids, tmp_path):
    tuned_logits = {}
    for architecture in ARCHITECTURES:
        for variant in ADAPTERS:
            if (variant[0], architecture) not in BROKEN_IN_PEFT:
                model = adapted(architecture, variant)
                move(model)
                tuned_logits[architecture, variant_id(variant)] = logits(model, ids)
                model.save_pretrained(tmp_path / "saved" / f"{architecture},{variant_id(variant)}")
    torch.save(ids, tmp_path / "ids")
    places = {"folder": str(tmp_path / "saved"), "ids": str(tmp_path / "ids"), "tests": str(ROOT / "tests")}
    subprocess.run([sys.executable, "-c", LOAD.format(**places)], check=True)
    assert len(tuned_logits) == len(ARCHITECTURES) * len(ADAPTERS) - len(BROKEN_IN_PEFT) >= 60
    for (architecture, name), tuned in tuned_logits.items():
        loaded = torch.load(tmp_path / "saved" / f"{architecture},{name}" / "logits", weights_only=True)
        assert apart(loaded, tuned) < 1e-5, (architecture, name)
        assert apart(loaded, base_logits(architecture, ids)) > 1e-3, (architecture, name)


def described(variant):
    """Describe a saved adapter: its keys with their shapes, and its config."""
    from peft import get_peft_model_state_dict

    model = adapted("llama", variant)
    config = model.peft_config["default"].to_dict()
    for varying in ("peft_version", "base_model_name_or_path"):
        config.pop(varying)
    shapes = {k: list(v.shape) for k, v in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    layer = "model.layers.0.self_attn.k_proj."
    return {
        "config": json.loads(json.dumps(config)),
        "number of keys": len(shapes),
        "keys of one layer": {k: s for k, s in sorted(shapes.items()) if layer in k},
    }


@pytest.mark.parametrize("variant", OURS, ids=variant_id)
def test_keys_and_config_are_stable_against_the_golden_file(variant):
    """Old adapters must always load. A change here needs a migration, not a new golden file."""
    assert described(variant) == json.loads(GOLDEN.read_text())[variant_id(variant)]
