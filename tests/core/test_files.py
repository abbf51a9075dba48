"""Files are written completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import atomic_file, check_writable, expand_path, write_atomically


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
