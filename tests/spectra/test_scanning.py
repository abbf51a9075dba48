from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from factories import ROOT, tiny_gpt2, tiny_llama
from safetensors.torch import load_file, save_file
from torch import nn

from nlora_lab.core.cache import Cache, cache_folder
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.svd import truncated_svd
from nlora_lab.models.names import split_name
from nlora_lab.models.weights import find_weight, list_weights
from nlora_lab.spectra import scanning as spectra
from nlora_lab.spectra.matrix_numbers import measure
from nlora_lab.spectra.scan_cache import content_digest
from nlora_lab.spectra.scanning import scan, spectrum

EMBEDDED = ROOT / "data" / "embedded"


def gaussian(m, n, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for one test."""
    monkeypatch.setenv("NLORA_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sharded(tmp_path):
    """Two shards with an index, and tensors that a scan has to leave out."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    first = {"model.layers.0.mlp.up_proj.weight": gaussian(30, 20, 1), "model.norm.weight": torch.ones(20)}
    second = {
        "model.layers.1.mlp.up_proj.weight": gaussian(30, 20, 2).bfloat16(),
        "lm_head.weight": gaussian(50, 20, 3).half(),
        "model.layers.1.mlp.relative_position_index": torch.ones(4, 4, dtype=torch.int64),
        "model.layers.1.conv.weight": torch.ones(4, 4, 2),
    }
    names = {}
    for i, tensors in enumerate((first, second), start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file(tensors, folder / file)
        names |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def test_the_embedded_model_as_name_folder_file_and_live_model_is_one(cache, embedded):
    by_name, by_folder = scan("embedded", (8,)), scan(EMBEDDED, (8,))
    by_file, live = scan(str(EMBEDDED / "model.safetensors"), (8,)), scan(embedded[0], (8,))
    assert by_name.equals(by_folder)
    assert by_name.equals(by_file)
    key = ["layer", "module"]
    assert by_name.sort_values(key).reset_index(drop=True).equals(live.sort_values(key).reset_index(drop=True))
    assert len(by_name) == 4 * 7 + 1
    assert sorted(by_name.layer.unique()) == [-1, 0, 1, 2, 3]
    assert {"mlp.down_proj", "self_attn.q_proj", "model.embed_tokens"} <= set(by_name.module)


def test_every_number_against_its_definition(cache):
    W = load_file(EMBEDDED / "model.safetensors")["model.layers.2.mlp.down_proj.weight"]
    row = scan("embedded", (4, 8)).set_index(["layer", "module"]).loc[2, "mlp.down_proj"]
    w = W.double().numpy()
    s = np.linalg.svd(w, compute_uv=False)
    p = s / s.sum()
    expected = {
        "out": 128, "in": 352, "std": np.sqrt((w**2).mean()), "sigma_max": s[0],
        "stable_rank": (s**2).sum() / s[0] ** 2, "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "above_noise": (s > np.sqrt((w**2).mean()) * (np.sqrt(128) + np.sqrt(352))).sum(),
        "svd_r8": np.linalg.norm(s[8:]) / np.linalg.norm(s), "cond_r4": np.linalg.cond(w[:4, :4]),
        "nystrom_r8": relative_error(W, nystrom(W, 8)), "nystrom_r4": relative_error(W, nystrom(W, 4)),
        "optimal_r8": relative_error(W, nystrom(W, 8, core="optimal")),
        "cross_r8": relative_error(W, nystrom(W, 8, pivots="cross")),
    }  # fmt: skip
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-4), name
    U, V = truncated_svd(W.double(), 8).left, truncated_svd(W.double(), 8).right.T
    leverage = (U[:8].square().sum() / 8 * 128 / 8 + V[:8].square().sum() / 8 * 352 / 8) / 2
    assert row["leverage_r8"] == pytest.approx(float(leverage), rel=0.1)  # from a sketch
    k = np.arange(1, 65)
    slope = np.polyfit(np.log(k), np.log(s[:64]), 1)[0]
    assert row["power_law"] == pytest.approx(-slope, rel=1e-4)


def test_shards_are_read_in_order_and_other_tensors_are_left_out(cache, sharded):
    table = scan(sharded, (4, 25))
    assert list(table.module) == ["mlp.up_proj", "lm_head", "mlp.up_proj"]
    assert list(table.layer) == [0, -1, 1]
    assert table.nystrom_r4.notna().all()
    assert table.nystrom_r25.isna().all()


def test_a_rank_too_large_for_one_matrix_is_nan_and_for_all_an_error(cache, tmp_path):
    save_file({"a.weight": gaussian(9, 5), "b.weight": gaussian(3, 4)}, tmp_path / "two.safetensors")
    table = scan(tmp_path / "two.safetensors", (2, 5))
    assert table.nystrom_r5.isna().tolist() == [False, True]
    assert table.svd_r2.notna().all()
    with pytest.raises(InputError, match=r"largest rank .* is 5"):
        scan(tmp_path / "two.safetensors", (6,))


def test_gpt2_has_its_weights_as_out_in(cache, tmp_path):
    torch.manual_seed(0)
    model = tiny_gpt2()
    model.save_pretrained(tmp_path)
    live, stored = (scan(source, (4,)).set_index(["layer", "module"]) for source in (model, tmp_path))
    assert (live.loc[0, "attn.c_attn"]["out"], live.loc[0, "attn.c_attn"]["in"]) == (96, 32)
    assert live.sort_index().equals(stored.sort_index())
    assert torch.equal(
        find_weight(tmp_path, "transformer.h.0.attn.c_attn").read(), model.transformer.h[0].attn.c_attn.weight.T
    )


def test_a_tied_weight_and_a_zero_matrix(cache):
    model = tiny_llama(tie_word_embeddings=True)
    table = scan(model, (4,))
    assert len(table) == 2 * 7 + 1
    empty = scan(nn.Sequential(nn.Linear(4, 3).requires_grad_(False)).apply(_zero), (2,))
    assert empty.nystrom_r2.isna().all()
    assert empty.stable_rank.tolist() == [0.0]


def _zero(module):
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.weight)


# --- the cache ---


def test_a_second_scan_reads_no_tensor(cache, sharded, monkeypatch):
    first = scan(sharded, (4,))

    def refuse(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(spectra, "measure", refuse)
    monkeypatch.setattr(spectra.Weight, "read", refuse)
    assert scan(sharded, (4,)).equals(first)
    with pytest.raises(AssertionError, match="computed again"):
        scan(sharded, (4,), cache=False)


def test_an_interrupted_scan_resumes(cache, sharded, monkeypatch):
    measured = []

    def stop_after_two(W, *args, real=spectra.measure):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(tuple(W.shape))
        return real(W, *args)

    monkeypatch.setattr(spectra, "measure", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        scan(sharded, (4,))
    measured.clear()
    assert len(scan(sharded, (4,))) == 3
    assert len(measured) == 1


def test_the_cache_key_is_the_content_and_not_the_path(cache, sharded, tmp_path, monkeypatch):
    first = scan(sharded, (4,))
    moved = tmp_path / "moved"
    sharded.rename(moved)
    calls = []
    real = spectra.measure
    monkeypatch.setattr(spectra, "measure", lambda *args: calls.append(1) or real(*args))
    assert scan(moved, (4,)).equals(first)
    assert calls == []
    changed = load_file(moved / "model-00001-of-00002.safetensors")
    changed["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(changed, moved / "model-00001-of-00002.safetensors")
    assert not scan(moved, (4,)).equals(first)
    assert calls == [1]
    W = gaussian(3, 4)
    different = (W, W.T, W.reshape(4, 3), W.double(), W + 1e-6)
    assert len({content_digest(matrix) for matrix in different}) == 5


def test_a_cache_that_cannot_be_used_changes_nothing(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert len(scan("embedded", (4,), cache=blocked)) == 29
    damaged = Cache(tmp_path / "damaged")
    damaged.put("a", {"x": 1})
    assert damaged.get("a") == {"x": 1}
    (tmp_path / "damaged" / "a.json").write_text('{"x": ')
    assert damaged.get("a") is None
    assert [p.name for p in (tmp_path / "damaged").iterdir()] == ["a.json"]


def test_infinite_condition_numbers_survive_the_cache(cache):
    model = nn.Sequential(nn.Linear(6, 6, bias=False))
    with torch.no_grad():
        model[0].weight[:2, :2] = 0
    first, again = scan(model, (2,)), scan(model, (2,))
    assert first.cond_r2.tolist() == again.cond_r2.tolist() == [math.inf]


def test_the_cache_folder_is_the_users_or_the_one_named(cache, monkeypatch):
    assert cache_folder() == cache
    monkeypatch.delenv("NLORA_LAB_CACHE")
    assert cache_folder().name == "nlora-lab"


# --- bad input ---


def test_pickles_are_refused_with_the_reason_and_the_remedy(tmp_path):
    for name in ("pytorch_model.bin", "model.pt"):
        (tmp_path / name).write_bytes(pickle.dumps({"w": 1}))
        with pytest.raises(InputError, match=r"pickle, which can run code.*save_pretrained"):
            scan(tmp_path / name)
    with pytest.raises(InputError, match="pickle"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda p: (p / "a.safetensors").write_bytes(b"\xff" * 100) and p / "a.safetensors", "truncated"),
        (lambda p: (p / "notes.txt").write_text("hello") and p / "notes.txt", "not safetensors"),
        (lambda p: p / "gone.safetensors", "does not exist"),
        (lambda p: p / "gone", "not known"),
        (lambda p: p, "no .safetensors file"),
        (lambda p: (p / "model.safetensors.index.json").write_text("{}") and p, "index"),
        (
            lambda p: (p / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}') and p,
            r"b\.safetensors, which is missing",
        ),
        (
            lambda p: (p / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}') and p,
            "no file beside it",
        ),
        (lambda p: "", "not known"),
        (lambda p: 7, "source=7"),
        (lambda p: nn.ReLU(), "no 2-D"),
        (lambda p: nn.Linear(3, 3, device="meta"), "meta device"),
        (lambda p: "nobody/nothing-here", "not in the cache"),
    ],
)
def test_a_source_that_cannot_be_scanned_is_named(tmp_path, make, names):
    with pytest.raises(InputError, match=names):
        scan(make(tmp_path))


def test_a_truncated_file_is_named(tmp_path, sharded):
    file = sharded / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated"):
        scan(sharded)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_with_nan_is_named_and_earlier_rows_stay_cached(cache, tmp_path, bad):
    tensors = {"a.weight": gaussian(6, 5), "b.weight": gaussian(6, 5, 1)}
    tensors["b.weight"][2, 2] = bad
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"b\.weight: W holds NaN or infinity"):
        scan(tmp_path / "model.safetensors", (2,))
    assert len(list((cache / "spectra").rglob("*.json"))) == 1


@pytest.mark.parametrize("ranks", [(), (0,), (2.0,), (True,), 8, ("8",)])
def test_bad_ranks_are_named(ranks):
    with pytest.raises(InputError, match="ranks"):
        scan("embedded", ranks)


def test_names_are_split_into_layer_and_module():
    assert split_name("encoder.layer.3.intermediate.dense.weight") == (3, "intermediate.dense")
    assert split_name("h.11.attn.c_attn.weight") == (11, "attn.c_attn")
    assert split_name("model.layers.4.mlp.experts.7.w1.weight") == (4, "mlp.experts.7.w1")
    assert split_name("lm_head.weight") == (-1, "lm_head")
    assert split_name("0.weight") == (-1, "0")


def test_a_spectrum_by_name(cache):
    W = load_file(EMBEDDED / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj.weight"):
        assert torch.allclose(spectrum("embedded", name), torch.linalg.svdvals(W), atol=1e-5)
    with pytest.raises(InputError, match=r"name='q_proj' is not one of the 29 weights"):
        spectrum("embedded", "q_proj")


def test_progress_goes_to_stderr_on_request_or_when_the_scan_is_long(cache, capsys, monkeypatch):
    scan("embedded", (4,))
    assert capsys.readouterr() == ("", "")
    scan("embedded", (4,), progress=True)
    assert "scanned 29 of 29 matrices" in capsys.readouterr().err
    monkeypatch.setattr(spectra, "LONG_SCAN", 10)  # a long scan prints its progress by default
    scan("embedded", (4,))
    assert "scanned 29 of 29 matrices" in capsys.readouterr().err


def test_no_tensor_is_read_before_it_is_needed(sharded):
    listed = list_weights(sharded)
    assert [w.shape for w in listed] == [(30, 20), (50, 20), (30, 20)]
    assert listed[2].read().dtype == torch.bfloat16


# --- damaged caches and odd input ---


def documents(cache, kind):
    paths = sorted((cache / kind).rglob("*.json"))
    assert paths
    return paths


ROW = {"std": 1.0, "stable_rank": 1.0, "effective_rank": 1.0, "power_law": 1.0, "sigma_max": 1.0, "above_noise": 1}


@pytest.mark.parametrize(
    "damaged",
    ["{}", "[]", "null", '{"std": "abc"}', '{"std": [1]}', json.dumps(ROW), json.dumps({**ROW, "nystrom_r4": 1.0}),
     json.dumps({**ROW, "above_noise": None}), "[" * 100_000],
)  # fmt: skip
def test_a_damaged_row_in_the_cache_is_measured_again(cache, sharded, damaged):
    first = scan(sharded, (4,))
    for path in documents(cache, "spectra"):
        path.write_text(damaged)
    assert scan(sharded, (4,)).equals(first)
    for path in documents(cache, "files"):
        path.write_text(damaged)
    assert scan(sharded, (4,)).equals(first)


@pytest.mark.parametrize("digests", [None, [], {"lm_head.weight": 3}, "x"])
def test_a_damaged_list_of_digests_is_written_again(cache, sharded, digests):
    first = scan(sharded, (4,))
    for path in documents(cache, "files"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "digests": digests}))
    assert scan(sharded, (4,)).equals(first)


def test_many_ranks_are_cached_too(cache, sharded, monkeypatch):
    first = scan(sharded, range(1, 129))
    monkeypatch.setattr(spectra, "measure", lambda *_: pytest.fail("computed again"))
    assert scan(sharded, np.arange(1, 129)).equals(first)


def test_an_encoder_and_a_decoder_are_told_apart(cache, tmp_path):
    names = [f"{side}.block.{i}.layer.0.q.weight" for side in ("encoder", "decoder") for i in (0, 1)]
    save_file({name: gaussian(8, 6, i) for i, name in enumerate(names)}, tmp_path / "model.safetensors")
    table = scan(tmp_path, (2,))
    assert len(table[["layer", "module"]].drop_duplicates()) == 4
    assert set(table.module) == {"encoder.block.layer.0.q", "decoder.block.layer.0.q"}
    assert sorted(table.name) == sorted(names)
    from nlora_lab.labs.spectrum import SpectrumLab

    lab = SpectrumLab(tmp_path, figures="image")
    assert len(lab.errors) == 4


@pytest.mark.parametrize("scale", ["a.weight_scale_inv", "a.weight_scale", "a.qweight"])
def test_quantised_weights_are_refused(cache, tmp_path, scale):
    tensors = {"a.weight": gaussian(8, 8).to(torch.float8_e4m3fn), scale: torch.ones(2, 2)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="quantised"):
        scan(tmp_path)


def test_only_the_model_of_a_folder_is_read_and_only_what_its_index_lists(cache, tmp_path, sharded):
    for name in ("model", "consolidated", "adapter_model"):
        save_file({f"{name}.weight": gaussian(8, 6)}, tmp_path / f"{name}.safetensors")
    assert list(scan(tmp_path, (2,)).name) == ["model.weight"]
    index = sharded / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    del listed["lm_head.weight"]
    index.write_text(json.dumps({"weight_map": listed}))
    assert "lm_head.weight" not in set(scan(sharded, (4,)).name)


@pytest.mark.parametrize("factor", [1e-30, 1e-25, 1e20, 1e30])
def test_only_two_columns_depend_on_the_scale(factor):
    W = gaussian(20, 12)
    plain, scaled = spectra.measure(W, (4,)), spectra.measure(W * factor, (4,))
    for name, value in plain.items():
        expected = value * factor if name in ("std", "sigma_max") else value
        assert scaled[name] == pytest.approx(expected, rel=1e-3), name


def test_leverage_does_not_depend_on_the_other_ranks():
    W = load_file(EMBEDDED / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    alone, among = (spectra.measure(W, ranks)["leverage_r8"] for ranks in ((8,), (4, 8, 16, 32)))
    U, V = truncated_svd(W.double(), 8).left, truncated_svd(W.double(), 8).right.T
    true = float((U[:8].square().sum() / 64 * 352 + V[:8].square().sum() / 64 * 128) / 2)
    assert (alone, among) == pytest.approx((true, true), rel=0.02)


@pytest.mark.parametrize("cached", ["", 5, 1, "~nobody-of-that-name/x"])
def test_a_cache_that_is_not_a_folder_is_named(cached):
    with pytest.raises(InputError, match="cache="):
        scan("embedded", (4,), cache=cached)
    assert len(scan("embedded", (4,), cache=None)) == 29


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "x" * 5000, "MODEL.BIN"])
def test_odd_paths_are_named(name):
    with pytest.raises(InputError):
        scan(name)


def test_half_precision_is_measured_in_place_with_the_same_numbers(tmp_path):
    W = with_spectrum_in(torch.bfloat16)
    ranks = (1, 4, 8)
    work, reads = W.float(), []

    def refill():
        reads.append(1)
        return W

    assert measure(work, ranks, refill) == measure(W.float(), ranks)
    assert torch.equal(work, W.float())
    assert reads == [1]
    tables = []
    for name, dtype in (("half", torch.bfloat16), ("full", torch.float32)):
        save_file({"a.weight": W.to(dtype), "b.weight": W.T.contiguous().to(dtype)}, tmp_path / f"{name}.safetensors")
        tables.append(scan(tmp_path / f"{name}.safetensors", ranks, cache=False))
    assert tables[0].equals(tables[1])
    model = torch.nn.Linear(80, 300, bias=False).to(torch.bfloat16)
    before = model.weight.detach().clone()
    scan(model, ranks, cache=False)
    assert torch.equal(model.weight, before)


def with_spectrum_in(dtype):
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(n, 80, generator=generator) for n in (300, 80))
    return ((left * torch.logspace(0, -2, 80)) @ right).to(dtype)


TALL = """
    import sys, torch
    sys.path[:0] = {paths!r}
    import scan_memory
    from pathlib import Path
    folder = Path({folder!r})
    weight = (torch.randn(65536, 512, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    scan_memory.save_file({{"embed.weight": weight}}, folder / "model.safetensors")
    del weight
    figures = scan_memory.measure(folder)
    print((figures["peak"] - figures["before"]) / (4 * 65536 * 512))
"""


def test_a_tall_matrix_takes_at_most_three_times_its_size_in_float32(tmp_path):
    code = textwrap.dedent(TALL).format(paths=[str(ROOT), str(ROOT / "benchmarks")], folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 3
