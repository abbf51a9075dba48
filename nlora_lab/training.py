"""The training loop of one run, short enough to read in the course.

:func:`fine_tune` runs one :class:`RunConfig`; :func:`nlora_lab.racing.race` runs several together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.batches import BatchOrder, plain_batches, training_batches
from nlora_lab.config import RunConfig
from nlora_lab.devices import Device, PeakMemory, find_device, is_out_of_memory, release_memory
from nlora_lab.evaluation import accuracy, answers, label_tokens, mean_loss
from nlora_lab.halting import Asked, Halted, heed, never
from nlora_lab.methods import attach, get_method, trainable_parameters
from nlora_lab.models import LOADING, load_model
from nlora_lab.records import SAMPLES, Run, Step, versions
from nlora_lab.tasks import Task, load_task
from nlora_lab.views import PeftSubject, Subject, relative_distance

if TYPE_CHECKING:
    from accelerate import Accelerator

OnStep = Callable[[Step], bool | None]
"""Called after every step; returning True ends the run there and keeps what there is."""

Watch = Callable[[int, Subject], None]
"""Called with the number of updates made so far and the model as it is then: in each step while the gradients are
there, which are not finite where the run diverges; and once more, with ``ended`` set, after a run that did not."""

PATIENCE = 0.3
"""Seconds in which stopped runs, all that trained together, may still say something to the first test items."""


def fine_tune(cfg: RunConfig, on_step: OnStep | None = None, watch: Watch | None = None, halted: Asked = never) -> Run:
    """Fine-tune as ``cfg`` says and measure the result.

    A loss that is not finite ends the run as ``diverged``; ``on_step`` returning True, an interrupt (Ctrl-C, the
    kernel's stop button), or ``halted`` returning True, which is asked while loading and measuring too, ends it as
    ``stopped``; too little memory ends it with an ``error``, which says what would help. In every case all steps up to
    there are in the returned :class:`Run`. Any other exception after the first step carries that :class:`Run`, as its
    attribute ``run``. Raises :class:`nlora_lab.InputError` before any training if the model, the task and the config
    do not fit together.
    """
    device = find_device(cfg.device)
    trail = Trail()
    try:
        return _fine_tune(cfg, device, trail, on_step, watch, halted)
    except Halted:  # before the first step
        trail.stopped = True
    except Exception as error:
        if not is_out_of_memory(error):
            if trail.steps:
                trail.error = f"{type(error).__name__}: {error}"
                error.run = trail.run(cfg, device)  # type: ignore[attr-defined]
            raise
        trail.error = memory_advice(cfg, device)
    release_memory(device)  # here the frames that held the model are gone
    return trail.run(cfg, device)


@dataclass
class Trail:
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
    weights: dict[str, torch.Tensor] | None = None

    def add(self, step: Step) -> bool:
        """Note a step; whether the run can go on from it."""
        self.steps.append(step)
        self.diverged = not (math.isfinite(step.loss) and math.isfinite(step.grad_norm))
        return not self.diverged

    def run(self, cfg: RunConfig, device: Device) -> Run:
        """The record of it."""
        left = {f.name: getattr(self, f.name) for f in fields(self)}
        return Run(cfg, **{**left, "steps": tuple(self.steps)}, device=device.words, versions=versions())


def _fine_tune(
    cfg: RunConfig, device: Device, trail: Trail, on_step: OnStep | None, watch: Watch | None, halted: Asked
) -> Run:
    accelerator = make_accelerator(device)
    task = load_task(cfg.task, difficulty=cfg.difficulty)
    heed(halted)
    model, tokenizer = build(cfg)
    heed(halted)
    if task.labels:
        label_tokens(tokenizer, task.labels)  # they must differ, and that is to be known before training
    model.to(accelerator.device)
    batches = training_batches(task.train, tokenizer, BatchOrder(len(task.train), cfg.steps, cfg.batch_size, cfg.seed))
    base = untouched(cfg)
    heed(halted)
    trail.metrics["step0_change"] = first_change(model, tokenizer, task, base)
    heed(halted)
    trail.trainable = trainable_parameters(model)
    subject = PeftSubject(model, base)

    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=cfg.lr, weight_decay=cfg.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cfg.rate_factor)
    model, optimizer, batches, schedule = accelerator.prepare(model, optimizer, batches, schedule)

    memory = PeakMemory(device.kind)
    with LOADING:  # not while another thread draws the weights of its adapter
        torch.manual_seed(cfg.seed + 1)  # dropout
    model.train()
    started = time.perf_counter()
    try:
        for number, batch in enumerate(batches, start=1):
            loss = model(**batch).loss
            accelerator.backward(loss)
            memory.look()
            grad_norm = accelerator.clip_grad_norm_(weights, cfg.clip_norm or math.inf)
            step = Step(number, loss.item(), cfg.rate_at(number - 1), grad_norm.item())
            finite = trail.add(step)
            if watch is not None:
                watch(number - 1, subject)
            if not finite:
                break
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if (on_step is not None and on_step(step)) or halted():
                trail.stopped = number < cfg.steps
                break
    except KeyboardInterrupt:
        trail.stopped = True
        optimizer.zero_grad()  # those of a step that was not made
    finally:
        trail.seconds, trail.peak_memory = time.perf_counter() - started, memory.bytes

    model = accelerator.unwrap_model(model)
    trail.weights = {n: p.detach().cpu().clone() for n, p in model.named_parameters() if p.requires_grad}
    if not trail.diverged:
        try:
            subject.ended = True
            if watch is not None:
                watch(len(trail.steps), subject)
            finish(trail, model, tokenizer, task, subject, halted)
            memory.look()
        except KeyboardInterrupt:
            trail.stopped = True
    trail.peak_memory = memory.bytes
    return trail.run(cfg, device)


def finish(trail: Trail, model: Any, tokenizer: Any, task: Task, subject: Subject, halted: Asked = never) -> None:
    """Measure what was trained; of a stopped run, or once ``halted`` says yes, only what is quick."""
    trail.metrics["distance"] = relative_distance(subject.layers())
    if not trail.stopped:
        try:
            trail.answers, measured = _measured(model, tokenizer, task, halted)
            trail.metrics.update(measured)
            return
        except Halted:
            trail.stopped = True
    end = time.monotonic() + PATIENCE / trail.together
    with suppress(Halted):
        said = answers(model, tokenizer, task, "test", SAMPLES, lambda: time.monotonic() > end)
        trail.answers = tuple(a.said for a in said)


def _measured(model: Any, tokenizer: Any, task: Task, halted: Asked) -> tuple[tuple[str, ...], dict[str, float]]:
    """The first answers, and accuracy and validation loss: the loss that learning rates are chosen by."""
    given = answers(model, tokenizer, task, "test", halted=halted)
    loss = mean_loss(model, plain_batches(task.validation, tokenizer, model.device), halted)
    return tuple(a.said for a in given[:SAMPLES]), {"accuracy": accuracy(given), "validation_loss": loss}


def build(cfg: RunConfig) -> tuple[Any, Any]:
    """The base model with the adapter of ``cfg``, seeded, on the CPU; and the tokenizer."""
    with LOADING:  # another thread must not draw from the global generator in between
        base, tokenizer = load_model(cfg.model)
        torch.manual_seed(cfg.seed)
        options = {"dropout": cfg.dropout} if cfg.dropout else {}
        return attach(base, cfg.method, cfg.rank, cfg.alpha, cfg.init, **options), tokenizer


def untouched(cfg: RunConfig) -> Any:
    """The base model once more, on the CPU, for what writes its weights; else ``None``."""
    method = get_method(cfg.method)
    return load_model(cfg.model)[0] if method.writes_base or method.build is None else None


def first_change(model: Any, tokenizer: Any, task: Task, base: Any) -> float:
    """:func:`step0_change` on the first validation items. ``base`` comes back to the CPU, where it was."""
    probe = next(plain_batches(task.validation, tokenizer, model.device))
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
    kept = batch["attention_mask"].bool()
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with nullcontext() if base is not None else model.disable_adapter():
        before = (base or model)(**inputs).logits[kept]  # (tokens, vocabulary)
    after = model(**inputs).logits[kept]
    return float((after - before).norm() / before.norm())


def memory_advice(cfg: RunConfig, device: Device, together: int = 1) -> str:
    """What ended a run, of so many together, and what would help, in a sentence."""
    halved = f"batch_size={max(1, cfg.batch_size // 2)}" if cfg.batch_size > 1 else "a smaller model"
    many, fewer = (f" with {together} runs at once", "fewer at once, together=False, ") if together > 1 else ("", "")
    return f"out of memory on {device.words}{many}: try {fewer}{halved}, a smaller rank, or device='cpu'"


def make_accelerator(device: Device) -> Accelerator:
    """An Accelerator for ``device``; slices of one batch go to each process, so the batch size is global."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DataLoaderConfiguration

    # accelerate keeps one device and precision a process; a run on another one has to make it forget
    placed, precise = PartialState._shared_state, AcceleratorState._shared_state
    elsewhere = bool(placed) and placed["device"].type != device.kind
    if elsewhere or (precise and precise.get("_mixed_precision") != device.precision):
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=device.kind == "cpu",
        mixed_precision=device.precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
