"""What decides a run: one frozen object, checked when it is made."""

from __future__ import annotations



import math
import numbers
import shlex
from dataclasses import dataclass, fields
from typing import Any

from nlora_lab.core.devices import DEVICES
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS, check_init, get_method
from nlora_lab.models.loading import ATTENTIONS
from nlora_lab.models.names import EMBEDDED, check_model
from nlora_lab.tasks.generated import DEFAULT_DIFFICULTY
from nlora_lab.tasks.registry import check_task

PRECISIONS = ("float32", "bf16")
BATCHINGS = ("shuffled", "length", "packed")
SHARED_RATE = 2e-4
"""The NLoRA paper's learning rate, which it uses for every method; here the default of all of them."""
ALWAYS_SAID = ("method", "rank", "lr", "steps", "task", "seed")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run; the same config gives the same run on the same machine.

    ``alpha=None`` means alpha = rank, a scale of 1. ``init`` is the initialisation of N, for methods
    that have a choice. ``clip_norm=None`` leaves gradients alone, so that the effect of the learning
    rate stays visible. ``warmup`` is the share of steps over which the rate rises; a cosine to zero
    follows. ``batch_size`` is that of one optimiser step, whatever it is divided into. Every bad value raises
    :class:`InputError` with what is allowed.

    For real models and data, with defaults that suit the embedded ones:

    Args:
        data: where the rows of ``task`` are (a folder, a JSONL, JSON, CSV or Parquet file, or a hub id);
            ``None`` is the task's own place.
        columns: the two columns of such data, as "question,answer"; ``None`` finds the usual names.
        train_rows: use the first so many rows for training; ``None`` is all.
        test_rows: measure on the first so many test rows; ``None`` is all.
        revision: branch, tag or commit of ``model`` on the hub; the record names the commit it turned out to be.
        precision: "float32", or "bf16": frozen weights in bfloat16, what is trained in float32, under autocast.
            ``None`` is what the device does best with the model as it is kept (:func:`nlora_lab.core.devices.find_device`).
        attention: transformers' name of the implementation; ``None`` is its choice for the device.
        accumulation: make each step of so many smaller batches, one after the other: less memory, the same step. Over
            several processes, of so many in all.
        checkpointing: keep no activations inside the layers but compute them again for the backward pass: less
            memory, about a third more time.
        compile: ``torch.compile`` the model for training.
        batching: "shuffled"; "length" (batches of similar length); "packed" (examples one behind the other up to
            ``max_length``, each seeing only itself; a batch is then ``batch_size`` such rows).
        max_length: tokens; longer examples are cut, and the record says how many were. ``None`` cuts nothing,
            and is the model's own limit where there is one.
        target_modules: names of layers with commas, as PEFT matches them; ``None`` is every linear layer but the head.
    """

    method: str = "lora"
    rank: int = 8
    alpha: float | None = None
    lr: float = SHARED_RATE
    init: str | None = None
    steps: int = 250
    batch_size: int = 16
    task: str = "word-problems"
    model: str = EMBEDDED
    seed: int = 0
    device: str | None = None
    difficulty: str | None = None
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip_norm: float | None = None
    dropout: float = 0.0
    data: str | None = None
    columns: str | None = None
    train_rows: int | None = None
    test_rows: int | None = None
    revision: str | None = None
    precision: str | None = None
    attention: str | None = None
    accumulation: int = 1
    checkpointing: bool = False
    compile: bool = False
    batching: str = "shuffled"
    max_length: int | None = None
    target_modules: str | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _plain(getattr(self, f.name)))
        check_init(get_method(self.method), self.init)
        check_task(self.task, self.difficulty)
        for name in ("rank", "steps", "batch_size", "accumulation"):
            _whole(name, getattr(self, name), least=1)
        _whole("seed", self.seed, least=0, most=2**62)
        _number("lr", self.lr, above=0.0, remedy="try 2e-4")
        for name in ("alpha", "clip_norm"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), above=0.0, remedy="or leave it out")
        _number("weight_decay", self.weight_decay, least=0.0)
        for name in ("warmup", "dropout"):
            _number(name, getattr(self, name), least=0.0, below=1.0)
        if self.device is not None:
            check_choice("device", self.device, DEVICES)
        if not isinstance(self.model, str):
            raise InputError(f"model={self.model!r} must be text: 'embedded', a folder, or a hub id")
        check_model(self.model)
        if self.method == "full" and self.dropout:
            raise InputError(f"dropout={self.dropout!r}: full has no adapter to drop the input of; leave it out")
        self._check_scale()

    def _check_scale(self) -> None:
        """The fields for real models and data."""
        for name in ("data", "columns", "revision", "target_modules"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise InputError(f"{name}={value!r} must be text; leave it out for the default")
        if self.columns is not None and len([c for c in self.columns.split(",") if c.strip()]) != 2:
            raise InputError(f"columns={self.columns!r} must name two columns with a comma: 'question,answer'")
        for name, allowed in (("precision", PRECISIONS), ("attention", ATTENTIONS)):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), allowed)
        check_choice("batching", self.batching, BATCHINGS)
        for name in ("checkpointing", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}={getattr(self, name)!r} must be True or False")
        for name, least in (("train_rows", 1), ("test_rows", 1), ("max_length", 2)):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least=least)
        if self.batch_size % self.accumulation:
            raise InputError(
                f"accumulation={self.accumulation} does not divide batch_size={self.batch_size}; "
                f"choose one that does, such as {_divisor_below(self.batch_size, self.accumulation)}"
            )
        if self.batching == "packed" and self.max_length is None:
            raise InputError("batching='packed' needs max_length, the tokens of a packed row; try max_length=1024")
        if self.batching == "packed" and self.attention == "flash_attention_2" and self.batch_size != self.accumulation:
            # transformers tells packed examples apart for it only where one row goes through at a time
            raise InputError(
                f"batching='packed' with flash_attention_2 takes one row at a time: accumulation={self.batch_size}, "
                "or attention='sdpa'"
            )

    @property
    def label(self) -> str:
        """The method's name in figures, with the init where it is not the default."""
        method = METHODS[self.method]
        return f"{method.label}, N {self.init}" if self.init not in (None, *method.inits[:1]) else method.label

    @property
    def command(self) -> str:
        """The command line that makes this run."""
        words = ["nlora-lab", "run"]
        for f in fields(self):
            value, option = getattr(self, f.name), f"--{f.name.replace('_', '-')}"
            if value is None or (value == f.default and f.name not in ALWAYS_SAID):
                continue
            if value is True:
                words.append(option)
            else:
                words += [option, _short(value) if isinstance(value, float) else str(value)]
        return shlex.join(words)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; of those that came later only what differs from its default."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ADDED_FIELDS or getattr(self, f.name) != f.default
        }

    def identity(self) -> dict[str, Any]:
        """What is asked for, wherever it runs: equal for 1 and 1.0, and for a default left out or spelt out."""
        found = {name: value for name, value in self.to_dict().items() if name != "device"}
        found |= {name: float(found[name]) + 0.0 for name in _FLOATS if found[name] is not None}  # -0.0 becomes 0.0
        inits = METHODS[self.method].inits if self.method in METHODS else ()
        defaults = {"alpha": self.rank, "init": inits[0] if inits else None, "difficulty": DEFAULT_DIFFICULTY}
        return {name: None if name in defaults and value == defaults[name] else value for name, value in found.items()}

    def rate_factor(self, step: int) -> float:
        """The share of ``lr`` at optimiser step ``step`` (from 0): linear warm-up, then a cosine to 0."""
        warm = math.ceil(self.warmup * self.steps)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def rate_at(self, step: int) -> float:
        """The learning rate of optimiser step ``step`` (from 0)."""
        return self.lr * self.rate_factor(step)


_NAMES = [f.name for f in fields(RunConfig)]
_FLOATS = [f.name for f in fields(RunConfig) if "float" in str(f.type)]
ADDED_FIELDS = tuple(_NAMES[_NAMES.index("data") :])
"""Fields that the first records lack: where one has its default, it is as if it were not there."""


def _short(value: float) -> str:
    """A number as short as it can be said without becoming another one."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _divisor_below(number: int, limit: int) -> int:
    return next(d for d in range(min(limit, number), 0, -1) if number % d == 0)


def _plain(value: Any) -> Any:
    """A number of numpy's, as a grid of ``np.arange`` holds, becomes Python's, which JSON knows; the rest as it is."""
    if type(value).__name__ in ("bool", "bool_"):  # numpy calls its own either
        return bool(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, int):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational):
        return float(value)
    return value


def _whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and least <= value
    if not good or (most is not None and value > most):
        end = "" if most is None else f" and at most {most}"
        raise InputError(f"{name}={value!r} must be a whole number of at least {least}{end}")


def _number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    remedy: str = "",
) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    bounds = []
    if above is not None:
        good = good and value > above
        bounds.append(f"above {above:g}")
    if least is not None:
        good = good and value >= least
        bounds.append(f"at least {least:g}")
    if below is not None:
        good = good and value < below
        bounds.append(f"below {below:g}")
    if not good:
        raise InputError(f"{name}={value!r} must be a number {' and '.join(bounds)}{'; ' + remedy if remedy else ''}")
