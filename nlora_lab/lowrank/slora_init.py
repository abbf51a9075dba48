"""The initialisations of N, the core of SLoRA: their names, and why zero is not among them."""

from __future__ import annotations

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice

BASE_INITS = ("kaiming", "xavier", "orthogonal", "identity", "normal")
SCALED_SUFFIX = "-scaled"  # the same N, stretched to the size of Kaiming's: see split_init
CORE_INITS = (*BASE_INITS, *(init + SCALED_SUFFIX for init in BASE_INITS[1:]))
"""The starts of SLoRA's N. Those that end in "-scaled" have the Frobenius norm of Kaiming's."""


def split_init(init: str) -> tuple[str, bool]:
    """Split the name of an initialisation of N into the initialisation and its scaling.

    Kaiming-uniform with a = √5 draws entries of variance 1 / (3 r). Its N (r, r) therefore has a Frobenius norm of
    √(r/3) on average. ``"identity-scaled"`` is the identity at exactly that norm. So two scaled starts differ in
    the kind of N, and not in its size.

    Args:
        init: one of ``CORE_INITS``.

    Returns:
        The name without ``"-scaled"``, and whether N is scaled to Kaiming's size.
    """
    return init.removesuffix(SCALED_SUFFIX), init.endswith(SCALED_SUFFIX)


def check_core_init(init: str) -> None:
    """Check that ``init`` names an initialisation of N.

    Args:
        init: the name.

    Raises:
        InputError: ``init`` is not one of ``CORE_INITS``. For ``"zeros"`` the message says why it cannot learn.
    """
    if init == "zeros":
        raise InputError(
            "init='zeros': with N = 0 and B = 0 no factor ever gets a gradient, so nothing can learn; "
            f"choose one of: {', '.join(CORE_INITS)}"
        )
    check_choice("init", init, CORE_INITS)
