"""Checkpoints of a run: everything that is needed to resume it, written completely or not at all.

A checkpoint is a folder ``step-<number>``. It holds the trained weights and the optimiser's state (``state.pt``), the
steps so far and their config (``run.json``), and the random numbers of each process. The digests of these files are
written last. If they do not match, because the disk filled up or a copy is incomplete, the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import check_writable, expand_path
from nlora_lab.core.validation import check_whole_number
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run, Step
from nlora_lab.runs.store import run_key
from nlora_lab.training.distributed import trained_weights
from nlora_lab.training.session import TrainingSession

if TYPE_CHECKING:
    from accelerate import Accelerator

KEPT = 2  # checkpoints: the newest, and the one before it
CHECKPOINT_EVERY = 100  # steps, unless something else is asked for
DIGESTS, ROWS = "digests.json", "rows.txt"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint: its folder, and the run up to it."""

    folder: Path
    run: Run


class CheckpointFolder:
    """The two newest checkpoints of one config, in a folder of their own.

    Args:
        path: the folder that the caller named. The checkpoints of ``cfg`` are in a folder below it.
        cfg: the config of the run.
        every: the number of steps between two checkpoints.

    Raises:
        InputError: ``every`` is below 1, or the folder cannot be written.
    """

    def __init__(self, path: str | Path, cfg: RunConfig, every: int = CHECKPOINT_EVERY) -> None:
        self.cfg, self.every = cfg, check_whole_number("every", every, remedy="the steps between two checkpoints")
        self.folder = expand_path(path) / run_key(cfg)
        check_writable(self.folder, f"checkpoints={str(path)!r}")

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` updates."""
        return step % self.every == 0 or step == self.cfg.steps

    def newest(self, digest: str | None = None, revision: str = "") -> SavedCheckpoint | None:
        """Find the newest complete checkpoint.

        Args:
            digest: the digest of the training rows, or ``None`` to accept any rows.
            revision: the commit of the model, or "" to accept any commit.

        Returns:
            The checkpoint, or ``None`` if there is none.

        Raises:
            InputError: the checkpoint was trained on different rows, or from another commit of the model.
        """
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            if not _is_complete(folder):
                continue
            run = Run.load(folder / "run.json")
            if run_key(run.config) == run_key(self.cfg):
                self._check_same(folder, run, digest, revision)
                return SavedCheckpoint(folder, run)
        return None

    def _check_same(self, folder: Path, run: Run, digest: str | None, revision: str) -> None:
        if digest is not None and (folder / ROWS).read_text(encoding="utf-8") != digest:
            raise InputError(
                f"the training rows differ from those of {folder}; restore the data, or remove {self.folder} to start "
                "again"
            )
        if revision and run.revision != revision:
            raise InputError(
                f"the model is at commit {revision}, and that of {folder} was at {run.revision}; say "
                f"revision={run.revision!r} in a run of its own, or remove {self.folder} to start again"
            )

    def save(self, run: Run, digest: str, accelerator: Accelerator, model: Any, optimizer: Any) -> None:
        """Write a checkpoint after the last step of ``run``. Call this in every process.

        A checkpoint that cannot be written is a warning, because the run is worth more than its checkpoint.

        Args:
            run: the run so far.
            digest: the digest of the training rows.
            accelerator: the accelerator of the run.
            model: the model inside what the accelerator prepared.
            optimizer: the prepared optimiser.
        """
        state = _state(model, optimizer)  # gathered from all processes
        place = self.folder / f"step-{len(run.steps):08d}"
        part = place.with_name(f".{place.name}.part")
        with _warn_if_not_written(place):
            if accelerator.is_main_process:
                for litter in self.folder.glob(".*.part"):  # of a process that was killed while it wrote
                    shutil.rmtree(litter)
                part.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with _warn_if_not_written(place):
            torch.save(_random_state(), part / _random_file(accelerator))
        accelerator.wait_for_everyone()
        with _warn_if_not_written(place):
            if accelerator.is_main_process:
                torch.save(state, part / "state.pt")
                run.save(part / "run.json")
                (part / ROWS).write_text(digest, encoding="utf-8")
                (part / DIGESTS).write_text(json.dumps(_digests(part)), encoding="utf-8")
                shutil.rmtree(place, ignore_errors=True)
                part.rename(place)
                for old in sorted(self.folder.glob("step-*"))[:-KEPT]:
                    shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def restore(self, checkpoint: SavedCheckpoint, accelerator: Accelerator, model: Any, optimizer: Any) -> None:
        """Load a checkpoint into the prepared model and optimiser. Call this in every process.

        Args:
            checkpoint: the checkpoint.
            accelerator: the accelerator of the run.
            model: the model inside what the accelerator prepared.
            optimizer: the prepared optimiser.
        """
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        state = torch.load(checkpoint.folder / "state.pt", map_location="cpu", weights_only=True)
        load_weights(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_options())
        random_numbers = checkpoint.folder / _random_file(accelerator)
        if random_numbers.is_file():  # there is none if more processes resume than wrote the checkpoint
            _set_random_state(torch.load(random_numbers, weights_only=True))


@dataclass(frozen=True)
class CheckpointWriter:
    """A callback that writes checkpoints while a run trains.

    Attributes:
        folder: where the checkpoints go.
        digest: the digest of the training rows.
    """

    folder: CheckpointFolder
    digest: str

    def on_gradients(self, session: TrainingSession, updates: int) -> None:
        """Do nothing: a checkpoint is taken between two steps."""

    def on_update(self, session: TrainingSession, step: Step, ends: bool) -> None:
        """Write a checkpoint if one is due, or if the run ends here."""
        if ends or self.folder.is_due(step.step):
            model = session.accelerator.unwrap_model(session.model)
            run = session.state.to_run(session.run)
            self.folder.save(run, self.digest, session.accelerator, model, session.optimizer)


class RemainingBatches:
    """The batches of an order that are left after the first ones. A batch sampler like the order itself.

    Args:
        order: a batch sampler with a ``batch_size`` and a ``seed``.
        done: the number of batches to skip.
    """

    def __init__(self, order: Any, done: int) -> None:
        self.order, self.done = order, done
        self.batch_size, self.seed = order.batch_size, order.seed

    def __len__(self) -> int:
        return len(self.order) - self.done

    def __iter__(self) -> Iterator[list[int]]:
        return islice(iter(self.order), self.done, None)


@torch.no_grad()
def load_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Copy ``weights`` into the parameters of these names. Of a sharded parameter each process takes its part."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for name, parameter in model.named_parameters():
        if name in weights:
            value = weights[name].to(parameter.device)
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            parameter.copy_(value)


@contextmanager
def _warn_if_not_written(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, InputError) as error:  # torch's zip writer raises RuntimeError
        reason = " ".join(str(error).split())[:150]
        warnings.warn(f"the checkpoint {place} could not be written ({reason}); the run continues", stacklevel=3)


def _options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def _state(model: Any, optimizer: Any) -> dict[str, Any]:
    """The trained weights and the state of the optimiser for them, complete, by the names of the parameters."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return {
        "model": trained_weights(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_options()),
    }


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _random_file(accelerator: Accelerator) -> str:
    return f"random-{accelerator.process_index}.pt"


def _digests(folder: Path) -> dict[str, str]:
    files = [file for file in folder.iterdir() if file.name != DIGESTS]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _is_complete(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / DIGESTS).read_text(encoding="utf-8")) == _digests(folder))
    except (OSError, ValueError):
        return False
