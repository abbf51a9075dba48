"""The configuration that decides a run: one frozen object, checked when it is made."""

from __future__ import annotations

import numbers
import shlex
from dataclasses import dataclass, fields
from typing import Any

from nlora_lab.core.devices import DEVICES
from nlora_lab.core.errors import InputError
from nlora_lab.core.formatting import format_rate
from nlora_lab.core.validation import check_choice, check_number, check_text, check_whole_number
from nlora_lab.methods.table import METHODS, check_init, get_method
from nlora_lab.models.names import ATTENTIONS, EMBEDDED, SHIPPED, check_model
from nlora_lab.runs.schedule import rate_factor
from nlora_lab.tasks.generated import DEFAULT_DIFFICULTY
from nlora_lab.tasks.registry import check_task

PRECISIONS = ("float32", "bf16")
BATCHINGS = ("shuffled", "length", "packed")
SHARED_RATE = 2e-4
"""The learning rate of the NLoRA paper, which uses it for every method. The default of all methods here."""
MOST = 10**9  # steps, rows, tokens and ranks: more are a slip of the finger
NOT_IDENTITY = ("device", "measure_every")  # they do not change what is asked for
NAMED_IN_COMMANDS = ("method", "rank", "lr", "steps", "task", "seed")  # also where they have their defaults


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. The same config gives the same run on the same machine.

    Numbers of numpy become Python's. The fields from ``data`` on are for models and data of your own. Their defaults
    suit the embedded ones.

    Attributes:
        method: a name in ``METHODS``.
        rank: the rank of the adapter.
        alpha: the numerator of its scale. ``None`` means alpha = rank, a scale of 1.
        lr: the learning rate after the warm-up.
        init: the initialisation of N, for methods that have a choice. ``None`` means the method's first one.
        steps: the number of optimiser steps.
        batch_size: the examples of one optimiser step, also where it is divided into micro-batches.
        task: the name of the task.
        model: "embedded", "larger", a folder, or a hub id.
        seed: the seed of the adapter, of a new head, of the order of examples and of dropout.
        device: "cpu", "cuda" or "mps". ``None`` means the best one here.
        difficulty: "easy", "medium" or "hard", for generated tasks. ``None`` means "medium".
        warmup: the share of the steps over which the rate rises, from 0 to below 1. A cosine to zero follows.
        weight_decay: the weight decay of AdamW.
        clip_norm: the norm to which gradients are clipped. ``None`` leaves them alone, so that the effect of the
            learning rate stays visible.
        dropout: the dropout on the input of the adapter, from 0 to below 1.
        data: where the rows of ``task`` are: a folder, a JSONL, JSON, CSV or Parquet file, or a hub id. ``None`` means
            the task's own place.
        columns: the two columns of such data, as "question,answer". ``None`` finds the usual names.
        train_rows: use the first N rows for training. ``None`` means all.
        test_rows: measure on the first N test rows. ``None`` means all.
        revision: the branch, tag or commit of ``model`` on the hub. The record names the commit that was loaded.
        precision: "float32", or "bf16": frozen weights in bfloat16, what trains in float32, under autocast. ``None``
            means what the device does best with this model.
        attention: transformers' name of the implementation. ``None`` means its choice for the device.
        accumulation: the number of micro-batches per optimiser step. More need less memory, and the step is the same.
            With several processes, this counts the micro-batches of all of them together.
        checkpointing: keep no activations inside the layers, and compute them again in the backward pass. This needs
            less memory and about a third more time.
        compile: compile the model with ``torch.compile`` for training.
        batching: "shuffled", "length" (batches of similar length) or "packed" (examples one after the other up to
            ``max_length``, each of which sees only itself). A packed batch is ``batch_size`` such rows.
        max_length: the longest example in tokens. Longer ones are cut, and the record says how many. ``None`` means the
            limit of the model, if it has one.
        target_modules: names of layers separated by commas, as PEFT matches them. ``None`` means every linear layer
            except the head.
        replicate: 0, or the number of a repetition that starts one rounding step away: every trained number is moved to
            its next float, up or down at random. The spread over replicates is what rounding alone does to a run.
        measure_every: the number of steps between two measurements on validation rows while the run trains (see
            ``Run.held_out``). ``None`` measures only at the end. Training is the same with and without.
        lr_ratio: the learning rate of the factors B as a multiple of ``lr``, which all other trained numbers have
            (LoRA+, Hayou et al. 2024, arXiv:2402.12354: λ = η_B / η_A).

    Raises:
        InputError: a value is not allowed, or two values do not go together.
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
    replicate: int = 0
    measure_every: int | None = None
    lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if type(value) not in _PLAIN:
                object.__setattr__(self, name, _python_value(name, value))
        check_init(get_method(self.method), self.init)
        check_task(self.task, self.difficulty)
        for name in ("rank", "steps", "batch_size", "accumulation"):
            check_whole_number(name, getattr(self, name), high=MOST)
        for name in ("seed", "replicate"):
            check_whole_number(name, getattr(self, name), low=0, high=2**62)
        check_number("lr", self.lr, above=0.0, remedy=f"try {format_rate(SHARED_RATE)}")
        check_number("lr_ratio", self.lr_ratio, above=0.0, remedy="try 16, or leave it out")
        if self.lr_ratio != 1 and "B" not in METHODS[self.method].trains.split(", "):
            raise InputError(f"lr_ratio={self.lr_ratio:g} is for factors B, which {self.method!r} lacks; leave it out")
        for name in ("alpha", "clip_norm"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0.0, remedy="or leave it out")
        check_number("weight_decay", self.weight_decay, low=0.0)
        for name in ("warmup", "dropout"):
            check_number(name, getattr(self, name), low=0.0, below=1.0)
        if self.device is not None:
            check_choice("device", self.device, DEVICES)
        if check_text("model", self.model, f"give {EMBEDDED!r}, a folder, or a hub id") not in SHIPPED:
            check_model(self.model)
        if get_method(self.method).build is None and self.dropout:
            raise InputError(f"dropout={self.dropout!r}: full fine-tuning has no adapter to apply it to; leave it out")
        self._check_data_and_scale()

    def _check_data_and_scale(self) -> None:
        """Check the fields for models and data of your own."""
        for name in ("data", "columns", "revision", "target_modules"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name), "leave it out for the default")
        if self.columns is not None and len([c for c in self.columns.split(",") if c.strip()]) != 2:
            raise InputError(f"columns={self.columns!r} must name two columns with a comma: 'question,answer'")
        if self.target_modules is not None and not self.target_modules.strip(" ,"):
            raise InputError(
                f"target_modules={self.target_modules!r} names no layer; name some, such as 'q_proj,v_proj'"
            )
        for name, allowed in (("precision", PRECISIONS), ("attention", ATTENTIONS)):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), allowed)
        check_choice("batching", self.batching, BATCHINGS)
        for name in ("checkpointing", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}={getattr(self, name)!r} must be True or False")
        for name, low in (("train_rows", 1), ("test_rows", 1), ("max_length", 2), ("measure_every", 1)):
            if getattr(self, name) is not None:
                check_whole_number(name, getattr(self, name), low=low, high=MOST)
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
                f"batching='packed' with flash_attention_2 takes one row at a time; set accumulation={self.batch_size} "
                "or attention='sdpa'"
            )

    @property
    def label(self) -> str:
        """The name of the method in figures, with the init where it is not the default."""
        method = METHODS[self.method]
        return f"{method.label}, N {self.init}" if self.init not in (None, *method.inits[:1]) else method.label

    @property
    def command(self) -> str:
        """The command line that makes this run."""
        words = ["nlora-lab", "run"]
        for f in fields(self):
            value, option = getattr(self, f.name), f"--{f.name.replace('_', '-')}"
            if value is None or (value == f.default and f.name not in NAMED_IN_COMMANDS):
                continue
            if value is True:
                words.append(option)
            else:
                words += [option, _shortest(value) if isinstance(value, float) else str(value)]
        return shlex.join(words)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as a record keeps them.

        Returns:
            Every field up to ``dropout``. Of the later ones, those that differ from their default.
        """
        values = vars(self)
        return {name: values[name] for name in _NAMES if name not in _DEFAULTS or values[name] != _DEFAULTS[name]}

    def identity(self) -> dict[str, Any]:
        """Return what is asked for, on whatever device it runs, and however often it is measured on the way.

        Returns:
            The fields without the device and ``measure_every``. They are equal for 1 and 1.0, and for a default that is
            left out or given.
        """
        values = {name: value for name, value in self.to_dict().items() if name not in NOT_IDENTITY}
        # adding 0.0 turns -0.0 into 0.0
        values |= {name: float(values[name]) + 0.0 for name in _FLOATS if values.get(name) is not None}
        inits = METHODS[self.method].inits if self.method in METHODS else ()
        defaults = {"alpha": self.rank, "init": inits[0] if inits else None, "difficulty": DEFAULT_DIFFICULTY}
        return {name: None if name in defaults and value == defaults[name] else value for name, value in values.items()}

    def rate_factor(self, step: int) -> float:
        """Return the share of ``lr`` at an optimiser step: a linear warm-up, then a cosine to 0.

        Args:
            step: the number of the step, from 0.

        Returns:
            The share, from 0 to 1.
        """
        return rate_factor(step, self.steps, self.warmup)

    def rate_at(self, step: int) -> float:
        """Return the learning rate at an optimiser step.

        Args:
            step: the number of the step, from 0.

        Returns:
            The rate.
        """
        return self.lr * self.rate_factor(step)


_NAMES = [f.name for f in fields(RunConfig)]
_FLOATS = [f.name for f in fields(RunConfig) if "float" in str(f.type)]
ADDED_FIELDS = tuple(_NAMES[_NAMES.index("data") :])
"""The fields that the first records lack. A record leaves out each of them that has its default."""
_DEFAULTS = {f.name: f.default for f in fields(RunConfig) if f.name in ADDED_FIELDS}
_PLAIN = (int, float, str, bool, type(None))


def _python_value(name: str, value: Any) -> Any:
    """Return a number of numpy as Python's, which JSON knows. Refuse other kinds of numbers, such as fractions."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    if isinstance(value, numbers.Number) and not isinstance(value, int | float):
        raise InputError(f"{name}={value!r} must be a number of Python or numpy; convert it with int() or float()")
    return value


def _shortest(value: float) -> str:
    """Print a number as short as possible without changing it."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _divisor_below(number: int, limit: int) -> int:
    return next(d for d in range(min(limit, number), 0, -1) if number % d == 0)
