"""The training loop. There is one, and it is short enough to read in the course.

:func:`fine_tune` runs one :class:`RunConfig`; :func:`race` runs several, one after the other, on
identical batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.batches import BatchOrder, plain_batches, training_batches
from nlora_lab.devices import Device, PeakMemory, find_device
from nlora_lab.evaluation import accuracy, answers, label_tokens, mean_loss
from nlora_lab.methods import attach, check_rank, get_method, trainable_parameters
from nlora_lab.models import LOADING, load_model
from nlora_lab.records import Run, RunConfig, Step, versions
from nlora_lab.tasks import Task, load_task

if TYPE_CHECKING:
    from accelerate import Accelerator

OnStep = Callable[[Step], bool | None]
"""Called after every step; returning True ends the run there and keeps what there is."""


def fine_tune(cfg: RunConfig, on_step: OnStep | None = None) -> Run:
    """Fine-tune as ``cfg`` says and measure the result.

    A loss that is not finite ends the run as ``diverged``; ``on_step`` returning True, or an
    interrupt (Ctrl-C, the kernel's stop button), ends it as ``stopped``. Either way everything up
    to there is in the returned :class:`Run`. Raises :class:`nlora_lab.InputError` before any
    training if the model, the task and the config do not fit together.
    """
    device = find_device(cfg.device)
    accelerator = make_accelerator(device)
    task = load_task(cfg.task, difficulty=cfg.difficulty)
    model, tokenizer = build(cfg)
    if task.labels:
        label_tokens(tokenizer, task.labels)  # they must differ, and that is to be known before training
    model.to(accelerator.device)
    batches = training_batches(task.train, tokenizer, BatchOrder(len(task.train), cfg.steps, cfg.batch_size, cfg.seed))
    probe = next(plain_batches(task.validation, tokenizer, model.device))
    metrics = {"step0_change": step0_change(model, probe, untouched(cfg, model.device))}

    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=cfg.lr, weight_decay=cfg.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, cfg))
    model, optimizer, batches, schedule = accelerator.prepare(model, optimizer, batches, schedule)

    steps: list[Step] = []
    memory, diverged, stopped = PeakMemory(device.kind), False, False
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
            step = Step(number, loss.item(), schedule.get_last_lr()[0], grad_norm.item())
            steps.append(step)
            if not (math.isfinite(step.loss) and math.isfinite(step.grad_norm)):
                diverged = True
                break
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if on_step is not None and on_step(step):
                stopped = number < cfg.steps
                break
    except KeyboardInterrupt:
        stopped = True
    seconds = time.perf_counter() - started

    if not (diverged or stopped):
        try:
            metrics |= measure(accelerator.unwrap_model(model), tokenizer, task)
            memory.look()
        except KeyboardInterrupt:
            stopped = True
    return Run(
        config=cfg,
        steps=tuple(steps),
        metrics=metrics,
        trainable=trainable_parameters(model),
        seconds=seconds,
        peak_memory=memory.bytes,
        diverged=diverged,
        stopped=stopped,
        device=device.words,
        versions=versions(),
    )


def build(cfg: RunConfig) -> tuple[Any, Any]:
    """The base model with the adapter of ``cfg``, seeded, on the CPU; and the tokenizer."""
    with LOADING:  # another thread must not draw from the global generator in between
        base, tokenizer = load_model(cfg.model)
        torch.manual_seed(cfg.seed)
        options = {"dropout": cfg.dropout} if cfg.dropout else {}
        return attach(base, cfg.method, cfg.rank, cfg.alpha, cfg.init, **options), tokenizer


def race(
    configs: Iterable[RunConfig],
    on_step: Callable[[RunConfig, Step], bool | None] | None = None,
    on_run: Callable[[Run], None] | None = None,
    halted: Callable[[], bool] = lambda: False,
) -> list[Run]:
    """Run every config, one after the other; equal seeds see identical batches.

    All of them are checked against model and device before the first one starts. ``on_run`` gets
    each run as soon as it is finished. A stopped run, an interrupt, or ``halted`` returning True
    between two runs ends the race, and the runs up to there are returned; a diverged run does not.
    """
    configs = list(configs)
    check(configs)
    runs: list[Run] = []
    for cfg in configs:
        if halted():
            break
        try:
            run = fine_tune(cfg, None if on_step is None else partial(on_step, cfg))
        except KeyboardInterrupt:  # while loading, where there is nothing of this run to keep
            break
        runs.append(run)
        if on_run is not None:
            on_run(run)
        if run.stopped:
            break
    return runs


def check(configs: Sequence[RunConfig]) -> None:
    """Raise :class:`nlora_lab.InputError` if one cannot run here: device, model, or rank for the model."""
    for device in {cfg.device for cfg in configs}:
        find_device(device)
    for name in {cfg.model for cfg in configs}:
        model, _ = load_model(name)
        for cfg in configs:
            if cfg.model == name and get_method(cfg.method).build is not None:
                check_rank(model, cfg.rank)


def rate_factor(step: int, cfg: RunConfig) -> float:
    """The share of ``cfg.lr`` at optimiser step ``step`` (from 0): linear warm-up, then a cosine to 0."""
    warm = math.ceil(cfg.warmup * cfg.steps)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, cfg.steps - warm)))


def untouched(cfg: RunConfig, device: torch.device) -> Any:
    """The base model once more, for a method whose ``disable_adapter`` does not give it back; else ``None``."""
    return load_model(cfg.model)[0].to(device) if get_method(cfg.method).writes_base else None


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


def measure(model: Any, tokenizer: Any, task: Task) -> dict[str, float]:
    """Test accuracy, and the validation loss that learning rates are chosen by."""
    return {
        "accuracy": accuracy(answers(model, tokenizer, task, "test")),
        "validation_loss": mean_loss(model, plain_batches(task.validation, tokenizer, model.device)),
    }


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
