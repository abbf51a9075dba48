"""Why a method needs its learning rate: the curvature its trained numbers see, and what one step of Adam does.

:func:`curvature_of` measures one config, :func:`curvature_table` a row for each method, and :func:`rate_predictors` how
well each quantity foretells the best rate. :func:`largest_eigenvalue` works for any loss.
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

from nlora_lab.core.devices import find_device
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.lowrank.checks import check_count, standard_normal
from nlora_lab.lowrank.lanczos import Eigenvalue, Hessian, check_tolerance, filled, flat, lanczos, split
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.models.loading import LOADING_LOCK
from nlora_lab.runs.config import RunConfig
from nlora_lab.tasks.batches import BatchOrder, Collate, encode
from nlora_lab.tasks.registry import load_task
from nlora_lab.training.layer_views import ObservedPeftModel
from nlora_lab.training.setup import build, untouched

if TYPE_CHECKING:
    import pandas as pd

Batch = dict[str, Tensor]
FIRST_TRY, WANTED = 1e-6, 1e-3
"""A step's effect is measured at the rate that changes the logits by about ``WANTED``, found from one at ``FIRST_TRY``:
small enough to be linear, large enough to stand out of float32's rounding."""
PREDICTORS = ("largest", "preconditioned", "gradient", "weight_change", "logit_change", "model_rate")


@dataclass(frozen=True)
class Curvature:
    """What a method's trained numbers see of the loss, after ``at_step`` steps of ``config``.

    The loss is the mean over the next ``batches`` batches of the run, in nats a target token. Adam is the run's own
    after ``at_step`` steps, which has then seen the gradients of those batches in turn while the weights stood still: m
    and v are its means of the gradient and its square, both corrected for their start at 0. At step 0 with one batch m
    is the gradient g and v is g².

    ``largest``: the largest eigenvalue of the Hessian H, most upward curvature. ``preconditioned``: that of
    ``D^-1/2 H D^-1/2`` with ``D = √v + eps``: in the coordinates in which Adam, without its momentum, is gradient
    descent. Numbers that never had a gradient (v = 0: A while B is zero) do not move in the next step, and are left
    out of it. ``gradient``: ‖g‖.

    ``weight_change``, ``logit_change``: what the step ``d = m / (√v + eps)`` does for each unit of learning rate, in
    the limit of small rates: ‖change of W‖ / ‖W‖ over all adapted layers, and the root mean square change of the logits
    of the first batch over that of the logits. ``probe``: the rate this was measured at. ``linearity``: how the
    logits' change at twice that rate compares with twice the change, 1 if it is linear.

    ``model_rate``: ``gᵀd / dᵀHd``, the rate at which the loss along d would be lowest if it were the parabola that g
    and H say; infinite where it curves downwards, negative where d leads uphill.
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
    seconds: float  # of all of it, loading and the steps before included

    def row(self) -> dict[str, Any]:
        """The numbers as a row of a table; ``converged``: both eigenvalues are."""
        numbers = {f.name: getattr(self, f.name) for f in fields(self)[3:]}
        pair = (self.largest, self.preconditioned)
        numbers |= {"largest": pair[0].value, "preconditioned": pair[1].value}
        return {**numbers, "converged": all(e.converged for e in pair)}


def curvature_of(
    cfg: RunConfig, *, at_step: int = 0, batches: int = 1, iterations: int = 40, rtol: float = 0.02
) -> Curvature:
    """Measure the curvature that ``cfg`` meets after ``at_step`` of its steps, in float32.

    ``batches``: how many of the run's next batches the loss is measured on. ``iterations``, ``rtol``: of each of the
    two eigenvalues (see :func:`largest_eigenvalue`). The model is built and trained as :func:`nlora_lab.fine_tune`
    does. At step 0 the rate of ``cfg`` plays no part. DoRA holds the lengths that it divides by constant in its
    gradient (arXiv 2402.09353, section 4.3), and so they are in its Hessian.

    Raises :class:`nlora_lab.InputError` for bad options, and if the run diverges before ``at_step``.
    """
    check_count("at_step", at_step, 0, cfg.steps)
    check_count("batches", batches, 1, 10**4)
    check_count("iterations", iterations, 1, 10**6)
    check_tolerance(rtol)
    started = time.perf_counter()
    tuning = _Tuning(cfg, at_step + batches)
    tuning.train(at_step)
    ahead = tuning.feed[at_step:]
    hessian = Hessian(lambda: tuning.mean_loss(ahead), tuning.parameters)
    step, scale = tuning.next_step(ahead)
    start = standard_normal(len(step), like=step, generator=torch.Generator().manual_seed(cfg.seed))
    eigen = [
        replace(lanczos(hessian.seen_through(roots), start, iterations, rtol, top=True), vector=None)
        for roots in (None, scale.rsqrt())
    ]
    bend = float(step @ hessian.times(step))
    model_rate = float(hessian.gradient @ step) / bend if bend > 0 else math.inf
    loss, gradient = hessian.loss, float(torch.linalg.vector_norm(hessian.gradient))
    del hessian  # its graph is the largest thing here
    effects = tuning.effects(step, ahead[0])
    return Curvature(
        cfg, at_step, batches, loss, eigen[0], eigen[1], gradient, *effects, model_rate, time.perf_counter() - started
    )


class _Tuning:
    """A model being fine-tuned, step by step as in :mod:`nlora_lab.training.loop`, and its optimiser."""

    def __init__(self, cfg: RunConfig, batches: int) -> None:
        self.cfg = cfg
        place = find_device(cfg.device).kind
        task = load_task(cfg.task, difficulty=cfg.difficulty)
        self.model, tokenizer = build(cfg)
        self.model.to(place)
        order = BatchOrder(len(task.train), batches, cfg.batch_size, cfg.seed)
        collate = Collate(int(tokenizer.pad_token_id))  # of these rows alone: encoding all takes a second
        feed = [collate(encode(task.train.select(rows), tokenizer)) for rows in order]
        self.feed: list[Batch] = [{k: v.to(place) for k, v in batch.items()} for batch in feed]
        self.subject = ObservedPeftModel(self.model, untouched(cfg))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)

    def train(self, steps: int) -> None:
        """Make the first steps of the run, and leave it in evaluation mode."""
        with LOADING_LOCK:  # not while another thread draws the weights of its adapter
            torch.manual_seed(self.cfg.seed + 1)  # dropout
        schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, self.cfg.rate_factor)
        self.model.train()
        for number, batch in enumerate(self.feed[:steps], start=1):
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
        """The mean of the batches' losses."""
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
            flat(filled([s.get(key) for s in states], self.parameters)) for key in ("exp_avg", "exp_avg_sq")
        )
        return mean, square, count

    def _gradient(self, batch: Batch) -> Tensor:
        parts = torch.autograd.grad(self.model(**batch).loss, self.parameters, allow_unused=True)
        g = flat(filled(parts, self.parameters))
        if self.cfg.clip_norm is not None:
            g *= (self.cfg.clip_norm / (torch.linalg.vector_norm(g) + 1e-6)).clamp(max=1)  # as torch clips
        return g

    @torch.no_grad()
    def effects(self, step: Tensor, batch: Batch) -> tuple[float, float, float, float]:
        """``weight_change``, ``logit_change``, ``probe`` and ``linearity`` of :class:`Curvature`."""
        weights, logits = self._weights(), self._logits(batch)

        def change(rate: float) -> float:
            with self._moved(step, rate):
                return _size([self._logits(batch) - logits]) / _size([logits])

        tried = change(FIRST_TRY)
        rate = FIRST_TRY * WANTED / tried if tried > 0 else FIRST_TRY
        changed, twice = change(rate), change(2 * rate)
        with self._moved(step, rate):
            moved = self._distance(weights)
        return moved / rate, changed / rate, rate, twice / (2 * changed) if changed else math.nan

    def _logits(self, batch: Batch) -> Tensor:
        """Those of every token that is no padding: (tokens, vocabulary)."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits: Tensor = self.model(**inputs).logits[batch["attention_mask"].bool()]
        return logits

    def _weights(self) -> list[Tensor]:
        """How far the weight of each adapted layer is from its start now, (m, n)."""
        return [view.change.dense() for view in self.subject.layers()]

    def _distance(self, before: Sequence[Tensor]) -> float:
        """``‖change since then‖ / ‖W‖`` over all adapted layers together."""
        moved = [now - then for now, then in zip(self._weights(), before, strict=True)]
        return _size(moved) / _size(view.weight for view in self.subject.layers())

    @contextmanager
    def _moved(self, step: Tensor, rate: float) -> Iterator[None]:
        """Within it the parameters are ``rate`` times ``step`` further down."""
        kept = [p.clone() for p in self.parameters]
        for p, part in zip(self.parameters, split(step, self.parameters), strict=True):
            p.sub_(part, alpha=rate)
        try:
            yield
        finally:
            for p, old in zip(self.parameters, kept, strict=True):
                p.copy_(old)


def curvature_table(
    methods: Iterable[str] | None = None,
    *,
    at_step: int = 0,
    batches: int = 1,
    iterations: int = 20,
    rtol: float = 0.05,
    **settings: Any,
) -> pd.DataFrame:
    """One row a method: its best recorded rate, and the numbers of :class:`Curvature`.

    ``methods``: names, by default all. ``settings``: fields of :class:`nlora_lab.RunConfig`; without an ``lr`` each
    method takes its best recorded rate for the task and rank, by validation loss, where there is one. It matters only
    for ``at_step > 0``. The other options are those of :func:`curvature_of`, set for speed: the eigenvalues are right
    to a few per cent, and at the start a method takes 4 to 5 processor seconds, with ``batch_size=8`` 2.

    Columns: ``method``, ``label``, ``best_rate`` (NaN without a recording), ``rate``, then the numbers. Raises
    :class:`nlora_lab.InputError` for an unknown method or setting, and as :func:`curvature_of` does.
    """
    import pandas as pd

    from nlora_lab.runs.shipped import recorded_runs

    names = list(METHODS) if methods is None else [methods] if isinstance(methods, str) else list(methods)
    for key in settings:
        check_choice("setting", key, {f.name for f in fields(RunConfig)} - {"method"})
    recorded = recorded_runs(None, settings.get("model", RunConfig.model))
    configs, rows = [RunConfig(name, **settings) for name in names], []
    for cfg in configs:
        best = recorded.best(cfg.task, cfg.method, cfg.rank, cfg.init)
        if best is not None and "lr" not in settings:
            cfg = replace(cfg, lr=best.lr)
        found = curvature_of(cfg, at_step=at_step, batches=batches, iterations=iterations, rtol=rtol)
        rates = {"best_rate": best.lr if best else math.nan, "rate": cfg.lr}
        rows.append({"method": cfg.method, "label": get_method(cfg.method).label, **rates, **found.row()})
    return pd.DataFrame(rows)


def rate_predictors(table: pd.DataFrame) -> pd.DataFrame:
    """How well each quantity of a :func:`curvature_table` foretells the best rate over the methods.

    One row a quantity, the best first: ``spearman``, the rank correlation with ``best_rate``; ``slope``, that of the
    line through log best rate over log quantity, −1 where the rate is inversely proportional; ``spread``, the root mean
    square distance of log10 best rate from that line, in decades; ``methods``, how many counted: those with a
    positive, finite quantity and a recorded rate. Raises :class:`nlora_lab.InputError` for a table without these
    columns, or with fewer than three rows that count.
    """
    import numpy as np
    import pandas as pd

    if missing := [name for name in ("best_rate", *PREDICTORS) if name not in table]:
        raise InputError(f"the table has no column {missing[0]!r}; give one that curvature_table made")
    rows = []
    for name in PREDICTORS:
        both = table[[name, "best_rate"]].astype(float)
        both = both[((both > 0) & np.isfinite(both)).all(axis=1)]
        if len(both) < 3:
            raise InputError(
                f"only {len(both)} methods have a recorded rate and a positive {name}; take three at least"
            )
        logs = np.log10(both)
        slope, height = np.polyfit(logs[name], logs["best_rate"], 1)
        off = logs["best_rate"] - slope * logs[name] - height
        ranks = both.rank()
        spearman = float(ranks[name].corr(ranks["best_rate"]))
        rows.append((name, spearman, float(slope), float(np.sqrt(off.pow(2).mean())), len(both)))
    found = pd.DataFrame(rows, columns=["quantity", "spearman", "slope", "spread", "methods"])
    return found.sort_values("spread", ignore_index=True)


def _size(parts: Iterable[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(t)) for t in parts))
