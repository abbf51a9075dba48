"""A model as it stands, or with a saved adapter: measured without training."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

import nlora_lab as nl
from nlora_lab.cli import main as cli
from nlora_lab.evaluation import saved as measuring
from nlora_lab.evaluation.scoring import answers


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run, and its adapter as plain LoRA and as PEFT saves this package's."""
    run = nl.fine_tune(nl.RunConfig("nlora", lr=1e-4, steps=3, batch_size=4, test_rows=4))
    home = tmp_path_factory.mktemp("adapters")
    return run, {form: nl.save_adapter(run, home / form, form) for form in ("lora", "peft")}


@pytest.fixture(scope="module")
def task():
    return nl.load_task("word-problems", test_rows=4)


@pytest.mark.parametrize("form", ["lora", "peft"])
def test_a_saved_adapter_answers_as_the_run_did(tuned, task, form):
    run, folders = tuned
    given, measured = nl.measure_saved("embedded", task, folders[form])
    assert tuple(a.said for a in given[:3]) == run.answers
    assert measured == {"accuracy": run.accuracy}


def test_the_model_alone_is_measured_and_the_command_says_so(task, capsys, embedded):
    given, _ = nl.measure_saved("embedded", task)
    assert given == answers(*embedded, task)
    assert cli.main(["measure", "--test-rows", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [a["said"] for a in told["answers"]] == [a.said for a in given]
    assert cli.main(["measure", "--task", "entailment", "--test-rows", "9"]) == 0
    assert "of 9 test items" in capsys.readouterr().out


def test_what_cannot_be_measured_is_named(task, tmp_path):
    with pytest.raises(nl.InputError, match="holds no adapter_config"):
        nl.measure_saved("embedded", task, tmp_path)
    with pytest.raises(nl.InputError, match="engine='fast'"):
        nl.measure_saved("embedded", task, engine="fast")
    with pytest.raises(nl.InputError, match="not answered in words"):
        nl.measure_saved("embedded", nl.load_task("entailment", test_rows=4), engine="vllm")


def test_vllm_is_taken_where_it_is_and_there_is_a_card(task, tuned, monkeypatch):
    from nlora_lab.core.devices import Device
    from nlora_lab.evaluation import vllm_engine

    asked = []

    def generate(source, folder, prompts, tokens):
        asked.append((source, folder, prompts, tokens))
        return [row["target"] for row in task.test]

    fake = ModuleType("vllm")
    fake.__spec__ = object()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(vllm_engine, "generate", generate)
    nl.measure_saved("embedded", task)
    assert asked == []  # no card
    monkeypatch.setattr(measuring, "find_device", lambda *_: Device("cuda", "bf16", "a card"))
    given, measured = nl.measure_saved("embedded", task, tuned[1]["lora"])
    assert measured == {"accuracy": 1.0}
    ((_, folder, prompts, tokens),) = asked
    assert folder == tuned[1]["lora"]
    assert [p.removeprefix("<s>") for p in prompts] == list(task.test["prompt"])
    assert tokens > 8
    assert len(given) == 4
