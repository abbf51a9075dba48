"""Nyström for kernel matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import gaussian

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.psd import nystrom_psd


def kernel(n: int, seed: int) -> torch.Tensor:
    x = gaussian(n, 3, seed)
    return torch.exp(-torch.cdist(x, x).square() / 4)


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 25), st.integers(0, 10**6), st.sampled_from(["leading", "random", "cross"]), st.data())
def test_psd_nystrom_never_does_worse_than_zero_and_leaves_a_psd_residual(n, seed, pivots, data):
    K, rank = kernel(n, seed), data.draw(st.integers(1, n))
    f = nystrom_psd(K, rank, pivots=pivots, generator=torch.Generator().manual_seed(seed), rtol=1e-12)
    assert relative_error(K, f, "spectral") <= 1 + 1e-8
    assert float(torch.linalg.eigvalsh(f.residual(K)).min()) > -1e-6
    assert torch.equal(f.rows, f.cols)


def test_pivoted_cholesky_takes_the_largest_variance_of_the_residual():
    K = kernel(12, 0) * torch.outer(torch.arange(1.0, 13.0), torch.arange(1.0, 13.0))
    index = nystrom_psd(K, 4, pivots="cross").rows.tolist()
    assert index[0] == 11
    for k in range(1, 4):
        variance = nystrom_psd(K, k, pivots=(index[:k], index[:k])).residual(K).diagonal()
        assert index[k] == int(variance.argmax())


def test_a_generator_decides_random_pivots():
    K, generator = kernel(30, 0), torch.Generator()
    one, again = (nystrom_psd(K, 5, pivots="random", generator=generator.manual_seed(3)).rows for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, nystrom_psd(K, 5, pivots="random", generator=generator.manual_seed(4)).rows)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_size_of_a_kernel_does_not_change_its_pivots(scale):
    K = kernel(12, 0)
    assert nystrom_psd(scale * K, 5, pivots="cross").rows.tolist() == nystrom_psd(K, 5, pivots="cross").rows.tolist()


@pytest.mark.parametrize(
    ("K", "options", "names"),
    [
        (torch.ones(3, 4), {}, "square"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), {}, "not symmetric"),
        (torch.tensor([[-1.0, 0.0], [0.0, 1.0]]), {}, "positive semi-definite"),
        (torch.eye(3), {"pivots": "qr"}, "qr"),
        (torch.eye(3), {"pivots": "best"}, "best"),
        (torch.eye(3), {"pivots": ([0], [1])}, "same indices"),
        (torch.eye(3), {"pivots": "cross", "rank": 4}, "rank=4"),
    ],
)
def test_a_matrix_that_is_not_a_kernel_is_refused(K, options, names):
    with pytest.raises(InputError, match=names):
        nystrom_psd(K, **{"rank": 1, **options})


@pytest.mark.parametrize("bad", [{"rank": 2.5}, {"rank": -1}, {"rank": "3"}, {"pivots": None}, {"pivots": 3},
                                 {"pivots": ("a", "b")}, {"pivots": ([0],)}, {"generator": 5}])  # fmt: skip
def test_a_bad_option_is_refused(bad):
    with pytest.raises(InputError):
        nystrom_psd(torch.eye(4), **{"rank": 1, **bad})
