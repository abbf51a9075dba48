"""The built wheel works outside the clone, in an environment that has never seen it."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile

import pytest
from factories import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


def test_it_carries_what_it_needs_and_nothing_large(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        (entry,) = (archive.read(n).decode() for n in files if n.endswith("entry_points.txt"))
    assert "nlora-lab = nlora_lab.cli.main:main" in entry
    needed = (
        "py.typed", "cli/jupyter/labconfig/page_config.json",
        "_shipped/data/embedded/model.safetensors", "_shipped/data/embedded/tokenizer.json",
        "_shipped/data/larger/model.safetensors",
        "_shipped/data/tasks/entailment/test.jsonl", "_shipped/notebooks/00_start_here.ipynb",
        "_shipped/notebooks/03_spectra_of_a_transformer.ipynb",
    )  # fmt: skip
    assert {f"nlora_lab/{name}" for name in needed} <= files
    assert not any("tests/" in name or name.endswith((".pt", ".part")) for name in files)
    assert wheel.stat().st_size < 14_000_000  # of it 5.7 MB are the larger model, 3.7 the embedded one


def test_race_works_in_a_clean_environment_outside_the_clone(wheel, tmp_path):
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    site = next(env.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # the dependencies are the tested ones, lent by path; nlora_lab itself is found before them
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    def run(*arguments: str) -> str:
        command = [env / "bin" / "python", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert run("-c", "import nlora_lab; print(nlora_lab.__file__)").startswith(str(site))
    done = run("-m", "nlora_lab.cli.main", "race", "--steps", "2", "--json")
    assert [r["method"] for r in json.loads(done)["runs"]] == ["lora", "slora", "nlora"]
