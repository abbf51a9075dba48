"""From a config to a run that can start: ``resolve`` decides device, dtype, method, layers, task and head, once.

Training, estimates and the command line all take these decisions from here, so that they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from nlora_lab.core.devices import Device, find_device
from nlora_lab.methods.table import Method, get_method
from nlora_lab.models.names import SHIPPED
from nlora_lab.runs.config import RunConfig
from nlora_lab.tasks.glue import GLUE
from nlora_lab.tasks.registry import load_task
from nlora_lab.tasks.task import Task


@dataclass(frozen=True)
class ResolvedRun:
    """A config with everything that follows from it and from this machine. Made by ``resolve``.

    Attributes:
        config: the config itself.
        method: the entry of the methods table.
        device: the device, with the precision of the run on it.
        dtype: "float32" or "bfloat16", the dtype in which the base weights are loaded.
        targets: the layers that get an adapter, as PEFT's ``target_modules`` takes them.
    """

    config: RunConfig
    method: Method
    device: Device
    dtype: str
    targets: str | list[str]

    @cached_property
    def task(self) -> Task:
        """The task, with as many rows as the config asks for. Loaded when it is first needed."""
        c = self.config
        return load_task(
            c.task, c.data, c.difficulty, columns=c.columns, train_rows=c.train_rows, test_rows=c.test_rows
        )

    @cached_property
    def head(self) -> int:
        """The outputs of the classification head: 0 for a language model, 1 for a score, else one per class.

        Known from the name of the task. Only for task "own" the data decide, and are read.
        """
        if self.config.task in GLUE:
            return max(1, len(GLUE[self.config.task].labels))
        return self.task.head if self.config.task == "own" else 0

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the outputs of the head. Empty if no classes are asked for."""
        if self.config.task in GLUE:
            return GLUE[self.config.task].labels
        return self.task.labels if self.config.task == "own" and self.task.kind == "classes" else ()


def resolve(cfg: RunConfig, device: Device | None = None) -> ResolvedRun:
    """Decide all that a run needs beside its config. Nothing is loaded yet.

    Args:
        cfg: the config of the run.
        device: the device to resolve for. Default: the one that ``cfg`` asks for, or the best one here.

    Returns:
        The resolved run.

    Raises:
        InputError: the device is unknown or not available.
    """
    device = run_device(cfg) if device is None else device
    method = get_method(cfg.method)
    return ResolvedRun(cfg, method, device, base_dtype(cfg, method, device), target_names(cfg))


def run_device(cfg: RunConfig) -> Device:
    """Find the device of a run, in the precision that its config asks for.

    Args:
        cfg: the config of the run.

    Returns:
        The device. Its precision is that of ``cfg`` where it names one.

    Raises:
        InputError: the device is unknown or not available.
    """
    device = find_device(cfg.device)
    if cfg.precision is None:
        return device
    half = cfg.precision == "bf16"
    words = f"{device.words.rpartition(', ')[0]}, {'bfloat16 autocast' if half else 'float32'}"
    return Device(device.kind, "bf16" if half else "no", words)


def base_dtype(cfg: RunConfig, method: Method, device: Device) -> str:
    """Choose the dtype of the base weights: bfloat16 where they stay frozen and the device computes in it.

    Methods that write the base weights (full fine-tuning, PiSSA, OLoRA) keep them in float32: steps and differences
    would be lost in the eight bits of bfloat16. So do the models that ship, which are small, unless ``precision`` says
    otherwise.

    Args:
        cfg: the config of the run.
        method: the method of the run.
        device: the device of the run.

    Returns:
        "float32" or "bfloat16".
    """
    by_device = cfg.precision is None and cfg.model not in SHIPPED and device.precision == "bf16"
    return "bfloat16" if method.freezes_base and (cfg.precision == "bf16" or by_device) else "float32"


def target_names(cfg: RunConfig) -> str | list[str]:
    """List the layers that get an adapter.

    Args:
        cfg: the config of the run.

    Returns:
        PEFT's ``target_modules``: "all-linear", or a list of names.
    """
    if cfg.target_modules is None:
        return "all-linear"
    return [name.strip() for name in cfg.target_modules.split(",") if name.strip()]
