"""The learning-rate schedule: a linear warm-up, then a cosine to zero."""

from __future__ import annotations

import math
from functools import lru_cache


@lru_cache(maxsize=1 << 14)  # a store of runs asks for the same few schedules again and again
def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the share of the learning rate at one optimiser step.

    Args:
        step: the number of the step, from 0.
        steps: the number of steps of the run.
        warmup: the share of the steps over which the rate rises, 0 to below 1.

    Returns:
        The factor, 0 to 1.
    """
    warm = math.ceil(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
