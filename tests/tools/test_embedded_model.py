"""The embedded model: its text is seeded, its files are those that the code makes, its training resumes."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from nlora_lab.core.files import shipped_folder
from nlora_lab.tasks.generated import LARGEST, generate
from tools.embedded_model import train
from tools.embedded_model.corpus import KINDS, MAX_SUM, documents
from tools.embedded_model.tokenizer import train_tokenizer
from tools.embedded_model.train import PretrainingConfig, pretrain

EMBEDDED = shipped_folder("data") / "embedded"
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


def test_the_shipped_tokenizer_is_what_the_config_makes():
    tokenizer = train_tokenizer(islice(documents(PretrainingConfig().seed), train.TOKENIZER_DOCUMENTS))
    shipped = json.loads((EMBEDDED / "tokenizer.json").read_text())
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == shipped


def test_the_shipped_record_is_of_the_default_config():
    record = json.loads((EMBEDDED / "pretraining.json").read_text())
    assert record["recipe"] == asdict(PretrainingConfig())
    assert record["tokens"] == PretrainingConfig().steps * PretrainingConfig().batch_size * PretrainingConfig().context
    card = (EMBEDDED / "README.md").read_text()
    for number in (f"{record['tokens']:,}", f"{record['held_out_loss']:.2f}", f"{record['parameters']:,}"):
        assert number in card


def test_an_interrupted_pretraining_ends_in_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "skills", lambda model, tokenizer: {})
    monkeypatch.setattr(train, "TOKENIZER_DOCUMENTS", 2000)
    pretrain(tmp_path / "complete", TINY, log=lambda line: None)

    def interrupt(line):
        if line.startswith("step 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "cut", TINY, log=interrupt, checkpoint_every=2, log_every=1)
    assert not (tmp_path / "cut").exists()
    lines = []
    record = pretrain(tmp_path / "cut", TINY, log=lines.append)
    assert lines[0] == "resumed at step 2"
    complete, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("complete", "cut"))
    assert complete.keys() == cut.keys()
    assert all(torch.equal(complete[k], cut[k]) for k in complete)
    assert record["tokens"] == 4 * 2 * 32
    assert not list(tmp_path.glob("*.pt"))
