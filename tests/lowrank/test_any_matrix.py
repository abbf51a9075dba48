"""Any matrix at all: a right result, by an independent formula, or one line that says what is wrong."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank import (
    CORES,
    PIVOTS,
    IllConditionedWarning,
    LowRank,
    all_blocks,
    choose_pivots,
    error_curve,
    generalized_nystrom,
    nystrom,
    nystrom_psd,
    randomized_svd,
    relative_error,
    singular_values,
    truncated_svd,
    with_spectrum,
)
from nlora_lab.spectra import block_condition, effective_rank, power_law, stable_rank

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
FLOAT4 = getattr(torch, "float4_e2m1fn_x2", None)  # from torch 2.8 on
OTHERS = [
    torch.int8,
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.complex128,
    *([FLOAT4] * bool(FLOAT4)),
]
SHAPES = st.one_of(
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.sampled_from([(), (4,), (0,), (1, 1, 1), (2, 3, 4), (0, 3, 4), (2, 0, 4), (2, 2, 3, 3), (1, 9), (9, 1)]),
)


def matrix(shape, dtype, size, seed, spoilt):
    """Small whole numbers, so that many blocks are exactly singular; at the ends of the range of the dtype too."""
    if dtype == FLOAT4:
        return torch.zeros(shape, dtype=torch.uint8).view(dtype)
    W = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double()
    if dtype.is_floating_point:
        W *= {"one": 1.0, "zero": 0.0, "tiny": torch.finfo(dtype).tiny, "huge": torch.finfo(dtype).max / 4}[size]
    W = W.to(dtype)
    if spoilt is not None and W.numel() and dtype in FLOATS[:4]:
        W.view(-1)[seed % W.numel()] = spoilt
    return W


CALLS = {
    **{f"nystrom {p} {c}": lambda W, r, p=p, c=c: nystrom(W, r, pivots=p, core=c) for p in PIVOTS for c in CORES},
    **{f"balanced {c}": lambda W, r, c=c: nystrom(W, r, pivots="cross", core=c, balance=True) for c in CORES},
    **{f"curve {p} {c}": lambda W, r, p=p, c=c: error_curve(W, r, pivots=p, core=c) for p in PIVOTS for c in CORES},
    **{f"more rows {p}": lambda W, r, p=p: nystrom(W, r, pivots=p, oversample=1) for p in PIVOTS},
    **{f"pivots {p}": lambda W, r, p=p: choose_pivots(W, r, p) for p in PIVOTS},
    **{f"kernel {p}": lambda W, r, p=p: nystrom_psd(W, r, pivots=p) for p in PIVOTS},
    "curve svd": lambda W, r: error_curve(W, r, "svd"),
    "truncated_svd": truncated_svd,
    "randomized_svd": randomized_svd,
    "generalized_nystrom": generalized_nystrom,
    "all_blocks": all_blocks,
    "singular_values": lambda W, r: singular_values(W),
    "measures": lambda W, r: (stable_rank(W), effective_rank(W)),
    "power law, which is NaN where there is none": lambda W, r: power_law(W) < math.inf,
    "condition, which is infinite of a singular block": lambda W, r: block_condition(W, r) > 0,
    "spectral error": lambda W, r: relative_error(W, truncated_svd(W, r), "spectral"),
    "with_spectrum": lambda W, r: with_spectrum(W),
}
FREE_OF_RANK = {"singular_values", "measures", "power law, which is NaN where there is none", "with_spectrum"}
TAKES_VECTORS = {"measures", "power law, which is NaN where there is none", "with_spectrum"}
ONE_MATRIX = {"all_blocks", "condition, which is infinite of a singular block", *TAKES_VECTORS}


def tensors(result):
    if isinstance(result, LowRank):
        return [result.left, result.core, result.right]
    parts = result if isinstance(result, tuple | list) else [result]
    return [torch.as_tensor(part) for part in parts]


def outcome(name, W, rank):
    """What an InputError says, and what the function returns; one of them is None. Other exceptions pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        try:
            return None, CALLS[name](W, rank)
        except InputError as error:
            return str(error), None


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(sorted(CALLS)), SHAPES, st.sampled_from(FLOATS * 2 + OTHERS),
    st.sampled_from(["one", "one", "zero", "tiny", "huge"]), st.integers(0, 10**6),
    st.sampled_from([None] * 6 + [math.nan, math.inf, -math.inf]), st.integers(-1, 6),
)  # fmt: skip
def test_a_finite_result_or_one_line(name, shape, dtype, size, seed, spoilt, rank):
    W = matrix(shape, dtype, size, seed, spoilt)
    plain = dtype in FLOATS and 0 not in shape and bool(W.double().isfinite().all())
    ranked = name in FREE_OF_RANK or (len(shape) > 1 and 1 <= rank <= min(shape[-2:]))
    possible = plain and ranked and (len(shape) == 2 or (len(shape) > 2 and name not in ONE_MATRIX))
    refusal, result = outcome(name, W, rank)
    if refusal is not None:
        assert refusal
        assert "\n" not in refusal
        # an ordinary matrix is only refused by what needs more of it: a kernel, a regular block, an entry not zero
        strict = name.startswith(("kernel", "all_blocks", "curve", "spectral", "more rows", "with_spectrum"))
        assert not (possible and size == "one" and not strict), f"refused: {refusal}"
        return
    assert possible or name in TAKES_VECTORS
    assert all(bool(t.isfinite().all()) for t in tensors(result))


def condition(factor, eps):
    """The norm of a factor times that of its pseudo-inverse."""
    return np.linalg.norm(factor) * np.linalg.norm(np.linalg.pinv(factor, rcond=eps * max(factor.shape)))


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)), st.sampled_from(FLOATS), st.integers(0, 10**6),
    st.sampled_from([1.0, 1.0, 2.0**-14, 2.0**13]), st.data(),
)  # fmt: skip
def test_the_results_are_those_of_numpy(shape, dtype, seed, scale, data):
    rank = data.draw(st.integers(1, min(shape)))
    W = matrix(shape, dtype, "one", seed, None)
    W = W if dtype in FLOATS[4:] else (W.double() * scale).to(dtype)
    w, work = W.double().numpy(), torch.float64 if dtype == torch.float64 else torch.float32
    eps, sigma = torch.finfo(work).eps, np.linalg.svd(w, compute_uv=False)
    assert np.allclose(singular_values(W).numpy(), sigma, atol=20 * eps * sigma[0])
    pinv = np.linalg.pinv(w[:rank, :rank], rcond=eps * rank)
    optimal = np.linalg.pinv(w[:, :rank]) @ w @ np.linalg.pinv(w[:rank])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        for core, middle in (("pinv", pinv), ("optimal", optimal), ("block", w[:rank, :rank])):
            f = nystrom(W, rank, core=core)
            size = np.linalg.norm(w[:, :rank]) * np.linalg.norm(middle) * np.linalg.norm(w[:rank])
            if core == "optimal":  # a sum that cancels keeps the rounding of its parts
                size += np.linalg.norm(w) * condition(w[:, :rank], eps) * condition(w[:rank], eps)
            assert f.product().dtype == work
            assert np.allclose(f.product().numpy(), w[:, :rank] @ middle @ w[:rank], atol=100 * eps * size)
            if sigma[0] > 0:
                error = np.linalg.norm(w - w[:, :rank] @ middle @ w[:rank]) / np.linalg.norm(w)
                near = {"abs": 200 * eps * (1 + size / sigma[0]), "rel": 1e-5}
                assert relative_error(W, f) == pytest.approx(error, **near)
                assert float(error_curve(W, rank, core=core)[-1]) == pytest.approx(error, **near)
    best = truncated_svd(W, rank)
    assert np.linalg.norm(w - best.product().numpy()) == pytest.approx(
        np.linalg.norm(sigma[rank:]), abs=50 * eps * max(sigma[0], 1e-30)
    )
    for f in (best, randomized_svd(W, rank)):
        assert np.allclose(f.left.mT @ f.left, np.eye(rank), atol=100 * eps)
        assert np.allclose(f.right @ f.right.mT, np.eye(rank), atol=100 * eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_that_does_not_fit_is_said(dtype):
    W = torch.full((40, 30), torch.finfo(dtype).max / 2, dtype=dtype)
    with pytest.raises(InputError, match=r"singular values may not fit into torch\.float.*scale it down"):
        truncated_svd(W, 3)
    if dtype != torch.float64:
        assert singular_values(W.double())[0] > torch.finfo(dtype).max
    f = nystrom(W / 2**30, 2, core="block")
    with pytest.raises(InputError, match=r"the approximation does not fit into"):
        relative_error(W / 2**30, f)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 3), (40, 30)])
def test_entries_may_be_as_large_as_a_hundredth_of_what_a_norm_may_be(shape, dtype):
    limit = torch.finfo(dtype).max / (100 * math.sqrt(shape[0] * shape[1]))
    assert torch.isfinite(singular_values(torch.full(shape, 0.99 * limit, dtype=dtype))[0])
    with pytest.raises(InputError, match="may not fit into") as raised:
        singular_values(torch.full(shape, 1.01 * limit, dtype=dtype))
    assert ("give it in float64" in str(raised.value)) == (dtype == torch.float32)
