"""One wording for each kind of wrong value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice, check_number, check_text, check_whole_number, whole_number


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3)])
def test_whole_numbers_of_python_and_numpy_are_read(value):
    assert whole_number(value) == check_whole_number("rank", value, 1, 3) == 3
    assert type(whole_number(value)) is int


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(3), 3.0, "3", None, np.array([1, 2])])
def test_everything_else_is_not_a_whole_number(value):
    assert whole_number(value) is None
    with pytest.raises(InputError, match="must be a whole number of at least 1"):
        check_whole_number("rank", value)


def test_a_whole_number_out_of_range_is_named_with_the_limit_and_the_remedy():
    with pytest.raises(InputError, match=r"^rank=9 must be a whole number from 1 to min\(4, 6\) = 4; lower it$"):
        check_whole_number("rank", 9, 1, 4, limit="min(4, 6) = 4", remedy="lower it")
    with pytest.raises(InputError, match=r"^steps=0 must be a whole number of at least 1$"):
        check_whole_number("steps", 0)


def test_numbers_have_bounds_and_are_finite():
    assert check_number("lr", 2e-4, above=0) == 2e-4
    assert check_number("share", np.float32(0), low=0, below=1) == 0
    no_numbers = [True, "1", None, [1], 1j, np.True_, np.array(True), np.array("a"), np.array([1.0]), torch.tensor(1.0)]
    for value in (0, -1.0, float("nan"), float("inf"), 10**400, *no_numbers):
        with pytest.raises(InputError, match=r"must be a number above 0; try 2e-4$"):
            check_number("lr", value, above=0, remedy="try 2e-4")
    with pytest.raises(InputError, match=r"^share=1 must be a number at least 0 and below 1$"):
        check_number("share", 1, low=0, below=1)


def test_choices_and_texts():
    check_choice("core", "pinv", ("pinv", "optimal"))
    with pytest.raises(InputError, match=r"^core='best' is not known; choose one of: pinv, optimal$"):
        check_choice("core", "best", ("pinv", "optimal"))
    assert check_text("project", "course") == "course"
    for value in ("", "  ", None, 3):
        with pytest.raises(InputError, match=r"must be text, and not blank; give a name$"):
            check_text("project", value, "give a name")
