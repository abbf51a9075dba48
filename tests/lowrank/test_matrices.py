"""The matrices of the notebooks: a picture, which must stay the one of their sentences, and given spectra."""

from __future__ import annotations

import pytest
import torch

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.matrices import landscape, with_spectrum


def test_the_landscape_is_the_one_of_the_notebooks():
    P = landscape()
    assert P.shape == (96, 128)
    assert P.dtype == torch.float32
    assert (int((P == 1).sum()), int(P.isclose(torch.tensor(0.08)).sum())) == (234, 929)  # the sun, the fence
    assert float(P.mean()) == pytest.approx(0.5335, abs=1e-4)
    places = {(5, 3): 0.9237, (40, 64): 0.2420, (40, 92): 0.7395, (50, 40): 0.4183, (60, 120): 0.3542, (90, 3): 0.4402}
    for place, grey in places.items():  # sky, mountain, sky, its edge, water, water below the fence
        assert float(P[place]) == pytest.approx(grey, abs=1e-4), place
    assert torch.linalg.svdvals(P)[:4].tolist() == pytest.approx([65.110, 9.252, 5.428, 4.935], abs=1e-2)


def test_every_size_shows_the_same_picture():
    small, large = landscape(48, 64), landscape(384, 512)
    rows, cols = torch.linspace(0, 383, 48).round().long(), torch.linspace(0, 511, 64).round().long()
    assert float((large[rows][:, cols] - small).abs().mean()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_given_spectrum_is_that_of_the_matrix(dtype):
    sigma = torch.tensor([1.0, 4.0, 0.25, 0.0], dtype=dtype)
    W = with_spectrum(sigma, seed=3)
    assert W.dtype == dtype
    assert torch.allclose(torch.linalg.svdvals(W), sigma.sort(descending=True).values, atol=1e-6)
    assert torch.equal(W, with_spectrum(sigma, seed=3))
    assert not torch.allclose(W, with_spectrum(sigma, seed=4))
    assert not torch.allclose(W, W.T, atol=1e-2)  # left and right vectors are two draws
    assert with_spectrum([2, 1]).dtype == torch.float32


@pytest.mark.parametrize(
    ("sigma", "shown"),
    [
        (torch.tensor([1.0, -1.0]), "float32 (2,)"), (torch.tensor([torch.nan]), "float32 (1,)"),
        (torch.ones(2, 2), "(2, 2)"), (torch.tensor([1j]), "complex64"), ([1.0, -1.0], "[1.0, -1.0]"), ([], "[]"),
        ("abc", "'abc'"), (None, "None"),
    ],
)  # fmt: skip
def test_what_is_no_spectrum_is_shown(sigma, shown):
    with pytest.raises(InputError) as caught:
        with_spectrum(sigma)
    assert shown in str(caught.value)
