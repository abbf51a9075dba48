"""A pack made without a network is installed without a network, with small stand-ins for the dependencies."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from factories import ROOT

from nlora_lab.cli import main as cli
from nlora_lab.core.errors import InputError
from nlora_lab.course.teaching import pack as packing

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M))


def names(requirements):
    return [re.split(r"[\s\[<>=!~;]", r)[0] for r in requirements]


def stand_in(folder, name, version):
    """A wheel that installs nothing but its metadata."""
    stem = f"{name.replace('-', '_')}-{version}"
    files = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{stem}.dist-info/RECORD"
    files[record] = "".join(f"{file},,\n" for file in [*files, record])
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """pip sees no index, only a folder of stand-ins."""
    folder = tmp_path / "stand-ins"
    folder.mkdir()
    needed = names(PROJECT["dependencies"]) + names(PROJECT["optional-dependencies"]["lab"])
    assert len(needed) >= 20
    for name in needed:
        stand_in(folder, name, PINNED[name])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_pack_is_made_resumed_and_installed_without_a_network(offline, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "my stick"
    assert cli.main(["pack", str(folder)]) == 0
    count = len(list(offline.iterdir())) + 1
    said = capsys.readouterr().out
    assert said.startswith(f"{count} wheels, ")
    assert "nlora_lab-" in said
    assert sorted(p.name for p in (folder / "notebooks").iterdir()) == sorted(
        p.name for p in (ROOT / "notebooks").iterdir()
    )

    # a second call finds everything in the folder
    monkeypatch.delenv("PIP_FIND_LINKS")
    (folder / "README.txt").unlink()
    assert cli.main(["pack", str(folder)]) == 0
    assert capsys.readouterr().out == said

    # the two commands of the README, on a machine without the clone
    readme = (folder / "README.txt").read_text()
    (install,) = re.findall(r"nlora-env/bin/pip (install .*)", readme)
    assert install == 'install --no-index --find-links . "nlora-lab[lab]"'
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    python = env / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), *install.replace('"', "").split()],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    code = "import nlora_lab as nl; print(nl.__version__, nl.__file__)"
    done = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    version, file = done.stdout.split(maxsplit=1)
    assert version == PROJECT["version"]
    assert file.startswith(str(env))


def test_what_pip_says_comes_in_one_line(offline, tmp_path):
    (next(offline.glob("torch-*"))).unlink()
    with pytest.raises(InputError, match=r"pip wheel failed \(Cannot install nlora-lab.*conflict") as caught:
        packing.make_pack(tmp_path / "pack")
    assert "\n" not in str(caught.value)


def test_bad_input_is_refused_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(packing.subprocess, "run", None)
    with pytest.raises(InputError, match="torch='cuda' is not known"):
        packing.make_pack(tmp_path, "cuda")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        packing.make_pack(tmp_path / "file")
    monkeypatch.setattr(packing, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip is missing"):
        packing.make_pack(tmp_path / "pack")


def test_outside_a_clone_the_package_comes_from_where_it_was_installed_from(monkeypatch):
    monkeypatch.setattr(packing, "_clone", lambda: None)

    class Installed:
        origin = '{"url": "https://example.org/a.git", "vcs_info": {"vcs": "git", "commit_id": "0"}}'

        def read_text(self, name):
            return self.origin

    monkeypatch.setattr(packing, "distribution", lambda name: Installed())
    assert packing._own_source() == ["nlora-lab @ git+https://example.org/a.git"]
    monkeypatch.setattr(Installed, "origin", None)
    assert packing._own_source() == [f"nlora-lab=={packing.package_version()}"]
