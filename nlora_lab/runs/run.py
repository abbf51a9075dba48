"""A run and its record, as an object and as one JSON file."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nlora_lab.core.devices import processor
from nlora_lab.core.documents import parse_json, read_text
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import package_version, write_atomically
from nlora_lab.models.names import EMBEDDED
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.record import (
    FIELDS,
    FORMAT,
    HELD_OUT,
    LABELS,
    LATER_FIELDS,
    check_record,
    number_or_nan,
    number_or_null,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

LAST_STEPS = 20  # that `final_loss` averages over
KEPT_ANSWERS = 3  # test items whose answers a record keeps
ALWAYS_MEASURED = ("accuracy", "validation_loss", "step0_change", "distance")
STEP0_NOISE = 1e-4  # a smaller step0_change is rounding (PiSSA, DoRA) or a tiny random N (LoRA-XS)


class Step(NamedTuple):
    """One optimiser step.

    Attributes:
        step: its number, from 1.
        loss: the training loss before the step, in nats per target token.
        lr: its learning rate.
        grad_norm: the norm of its gradient.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float


@dataclass(frozen=True)
class HeldOut:
    """What a model on its way did on validation rows, which it does not train on.

    Attributes:
        step: the number of updates made before.
        loss: the mean negative log-likelihood of the target tokens, in nats per token.
        exact: the share of rows, 0 to 1, in which the model gives its highest probability to every token of the target.
            Greedy decoding writes exactly those targets. NaN for a task that is answered by a score.
    """

    step: int
    loss: float
    exact: float


@dataclass(frozen=True)
class Run:
    """A run that is finished, or was stopped, diverged or failed.

    Attributes:
        config: the config that decided it.
        steps: its optimiser steps.
        metrics: ``accuracy`` on the test rows (0 to 1), ``validation_loss`` and ``test_loss`` (the negative
            log-likelihood of the targets of these rows, in nats per target token), ``step0_change``
            (the root mean square change of the logits by the adapter before any training, over that of the logits) and
            ``distance`` (‖change of W‖ / ‖W‖ over all adapted layers at the end). A run that diverged or was stopped
            has no accuracy.
        trainable: how many numbers train.
        seconds: the time of training alone, without loading and evaluation.
        peak_memory: bytes, see ``nlora_lab.core.devices.PeakMemory``.
        diverged: whether the loss became NaN or infinite.
        stopped: whether somebody stopped it.
        device: the device, in words.
        versions: the versions of Python and of the libraries that compute.
        answers: what the tuned model answered to the first test items.
        together: how many adapters trained in the same loop. Above 1, ``seconds`` is this run's equal share of the
            time, and ``peak_memory`` is that of all of them.
        error: what ended a run that failed, such as a lack of memory.
        revision: the commit at which a model from the hub was loaded.
        held_out: the measurements on the way, in the order of the steps, where ``RunConfig.measure_every`` asks for
            them. The first runs were not measured on the way.
        labels: the names of the classes in the order of the outputs of the trained head. Empty without such a head.
        weights: the trained tensors on the CPU, by their names in the model that ``nlora_lab.training.setup.build``
            makes. They are not part of the record.
    """

    config: RunConfig
    steps: tuple[Step, ...] = field(repr=False)
    metrics: dict[str, float]
    trainable: int
    seconds: float
    peak_memory: int
    diverged: bool = False
    stopped: bool = False
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict, repr=False)
    answers: tuple[str, ...] = field(default=(), repr=False)
    together: int = 1
    error: str = ""
    revision: str = ""
    held_out: tuple[HeldOut, ...] = field(default=(), repr=False)
    labels: tuple[str, ...] = field(default=(), repr=False)
    weights: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def history(self) -> pd.DataFrame:
        """A frame with one row per step: step, loss, lr, grad_norm."""
        import pandas as pd

        return pd.DataFrame(self.steps, columns=Step._fields)

    @property
    def final_loss(self) -> float:
        """The mean training loss of the last 20 steps, in nats per target token. NaN if the run diverged or failed."""
        if self.diverged or self.error or not self.steps:
            return math.nan
        tail = [s.loss for s in self.steps[-LAST_STEPS:]]
        return math.fsum(tail) / len(tail)  # `sum` adds in another way from Python 3.12 on

    @property
    def accuracy(self) -> float:
        """The test accuracy, 0 to 1, or NaN if it was not measured."""
        return self.metrics.get("accuracy", math.nan)

    def steps_until(self, share: float) -> float:
        """Return after how many steps a share of the validation rows was right (``HeldOut.exact``), for the first time.

        Args:
            share: the share, 0 to 1.

        Returns:
            The number of steps, on a straight line between the two measurements around it. Infinite if the run never
            came there. NaN if it was not measured on the way.
        """
        before = HeldOut(0, math.nan, 0.0)
        for now in self.held_out:
            if now.exact >= share:
                return before.step + (now.step - before.step) * (share - before.exact) / (now.exact - before.exact)
            before = now
        return math.inf if self.held_out else math.nan

    @property
    def ended(self) -> str:
        """How the run ended early: "diverged", "stopped" or "failed". Empty for a finished run."""
        return "failed" if self.error else "diverged" if self.diverged else "stopped" if self.stopped else ""

    def summary(self) -> dict[str, Any]:
        """Return the row of a results table, with ``None`` for a missing number."""
        return {
            "method": self.config.method,
            "rank": self.config.rank,
            "init": self.config.init,
            "lr": self.config.lr,
            "seed": self.config.seed,
            "steps": len(self.steps),
            "trainable": self.trainable,
            "final_loss": number_or_null(self.final_loss),
            "accuracy": number_or_null(self.accuracy),
            "validation_loss": number_or_null(self.metrics.get("validation_loss", math.nan)),
            "step0_change": number_or_null(self.metrics.get("step0_change", math.nan)),
            "seconds": round(self.seconds, 2),
            "peak_memory": self.peak_memory,
            "diverged": self.diverged,
            "stopped": self.stopped,
            "together": self.together,
            "error": self.error,
            # those of single tasks and models
            **{k: number_or_null(v) for k, v in self.metrics.items() if k not in ALWAYS_MEASURED},
            **({"revision": self.revision} if self.revision else {}),
        }

    def to_json(self, digits: int | None = None) -> str:
        """Write the record as JSON: everything but the weights. NaN and infinity, which JSON lacks, become null.

        The history leaves out what follows from the config: the numbers of the steps, and their rates.

        Args:
            digits: round the losses of the history to this many significant digits, and the gradient norms to two
                fewer: they are half of a record, and are drawn, not compared. ``None`` rounds nothing.

        Returns:
            One line, with its line break.
        """
        names = list(Step._fields)
        if [(s.step, s.lr) for s in self.steps] == [(i + 1, self.config.rate_at(i)) for i in range(len(self.steps))]:
            names = ["loss", "grad_norm"]
        fewer = None if digits is None else max(1, digits - 2)
        kept = {name: fewer if name == "grad_norm" else digits for name in names}
        columns = {name: [_rounded(getattr(s, name), kept[name]) for s in self.steps] for name in names}
        record = {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "metrics": {k: number_or_null(v) for k, v in self.metrics.items()},
            "final_loss": number_or_null(self.final_loss),
            **{k: getattr(self, k) for k in (*FIELDS, *LATER_FIELDS)},
            **({LABELS: self.labels} if self.labels else {}),
            **_held_out_columns(self.held_out, digits),
            "history": columns,
        }
        return json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Read a record that ``to_json`` wrote. The model of the run need not be on this machine.

        Args:
            text: the JSON text.

        Returns:
            The run, without weights.

        Raises:
            InputError: the record is damaged, or was written by a newer version.
        """
        try:
            record = parse_json(text)
            check_record(record)
            config = RunConfig(**{**record["config"], "model": EMBEDDED})  # checks everything but the model
            object.__setattr__(config, "model", record["config"]["model"])
            values = {k: record[k] for k in (*FIELDS, *LATER_FIELDS) if k in record}
            values |= {name: tuple(record[name]) for name in ("answers", LABELS) if name in record}
            metrics = {k: number_or_nan(v) for k, v in record["metrics"].items()}
            values["held_out"] = _held_out(record.get(HELD_OUT, {}))
            return cls(config=config, steps=_steps(config, record["history"]), metrics=metrics, **values)
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
            raise InputError(f"not a run record ({type(error).__name__}: {error}); was the file cut short?") from error

    def save(self, path: str | Path) -> Path:
        """Write the record into a file, completely or not at all. Missing folders are made.

        Args:
            path: the file.

        Returns:
            The file.

        Raises:
            InputError: the file cannot be written.
        """
        return write_atomically(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a record that ``save`` wrote.

        Args:
            path: the file.

        Returns:
            The run, without weights.

        Raises:
            InputError: the file cannot be read, or the record is damaged or newer.
        """
        try:
            text = read_text(Path(path))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); give the file of a run") from error
        return cls.from_json(text)


def run_table(runs: Iterable[Run]) -> pd.DataFrame:
    """Make a table of runs.

    Args:
        runs: the runs.

    Returns:
        A frame with one row per run and the columns of ``Run.summary``.
    """
    import pandas as pd

    return pd.DataFrame([run.summary() for run in runs])


@cache
def versions() -> dict[str, str]:
    """Return what a result depends on to the last digit: versions, the processor, and how torch was built for it."""
    import torch

    names = ("torch", "transformers", "peft", "accelerate")
    return {
        "python": platform.python_version(),
        "nlora-lab": package_version(),
        **{name: version(name) for name in names},
        "torch build": f"{torch.__version__}, commit {str(torch.version.git_version)[:9]}",
        "processor": processor(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _steps(config: RunConfig, columns: dict[str, list[Any]]) -> tuple[Step, ...]:
    """Read the rows of the history. What a record leaves out is computed again from its config."""
    count = len(columns["loss"])
    step_numbers = columns.get("step", list(range(1, count + 1)))
    rates = columns.get("lr", [config.rate_at(i) for i in range(count)])
    values = (map(number_or_nan, column) for column in (columns["loss"], rates, columns["grad_norm"]))
    return tuple(Step(*row) for row in zip(step_numbers, *values, strict=True))


def _held_out_columns(measured: Iterable[HeldOut], digits: int | None) -> dict[str, dict[str, list[float | None]]]:
    rows = list(measured)
    names = [f.name for f in fields(HeldOut)]
    return {HELD_OUT: {name: [_rounded(getattr(row, name), digits) for row in rows] for name in names}} if rows else {}


def _held_out(columns: dict[str, list[Any]]) -> tuple[HeldOut, ...]:
    if not columns:
        return ()
    values = (map(number_or_nan, columns[name]) for name in ("loss", "exact"))
    return tuple(HeldOut(*row) for row in zip(columns["step"], *values, strict=True))


def _rounded(value: float, digits: int | None) -> float | None:
    if not math.isfinite(value):
        return None
    return value if digits is None or isinstance(value, int) else float(f"{value:.{digits}g}")
