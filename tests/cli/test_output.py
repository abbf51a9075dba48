"""Where stdout cannot be written: one line on stderr and a status, and no table is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from nlora_lab.cli import main as cli

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def run(command, stdout, **environment):
    """Run a command in a process of its own, with its stdout, and return its status and its lines on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "nlora_lab", *command], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


def closed(command):
    """The same with stdout closed before the process starts."""
    words = [sys.executable, "-m", "nlora_lab", *command]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()


COMMANDS = {
    "help": ["--help"],
    "version": ["--version"],
    "recipes": ["recipes"],
    "compare": ["compare", "--methods", "lora,nlora"],
    "estimate": ["estimate", "--device", "T4"],
    "doctor": ["doctor"],
}


@needs_full
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_full_stdout_is_one_line_and_a_status(command):
    with FULL.open("w") as full:
        status, lines = run(command, full)
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith("nlora-lab: error: ")
    assert "cannot be written to stdout" in lines[0]


@pytest.mark.parametrize("command", [COMMANDS["recipes"], COMMANDS["version"]], ids=["recipes", "version"])
def test_a_closed_stdout_is_one_line_and_a_status(command):
    status, lines = closed(command)
    assert status == 1
    assert len(lines) == 1
    assert "cannot be written to stdout" in lines[0]


def test_a_reader_that_has_ended_is_no_error():
    read, write = os.pipe()
    os.close(read)
    status, lines = run(["recipes", "--json"], write)
    os.close(write)
    assert (status, lines) == (1, [])


def test_ascii_gets_escapes_and_json_stays_json(tmp_path):
    for command in (["recipes"], ["recipes", "--json"], ["recipes", "colab-gsm8k"]):
        places = {}
        for encoding in ("ascii", "utf-8"):
            with (tmp_path / encoding).open("w") as file:
                assert run(command, file, PYTHONIOENCODING=encoding) == (0, [])
            places[encoding] = (tmp_path / encoding).read_bytes()
        places["ascii"].decode("ascii")
        if "--json" in command:
            assert json.loads(places["ascii"]) == json.loads(places["utf-8"].decode())
        assert places["utf-8"].decode()


@pytest.mark.parametrize("text", ["é", "→", "😀", "a\udce9b", "\ud800"])
def test_what_an_encoding_lacks_is_written_as_json_writes_it(text):
    import codecs

    codecs.register_error(cli.ESCAPES, cli._as_escapes)
    for encoding in ("ascii", "latin-1", "utf-8"):
        written = json.dumps({"a": text}, ensure_ascii=False).encode(encoding, cli.ESCAPES)
        assert json.loads(written.decode(encoding)) == {"a": text}


@needs_full
def test_a_table_is_not_lost_with_its_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NLORA_LAB_CACHE", str(tmp_path))
    assert cli.main(["scan", "embedded", "--ranks", "8"]) == 0
    table, _ = capsys.readouterr()
    assert cli.main(["scan", "embedded", "--ranks", "8", "--csv", str(FULL)]) == 2
    out, err = capsys.readouterr()
    assert out == table
    (line,) = (line for line in err.splitlines() if "error" in line)
    assert "--csv '/dev/full' cannot be written" in line
    assert "the table is on stdout" in line
    assert "Traceback" not in err


@pytest.mark.parametrize(("level", "status"), [("1", 0), ("2", 2)])
def test_a_python_without_docstrings_is_named(level, status):
    done = subprocess.run(
        [sys.executable, "-m", "nlora_lab", "recipes"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONOPTIMIZE": level},
    )  # fmt: skip
    assert done.returncode == status
    assert ("python -OO removes docstrings" in done.stderr) == (status == 2)
    assert len(done.stderr.splitlines()) == (status == 2)


def test_a_warning_is_one_line_without_the_place_in_the_code(tmp_path):
    (tmp_path / "odd.json").write_text("{}\n")
    status, lines = run(["gather", str(tmp_path), "--into", str(tmp_path / "all")], subprocess.DEVNULL)
    assert status == 0
    line, _ = lines  # and how many runs were found
    assert line.startswith(f"nlora-lab: warning: {tmp_path / 'odd.json'}, line 1: ")


def test_a_name_cannot_command_the_terminal(capsys):
    with cli._guarded_stdout() as stdout:
        print("a\x1b[31m\x9bb\tc\r\nd", file=stdout)
    assert capsys.readouterr().out == "a\\x1b[31m\\x9bb\tc\\x0d\nd\n"


def test_a_path_of_an_option_may_be_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = cli._parser().parse_args(["run", "--out=~/runs", "--adapter=a~b"])
    assert (options.out, options.adapter) == (tmp_path / "runs", Path("a~b"))


def test_a_warning_of_another_library_keeps_its_place():
    before = warnings.formatwarning
    with cli._plain_warnings():
        assert "other.py:7: UserWarning: odd" in warnings.formatwarning("odd", UserWarning, "other.py", 7)
    assert warnings.formatwarning is before
