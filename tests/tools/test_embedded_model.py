"""The models that ship: their text is seeded, their files are those that the code makes, their training resumes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from nlora_lab.core.files import shipped_folder
from nlora_lab.tasks.generated import LARGEST, generate
from tools.embedded_model import train
from tools.embedded_model.corpus import KINDS, MAX_SUM, documents
from tools.embedded_model.tokenizer import train_tokenizer
from tools.embedded_model.train import RECIPES, PretrainingConfig, pretrain

DATA = shipped_folder("data")
TINY = PretrainingConfig(steps=4, batch_size=2, context=32, warmup=1, hidden=16, layers=1, heads=2, intermediate=24)


def test_the_text_is_seeded():
    first, again, other = (list(islice(documents(seed), 50)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    kinds = {maker.__name__ for maker, _ in KINDS}
    assert kinds >= {"story", "arithmetic", "one_step", "counting", "comparing", "sorting"}


def test_the_text_never_shows_the_tasks():
    text = list(islice(documents(0), 20_000))
    assert not any("Claim:" in d for d in text)
    assert not any("The answer is" in d and "=" in d for d in text)
    assert LARGEST < MAX_SUM
    prompts = {item["prompt"] for items in generate("word-problems").values() for item in items}
    assert not prompts & {d.partition(" A:")[0] + " A:" for d in text}


@pytest.mark.parametrize("name", RECIPES)
def test_the_shipped_tokenizer_is_what_the_config_makes(name):
    """Both models have one tokenizer, so that the lengths counted with one hold for the other."""
    tokenizer = train_tokenizer(islice(documents(RECIPES[name].seed), train.TOKENIZER_DOCUMENTS))
    shipped = json.loads((DATA / name / "tokenizer.json").read_text())
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == shipped


@pytest.mark.parametrize("name", RECIPES)
def test_the_shipped_record_is_of_the_recipe(name):
    record, recipe = json.loads((DATA / name / "pretraining.json").read_text()), RECIPES[name]
    assert record["recipe"] == asdict(recipe)
    assert record["tokens"] == recipe.steps * recipe.batch_size * recipe.context
    card = (DATA / name / "README.md").read_text()
    for number in (f"{record['tokens']:,}", f"{record['held_out_loss']:.2f}", f"{record['parameters']:,}"):
        assert number in card
    shares = [line.split("|")[2].strip() for line in card.partition("| skill |")[2].splitlines() if " %" in line]
    assert shares == [f"{100 * share:.1f} %" for share in record["accuracy"].values()]


def test_the_shipped_models_have_the_sizes_of_their_recipes():
    for name, recipe in RECIPES.items():
        weights = load_file(DATA / name / "model.safetensors")
        assert {w.dtype for w in weights.values()} == {torch.bfloat16 if recipe.bfloat16 else torch.float32}
        assert weights["model.layers.0.mlp.up_proj.weight"].shape == (recipe.intermediate, recipe.hidden)


def test_what_ships_stays_small():
    sizes = {name: sum(f.stat().st_size for f in (DATA / name).rglob("*")) for name in RECIPES}
    assert sizes["larger"] < 10_000_000
    assert sum(f.stat().st_size for f in DATA.rglob("*")) < 21_000_000  # in the wheel the records are a third of theirs


@pytest.mark.parametrize("bfloat16", [False, True])
def test_an_interrupted_pretraining_ends_in_the_same_weights(tmp_path, monkeypatch, bfloat16):
    recipe = replace(TINY, bfloat16=bfloat16)
    monkeypatch.setattr(train, "skills", lambda model, tokenizer: {})
    monkeypatch.setattr(train, "TOKENIZER_DOCUMENTS", 2000)
    pretrain(tmp_path / "complete", recipe, log=lambda line: None)

    def interrupt(line):
        if line.startswith("step 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "cut", recipe, log=interrupt, checkpoint_every=2, log_every=1)
    assert not (tmp_path / "cut").exists()
    lines = []
    record = pretrain(tmp_path / "cut", recipe, log=lines.append)
    assert lines[0] == "resumed at step 2"
    complete, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("complete", "cut"))
    assert complete.keys() == cut.keys()
    assert all(torch.equal(complete[k], cut[k]) for k in complete)
    assert record["tokens"] == 4 * 2 * 32
    assert not list(tmp_path.glob("*.pt"))
