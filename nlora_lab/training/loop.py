"""Fine-tuning one run: :func:`fine_tune`, and :func:`train`, the loop that the course prints."""

from __future__ import annotations

from pathlib import Path

from nlora_lab.core.devices import is_out_of_memory, release_memory
from nlora_lab.core.interrupts import Interrupted, StopCheck, never_stop
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import ResolvedRun, resolve
from nlora_lab.runs.run import Run, Step
from nlora_lab.training import measurement
from nlora_lab.training.checkpoints import CHECKPOINT_EVERY, CheckpointFolder
from nlora_lab.training.session import (
    OnStep,
    OnTrained,
    RunState,
    TrainingSession,
    Watch,
    WatchCallback,
    memory_advice,
)
from nlora_lab.training.setup import set_up


def train(session: TrainingSession) -> None:
    """Make the steps of a run, until the last one, a stop, or a loss that is not finite."""
    session.model.train()
    for number, batch in session.numbered_batches():
        loss = session.backward(batch)
        grad_norm = session.clip_gradients()
        step = Step(number, loss.item(), session.config.rate_at(number - 1), grad_norm)
        if not session.record(step):
            break
        session.optimizer.step()
        session.schedule.step()
        session.optimizer.zero_grad()
        if session.should_end(step):
            break


def fine_tune(
    cfg: RunConfig,
    on_step: OnStep | None = None,
    watch: Watch | None = None,
    should_stop: StopCheck = never_stop,
    checkpoints: str | Path | None = None,
    every: int = CHECKPOINT_EVERY,
    on_trained: OnTrained | None = None,
) -> Run:
    """Fine-tune a model and measure the result.

    A run can end in five ways, and all steps made so far are in the returned ``Run`` each time. It reaches its last
    step. It diverges: the loss or a gradient becomes infinite or NaN (``diverged``). It is stopped by ``on_step``,
    ``should_stop`` or an interrupt such as Ctrl-C (``stopped``). It runs out of memory (``error`` says what would
    help). Or another exception ends it after the first step. That exception is raised, and its attribute ``run``
    is the ``Run``.

    Under ``accelerate launch`` every process calls this function and gets the same run.

    Args:
        cfg: what decides the run.
        on_step: called with every ``Step`` after its update. Returning True stops the run.
        watch: called with the number of updates and the model while the gradients exist, for example an
            ``InsideRecorder``.
        should_stop: a function that returns True once the run should stop. It is asked often, also while loading and
            measuring.
        checkpoints: a folder for checkpoints. The same config with the same folder resumes from the newest complete
            checkpoint, as if it had not been interrupted.
        every: the number of steps between two checkpoints. Another one is written when the run is stopped.
        on_trained: called with the run so far, and its model and tokenizer, once it is trained and before it is
            measured. Measuring can take longer than training, so this is the time to save.

    Returns:
        The run: its history, metrics, answers and trained weights.

    Raises:
        InputError: model, task and config do not fit together, or the estimated memory is not available. Nothing has
            been trained then.
    """
    run, state = resolve(cfg), RunState()
    folder = None if checkpoints is None else CheckpointFolder(checkpoints, cfg, every)
    try:
        _train_and_measure(run, state, on_step, watch, should_stop, folder, on_trained)
    except Interrupted:  # before the first step
        state.stopped = True
    except Exception as error:
        if not is_out_of_memory(error):
            if state.steps:
                state.error = f"{type(error).__name__}: {error}"
                error.run = state.to_run(run)  # type: ignore[attr-defined]
            raise
        state.error = memory_advice(cfg, run.device)
    if state.error:
        release_memory()  # only here: the frames that held the model are gone
    return state.to_run(run)


def _train_and_measure(
    run: ResolvedRun,
    state: RunState,
    on_step: OnStep | None,
    watch: Watch | None,
    should_stop: StopCheck,
    folder: CheckpointFolder | None,
    on_trained: OnTrained | None,
) -> None:
    session = set_up(run, state, should_stop, folder)
    session.on_step = on_step
    if watch is not None:
        session.callbacks = (WatchCallback(watch), *session.callbacks)
    try:
        train(session)
    except KeyboardInterrupt:
        state.stopped = True
        session.optimizer.zero_grad()  # the gradients of a step that was not made
    finally:
        session.stop_clock()
    measurement.conclude(session, watch, on_trained)
