"""Checkpoints of a run: it resumes from the last complete one, as if it had not been interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlora_lab.core.errors import CheckpointError, InputError
from nlora_lab.models.names import is_pickle
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run
from nlora_lab.training import checkpoints as resume
from nlora_lab.training.checkpoints import CheckpointFolder
from nlora_lab.training.data import RemainingBatches
from nlora_lab.training.loop import fine_tune

CFG = RunConfig(method="nlora", steps=6, batch_size=4, test_rows=4, dropout=0.1)


def histories(run):
    return run.history["loss"].tolist(), run.history["grad_norm"].tolist()


@pytest.fixture(scope="module")
def undisturbed():
    return fine_tune(CFG)


def stopped_after(number, folder, every=2, cfg=CFG):
    return fine_tune(cfg, lambda step: step.step == number, checkpoints=folder, every=every)


@pytest.mark.parametrize("method", ["nlora", "full", "pissa"])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(method, undisturbed, tmp_path):
    cfg = replace(CFG, method=method, dropout=0.0 if method == "full" else 0.1)
    whole = undisturbed if method == "nlora" else fine_tune(cfg)
    first = stopped_after(3, tmp_path, cfg=cfg)
    assert first.stopped
    assert len(first.steps) == 3
    made = []
    rest = fine_tune(cfg, lambda step: made.append(step.step), checkpoints=tmp_path)
    assert made == [4, 5, 6]
    assert histories(rest) == histories(whole)
    assert rest.metrics == whole.metrics
    assert rest.seconds > first.seconds


def test_a_finished_run_is_only_measured_again(undisturbed, tmp_path):
    fine_tune(CFG, checkpoints=tmp_path, every=4)
    made = []
    again = fine_tune(CFG, lambda step: made.append(step.step), checkpoints=tmp_path)
    assert made == []
    assert histories(again) == histories(undisturbed)
    assert again.metrics == undisturbed.metrics


def test_two_are_kept_and_a_damaged_one_is_passed_over(undisturbed, tmp_path):
    stopped_after(5, tmp_path)
    folders = sorted(CheckpointFolder(tmp_path, CFG).folder.glob("step-*"))
    assert [f.name for f in folders] == ["step-00000004", "step-00000005"]
    state = folders[-1] / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1000])  # half of it was written
    with pytest.warns(UserWarning, match=r"step-00000005/state\.safetensors cannot be used"):
        assert len(CheckpointFolder(tmp_path, CFG).newest().run.steps) == 4
    with pytest.warns(UserWarning, match="the checkpoint before it is used"):
        assert histories(fine_tune(CFG, checkpoints=tmp_path)) == histories(undisturbed)


def sign(folder):
    """Make the digests of a damaged checkpoint right."""
    digests = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir() if f.name != "digests.json"}
    (folder / "digests.json").write_text(json.dumps(digests))


def pipe(file):
    file.unlink()
    os.mkfifo(file)


def reshape(file):
    weights = load_file(file)
    save_file({name: torch.ones(2, 3) if name.startswith("model/") else weights[name] for name in weights}, file)


DAMAGE = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "junk": lambda file: file.write_bytes(os.urandom(500)),
    "not UTF-8": lambda file: file.write_bytes(b'{"a": "\xff"}'),
    "not an object": lambda file: file.write_bytes(b"[]"),
    "a pipe": pipe,
}  # fmt: skip


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    home = tmp_path_factory.mktemp("two")
    stopped_after(3, home)
    return home


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("damage", [*DAMAGE, "other shapes"])
@pytest.mark.parametrize(
    "name",
    ["state.safetensors", "optimizer.json", "run.json", "rows.txt", "digests.json", "random-0.safetensors"],
)
def test_whatever_is_damaged_the_checkpoint_before_is_used(two_checkpoints, tmp_path, name, damage, signed):
    if (signed and (damage == "a pipe" or name in ("digests.json", "rows.txt", "random-0.safetensors"))) or (
        damage == "other shapes" and name != "state.safetensors"
    ):
        pytest.skip("this damage cannot be done to this file")
    home = shutil.copytree(two_checkpoints, tmp_path / "home")
    folders = sorted(CheckpointFolder(home, CFG).folder.glob("step-*"))
    for folder in reversed(folders):
        DAMAGE.get(damage, reshape)(folder / name)
        if signed:
            sign(folder)
        if folder is folders[-1]:
            with pytest.warns(UserWarning, match=rf"step-00000003.*{name}.*the checkpoint before it is used"):
                assert len(CheckpointFolder(home, CFG).newest().run.steps) == 2
    with pytest.raises(CheckpointError, match=rf"step-00000003.*{name}") as raised:
        CheckpointFolder(home, CFG).newest()
    assert "\n" not in str(raised.value)


def test_a_checkpoint_of_another_model_and_an_old_one_are_not_used(two_checkpoints, tmp_path):
    home = shutil.copytree(two_checkpoints, tmp_path / "home")
    folder = CheckpointFolder(home, CFG)
    with pytest.raises(CheckpointError, match=r"some\.weight is None in it, and \(2, 2\) in the model"):
        folder.newest(shapes={"some.weight": (2, 2)})
    for step in folder.folder.glob("step-*"):
        (step / "state.pt").write_bytes(b"pickle")
        assert not [f for f in step.iterdir() if is_pickle(f) and f.name != "state.pt"]
    with pytest.raises(CheckpointError, match=r"state\.pt is a pickle of an earlier version.*to start again"):
        folder.newest()


def test_the_record_of_a_checkpoint_is_not_that_of_a_finished_run(two_checkpoints, undisturbed, tmp_path):
    home = shutil.copytree(two_checkpoints, tmp_path / "home")
    folders = sorted(CheckpointFolder(home, CFG).folder.glob("step-*"))
    assert all(Run.load(folder / "run.json").stopped for folder in folders)
    for folder in folders:  # as earlier versions wrote it
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "stopped": False}))
        sign(folder)
        with pytest.raises(InputError, match="a run of 6 steps has"):
            Run.load(folder / "run.json")
    again = fine_tune(CFG, checkpoints=home)
    assert histories(again) == histories(undisturbed)
    assert again.metrics == undisturbed.metrics
    assert not again.stopped


def test_another_config_has_checkpoints_of_its_own(tmp_path):
    stopped_after(2, tmp_path)
    assert CheckpointFolder(tmp_path, replace(CFG, seed=1)).newest() is None
    assert CheckpointFolder(tmp_path, CFG).newest() is not None


def test_other_rows_and_another_commit_are_not_gone_on_from(tmp_path, monkeypatch):
    rows = [{"prompt": f"{i} + 1 =", "target": f" {i + 1}", "answer": f"{i + 1}"} for i in range(40)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = RunConfig(steps=4, batch_size=4, task="own", data=str(data), columns="prompt,target", test_rows=2)
    stopped_after(2, tmp_path / "kept", cfg=cfg)
    monkeypatch.setattr("nlora_lab.training.session.revision_of", lambda model: "c0ffee")
    with pytest.raises(InputError, match="at commit c0ffee"):
        fine_tune(cfg, checkpoints=tmp_path / "kept")
    monkeypatch.undo()
    data.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    with pytest.raises(InputError, match="training rows differ"):
        fine_tune(cfg, checkpoints=tmp_path / "kept")


def test_ctrl_c_on_the_command_line_leaves_a_checkpoint(tmp_path):
    asked = ["run", "--method", "lora", "--steps", "500", "--batch-size", "2", "--checkpoints", str(tmp_path)]
    child = subprocess.Popen(
        [sys.executable, "-m", "nlora_lab", *asked, "--every", "400", "--json"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    cfg = RunConfig(method="lora", steps=500, batch_size=2)
    for line in child.stderr:  # a line every ten seconds, once it trains
        if "step" in line:
            break
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=120)
    assert child.returncode == 130
    (row,) = json.loads(out)["runs"]
    assert row["stopped"]
    assert len(CheckpointFolder(tmp_path, cfg).newest().run.steps) == row["steps"] > 0


SLOW = """
    import sys, time
    from nlora_lab.runs.config import RunConfig
    from nlora_lab.training.loop import fine_tune
    from nlora_lab.training import checkpoints
    save = checkpoints.save_file

    def slowly(state, path):
        save(state, path)
        if "state." in str(path) and "00000004" in str(path):
            print("half of it is written", flush=True)
            time.sleep(60)

    checkpoints.save_file = slowly
    fine_tune(RunConfig(**{config}), checkpoints=sys.argv[1], every=2)
"""


def test_killed_while_it_writes_a_checkpoint_it_goes_on_from_the_one_before(undisturbed, tmp_path):
    asked = {f: v for f, v in CFG.to_dict().items() if v is not None}
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(SLOW).format(config=asked))
    folder = tmp_path / "kept"
    child = subprocess.Popen(
        [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "half" in child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert len(CheckpointFolder(folder, CFG).newest().run.steps) == 2
    made = []
    rest = fine_tune(CFG, lambda step: made.append(step.step), checkpoints=folder, every=2)
    assert made == [3, 4, 5, 6]
    # another process: equal to rounding
    assert rest.history["loss"].tolist() == pytest.approx(undisturbed.history["loss"].tolist(), rel=1e-4)
    assert not list(CheckpointFolder(folder, CFG).folder.glob(".*"))


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(undisturbed, tmp_path, monkeypatch):
    def full_disk(_, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "save_file", full_disk)
    with pytest.warns(UserWarning, match="No space left.*continues"):
        run = fine_tune(CFG, checkpoints=tmp_path, every=3)
    assert histories(run) == histories(undisturbed)
    assert list(CheckpointFolder(tmp_path, CFG).folder.iterdir()) == []  # half a checkpoint would keep the disk full


def test_special_files_beside_the_checkpoints_are_passed_over(two_checkpoints, tmp_path):
    home = shutil.copytree(two_checkpoints, tmp_path / "home")
    folder = CheckpointFolder(home, CFG)
    os.mkfifo(folder.folder / "step-00000009")
    (folder.folder / "step-00000008").symlink_to("/dev/zero")
    (folder.folder / "step-later").mkdir()
    (folder.folder / "step-00000007").write_text("")
    assert len(folder.newest().run.steps) == 3
    os.mkfifo(folder.newest().folder / "random-7.safetensors")
    assert len(folder.newest().random) == 1
    run = stopped_after(5, home)
    assert len(run.steps) == 5
    kept = sorted(f.name for f in folder.folder.glob("step-*") if f.is_dir() and f.name != "step-later")
    assert kept == ["step-00000004", "step-00000005"]


def test_a_checkpoint_that_was_found_can_be_used_after_another_run_has_removed_it(two_checkpoints, tmp_path):
    home = shutil.copytree(two_checkpoints, tmp_path / "home")
    found = CheckpointFolder(home, CFG).newest()
    expected = {name: value.clone() for name, value in found.state()["model"].items()}
    shutil.rmtree(found.folder)
    again = found.state()
    assert all(torch.equal(value, expected[name]) for name, value in again["model"].items())
    assert again["optimizer"]["state"].keys() == expected.keys()
    assert found.random


def test_where_another_run_removes_all_checkpoints_it_writes_newer_ones_and_those_are_used(
    two_checkpoints, tmp_path, monkeypatch, recwarn
):
    home = shutil.copytree(two_checkpoints, tmp_path / "home")
    folder, read, removed = CheckpointFolder(home, CFG), resume._read_run, []

    def read_late(place, shapes):
        if not removed:  # the other run prunes while this one looks
            for old in folder._folders():
                removed.append(old.rename(old.with_name(old.name.replace("step-0000000", "step-0000001"))))
        return read(place, shapes)

    monkeypatch.setattr(resume, "_read_run", read_late)
    found = folder.newest()
    assert found.folder == removed[-1]
    assert not recwarn.list


def test_two_runs_on_one_folder_both_end(undisturbed, tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    from types import SimpleNamespace

    parameter = torch.nn.Parameter(torch.ones(2))
    model = torch.nn.Module()
    model.weight = parameter
    process = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, process_index=0)

    def train():
        optimizer = torch.optim.AdamW([parameter])
        folder = CheckpointFolder(tmp_path, CFG, every=1)
        for step in range(1, 7):
            folder.save(replace(undisturbed, steps=undisturbed.steps[:step]), "rows", process, model, optimizer)
            found = folder.newest("rows")
            assert found is None or found.state()["model"]["weight"].shape == (2,)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(train) for _ in range(3)]:
            done.result()
    kept = CheckpointFolder(tmp_path, CFG)._folders()
    assert [folder.name for folder in kept] == ["step-00000005", "step-00000006"]
    assert not list(CheckpointFolder(tmp_path, CFG).folder.glob(".*.part"))


def test_what_is_left_of_an_order_is_its_end():
    class Order(list):
        batch_size, seed = 1, 7

    order = Order([[0], [1], [2]])
    assert list(RemainingBatches(order, 0)) == order
    assert list(RemainingBatches(order, 2)) == [[2]]
    assert len(RemainingBatches(order, 2)) == 1
    assert (RemainingBatches(order, 2).batch_size, RemainingBatches(order, 2).seed) == (1, 7)


def test_bad_arguments_are_named_before_anything_is_loaded(tmp_path):
    with pytest.raises(InputError, match="every=0"):
        CheckpointFolder(tmp_path, CFG, every=0)
    file = tmp_path / "file"
    file.write_text("")
    started = time.perf_counter()
    with pytest.raises(InputError, match="checkpoints="):
        fine_tune(CFG, checkpoints=file)
    assert time.perf_counter() - started < 2
    assert json.loads(json.dumps(CFG.to_dict()))["method"] == "nlora"
