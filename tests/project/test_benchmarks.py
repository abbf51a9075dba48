"""The figures in the documentation are those of the records, and each benchmark counts what it says."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module

import pytest
from factories import ROOT

FOLDER = ROOT / "benchmarks"
PARTS = {"peer_rows", "scan_memory"}  # of linear_algebra
SCRIPTS = sorted({file.stem for file in FOLDER.glob("*.py")} - PARTS)


sys.path.insert(0, str(FOLDER))
adapters = import_module("adapters")


def record_of(name):
    return json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_starts(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        import_module(name).main()
    assert end.value.code == 0
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


def test_the_readme_lists_every_import_module():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[(\w+)\.py\]", text, re.MULTILINE)) == SCRIPTS


@pytest.mark.parametrize("name", ["race", "settings"])
def test_the_readme_shows_the_record(name):
    assert import_module(name).table(record_of(name)) in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_record_of_the_slider():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for table in import_module("slider_in_browser").stored_tables(record_of("slider")).split("\n\n"):
        assert table in text


def test_the_readme_shows_the_record_of_the_opening():
    table = import_module("opening_in_browser").table(record_of("opening")["rows"])
    assert table in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_record_of_the_lab():
    lab_overhead = import_module("lab_overhead")
    for result in record_of("lab_overhead"):
        low, middle, high = lab_overhead.quartiles([row["panel"] / row["bare"] for row in result["rows"]])
        line = f"| {', '.join(result['methods'])} | {middle:.3f} ({low:.3f}–{high:.3f}) | ≤ 1.03 |"
        assert line in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_record_of_the_adapters_is_complete_and_its_tables_are_in_the_docs():
    record = record_of("adapters")
    assert set(record["step"]) == set(adapters.STEP_METHODS)
    assert set(record["attach"]) == set(adapters.ATTACH_METHODS)
    assert set(record["peak"]) >= {"nlora", "nlora, folded", "PEFT pissa", "largest_layer"}
    assert adapters.tables(record) in (ROOT / "docs" / "adapters.md").read_text()


def test_the_benchmark_of_the_adapters_counts_what_autograd_keeps():
    """For one linear layer with LoRA: the input of the layer, and that of B."""
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
    times = {"peer": [1.0, 2.0, 4.0], "ours": [2.0, 3.0, 4.0]}
    assert adapters.compare_with(times, "peer")["ours"] == {"seconds": 3.0, "ratio": 1.5}
