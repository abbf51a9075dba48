"""Files are written completely or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nlora_lab.core.cache import Cache
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import (
    atomic_file,
    atomic_folder,
    check_writable,
    expand_path,
    part_of,
    remove_parts,
    write_atomically,
)


def test_a_file_is_written_and_replaced_and_nothing_is_left_beside_it(tmp_path):
    place = tmp_path / "new" / "a.txt"
    for text in ("ä\nb\n", "c"):
        assert write_atomically(place, text) == place
        assert place.read_bytes() == text.encode()
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize("raised", [OSError("disk full"), KeyboardInterrupt()])
def test_what_ends_the_writing_leaves_the_old_file_alone(tmp_path, raised):
    place = write_atomically(tmp_path / "a.txt", "old")

    def write_half():
        with atomic_file(place) as part:
            part.write_text("half")
            raise raised

    with pytest.raises(InputError if isinstance(raised, OSError) else KeyboardInterrupt):
        write_half()
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("place", ["file/a.txt", "folder", "", "nul\0.txt"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder").mkdir()
    with pytest.raises(InputError, match=r"cannot be written \(.*\); make room, or choose another place"):
        write_atomically(Path(place), "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_is_tried_before_the_work_is_done(tmp_path):
    check_writable(tmp_path / "new", "--out new")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^--out file cannot be written"):
        check_writable(tmp_path / "file", "--out file")


def test_a_home_that_is_not_there_is_named():
    assert expand_path("~") == Path.home()
    with pytest.raises(InputError, match="path='~nobody-of-this-name/x'"):
        expand_path("~nobody-of-this-name/x")


DIE = """
    import os, sys
    from pathlib import Path
    from nlora_lab.core.files import part_of
    part_of(Path(sys.argv[1]) / "row.json").write_text("half")
    part_of(Path(sys.argv[1]) / "step-4").mkdir()
    os.kill(os.getpid(), 9)
"""


def leave_litter(folder):
    """What a killed process leaves: a file and a folder."""
    subprocess.run([sys.executable, "-c", DIE.replace("\n    ", "\n"), str(folder)], check=False)
    return sorted(folder.glob(".*.part"))


def test_only_the_litter_of_processes_that_are_gone_is_removed(tmp_path):
    litter = leave_litter(tmp_path)
    assert len(litter) == 2
    mine = part_of(tmp_path / "mine.json")
    elsewhere = tmp_path / f".row.json.00000000-{2**22 - 1}-{'0' * 12}.part"  # of another machine on the same disk
    strange = tmp_path / ".notes.part"
    for file in (mine, elsewhere, strange):
        file.write_text("kept")
    remove_parts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, elsewhere, strange])
    remove_parts(tmp_path / "not there")


def test_who_writes_a_file_or_folder_again_removes_what_a_killed_process_left_of_it(tmp_path):
    assert len(leave_litter(tmp_path)) == 2
    other = tmp_path / ".row.json2.00000000-1-000000000000.part"
    other.write_text("of another file")
    write_atomically(tmp_path / "row.json", "{}")
    with atomic_folder(tmp_path / "step-4") as part:
        (part / "a").write_text("a")
    assert sorted(tmp_path.iterdir()) == sorted([other, tmp_path / "row.json", tmp_path / "step-4"])


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_folder_that_is_replaced_has_its_config_last(monkeypatch, tmp_path, name):
    folder, names, states = tmp_path / "adapter", (name, "model.safetensors", "z.txt"), []

    def write(text):
        with atomic_folder(folder) as part:
            for file in names:
                (part / file).write_text(text)

    def replace(new, old, function=os.replace):
        function(new, old)
        states.append((folder / name).exists())  # as a process that is killed here leaves it

    write("old")
    monkeypatch.setattr(os, "replace", replace)
    write("new")
    assert states == [False, False, True]
    assert {file.name: file.read_text() for file in folder.iterdir()} == dict.fromkeys(names, "new")


def test_a_name_of_a_half_written_file_is_new_each_time_and_hidden(tmp_path):
    names = {part_of(tmp_path / "a.json").name for _ in range(50)}
    assert len(names) == 50
    assert all(name.startswith(".a.json.") and name.endswith(".part") and str(os.getpid()) in name for name in names)


def test_a_cache_is_tidied_and_what_is_being_written_stays(tmp_path):
    cache = Cache(tmp_path)
    cache.put("spectra/2/row", {"a": 1})
    folder = tmp_path / "spectra" / "2"
    litter, mine = leave_litter(folder), part_of(folder / "other.json")
    mine.write_text("half")
    cache.tidy()
    assert sorted(folder.iterdir()) == sorted([folder / "row.json", mine])
    assert len(litter) == 2
    assert cache.get("spectra/2/row") == {"a": 1}
    Cache(tmp_path / "not there").tidy()


@pytest.mark.parametrize("path", ["", "  ", 5, None, b"x"])
def test_what_is_no_path_is_named(path):
    with pytest.raises(InputError, match="--out="):
        expand_path(path, "--out")
