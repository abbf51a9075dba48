"""Models and data by hub id, against a hub on loopback.

Every function that talks to this hub is called ``check_…``. A separate process runs them all, because the hub's client
reads its address when it is imported.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import traceback
import urllib.request
from pathlib import Path
from unittest import mock

import pytest
import torch
from factories import ROOT, tiny_gpt2
from hub_server import REQUESTS, HubServer, commit_of, environment
from safetensors.torch import load_file, save_file

EMBEDDED = ROOT / "data" / "embedded"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
CHECKS = (
    "load_by_id_and_again_without_a_network", "load_a_revision", "refusals_are_one_line_with_a_remedy",
    "names_are_known_before_any_weight", "a_scan_fetches_one_shard_at_a_time", "a_scan_without_keeping",
    "an_interrupted_scan_resumes", "a_network_that_goes_away", "broken_checkpoints", "a_cached_model_without_a_network",
    "a_dataset",
)  # fmt: skip


# --- what is on the hub ---


def sharded(folder, cut=None):
    """The embedded model in three files with an index; ``cut`` is one that ends too early."""
    shutil.copytree(EMBEDDED, folder)
    (folder / "model.safetensors").unlink()
    tensors = load_file(EMBEDDED / "model.safetensors")
    names = sorted(tensors)
    index = {}
    for i, file in enumerate(SHARDS):
        part = {name: tensors[name] for name in names[i * len(names) // 3 : (i + 1) * len(names) // 3]}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
        if i == cut:
            (folder / file).write_bytes((folder / file).read_bytes()[:-1000])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def fill(hub, place):
    other = shutil.copytree(EMBEDDED, place / "other")
    changed = {name: W + 1 for name, W in load_file(other / "model.safetensors").items()}
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    hub.add("lab/whole", shutil.copytree(EMBEDDED, place / "whole"), v1=other)
    for name in ("names", "stream", "spare", "stopped", "leaving", "cached"):
        hub.add(f"lab/{name}", sharded(place / name))
    hub.add("lab/again", place / "stream")
    hub.add("lab/cut", sharded(place / "cut", cut=1))
    hole = sharded(place / "hole")
    (hole / SHARDS[2]).unlink()
    hub.add("lab/hole", hole)
    hub.add("lab/locked", place / "whole", gated=True)
    pickled = place / "pickled"
    shutil.copytree(place / "whole", pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    hub.add("lab/pickled", pickled)
    tiny_gpt2().save_pretrained(place / "gpt2")
    hub.add("lab/gpt2", place / "gpt2")
    sums = place / "sums"
    sums.mkdir()
    for split, count in (("train", 3), ("test", 2)):
        rows = [json.dumps({"question": f"{i} + 1?", "answer": f"{i + 1}"}) for i in range(count)]
        (sums / f"{split}.jsonl").write_text("\n".join(rows))
    hub.add("lab/sums", sums, kind="dataset")


# --- in the separate process ---


def requests():
    """{"METHOD /path": how often} so far."""
    from huggingface_hub import constants

    with urllib.request.urlopen(constants.ENDPOINT + REQUESTS) as answer:
        return json.load(answer)


def fetched(hub_id, commit, method="GET"):
    """How often each of the three shards was requested."""
    counts = requests()
    return [counts.get(f"{method} /{hub_id}/resolve/{commit}/{file}", 0) for file in SHARDS]


@contextlib.contextmanager
def no_network():
    from huggingface_hub import close_session

    close_session()  # it has a connection open
    with mock.patch.object(socket, "getaddrinfo", side_effect=OSError("no route")), mock.patch("time.sleep"):
        yield
    close_session()


@contextlib.contextmanager
def watching(before):
    """Calls ``before(n)`` before the n-th matrix (from 0) is measured."""
    from nlora_lab.spectra import scanning as spectra

    real, count = spectra.measure, [0]

    def measure(*args):
        before(count[0])
        count[0] += 1
        return real(*args)

    with mock.patch.object(spectra, "measure", measure):
        yield count


def weight_files(hub_id):
    """The weight files on this machine's disk, links not counted."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    return [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size > 500_000]


def kept_rows(cache):
    return len(list((cache / "spectra").rglob("*.json")))


def raises(message, call, *args, **kwargs):
    from nlora_lab.core.errors import ModelError

    with pytest.raises(ModelError, match=message) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def check_load_by_id_and_again_without_a_network(place):
    from huggingface_hub import constants

    from nlora_lab.models.loading import load_model, revision_of

    model, tokenizer = load_model("lab/whole")
    commit = commit_of(place / "whole")
    assert revision_of(model) == commit
    assert "lab/whole" in model.name_or_path
    assert torch.equal(model.lm_head.weight, load_model()[0].lm_head.weight)
    assert revision_of(load_model()[0]) == ""
    assert len(tokenizer) == 888
    weights = f"GET /lab/whole/resolve/{commit}/model.safetensors"
    assert requests()[weights] == 1
    model.save_pretrained(place / "saved")
    assert commit not in (place / "saved" / "config.json").read_text()
    with no_network():
        assert revision_of(load_model("lab/whole")[0]) == commit
    with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
        assert revision_of(load_model("lab/whole")[0]) == commit
    assert requests()[weights] == 1


def check_load_a_revision(place):
    from nlora_lab.models.loading import load_model, revision_of

    named, _ = load_model("lab/whole", revision="v1")
    assert revision_of(named) == commit_of(place / "other")
    assert torch.equal(named.lm_head.weight, load_model()[0].lm_head.weight + 1)
    by_hash, _ = load_model("lab/whole", revision=commit_of(place / "other"))
    assert torch.equal(by_hash.lm_head.weight, named.lm_head.weight)


def check_refusals_are_one_line_with_a_remedy(place):
    from nlora_lab.models.loading import load_model
    from nlora_lab.spectra.scanning import scan

    for call in (load_model, scan):
        raises(r"'lab/locked' is gated or private; .* run 'hf auth login'", call, "lab/locked")
        raises(r"'lab/nothing' is not on the hub, or is private; check the id", call, "lab/nothing")
        raises(r"revision='v9' of 'lab/whole' is not on the hub", call, "lab/whole", revision="v9")
        raises(r"pickle", call, "lab/pickled")
        raises(r"revision='v1' is for models on the hub only", call, str(EMBEDDED), revision="v1")
        raises(r"revision=' ' must be a branch", call, "lab/whole", revision=" ")
        with no_network():
            raises(r"'lab/names' is not in the cache and the hub is out of reach \(.*no route.*\)", call, "lab/names")
            raises(r"'lab/whole' is not in the cache", call, "lab/whole", revision="v9")


def check_names_are_known_before_any_weight(place):
    from nlora_lab.models.weights import find_weight, list_weights
    from nlora_lab.spectra.scanning import spectrum

    commit = commit_of(place / "names")
    listed = {w.name: w.shape for w in list_weights("lab/names")}
    assert listed == {w.name: w.shape for w in list_weights(EMBEDDED)}
    assert fetched("lab/names", commit) == [0, 0, 0]
    assert fetched("lab/names", commit, "RANGE") == [1, 1, 1]
    name = "model.layers.2.mlp.up_proj"
    assert torch.equal(spectrum("lab/names", name), spectrum(EMBEDDED, name))
    index = json.loads((place / "names" / "model.safetensors.index.json").read_text())["weight_map"]
    assert fetched("lab/names", commit) == [int(file == index[f"{name}.weight"]) for file in SHARDS]
    assert find_weight("lab/gpt2", "transformer.h.0.attn.c_attn").shape == (96, 32)
    assert tuple(find_weight("lab/gpt2", "transformer.h.0.attn.c_attn").read().shape) == (96, 32)


def check_a_scan_fetches_one_shard_at_a_time(place):
    from nlora_lab.models.weights import list_weights
    from nlora_lab.spectra.scanning import scan

    commit, cache = commit_of(place / "stream"), place / "rows-stream"
    at = [SHARDS.index(w.shard.name) for w in list_weights("lab/stream")]
    assert sorted(set(at)) == [0, 1, 2]
    so_far = []
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), watching(lambda n: so_far.append(fetched("lab/stream", commit))):
        first = scan("lab/stream", (4,), cache=cache, progress=True)
    assert so_far == [[int(i <= shard) for i in range(3)] for shard in at]
    assert "downloading model-00002-of-00003.safetensors (1.2 MiB)" in stderr.getvalue()
    assert fetched("lab/stream", commit) == [1, 1, 1]
    local = scan(EMBEDDED, (4,), cache=False)
    assert first.sort_values("name").reset_index(drop=True).equals(local.sort_values("name").reset_index(drop=True))

    def shard_requests():
        return sum(many for path, many in requests().items() if path.endswith(tuple(SHARDS)))

    before = shard_requests()
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        assert scan("lab/stream", (4,), cache=cache, progress=False).equals(first)
    assert shard_requests() == before
    assert stderr.getvalue() == ""
    assert scan("lab/again", (4,), cache=cache).equals(first)  # the same files under another id: headers only
    assert fetched("lab/again", commit) == [0, 0, 0]
    for damaged in ("[]", "3", '[["a", 1]]'):
        (document,) = (cache / "hub").glob("lab--stream-*.json")
        document.write_text(damaged)
        assert scan("lab/stream", (4,), cache=cache).equals(first)


def check_a_scan_without_keeping(place):
    from nlora_lab.spectra.scanning import scan, spectrum

    commit, cache = commit_of(place / "spare"), place / "rows-spare"
    on_disk = []
    with watching(lambda n: on_disk.append(len(weight_files("lab/spare")))):
        first = scan("lab/spare", (4,), cache=cache, keep=False)
    assert set(on_disk) == {1}
    assert weight_files("lab/spare") == []
    assert scan("lab/spare", (4,), cache=cache, keep=False).equals(first)
    with no_network():
        assert scan("lab/spare", (4,), cache=cache).equals(first)
    assert fetched("lab/spare", commit) == [1, 1, 1]
    spectrum("lab/spare", first.name[0])  # an earlier download of the user
    (earlier,) = weight_files("lab/spare")
    scan("lab/spare", (4,), cache=False, keep=False)
    assert fetched("lab/spare", commit) == [2, 2, 2]
    assert weight_files("lab/spare") == [earlier]


def check_an_interrupted_scan_resumes(place):
    from nlora_lab.models.weights import list_weights
    from nlora_lab.spectra.scanning import scan

    commit = commit_of(place / "stopped")
    in_first = [w.shard.name for w in list_weights("lab/stopped")].count(SHARDS[0])

    def stop(n):
        if n == in_first + 1:
            raise KeyboardInterrupt

    for keep, left in ((False, 0), (True, 2)):
        cache = place / f"rows-stopped-{keep}"
        with watching(stop), pytest.raises(KeyboardInterrupt):
            scan("lab/stopped", (4,), cache=cache, keep=keep)
        assert kept_rows(cache) == in_first + 1
        assert len(weight_files("lab/stopped")) == left
    assert fetched("lab/stopped", commit) == [2, 2, 0]
    with watching(lambda n: None) as count:
        table = scan("lab/stopped", (4,), cache=cache)
    assert (len(table), count) == (29, [29 - in_first - 1])
    assert fetched("lab/stopped", commit) == [2, 2, 1]


def check_a_network_that_goes_away(place):
    from nlora_lab.models.weights import list_weights
    from nlora_lab.spectra.scanning import scan

    cache = place / "rows-leaving"
    in_first = [w.shard.name for w in list_weights("lab/leaving")].count(SHARDS[0])
    lost = r"model-00002-of-00003\.safetensors could not be downloaded: .* out of reach"
    with contextlib.ExitStack() as stack:
        stack.enter_context(watching(lambda n: stack.enter_context(no_network()) if n == in_first - 1 else None))
        raises(lost, scan, "lab/leaving", (4,), cache=cache)
    assert kept_rows(cache) == in_first
    assert len(scan("lab/leaving", (4,), cache=cache)) == 29


def check_broken_checkpoints(place):
    from nlora_lab.models.loading import load_model
    from nlora_lab.models.weights import list_weights
    from nlora_lab.spectra.scanning import scan

    in_first = [w.shard.name for w in list_weights("lab/cut")].count(SHARDS[0])
    raises(r"cannot be read from .*00002.*delete the file", scan, "lab/cut", (4,), cache=place / "rows-cut")
    assert kept_rows(place / "rows-cut") == in_first
    raises(r"names model-00003-of-00003\.safetensors, which is missing", scan, "lab/hole")
    with no_network():
        raises("'lab/hole' is not in the cache and the hub is out of reach", scan, "lab/hole")
    raises(r"weight file of 'lab/cut' is truncated", load_model, "lab/cut")
    raises(r"'lab/hole'.*model-00003-of-00003", load_model, "lab/hole")


def check_a_cached_model_without_a_network(place):
    from nlora_lab.spectra.scanning import scan

    first = scan("lab/cached", (4,), cache=False)
    with no_network():
        assert scan("lab/cached", (4,), cache=False).equals(first)


def check_a_dataset(place):
    from datasets import load_dataset

    rows = load_dataset("lab/sums")
    assert {split: len(rows[split]) for split in rows} == {"train": 3, "test": 2}
    assert rows["train"][1] == {"question": "1 + 1?", "answer": "2"}
    named = load_dataset("lab/sums", data_files="test.jsonl", split="train", revision=commit_of(place / "sums"))
    assert named["answer"][:] == ["1", "2"]
    assert requests()[f"GET /datasets/lab/sums/resolve/{commit_of(place / 'sums')}/train.jsonl"] == 1


def main(place):
    """Run every check and print the traceback of each, "" for a success, as the last line."""
    tracebacks = {}
    for check in CHECKS:
        try:
            globals()[f"check_{check}"](Path(place))
            tracebacks[check] = ""
        except BaseException:  # a KeyboardInterrupt that should not have come this far too
            tracebacks[check] = traceback.format_exc()
    print(json.dumps(tracebacks))


# --- the outcome of each check ---


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    place = tmp_path_factory.mktemp("hub")
    with HubServer() as hub:
        fill(hub, place)
        run = subprocess.run(
            [sys.executable, "-c", f"import test_hub; test_hub.main({str(place)!r})"],
            cwd=ROOT / "tests" / "models", env=environment(hub, place), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_on_the_hub(outcome, check):
    if outcome[check]:  # the traceback itself, where an assertion would shorten it
        pytest.fail(outcome[check], pytrace=False)


def test_every_check_is_run():
    assert {name for name in globals() if name.startswith("check_")} == {f"check_{check}" for check in CHECKS}
