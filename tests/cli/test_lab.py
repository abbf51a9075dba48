"""The command that opens JupyterLab."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest

from nlora_lab.cli import lab
from nlora_lab.cli import main as cli
from nlora_lab.core.files import shipped_folder

NAMES = sorted(file.name for file in shipped_folder("notebooks").glob("*.ipynb"))


@pytest.fixture
def as_wheel(monkeypatch, tmp_path):
    """The notebooks lie inside the package, and the working folder is empty and has a name that needs care."""
    shipped = shutil.copytree(shipped_folder("notebooks"), tmp_path / "_shipped" / "notebooks")
    monkeypatch.setattr(lab, "shipped_folder", lambda _: shipped)
    here = tmp_path / "Übung für Zoë"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def started(monkeypatch):
    commands = []

    def run(command, **options):
        commands.append((command, options["env"]))
        return SimpleNamespace(returncode=7)

    monkeypatch.setattr(lab.subprocess, "run", run)
    return commands


def test_it_starts_jupyterlab_with_its_own_address_and_token(as_wheel, started):
    assert cli.main(["lab", "--no-browser", "--port", "9999"]) == 7
    ((command, environment),) = started
    assert command[:4] == [sys.executable, "-P", "-m", "jupyterlab"]
    assert command[command.index("--ServerApp.root_dir") + 1] == str(as_wheel)
    assert f"--LabApp.default_url=/lab/tree/{lab.COPIES}/{lab.START}" in command
    assert command[-2:] == ["--port", "9999"]
    assert not any(word in part for part in command for word in ("ip=", "token", "password"))
    assert "labconfig" in [path.name for path in (lab.Path(environment["JUPYTER_CONFIG_PATH"])).iterdir()]


def test_copies_are_made_once_and_answers_in_them_stay(as_wheel, started):
    cli.main(["lab"])
    copies = as_wheel / lab.COPIES
    (copies / NAMES[0]).write_text("answers")
    (copies / NAMES[1]).unlink()
    cli.main(["lab"])
    assert sorted(file.name for file in copies.iterdir()) == NAMES
    assert (copies / NAMES[0]).read_text() == "answers"
    assert (copies / NAMES[1]).read_bytes() == (shipped_folder("notebooks") / NAMES[1]).read_bytes()


def test_half_a_copy_is_not_kept(as_wheel, monkeypatch):
    def half(source, target):
        target.write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lab.shutil, "copyfile", half)
        with pytest.raises(KeyboardInterrupt):
            lab.notebook_folder(as_wheel)
    assert list((as_wheel / lab.COPIES).iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(as_wheel, capsys):
    (as_wheel / lab.COPIES).write_text("a file")
    assert cli.main(["lab"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert lab.COPIES in line
    assert "cannot be written" in line
