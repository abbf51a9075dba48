"""The loss along the first step of Adam: how far a method may go before its loss rises again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from nlora_lab.analysis.curvature import RunProbe
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice, check_number, check_whole_number
from nlora_lab.lowrank.lanczos import Hessian
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.shipped import recorded_runs

RATES = tuple(10 ** (k / 4) for k in range(-24, 0))
"""Four rates per decade, from 1e-6 to 0.56."""


@dataclass(frozen=True)
class FirstStepLoss:
    """The loss of a run along its first step of Adam, which moves the parameters by ``-η d``.

    Attributes:
        config: the config of the run. Its learning rate plays no part.
        batches: the number of batches over which the loss is the mean. The gradient of the first one makes the step.
        start: the loss before the step, in nats per target token.
        slope: ``gᵀd``, by which the loss falls at first, per unit of learning rate. g is the gradient of the loss.
        curvature: ``dᵀHd``, by which the loss bends upwards, per square of the learning rate. H is the Hessian.
        rates: the learning rates η.
        losses: the loss after one step with each of them.
        best_rate: the best recorded rate of the method for the task and rank, or ``None``.
    """

    config: RunConfig
    batches: int
    start: float
    slope: float
    curvature: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    best_rate: float | None

    @property
    def lowest_rate(self) -> float:
        """The measured rate with the lowest loss."""
        return min(zip(self.losses, self.rates, strict=True))[1]

    @property
    def model_rate(self) -> float:
        """``slope / curvature``, where the parabola is lowest; infinite where the loss does not bend upwards."""
        return self.slope / self.curvature if self.curvature > 0 else math.inf

    def parabola(self, rate: float) -> float:
        """Return the loss that slope and curvature predict.

        Args:
            rate: the learning rate η.

        Returns:
            ``start - slope η + curvature η² / 2``, in nats per target token.
        """
        return self.start - self.slope * rate + self.curvature * rate**2 / 2


def loss_along_first_step(
    method: str, rates: Sequence[float] = RATES, *, batches: int = 2, **settings: Any
) -> FirstStepLoss:
    """Measure the loss of the first training batches after one step of Adam, at many learning rates.

    The best recorded rate of the method is tried as well. A method takes about three seconds of a processor.

    Args:
        method: the name of the method.
        rates: the learning rates to try, above 0.
        batches: the number of batches over which the loss is the mean. The gradient of the first one makes the step.
        settings: other fields of ``RunConfig``.

    Returns:
        The losses, with slope and curvature at the start.

    Raises:
        InputError: the method, a setting or a rate is unknown or out of range.
    """
    for key in settings:
        check_choice("setting", key, {f.name for f in fields(RunConfig)} - {"method", "lr"})
    cfg = RunConfig(method, **settings)
    check_whole_number("batches", batches, 1, 10**4)
    if not len(rates):
        raise InputError("rates=() has no learning rate; give at least one")
    best = recorded_runs(None, cfg.model).best(cfg.task, cfg.method, cfg.rank, cfg.init)
    own = {best.lr} if best else set()
    tried = sorted({float(check_number("rate", rate, above=0.0)) for rate in rates} | own)
    probe = RunProbe(cfg, batches)
    hessian = Hessian(lambda: probe.mean_loss(probe.batches), probe.parameters)
    step, _ = probe.next_step(probe.batches[:1])
    start, slope = hessian.loss, float(hessian.gradient @ step)
    curvature = float(step @ hessian.times(step))
    del hessian  # its graph is the largest object here
    losses = []
    for rate in tried:
        with torch.no_grad(), probe.moved(step, rate):
            losses.append(float(probe.mean_loss(probe.batches).nan_to_num(math.inf)))
    best_rate = best.lr if best else None
    return FirstStepLoss(cfg, batches, start, slope, curvature, tuple(tried), tuple(losses), best_rate)
