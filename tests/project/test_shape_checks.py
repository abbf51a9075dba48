"""The check of shapes that all tests run under: it finds what is wrong, and it is switched on."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pkgutil import walk_packages
from types import FunctionType

import pytest
import torch
from shape_checks import PACKAGES, array_hints, check_shapes
from torch import Tensor

from nlora_lab.core.array_types import Float, Int64


@check_shapes
def times(W: Float[Tensor, "m n"], x: Float[Tensor, " n"] | None = None) -> Float[Tensor, " m"]:
    return W[:, 0] if x is None else W[0]  # with x wrong, unless W is square


@check_shapes
def first(parts: tuple[Int64[Tensor, " k"], list[Float[Tensor, "k n"]]]) -> int:
    return len(parts)


@check_shapes
@dataclass
class Pair:
    left: Float[Tensor, "m r"]
    right: Float[Tensor, "r n"]


def test_one_letter_has_one_size():
    for _ in range(2):  # the second time the shapes are known
        times(torch.ones(2, 3))
        times(torch.ones(3, 3), x=torch.ones(3))
        with pytest.raises(TypeError, match=r"x of times is \(\(2,\), torch.float32\)"):
            times(torch.ones(2, 3), torch.ones(2))
        with pytest.raises(TypeError, match=r"the result of times is \(\(3,\)"):
            times(torch.ones(2, 3), torch.ones(3))


def test_dtypes_containers_and_fields():
    assert first((torch.arange(2), [torch.ones(2, 3)])) == 2
    for wrong in ((torch.arange(2), [torch.ones(3, 3)]), (torch.ones(2), [torch.ones(2, 3)])):
        with pytest.raises(TypeError, match="parts of first"):
            first(wrong)
    Pair(torch.ones(4, 2), torch.ones(2, 5))
    with pytest.raises(TypeError, match=r"right of .*Pair"):
        Pair(torch.ones(4, 2), torch.ones(3, 5))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_is_checked(package):
    """Every annotation of its functions can be read, and many speak of tensors."""
    modules = [import_module(m.name) for m in walk_packages(import_module(package).__path__, f"{package}.")]
    functions = {f for m in modules for f in vars(m).values() if isinstance(f, FunctionType)}
    checked = [f.__wrapped__ for f in functions if f.__module__.startswith(package) and hasattr(f, "__wrapped__")]
    found = [function for function in checked if array_hints(function)]
    assert len(found) >= 5
