"""The contract of docs/errors.md, generated: every flag, every field, every reader, every control, every variable.

A row takes one nonsense value to one place. What comes back is an ``InputError`` in one line, at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nlora_lab.adapters.saved import read_adapter
from nlora_lab.analysis import selection
from nlora_lab.cli import main as cli
from nlora_lab.cli.parsers import user_path
from nlora_lab.cli.sweep import _read_grid
from nlora_lab.core.errors import InputError
from nlora_lab.models.names import check_config
from nlora_lab.models.safetensors import read_header, read_index
from nlora_lab.models.weights import list_weights
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run
from nlora_lab.tasks.registry import load_task
from nlora_lab.tasks.sources import read_file

HUGE = "9" * 30
READ = selection.recorded_index


def check_one_line(error: BaseException) -> None:
    text = str(error)
    assert isinstance(error, InputError)
    assert text.strip()
    assert "\n" not in text
    assert len(text) < 2000


def name_of(value: object) -> str:
    """A short name of a value, the same in every run and in every process."""
    if isinstance(value, type):
        return f"class {value.__name__}"
    if type(value) is object:
        return "object"
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) < 30 else text[:27] + '...'}"


# --- the command line ---

NEEDED = {
    "page": ["{tmp}/lab.html"],
    "export": ["{tmp}/adapter", "--out", "{tmp}/out"],
    "gather": ["{tmp}", "--into", "{tmp}/all"],
    "scan": ["embedded"],
    "sweep": ["{tmp}/grid.json", "--store", "{tmp}/runs"],
}
"""What a command cannot do without."""

WHOLE = ("", "x", "nan", "1.5", "-1", "1e3", HUGE)
NUMBER = ("", "x", "nan", "inf", "-inf", "-1")
FITS_ANY = {"--workers", "--together", "--test-rows", "--train-rows", "--shots"}
"""Numbers without a largest one: at most as many are taken as there are."""


def commands() -> dict[str, argparse.ArgumentParser]:
    parser = cli._parser()
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(subparsers.choices)


def nonsense(action: argparse.Action) -> tuple[str, ...]:
    if action.nargs == 0:  # a switch takes no value
        return ("x",)
    if action.type is int:
        return WHOLE[:-1] if FITS_ANY & set(action.option_strings) else WHOLE
    if action.type is float:
        return NUMBER
    if action.type is user_path:
        return ("", " ", "~nobody-of-this-name/x")
    if "," in str(action.metavar):  # a list
        return ("", ",", " , ")
    return ("", "x") if action.choices else ("",)


def command_lines() -> Iterator[tuple[str, ...]]:
    for name, parser in commands().items():
        for action in parser._actions:
            for value in nonsense(action):
                needed = list(NEEDED.get(name, ()))
                if action.option_strings:
                    flag = action.option_strings[-1]
                    if flag in needed:
                        needed = needed[: needed.index(flag)]  # it is the last one
                    yield (name, *needed, f"{flag}={value}")
                else:
                    yield (name, value, *needed[1:])


@pytest.fixture(autouse=True)
def _no_work(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever gets as far as real work has been accepted."""
    if "arguments" not in request.fixturenames:
        return

    def accepted(*_: object, **__: object) -> None:
        raise AssertionError("the value was accepted")

    for place in (
        "nlora_lab.training.races.race", "nlora_lab.sweeps.engine._make_missing",
        "nlora_lab.spectra.scanning._measured", "nlora_lab.evaluation.saved.load_model",
        "nlora_lab.pages.sections.write_page", "nlora_lab.cli.lab.subprocess.run",
    ):  # fmt: skip
        monkeypatch.setattr(place, accepted)
    monkeypatch.setattr(selection, "recorded_index", index_once)


@cache
def index_once(*arguments: Any) -> Any:
    """The recorded runs, which take seconds to read."""
    return READ(*arguments)


LINES = list(command_lines())


@pytest.mark.parametrize("arguments", LINES, ids=[" ".join(line)[:60] for line in LINES])
def test_nonsense_on_the_command_line_is_one_line(arguments, tmp_path, capsys):
    (tmp_path / "grid.json").write_text('{"seed": [0]}')
    try:
        status = cli.main([word.format(tmp=tmp_path) for word in arguments])
    except SystemExit as left:
        status = left.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert [line for line in err.splitlines() if line.startswith("nlora-lab: error: ")] == err.splitlines()
    assert len(err.splitlines()) == 1


# --- the fields of a config ---

THINGS = ([], {}, object(), np.array([1.0, 2.0]), torch.tensor(1.0), 1j, Decimal("NaN"), b"1", float)
BAD = {
    "int": (math.nan, math.inf, 1.5, -1, 10**400, True, "3", np.float64("nan"), torch.tensor(3), *THINGS),
    "float": (math.nan, math.inf, -math.inf, -1.0, 10**400, True, "x", np.float32("nan"), *THINGS),
    "str": ("", "   ", 5, math.nan, True, np.array(["lora", "nlora"]), *THINGS),
    "bool": (0, 1, "yes", math.nan, np.array([True, False]), *THINGS),
}


def field_rows() -> Iterator[tuple[str, Any]]:
    for field in fields(RunConfig):
        kind, _, optional = str(field.type).partition(" | ")
        yield from ((field.name, value) for value in (*BAD[kind], *(() if optional else (None,))))


FIELDS = list(field_rows())


@pytest.mark.parametrize(("field", "value"), FIELDS, ids=[f"{name} = {name_of(value)}" for name, value in FIELDS])
def test_nonsense_in_a_config_is_one_line_with_the_name_of_the_field(field, value):
    with pytest.raises(InputError) as raised:
        RunConfig(**{field: value})
    check_one_line(raised.value)
    assert field in str(raised.value)


# --- the readers ---


def with_adapter(file: Path) -> Path:
    """The folder of an adapter with good weights."""
    save_file({"base_model.model.a.lora_A.weight": torch.ones(1, 2)}, file.parent / "adapter_model.safetensors")
    return file.parent


def with_adapter_config(file: Path) -> Path:
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "base_model_name_or_path": "embedded"}
    (file.parent / "adapter_config.json").write_text(json.dumps(config))
    return file.parent


def task_folder(file: Path) -> Path:
    (file.parent / "test.jsonl").write_text('{"prompt": "a", "target": "b", "answer": "b"}\n')
    return file.parent


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a record": ("run.json", Run.load),
    "weights": ("model.safetensors", read_header),
    "an index": ("model.safetensors.index.json", read_index),
    "a model config": ("config.json", check_config),
    "a source of scan": ("model.safetensors", list_weights),
    "a grid": ("grid.json", _read_grid),
    "rows in JSON lines": ("own.jsonl", lambda file: load_task("own", file)),
    "rows in JSON": ("own.json", lambda file: load_task("own", file)),
    "rows in CSV": ("own.csv", lambda file: load_task("own", file)),
    "rows in TSV": ("own.tsv", lambda file: load_task("own", file)),
    "rows in Parquet": ("own.parquet", read_file),
    "a task folder": ("train.jsonl", lambda file: load_task("word-problems", task_folder(file))),
    "an adapter's config": ("adapter_config.json", lambda file: read_adapter(with_adapter(file))),
    "an adapter's weights": ("adapter_model.safetensors", lambda file: read_adapter(with_adapter_config(file))),
}

TEXTS = {
    "empty": b"",
    "junk": bytes(range(256)) * 3,
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "cut": b'{"prompt": "a", "tar',
    "deep": b"[" * 100_000,
    "a key twice": b'{"a": 1, "a": 2}',
    "a long number": b'{"a": ' + b"1" * 5000 + b"}",
    "half a surrogate pair": b'{"a": "\\ud800"}',
    "a byte order mark": b"\xef\xbb\xbf",
    "ten megabytes": b'{"a": "' + b"x" * 10**7,
}


def make_pipe(file: Path) -> None:
    os.mkfifo(file)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: None,
    "a folder": Path.mkdir,
    "a pipe": make_pipe,
    "/dev/zero": lambda file: file.symlink_to("/dev/zero"),
    "a link to nothing": lambda file: file.symlink_to("nowhere"),
}
FILES = [(reader, content) for reader in READERS for content in (*TEXTS, *SPECIAL)]


@pytest.mark.parametrize(("reader", "content"), FILES, ids=[f"{reader}: {content}" for reader, content in FILES])
def test_a_file_that_cannot_be_used_is_one_line(reader, content, tmp_path):
    name, read = READERS[reader]
    file = tmp_path / name
    if content in TEXTS:
        file.write_bytes(TEXTS[content])
    else:
        SPECIAL[content](file)
    with pytest.raises(InputError) as raised:
        read(file)
    check_one_line(raised.value)


# --- the controls of the labs ---

VALUES = {
    "number": (None, math.nan, "x", True, 1j, np.complex64(1), np.array([1, 2]), [], {}, object(), b"1", float),
    "choice": (None, math.nan, "x", "", 5, True, np.array(["a", "b"]), [], {}, object(), b"lora", str),
    "names": (None, math.nan, "x", "", 5, True, ["lora", "x"], [["lora"]], [None], object(), b"lora", np.array(1)),
    "flag": (None, math.nan, "x", 5, np.array([True, False]), [], {}, object(), b"1", bool),
}
CONTROLS = {
    "FineTuneLab": {
        "method": "names", "lr": "number", "own_rates": "flag", "rank": "number", "init": "choice", "steps": "number",
        "task": "choice", "seed": "number",
    },
    "NystromLab": {
        "matrix": "choice", "p": "number", "rank": "number", "pivots": "choice", "core": "choice",
        "tolerance": "number", "oversample": "number",
    },
}  # fmt: skip
SETTINGS = [
    (lab, control, value)
    for lab, kinds in CONTROLS.items()
    for control, kind in kinds.items()
    for value in VALUES[kind]
]


@pytest.fixture(scope="module")
def labs():
    from nlora_lab.labs.fine_tuning import FineTuneLab
    from nlora_lab.labs.nystrom import NystromLab

    return {"FineTuneLab": FineTuneLab(), "NystromLab": NystromLab(torch.eye(12) + torch.arange(144.0).view(12, 12))}


@pytest.mark.parametrize(
    ("lab", "control", "value"), SETTINGS, ids=[f"{lab}.{control} = {name_of(v)}" for lab, control, v in SETTINGS]
)
def test_nonsense_in_a_control_is_one_line_and_changes_nothing(labs, lab, control, value):
    setting = getattr(labs[lab], control)
    before = setting.value
    with pytest.raises(InputError) as raised:
        setting.value = value
    check_one_line(raised.value)
    assert setting.value == before


def test_every_control_of_the_labs_is_listed(labs):
    from nlora_lab.labs.panel import Control

    for name, kinds in CONTROLS.items():
        parts = [
            vars(labs[name]),
            *(vars(v) for v in vars(labs[name]).values() if type(v).__name__ == "TrainingControls"),
        ]
        assert {key for part in parts for key, value in part.items() if isinstance(value, Control)} == set(kinds)


# --- the environment ---


def memory_check() -> None:
    from nlora_lab.estimates.requirements import check_fit

    check_fit(RunConfig())


def launch() -> None:
    from nlora_lab.core.devices import Device
    from nlora_lab.training.distributed import make_accelerator

    make_accelerator(Device("cpu", "no", ""))


def main_process() -> None:
    from nlora_lab.training.distributed import is_main

    is_main()


def device() -> None:
    from nlora_lab.core.devices import find_device

    find_device()


def figures() -> None:
    from nlora_lab.labs.figures import pick_figures

    pick_figures()


def cache_place() -> None:
    from nlora_lab.core.cache import cache_folder

    cache_folder()


NUMBERS = ("x", "nan", "1.5", "-2", "1e3", "０x", "9" * 400, "1\n2")
VARIABLES: dict[tuple[str, Callable[[], None]], tuple[str, ...]] = {
    ("RANK", main_process): NUMBERS,
    ("RANK", launch): NUMBERS,
    ("LOCAL_RANK", launch): NUMBERS,
    ("WORLD_SIZE", launch): (*NUMBERS, "0"),
    ("WORLD_SIZE", memory_check): (*NUMBERS, "0"),
    ("LOCAL_WORLD_SIZE", launch): (*NUMBERS, "0"),
    ("MASTER_PORT", launch): (*NUMBERS, "0"),
    ("NLORA_LAB_DEVICE", device): ("tpu", "CPU", " "),
    ("NLORA_LAB_FIGURES", figures): ("gif", " "),
    ("NLORA_LAB_MEMORY_CHECK", memory_check): ("no", "0", "OFF", " "),
    ("NLORA_LAB_CACHE", cache_place): ("~nobody-of-this-name/x", " "),
}
SET = [(name, read, value) for (name, read), values in VARIABLES.items() for value in values]


@pytest.mark.parametrize(
    ("name", "read", "value"), SET, ids=[f"{name}={value[:9]!r} {read.__name__}" for name, read, value in SET]
)
def test_nonsense_in_the_environment_is_one_line_that_names_the_variable(name, read, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as raised:
        read()
    check_one_line(raised.value)
    assert name in str(raised.value)


def test_every_variable_of_ours_is_listed():
    package = Path(cli.__file__).parents[1]
    ours = {name for file in package.rglob("*.py") for name in re.findall(r'"(NLORA_LAB_[A-Z_]+)"', file.read_text())}
    assert ours == {name for name, _ in VARIABLES if name.startswith("NLORA_LAB")}


def test_there_are_enough_rows():
    assert min(len(LINES), len(FIELDS), len(FILES), len(SETTINGS)) > 150
    assert {line[0] for line in LINES} == set(commands())
