"""save_as_lora: an adapter for servers that do not know this package."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pytest
import torch
from factories import ARCHITECTURES, PRESETS, adapted, apart, base_logits, base_model, logits, move, tolerance
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from nlora_lab.adapters import export, inttune, nlora, save_as_lora, slora
from nlora_lab.core.errors import InputError

STOCK = """
import sys, torch, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from peft import PeftModel
ids = torch.load({ids!r}, weights_only=True)
for folder in sorted(Path({folder!r}).iterdir()):
    base = torch.load(Path({bases!r}) / folder.name.split(",")[0], weights_only=False)
    model = PeftModel.from_pretrained(base, folder).eval()
    torch.save(model(ids).logits.detach(), folder / "logits")
assert not [m for m in sys.modules if m.startswith("nlora_lab")]
"""


def test_stock_peft_in_a_fresh_process_gives_the_same_logits(ids, tmp_path):
    (tmp_path / "bases").mkdir()
    tuned_logits = {}
    for architecture in ARCHITECTURES:
        torch.save(base_model(architecture), tmp_path / "bases" / architecture)
        for name, preset in PRESETS.items():
            torch.manual_seed(1)
            model = get_peft_model(base_model(architecture), preset(4, alpha=6.0)).eval()
            move(model)
            save_as_lora(model, tmp_path / "out" / f"{architecture},{name}")
            tuned_logits[architecture, name] = logits(model, ids), tolerance(model)
    torch.save(ids, tmp_path / "ids")
    places = {"folder": str(tmp_path / "out"), "ids": str(tmp_path / "ids"), "bases": str(tmp_path / "bases")}
    subprocess.run([sys.executable, "-c", STOCK.format(**places)], check=True)
    assert len(tuned_logits) == 4 * len(PRESETS) == 20
    for (architecture, name), (tuned, close) in tuned_logits.items():
        loaded = torch.load(tmp_path / "out" / f"{architecture},{name}" / "logits", weights_only=True)
        assert apart(loaded, tuned) <= close, (architecture, name)
        assert apart(loaded, base_logits(architecture, ids)) > 10 * close


REFUSED = """
import torch
from peft import PeftConfig, PeftModel
def base():
    return torch.load({base!r}, weights_only=False)
ways = (
    lambda: PeftModel.from_pretrained(base(), {folder!r}),
    lambda: PeftConfig.from_pretrained({folder!r}),
    lambda: base().load_adapter({folder!r}),
)
for way in ways:
    try:
        way()
    except Exception as error:
        print("refused:", repr(error))
    else:
        print("loaded")
"""


def test_without_this_package_stock_peft_refuses_the_unexported_adapter(tmp_path):
    adapted("llama", ("nlora", None)).save_pretrained(tmp_path)
    torch.save(base_model("llama"), tmp_path / "base")
    code = REFUSED.format(base=str(tmp_path / "base"), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("refused:") and "NLORA" in line for line in lines)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("preset", [slora, nlora, inttune])
def test_ranks_and_scales_of_single_layers_come_out_exactly(preset, rslora, ids, tmp_path):
    torch.manual_seed(1)
    config = preset(
        4,
        alpha=6.0,
        use_rslora=rslora,
        rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 7},
        alpha_pattern={"v_proj": 5.0, "layers.0.mlp.up_proj": 0.5},
    )
    model = get_peft_model(base_model("llama"), config).eval()
    move(model)
    lora = PeftModel.from_pretrained(base_model("llama"), save_as_lora(model, tmp_path)).eval()
    assert apart(logits(lora, ids), logits(model, ids)) <= tolerance(model)
    ours = {n: m for n, m in model.named_modules() if hasattr(m, "nlora_A")}
    theirs = {n: m for n, m in lora.named_modules() if hasattr(m, "lora_A")}
    assert ours.keys() == theirs.keys()
    for name, layer in ours.items():
        twice = 2 if preset is nlora else 1
        assert theirs[name].r["default"] == twice * layer.r["default"]
        assert theirs[name].scaling["default"] == pytest.approx(layer.scaling["default"], rel=1e-15)


def test_only_the_layers_that_were_adapted(ids, tmp_path):
    torch.manual_seed(1)
    config = nlora(4, target_modules=["q_proj", "up_proj"], layers_to_transform=[1], dropout=0.1)
    model = get_peft_model(base_model("llama"), config).eval()
    move_two(model)
    lora = PeftModel.from_pretrained(base_model("llama"), save_as_lora(model, tmp_path)).eval()
    assert sum(hasattr(m, "lora_A") for m in lora.modules()) == 2
    assert apart(logits(lora, ids), logits(model, ids)) <= tolerance(model)
    assert lora.peft_config["default"].lora_dropout == 0.1


@torch.no_grad()
def move_two(model):
    for p in model.parameters():
        if p.requires_grad:
            p += 0.05 * torch.randn_like(p)


@pytest.mark.parametrize("source", ["live", "folder"])
def test_modules_to_save_go_along(source, ids, tmp_path):
    torch.manual_seed(1)
    model = get_peft_model(base_model("llama"), nlora(4, modules_to_save=["lm_head"])).eval()
    move_two(model)
    model.save_pretrained(tmp_path / "saved")
    folder = save_as_lora(model if source == "live" else tmp_path / "saved", tmp_path / "lora")
    lora = PeftModel.from_pretrained(base_model("llama"), folder).eval()
    assert apart(logits(lora, ids), logits(model, ids)) <= tolerance(model)
    head = lora.base_model.model.lm_head.modules_to_save["default"].weight
    assert torch.equal(head, model.base_model.model.lm_head.modules_to_save["default"].weight)
    assert not torch.equal(head, base_model("llama").lm_head.weight)


def test_the_other_adapter_and_transformers_own_models(ids, tmp_path):
    model = adapted("llama", ("slora", None))
    model.add_adapter("other", nlora(3))
    model.set_adapter("other")
    move(model)
    lora = PeftModel.from_pretrained(base_model("llama"), save_as_lora(model, tmp_path / "a", "other")).eval()
    assert apart(logits(lora, ids), logits(model, ids)) <= tolerance(model)
    torch.manual_seed(1)
    native = base_model("llama")
    native.add_adapter(inttune(4), "mine")
    move(native)
    lora = PeftModel.from_pretrained(base_model("llama"), save_as_lora(native, tmp_path / "b", "mine")).eval()
    assert apart(logits(lora, ids), logits(native, ids)) <= tolerance(native)
    merged = base_model("llama")
    merged.load_adapter(str(tmp_path / "b"))
    assert apart(logits(merged, ids), logits(native, ids)) <= tolerance(native)


def test_the_exported_update_survives_bfloat16(tmp_path):
    """The exported pair holds the small differences, not two large products that cancel."""
    model = adapted("llama", ("nlora", None))
    for layer in (m for m in model.modules() if hasattr(m, "nlora_A")):
        layer.nlora_N["default"].weight.data *= 1.01
    weights = load_file(save_as_lora(model, tmp_path) / "adapter_model.safetensors")
    checked = 0
    for name, layer in ((n, m) for n, m in model.named_modules() if hasattr(m, "nlora_A")):
        right, left = (weights[f"{name}.lora_{f}.weight"] for f in "AB")
        delta = layer.get_delta_weight("default")
        rounded = left.bfloat16().float() @ right.bfloat16().float()
        assert float((rounded - delta).norm() / delta.norm()) < 0.02
        checked += 1
    assert checked == 14


def test_what_cannot_be_exported_is_named(tmp_path):
    model = adapted("llama", ("slora", None))
    with pytest.raises(InputError, match=r"adapter_name='absent' is not in this model; it has: default"):
        save_as_lora(model, tmp_path / "x", "absent")
    with pytest.raises(InputError, match="has no adapter"):
        save_as_lora(base_model("llama"), tmp_path / "x")
    with pytest.raises(InputError, match="not one of this package"):
        save_as_lora(get_peft_model(base_model("llama"), LoraConfig(target_modules=["q_proj"])), tmp_path / "x")
    with pytest.raises(InputError, match=r"holds no adapter_config.json; give a folder"):
        save_as_lora(tmp_path / "nothing", tmp_path / "x")
    get_peft_model(base_model("llama"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(InputError, match="holds a LORA adapter"):
        save_as_lora(tmp_path / "lora", tmp_path / "x")
    model.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_model.safetensors"
    complete = file.read_bytes()
    file.write_bytes(complete[:-100])
    with pytest.raises(InputError, match="is truncated or not safetensors"):
        save_as_lora(tmp_path / "saved", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_as_lora(model, tmp_path / "file" / "below")


def test_an_integral_alpha_is_written_as_an_integer(tmp_path):
    save_as_lora(adapted("llama", ("nlora", None)), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 8)
    assert isinstance(config["lora_alpha"], int)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["inference_mode"] is True  # a fresh load does not train it by accident


def with_resized_embeddings(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(5)
    model.resize_token_embeddings(101)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_both_routes_to_a_lora_adapter_keep_resized_embeddings(tmp_path, tied):
    base_model("gpt2" if tied else "llama").save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    model = get_peft_model(with_resized_embeddings(tmp_path / "base"), slora(4, target_modules="all-linear")).eval()
    move(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "saved")
    live, saved = save_as_lora(model, tmp_path / "live"), save_as_lora(tmp_path / "saved", tmp_path / "from folder")
    first, second = load_file(live / "adapter_model.safetensors"), load_file(saved / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(len(tensor) == 101 for tensor in first.values())


@pytest.mark.parametrize(
    "name", ["mlp", "model", "weight", "layers", "nlora_A", "base_layer", "0", "a.b", "update", "training"]
)
def test_an_adapter_called_like_a_part_of_the_model_is_refused_when_it_is_added(name):
    model = get_peft_model(base_model("llama"), slora(4))
    with pytest.raises(InputError, match=f"adapter_name={name!r}"):
        model.add_adapter(name, slora(4))
    with pytest.raises(InputError, match=f"adapter_name={name!r}"):
        get_peft_model(base_model("llama"), slora(4), adapter_name=name)
    model.add_adapter("second", slora(4))


@pytest.mark.parametrize("name", ["x" * 101, "x/y", "x\\y", "x\ny"])
def test_an_adapter_name_that_is_not_a_folder_is_refused_when_it_is_added(name):
    with pytest.raises(InputError, match="cannot be the name of the folder to save it in"):
        get_peft_model(base_model("llama"), slora(4), adapter_name=name)


@pytest.mark.parametrize("name", ["default", "second", "adapter-1", "poems_v2", "é" * 100])
def test_an_adapter_of_any_other_name_is_saved_completely(name, tmp_path):
    model = get_peft_model(base_model("llama"), slora(4, target_modules="all-linear"), adapter_name=name)
    model.save_pretrained(tmp_path)
    place = tmp_path if name == "default" else tmp_path / name
    assert len(load_file(place / "adapter_model.safetensors")) == 3 * 14
    assert len(load_file(save_as_lora(model, tmp_path / "lora", name) / "adapter_model.safetensors")) == 2 * 14


def test_layers_that_got_lost_are_counted_before_anything_is_written(tmp_path, monkeypatch):
    model = get_peft_model(base_model("llama"), slora(4, target_modules="all-linear"))
    complete = export.get_peft_model_state_dict

    def without_mlp(*args, **options):
        return {k: v for k, v in complete(*args, **options).items() if ".mlp." not in k}

    monkeypatch.setattr(export, "get_peft_model_state_dict", without_mlp)
    with pytest.raises(InputError, match="8 of the 14 layers"):
        save_as_lora(model, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


class Twins(torch.nn.Module):
    """Layers whose names end alike, and a name that means more as a regular expression than it says."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.ab, self.axb = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.x, self.a = torch.nn.Module(), torch.nn.Module()
        self.x.ab, self.a.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.axb(self.x.ab(self.ab(self.a.b(x))))


def test_the_rank_of_one_layer_is_not_that_of_another_whose_name_ends_alike(tmp_path):
    model = get_peft_model(Twins(), slora(2, target_modules=["ab", "x.ab", "a.b", "axb"], rank_pattern={
        "^ab$": 3, "^x.ab$": 4, "^a[.]b$": 5, "^axb$": 2}, alpha_pattern={"^a[.]b$": 7.0}))  # fmt: skip
    move(model)
    x = torch.ones(1, 8)
    folder = save_as_lora(model, tmp_path / "lora")
    loaded = PeftModel.from_pretrained(Twins(), folder)
    assert apart(loaded(x).detach(), model(x).detach()) < 1e-5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target_modules": ["q_proj"]}, r"has factors of .*, which its config does not select"),
        ({"exclude_modules": ["v_proj"]}, r"has factors of .*v_proj, which its config does not select"),
        ({"layers_to_transform": [0]}, r"has factors of .*layers\.1.*, which its config does not select"),
        ({"modules_to_save": ["lm_head"]}, "lacks lm_head, which its config trains in full"),
    ],
)
def test_a_file_and_a_config_that_speak_of_other_layers_are_not_exported(tmp_path, changes, named):
    """Other libraries load the layers that the config selects, and leave the others out without a word."""
    model = get_peft_model(base_model("llama"), slora(4, target_modules=["q_proj", "v_proj"]))
    model.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(InputError, match=named):
        save_as_lora(tmp_path / "saved", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
