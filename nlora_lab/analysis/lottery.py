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
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.run import Run
from nlora_lab.runs.shipped import runs_of_model, shipped_store

if TYPE_CHECKING:
    import pandas as pd

TASK = "word-problems"
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


def start_lottery(runs: Iterable[Run] | None = None, rate: float | None = None) -> pd.DataFrame:
    """Compare NLoRA on the embedded model with NLoRA on copies of it whose neurons are numbered in another order.

    All copies compute the same function. Only the leading blocks differ.

    Args:
        runs: recorded runs. ``None`` means those that ship with the package.
        rate: the learning rate. ``None`` gives each row the one of its rates with the lowest validation loss.

    Returns:
        One row per numbering and rank, for word problems, the usual number of steps, and seed 0: ``numbering`` (0 is
        the model as it came), ``rank``, ``size`` and ``largest`` (see ``start_sizes``), ``rate``, ``rates``, how
        many were tried, and ``accuracy`` from 0 to 1 and ``validation_loss`` at ``rate``.

    Raises:
        InputError: no run of a renumbered copy, or none at this rate, is among the runs.
    """
    import pandas as pd

    listed = list(shipped_store() if runs is None else runs)
    numberings = {number: runs_of_model(listed, name) for name, number in _numberings(listed).items()}
    tried = {number: _tried(index, rate) for number, index in numberings.items()}
    ranks = sorted({rank for number, ranks in tried.items() if number for rank in ranks})
    if not ranks:
        at = "" if rate is None else f" at rate={rate!r}"
        raise InputError(f"runs holds no run of a renumbered copy{at}; leave them out for the runs that ship")
    rows = []
    for number, found in tried.items():
        model, _ = load_model()
        if number:
            renumber(model, number)
        sizes = start_sizes(model, ranks)
        rows += [
            {"numbering": number, "rank": rank, **sizes.loc[rank], **_best(found[rank])}
            for rank in ranks
            if rank in found
        ]
    return pd.DataFrame(rows)


def _numberings(runs: list[Run]) -> dict[str, int]:
    """Return the names of the copies and of the embedded model, which is number 0, in the order of the numbers."""
    names = {run.config.model for run in runs if run.config.model.startswith(RENUMBERED)}
    seeds = {name: name.removeprefix(RENUMBERED) for name in names}
    copies = {name: int(seed) for name, seed in seeds.items() if seed.isdecimal()}
    return {EMBEDDED: 0, **dict(sorted(copies.items(), key=lambda item: item[1]))}


def _tried(index: RecordedRuns, rate: float | None) -> dict[int, list[Run]]:
    """Return the runs of NLoRA with seed 0 at each rank, one per rate."""
    points = {rank: index.valley(TASK, "nlora", rank) for rank in index.ranks(TASK, "nlora")}
    runs = {rank: [run for point in valley for run in point.runs] for rank, valley in points.items()}
    chosen = {
        r: [run for run in rs if run.config.seed == 0 and rate in (None, run.config.lr)] for r, rs in runs.items()
    }
    return {rank: found for rank, found in chosen.items() if found}


def _best(tried: list[Run]) -> dict[str, float]:
    losses = [run.metrics.get("validation_loss", math.inf) for run in tried]
    loss, run = min(zip(losses, tried, strict=True), key=lambda pair: pair[0])
    return {"rate": run.config.lr, "rates": len(tried), "accuracy": run.accuracy, "validation_loss": loss}
