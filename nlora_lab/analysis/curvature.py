"""Why a method needs its learning rate: the curvature that its parameters see, and the effect of one step of Adam.

``curvature_of`` measures one config, and ``curvature_table`` one row per method. ``rate_predictors`` says how well each
quantity predicts the best rate. ``nlora_lab.lowrank.largest_eigenvalue`` works for any loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice, check_whole_number
from nlora_lab.lowrank.checks import check_rtol, standard_normal
from nlora_lab.lowrank.lanczos import Eigenvalue, Hessian, fill_missing, flatten, lanczos_iteration, unflatten
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.models.loading import LOADING_LOCK
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import resolve
from nlora_lab.runs.shipped import recorded_runs
from nlora_lab.tasks.batches import BatchOrder, Collate
from nlora_lab.tasks.encoding import encode_task
from nlora_lab.training.data import token_limit
from nlora_lab.training.layer_views import ObservedPeftModel
from nlora_lab.training.setup import build, load_untouched_base

if TYPE_CHECKING:
    import pandas as pd

Batch = dict[str, Tensor]
TRIAL_RATE, LOGIT_CHANGE = 1e-6, 1e-3
"""The effect of a step is measured at the rate that changes the logits by about ``LOGIT_CHANGE``, which a trial at
``TRIAL_RATE`` finds. It is small enough to be linear, and large enough to stand out of float32's rounding."""

PREDICTORS = ("largest", "preconditioned", "gradient", "weight_change", "logit_change", "model_rate")


@dataclass(frozen=True)
class Curvature:
    """What the trained parameters of a method see of the loss.

    The loss is the mean over the next batches of the run. Adam is the run's own after ``at_step`` steps. It has then
    also seen the gradients of those batches in turn, while the weights stood still. m and v are its means of the
    gradient and of the gradient's square, both corrected for their start at 0. At step 0 with one batch, m is the
    gradient g, and v is g².

    Attributes:
        config: the config of the run.
        at_step: the number of training steps before the measurement.
        batches: the number of batches over which the loss is the mean.
        loss: the loss, in nats per target token.
        largest: the largest eigenvalue of the Hessian H, the most upward curvature.
        preconditioned: the largest eigenvalue of ``D^-1/2 H D^-1/2`` with ``D = √v + eps``. In these coordinates Adam
            without its momentum is gradient descent. Parameters that never had a gradient (v = 0, such as A while B is
            zero) do not move in the next step, and are left out.
        gradient: the norm ‖g‖.
        weight_change: ‖change of W‖ / ‖W‖ over all adapted layers, per unit of learning rate, that the step
            ``d = m / (√v + eps)`` makes, in the limit of small rates.
        logit_change: the root mean square change of the logits of the first batch over that of the logits, per unit of
            learning rate, likewise.
        probe: the learning rate at which both changes were measured.
        linearity: the change of the logits at twice that rate over twice the change. It is 1 if the change is linear.
        model_rate: ``gᵀd / dᵀHd``, the rate at which the loss along d would be lowest if it were the parabola of g and
            H. Infinite where the loss curves downwards, and negative where d leads uphill.
        seconds: seconds of everything, with loading and the steps before.
    """

    config: RunConfig
    at_step: int
    batches: int
    loss: float
    largest: Eigenvalue
    preconditioned: Eigenvalue
    gradient: float
    weight_change: float
    logit_change: float
    probe: float
    linearity: float
    model_rate: float
    seconds: float

    def row(self) -> dict[str, Any]:
        """Return the numbers as a row of a table.

        Returns:
            The fields from ``loss`` on, the eigenvalues as numbers, and ``converged``: whether both eigenvalues are.
        """
        numbers = {f.name: getattr(self, f.name) for f in fields(self)[3:]}
        pair = (self.largest, self.preconditioned)
        numbers |= {"largest": pair[0].value, "preconditioned": pair[1].value}
        return {**numbers, "converged": all(e.converged for e in pair)}


def curvature_of(
    cfg: RunConfig, *, at_step: int = 0, batches: int = 1, iterations: int = 40, rtol: float = 0.02
) -> Curvature:
    """Measure the curvature that a run meets, in float32.

    The model is built and trained as ``nl.fine_tune`` does it. DoRA treats the lengths that it divides by as constant
    in its gradient (arXiv 2402.09353, section 4.3), and so does its Hessian.

    Args:
        cfg: the config of the run. At step 0 its learning rate plays no part.
        at_step: the number of training steps before the measurement, from 0 to ``cfg.steps``.
        batches: the number of the run's next batches over which the loss is the mean.
        iterations: the largest number of products with the Hessian for each of the two eigenvalues.
        rtol: the relative residual at which an eigenvalue counts as converged. See ``largest_eigenvalue``.

    Returns:
        The curvature.

    Raises:
        InputError: an option is out of range, or the run diverges before ``at_step``.
    """
    check_whole_number("at_step", at_step, 0, cfg.steps)
    check_whole_number("batches", batches, 1, 10**4)
    check_whole_number("iterations", iterations, 1, 10**6)
    check_rtol(rtol)
    started = time.perf_counter()
    probe = RunProbe(cfg, at_step + batches)
    probe.train(at_step)
    ahead = probe.batches[at_step:]
    hessian = Hessian(lambda: probe.mean_loss(ahead), probe.parameters)
    step, scale = probe.next_step(ahead)
    start = standard_normal(len(step), like=step, generator=torch.Generator().manual_seed(cfg.seed))
    largest, preconditioned = (
        replace(lanczos_iteration(hessian.scaled(roots), start, iterations, rtol, top=True), vector=None)
        for roots in (None, scale.rsqrt())
    )
    along_step = float(step @ hessian.times(step))
    model_rate = float(hessian.gradient @ step) / along_step if along_step > 0 else math.inf
    loss, gradient = hessian.loss, float(torch.linalg.vector_norm(hessian.gradient))
    del hessian  # its graph is the largest object here
    effects = probe.effects(step, ahead[0])
    seconds = time.perf_counter() - started
    return Curvature(
        cfg, at_step, batches, loss, largest, preconditioned, gradient, *effects, model_rate, seconds
    )  # fmt: skip


class RunProbe:
    """A run with its model, batches and optimiser, of which one can measure the next step."""

    def __init__(self, cfg: RunConfig, count: int) -> None:
        self.cfg, run = cfg, resolve(cfg)
        self.model, tokenizer = build(cfg)
        self.model.to(run.device.kind)
        limit = token_limit(cfg, self.model, tokenizer)
        order = BatchOrder(len(run.task.train), count, cfg.batch_size, cfg.seed)
        collate = Collate(int(tokenizer.pad_token_id))
        # only these rows: encoding all takes a second
        rows = [encode_task(run.task.train.select(numbers), run.task, tokenizer, limit).rows for numbers in order]
        self.batches: list[Batch] = [
            {key: value.to(run.device.kind) for key, value in collate(batch).items()} for batch in rows
        ]
        self.observed = ObservedPeftModel(self.model, load_untouched_base(run))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)

    def train(self, steps: int) -> None:
        """Make the first steps of the run, and leave the model in evaluation mode."""
        with LOADING_LOCK:  # not while another thread draws the weights of its adapter
            torch.manual_seed(self.cfg.seed + 1)  # dropout
        schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, self.cfg.rate_factor)
        self.model.train()
        for number, batch in enumerate(self.batches[:steps], start=1):
            loss = self.model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.cfg.clip_norm or math.inf)
            if not math.isfinite(loss.item()):
                raise InputError(f"lr={self.cfg.lr:g}: the run diverged in step {number}; choose a lower rate")
            self.adam.step()
            schedule.step()
            self.adam.zero_grad()
        self.model.eval()

    def mean_loss(self, batches: Sequence[Batch]) -> Tensor:
        """The mean of the losses of the batches."""
        mean: Tensor = torch.stack([self.model(**batch).loss for batch in batches]).mean()
        return mean

    def next_step(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """Adam's step for a rate of 1 and its ``√v + eps``, both (n,), once it has seen these batches as well.

        Kingma and Ba, arXiv 1412.6980, algorithm 1, without weight decay. Where v is 0 the scale is infinite.
        """
        (group,) = self.adam.param_groups
        first, second = group["betas"]
        mean, square, count = self._moments()
        for batch in batches:
            g = self._gradient(batch)
            mean, square = first * mean + (1 - first) * g, second * square + (1 - second) * g.square()
            count += 1
        scale = (square / (1 - second**count)).sqrt() + group["eps"]
        return mean / (1 - first**count) / scale, scale.masked_fill(square == 0, math.inf)

    def _moments(self) -> tuple[Tensor, Tensor, int]:
        states = [self.adam.state.get(p, {}) for p in self.parameters]
        count = max((int(s["step"]) for s in states if s), default=0)
        mean, square = (
            flatten(fill_missing([s.get(key) for s in states], self.parameters)) for key in ("exp_avg", "exp_avg_sq")
        )
        return mean, square, count

    def _gradient(self, batch: Batch) -> Tensor:
        parts = torch.autograd.grad(self.model(**batch).loss, self.parameters, allow_unused=True)
        g = flatten(fill_missing(parts, self.parameters))
        if self.cfg.clip_norm is not None:
            g *= (self.cfg.clip_norm / (torch.linalg.vector_norm(g) + 1e-6)).clamp(max=1)  # as torch clips
        return g

    @torch.no_grad()
    def effects(self, step: Tensor, batch: Batch) -> tuple[float, float, float, float]:
        """``weight_change``, ``logit_change``, ``probe`` and ``linearity`` of a ``Curvature``."""
        weights, logits = self._changes(), self._logits(batch)

        def logit_change(rate: float) -> float:
            with self.moved(step, rate):
                return _norm([self._logits(batch) - logits]) / _norm([logits])

        trial = logit_change(TRIAL_RATE)
        rate = TRIAL_RATE * LOGIT_CHANGE / trial if trial > 0 else TRIAL_RATE
        once, twice = logit_change(rate), logit_change(2 * rate)
        with self.moved(step, rate):
            distance = self._distance(weights)
        return distance / rate, once / rate, rate, twice / (2 * once) if once else math.nan

    def _logits(self, batch: Batch) -> Tensor:
        """The logits of every token that is not padding: (tokens, vocabulary)."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits: Tensor = self.model(**inputs).logits[batch["attention_mask"].bool()]
        return logits

    def _changes(self) -> list[Tensor]:
        """The change of the weight of each adapted layer since the start, (m, n)."""
        return [view.change.dense() for view in self.observed.layers()]

    def _distance(self, before: Sequence[Tensor]) -> float:
        """``‖change since before‖ / ‖W‖`` over all adapted layers together."""
        differences = [now - then for now, then in zip(self._changes(), before, strict=True)]
        return _norm(differences) / _norm(view.weight for view in self.observed.layers())

    @contextmanager
    def moved(self, step: Tensor, rate: float) -> Iterator[None]:
        """Within this context the parameters are moved by ``-rate * step``."""
        originals = [p.clone() for p in self.parameters]
        for p, part in zip(self.parameters, unflatten(step, self.parameters), strict=True):
            p.sub_(part, alpha=rate)
        try:
            yield
        finally:
            for p, original in zip(self.parameters, originals, strict=True):
                p.copy_(original)


def curvature_table(
    methods: Iterable[str] | None = None,
    *,
    at_step: int = 0,
    batches: int = 1,
    iterations: int = 20,
    rtol: float = 0.05,
    **settings: Any,
) -> pd.DataFrame:
    """Measure the curvature that each method meets, beside its best recorded rate.

    The defaults are chosen for speed. Eigenvalues are right to a few per cent. A method takes 4 to 5 seconds of a
    processor at the start, or 2 with ``batch_size=8``.

    Args:
        methods: the names of the methods. Default: all.
        at_step: as in ``curvature_of``.
        batches: as in ``curvature_of``.
        iterations: as in ``curvature_of``.
        rtol: as in ``curvature_of``.
        settings: fields of ``RunConfig``. Without ``lr`` each method takes its best recorded rate for the task and
            rank, by validation loss, if there is one. The rate matters only for ``at_step > 0``.

    Returns:
        One row per method. Columns: ``method``, ``label``, ``best_rate`` (NaN without a recorded run), ``rate``, and
        those of ``Curvature.row``.

    Raises:
        InputError: a method, a setting or an option is unknown or out of range, or a run diverges before ``at_step``.
    """
    import pandas as pd

    names = list(METHODS) if methods is None else [methods] if isinstance(methods, str) else list(methods)
    for key in settings:
        check_choice("setting", key, {f.name for f in fields(RunConfig)} - {"method"})
    recorded = recorded_runs(None, settings.get("model", RunConfig.model))
    configs, rows = [RunConfig(name, **settings) for name in names], []
    for cfg in configs:
        best = recorded.best(cfg.task, cfg.method, cfg.rank, cfg.init)
        if best is not None and "lr" not in settings:
            cfg = replace(cfg, lr=best.lr)
        curvature = curvature_of(cfg, at_step=at_step, batches=batches, iterations=iterations, rtol=rtol)
        rates = {"best_rate": best.lr if best else math.nan, "rate": cfg.lr}
        rows.append({"method": cfg.method, "label": get_method(cfg.method).label, **rates, **curvature.row()})
    return pd.DataFrame(rows)


def rate_predictors(table: pd.DataFrame) -> pd.DataFrame:
    """Judge how well each quantity of a curvature table predicts the best rate over the methods.

    Args:
        table: a table of ``curvature_table`` with at least three methods. Only methods count that have a recorded rate
            and a positive, finite quantity.

    Returns:
        One row per quantity, the smallest spread first. Columns: ``quantity``; ``spearman``, the rank correlation with
        ``best_rate``; ``slope`` of the line through log best rate over log quantity, −1 where the rate is inversely
        proportional; ``spread``, the root mean square distance of log10 best rate from that line, in decades;
        ``unseen``, the same for methods that the line has not seen: each is left out of the fit once, and then
        predicted; and ``methods``, the number of methods that count.

    Raises:
        InputError: the table lacks a column, or fewer than three methods count.
    """
    import numpy as np
    import pandas as pd

    if missing := [name for name in ("best_rate", *PREDICTORS) if name not in table]:
        raise InputError(f"the table has no column {missing[0]!r}; give one that curvature_table returned")
    rows = []
    for name in PREDICTORS:
        pairs = table[[name, "best_rate"]].astype(float)
        pairs = pairs[((pairs > 0) & np.isfinite(pairs)).all(axis=1)]
        if len(pairs) < 3:
            raise InputError(f"only {len(pairs)} methods have a recorded rate and a positive {name}; give at least 3")
        logs = np.log10(pairs)
        slope, intercept = np.polyfit(logs[name], logs["best_rate"], 1)
        residuals = logs["best_rate"] - slope * logs[name] - intercept
        ranks = pairs.rank()
        spearman = float(ranks[name].corr(ranks["best_rate"]))
        distances = (logs[name] - logs[name].mean()).pow(2)
        leverage = 1 / len(logs) + distances / distances.sum()
        spread, unseen = (float(np.sqrt(r.pow(2).mean())) for r in (residuals, residuals / (1 - leverage)))
        rows.append((name, spearman, float(slope), spread, unseen, len(pairs)))
    predictors = pd.DataFrame(rows, columns=["quantity", "spearman", "slope", "spread", "unseen", "methods"])
    return predictors.sort_values("spread", ignore_index=True)


def _norm(parts: Iterable[Tensor]) -> float:
    """The Frobenius norm of all tensors together."""
    return math.hypot(*(float(torch.linalg.vector_norm(t)) for t in parts))
