"""Export of finished runs: the tuned model, its adapter for PEFT or as plain LoRA, its numbers as CSV or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import atomic_folder, expand_path, write_atomically
from nlora_lab.core.validation import check_choice
from nlora_lab.evaluation.saved import saved_classes
from nlora_lab.methods.attachment import check_unshared
from nlora_lab.methods.plain_lora import check_plain, subtracts_start, with_twice_the_rank
from nlora_lab.methods.table import METHODS
from nlora_lab.models.heads import name_classes
from nlora_lab.models.loading import DTYPES
from nlora_lab.models.names import SHIPPED
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run

FORMS = ("peft", "lora", "merged")


def free_folder(path: str | Path, name: str) -> Path:
    """Return ``path/name``, or ``path/name-2`` and so on if it exists, so that no export overwrites another one."""
    if not str(path).strip():
        raise InputError(f"path={path!r} does not name a folder; for example: 'exports'")
    folder, copy = expand_path(path) / name, 1
    while folder.exists():
        copy += 1
        folder = expand_path(path) / f"{name}-{copy}"
    return folder


def tuned_model(run: Run) -> tuple[Any, Any]:
    """Build the model that a run has trained.

    Args:
        run: a run of this session. A run that was read from a record has no weights.

    Returns:
        The model with its adapter on the CPU, in the dtypes it was trained in, and its tokenizer.

    Raises:
        InputError: the run has no weights.
    """
    import torch

    from nlora_lab.training.setup import build

    _check_weights(run)
    assert run.weights is not None
    model, tokenizer = build(_at_its_commit(run))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in run.weights.items():
            parameters[name].copy_(value)
    return model.eval(), tokenizer


def save_adapter(run: Run, path: str | Path, form: str = "peft") -> Path:
    """Save what a run has trained.

    Args:
        run: a run of this session.
        path: the folder to write into.
        form: "peft" saves the adapter as PEFT does. Import ``nlora_lab.adapters`` before you load an adapter of this
            package. Full fine-tuning is saved as a complete model. "lora" saves a plain LoRA adapter, which stock PEFT
            loads exactly on the *original* base model. DoRA and full fine-tuning have no such form, because their
            change is not a product of two thin matrices. "merged" saves the complete model with the update in its
            weights, in the dtype of its checkpoint.

    Returns:
        The folder.

    Raises:
        InputError: the form is unknown, the run has no weights, or ``path`` cannot be written.
    """
    check_choice("form", form, FORMS)
    _check_weights(run)
    return write_adapter(run, path, form)


def write_adapter(run: Run, path: str | Path, form: str = "peft", tuned: tuple[Any, Any] | None = None) -> Path:
    """Save what a run has trained, as ``save_adapter`` does.

    Args:
        run: the run.
        path: the folder to write into.
        form: as for ``save_adapter``.
        tuned: the trained model and its tokenizer, where they are still in memory. ``None`` builds them again.

    Returns:
        The folder.

    Raises:
        InputError: the method has no such form, or ``path`` cannot be written.
    """
    from nlora_lab.adapters.export import save_classes

    folder, kind = expand_path(path), METHODS[run.config.method]
    if form == "lora" and kind.build is None:
        raise InputError(f"{kind.label} cannot be written as a plain LoRA adapter; choose form='peft'")
    model, tokenizer = tuned_model(run) if tuned is None else tuned
    is_ours = hasattr(model.base_model, "prefix") and model.base_model.prefix == "nlora_"
    if form == "lora" and not is_ours:
        check_plain(model.peft_config["default"], kind.label)
    try:
        with atomic_folder(folder) as part:
            if form == "lora" and not is_ours and subtracts_start(model.peft_config["default"]):
                _save_difference(model, run, part)
            elif form == "lora" and is_ours:
                from nlora_lab.adapters import save_as_lora

                save_as_lora(model, part)
            elif form == "merged":
                _save_whole(model if kind.build is None else model.merge_and_unload(), tokenizer, part)
            else:
                model.save_pretrained(str(part))
                if kind.build is None:
                    tokenizer.save_pretrained(str(part))
            if kind.build is not None and form != "merged":
                save_classes(model, part)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} cannot be written ({error}); choose another folder") from error
    except RuntimeError as error:  # PEFT cannot merge every adapter that it trains
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{kind.label} cannot be written as {form!r} ({reason}); choose form='peft'") from error
    return folder


def save_merged(adapter: str | Path, path: str | Path, model: str | None = None, dtype: str | None = None) -> Path:
    """Merge a saved adapter into its base model and save the result. Classifiers keep their trained head.

    The sum is computed in float32 and rounded once. A small update is partly lost in the 8 bits of bfloat16, so compare
    before you serve the model.

    Args:
        adapter: the folder of an adapter, of this package or of PEFT.
        path: the folder to write into.
        model: the base model, as for ``load_model``. Default: the one that the adapter's config names.
        dtype: "float32" or "bfloat16". Default: the dtype of the base model's checkpoint.

    Returns:
        The folder.

    Raises:
        InputError: ``adapter`` holds no adapter, does not name its base model or does not fit it, the dtype is
            unknown, or ``path`` cannot be written.
    """
    from nlora_lab.adapters.saved import load_adapter, read_adapter
    from nlora_lab.models.loading import load_model

    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    source = expand_path(adapter)
    config, _ = read_adapter(source)
    name = config.base_model_name_or_path if model is None else model
    if not name:
        raise InputError(f"{str(adapter)!r} does not name its base model; set model='…'")
    head = _outputs(source) if config.task_type == "SEQ_CLS" else 0
    saved = saved_classes(source) if head > 1 else ()
    base, tokenizer = load_model(
        _portable_name(name), head=head, labels=saved if len(saved) == head else (),
        revision=None if model else config.revision,
    )  # fmt: skip
    if head > 1 and (labels := saved or base._stored_classes):
        name_classes(base, labels)
    folder = expand_path(path)
    try:
        adapted = load_adapter(base, source)
        check_unshared(adapted)
        merged = adapted.merge_and_unload()
        with atomic_folder(folder) as part:
            _save_whole(merged, tokenizer, part, dtype)
    except InputError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{str(adapter)!r} cannot be merged into {name!r} and written ({reason})") from error
    return folder


def _save_whole(model: Any, tokenizer: Any, folder: Path, dtype: str | None = None) -> None:
    import torch

    stored = getattr(model, "_stored_dtype", None) or torch.float32  # what its config named when it was loaded
    if not stored.is_floating_point or stored.itemsize < 2:  # a sum would be lost in eight bits, and in whole numbers
        stored = torch.float32
    model.to(stored if dtype is None else getattr(torch, dtype))
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise InputError(f"{name} of the merged model holds NaN or infinity; train the adapter again")
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _portable_name(name: str) -> str:
    """Return the name of a model that ships for its folder, wherever it was installed, else ``name``."""
    return Path(name).name if Path(name).name in SHIPPED and not Path(name).is_dir() else name


def _outputs(adapter: Path) -> int:
    """Return the outputs of the head that was saved with an adapter, which are those of its narrowest layer."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        shapes = [file.get_slice(n).get_shape() for n in file.keys() if "lora_" not in n]  # noqa: SIM118
    heads = [shape[0] for shape in shapes if len(shape) == 2]
    if not heads:
        raise InputError(f"{str(adapter)!r} is the adapter of a classifier without its trained head; save it again")
    return int(min(heads))


def _save_difference(model: Any, run: Run, folder: Path) -> None:
    """Write ``[B, −B0] [A; A0]``, of rank 2r: what PiSSA and OLoRA, which train ``B A`` on a residual, add to W."""
    import torch
    from safetensors.torch import save_file

    from nlora_lab.training.setup import build

    start, _ = build(_at_its_commit(run))
    before, weights = dict(start.named_parameters()), {}
    for name, now in model.named_parameters():
        if not now.requires_grad:
            continue
        if ".modules_to_save." in name:  # a classifier's head
            weights[name.replace(".modules_to_save.default.", ".")] = now.detach().contiguous()
            continue
        then, left = before[name].detach(), ".lora_B." in name
        joined = torch.cat([now.detach(), -then if left else then], dim=1 if left else 0)
        weights[name.replace(".default.", ".")] = joined.contiguous()
    with_twice_the_rank(model.peft_config["default"]).save_pretrained(str(folder))
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _at_its_commit(run: Run) -> RunConfig:
    """Return the config of ``run`` at the commit of its model, because a branch on the hub may have new commits."""
    return replace(run.config, revision=run.revision) if run.revision else run.config


def _check_weights(run: Run) -> None:
    if run.weights is None:
        raise InputError("only the record of this run is available, not its trained weights; run it again to export it")


def save_csv(runs: Sequence[Run], names: Sequence[str], path: str | Path) -> Path:
    """Write the losses of runs as CSV, one row per step and run, with the settings of the run.

    Args:
        runs: the runs.
        names: a name for each run.
        path: the file to write.

    Returns:
        The file.

    Raises:
        InputError: the file cannot be written.
    """
    import pandas as pd

    frames = [_labelled(run, name) for run, name in zip(runs, names, strict=True)]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return write_atomically(expand_path(path), table.to_csv(index=False))


def _labelled(run: Run, name: str) -> Any:
    c, frame = run.config, run.history.copy()  # the run keeps its own
    settings: list[tuple[str, Any]] = [("run", name), ("base_lr", c.lr)]
    settings += [(field, getattr(c, field)) for field in ("method", "rank", "init", "task", "seed")]
    for place, (column, value) in enumerate(settings):
        frame.insert(place, column, value)
    return frame


def save_json(runs: Sequence[Run], path: str | Path, names: Sequence[str] | None = None) -> Path:
    """Write the records of runs as a JSON list. ``Run.from_json`` reads each of them.

    Args:
        runs: the runs.
        path: the file to write.
        names: a name for each run, written as ``name`` into its record.

    Returns:
        The file.

    Raises:
        InputError: the file cannot be written.
    """
    records = [json.loads(run.to_json()) for run in runs]
    if names is not None:
        records = [{"name": name, **record} for name, record in zip(names, records, strict=True)]
    return write_atomically(expand_path(path), json.dumps(records, indent=1) + "\n")
