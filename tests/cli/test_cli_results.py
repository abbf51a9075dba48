"""The commands for recorded runs."""

from __future__ import annotations

import json

from factories import some_run

from nlora_lab.cli import main as cli
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.store import RunStore


def test_compare_says_what_the_seeds_allow(tmp_path, capsys):
    store = RunStore(tmp_path / "runs")
    for method, shift in (("lora", 0.0), ("slora", 0.1)):
        for seed, accuracy in enumerate((0.4, 0.7, 0.85, 0.6, 0.8)):
            config = RunConfig(method=method, lr=1e-2, seed=seed)
            shifted = accuracy + shift * (1 + seed / 50)
            store.add(some_run(config=config, metrics={"accuracy": shifted, "validation_loss": 0.1}))
    assert cli.main(["compare", str(store.path), "--out", str(tmp_path / "t.csv")]) == 0
    out = capsys.readouterr().out
    assert "not distinguishable from LoRA: +10" in out
    assert "the baseline" in out
    assert (tmp_path / "t.csv").read_text().startswith("group,rate,seeds,diverged,median")
    assert cli.main(["compare", str(store.path), "--at", "1e-2", "--metric", "final_loss", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["method"] for row in rows} == {"lora", "slora"}
    assert cli.main(["compare", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_gather_brings_a_class_together(tmp_path, capsys):
    for i, name in enumerate(("first", "second")):
        RunStore(tmp_path / name).add(some_run(seconds=1.0 + i))
    into = str(tmp_path / "all")
    assert cli.main(["gather", str(tmp_path / "first"), str(tmp_path / "second"), "--into", into]) == 0
    assert "2 runs copied" in capsys.readouterr().out
    assert cli.main(["gather", str(tmp_path / "first"), into, "--into", into]) == 0
    assert "0 runs copied" in capsys.readouterr().out
    assert cli.main(["gather", str(tmp_path / "third"), "--into", into]) == 2
    assert "third' is not a folder of runs" in capsys.readouterr().err


def test_a_comparison_that_cannot_be_written_is_printed(tmp_path, capsys):
    (tmp_path / "d.csv").mkdir()
    assert cli.main(["compare", "--methods", "lora,slora", "--out", str(tmp_path / "d.csv")]) == 2
    out, err = capsys.readouterr()
    assert "not distinguishable" in out
    assert "nlora-lab: error: " in err
