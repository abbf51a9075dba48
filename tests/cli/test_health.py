"""The doctor: ready on a healthy machine, and one line for each problem."""

from __future__ import annotations

import shutil
import socket
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from factories import ROOT

import nlora_lab as nl
import nlora_lab.core.files
from nlora_lab.cli import health


def lines(check):
    return [str(result) for result in health._results(check)]


def one(check):
    (line,) = lines(check)
    return line


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A copy of what ships, to spoil."""
    for name in ("data", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / "_shipped" / name)
    monkeypatch.setattr(nlora_lab.core.files, "_PACKAGE", tmp_path)
    return tmp_path / "_shipped"


def test_a_healthy_machine_is_ready_without_a_network(capsys, monkeypatch, tmp_path):
    def refuse(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("NLORA_LAB_CACHE", str(tmp_path / "not" / "yet"))
    assert nl.doctor() is True
    out = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in out[:-1]} <= {"ok", "note"}
    assert out[-1] == f"nlora-lab {nl.__version__} is ready"
    for library in "torch transformers peft datasets accelerate plotly ipywidgets anywidget".split():
        assert any(line.startswith(f"ok       {library} ") and ">=" in line for line in out), library
    for words in (
        "Python 3.",
        "CPU",
        "figures are",
        "embedded model is complete",
        "larger model is complete",
        "tasks are",
        "notebooks are",
        "cache",
    ):
        assert sum(words in line for line in out) >= 1, words
    assert not (tmp_path / "not").exists()


def test_a_check_that_fails_itself_is_a_problem(capsys, monkeypatch):
    def _gravity():
        raise OSError(f"{Path.home() / 'secret'} fell up\nand more")
        yield

    monkeypatch.setattr(health, "CHECKS", (_gravity,))
    assert health.doctor() is False
    line, verdict = capsys.readouterr().out.splitlines()
    assert line.startswith("PROBLEM  the check of gravity failed with OSError: ")
    assert "fell up and more; install nlora-lab again" in line
    assert "is not ready" in verdict
    if str(Path.home()) != "/":
        assert "~/secret" in line


def test_a_package_that_was_never_installed_is_a_problem(monkeypatch):
    def missing(name):
        raise health.PackageNotFoundError(name)

    monkeypatch.setattr(health, "requires", missing)
    assert one(health._libraries).startswith("PROBLEM  the check of libraries failed with PackageNotFoundError")


@pytest.mark.parametrize(
    ("installed", "line"),
    [
        ("2.5.1", "PROBLEM  torch 2.5.1 is too old: >=2.6; run: pip install -U 'torch>=2.6'"),
        (None, "PROBLEM  torch is not installed; run: pip install -U 'torch>=2.6'"),
        ("2.6.0", "ok       torch 2.6.0 (>=2.6)"),
        ("2.13.0+cpu", "ok       torch 2.13.0+cpu (>=2.6)"),
        ("10", "ok       torch 10 (>=2.6)"),
    ],
)
def test_versions_are_compared_as_numbers(monkeypatch, installed, line):
    monkeypatch.setattr(health, "_installed", lambda name: installed)
    monkeypatch.setattr(health, "requires", lambda name: ["torch>=2.6", "ruff>=1; extra == 'test'"])
    assert lines(health._libraries) == [line]


def test_a_missing_jupyterlab_is_only_a_note(monkeypatch):
    libraries = ["torch>=2.6", 'jupyterlab>=4.2; extra == "lab"', "jupyterlab>=4.2; extra == 'test'"]
    monkeypatch.setattr(health, "requires", lambda name: libraries)
    monkeypatch.setattr(health, "_installed", lambda name: None)
    line = one(health._extras)
    assert line.startswith(
        "note     jupyterlab is not installed; only `nlora-lab lab` needs it; run: pip install 'nlora"
    )


def test_an_old_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(health, "metadata", lambda name: {"Requires-Python": ">=9.1"})
    assert "is too old: >=9.1" in one(health._python)
    assert one(health._python).startswith("PROBLEM")


def test_the_device_and_who_chose_it(monkeypatch):
    monkeypatch.setenv("NLORA_LAB_DEVICE", "cpu")
    assert "CPU, " in one(health._device)
    assert "(by NLORA_LAB_DEVICE)" in one(health._device)
    monkeypatch.setattr(health, "MEMORY", 2**60)
    assert one(health._device).startswith("note")
    monkeypatch.setenv("NLORA_LAB_DEVICE", "abacus")
    line = one(health._device)
    assert line.startswith("PROBLEM  NLORA_LAB_DEVICE='abacus' is not known")
    assert line.endswith("NLORA_LAB_DEVICE sets it: unset NLORA_LAB_DEVICE")


def test_a_graphics_card_is_named_with_its_own_memory(monkeypatch):
    import torch

    from nlora_lab.core import devices

    monkeypatch.setattr(devices, "find_device", lambda: devices.Device("cuda", "bf16", "Big Card, bfloat16 autocast"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**30, 16 * 2**30))
    monkeypatch.delenv("NLORA_LAB_DEVICE", raising=False)
    line = one(health._device)
    assert line.startswith("ok       training runs on Big Card, bfloat16 autocast, ")
    assert line.endswith("3.0 GiB of 16.0 GiB free")


def test_why_figures_are_live_or_not(monkeypatch):
    from nlora_lab.labs import figures

    for name in ("NLORA_LAB_FIGURES", "VSCODE_PID", "VSCODE_CWD"):
        monkeypatch.delenv(name, raising=False)
    assert one(health._figures) == "ok       figures are live (plotly)"
    monkeypatch.setenv("NLORA_LAB_FIGURES", "image")
    assert one(health._figures) == "ok       figures are images, drawn once a second, because NLORA_LAB_FIGURES says so"
    monkeypatch.setenv("NLORA_LAB_FIGURES", "etching")
    assert one(health._figures).startswith("PROBLEM  NLORA_LAB_FIGURES='etching' is not known")
    monkeypatch.delenv("NLORA_LAB_FIGURES")
    monkeypatch.setattr(figures, "_has_figure_widget", lambda: False)
    assert "run: pip install -U anywidget plotly" in one(health._figures)
    monkeypatch.setenv("VSCODE_PID", "1")
    assert "VS Code does not always" in one(health._figures)
    monkeypatch.setitem(sys.modules, "google.colab", object())
    assert "Colab does not always" in one(health._figures)
    assert one(health._figures).startswith("note")


def test_what_shipped_is_found_whole(shipped):
    assert one(health._embedded_model).startswith("ok       the embedded model is complete: 5 files, 38 tensors")
    assert one(health._larger_model).startswith("ok       the larger model is complete: 5 files, 38 tensors")
    assert one(health._tasks) == "ok       the tasks are complete: word-problems, entailment"
    assert one(health._notebooks).startswith("ok       the notebooks are complete: ")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", None, "the embedded model lacks tokenizer.json"),
        ("config.json", "{", "config.json of the embedded model is damaged"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1", "weights are damaged"),
        ("model.safetensors", "", "weights are damaged"),
    ],
)
def test_a_damaged_model_is_a_problem(shipped, name, content, words):
    path = shipped / "data" / "embedded" / name
    path.unlink() if content is None else path.write_text(content)
    line = one(health._embedded_model)
    assert line.startswith("PROBLEM")
    assert words in line
    assert "install nlora-lab again" in line


def test_cut_off_weights_are_a_problem(shipped):
    path = shipped / "data" / "embedded" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "weights are damaged" in one(health._embedded_model)


def test_missing_tasks_and_notebooks_are_problems(shipped):
    (shipped / "data" / "tasks" / "entailment" / "test.jsonl").write_text("")
    assert "the tasks lack entailment/test.jsonl" in one(health._tasks).replace("\\", "/")
    notebook = shipped / "notebooks" / health.START
    notebook.write_text("<html>")
    assert f"these notebooks are damaged: {health.START}" in one(health._notebooks)
    notebook.unlink()
    assert one(health._notebooks).startswith(f"PROBLEM  {health.START} is missing")


def test_no_data_at_all_says_to_install_again(tmp_path, monkeypatch):
    monkeypatch.setattr(nlora_lab.core.files, "_PACKAGE", tmp_path / "nothing")
    for check in (health._embedded_model, health._larger_model, health._tasks, health._notebooks):
        assert one(check).startswith("PROBLEM  the ")
        assert "install nlora-lab again" in one(check)


def test_a_cache_that_cannot_be_written_is_a_note(monkeypatch):
    monkeypatch.setenv("NLORA_LAB_CACHE", "/dev/null/cache")
    line = one(health._cache)
    assert line.startswith("note     the cache /dev/null/cache cannot be written (")
    assert line.endswith("set NLORA_LAB_CACHE to a folder that can be written")


def test_a_full_disk_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setenv("NLORA_LAB_CACHE", str(tmp_path))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(health.shutil, "disk_usage", lambda place: usage(2**40, 2**40, 2**20))
    assert "1.0 MiB of disk free; make room" in one(health._cache)
    assert list(tmp_path.iterdir()) == []


def test_home_is_said_as_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setattr(health.Path, "home", lambda: tmp_path)
    monkeypatch.setenv("NLORA_LAB_CACHE", str(tmp_path / "cache"))
    assert str(tmp_path) not in one(health._cache)
    assert "the cache ~" in one(health._cache)

    def nobody():
        raise RuntimeError("no home")

    monkeypatch.setattr(health.Path, "home", nobody)
    assert str(tmp_path) in one(health._cache)
