"""What a run leaves for others: the tuned model, its adapter as PEFT or as plain LoRA, its numbers as CSV or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import expand_path, write_atomically
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS
from nlora_lab.models.loading import DTYPES, stored_dtype
from nlora_lab.models.names import EMBEDDED
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run

FORMS = ("peft", "lora", "merged")


def free_folder(path: str | Path, name: str) -> Path:
    """``path/name``, or ``path/name-2``, … where that is taken: an export overwrites none before it."""
    if not str(path).strip():
        raise InputError(f"path={path!r} names no folder; for example: 'exports'")
    folder, copy = expand_path(path) / name, 1
    while folder.exists():
        copy += 1
        folder = expand_path(path) / f"{name}-{copy}"
    return folder


def tuned_model(run: Run) -> tuple[Any, Any]:
    """The model a run has trained, with its adapter, on the CPU, in the dtypes it was trained in; and the tokenizer.

    Raises :class:`nlora_lab.InputError` for a run whose weights are not here: one that was read from a record.
    """
    import torch

    from nlora_lab.training.setup import build

    _check_weights(run)
    assert run.weights is not None
    model, tokenizer = build(_at_its_commit(run))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in run.weights.items():
            own[name].copy_(value)
    return model.eval(), tokenizer


def save_adapter(run: Run, path: str | Path, form: str = "peft") -> Path:
    """Write what a run has trained into the folder ``path``, and return it.

    ``form="peft"``: as PEFT saves it (``import nlora_lab.adapters`` before loading one of this package's methods);
    full fine-tuning is saved as a whole model. ``form="lora"``: as a plain LoRA adapter, which stock PEFT loads on
    the *original* base model, exactly; DoRA and full fine-tuning are no product of two thin matrices and have none.
    ``form="merged"``: the whole model with the update in its weights, in the dtype its checkpoint is stored in.

    Raises :class:`nlora_lab.InputError` where there is no such form, the weights are not here, or ``path`` cannot be
    written.
    """
    check_choice("form", form, FORMS)
    _check_weights(run)
    folder, kind = expand_path(path), METHODS[run.config.method]
    if form == "lora" and (kind.build is None or kind.name == "dora"):
        raise InputError(f"{kind.label} cannot be written as a plain LoRA adapter; choose form='peft'")
    model, tokenizer = tuned_model(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if form == "lora" and kind.writes_base:
            _save_difference(model, run, folder)
        elif form == "lora" and hasattr(model.base_model, "prefix") and model.base_model.prefix == "nlora_":
            from nlora_lab.adapters import save_as_lora

            save_as_lora(model, folder)
        elif form == "merged":
            _save_whole(model if kind.build is None else model.merge_and_unload(), tokenizer, folder)
        else:
            model.save_pretrained(str(folder))
            if kind.build is None:
                tokenizer.save_pretrained(str(folder))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} cannot be written ({error}); choose another folder") from error
    return folder


def save_merged(adapter: str | Path, path: str | Path, model: str | None = None, dtype: str | None = None) -> Path:
    """Add a saved ``adapter`` (a folder, of this package or of PEFT) to its base model, and write both to ``path``.

    ``model``: the base, as for :func:`nlora_lab.load_model`; by default what the adapter's config names. Classifiers
    keep their trained head. ``dtype``: "float32" or "bfloat16", of what is written; by default that of the base's
    checkpoint. The sum is taken in float32 and rounded once; in 8 bits of bfloat16 a small update is partly lost, so
    compare before you serve it.

    Raises :class:`nlora_lab.InputError` for a folder without an adapter, a base that the adapter does not name or fit,
    an unknown dtype, and a ``path`` that cannot be written.
    """
    from peft import PeftConfig, PeftModel

    import nlora_lab.adapters  # noqa: F401 - makes this package's adapters known to PEFT
    from nlora_lab.models.loading import load_model

    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    source = expand_path(adapter)
    if not (source / "adapter_config.json").is_file():
        raise InputError(f"{str(adapter)!r} holds no adapter_config.json; give a folder that save_pretrained wrote")
    config = PeftConfig.from_pretrained(str(source))
    name = model or config.base_model_name_or_path
    if not name:
        raise InputError(f"{str(adapter)!r} does not name its base model; say model='…'")
    head = _outputs(source) if config.task_type == "SEQ_CLS" else 0
    base, tokenizer = load_model(_known(name), head=head, revision=None if model else config.revision)
    folder = expand_path(path)
    try:
        merged = PeftModel.from_pretrained(base, str(source)).merge_and_unload()
        folder.mkdir(parents=True, exist_ok=True)
        _save_whole(merged, tokenizer, folder, dtype)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{str(adapter)!r} cannot be merged into {name!r} and written ({reason})") from error
    return folder


def _save_whole(model: Any, tokenizer: Any, folder: Path, dtype: str | None = None) -> None:
    import torch

    model.to(stored_dtype(model) if dtype is None else getattr(torch, dtype)).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _known(name: str) -> str:
    """``name``, or "embedded" where it is the folder of the embedded model, wherever that was installed."""
    return EMBEDDED if Path(name).name == EMBEDDED and not Path(name).is_dir() else name


def _outputs(adapter: Path) -> int:
    """How many outputs the trained head has that was saved with an adapter: those of its last, narrowest layer."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        shapes = [file.get_slice(n).get_shape() for n in file.keys() if "lora_" not in n]  # noqa: SIM118
    heads = [shape[0] for shape in shapes if len(shape) == 2]
    if not heads:
        raise InputError(f"{str(adapter)!r} is of a classifier and holds no trained head; save it again")
    return int(min(heads))


def _save_difference(model: Any, run: Run, folder: Path) -> None:
    """PiSSA and OLoRA train ``B A`` on a residual; on the original weights that is ``[B, −B0] [A; A0]``, rank 2r."""
    import torch
    from peft import LoraConfig
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
    config = model.peft_config["default"]
    # s = alpha / r stays what it was when both are doubled
    LoraConfig(
        r=2 * config.r, lora_alpha=2 * config.lora_alpha, target_modules=sorted(config.target_modules),
        modules_to_save=config.modules_to_save, task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path, inference_mode=True,
    ).save_pretrained(str(folder))  # fmt: skip
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _at_its_commit(run: Run) -> RunConfig:
    """What was run, on the model as it was then: a branch of the hub may have moved on."""
    return replace(run.config, revision=run.revision) if run.revision else run.config


def _check_weights(run: Run) -> None:
    if run.weights is None:
        raise InputError("the trained weights of this run are not here, only its record; run it again to export it")


def save_csv(runs: Sequence[Run], names: Sequence[str], path: str | Path) -> Path:
    """One row a step and run: ``run`` (its name), the columns of :attr:`Run.history`, and the run's settings."""
    import pandas as pd

    frames = [_labelled(run, name) for run, name in zip(runs, names, strict=True)]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return write_atomically(expand_path(path), table.to_csv(index=False))


def _labelled(run: Run, name: str) -> Any:
    c, frame = run.config, run.history.copy()  # the run keeps its own
    asked: list[tuple[str, Any]] = [("run", name), ("base_lr", c.lr)]
    asked += [(field, getattr(c, field)) for field in ("method", "rank", "init", "task", "seed")]
    for place, (column, value) in enumerate(asked):
        frame.insert(place, column, value)
    return frame


def save_json(runs: Sequence[Run], path: str | Path, names: Sequence[str] | None = None) -> Path:
    """The records of the runs as a JSON list, each with its ``name`` if there are names.

    Each is what :meth:`Run.from_json` reads, which has no use for the name.
    """
    records = [json.loads(run.to_json()) for run in runs]
    if names is not None:
        records = [{"name": name, **record} for name, record in zip(names, records, strict=True)]
    return write_atomically(expand_path(path), json.dumps(records, indent=1) + "\n")
