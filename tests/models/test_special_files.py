"""Special and damaged files in the folder of a model: one line names the file, at once, and nothing hangs."""

from __future__ import annotations

import os
import shutil

import pytest

from nlora_lab.adapters.saved import read_adapter
from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.core.files import shipped_folder
from nlora_lab.evaluation.saved import saved_classes
from nlora_lab.models.loading import load_model, meta_body
from nlora_lab.models.names import CONFIG, DOCUMENTS, READ
from nlora_lab.spectra.scanning import scan
from nlora_lab.training.export import save_merged

EMBEDDED = shipped_folder("data") / "embedded"
SPECIAL = {
    "a pipe": os.mkfifo,
    "endless": lambda file: file.symlink_to("/dev/zero"),
    "a folder": lambda file: file.mkdir(),
    "a link to nothing": lambda file: file.symlink_to("nowhere"),
    "a link to itself": lambda file: file.symlink_to(file.name),
}
DAMAGED = {
    "cut": lambda file: file.write_text('{"eos_token_id": '),
    "empty": lambda file: file.write_text(""),
    "a list": lambda file: file.write_text("[1]"),
    "not UTF-8": lambda file: file.write_bytes(b'{"a": "\xff"}'),
}


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(EMBEDDED, tmp_path / "model")


def spoil(folder, name, how):
    (folder / name).unlink(missing_ok=True)
    (SPECIAL | DAMAGED)[how](folder / name)


def one_line_names(name, raised):
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("how", SPECIAL)
@pytest.mark.parametrize("name", [*READ, "model.safetensors"])
def test_a_model_is_not_loaded_with_a_file_that_is_none(copy, name, how):
    spoil(copy, name, how)
    with pytest.raises(ModelError) as raised:
        load_model(str(copy))
    one_line_names(name, raised)


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("name", [CONFIG, *DOCUMENTS])
def test_a_model_is_not_loaded_without_what_a_damaged_file_said(copy, name, how):
    spoil(copy, name, how)
    with pytest.raises(ModelError) as raised:
        load_model(str(copy))
    one_line_names(name, raised)


@pytest.mark.parametrize("how", [*SPECIAL, *DAMAGED])
def test_neither_a_scan_nor_an_estimate_takes_a_bad_config_for_none(copy, how):
    spoil(copy, CONFIG, how)
    for read in (lambda: scan(copy, (4,), cache=False, progress=False), lambda: meta_body(copy)):
        with pytest.raises(ModelError) as raised:
            read()
        if "link" not in how or "architecture" not in str(raised.value):
            one_line_names(CONFIG, raised)


@pytest.mark.parametrize("how", SPECIAL)
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_of_special_files_is_neither_read_nor_merged(tmp_path, name, how):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": null}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    spoil(tmp_path, name, how)
    for read in (read_adapter, lambda folder: save_merged(folder, tmp_path / "out", "embedded")):
        with pytest.raises(InputError) as raised:
            read(tmp_path)
        one_line_names(name, raised)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", [*SPECIAL, *DAMAGED])
def test_a_classifier_does_not_lose_its_classes_with_a_bad_config(tmp_path, how):
    assert saved_classes(tmp_path) == ()
    spoil(tmp_path, CONFIG, how)
    with pytest.raises(ModelError) as raised:
        saved_classes(tmp_path)
    one_line_names(CONFIG, raised)
