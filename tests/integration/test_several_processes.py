"""Two processes make the run that one makes, whichever way they share the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factories import ROOT, tiny_llama

from nlora_lab.core.devices import find_device
from nlora_lab.core.errors import InputError
from nlora_lab.estimates.recipes import RECIPES
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run
from nlora_lab.tasks.encoding import IGNORED
from nlora_lab.training.distributed import (
    backward,
    check_processes,
    count_targets,
    make_accelerator,
    parts_of,
    share_of_rows,
    split,
)
from nlora_lab.training.loop import fine_tune

TINY = {"steps": 4, "batch_size": 8, "test_rows": 6, "lr": 1e-3}
RUNS = [
    {"method": "lora", **TINY},
    {"method": "nlora", **TINY, "lr": 1e-4, "accumulation": 2},
    {"method": "inttune", **TINY, "task": "entailment", "clip_norm": 1.0},
    {"method": "dora", **TINY, "batching": "packed", "max_length": 96},
    {"method": "pissa", **TINY},
    {"method": "full", **TINY},
]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
WAYS = {
    "DDP": ["--multi_gpu"],
    "FSDP": ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"],
}


def launch(way: str, configs: list[dict], folder: Path) -> list[Run]:
    folder.mkdir(parents=True, exist_ok=True)
    asked = folder / "configs.json"
    asked.write_text(json.dumps(configs))
    script = ROOT / "tests" / "launched.py"
    command = [*LAUNCH, *WAYS[way], "--main_process_port", "0", str(script), str(asked), str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [Run.load(folder / f"{number}.json") for number in range(len(configs))]


@pytest.fixture(scope="module")
def alone():
    return [fine_tune(RunConfig(**config)) for config in RUNS]


@pytest.fixture(scope="module", params=list(WAYS))
def launched(request, tmp_path_factory):
    """What two processes made of all the runs, and of one that was stopped after step 3 and went on, in one launch."""
    folder = tmp_path_factory.mktemp("launched")
    kept = {"checkpoints": str(folder / "kept"), "every": 2}
    stopped = [{**RUNS[1], "options": {**kept, "stop": 3}}, {**RUNS[1], "options": kept}]
    made = launch(request.param, [*RUNS, *stopped], folder / "out")
    return request.param, made[: len(RUNS)], made[len(RUNS) :], kept


def test_two_processes_make_the_run_of_one_with_the_same_global_batch(launched, alone):
    way, runs, _, _ = launched
    for one, two in zip(alone, runs, strict=True):
        assert two.config == one.config
        assert two.history["loss"].tolist() == pytest.approx(one.history["loss"].tolist(), rel=2e-4)
        assert two.history["grad_norm"].tolist() == pytest.approx(one.history["grad_norm"].tolist(), rel=2e-3)
        assert two.trainable == one.trainable
        for name in ("validation_loss", "distance"):
            assert two.metrics[name] == pytest.approx(one.metrics[name], rel=2e-3)
        if way == "DDP" or one.config.method != "pissa":  # whose base would have to be whole on every card
            assert two.metrics["step0_change"] == pytest.approx(one.metrics["step0_change"], abs=1e-5)
        assert two.accuracy == one.accuracy
        assert two.answers == one.answers


def test_a_launch_that_was_stopped_goes_on_from_its_checkpoint(launched, alone):
    _, _, (first, second), kept = launched
    assert (first.stopped, len(first.steps)) == (True, 3)
    assert not second.stopped
    assert second.history["loss"].tolist() == pytest.approx(alone[1].history["loss"].tolist(), rel=2e-4)
    # and where the launch is gone, one process goes on with what the two have left
    last = fine_tune(RunConfig(**RUNS[1]), **kept)
    assert last.history["loss"].tolist() == second.history["loss"].tolist()
    assert last.metrics["validation_loss"] == pytest.approx(second.metrics["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_a_batch_leave_the_gradients_of_the_whole(parts):
    accelerator = make_accelerator(find_device())
    torch.manual_seed(0)
    model = tiny_llama()
    ids = torch.randint(0, 97, (8, 12))
    labels = ids.clone()
    for row in range(8):
        labels[row, : row + 1] = IGNORED  # the parts differ in how many targets they have
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    whole = model(**batch).loss
    whole.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    assert backward(accelerator, model, batch, parts).item() == pytest.approx(whole.item(), rel=1e-6)
    for p, grad in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)


def test_targets_are_counted_and_batches_divided_without_loss():
    labels = torch.tensor([[5, IGNORED, 7, 8], [IGNORED, IGNORED, 1, IGNORED]])
    assert count_targets({"labels": labels}) == 3  # the first token of a row is nobody's next
    assert count_targets({"labels": torch.tensor([0, 1, 1])}) == 3
    pieces = split({"labels": torch.arange(7)}, 3)
    assert torch.cat([p["labels"] for p in pieces]).tolist() == list(range(7))
    assert [len(p["labels"]) for p in pieces] == [3, 2, 2]


class Crew:
    num_processes, process_index, distributed_type, is_fsdp2 = 3, 1, "DistributedType.MULTI_GPU", False


def test_a_batch_that_cannot_be_shared_out_is_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"batch_size=16 cannot be divided by 3 processes.*multiple of 3"):
        check_processes(RunConfig(), Crew())
    check_processes(RunConfig(batch_size=12), Crew())

    class Old(Crew):
        distributed_type = "DistributedType.FSDP"

    with pytest.raises(InputError, match="--fsdp_version 2"):
        check_processes(RunConfig(batch_size=12), Old())


def test_the_rows_on_a_card_stay_the_same_however_many_cards_there_are():
    assert parts_of(RunConfig(batch_size=12, accumulation=12), Crew()) == 4
    assert parts_of(RunConfig(batch_size=12, accumulation=4), Crew()) == 2
    assert parts_of(RunConfig(batch_size=12), Crew()) == 1


@pytest.mark.parametrize("name", ["paper-gsm8k", "paper-gsm8k-small-batch", "colab-gsm8k"])
def test_the_recipes_can_be_launched_on_four_cards(name):
    class Four(Crew):
        num_processes = 4

    cfg = RECIPES[name].config("nlora")
    check_processes(cfg, Four())
    assert cfg.batch_size // 4 >= parts_of(cfg, Four())


@pytest.mark.parametrize("rows", [3, 4, 10, 11])
def test_rows_to_measure_are_shared_out_once_each(rows, monkeypatch):
    from accelerate.state import PartialState

    parts = []
    for index in range(3):
        state = {"num_processes": 3, "process_index": index, "distributed_type": "MULTI_GPU"}
        monkeypatch.setattr(PartialState, "_shared_state", state)
        parts.append(share_of_rows(rows))
    assert [row for part in parts for row in part] == list(range(rows))
    assert share_of_rows(2) is None


def test_who_is_alone_or_goes_in_step_measures_all(monkeypatch):
    from accelerate.state import PartialState

    for state in ({}, {"num_processes": 1}, {"num_processes": 2, "distributed_type": "FSDP"}):
        monkeypatch.setattr(PartialState, "_shared_state", state)
        assert share_of_rows(10) is None
