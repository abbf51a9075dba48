from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from nlora_lab.cli import lab
from nlora_lab.cli import main as cli
from nlora_lab.cli.settings import parse_rates
from nlora_lab.core.errors import InputError
from nlora_lab.runs.run import Run

QUICK = ["--steps", "2", "--batch-size", "2", "--task", "entailment"]


def test_race_prints_a_table_and_progress_apart(capsys, tmp_path):
    code = cli.main(["race", "--rank", "4", "--lr", "1e-3,nlora=2e-4", *QUICK, "--out", str(tmp_path / "runs")])
    out, err = capsys.readouterr()
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["method", "------", "lora", "slora", "nlora"]
    assert "peak memory" in lines[0]
    assert lines[2].split()[1] == "1.0e-03"
    assert lines[4].split()[1] == "2.0e-04"
    assert "100 %" in err
    assert "00:00 left" in err
    assert len(list((tmp_path / "runs").glob("*.json"))) == 3
    assert {Run.load(p).config.rank for p in (tmp_path / "runs").glob("*.json")} == {4}


def test_json_is_all_there_is_on_stdout(capsys):
    assert cli.main(["race", "--methods", "lora,full", "--json", *QUICK]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [r["method"] for r in runs] == ["lora", "full"]
    names = {"method", "final_loss", "accuracy", "trainable", "seconds", "peak_memory", "diverged"}
    assert all(names <= set(r) for r in runs)


def test_run_is_a_race_of_one(capsys):
    assert cli.main(["run", "--method", "slora", "--init", "identity", "--json", *QUICK]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["init"] == "identity"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--rank", "0"], "rank=0"),
        (["--rank", "129"], "rank=129"),
        (["--methods", "lora,lorra"], "method='lorra'"),
        (["--methods", ","], "names no method"),
        (["--task", "poetry"], "task='poetry'"),
        (["--model", "nope"], "model='nope'"),
        (["--lr", "0"], "lr=0.0"),
        (["--lr=-1e-3"], "lr=-0.001"),
        (["--lr", "fast"], "'fast' is not a rate"),
        (["--lr", "lora=1e-3"], "gives slora, nlora no rate"),
        (["--lr", "2e-4,dora=1e-3"], "'dora' is not in the race"),
        (["--init", "zeros"], "nothing can learn"),
        (["--methods", "lora", "--init", "kaiming"], "none of lora has a choice"),
        (["--steps", "0"], "steps=0"),
        (["--out", ""], "names no folder"),
        (["--out", "/dev/null/runs"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, names):
    assert cli.main(["race", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert names in errors[0]
    assert "Traceback" not in err


def test_rates():
    assert parse_rates("2e-4", ["a", "b"]) == {"a": 2e-4, "b": 2e-4}
    assert parse_rates("a=1, b=2e-3", ["a", "b"]) == {"a": 1.0, "b": 2e-3}
    for twice in ("a=1,a=2,b=1", "1,2"):
        with pytest.raises(InputError, match="two rates"):
            parse_rates(twice, ["a", "b"])
    assert parse_rates("a=1,5", ["a", "b"]) == {"a": 1.0, "b": 5.0}
    with pytest.raises(InputError, match="no rate"):
        parse_rates("a=1", ["a", "b"])


def test_notebooks_from_a_wheel_are_copied_once(tmp_path, monkeypatch):
    import nlora_lab.core.files

    source = tmp_path / "site" / "_shipped" / "notebooks"
    source.mkdir(parents=True)
    (source / lab.START).write_text("{}")
    monkeypatch.setattr(nlora_lab.core.files, "_PACKAGE", tmp_path / "site")
    folder = lab.notebook_folder(tmp_path)
    assert folder == tmp_path / lab.COPIES
    (folder / lab.START).write_text("my answers")
    assert (lab.notebook_folder(tmp_path) / lab.START).read_text() == "my answers"


def test_without_jupyterlab_the_lab_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(lab, "find_spec", lambda name: None)
    assert cli.main(["lab"]) == 2
    assert "pip install 'nlora-lab[lab]'" in capsys.readouterr().err


def test_lab_opens_the_first_notebook_and_hands_its_options_on(monkeypatch):
    commands = []

    class Done:
        returncode = 0

    monkeypatch.setattr(lab.subprocess, "run", lambda command, **_: commands.append(command) or Done())
    assert cli.main(["lab", "--no-browser", "--port", "9999"]) == 0
    (command,) = commands
    assert f"--LabApp.default_url=/lab/tree/notebooks/{lab.START}" in command
    assert command[-2:] == ["--port", "9999"]
    assert "--no-browser" in command


def test_jupyterlab_asks_nothing_about_news(monkeypatch):
    config = pytest.importorskip("jupyterlab_server.config")
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "elsewhere")
    path = lab.jupyter_environment()["JUPYTER_CONFIG_PATH"]
    assert path.endswith(f"{os.pathsep}elsewhere")
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", path)
    disabled = config.get_static_page_config(level="all")["disabledExtensions"]
    assert disabled["@jupyterlab/apputils-extension:announcements"] is True


def shown(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


COMMANDS = {
    "Learn": ["lab", "page", "doctor"],
    "Teach": ["notebooks", "pack"],
    "Train": ["run", "race", "sweep", "recipes", "estimate"],
    "Look at results": ["compare", "reproduce", "gather", "measure", "scan", "export"],
}


def test_help_shows_the_commands_in_groups_with_one_line_each(capsys):
    text = shown(capsys)
    assert text.startswith("usage: nlora-lab [-h] [--version] COMMAND ...\n")
    assert "positional arguments" not in text
    for title, names in COMMANDS.items():
        group = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0].splitlines()
        assert [line.split()[0] for line in group] == names
        assert all(len(line) <= 100 and len(line.split()) > 4 for line in group)
    with pytest.raises(SystemExit):
        cli.main([])
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for names in COMMANDS.values() for name in names])
def test_the_help_of_every_command_ends_with_an_example_that_is_valid(capsys, name):
    text = shown(capsys, name)
    assert text.startswith(f"usage: nlora-lab {name} ")
    example = text.partition("\nexample:\n")[2].splitlines()[-1].split()
    assert example[:2] == ["nlora-lab", name]
    options, rest = cli._parser().parse_known_args(example[1:])
    assert callable(options.command)
    assert name == "lab" or not rest


def test_building_the_command_line_loads_nothing_heavy():
    code = "import sys; from nlora_lab.cli import main; main._parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "transformers", "datasets", "peft", "plotly", "pandas"}


def test_the_grid_of_recorded_runs_has_a_command_of_its_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "recorded", "--store", "runs"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nlora-lab: error: recorded is not a grid (")
    assert error.endswith("python -m tools.record_grid\n")


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["race", "--ranc", "4"])
    assert caught.value.code == 2
    assert "--ranc" in capsys.readouterr().err


def test_a_changed_start_is_reported_under_the_table(capsys):
    assert cli.main(["run", "--method", "nlora-released", *QUICK]) == 0
    assert "nlora-released changed the model's logits by" in capsys.readouterr().out


def test_what_was_computed_is_shown_when_a_later_run_fails(monkeypatch, capsys):
    from nlora_lab.training import loop as training

    real = training.fine_tune

    def fail_second(config, *watchers, **options):
        if config.method == "full":
            raise RuntimeError("broken")
        return real(config, *watchers, **options)

    monkeypatch.setattr(training, "fine_tune", fail_second)
    with pytest.raises(RuntimeError, match="broken"):
        cli.main(["race", "--methods", "lora,full", "--json", *QUICK])
    assert [r["method"] for r in json.loads(capsys.readouterr().out)["runs"]] == ["lora"]


def test_json_stays_json_when_interrupted_before_the_first_run(monkeypatch, capsys):
    from nlora_lab.training import loop as training

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fine_tune", interrupt)
    assert cli.main(["run", "--json", *QUICK]) == 130
    assert json.loads(capsys.readouterr().out) == {"runs": []}


def test_a_saved_adapter_is_exported_as_plain_lora(capsys, tmp_path):
    import torch
    from peft import PeftModel, get_peft_model

    from nlora_lab.adapters import nlora
    from nlora_lab.models.loading import load_model

    torch.manual_seed(0)
    tuned = get_peft_model(load_model()[0], nlora(r=4)).eval()
    with torch.no_grad():
        for parameter in (p for p in tuned.parameters() if p.requires_grad):
            parameter.add_(0.01 * torch.randn(parameter.shape))
    tuned.save_pretrained(tmp_path / "mine")
    assert cli.main(["export", str(tmp_path / "mine"), "--as", "lora", "--out", str(tmp_path / "out" / "plain")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'plain'}\n"
    assert json.loads((tmp_path / "out" / "plain" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    loaded = PeftModel.from_pretrained(load_model()[0], str(tmp_path / "out" / "plain")).eval()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        target, base = tuned(ids).logits, load_model()[0](ids).logits
        assert (loaded(ids).logits - target).norm() < 1e-3 * (target - base).norm()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "adapter_config.json").write_text("{")
    (tmp_path / "damaged" / "adapter_model.safetensors").write_text("")
    wrong = {
        (str(tmp_path / "mine"), str(tmp_path / "mine")): "holds an adapter already",
        (str(tmp_path / "none"), str(tmp_path / "x")): "holds no adapter_config.json",
        (str(tmp_path / "damaged"), str(tmp_path / "x")): "adapter_config.json is damaged",
        (str(tmp_path / "mine"), ""): "--out '' names no folder",
        (str(tmp_path / "mine"), "/dev/null/x"): "cannot be written",
    }
    for (folder, out), words in wrong.items():
        assert cli.main(["export", folder, "--out", out]) == 2
        assert words in capsys.readouterr().err


def test_doctor_prints_its_lines_and_exits_by_its_verdict(capsys, monkeypatch):
    assert cli.main(["doctor"]) == 0
    assert "is ready" in capsys.readouterr().out
    monkeypatch.setenv("NLORA_LAB_DEVICE", "abacus")
    assert cli.main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "PROBLEM  NLORA_LAB_DEVICE='abacus'" in out
    assert err == ""


def test_scan_prints_a_table_writes_the_whole_one_and_speaks_json(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NLORA_LAB_CACHE", str(tmp_path / "cache"))
    assert cli.main(["scan", "embedded", "--ranks", "4,16", "--csv", str(tmp_path / "new" / "scan.csv")]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 + 29 + 1
    assert "nystrom_r4" in out.splitlines()[0]
    assert "scanned 29 of 29" in err
    assert len((tmp_path / "new" / "scan.csv").read_text().splitlines()) == 30
    assert list((tmp_path / "cache" / "spectra").rglob("*.json"))
    assert cli.main(["scan", "embedded", "--ranks", "8", "--json", "--no-cache"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 29
    assert {"layer", "module", "nystrom_r8", "cond_r8"} <= set(rows[0])
    csv = ["embedded", "--csv"]
    wrong = (["nowhere"], "not known"), (["embedded", "--ranks", "4,x"], "--ranks 4,x"), ([*csv, ""], "--csv")
    for arguments, words in (*wrong, ([*csv, str(tmp_path)], "--csv")):
        assert cli.main(["scan", *arguments]) == 2
        assert words in capsys.readouterr().err
