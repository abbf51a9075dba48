"""An adapter on any layer, of any shape, rank and dtype: step 0 is what was promised, or one line says why not."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from nlora_lab.adapters import inttune, lora_xs, nlora, nlora_released, slora
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import IllConditionedWarning

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OPTIONS = {
    "slora": [(slora, {"init": init}) for init in ("kaiming", "orthogonal", "identity-scaled")],
    "nlora": [
        (make, {"pivots": pivots, "core": core, "balance": balance})
        for make in (nlora, inttune)
        for pivots in ("leading", "random", "cross", "qr")
        for core in ("pinv", "optimal", "block")
        for balance in (False, True)
    ],
    "folded": [(make, {"fold": True, "pivots": "cross"}) for make in (nlora, inttune)],
    "released": [(nlora_released, {})],
    "lora_xs": [(lora_xs, {})],
}


def layer(kind, m, n, bias, dtype, values):
    """A layer with small whole numbers, in which many blocks are singular, or with zeros."""
    made = nn.Linear(n, m, bias) if kind == "Linear" else Conv1D(m, n)
    W = torch.randint(-2, 3, made.weight.shape).double() / 4
    made.weight.data = W if values == "numbers" else torch.full_like(W, {"zero": 0.0, "nan": math.nan}[values])
    return made.to(dtype)


def attached(base, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        return get_peft_model(nn.Sequential(base), config).eval()


@settings(deadline=None, max_examples=120)
@given(
    st.sampled_from(sorted(OPTIONS)), st.data(), st.sampled_from(["Linear", "Conv1D"]), st.integers(1, 7),
    st.integers(1, 7), st.booleans(), st.sampled_from(DTYPES), st.sampled_from(["numbers", "numbers", "zero", "nan"]),
    st.integers(1, 8), st.sampled_from([None, 0.5, 16.0]), st.integers(0, 10**6),
)  # fmt: skip
def test_the_first_step(family, data, kind, m, n, bias, dtype, values, r, alpha, seed):
    make, options = data.draw(st.sampled_from(OPTIONS[family]))
    torch.manual_seed(seed)
    base = layer(kind, m, n, bias, dtype, values)
    x = torch.randn(3, n).to(dtype)
    expected, before = base(x), copy.deepcopy(base.state_dict())
    config = make(r, alpha, target_modules=["0"], **options)
    if r > min(m, n) or (values == "nan" and family != "slora"):
        with pytest.raises(InputError, match=r"above the smaller side of 0|^0 holds NaN"):
            attached(base, config)
        assert all(torch.equal(base.state_dict()[key], before[key]) or values == "nan" for key in before)
        return
    model = attached(base, config)
    with torch.no_grad():
        result = model(x)
        assert result.dtype == expected.dtype
        W = (before["weight"].T if kind == "Conv1D" else before["weight"]).double().nan_to_num()
        near = {"rtol": 0, "atol": 30 * torch.finfo(dtype).eps * (1 + float(W.norm()) * float(x.norm()))}
        if family in ("slora", "nlora"):
            assert torch.equal(result, expected) or values == "nan"
        elif family == "released":
            product = W[:, :r] @ W[:r, :r] @ W[:r]
            size = config.scaling * float(product.norm()) * float(x.norm())
            moved = expected.double() + config.scaling * x.double() @ product.T
            assert np.allclose(result.double(), moved, rtol=0, atol=near["atol"] + 4 * torch.finfo(dtype).eps * size)
        else:  # to rounding of what is folded, or of what lora_xs draws
            near["atol"] *= 1 + 4 * config.scaling * r
            near["atol"] += 1e-3 * config.scaling * float(W.norm()) * float(x.norm()) if family == "lora_xs" else 0
            assert torch.allclose(result, expected, **near)
        with model.disable_adapter():
            again = model(x)
        assert torch.allclose(again, expected, equal_nan=True, **near)
        if family != "folded":
            assert torch.equal(again, expected) or values == "nan"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("make", [slora, nlora, inttune, lora_xs])
def test_a_quantised_layer_is_one_line(make, dtype):
    base = nn.Linear(4, 4)
    base.weight = nn.Parameter(torch.ones(4, 4).to(dtype), requires_grad=False)
    with pytest.raises(InputError, match="0 has quantised weights"):
        attached(base, make(2, target_modules=["0"]))
