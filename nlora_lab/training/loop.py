"""The training loop of one run, short enough to read in the course.

:func:`fine_tune` runs one :class:`RunConfig`; :func:`nlora_lab.training.races.race` runs several together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from nlora_lab.core.devices import Device, PeakMemory, is_out_of_memory, release_memory
from nlora_lab.core.interrupts import Interrupted, StopCheck, never_stop, raise_if_stopped
from nlora_lab.estimates.requirements import check_fit
from nlora_lab.evaluation.scoring import Answer, accuracy, answers, longest_answer, mean_loss, measure
from nlora_lab.methods.parameters import trainable_parameters
from nlora_lab.models.loading import LOADING_LOCK, position_limit, revision_of
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import resolve, run_device
from nlora_lab.runs.run import KEPT_ANSWERS, Run, Step, versions
from nlora_lab.tasks.batches import plain_batches, training_batches
from nlora_lab.training.checkpoints import CHECKPOINT_EVERY, Checkpoints, RemainingBatches, SavedCheckpoint
from nlora_lab.training.distributed import (
    any_of,
    backward,
    check_processes,
    clip,
    everybodys,
    is_sharded,
    make_accelerator,
    part_of,
    parts_of,
    prepare,
    several,
    trained_weights,
    unwrap,
)
from nlora_lab.training.layer_views import ObservedModel, ObservedPeftModel, relative_distance
from nlora_lab.training.setup import Data, build, check_packing, token_limit, untouched

OnStep = Callable[[Step], bool | None]
"""Called after every step; returning True ends the run there and keeps what there is."""

Watch = Callable[[int, ObservedModel], None]
"""Called with the number of updates made so far and the model as it is then: in each step while the gradients are
there, which are not finite where the run diverges; and once more, with ``ended`` set, after a run that did not."""

PATIENCE = 0.3
"""Seconds in which stopped runs, all that trained together, may still say something to the first test items."""


def fine_tune(
    cfg: RunConfig,
    on_step: OnStep | None = None,
    watch: Watch | None = None,
    should_stop: StopCheck = never_stop,
    checkpoints: str | Path | None = None,
    every: int = CHECKPOINT_EVERY,
) -> Run:
    """Fine-tune as ``cfg`` says and measure the result.

    A loss that is not finite ends the run as ``diverged``; ``on_step`` returning True, an interrupt (Ctrl-C, the
    kernel's stop button), or ``should_stop`` returning True, which is asked while loading and measuring too, ends it as
    ``stopped``; too little memory ends it with an ``error``, which says what would help. In every case all steps up to
    there are in the returned :class:`Run`. Any other exception after the first step carries that :class:`Run`, as its
    attribute ``run``. Raises :class:`nlora_lab.InputError` before any training if the model, the task and the config
    do not fit together, or the memory will not do by :func:`nlora_lab.estimate`.

    ``checkpoints``: a folder; after ``every`` so many steps, and when it is stopped, what it takes to go on is kept
    there (:mod:`nlora_lab.training.checkpoints`), and the same config with the same folder goes on from the newest that is whole,
    as if nothing had been. Under ``accelerate launch`` every process calls this and gets the same run.
    """
    device = run_device(cfg)
    trail = RunState()
    kept = None if checkpoints is None else Checkpoints(checkpoints, cfg, every)
    try:
        return _fine_tune(cfg, device, trail, on_step, watch, should_stop, kept)
    except Interrupted:  # before the first step
        trail.stopped = True
    except Exception as error:
        if not is_out_of_memory(error):
            if trail.steps:
                trail.error = f"{type(error).__name__}: {error}"
                error.run = trail.run(cfg, device)  # type: ignore[attr-defined]
            raise
        trail.error = memory_advice(cfg, device)
    release_memory()  # here the frames that held the model are gone
    return trail.run(cfg, device)


@dataclass
class RunState:
    """What a run has left behind so far."""

    steps: list[Step] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    trainable: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    diverged: bool = False
    stopped: bool = False
    answers: tuple[str, ...] = ()
    together: int = 1
    error: str = ""
    revision: str = ""
    weights: dict[str, torch.Tensor] | None = None

    def add(self, step: Step) -> bool:
        """Note a step; whether the run can go on from it."""
        self.steps.append(step)
        self.diverged = not (math.isfinite(step.loss) and math.isfinite(step.grad_norm))
        return not self.diverged

    def begin(self, model: Any, data: Data) -> None:
        """Note what is known before the first step."""
        self.trainable, self.revision = trainable_parameters(model), revision_of(model)
        self.note_cut(data)

    def note_cut(self, data: Data) -> None:
        """Note how many training examples were too long."""
        if data.training.cut:
            self.metrics["cut"] = data.training.cut

    def go_on(self, saved: SavedCheckpoint) -> int:
        """Take over what was done before; how many steps that is."""
        self.steps, self.seconds = list(saved.steps), saved.run.seconds
        return len(self.steps)

    def run(self, cfg: RunConfig, device: Device) -> Run:
        """The record of it."""
        left = {f.name: getattr(self, f.name) for f in fields(self)}
        return Run(cfg, **{**left, "steps": tuple(self.steps)}, device=device.words, versions=versions())


def _fine_tune(
    cfg: RunConfig,
    device: Device,
    trail: RunState,
    on_step: OnStep | None,
    watch: Watch | None,
    should_stop: StopCheck,
    kept: Checkpoints | None,
) -> Run:
    accelerator = make_accelerator(device)
    check_fit(cfg, device)
    check_processes(cfg, accelerator)
    task = resolve(cfg).task
    raise_if_stopped(should_stop)
    model, tokenizer = build(cfg, task.head)
    raise_if_stopped(should_stop)
    positions = position_limit(model, tokenizer)
    data = Data(cfg, task, tokenizer, token_limit(cfg, model, tokenizer), positions)
    if cfg.batching == "packed":
        check_packing(model, data)
    trail.begin(model, data)
    subject = ObservedPeftModel(model, base := untouched(cfg, task.head))
    raise_if_stopped(should_stop)
    if not is_sharded(accelerator):
        model.to(accelerator.device)
        trail.metrics["step0_change"] = first_change(model, data, base)
    raise_if_stopped(should_stop)

    saved = None if kept is None else kept.newest(data.digest, trail.revision)
    done = 0 if saved is None else trail.go_on(saved)
    batches = training_batches(data.training, tokenizer, RemainingBatches(data.order(), done))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=cfg.lr, weight_decay=cfg.weight_decay, fused=device.kind == "cuda")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cfg.rate_factor(done + step))
    model, optimizer, batches, schedule = prepare(accelerator, model, optimizer, batches, schedule)
    if is_sharded(accelerator) and (base is None or not hasattr(model, "peft_config")):
        trail.metrics["step0_change"] = first_change(model, data, None)

    memory = PeakMemory(device.kind)
    with LOADING_LOCK:  # not while another thread draws the weights of its adapter
        torch.manual_seed(cfg.seed + 1 + accelerator.process_index)  # dropout
    if kept is not None and saved is not None:
        kept.restore(saved, accelerator, accelerator.unwrap_model(model), optimizer)
    weights = [p for p in model.parameters() if p.requires_grad]  # sharding has put others in their place
    model.train()
    called = torch.compile(model, dynamic=True) if cfg.compile else model
    parts = parts_of(cfg, accelerator)
    started = time.perf_counter() - trail.seconds
    try:
        for number, batch in enumerate(batches, start=done + 1):
            loss = backward(accelerator, called, batch, parts)
            memory.look()
            grad_norm = clip(accelerator, weights, cfg.clip_norm)
            step = Step(number, loss.item(), cfg.rate_at(number - 1), grad_norm)
            finite = trail.add(step)
            if watch is not None:
                watch(number - 1, subject)
            if not finite:
                break
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            asked = (on_step is not None and bool(on_step(step))) or should_stop()
            ended = any_of(accelerator, asked)
            trail.seconds = time.perf_counter() - started
            if kept is not None and (ended or kept.due(number)):
                kept.save(trail.run(cfg, device), data.digest, accelerator, accelerator.unwrap_model(model), optimizer)
            if ended:
                trail.stopped = number < cfg.steps
                break
    except KeyboardInterrupt:
        trail.stopped = True
        optimizer.zero_grad()  # those of a step that was not made
    finally:
        trail.seconds, trail.peak_memory = time.perf_counter() - started, memory.bytes

    model = unwrap(accelerator, model)
    trail.weights = trained_weights(model)
    if not trail.diverged:
        try:
            subject.ended = True
            if watch is not None:
                watch(len(trail.steps), subject)
            finish(trail, model, data, subject, should_stop)
            memory.look()
        except KeyboardInterrupt:
            trail.stopped = True
    trail.peak_memory = memory.bytes
    return trail.run(cfg, device)


def finish(
    trail: RunState, model: Any, data: Data, subject: ObservedModel, should_stop: StopCheck = never_stop
) -> None:
    """Measure what was trained; of a stopped run, or once ``should_stop`` says yes, only what is quick."""
    trail.metrics["distance"] = relative_distance(subject.layers())
    if not trail.stopped:
        try:
            given, measured = _measured(model, data, should_stop)
            trail.answers = tuple(a.said for a in given[:KEPT_ANSWERS])
            batches = plain_batches(data.validation, data.tokenizer, model.device, data.at_once)
            trail.metrics.update(measured, validation_loss=mean_loss(model, batches, should_stop))
            return
        except Interrupted:
            trail.stopped = True
    if several():  # their clocks would not end them at the same word, and some would wait for the others for ever
        return
    end = time.monotonic() + PATIENCE / trail.together
    with suppress(Interrupted):
        said = answers(model, data.tokenizer, data.task, "test", KEPT_ANSWERS, lambda: time.monotonic() > end)
        trail.answers = tuple(a.said for a in said)


def _measured(model: Any, data: Data, should_stop: StopCheck) -> tuple[list[Answer], dict[str, float]]:
    """The answers to the test items and the task's measures of them; several processes answer a part each."""
    task, tokenizer = data.task, data.tokenizer
    part = part_of(len(task.test)) if task.kind == "text" else None
    if part is None:
        return measure(model, tokenizer, task, should_stop=should_stop, max_length=data.positions)
    mine, longest = replace(task, test=task.test.select(part)), longest_answer(tokenizer, task.test)
    said = (
        answers(model, tokenizer, mine, should_stop=should_stop, max_new_tokens=longest, max_length=data.positions)
        if part
        else []
    )
    given = everybodys(said)
    return given, {"accuracy": accuracy(given)}


def first_change(model: Any, data: Data, base: Any) -> float:
    """:func:`step0_change` on the first validation items. ``base`` comes back to the CPU, where it was."""
    if not hasattr(model, "disable_adapter"):
        return 0.0  # full fine-tuning starts at the model itself
    probe = next(plain_batches(data.validation, data.tokenizer, model.device, data.at_once))
    change = step0_change(model, probe, None if base is None else base.to(model.device))
    if base is not None:
        base.to("cpu")
    return change


@torch.no_grad()
def step0_change(model: Any, batch: dict[str, torch.Tensor], base: Any = None) -> float:
    """How much the untrained adapter changes the model: RMS of the change of the logits over RMS of the logits.

    0.0 exactly for a start that leaves the function alone; also for full fine-tuning. ``base``: the base
    model, where disabling the adapter does not give it back because the method has written its weights.
    """
    if not hasattr(model, "disable_adapter"):
        return 0.0
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with nullcontext() if base is not None else model.disable_adapter():
        before = (base or model)(**inputs).logits
    after = model(**inputs).logits
    if after.ndim == 3:  # (rows, tokens, vocabulary), where a classifier's are (rows, labels)
        kept = batch["attention_mask"].bool()
        before, after = before[kept], after[kept]
    return float((after - before).norm() / before.norm())


def memory_advice(cfg: RunConfig, device: Device, together: int = 1) -> str:
    """What ended a run, of so many together, and what would help, in a sentence."""
    halved = f"batch_size={max(1, cfg.batch_size // 2)}" if cfg.batch_size > 1 else "a smaller model"
    many, fewer = (
        (f" with {together} runs at once", "fewer at once, together=False (--one-by-one), ")
        if together > 1
        else ("", "")
    )
    parts = cfg.accumulation * 2
    same = f"accumulation={parts}, " if cfg.batch_size % parts == 0 else ""  # the same step, in smaller parts
    saving = same if cfg.checkpointing else f"{same}checkpointing=True, "
    return f"out of memory on {device.words}{many}: try {fewer}{saving}{halved}, a smaller rank, or device='cpu'"
