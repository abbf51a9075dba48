"""The store: complete records or none, one maker per run, and nothing to clean up after a crash."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from factories import ROOT, some_run
from filelock import FileLock

from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS
from nlora_lab.runs import store as stores
from nlora_lab.runs.config import NOT_IDENTITY, RunConfig
from nlora_lab.runs.run import Run, Step
from nlora_lab.runs.store import RunStore, gather, open_store, run_key

CFG = RunConfig(method="slora", init="identity")


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def test_what_is_added_is_found_again_by_another(store):
    run = some_run()
    assert run.config not in store
    place = store.add(run)
    assert place.name.startswith("word-problems-slora-r8-identity-lr0.0002-seed0-")
    again = RunStore(store.path)
    assert len(again) == 1
    assert list(again) == [run]
    assert run.config in again
    assert list(again.table()["method"]) == ["slora"]
    assert repr(again) == "RunStore: 1 run"


def test_the_key_is_of_what_is_asked_not_of_the_machine():
    assert run_key(RunConfig(device="cpu")) == run_key(RunConfig())
    others = [RunConfig(lr=2.1e-4), RunConfig(seed=1), RunConfig(clip_norm=1.0), RunConfig(warmup=0.1)]
    assert len({run_key(c) for c in [RunConfig(), *others]}) == 5


def test_what_asks_for_the_same_has_the_same_key(store):
    same = [
        (RunConfig(lr=1, weight_decay=0), RunConfig(lr=1.0)), (RunConfig(weight_decay=-0.0), RunConfig()),
        (RunConfig(alpha=8, difficulty="medium"), RunConfig()), (RunConfig(alpha=16), RunConfig(alpha=16.0)),
        (RunConfig(method="slora", init="kaiming"), RunConfig(method="slora")),
    ]  # fmt: skip
    assert [run_key(a) for a, _ in same] == [run_key(b) for _, b in same]
    store.add(some_run(config=same[0][0]))
    assert same[0][1] in store
    others = [RunConfig(alpha=16), RunConfig(difficulty="hard"), CFG, RunConfig(method="slora", init="normal")]
    assert len({run_key(c) for c in [RunConfig(), *others]}) == 5


def test_the_keys_of_recorded_runs_stay_what_they_were():
    assert run_key(RunConfig()) == "word-problems-lora-r8-lr0.0002-seed0-720e994b"
    files = list((ROOT / "data" / "results").glob("*/*.jsonl"))
    runs = [Run.from_json(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert runs
    for cfg in (run.config for run in runs):
        identity = {k: v for k, v in cfg.to_dict().items() if k not in NOT_IDENTITY}
        assert run_key(cfg).endswith(hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8])


def test_an_empty_store_needs_no_folder(store):
    assert len(store) == 0
    assert list(store) == []
    assert store.keys() == set()
    assert len(store.table()) == 0
    assert not store.path.exists()


def test_a_stopped_run_is_not_done(store):
    with pytest.raises(InputError, match="was stopped at step 250"):
        store.add(some_run(stopped=True))


def test_a_second_run_of_one_config_stands_beside_the_first(store):
    store.add(some_run(seconds=1.0))
    store.add(some_run(seconds=2.0))
    assert sorted(r.seconds for r in store) == [1.0, 2.0]


def test_many_who_add_one_config_at_once_all_keep_theirs(store, monkeypatch):
    barrier, to_json = threading.Barrier(8), Run.to_json

    def all_at_once(run):
        barrier.wait()
        return to_json(run)

    monkeypatch.setattr(Run, "to_json", all_at_once)

    def add(seconds):
        store.add(some_run(seconds=float(seconds)))

    threads = [threading.Thread(target=add, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(r.seconds for r in RunStore(store.path)) == [float(i) for i in range(8)]
    assert {f.suffix for f in store.path.iterdir()} == {".json"}


def test_without_links_a_run_is_kept_all_the_same(store, monkeypatch):
    def no_links(*names):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    for seconds in (1.0, 2.0):
        store.add(some_run(seconds=seconds))
    assert sorted(r.seconds for r in store) == [1.0, 2.0]


def test_a_newer_record_is_never_written_over(store):
    place = store.add(some_run())
    newer = place.read_text().replace('"format":2', '"format":99')
    place.write_text(newer)
    assert store.add(some_run()) != place
    assert place.read_text() == newer
    with pytest.warns(UserWarning, match="format 99"):
        assert len(RunStore(store.path)) == 1


def test_a_run_that_is_packed_during_a_look_is_seen(store, monkeypatch):
    run = some_run()
    for look in (lambda s: run.config in s, RunStore.keys, list):
        for file in store.path.rglob("*.json*"):
            file.unlink()
        store.add(run)
        reader, glob = RunStore(store.path), Path.glob

        def slow_glob(
            self, pattern, glob=glob
        ):  # as if another process packed right after the first look into the folder
            files = list(glob(self, pattern))
            monkeypatch.setattr(Path, "glob", glob)
            RunStore(store.path).pack()
            return iter(files)

        monkeypatch.setattr(Path, "glob", slow_glob)
        assert look(reader)


def test_packing_keeps_what_it_cannot_read_at_that_moment(store, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", replace(METHODS["lora"], name="mine"))
    store.add(some_run(config=RunConfig(method="mine")))
    store.add(some_run(config=RunConfig(method="mine", lr=1e-2)))
    store.pack()
    assert len(store) == 2
    packed = store.path / "word-problems" / "mine.jsonl"
    store.add(some_run(config=RunConfig(method="mine", lr=1e-1)))
    read, mine = stores.read_records, METHODS["mine"]

    def forgetful(file):  # the method is removed between the reading of the single record and that of its packed file
        parsed = read(file)
        METHODS.pop("mine", None)
        return parsed

    monkeypatch.setattr(stores, "read_records", forgetful)
    with pytest.warns(UserWarning, match="mine"):
        assert store.pack() == 1
    assert len(packed.read_text().splitlines()) == 3
    monkeypatch.setattr(stores, "read_records", read)
    with pytest.warns(UserWarning, match="mine"):
        assert len(store) == 0
    METHODS["mine"] = mine
    assert len(store) == 3  # though the file has not changed


def test_a_store_may_be_at_home_and_must_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    RunStore("~/runs").add(some_run())
    assert len(open_store("~/runs")) == len(RunStore(tmp_path / "runs")) == 1
    for bad in (None, 5):
        with pytest.raises(InputError, match=f"store={bad!r} must be a folder"):
            RunStore(bad)


def test_a_file_cut_short_is_named_and_left_out(store):
    complete = store.add(some_run())
    (store.path / "half.json").write_text(complete.read_text()[:300])
    with pytest.warns(UserWarning, match=r"half\.json, line 1: not a run record"):
        assert len(RunStore(store.path)) == 1


def test_a_record_edited_by_hand_is_named_and_left_out(store):
    store.add(some_run())
    odd = json.loads(some_run().to_json())
    odd["metrics"]["accuracy"] = "high"
    (store.path / "odd.json").write_text(json.dumps(odd))
    with pytest.warns(UserWarning, match=r"odd\.json, line 1: metrics\.accuracy='high'.*; it is left out"):
        assert len(RunStore(store.path)) == 1


def test_packing_keeps_every_run_and_rounds_the_history(store):
    steps = tuple(Step(i, 1 / i, 1e-3, 0.123456) for i in range(1, 41))
    configs = [RunConfig(method=m, lr=lr, steps=40) for m in ("lora", "nlora") for lr in (1e-3, 1e-2)]
    runs = [some_run(config=config, steps=steps) for config in configs]
    for run in runs:
        store.add(run)
    assert store.pack() == 4
    assert sorted(p.name for p in store.path.rglob("*.json*")) == ["lora.jsonl", "nlora.jsonl"]
    again = RunStore(store.path)
    assert again.keys() == {run_key(r.config) for r in runs}
    assert all(run.config in again for run in runs)
    first = next(r for r in again if r.config == runs[0].config)
    assert first.metrics == runs[0].metrics
    assert first.steps[2].loss == 0.33333
    assert first.steps[2].step == 3
    assert first.steps[2].grad_norm == 0.123
    assert again.pack() == 0


def test_a_packed_file_is_in_the_order_of_rank_init_rate_and_seed(store):
    asked = [
        {"rank": 4, "lr": 1e-2}, {"lr": 1e-3}, {"lr": 1e-3, "seed": 1}, {"lr": 1e-2}, {"init": "normal", "lr": 1e-3},
    ]  # fmt: skip
    configs = [RunConfig(method="slora", **{"rank": 8, **values}) for values in asked]
    for config in reversed(configs):
        store.add(some_run(config=config))
    store.pack()
    (file,) = store.path.rglob("*.jsonl")
    assert [Run.from_json(line).config for line in file.read_text().splitlines()] == configs


def test_packing_twice_adds_to_what_is_there(store):
    for lr in (1e-3, 1e-2):
        store.add(some_run(config=RunConfig(lr=lr)))
        store.pack()
    assert len(store) == 2
    lines = (store.path / "word-problems" / "lora.jsonl").read_text().splitlines()
    assert [json.loads(line)["config"]["lr"] for line in lines] == [1e-3, 1e-2]


def test_a_crash_between_packing_and_deleting_doubles_nothing(store):
    run = some_run()
    text = store.add(run).read_text()
    store.pack()
    (store.path / f"{run_key(run.config)}.json").write_text(text)
    assert len(store) == 1
    assert store.pack() == 1
    assert len(RunStore(store.path)) == 1


def test_only_one_process_packs_at_a_time_and_a_retry_waits_for_it(store):
    store.add(some_run(error="killed"))
    with FileLock(store.path / ".lock"):
        assert store.pack() == 0
        waiting = threading.Thread(target=store.drop_failed, args=({run_key(some_run().config)},))
        waiting.start()
        waiting.join(timeout=0.5)
        assert len(store) == 1
    waiting.join()
    assert len(store) == 0


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    store = RunStore(tmp_path / "file")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        store.check_writable()
    with pytest.raises(InputError, match="cannot be written"):
        store.add(some_run())


def test_stores_of_several_people_come_together(tmp_path):
    people = [RunStore(tmp_path / name) for name in "ab"]
    for i, store in enumerate(people):
        store.add(some_run(config=RunConfig(), seconds=1.0 + i))
    people[1].add(some_run(config=RunConfig(lr=1e-2)))
    into = RunStore(tmp_path / "all")
    assert gather(people, into) == 3
    assert gather(people, into) == 0
    assert len(into) == 3


def test_what_a_killed_writer_left_half_written_is_removed_after_a_while(tmp_path):
    fresh, old = tmp_path / ".a.part", tmp_path / ".b.part"
    for file in (fresh, old):
        file.touch()
    os.utime(old, (1e9, 1e9))
    place = RunStore(tmp_path).add(some_run(config=CFG))
    RunStore(tmp_path).tidy()
    assert set(tmp_path.iterdir()) == {fresh, place}


def special_files(folder):
    """Everything that is not a record, under the names of records."""
    folder.mkdir(exist_ok=True)
    for ending in ("json", "jsonl"):
        os.mkfifo(folder / f"pipe.{ending}")
        (folder / f"zero.{ending}").symlink_to("/dev/zero")
        (folder / f"nowhere.{ending}").symlink_to("nowhere")
        (folder / f"folder.{ending}").mkdir()


def test_only_regular_files_are_read_and_the_others_are_named(tmp_path):
    place = RunStore(tmp_path / "runs").add(some_run(config=CFG))
    special_files(tmp_path / "runs")
    store = RunStore(tmp_path / "runs")
    with pytest.warns(UserWarning, match="left out") as caught:
        assert [run.config for run in store] == [CFG]
    for name in ("pipe.json", "zero.json", "folder.json", "pipe.jsonl", "zero.jsonl", "folder.jsonl"):
        assert any(f"/{name} cannot be read" in str(warning.message) for warning in caught)
    with pytest.warns(UserWarning, match="left out"):
        assert store.pack() == 1
    assert not place.exists()
    with pytest.warns(UserWarning, match="left out"):
        assert len(RunStore(tmp_path / "runs")) == 1


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text("{}"), os.mkfifo, lambda path: path.symlink_to("/dev/zero")]
)
def test_a_store_that_is_no_folder_is_one_line(tmp_path, make):
    make(tmp_path / "runs")
    with pytest.raises(InputError, match="is not a folder; give a folder"):
        RunStore(tmp_path / "runs")


@pytest.mark.parametrize("packed", [False, True])
def test_a_retry_drops_the_failed_records_that_it_was_asked_for_and_no_others(store, packed):
    runs = [
        some_run(config=replace(CFG, seed=seed), error=error) for seed, error in ((0, "killed"), (1, "killed"), (2, ""))
    ]
    for run in runs:
        store.add(run)
    if packed:
        store.pack()
    store.drop_failed({run_key(run.config) for run in (runs[0], runs[2])})
    assert sorted(run.config.seed for run in RunStore(store.path)) == [1, 2]


@pytest.mark.parametrize("store", ["no such folder", "", "  ", 5, ("runs",)])
def test_only_a_store_or_a_folder_that_is_there_can_be_opened(store):
    with pytest.raises(InputError, match="is not a folder; give one that holds runs"):
        open_store(store)


def test_the_copies_of_a_run_are_numbered(store):
    names = [store.add(some_run(seconds=seconds)).name for seconds in (1.0, 2.0, 3.0)]
    key = run_key(some_run().config)
    assert names == [f"{key}.json", f"{key}~2.json", f"{key}~3.json"]


def test_a_file_that_another_process_has_moved_meanwhile_is_no_error(store, monkeypatch):
    """Two who pack one folder, and a part that has been published by its new name."""
    store.add(some_run())
    store.add(some_run(config=replace(CFG, seed=1), error="killed"))

    def gone(path, missing_ok=False):
        if not missing_ok:
            raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "unlink", gone)
    assert store.pack() == 2
    store.drop_failed({run_key(replace(CFG, seed=1))})
    store.add(some_run(config=replace(CFG, seed=2)))
