"""Runs, their records, and the config that decides a run."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from factories import some_run

from nlora_lab.core.errors import InputError
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run, Step, run_table


def test_a_record_survives_the_disk(tmp_path):
    run = some_run()
    assert Run.load(run.save(tmp_path / "a" / "run.json")) == run
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["run.json"]


def test_a_diverged_record_is_valid_json_and_survives(tmp_path):
    steps = (Step(1, 2.0, 1e-3, 1.0), Step(2, math.nan, 1e-3, math.inf))
    run = some_run(steps=steps, diverged=True, metrics={})
    record = json.loads(run.to_json(), parse_constant=pytest.fail)
    assert record["history"]["loss"] == [2.0, None]
    assert record["final_loss"] is None
    back = Run.load(run.save(tmp_path / "run.json"))
    assert back.diverged
    assert math.isnan(back.steps[1].loss)


def test_the_final_loss_is_the_mean_of_the_last_twenty():
    assert some_run().final_loss == pytest.approx(sum(1 / i for i in range(231, 251)) / 20)
    assert math.isnan(some_run(steps=()).final_loss)


def test_the_table_has_one_row_per_run():
    frame = run_table([some_run(), some_run(diverged=True)])
    assert list(frame["diverged"]) == [False, True]
    assert {"method", "trainable", "final_loss", "accuracy", "seconds", "peak_memory"} <= set(frame.columns)


UNEVEN = some_run().to_json().replace('"step":[1,', '"step":[')


@pytest.mark.parametrize("text", ["", "{}", '{"format":1}', some_run().to_json()[:200], "[1]", UNEVEN])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match="not a run record"):
        Run.load(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trainable", -1), ("trainable", "many"), ("trainable", True), ("seconds", None), ("seconds", "long"),
        ("seconds", -1.0), ("peak_memory", 1.5), ("diverged", "no"), ("stopped", 0), ("device", None),
        ("versions", {"torch": 2}), ("versions", []), ("answers", "yes"), ("answers", [1]), ("together", None),
        ("error", 3), ("metrics.accuracy", "high"), ("metrics.accuracy", True), ("metrics.accuracy", [0.5]),
        ("metrics.accuracy", 10**400), ("config.model", 3), ("config.model", None), ("history.loss", ["low"] * 40),
        ("history.loss", "l" * 40), ("history.loss", 1.0), ("history.grad_norm", [True] * 40),
        ("history.step", [0.5] * 40), ("history.lr", {}), ("metrics.accuracy", 7), ("metrics.accuracy", -0.1),
        ("metrics.f1", 1.5), ("metrics.accuracy", math.inf), ("metrics.validation_loss", math.nan),
        ("history.loss", [-1.0] * 40), ("history.loss", [math.inf] * 40), ("history.grad_norm", [math.nan] * 40),
        ("format", True), ("format", 1.5), ("format", -1),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_named(field, value):
    record = json.loads(some_run().to_json())
    *inner, last = field.split(".")
    (record[inner[0]] if inner else record)[last] = value
    with pytest.raises(InputError, match=rf"^{field}=.* in the record must be .*make the run again"):
        Run.from_json(json.dumps(record))


@pytest.mark.parametrize("numbers", [list(range(250, 0, -1)), [1] * 250, list(range(2, 252))])
def test_steps_in_another_order_are_refused(numbers):
    record = json.loads(some_run().to_json())
    record["history"]["step"] = numbers
    with pytest.raises(InputError, match=r"history\.step in the record must be 1, 2, 3"):
        Run.from_json(json.dumps(record))


@pytest.mark.parametrize("asked", [249, 251])
def test_more_or_fewer_steps_than_the_config_asks_for_are_refused(asked):
    record = json.loads(some_run().to_json())
    record["config"]["steps"] = asked
    with pytest.raises(InputError, match=f"a run of {asked} steps has 250 in its history"):
        Run.from_json(json.dumps(record))


@pytest.mark.parametrize("reason", [{"diverged": True}, {"stopped": True}, {"error": "no memory left"}])
def test_fewer_steps_are_right_for_a_run_that_ended_early(reason):
    run = some_run(steps=some_run().steps[:7], **reason)
    assert Run.from_json(run.to_json()) == run


def test_a_record_may_hold_whole_numbers_and_nulls():
    record = json.loads(some_run().to_json())
    record["metrics"] = {"accuracy": 1, "validation_loss": None, "mine": -2}
    record["history"]["loss"][:2] = [3, None]
    run = Run.from_json(json.dumps(record))
    assert (run.accuracy, run.metrics["mine"], run.steps[0].loss) == (1, -2, 3)
    assert math.isnan(run.steps[1].loss)


def test_a_newer_record_is_refused_and_a_missing_one_named(tmp_path):
    newer = some_run().to_json().replace('"format":2', '"format":99')
    with pytest.raises(InputError, match="format 99"):
        Run.from_json(newer)
    with pytest.raises(InputError, match=r"nothing\.json"):
        Run.load(tmp_path / "nothing.json")


def test_a_record_of_a_model_that_is_not_here_can_be_read():
    text = some_run().to_json().replace('"model":"embedded"', '"model":"/somebody/elses/folder"')
    assert Run.from_json(text).config.model == "/somebody/elses/folder"


def test_a_binary_file_is_named(tmp_path):
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        Run.load(tmp_path / "r.json")


def test_full_fine_tuning_has_nothing_to_drop():
    with pytest.raises(InputError, match=r"dropout=0\.1: full"):
        RunConfig(method="full", dropout=0.1)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        some_run().save(tmp_path / "file" / "run.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "lorra"), ("rank", 0), ("rank", 1.5), ("rank", True), ("lr", 0), ("lr", -1e-4), ("lr", "fast"),
        ("lr", math.nan), ("lr", math.inf), ("steps", 0), ("batch_size", -1), ("task", "poetry"),
        ("difficulty", "cruel"), ("model", "no such folder"), ("seed", -1), ("seed", 0.5), ("seed", 10**20),
        ("model", None), ("device", "tpu"),
        ("alpha", 0), ("clip_norm", -1), ("warmup", 1.0), ("dropout", 1.0), ("weight_decay", -0.1),
    ],
)  # fmt: skip
def test_every_bad_value_is_named(field, value):
    with pytest.raises(InputError, match=f"^{field}=") as caught:
        RunConfig(**{field: value})
    assert repr(value) in str(caught.value)


def test_numbers_of_numpy_become_pythons():
    cfg = RunConfig(rank=np.int64(4), seed=np.uint8(2), lr=np.float64(1e-3), dropout=np.float32(0.5), alpha=np.int32(8))
    assert cfg == RunConfig(rank=4, seed=2, lr=1e-3, dropout=0.5, alpha=8)
    assert {type(value) for value in asdict(cfg).values()} == {int, float, str, bool, type(None)}
    assert type(cfg.lr) is float
    json.dumps(asdict(cfg))
    for name, value in (("seed", np.int64(-1)), ("lr", np.float64("nan")), ("steps", np.True_), ("lr", Fraction(1, 9))):
        with pytest.raises(InputError, match=f"^{name}="):
            RunConfig(**{name: value})


def test_init_belongs_to_methods_that_have_a_choice():
    assert RunConfig(method="slora", init="orthogonal").label == "SLoRA, N orthogonal"
    assert RunConfig(method="slora", init="kaiming").label == "SLoRA"
    with pytest.raises(InputError, match="lora has no choice"):
        RunConfig(method="lora", init="kaiming")
    with pytest.raises(InputError, match="nothing can learn"):
        RunConfig(method="slora", init="zeros")
    with pytest.raises(InputError, match="init='best'"):
        RunConfig(method="slora", init="best")
