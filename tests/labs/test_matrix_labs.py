"""NystromLab and SpectrumLab, driven as a page would drive them."""

from __future__ import annotations

import io
import math
import re
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from factories import ROOT, tiny_llama
from safetensors.torch import load_file

from nlora_lab.core.errors import InputError
from nlora_lab.labs import figures
from nlora_lab.labs.matrices import EliminationLab, SvdLab
from nlora_lab.labs.nystrom import NystromLab
from nlora_lab.labs.panel import format_error
from nlora_lab.labs.spectrum import SpectrumLab
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.matrices import landscape, with_spectrum
from nlora_lab.lowrank.svd import truncated_svd
from nlora_lab.pages.matrices import shipped_matrix
from nlora_lab.plots.approximations import APPROXIMATIONS
from nlora_lab.plots.matrices import elimination

LAYER = "model.layers.2.mlp.up_proj.weight"


def embedded(name):
    return load_file(ROOT / "data" / "embedded" / "model.safetensors")[name]


@pytest.fixture
def lab():
    return NystromLab()


@pytest.mark.parametrize("pivots", ["leading", "random", "cross", "qr"])
@pytest.mark.parametrize(("core", "extra"), [("pinv", 0), ("pinv", 5), ("optimal", 0), ("block", 0)])
def test_it_shows_what_nystrom_gives(lab, pivots, core, extra):
    lab.matrix.value = LAYER
    lab.pivots.value, lab.core.value, lab.oversample.value, lab.rank.value = pivots, core, extra, 9
    generator = torch.Generator().manual_seed(0)
    expected = nystrom(embedded(LAYER), 9, pivots=pivots, core=core, oversample=extra, generator=generator)
    assert lab.error == pytest.approx(relative_error(embedded(LAYER), expected), rel=1e-4)
    assert torch.allclose(lab.approximation.product(), expected.product())
    assert f"error {format_error(lab.error)}" in repr(lab)
    assert lab.best < lab.error


def test_the_tolerance_reaches_the_pseudo_inverse(lab):
    before = lab.error
    lab.tolerance.value = 0.3
    W = lab.W
    assert lab.error == pytest.approx(relative_error(W, nystrom(W, 8, rtol=0.3)), rel=1e-4)
    assert lab.error != before


def test_the_figure_follows_every_control(lab):
    def shown():
        return [np.asarray(line.errors) for line in lab.drawing().lines], lab.drawing().matrices[1], repr(lab)

    controls = {
        "rank": 20, "core": "optimal", "pivots": "cross", "oversample": 4, "tolerance": 0.3, "matrix": "power",
        "p": 2.0,
    }  # fmt: skip
    for name, value in controls.items():
        if name in ("tolerance", "matrix"):
            lab.core.value = "pinv"
        before = shown()
        getattr(lab, name).value = value
        assert getattr(lab.widget, name) == value
        after = shown()
        assert not torch.equal(before[1], after[1]), name
        assert before[2] != after[2], name


def test_what_the_lab_opens_with_is_made_from_the_embedded_model(lab):
    """If this fails, run ``python -m tools.lab_opening``."""
    shipped, made = shipped_matrix(), lab.opening()
    assert shipped is not None
    assert (shipped.settings, shipped.text) == (made.settings, made.text)
    for name, value in made.entry.items():
        assert shipped.entry[name] == (pytest.approx(value, rel=1e-4) if name in ("sigma", "best") else value), name
    drawn, stored = (plt.imread(io.BytesIO(png)) for png in (made.picture, shipped.picture))
    assert abs(drawn - stored).mean() < 0.01  # another version of matplotlib may set letters a little differently


def test_it_opens_with_what_was_made_in_advance_and_computes_everything_else(lab, monkeypatch):
    monkeypatch.setattr("nlora_lab.labs.nystrom.shipped_matrix", lambda: None)
    computed = NystromLab()
    assert repr(lab) == repr(computed)
    assert lab.widget.entries.keys() == computed.widget.entries.keys()
    assert lab.picture() == shipped_matrix().picture
    for control, value in {"rank": 9, "pivots": "qr", "tolerance": 0.1, "matrix": LAYER}.items():
        getattr(lab, control).value = value
        assert lab.picture() != shipped_matrix().picture
        getattr(lab, control).value = getattr(computed, control).value
        assert lab.picture() == shipped_matrix().picture
    assert lab.error == computed.error


def test_what_was_made_of_another_model_is_not_used(monkeypatch, tmp_path):
    results, model = tmp_path / "results" / "opening", tmp_path / "embedded"
    shutil.copytree(ROOT / "data" / "results" / "opening", results)
    shutil.copytree(ROOT / "data" / "embedded", model)
    monkeypatch.setattr("nlora_lab.pages.matrices.shipped_folder", lambda _: tmp_path)
    assert shipped_matrix() is not None
    (results / "nystrom.png").unlink()
    assert shipped_matrix() is None
    shutil.copy(ROOT / "data" / "results" / "opening" / "nystrom.png", results)
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    assert shipped_matrix() is None


def test_sliders_stay_within_the_matrix():
    lab = NystromLab(torch.randn(12, 9))
    assert lab.matrix.value == "yours"
    lab.rank.value, lab.oversample.value = 50, 50
    assert (lab.rank.value, lab.oversample.value) == (6, 6)
    assert math.isfinite(lab.error)
    lab.core.value = "block"
    assert lab.approximation.core.shape == (6, 6)
    lab.matrix.value = "gaussian"
    lab.rank.value = 200
    assert lab.rank.value == 96
    lab.matrix.value = "yours"
    assert lab.rank.value == 6


def test_the_page_gets_the_matrix_and_of_a_large_one_what_the_kernel_computed(lab):
    (entry,) = lab.widget.entries.values()
    assert np.array_equal(np.frombuffer(entry["W"], "<f4").reshape(entry["m"], entry["n"]), lab.W)
    assert entry["best"][7] == pytest.approx(lab.best, rel=1e-5)
    large = NystromLab(torch.randn(300, 200, generator=torch.Generator().manual_seed(0)))
    (key, entry), *_ = large.widget.entries.items()
    assert "W" not in entry
    large.rank.value = 20
    computed = large.widget.computed
    assert (computed["key"], computed["error"]) == (key, large.error)
    assert computed["lines"][-1]["errors"][19] == large.error
    assert [(i["m"], i["n"]) for i in computed["images"]] == [(60, 50)] * 3


@pytest.mark.parametrize(
    ("control", "value"), [("matrix", "none"), ("core", "svd"), ("rank", "8"), ("tolerance", None)]
)
def test_a_value_that_a_control_cannot_take_is_named(lab, control, value):
    with pytest.raises(InputError, match=f"{control}="):
        getattr(lab, control).value = value


def test_made_up_matrices_are_what_they_are_called(lab):
    lab.matrix.value, lab.p.value = "power", 1.5
    s = torch.linalg.svdvals(lab.W)
    assert torch.allclose(s / s[0], torch.arange(1.0, 129.0) ** -1.5, atol=1e-5)
    lab.matrix.value, lab.rank.value = "exact", 12
    assert torch.linalg.matrix_rank(lab.W) == 12
    assert "error 0, to rounding" in repr(lab)
    lab.rank.value = 20
    assert "numerically singular" in repr(lab)
    assert lab.error < 1e-3
    assert torch.allclose(torch.linalg.svdvals(with_spectrum(torch.tensor([3.0, 1.0]))), torch.tensor([3.0, 1.0]))


def _small():
    return torch.randn(50, 40, generator=torch.Generator().manual_seed(3))


def test_a_heat_map_shows_the_reproduced_rows_and_columns_as_empty():
    lab = NystromLab(_small())  # small enough to be shown entry by entry
    lab.rank.value = 10
    W, approximation, residual = lab.drawing().matrices
    assert not residual[:10].any()
    assert not residual[:, :10].any()
    assert residual[10:, 10:].any()
    assert torch.equal(W, lab.W)
    assert torch.allclose(W - approximation, residual, atol=1e-3)
    z = lab.drawing().plotly()[0][2]["z"]
    assert not z[:10].any()
    assert z[10:, 10:].any()


@pytest.mark.parametrize(
    "bad", [torch.ones(3), torch.zeros(3, 3), torch.ones(2, 3, 3), "W", torch.tensor([[math.nan]])]
)
def test_what_is_not_a_matrix_is_refused(bad):
    with pytest.raises(InputError, match="W "):
        NystromLab(bad)


# --- SpectrumLab ---


@pytest.fixture(scope="module")
def shared_map():
    return SpectrumLab(figures="plotly")


@pytest.fixture
def map_lab(shared_map):
    """The lab as it opens: it takes a second to make, and a test may leave its controls elsewhere."""
    for control in (shared_map.layer, shared_map.module, shared_map.approximation, shared_map.shown):
        control.index = 0
    shared_map.rank.value = 8
    return shared_map


def test_the_map_holds_the_error_of_every_layer(map_lab):
    map_lab.approximation.value, map_lab.shown.value, map_lab.rank.value = "nystrom", "these weights", 8
    errors = map_lab.errors
    assert len(errors) == 28
    for kind, a in APPROXIMATIONS.items():
        if kind == "svd":
            continue
        map_lab.approximation.value = kind
        expected = relative_error(embedded(LAYER), nystrom(embedded(LAYER), 8, **a.options))
        assert map_lab.errors[2, "mlp.up_proj"] == pytest.approx(expected, rel=1e-4), kind
    map_lab.approximation.value = "svd"
    assert max(map_lab.errors.values()) < 1 < min(errors.values())
    cells = map_lab._figure.widget.data[0]
    assert (len(cells.y), len(cells.x)) == (7, 4)
    assert cells.text[list(cells.y).index("mlp.up_proj")][2] == f"{map_lab.errors[2, 'mlp.up_proj']:.2f}"


def test_a_click_chooses_the_cell_once(map_lab, monkeypatch):
    draws = []
    monkeypatch.setattr(map_lab._figure, "draw", lambda d: draws.append(d))
    (clicked,) = map_lab._figure.widget.data[0]._click_callbacks
    points = type("Points", (), {"xs": ["3"], "ys": ["self_attn.v_proj"]})
    clicked(None, points, None)
    assert (map_lab.layer.value, map_lab.module.value) == (3, "self_attn.v_proj")
    assert len(draws) == 1
    assert draws[0].chosen == (6, 3)
    assert "layer 3 self_attn.v_proj" in repr(map_lab)
    values = draws[0].spectra["these weights"]
    expected = torch.linalg.svdvals(embedded("model.layers.3.self_attn.v_proj.weight"))
    assert torch.allclose(torch.tensor(values), expected, rtol=1e-4)
    clicked(None, type("Points", (), {"xs": [], "ys": []}), None)  # a click beside the cells
    assert len(draws) == 1


def test_fresh_weights_are_noise_of_the_same_size(map_lab):
    map_lab.layer.value, map_lab.module.value = 3, "self_attn.v_proj"
    spectra = map_lab.drawing().spectra
    sizes = [math.sqrt(sum(s * s for s in values)) for values in spectra.values()]
    assert sizes == pytest.approx([sizes[0]] * 3, rel=0.02)
    top = [values[0] for values in spectra.values()]
    assert top[1] == pytest.approx(top[2], rel=0.1)
    assert top[0] > 1.2 * top[2]
    map_lab.approximation.value, map_lab.shown.value = "svd", "these weights"
    trained = map_lab.errors
    map_lab.shown.value = "fresh weights"
    assert all(map_lab.errors[place] > trained[place] for place in trained)


def test_other_models_ranks_too_high_and_images():
    lab = SpectrumLab(tiny_llama(num_key_value_heads=1), figures="image")
    assert isinstance(lab._figure, figures.ImageFigure)
    before = bytes(lab._figure.widget.value)
    assert before.startswith(b"\x89PNG")
    lab.rank.value = 20  # k_proj is 8 × 32
    assert math.isnan(lab.errors[0, "self_attn.k_proj"])
    assert bytes(lab._figure.widget.value) != before
    linear = SpectrumLab(torch.nn.Linear(6, 5))
    assert linear.layer.options == (-1,)
    linear.rank.value = 2
    assert linear.errors[-1, "weight"] > 0
    zero = torch.nn.Linear(6, 5)
    torch.nn.init.zeros_(zero.weight)
    assert math.isnan(SpectrumLab(zero).errors[-1, "weight"])


def test_nan_in_a_weight_is_named():
    bad = torch.nn.Sequential(torch.nn.Linear(6, 5))
    with torch.no_grad():
        bad[0].weight[0, 0] = math.nan
    with pytest.raises(InputError, match=r"0\.weight: W holds NaN"):
        SpectrumLab(bad)


@pytest.mark.parametrize("make", [NystromLab, SpectrumLab, SvdLab])
def test_they_show_a_panel_a_picture_and_a_line(make):
    bundle = make()._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"} <= set(bundle)
    assert bundle["text/plain"] == repr(make())
    assert len(bundle["image/png"]) < 130_000


# --- SvdLab ---


def test_the_picture_is_low_rank_and_the_weights_are_not():
    lab = SvdLab(figures="plotly")
    assert lab.error == pytest.approx(relative_error(landscape(), truncated_svd(landscape(), 8)), rel=1e-4)
    assert lab.kept == pytest.approx(8 * (96 + 128) / (96 * 128))
    assert "a picture (96 × 128), rank 8: 14.6% of the numbers" in repr(lab)
    picture = lab.error
    before = str(lab._figure.widget.data[1].z)
    lab.matrix.value = LAYER
    assert str(lab._figure.widget.data[1].z) != before
    assert lab.error == pytest.approx(relative_error(embedded(LAYER), truncated_svd(embedded(LAYER), 8)), rel=1e-4)
    assert lab.error > 10 * picture
    assert lab.rank.max == 96
    lab.rank.value = 96
    lab.matrix.value = "picture"
    assert lab.rank.value == lab.rank.max == 72
    assert lab.picture().startswith(b"\x89PNG")
    assert len(lab._figure.widget.data) == len(lab.drawing().plotly()[0])


def test_a_matrix_of_your_own_comes_first():
    lab = SvdLab(torch.randn(12, 9), figures="image")
    assert (lab.matrix.value, lab.rank.max, lab.rank.value) == ("yours", 6, 6)
    lab.matrix.value = "gaussian"
    assert lab.W.shape == (128, 128)
    with pytest.raises(InputError, match="W "):
        SvdLab(torch.zeros(3, 3))


@pytest.mark.parametrize("bad", [torch.ones(2, 2), torch.tensor([-1.0]), torch.tensor([math.nan]), []])
def test_a_spectrum_must_be_one(bad):
    with pytest.raises(InputError, match="sigma"):
        with_spectrum(bad)


def test_the_landscape_is_a_grey_picture_with_black_and_white_in_it():
    picture = landscape(40, 60)
    assert picture.shape == (40, 60)
    assert 0 <= float(picture.min()) < 0.1 < 0.9 < float(picture.max()) <= 1


# --- EliminationLab ---


@pytest.mark.parametrize("pivots", ["leading", "cross"])
def test_the_elimination_follows_its_slider_and_its_line_is_true(pivots):
    W = torch.randint(-5, 6, (6, 6), generator=torch.Generator().manual_seed(0)).double()
    lab = EliminationLab(W, 3, pivots=pivots, figures="plotly")
    for step in (1, 2, 3):
        lab.step.value = step
        numbers = [float(n.replace("−", "-")) for n in re.findall(r"−?\d+(?:\.\d+)?", repr(lab))]
        at, of, pivot, row, column, k, q, a, b, c, p, left = numbers
        assert (at, of, pivot) == (step, 3, p)
        before, now = (nystrom(W, s, pivots=pivots).residual(W) if s else W for s in (step - 1, step))
        exact = before[int(k) - 1, int(q) - 1], now[int(k) - 1, int(q) - 1]
        assert (a, left) == pytest.approx(tuple(map(float, exact)), rel=0.01, abs=1e-5)
        assert a - b * c / p == pytest.approx(left, abs=0.05)
        assert float(before[int(row) - 1, int(column) - 1]) == pytest.approx(p, rel=0.01)
        shown = np.asarray(lab._figure.widget.data[2].z, dtype=float)
        assert np.nan_to_num(shown) == pytest.approx(now.numpy(), abs=1e-5)
    assert lab.play.max == lab.step.max == 3


def test_the_stored_picture_of_an_elimination_is_all_of_its_steps():
    lab = EliminationLab(torch.eye(3) + 0.5, 2, figures="image")
    first = lab._repr_mimebundle_()
    lab.step.value = 2
    assert lab._repr_mimebundle_()["image/png"] == first["image/png"]
    assert lab.picture() == elimination(torch.eye(3) + 0.5, 2).png()
    assert lab._repr_mimebundle_()["text/plain"] != first["text/plain"]


def test_an_elimination_that_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="the pivot of step 1 is zero"):
        EliminationLab(torch.eye(3).flip(0))
    with pytest.raises(InputError, match="steps"):
        EliminationLab(torch.eye(6), 5)
