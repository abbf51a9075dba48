"""The store: whole records or none, one maker a run, and nothing to clean up after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from test_records import some_run

from nlora_lab.errors import InputError
from nlora_lab.records import RunConfig
from nlora_lab.store import Claim, RunStore, gather, run_key

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


def test_an_empty_store_needs_no_folder(store):
    assert len(store) == 0
    assert list(store) == []
    assert store.keys() == set()
    assert len(store.table()) == 0
    assert not store.path.exists()


def test_a_stopped_run_is_not_done(store):
    with pytest.raises(InputError, match="was stopped at step 40"):
        store.add(some_run(stopped=True))


def test_a_second_run_of_one_config_stands_beside_the_first(store):
    store.add(some_run(seconds=1.0))
    store.add(some_run(seconds=2.0))
    assert sorted(r.seconds for r in store) == [1.0, 2.0]


def test_a_file_cut_short_is_named_and_left_out(store):
    whole = store.add(some_run())
    (store.path / "half.json").write_text(whole.read_text()[:300])
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
    runs = [some_run(config=RunConfig(method=m, lr=lr)) for m in ("lora", "nlora") for lr in (1e-3, 1e-2)]
    for run in runs:
        store.add(run)
    assert store.pack() == 4
    assert sorted(p.name for p in store.path.rglob("*") if p.is_file()) == ["lora.jsonl", "nlora.jsonl"]
    again = RunStore(store.path)
    assert again.keys() == {run_key(r.config) for r in runs}
    assert all(run.config in again for run in runs)
    first = next(r for r in again if r.config == runs[0].config)
    assert first.metrics == runs[0].metrics
    assert first.steps[2].loss == 0.33333
    assert first.steps[2].step == 3
    assert again.pack() == 0


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


def test_only_one_of_many_gets_the_claim(store):
    barrier, got = threading.Barrier(8), []

    def claim():
        barrier.wait()
        with store.claim(CFG) as mine:
            got.append(mine)
            barrier.wait()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(got) == [False] * 7 + [True]
    assert not list(store.path.glob("*.claim"))
    with store.claim(CFG) as mine:
        assert mine


def test_a_finished_run_is_not_claimed_again(store):
    store.add(some_run(config=CFG))
    with store.claim(CFG) as mine:
        assert not mine


def test_the_claim_of_a_killed_process_is_taken_over(store):
    code = (
        "import sys, time; from nlora_lab.store import Claim; from pathlib import Path\n"
        "print(Claim(Path(sys.argv[1]), 'k').take(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(store.path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        assert Claim(store.path, "k").alive()
        assert not Claim(store.path, "k").take()
        other.send_signal(signal.SIGKILL)
        other.wait()
    claim = Claim(store.path, "k")
    assert not claim.alive()
    assert claim.take()
    assert not Claim(store.path, "k").take()
    claim.release()
    assert not list(store.path.iterdir())


def test_a_claim_of_another_machine_lives_as_long_as_it_gives_signs(store):
    store.path.mkdir()
    file = store.path / "k.1.claim"
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "born": 1.0}))
    assert not Claim(store.path, "k").take()
    old = file.stat().st_mtime - 1000
    os.utime(file, (old, old))
    assert Claim(store.path, "k").take()


def test_a_claim_cut_short_counts_by_its_age(store):
    store.path.mkdir()
    (store.path / "k.1.claim").write_text("{")
    assert not Claim(store.path, "k").take()


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    store = RunStore(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        store.check_writable()
    with pytest.raises(InputError, match="cannot be written"):
        store.add(some_run())
    with pytest.raises(InputError, match="cannot be written"), store.claim(CFG):
        pass


def test_stores_of_several_people_come_together(tmp_path):
    people = [RunStore(tmp_path / name) for name in "ab"]
    for i, store in enumerate(people):
        store.add(some_run(config=RunConfig(), seconds=1.0 + i))
    people[1].add(some_run(config=RunConfig(lr=1e-2)))
    into = RunStore(tmp_path / "all")
    assert gather(people, into) == 3
    assert gather(people, into) == 0
    assert len(into) == 3
