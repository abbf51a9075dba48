"""Checkpoints of a run: what it takes to go on from there, written whole or not at all.

A checkpoint is a folder ``step-<number>``: what trains and the optimiser's state (``state.pt``), the steps so far and
what decided them (``run.json``), each process's random numbers, and last of all a file with the digests of the
others. One whose digests do not hold, because the disk filled up or somebody copied half of it, is passed over for
the one before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import check_writable, expand_path
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run, Step
from nlora_lab.runs.store import run_key
from nlora_lab.training.distributed import trained_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

KEPT = 2  # the newest, and the one before it
CHECKPOINT_EVERY = 100  # steps, unless something else is asked for
SEAL, ROWS = "digests.json", "rows.txt"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A whole checkpoint: the run up to it, and where the rest is."""

    folder: Path
    run: Run

    @property
    def steps(self) -> tuple[Step, ...]:
        """What was done before."""
        return self.run.steps


class Checkpoints:
    """The checkpoints of ``cfg`` in a folder of its own below ``path``, the newest two of them.

    Raises :class:`nlora_lab.InputError` for ``every`` below 1 and a folder that cannot be written.
    """

    def __init__(self, path: str | Path, cfg: RunConfig, every: int = CHECKPOINT_EVERY) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"every={every!r} must be a whole number of steps, at least 1")
        self.cfg, self.every = cfg, every
        self.folder = expand_path(path) / run_key(cfg)
        check_writable(self.folder, f"checkpoints={str(path)!r}")

    def due(self, step: int) -> bool:
        """Whether there is to be one after ``step`` updates."""
        return step % self.every == 0 or step == self.cfg.steps

    def newest(self, digest: str | None = None, revision: str = "") -> SavedCheckpoint | None:
        """The last one that is whole; ``None`` where there is none.

        Raises :class:`nlora_lab.InputError` for one that was trained on other rows than those of ``digest``, or from
        another commit of the model than ``revision``.
        """
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            if not _is_whole(folder):
                continue
            run = Run.load(folder / "run.json")
            if run_key(run.config) == run_key(self.cfg):
                self._check_same(folder, run, digest, revision)
                return SavedCheckpoint(folder, run)
        return None

    def _check_same(self, folder: Path, run: Run, digest: str | None, revision: str) -> None:
        remedy = f"give its place back, or remove {self.folder} to begin anew"
        if digest is not None and (folder / ROWS).read_text(encoding="utf-8") != digest:
            raise InputError(f"the training rows are others than those of {folder}; {remedy}")
        if revision and run.revision != revision:
            raise InputError(
                f"the model is at commit {revision}, and that of {folder} was at {run.revision}; say "
                f"revision={run.revision!r} in a run of its own, or remove {self.folder} to begin anew"
            )

    def save(self, run: Run, digest: str, accelerator: Accelerator, model: Any, optimizer: Any) -> None:
        """Write one after the last step of ``run``. To be called in every process.

        One that cannot be written is a warning: the run is worth more than its checkpoint.
        """
        state = _state(model, optimizer)  # gathered from all processes
        place = self.folder / f"step-{len(run.steps):08d}"
        part = place.with_name(f".{place.name}.part")
        with self._going_on(place):
            if accelerator.is_main_process:
                for left in self.folder.glob(".*.part"):  # by a process that was killed at it
                    shutil.rmtree(left)
                part.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with self._going_on(place):
            torch.save(_random(), part / _random_file(accelerator))
        accelerator.wait_for_everyone()
        with self._going_on(place):
            if accelerator.is_main_process:
                torch.save(state, part / "state.pt")
                run.save(part / "run.json")
                (part / ROWS).write_text(digest, encoding="utf-8")
                _seal(part)
                shutil.rmtree(place, ignore_errors=True)
                part.rename(place)
                for old in sorted(self.folder.glob("step-*"))[:-KEPT]:
                    shutil.rmtree(old)
        accelerator.wait_for_everyone()

    @contextmanager
    def _going_on(self, place: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, InputError) as error:  # torch's zip writer raises the second
            reason = " ".join(str(error).split())[:150]
            warnings.warn(f"the checkpoint {place} could not be written ({reason}); the run goes on", stacklevel=3)

    def restore(self, saved: SavedCheckpoint, accelerator: Accelerator, model: Any, optimizer: Any) -> None:
        """Put ``saved`` into the prepared ``model`` and ``optimizer``. To be called in every process."""
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        state = torch.load(saved.folder / "state.pt", map_location="cpu", weights_only=True)
        put_weights(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_options())
        numbers = saved.folder / _random_file(accelerator)
        if numbers.is_file():  # there is none where more processes go on than there were
            _set_random(torch.load(numbers, weights_only=True))


class RemainingBatches:
    """What is left of an order of batches after so many of them; a batch sampler like the order itself."""

    def __init__(self, order: Any, done: int) -> None:
        self.order, self.done = order, done
        self.batch_size, self.seed = order.batch_size, order.seed

    def __len__(self) -> int:
        return len(self.order) - self.done

    def __iter__(self) -> Iterator[list[int]]:
        for number, rows in enumerate(self.order):
            if number >= self.done:
                yield rows


@torch.no_grad()
def put_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Copy ``weights`` into the parameters of these names; of a sharded one each process takes its part."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for name, parameter in model.named_parameters():
        if name in weights:
            value = weights[name].to(parameter.device)
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            parameter.copy_(value)


def _options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def _state(model: Any, optimizer: Any) -> dict[str, Any]:
    """What trains and the optimiser's numbers for it, whole, by the parameters' names."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return {
        "model": trained_weights(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_options()),
    }


def _random() -> dict[str, torch.Tensor]:
    there = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        there["cuda"] = torch.cuda.get_rng_state()
    return there


def _set_random(numbers: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(numbers["cpu"])
    if "cuda" in numbers and torch.cuda.is_available():
        torch.cuda.set_rng_state(numbers["cuda"])


def _random_file(accelerator: Accelerator) -> str:
    return f"random-{accelerator.process_index}.pt"


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.name != SEAL}


def _seal(folder: Path) -> None:
    (folder / SEAL).write_text(json.dumps(_digests(folder)), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / SEAL).read_text(encoding="utf-8")) == _digests(folder))
    except (OSError, ValueError):
        return False
