"""The initialisations of N in SLoRA: their names, and why zero is not one of them."""

from __future__ import annotations

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice

SHAPES = ("kaiming", "xavier", "orthogonal", "identity", "normal")
SCALED = "-scaled"  # the same N, stretched to the size that Kaiming's has: see :func:`split_init`
CORE_INITS = (*SHAPES, *(shape + SCALED for shape in SHAPES[1:]))


def split_init(init: str) -> tuple[str, bool]:
    """The shape an initialisation of N has, and whether it is stretched to Kaiming's size.

    Kaiming-uniform with a = √5 draws entries of variance 1 / (3 r), so its N (r, r) has a Frobenius norm of √(r/3) on
    average. ``"identity-scaled"`` is the identity at that norm, exactly; so two scaled starts differ in shape alone.
    """
    return init.removesuffix(SCALED), init.endswith(SCALED)


def check_core_init(init: str) -> None:
    """Raise :class:`InputError` unless ``init`` is one of :data:`CORE_INITS`."""
    if init == "zeros":
        raise InputError(
            "init='zeros': with N = 0 and B = 0 no factor ever gets a gradient, so nothing can learn; "
            f"choose one of: {', '.join(CORE_INITS)}"
        )
    check_choice("init", init, CORE_INITS)
