"""What a run leaves behind: its record, as an object and as one JSON file."""

from __future__ import annotations



import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.runs.config import RunConfig
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import write_atomically
from nlora_lab.models.names import EMBEDDED

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

FORMAT = 2  # of the JSON record; raised whenever a field changes its meaning (2: the history may leave out step and lr)
LAST = 20  # steps that `final_loss` averages over
KEPT_ANSWERS = 3  # test items whose answers a record keeps
ALWAYS_MEASURED = ("accuracy", "validation_loss", "step0_change", "distance")
STEP0_NOISE = 1e-4  # a smaller step0_change is rounding (PiSSA, DoRA) or a tiny random N (LoRA-XS)


@dataclass(frozen=True)
class Step:
    """One optimiser step: its number from 1, the loss before it, its rate, its gradient's norm."""

    step: int
    loss: float
    lr: float
    grad_norm: float


@dataclass(frozen=True)
class Run:
    """A finished, stopped, diverged or failed run.

    ``metrics``: ``accuracy`` (test, 0 to 1), ``validation_loss`` (nats a target token), ``step0_change`` (the
    root mean square change of the logits by the adapter before any training, over that of the logits) and
    ``distance`` (‖change of W‖ / ‖W‖ over all adapted layers at the end). A run that diverged or was
    stopped has no accuracy.

    ``answers`` is what the tuned model said to the first few test items. ``together``: how many adapters trained
    in the same loop; where it is above 1, ``seconds`` is this one's equal share of the time, and ``peak_memory``
    that of all of them. ``error`` says what ended a run that failed (out of memory). ``revision``: the commit at
    which a model from the hub was loaded. ``weights`` are the trained numbers by their names in the model that
    :func:`nlora_lab.training.setup.build` makes, on the CPU; they
    are not part of the record.
    """

    config: RunConfig
    steps: tuple[Step, ...] = field(repr=False)
    metrics: dict[str, float]
    trainable: int
    seconds: float  # of training alone, without loading and evaluation
    peak_memory: int  # bytes, see devices.PeakMemory
    diverged: bool = False
    stopped: bool = False
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict, repr=False)
    answers: tuple[str, ...] = field(default=(), repr=False)
    together: int = 1
    error: str = ""
    revision: str = ""
    weights: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row a step: step, loss, lr, grad_norm."""
        import pandas as pd

        return pd.DataFrame([asdict(s) for s in self.steps], columns=[f.name for f in fields(Step)])

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last 20 steps, nats a target token; NaN if the run diverged."""
        if self.diverged or self.error or not self.steps:
            return math.nan
        tail = [s.loss for s in self.steps[-LAST:]]
        return sum(tail) / len(tail)

    @property
    def accuracy(self) -> float:
        """Test accuracy, 0 to 1; NaN if it was not measured."""
        return self.metrics.get("accuracy", math.nan)

    @property
    def ended(self) -> str:
        """``"diverged"``, ``"stopped"`` or ``"failed"``; empty for a run that went to its end."""
        return "failed" if self.error else "diverged" if self.diverged else "stopped" if self.stopped else ""

    def summary(self) -> dict[str, Any]:
        """The row of a results table, with ``None`` where there is no number."""
        return {
            "method": self.config.method,
            "rank": self.config.rank,
            "init": self.config.init,
            "lr": self.config.lr,
            "seed": self.config.seed,
            "steps": len(self.steps),
            "trainable": self.trainable,
            "final_loss": _finite(self.final_loss),
            "accuracy": _finite(self.accuracy),
            "validation_loss": _finite(self.metrics.get("validation_loss", math.nan)),
            "step0_change": _finite(self.metrics.get("step0_change", math.nan)),
            "seconds": round(self.seconds, 2),
            "peak_memory": self.peak_memory,
            "diverged": self.diverged,
            "stopped": self.stopped,
            "together": self.together,
            "error": self.error,
            # what only some tasks and models have
            **{k: _finite(v) for k, v in self.metrics.items() if k not in ALWAYS_MEASURED},
            **({"revision": self.revision} if self.revision else {}),
        }

    def to_json(self, digits: int | None = None) -> str:
        """The whole record but its weights; NaN and infinity, which JSON lacks, become null.

        ``digits``: round the history to that many significant ones. What follows from the config is left
        out of the history: the numbers of the steps, and their rates.
        """
        shown = [f.name for f in fields(Step)]
        if [(s.step, s.lr) for s in self.steps] == [(i + 1, self.config.rate_at(i)) for i in range(len(self.steps))]:
            shown = ["loss", "grad_norm"]
        columns = {name: [_rounded(getattr(s, name), digits) for s in self.steps] for name in shown}
        record = {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "metrics": {k: _finite(v) for k, v in self.metrics.items()},
            "final_loss": _finite(self.final_loss),
            **{k: getattr(self, k) for k in (*_FIELDS, *_LATER_FIELDS)},
            "history": columns,
        }
        return json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Run:
        """The run that :meth:`to_json` wrote; :class:`InputError` if it is damaged or newer."""
        try:
            record = json.loads(text)
            if record["format"] > FORMAT:
                raise InputError(f"the record has format {record['format']}, newer than {FORMAT}; update nlora-lab")
            # the model of a record need not be on this machine: everything else is checked
            config = RunConfig(**{**record["config"], "model": EMBEDDED})
            object.__setattr__(config, "model", _checked("config.model", record["config"]["model"], TEXT))
            later = {k: _checked(k, record[k], kind) for k, kind in _LATER_FIELDS.items() if k in record}
            if "answers" in later:
                later["answers"] = tuple(later["answers"])
            return cls(
                config=config,
                steps=_steps(config, record["history"]),
                metrics={k: _nan(_checked(f"metrics.{k}", v, NUMBER)) for k, v in record["metrics"].items()},
                **{k: _checked(k, record[k], kind) for k, kind in _FIELDS.items()},
                **later,
            )
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
            raise InputError(f"not a run record ({type(error).__name__}: {error}); was the file cut short?") from error

    def save(self, path: str | Path) -> Path:
        """Write the record, whole or not at all; missing folders are made."""
        return write_atomically(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a record that :meth:`save` wrote."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error})") from error
        return cls.from_json(text)


def run_table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row a run, the columns of :meth:`Run.summary`."""
    import pandas as pd

    return pd.DataFrame([run.summary() for run in runs])


def versions() -> dict[str, str]:
    """What a result depends on: Python and the libraries that compute."""
    names = ("nlora-lab", "torch", "transformers", "peft", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    """``None`` stands for NaN; a whole number of any size would not fit into a float."""
    return (
        value is None or isinstance(value, float) or _is_count(value) or (isinstance(value, int) and _is_count(-value))
    )


def _list_of(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(good, value))


Kind = tuple[str, Callable[[Any], bool]]
TEXT: Kind = ("text", _is_text)
TEXTS: Kind = ("a list of texts", _list_of(_is_text))
NAMED: Kind = ("texts by name", lambda value: isinstance(value, dict) and all(map(_is_text, value.values())))
FLAG: Kind = ("true or false", lambda value: isinstance(value, bool))
COUNT: Kind = ("a whole number of at least 0", _is_count)
COUNTS: Kind = ("a list of whole numbers", _list_of(_is_count))
SECONDS: Kind = ("a number of at least 0", lambda value: value is not None and _is_number(value) and value >= 0)
NUMBER: Kind = ("a number or null", _is_number)
NUMBERS: Kind = ("a list of numbers and nulls", _list_of(_is_number))

# of Run, as they stand in a record; the later ones came after the first records had been written
_FIELDS = {
    "trainable": COUNT, "seconds": SECONDS, "peak_memory": COUNT, "diverged": FLAG, "stopped": FLAG, "device": TEXT,
    "versions": NAMED,
}  # fmt: skip
_LATER_FIELDS = {"answers": TEXTS, "together": COUNT, "error": TEXT, "revision": TEXT}


def _checked(name: str, value: Any, kind: Kind) -> Any:
    """``value``, if it is what this field of a record holds: somebody may have edited it by hand."""
    words, good = kind
    if not good(value):
        raise InputError(f"{name}={repr(value)[:80]} in the record must be {words}; mend it, or make the run again")
    return value


def _steps(config: RunConfig, columns: dict[str, list[Any]]) -> tuple[Step, ...]:
    """The history's rows; what a record leaves out is computed again from its config."""
    for name, column in columns.items():
        _checked(f"history.{name}", column, COUNTS if name == "step" else NUMBERS)
    count = len(columns["loss"])
    numbers = columns.get("step", list(range(1, count + 1)))
    rates = columns.get("lr", [config.rate_at(i) for i in range(count)])
    rows = zip(numbers, *(map(_nan, column) for column in (columns["loss"], rates, columns["grad_norm"])), strict=True)
    return tuple(Step(*row) for row in rows)


def _rounded(value: float, digits: int | None) -> float | None:
    if not math.isfinite(value):
        return None
    return value if digits is None or isinstance(value, int) else float(f"{value:.{digits}g}")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
