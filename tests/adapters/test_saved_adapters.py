"""A saved adapter is input: every damaged folder is one line in all three ways in."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket

import pytest
import torch
from factories import EMBEDDED
from safetensors.torch import load_file, save_file

import nlora_lab as nl
from nlora_lab.adapters import save_as_lora
from nlora_lab.adapters.saved import read_adapter, read_settings
from nlora_lab.core.errors import InputError
from nlora_lab.evaluation.vllm_engine import _allowed_rank
from nlora_lab.methods.attachment import attach
from nlora_lab.training.export import save_merged

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One adapter of this package and one of PEFT, on the embedded model."""
    home = tmp_path_factory.mktemp("adapters")
    for method in ("nlora", "inttune", "lora"):
        base = nl.load_model()[0]
        attach(base, method, 4).save_pretrained(home / method)
        config = json.loads((home / method / CONFIG).read_text())
        (home / method / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": str(EMBEDDED)}))
    return home


@pytest.fixture
def folder(made, tmp_path):
    return lambda method: shutil.copytree(made / method, tmp_path / method)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


WAYS = {
    "merge": lambda place: save_merged(place, place.parent / "out"),
    "measure": lambda place: nl.measure_saved("embedded", nl.load_task(test_rows=1), place),
    "convert": lambda place: save_as_lora(place, place.parent / "out"),
}


def config(**changes):
    def change(place):
        settings = json.loads((place / CONFIG).read_text())
        (place / CONFIG).write_text(json.dumps({**settings, **changes}))

    return change


def text(content):
    return lambda place: (place / CONFIG).write_bytes(content)


def tensors(change):
    def rewrite(place):
        save_file(change(load_file(place / WEIGHTS)), place / WEIGHTS)

    return rewrite


def first(weights, value):
    name = min(name for name in weights if name.endswith(("nlora_N.weight", "lora_A.weight")))
    return {**weights, name: value(weights[name])}


def pickled(place):
    torch.save(load_file(place / WEIGHTS), place / "adapter_model.bin")
    (place / WEIGHTS).unlink()


def piped(name):
    def replace(place):
        (place / name).unlink()
        os.mkfifo(place / name)

    return replace


DAMAGE = {
    "a pickle": (pickled, r"adapter_model\.bin, a pickle, which can run code"),
    "no weights": (lambda place: (place / WEIGHTS).unlink(), r"adapter_model\.safetensors is missing"),
    "no config": (lambda place: (place / CONFIG).unlink(), r"holds no adapter_config\.json"),
    "weights cut": (lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes()[:-99]), "truncated"),
    "weights empty": (lambda p: (p / WEIGHTS).write_bytes(b""), "truncated"),
    "no tensor": (tensors(lambda w: {}), "holds no tensor"),
    "weights a pipe": (piped(WEIGHTS), "not a regular file"),
    "config a pipe": (piped(CONFIG), "not a regular file"),
    "NaN": (tensors(lambda w: first(w, lambda t: t * torch.nan)), "holds NaN or infinity"),
    "infinity": (tensors(lambda w: first(w, lambda t: t / 0)), "holds NaN or infinity"),
    "other shapes": (tensors(lambda w: first(w, lambda t: torch.ones(3, 5))), "does not fit|rank 4|made for another"),
    "half of the tensors": (tensors(lambda w: dict(sorted(w.items())[::2])), "lacks|missing|made for another"),
    "config cut": (lambda p: (p / CONFIG).write_bytes((p / CONFIG).read_bytes()[:99]), "is damaged"),
    "config empty": (text(b""), "is damaged"),
    "not an object": (text(b"[]"), "is not an object"),
    "a byte order mark": (
        lambda p: (p / CONFIG).write_bytes(b"\xef\xbb\xbf" + (p / CONFIG).read_bytes()),
        "byte order",
    ),
    "deep": (text(b"[" * 100_000), "nested too deep"),
    "not UTF-8": (text(b"\xff\xfe{}"), "is damaged"),
    "no kind": (text(b"{}"), "peft_type=None is not known"),
    "unknown kind": (config(peft_type="MYLORA"), "peft_type='MYLORA' is not known"),
    "a kind that is a list": (config(peft_type=["LORA"]), "peft_type=.* is not known"),
    "unknown task": (config(task_type="POETRY"), "task_type='POETRY' is not known"),
    "a base that is a number": (config(base_model_name_or_path=5), "base_model_name_or_path=5 must be a name"),
    "targets that are a number": (config(target_modules=5), "target_modules=5 must be names"),
    "targets of numbers": (config(target_modules=[5]), "target_modules=.* must be names"),
    "factors whose product is infinite": (
        tensors(lambda w: {k: v if "0.weight" in k else v + 1e30 for k, v in w.items()}),
        "does not fit into|holds NaN or infinity|computes NaN or infinity",
    ),
    "broken regex": (config(target_modules="(q_proj"), "is not a regular expression"),
    "catastrophic regex": (config(target_modules="(([a-z.])+.)+[A-Z]([a-z])+$"), "for ever"),
    "catastrophic pattern": (config(rank_pattern={"(a+)+$": 4}), "for ever"),
    "broken layers pattern": (config(layers_pattern=["(h"], layers_to_transform=[0]), "is not a regular expression"),
    "another library": (
        config(megatron_config={"a": 1}, megatron_core="antigravity"),
        "megatron_config asks to import",
    ),
    "rank of text": (config(r="four"), "r='four'|is damaged|does not fit|rank"),
    "scale of NaN": (config(lora_alpha=float("nan"), alpha=float("nan")), "alpha|NaN"),
    "scale of zero": (config(lora_alpha=0, alpha=0), "alpha=0 .*above 0"),
    "scale beyond float32": (config(lora_alpha=1e39, alpha=1e39), "alpha=1e.39 .*below"),
    "scale of true": (config(lora_alpha=True, alpha=True), "alpha=True"),
    "scale of one layer": (config(alpha_pattern={"q_proj": float("inf")}), "alpha_pattern|Infinity"),
    "a word for true": (config(use_rslora="no"), "use_rslora='no' must be true or false"),
    "whole numbers": (tensors(lambda w: first(w, lambda t: t.to(torch.int8))), "is I8, which is not a weight"),
    "eight bits": (tensors(lambda w: first(w, lambda t: t.to(torch.float8_e4m3fn))), "is F8_E4M3, which is not"),
    "beyond float32": (tensors(lambda w: first(w, lambda t: (t + 1).double() * 1e300)), "holds NaN or infinity"),
    "rank of another file": (config(r=2), "does not fit|rank 2|made for another"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["nlora", "lora"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_adapter_is_one_line_in_every_way_in(damage, method, way, folder, no_network):
    if way == "convert" and method == "lora":
        pytest.skip("a LoRA adapter is not converted to LoRA")
    change, message = DAMAGE[damage]
    place = folder(method)
    change(place)
    with pytest.raises(InputError, match=message) as raised:
        WAYS[way](place)
    assert "\n" not in str(raised.value)
    assert not list((place.parent / "out").glob("*.safetensors"))


@pytest.mark.parametrize("lost", ["N0", "A0", "B0"])
def test_a_start_that_is_lost_is_noticed(lost, folder):
    place = folder("nlora")
    tensors(lambda w: {k: v for k, v in w.items() if not k.endswith(f"layers.2.mlp.up_proj.nlora_{lost}.weight")})(
        place
    )
    for way in WAYS.values():
        with pytest.raises(InputError, match=lost):
            way(place)


def test_an_entry_without_its_layers_is_noticed(folder):
    place = folder("inttune")
    tensors(lambda w: {k: v for k, v in w.items() if "layers.1.mlp.up_proj" not in k})(place)
    with pytest.raises(InputError, match=r"no factors of .*layers\.1\.mlp\.up_proj"):
        save_as_lora(place, place.parent / "out")


def test_a_sound_adapter_passes(made):
    for method in ("nlora", "inttune", "lora"):
        settings, header = read_adapter(made / method)
        assert settings.r == 4
        assert len(header) >= 2 * 28
    assert _allowed_rank(made / "lora") == 8


@pytest.mark.parametrize("pattern", [".*q_proj", r"(.*\.)?layers\.\d+\.(q|v)_proj", "^a[.]b$", "model.*mlp.*(up|down)"])
def test_ordinary_patterns_pass(pattern, folder):
    place = folder("lora")
    config(target_modules=pattern)(place)
    assert read_settings(place)["target_modules"] == pattern
    assert re.compile(pattern)
