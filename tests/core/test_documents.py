"""The one reader for JSON that somebody else may have written."""

from __future__ import annotations

import json
import os

import pytest

from nlora_lab.core.cache import Cache
from nlora_lab.core.documents import parse_json, read_json
from nlora_lab.core.errors import InputError
from nlora_lab.models.loading import load_model, meta_body
from nlora_lab.models.names import split_name
from nlora_lab.models.safetensors import read_header, read_index
from nlora_lab.runs.run import Run
from nlora_lab.tasks.registry import load_task


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('[{"b": {"c": 1, "d": 2, "c": 3}}]', "the key 'c' twice"),
        ("[" * 100_000, "nested too deep"),
        ("1" * 5000, "5000 digits"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ('{"\\uDFFF": 1}', "half of a surrogate pair"),
        ("", "Expecting value"),
        ("{", "Expecting property"),
        ("²", "Expecting value"),
    ],
)
def test_what_no_writer_meant_is_an_error(text, named):
    with pytest.raises(ValueError, match=named):
        parse_json(text)


def test_what_python_writes_is_read(tmp_path):
    value = {"a": [1, 2.5, float("inf"), None, True, "é😀"], "b": {"a": 10**200}}
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value, ensure_ascii=False)) == value
    (tmp_path / "a.json").write_text(json.dumps(value), encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == value


@pytest.fixture
def pipe(tmp_path):
    """A pipe that nobody writes into: whoever opens it waits for ever."""
    folder = tmp_path / "pipes"
    folder.mkdir()

    def make(name):
        os.mkfifo(folder / name)
        return folder / name

    return make


def test_a_pipe_is_never_opened(pipe, tmp_path):
    file = pipe("cache.json")
    assert Cache(file.parent).get("cache") is None
    for read in (read_index, read_header, Run.load, lambda path: load_task("own", path.parent / "train.jsonl")):
        with pytest.raises(InputError):
            read(file)
    with pytest.raises(InputError, match="not a regular file"):
        load_model(str(pipe("config.json").parent))
    link = tmp_path / "zero.json"
    link.symlink_to("/dev/zero")
    assert Cache(tmp_path).get("zero") is None


def test_a_header_with_a_key_twice_is_refused(tmp_path):
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = f"{{{entry}, {entry}}}".encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(InputError, match="the key 'a' twice"):
        read_header(tmp_path / "model.safetensors")


@pytest.mark.parametrize("part", ["²", "9" * 5000, "٣"])
def test_only_a_plain_number_is_the_number_of_a_layer(part):
    assert split_name(f"layers.{part}.up.weight") == (-1, f"layers.{part}.up")


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", 10**7), ("hidden_size", 10**9), ("vocab_size", 10**12), ("num_attention_heads", 10**9),
     ("num_hidden_layers", -5), ("intermediate_size", 1e30)],
)  # fmt: skip
def test_sizes_beyond_any_model_are_refused_at_once(field, value, tmp_path):
    from factories import save_model

    folder = save_model("Llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    for load in (load_model, meta_body):
        with pytest.raises(InputError, match=f"config.json says {field}="):
            load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", "", '{"a": 1, "a": 2}', "[" * 99_999])
def test_a_damaged_config_is_one_line(text, tmp_path):
    from factories import save_model

    folder = save_model("Llama", tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    for load in (load_model, meta_body):
        with pytest.raises(InputError, match=r"config\.json (cannot be read|is not an object)"):
            load(folder)


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_half_of_a_surrogate_pair_in_a_row_is_named(ending, tmp_path):
    rows = [json.dumps({"prompt": f"a{i}", "target": "\ud800" if i == 5 else "b"}) for i in range(9)]
    text = "\n".join(rows) if ending == "jsonl" else f"[{','.join(rows)}]"
    (tmp_path / f"own.{ending}").write_text(text)
    with pytest.raises(InputError, match="half of a surrogate pair"):
        load_task("own", tmp_path / f"own.{ending}")
