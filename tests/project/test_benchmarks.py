"""The figures in the README are those of the records, which are those of this tree."""

from __future__ import annotations

import importlib.util
import json

import pytest
from factories import ROOT

from nlora_lab.training.loop import fine_tune


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


first_table, adapters = script("first_table"), script("adapters")


@pytest.mark.parametrize("task", first_table.TASKS)
def test_the_readme_shows_the_recorded_table(task):
    assert first_table.table(task) in (ROOT / "README.md").read_text()


def test_the_rates_in_the_readme_are_the_ones_chosen_by_validation():
    own = {m: first_table.own_rate("word-problems", m) for m in first_table.RATES}
    text = ",".join(f"{m}={rate:.1e}".replace(".0e", "e").replace("e-0", "e-") for m, rate in own.items())
    assert f"--lr {text}" in (ROOT / "README.md").read_text()


def test_well_tuned_methods_learn_both_tasks_in_400_steps():
    runs = [first_table.load(cfg) for cfg in first_table.competence()]
    assert len(runs) == 4
    assert all(run.accuracy > 0.6 for run in runs)
    assert [f"{100 * r.accuracy:.1f}" for r in runs[:2]] == ["99.0", "99.0"]
    assert "both reach 99.0 %" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("method", list(first_table.RATES))
def test_a_recorded_run_is_found_again(method):
    """The first steps of a recorded run, at a rate where training is not chaotic."""
    recorded = first_table.load(first_table.config("word-problems", method, first_table.SHARED, 0))
    again = fine_tune(recorded.config, on_step=lambda step: step.step == 20)
    for a, b in zip(again.steps, recorded.steps, strict=False):
        assert a.loss == pytest.approx(b.loss, rel=5e-3)
        assert a.lr == b.lr
    assert len(again.steps) == 20


def test_the_adapters_record_is_whole_and_its_tables_are_those_of_the_docs():
    record = json.loads((adapters.RESULTS / "adapters.json").read_text())
    assert set(record["step"]) == set(adapters.STEPPED)
    assert set(record["attach"]) == set(adapters.ATTACHED)
    assert set(record["peak"]) >= {"nlora", "nlora, folded", "PEFT pissa", "largest_layer"}
    assert adapters.tables(record) in (ROOT / "docs" / "adapters.md").read_text()


def test_what_the_adapters_benchmark_counts_is_right():
    """Saved activations of one linear layer with LoRA: its input, and the adapter's inner one."""
    import torch
    from peft import LoraConfig, get_peft_model

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(32, 16, bias=False)

        def forward(self, x, labels=None):
            return type("Out", (), {"loss": self.lin(x).sum()})()

    x = torch.ones(4, 32)
    lora = adapters.kept_bytes(get_peft_model(One(), LoraConfig(r=2, target_modules=["lin"])), x)
    assert lora == 4 * (4 * 32 + 4 * 2)
    times = {"peer": [1.0, 2.0, 4.0], "own": [2.0, 3.0, 4.0]}
    assert adapters.against(times, "peer")["own"] == {"seconds": 3.0, "ratio": 1.5}
