"""Measuring a model, alone or with a saved adapter, without training."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
from factories import byte_pairs, folder_of, pairs, save_model, sums, word_pieces

import nlora_lab as nl
from nlora_lab.cli import main as cli
from nlora_lab.evaluation import saved
from nlora_lab.evaluation.scoring import answers


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run, and its adapter saved as plain LoRA and in the form of this package."""
    run = nl.fine_tune(nl.RunConfig("nlora", lr=1e-4, steps=3, batch_size=4, test_rows=4))
    home = tmp_path_factory.mktemp("adapters")
    return run, {form: nl.save_adapter(run, home / form, form) for form in ("lora", "peft")}


@pytest.fixture(scope="module")
def task():
    return nl.load_task("word-problems", test_rows=4)


@pytest.mark.parametrize("form", ["lora", "peft"])
def test_a_saved_adapter_answers_as_the_run_did(tuned, task, form):
    run, folders = tuned
    results, measures = nl.measure_saved("embedded", task, folders[form])
    assert tuple(a.text for a in results[:3]) == run.answers
    assert measures == {"accuracy": run.accuracy}


def test_the_model_alone_is_measured_by_function_and_by_command(task, capsys, embedded):
    results, _ = nl.measure_saved("embedded", task)
    assert results == answers(*embedded, task)
    assert cli.main(["measure", "--test-rows", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [a["text"] for a in printed["answers"]] == [a.text for a in results]
    assert cli.main(["measure", "--task", "entailment", "--test-rows", "9"]) == 0
    assert "of 9 test items" in capsys.readouterr().out


def test_what_cannot_be_measured_is_named(task, tmp_path):
    with pytest.raises(nl.InputError, match="holds no adapter_config"):
        nl.measure_saved("embedded", task, tmp_path)
    with pytest.raises(nl.InputError, match="engine='fast'"):
        nl.measure_saved("embedded", task, engine="fast")
    with pytest.raises(nl.InputError, match=r"engine='vllm' generates text.*'entailment' is not answered in text"):
        nl.measure_saved("embedded", nl.load_task("entailment", test_rows=4), engine="vllm")


def test_vllm_is_used_if_it_is_installed_and_there_is_a_card(task, tuned, monkeypatch):
    from nlora_lab.core.devices import Device

    calls = []

    def generate_texts(source, folder, prompts, tokens, end):
        calls.append((source, folder, prompts, tokens, end))
        return [row["target"] for row in task.test]

    fake = ModuleType("vllm")
    fake.__spec__ = object()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(saved, "generate_texts", generate_texts)
    tokenizer = nl.load_model()[1]
    nl.measure_saved("embedded", task)
    assert calls == []  # no card
    monkeypatch.setattr(saved, "find_device", lambda *_: Device("cuda", "bf16", "a card"))
    results, measures = nl.measure_saved("embedded", task, tuned[1]["lora"])
    assert measures == {"accuracy": 1.0}
    ((_, folder, prompts, tokens, end),) = calls
    assert end == 2
    assert folder == tuned[1]["lora"]
    assert [tokenizer.decode(p[1:]) for p in prompts] == list(task.test["prompt"])
    assert tokens > 8
    assert len(results) == 4


def longer(rows, words):
    """Rows whose texts are longer than the model has positions."""
    return [{**row, "sentence1": row["sentence1"] + " pears" * words} for row in rows]


def test_a_saved_model_reads_as_many_tokens_as_a_run_of_it(tmp_path):
    """RoBERTa's first positions are those of the padding: of 66, it has 64 for tokens."""
    folder = save_model("Roberta", tmp_path / "model", word_pieces(roberta=True), max_position_embeddings=66)
    data = folder_of(tmp_path / "data", longer(pairs(40), 80), "validation")
    cfg = nl.RunConfig("slora", rank=2, model=folder, task="mrpc", data=data, steps=1, batch_size=4)
    run = nl.fine_tune(cfg)
    adapter = nl.save_adapter(run, tmp_path / "adapter")
    results, measures = nl.measure_saved(folder, nl.load_task("mrpc", data), adapter)
    assert measures["accuracy"] == run.accuracy
    assert tuple(a.text for a in results[:3]) == run.answers
    assert cli.main(["measure", "--model", folder, "--adapter", str(adapter), "--task", "mrpc", "--data", data]) == 0


def test_a_saved_model_is_asked_as_a_run_asks_it(tmp_path):
    """With the chat template of its tokenizer, and with prompts that leave room for the answer."""
    tokenizer = byte_pairs()
    tokenizer.chat_template = "{{ bos_token }}Q {{ messages[0]['content'] }} A"
    folder = save_model("Llama", tmp_path / "model", tokenizer, max_position_embeddings=48)
    data = folder_of(tmp_path / "data", sums(40), "test")
    run = nl.fine_tune(nl.RunConfig("slora", rank=2, model=folder, task="gsm8k", data=data, steps=1, batch_size=4))
    adapter = nl.save_adapter(run, tmp_path / "adapter")
    results, _ = nl.measure_saved(folder, nl.load_task("gsm8k", data), adapter)
    assert tuple(a.text for a in results[:3]) == run.answers
