"""One run while it is being trained: what it has produced so far, and everything that a step of the loop needs."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from nlora_lab.core.devices import Device, PeakMemory
from nlora_lab.core.interrupts import StopCheck, never_stop
from nlora_lab.methods.parameters import trainable_parameters
from nlora_lab.models.loading import revision_of
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import ResolvedRun
from nlora_lab.runs.run import HeldOut, Run, Step, versions
from nlora_lab.training import distributed
from nlora_lab.training.data import TrainingData
from nlora_lab.training.layer_views import ObservedModel

if TYPE_CHECKING:
    from accelerate import Accelerator


OnStep = Callable[[Step], bool | None]
"""Called after every step. Returning True ends the run and keeps what was trained."""

Watch = Callable[[int, ObservedModel], None]
"""Called with the number of updates made so far and the model at that moment.

Once per step, while the gradients exist (they are not finite where the run diverges), and once after the last step
of a run that did not diverge. Then ``ended`` of the model is set.
"""


OnTrained = Callable[[Run, tuple[Any, Any] | None], None]
"""Called when a run is trained and not measured yet.

With the run so far, which counts as stopped, and its model and tokenizer. These are ``None`` where they do not exist as
the adapter is saved: in a race that shares a base model, and where several processes share the weights.
"""


@dataclass
class RunState:
    """What a run has produced so far. Its fields are those of ``Run``."""

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
    held_out: tuple[HeldOut, ...] = ()
    labels: tuple[str, ...] = ()
    weights: dict[str, torch.Tensor] | None = None

    def add(self, step: Step) -> bool:
        """Add a step. Return whether training can continue, which takes a finite loss and gradient."""
        self.steps.append(step)
        self.diverged = not (math.isfinite(step.loss) and math.isfinite(step.grad_norm))
        return not self.diverged

    def describe(self, model: Any, data: TrainingData) -> None:
        """Note what is known before the first step: trainable numbers, commit, classes, examples that were cut."""
        self.trainable, self.revision = trainable_parameters(model), revision_of(model)
        self.labels = data.task.labels if data.task.kind == "classes" else ()
        if data.training.cut:
            self.metrics["cut"] = data.training.cut

    def continue_from(self, run: Run) -> None:
        """Take over the steps and the time of a run that a checkpoint holds."""
        self.steps, self.seconds, self.held_out = list(run.steps), run.seconds, run.held_out

    def to_run(self, run: ResolvedRun) -> Run:
        """Return the record of the run as it is now."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Run(run.config, **{**values, "steps": tuple(self.steps)}, device=run.device.words, versions=versions())

    def unmeasured(self, run: ResolvedRun) -> Run:
        """Return the record of a run that is trained and not measured yet. It counts as stopped, not as finished."""
        return replace(self.to_run(run), stopped=True)


class Callback(Protocol):
    """Something that happens beside the loop: watching the model, or writing checkpoints."""

    def on_gradients(self, session: TrainingSession, updates: int) -> None:
        """Called while the gradients of the next update exist, ``updates`` updates having been made."""

    def on_update(self, session: TrainingSession, step: Step, ends: bool) -> None:
        """Called after the update of ``step``. ``ends``: no further step will be made."""


@dataclass
class TrainingSession:
    """A run that is ready to train, made by ``setup.set_up``.

    Attributes:
        run: the resolved run.
        state: what the run has produced so far.
        accelerator: places the model and the batches on their device, over one process or several.
        model: the model with its adapter, prepared by the accelerator.
        optimizer: AdamW over the trained parameters, prepared.
        schedule: the learning rate of each step, see ``RunConfig.rate_factor``.
        batches: the batches of the steps that are still to be made.
        data: the rows of the run as the model takes them.
        observed: the model as callbacks see it.
        memory: the peak of memory so far.
        on_step: the caller's function, asked after every step.
        should_stop: asked after every step too.
        callbacks: called around every update.
    """

    run: ResolvedRun
    state: RunState
    accelerator: Accelerator
    model: Any
    optimizer: Any
    schedule: Any
    batches: Any
    data: TrainingData
    observed: ObservedModel
    memory: PeakMemory
    on_step: OnStep | None = None
    should_stop: StopCheck = never_stop
    callbacks: tuple[Callback, ...] = ()

    def __post_init__(self) -> None:
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._compiled = torch.compile(self.model, dynamic=True) if self.config.compile else self.model
        self._parts = distributed.parts_of(self.config, self.accelerator)
        self._started = time.perf_counter() - self.state.seconds
        self._looked_for_gradients = False

    @property
    def config(self) -> RunConfig:
        """The config of the run."""
        return self.run.config

    def numbered_batches(self) -> Iterator[tuple[int, Any]]:
        """The batches that are left, each with the number of its step, from 1."""
        return enumerate(self.batches, start=len(self.state.steps) + 1)

    def backward(self, batch: Any) -> torch.Tensor:
        """Run the model forward and backward. Return the mean loss over the targets of ``batch``, a scalar tensor."""
        loss = distributed.backward(self.accelerator, self._compiled, batch, self._parts)
        if not self._looked_for_gradients:
            self._looked_for_gradients = True
            warn_of_missing_gradients(self.model)
        self.memory.look()
        return loss

    def clip_gradients(self) -> float:
        """Clip the gradients to ``clip_norm``, if the config sets it. Return the norm they had before."""
        return distributed.clip(self.accelerator, self._trained, self.config.clip_norm)

    def record(self, step: Step) -> bool:
        """Add ``step`` to the history and show the gradients to the callbacks. Return whether all is finite."""
        is_finite = self.state.add(step)
        for callback in self.callbacks:
            callback.on_gradients(self, step.step - 1)
        return is_finite

    def should_end(self, step: Step) -> bool:
        """Ask after the update of ``step`` whether the run ends here, in all processes alike."""
        requested = (self.on_step is not None and bool(self.on_step(step))) or self.should_stop()
        ends = distributed.any_process(self.accelerator, requested)
        self.stop_clock()
        for callback in self.callbacks:
            callback.on_update(self, step, ends)
        self.state.stopped = ends and step.step < self.config.steps
        return ends

    @contextmanager
    def clock_paused(self) -> Iterator[None]:
        """Leave what happens inside out of the time of the run."""
        paused = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - paused

    def stop_clock(self) -> None:
        """Write the time and the memory that training has taken so far into the state."""
        self.state.seconds, self.state.peak_memory = time.perf_counter() - self._started, self.memory.bytes


def warn_of_missing_gradients(model: Any) -> None:
    """Name the trained parameters that the first backward pass has not reached. They do not train.

    Args:
        model: the model, after a backward pass.
    """
    parameters = dict(model.named_parameters())
    missing = [name for name, p in parameters.items() if p.requires_grad and p.grad is None]
    if not all(p.requires_grad for p in parameters.values()):  # full fine-tuning chooses no layers
        warn_of_untrained(missing)


def warn_of_untrained(missing: Sequence[str]) -> None:
    """Warn of trained parameters that the first backward pass has not reached.

    Args:
        missing: their names.
    """
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        warnings.warn(
            f"{len(missing)} trained parameters got no gradient in the first step and may never train: {names}; "
            "leave their layers out of target_modules",
            stacklevel=2,
        )


@dataclass(frozen=True)
class WatchCallback:
    """Shows the model to a ``watch`` function while the gradients exist."""

    watch: Watch

    def on_gradients(self, session: TrainingSession, updates: int) -> None:
        """Call the function."""
        self.watch(updates, session.observed)

    def on_update(self, session: TrainingSession, step: Step, ends: bool) -> None:
        """Do nothing: the end is shown once the run is over."""


def memory_advice(cfg: RunConfig, device: Device, together: int = 1) -> str:
    """Say in one sentence that memory ran out, and what would help.

    Args:
        cfg: the config of the run.
        device: its device.
        together: how many runs trained in the same loop.

    Returns:
        The sentence, without a full stop.
    """
    remedies = []
    if together > 1:
        remedies.append("fewer at once, together=False (--one-by-one)")
    parts = cfg.accumulation * 2
    if cfg.batch_size % parts == 0:  # the same step, in smaller parts
        remedies.append(f"accumulation={parts}")
    if not cfg.checkpointing:
        remedies.append("checkpointing=True")
    remedies.append(f"batch_size={max(1, cfg.batch_size // 2)}" if cfg.batch_size > 1 else "a smaller model")
    runs = f" with {together} runs at once" if together > 1 else ""
    return f"out of memory on {device.words}{runs}: try {', '.join(remedies)}, a smaller rank, or device='cpu'"
