"""Checkpoints of a run: everything that is needed to resume it, written completely or not at all.

A checkpoint is a folder ``step-<number>``. It holds the trained weights and the tensors of the optimiser's state
(``state.safetensors``), its numbers (``optimizer.json``), the steps so far and their config (``run.json``), and the
random numbers of each process. No file is a pickle. The digests of these files are written last. If they do not match,
because the disk filled up or a copy is incomplete, or if a file cannot be used, the checkpoint before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from nlora_lab.core.documents import check_regular, read_json, read_text
from nlora_lab.core.errors import CheckpointError, InputError, ModelError
from nlora_lab.core.files import check_writable, expand_path, part_of, remove_parts
from nlora_lab.core.validation import check_whole_number
from nlora_lab.models.safetensors import Header, read_header
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run, Step
from nlora_lab.runs.store import run_key
from nlora_lab.training.distributed import gather_lists, trained_weights
from nlora_lab.training.session import TrainingSession

if TYPE_CHECKING:
    from accelerate import Accelerator

KEPT = 2  # checkpoints: the newest, and the one before it
LOOKS = 20  # for checkpoints that another run does not remove meanwhile
CHECKPOINT_EVERY = 100  # steps, unless something else is asked for
DIGESTS, ROWS, RUN = "digests.json", "rows.txt", "run.json"
STATE, OPTIMIZER, RANDOM = "state.safetensors", "optimizer.json", "random-0.safetensors"
PICKLE = "state.pt"  # of the first versions
Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of the trained parameters by name."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint, opened: another run on the same folder may remove it meanwhile.

    Attributes:
        folder: its folder.
        run: the run up to it.
        numbers: the content of ``optimizer.json``.
        tensors: the open ``state.safetensors``.
        random: the random numbers of each process, by the name of their file.
    """

    folder: Path
    run: Run
    numbers: dict[str, Any] = field(repr=False)
    tensors: Any = field(repr=False)
    random: dict[str, dict[str, torch.Tensor]] = field(repr=False)

    @classmethod
    def open(cls, folder: Path, run: Run) -> SavedCheckpoint:
        """Open the files of a checkpoint that have been checked."""
        random = {file.name: load_file(file) for file in folder.glob("random-*.safetensors") if file.is_file()}
        return cls(folder, run, read_json(folder / OPTIMIZER), safe_open(folder / STATE, "pt"), random)

    def state(self) -> dict[str, Any]:
        """Return the trained weights and the state of the optimiser, as ``_state`` made them."""
        state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in self.numbers["state"].items()}
        model = {}
        for key in self.tensors.keys():  # noqa: SIM118 - not a dict
            kind, _, name = key.partition("/")
            if kind == "model":
                model[name] = self.tensors.get_tensor(key)
            else:
                entry, _, name = name.partition("/")
                state.setdefault(name, {})[entry] = self.tensors.get_tensor(key)
        groups = [
            {entry: tuple(value) if entry == "betas" else value for entry, value in group.items()}
            for group in self.numbers["param_groups"]
        ]
        return {"model": model, "optimizer": {"state": state, "param_groups": groups}}


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
        remove_parts(self.folder)  # a run that is only measured again writes no checkpoint

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` updates."""
        return step % self.every == 0 or step == self.cfg.steps

    def newest(
        self, digest: str | None = None, revision: str = "", shapes: Shapes | None = None
    ) -> SavedCheckpoint | None:
        """Find the newest checkpoint that can be used. One that cannot is named in a warning.

        Args:
            digest: the digest of the training rows, or ``None`` to accept any rows.
            revision: the commit of the model, or "" to accept any commit.
            shapes: the shapes of the parameters that will train, or ``None`` to accept any.

        Returns:
            The checkpoint, or ``None`` if there is none.

        Raises:
            CheckpointError: there are checkpoints, and none can be used. The message names a file.
            InputError: the checkpoint was trained on different rows, or from another commit of the model.
        """
        for _ in range(LOOKS):
            unusable, has_changed = list[str](), False
            for folder, state in [(folder, _state_of(folder)) for folder in reversed(self._folders())]:
                try:
                    found = self._open(folder, digest, revision, shapes)
                except CheckpointError as error:
                    if _state_of(folder) != state:  # another run has removed or written it while it was read
                        has_changed = True
                    else:
                        unusable.append(str(error))
                    continue
                if found is not None:
                    for reason in unusable:
                        warnings.warn(f"{reason}; the checkpoint before it is used", stacklevel=2)
                    return found
            if not has_changed:
                break
        if unusable:
            raise CheckpointError(f"{unusable[0]}; remove {self.folder} to start again")
        return None

    def _folders(self) -> list[Path]:
        """The checkpoints in the order of their steps. Other files and folders are none."""
        return sorted(f for f in self.folder.glob("step-*") if f.name[5:].isdecimal() and f.is_dir())

    def _open(self, folder: Path, digest: str | None, revision: str, shapes: Shapes | None) -> SavedCheckpoint | None:
        run = _read_run(folder, shapes)
        if run_key(run.config) != run_key(self.cfg):
            return None
        try:
            self._check_same(folder, run, digest, revision)
            return SavedCheckpoint.open(folder, run)
        except InputError:
            raise
        except (OSError, ValueError, SafetensorError) as error:  # removed, or changed, since it was checked
            raise CheckpointError(f"the checkpoint {folder} cannot be used ({error})") from error

    def _check_same(self, folder: Path, run: Run, digest: str | None, revision: str) -> None:
        if digest is not None and read_text(folder / ROWS) != digest:
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
        part = self.folder / gather_lists([part_of(place).name])[0]  # the name that the main process gives it
        with _warn_if_not_written(place):
            if accelerator.is_main_process:
                remove_parts(self.folder)  # of processes that were killed while they wrote
                part.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with _warn_if_not_written(place):
            save_file(_random_state(), part / _random_file(accelerator))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with _warn_if_not_written(place):
                _write_state(state, part)
                run.save(part / RUN)
                (part / ROWS).write_text(digest, encoding="utf-8")
                (part / DIGESTS).write_text(json.dumps(_digests(part)), encoding="utf-8")
                _publish(part, place)
                for old in self._folders()[:-KEPT]:
                    _remove(old)
            shutil.rmtree(part, ignore_errors=True)  # what could not be written would keep a full disk full
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

        state = checkpoint.state()
        load_weights(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_options())
        random_numbers = checkpoint.random.get(_random_file(accelerator))
        if random_numbers is not None:  # there is none if more processes resume than wrote the checkpoint
            _set_random_state(random_numbers)


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
            run = session.state.unmeasured(session.run)
            self.folder.save(run, self.digest, session.accelerator, model, session.optimizer)


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
    except (OSError, SafetensorError, InputError) as error:
        reason = " ".join(str(error).split())[:150]
        warnings.warn(f"the checkpoint {place} could not be written ({reason}); the run continues", stacklevel=3)


def _publish(part: Path, place: Path) -> None:
    """Give a complete checkpoint its name. Another run on this folder may write the same step at the same time."""
    try:
        _remove(place)
        part.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def _remove(folder: Path) -> None:
    """Remove a checkpoint. It gets another name first, so that nobody finds half of it."""
    gone = part_of(folder)
    with suppress(OSError):  # another run was quicker
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _state_of(folder: Path) -> tuple[int, int] | None:
    """What changes when a folder is removed, replaced or written into."""
    with suppress(OSError):
        return (found := folder.stat()).st_ino, found.st_ctime_ns
    return None


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
    return f"random-{accelerator.process_index}.safetensors"


def _write_state(state: dict[str, Any], folder: Path) -> None:
    """Write what ``_state`` returns: tensors into a safetensors file, and all other values as JSON."""
    tensors = {f"model/{name}": value for name, value in state["model"].items()}
    numbers: dict[str, dict[str, Any]] = {}
    for name, values in state["optimizer"]["state"].items():
        for entry, value in values.items():
            if torch.is_tensor(value):
                tensors[f"optimizer/{entry}/{name}"] = value
            else:
                numbers.setdefault(name, {})[entry] = value
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / STATE)
    document = {"state": numbers, "param_groups": state["optimizer"]["param_groups"]}
    (folder / OPTIMIZER).write_text(json.dumps(document), encoding="utf-8")


def _read_run(folder: Path, shapes: Shapes | None) -> Run:
    """Check every file of a checkpoint, and return its run. A ``CheckpointError`` names the file."""
    if (folder / PICKLE).exists():
        raise CheckpointError(f"{folder / PICKLE} is a pickle of an earlier version, and none is ever opened")
    file = folder / DIGESTS
    try:
        digests = read_json(file)
        if not isinstance(digests, dict):
            raise ValueError("it is not an object")
        for file in (folder / name for name in dict.fromkeys([STATE, OPTIMIZER, RUN, ROWS, RANDOM, *digests])):
            if digests.get(file.name) != _digest(file):
                raise ValueError("it is not as it was written")
        file = folder / OPTIMIZER
        groups = read_json(file)["param_groups"]
        trained = {name for group in groups for name in group["params"]}
        file = folder / STATE
        _check_state(read_header(file), trained, shapes)
        file = folder / ROWS
        read_text(file)
        file = folder / RUN
        return Run.from_json(json.dumps({**read_json(file), "stopped": True}))  # earlier versions did not say so
    except ModelError as error:
        raise CheckpointError(str(error).partition("; ")[0]) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{error}".split())[:150]
        raise CheckpointError(f"the checkpoint file {file} cannot be used ({reason})") from error


def _check_state(header: Header, trained: set[str], shapes: Shapes | None) -> None:
    """Check that a state has every trained parameter, in the shapes of the model."""
    saved = {name.removeprefix("model/"): tuple(shape) for name, (_, shape) in header.items() if name[:6] == "model/"}
    if trained != set(saved):
        raise ValueError("its weights are not those of its optimiser")
    for name, shape in (saved if shapes is None else shapes).items():
        if saved.get(name) != tuple(shape):
            raise ValueError(f"{name} is {saved.get(name)} in it, and {tuple(shape)} in the model")
    for key, (_, size) in header.items():
        _, field, name = (*key.split("/", 2), "")[:3]
        if field.startswith("exp_avg") and tuple(size) != saved.get(name):
            raise ValueError(f"{key} is {tuple(size)}, and its weight {saved.get(name)}")


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: _digest(file) for file in folder.iterdir() if file.name != DIGESTS}


def _digest(file: Path) -> str:
    check_regular(file)
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
