"""What is measured of a run: its change of the model before the first step, its way, and its result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from nlora_lab.core.interrupts import Interrupted, StopCheck, never_stop
from nlora_lab.evaluation.generation import longest_answer
from nlora_lab.evaluation.progress import reported
from nlora_lab.evaluation.scoring import Answer, accuracy, answers, loss_and_exact, mean_loss, measure
from nlora_lab.runs.run import KEPT_ANSWERS, HeldOut, Step
from nlora_lab.tasks.batches import plain_batches
from nlora_lab.tasks.encoding import Encoded
from nlora_lab.training import distributed
from nlora_lab.training.data import TrainingData
from nlora_lab.training.distributed import Batch
from nlora_lab.training.layer_views import ObservedModel, relative_distance
from nlora_lab.training.session import OnTrained, RunState, TrainingSession, Watch

PATIENCE = 0.3
"""Seconds in which stopped runs, all that trained together, may still answer the first test items."""


def conclude(session: TrainingSession, watch: Watch | None = None, on_trained: OnTrained | None = None) -> None:
    """Take the trained weights of a run and measure it. A run that diverged is not measured.

    Args:
        session: the run, after its last step.
        watch: shown the trained model before it is measured.
        on_trained: called with the run and its model before it is measured.
    """
    state = session.state
    model = distributed.unwrap(session.accelerator, session.model)
    state.weights = distributed.trained_weights(model)
    if state.diverged:
        return
    try:
        if on_trained is not None:
            complete = None if distributed.is_sharded(session.accelerator) else (model, session.data.tokenizer)
            on_trained(state.unmeasured(session.run), complete)
        session.observed.ended = True
        if watch is not None:
            watch(len(state.steps), session.observed)
        measure_result(state, model, session.data, session.observed, session.should_stop)
        session.memory.look()
    except KeyboardInterrupt:
        state.stopped = True
    state.peak_memory = session.memory.bytes


def measure_result(
    state: RunState, model: Any, data: TrainingData, observed: ObservedModel, should_stop: StopCheck = never_stop
) -> None:
    """Measure a trained model and write the results into ``state``.

    A run that is stopped, or is stopped while this measures, gets only what is quick: its distance and a few answers.

    Args:
        state: where the results go. ``metrics`` gets ``distance`` (‖change of W‖ / ‖W‖), ``validation_loss`` and
            ``test_loss`` (nats per target token) and the measures of the task.
        model: the trained model.
        data: the rows of the run.
        observed: the same model, as callbacks see it.
        should_stop: asked between batches and before every generated token.
    """
    state.metrics["distance"] = relative_distance(observed.layers())
    if not state.stopped:
        try:
            test_answers, measures = _measure_test_items(model, data, should_stop)
            state.answers = tuple(answer.text for answer in test_answers[:KEPT_ANSWERS])
            losses = {
                f"{split}_loss": _loss_on(split, rows, model, data, should_stop)
                for split, rows in (("validation", data.validation), ("test", data.test))
            }
            state.metrics.update(measures, **losses)
            return
        except Interrupted:
            state.stopped = True
    if distributed.is_distributed():
        # the clocks of several processes would not end them at the same token, and some would wait forever
        return
    end = time.monotonic() + PATIENCE / state.together
    with suppress(Interrupted):
        quick = answers(model, data.tokenizer, data.task, "test", KEPT_ANSWERS, lambda: time.monotonic() > end)
        state.answers = tuple(answer.text for answer in quick)


@dataclass(frozen=True)
class HeldOutCallback:
    """A callback that measures a run on validation rows while it trains. That time does not count as training.

    Attributes:
        every: the number of steps between two measurements.
    """

    every: int

    def on_gradients(self, session: TrainingSession, updates: int) -> None:
        """Do nothing: the model is measured between two steps."""

    def on_update(self, session: TrainingSession, step: Step, ends: bool) -> None:
        """Measure the model if it is due. A run that ends early is not measured once more."""
        if step.step % self.every == 0:
            with session.clock_paused():
                measure_on_the_way(session.state, session.model, session.data, session.should_stop)


def measure_on_the_way(state: RunState, model: Any, data: TrainingData, should_stop: StopCheck) -> None:
    """Measure a model on its way on the first validation rows, and add the result to ``state``, unless it stops.

    Args:
        state: the run so far.
        model: the model.
        data: the rows of the run.
        should_stop: asked between batches.
    """
    with suppress(Interrupted):
        measured = loss_and_exact(model, _batches_of(data.probe, model, data), should_stop)
        state.held_out += (HeldOut(len(state.steps), *measured),)


def _loss_on(split: str, rows: Encoded, model: Any, data: TrainingData, should_stop: StopCheck) -> float:
    batches = reported(_batches_of(rows, model, data), f"measuring {split} loss", len(rows.rows))
    return mean_loss(model, batches, should_stop)


def _batches_of(rows: Encoded, model: Any, data: TrainingData) -> Iterator[Batch]:
    return plain_batches(rows, data.tokenizer, model.device, data.rows_per_pass)


def _measure_test_items(
    model: Any, data: TrainingData, should_stop: StopCheck
) -> tuple[list[Answer], dict[str, float]]:
    """Return the answers to the test items and the measures of the task. Several processes share the items."""
    task, tokenizer = data.task, data.tokenizer
    share = distributed.share_of_rows(len(task.test)) if task.kind == "text" else None
    if share is None:
        return measure(model, tokenizer, task, should_stop=should_stop, max_length=data.positions)
    own_items, longest = replace(task, test=task.test.select(share)), longest_answer(tokenizer, task.test)
    own_answers = (
        answers(model, tokenizer, own_items, should_stop=should_stop, max_new_tokens=longest, max_length=data.positions)
        if share
        else []
    )
    all_answers = distributed.gather_lists(own_answers)
    return all_answers, {"accuracy": accuracy(all_answers)}


def first_change(model: Any, data: TrainingData, base: Any) -> float:
    """Return :func:`step0_change` on the first validation items.

    Args:
        model: the model with its untrained adapter.
        data: the rows of the run.
        base: the base model on the CPU, or ``None``. It is moved to the model's device and back.
    """
    if not hasattr(model, "disable_adapter"):
        return 0.0  # full fine-tuning starts at the model itself
    probe = next(_batches_of(data.validation, model, data))
    change = step0_change(model, probe, None if base is None else base.to(model.device))
    if base is not None:
        base.to("cpu")
    return change


@torch.no_grad()
def step0_change(model: Any, batch: dict[str, torch.Tensor], base: Any = None) -> float:
    """Measure how much an untrained adapter changes the logits of a model.

    Args:
        model: the model with its adapter. Without an adapter (full fine-tuning) the change is 0.
        batch: the inputs, as ``plain_batches`` yields them.
        base: the base model, for methods that have written its weights. Disabling their adapter does not give it back.

    Returns:
        The root mean square of the change of the logits over that of the logits. It is exactly 0.0 where the start
        leaves the function alone.
    """
    if not hasattr(model, "disable_adapter"):
        return 0.0
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with nullcontext() if base is not None else model.disable_adapter():
        before = (base or model)(**inputs).logits
    after = model(**inputs).logits
    if after.ndim == 3:  # (rows, tokens, vocabulary), where a classifier's are (rows, labels)
        mask = batch["attention_mask"].bool()
        before, after = before[mask], after[mask]
    return float((after - before).norm() / before.norm())
