"""The luck in NLoRA's start: its size under several numberings of the neurons, beside what training gave."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_whole_number
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.models.layers import linear_layers
from nlora_lab.models.loading import load_model
from nlora_lab.models.names import EMBEDDED
from nlora_lab.models.symmetry import renumber
from nlora_lab.runs.run import Run
from nlora_lab.runs.shipped import shipped_store

if TYPE_CHECKING:
    import pandas as pd

RENUMBERED = "renumbered-"
"""What the names of renumbered copies of the embedded model begin with. The seed of the numbering follows."""


def start_sizes(model: Any, ranks: Sequence[int]) -> pd.DataFrame:
    """Measure the size of NLoRA's first core ``N₀``, the pseudo-inverse of the leading block, in every linear layer.

    Args:
        model: the model.
        ranks: the ranks.

    Returns:
        One row per rank: ``size``, the root mean square over the layers of the Frobenius norm of ``N₀``, and
        ``largest``, the norm of the largest one.

    Raises:
        InputError: a rank is not a whole number, or is above a layer's smaller side.
    """
    import pandas as pd

    weights = [module.weight.detach() for module in linear_layers(model).values()]
    rows = {}
    for rank in ranks:
        check_whole_number("rank", rank)
        norms = torch.stack([nystrom(W, rank).core.norm() for W in weights])
        rows[rank] = {"size": float(norms.square().mean().sqrt()), "largest": float(norms.max())}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("rank")


def start_lottery(runs: Iterable[Run] | None = None) -> pd.DataFrame:
    """Compare NLoRA on the embedded model with NLoRA on copies of it whose neurons are numbered in another order.

    All copies compute the same function. Only the leading blocks differ.

    Args:
        runs: recorded runs. ``None`` means those that ship with the package.

    Returns:
        One row per numbering and rank, for word problems, 250 steps and seed 0: ``numbering`` (0 is the model as it
        came), ``rank``, ``size`` and ``largest`` (see ``start_sizes``), ``rate``, the recorded one with the lowest
        validation loss, ``rates``, how many were tried, and ``accuracy`` from 0 to 1 and ``test_loss`` there.

    Raises:
        InputError: no run of a renumbered copy is among the runs.
    """
    import pandas as pd

    groups: dict[tuple[int, int], list[Run]] = {}
    for run in shipped_store() if runs is None else runs:
        number, c = _numbering(run.config.model), run.config
        if number is None or run.error or (c.method, c.task, c.steps, c.seed) != ("nlora", "word-problems", 250, 0):
            continue
        if not (c.replicate or c.clip_norm or c.target_modules) and (c.alpha or c.rank) == c.rank:
            groups.setdefault((number, c.rank), []).append(run)
    numberings = sorted({number for number, _ in groups if number})
    if not numberings:
        raise InputError("runs holds no run of a renumbered copy; leave it out for the runs that ship")
    ranks = sorted({rank for number, rank in groups if number})
    rows = []
    for number in (0, *numberings):
        model, _ = load_model()
        if number:
            renumber(model, number)
        sizes = start_sizes(model, ranks)
        for rank in ranks:
            if tried := groups.get((number, rank)):
                rows.append({"numbering": number, "rank": rank, **sizes.loc[rank], **_best(tried)})
    return pd.DataFrame(rows)


def _numbering(model: str) -> int | None:
    """Return the seed in the name of a renumbered copy, 0 for the embedded model, and ``None`` for other models."""
    if model == EMBEDDED:
        return 0
    seed = model.removeprefix(RENUMBERED)
    return int(seed) if model.startswith(RENUMBERED) and seed.isdecimal() else None


def _best(tried: list[Run]) -> dict[str, float]:
    run = min(tried, key=lambda r: r.metrics.get("validation_loss", math.inf))
    rates = {r.config.lr for r in tried}
    loss = run.metrics.get("test_loss", math.nan)
    return {"rate": run.config.lr, "rates": len(rates), "accuracy": run.accuracy, "test_loss": loss}
