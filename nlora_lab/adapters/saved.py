"""A saved adapter as input: its folder is checked completely before PEFT sees it.

PEFT reads pickles, asks the hub for a repository of the folder's name where weights are missing, and loads what fits
of a file that is incomplete. Everything that opens a saved adapter comes through here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, TaskType, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from nlora_lab.core.documents import check_regular, read_json
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_number
from nlora_lab.models.names import is_pickle
from nlora_lab.models.safetensors import Header, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_REPEATS = 8  # of unknown length in one pattern: each multiplies the time that a search may take
LONGEST_PATTERN = 10_000  # characters


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the ``adapter_config.json`` of a saved adapter, and check what PEFT would fail on.

    Args:
        folder: the folder of the adapter.

    Returns:
        Its values by name.

    Raises:
        InputError: the file is missing or damaged, names an unknown kind of adapter or task, asks for code of another
            library, or holds a regular expression that is broken or could take for ever.
    """
    file = folder / CONFIG
    if not file.exists():
        raise InputError(f"{str(folder)!r} holds no {CONFIG}; give a folder that save_pretrained wrote")
    try:
        settings = read_json(file)
        has_mark = file.read_bytes()[:3] == b"\xef\xbb\xbf"
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}); save the adapter again") from error
    if not isinstance(settings, dict):
        raise InputError(f"{file} is damaged, it is not an object; save the adapter again")
    if has_mark:
        raise InputError(f"{file} begins with a byte order mark, which PEFT cannot read; save it as UTF-8 without one")
    kinds = {str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    if str(settings.get("peft_type")) not in kinds:
        raise InputError(
            f"{file}: peft_type={settings.get('peft_type')!r} is not known to PEFT; save the adapter again"
        )
    if settings.get("task_type") not in (None, *(task.value for task in TaskType)):
        raise InputError(f"{file}: task_type={settings['task_type']!r} is not known to PEFT; correct it, or use null")
    if settings.get("megatron_config"):
        raise InputError(f"{file}: megatron_config asks to import another library, which is never done here")
    _check_names(file, settings)
    for name, pattern in _patterns(settings):
        _check_pattern(f"{file}: {name}", pattern)
    _check_scale(file, settings)
    return settings


def _check_names(file: Path, settings: dict[str, Any]) -> None:
    """Check the kind of what names the base model and its layers."""
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise InputError(f"{file}: base_model_name_or_path={base!r} must be a name or null; save the adapter again")
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        value = settings.get(name)
        if not isinstance(value, str | None) and not (
            isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        ):
            raise InputError(f"{file}: {name}={value!r} must be names of modules; save the adapter again")


def _check_scale(file: Path, settings: dict[str, Any]) -> None:
    """Check what decides the size of the update: PEFT computes with whatever stands there."""
    for name in ("lora_alpha", "alpha"):
        if settings.get(name) is not None:
            check_number(f"{file}: {name}", settings[name], above=0, below=1e30, remedy="save the adapter again")
    pattern = settings.get("alpha_pattern")
    for key, value in pattern.items() if isinstance(pattern, dict) else ():
        check_number(f"{file}: alpha_pattern[{key!r}]", value, above=0, below=1e30, remedy="save the adapter again")
    for name in ("use_rslora", "use_dora", "residual", "fold"):
        if not isinstance(settings.get(name), bool | None):
            raise InputError(f"{file}: {name}={settings[name]!r} must be true or false; save the adapter again")


def read_adapter(folder: Path) -> tuple[Any, Header]:
    """Read the config of a saved adapter, and check that its weights are complete numbers in one safetensors file.

    Args:
        folder: the folder of the adapter.

    Returns:
        The PEFT config, and dtype and shape of every tensor.

    Raises:
        InputError: a file is missing or damaged, is a pickle, or a weight holds NaN or infinity.
    """
    read_settings(folder)
    header = _check_weights(folder)
    try:
        return PeftConfig.from_pretrained(str(folder)), header
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        raise InputError(f"{folder / CONFIG} is damaged ({reason}); save the adapter again") from error


def load_adapter(base: Any, folder: Path) -> Any:
    """Put a saved adapter on its base model, and check that every tensor of the file found its place.

    Args:
        base: the base model.
        folder: the folder of the adapter.

    Returns:
        The ``PeftModel``.

    Raises:
        InputError: the adapter is damaged or incomplete, or does not fit the model.
    """
    _, header = read_adapter(folder)
    remedy = "give the model that it was trained on, or save it again"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # which is an error here
            model = PeftModel.from_pretrained(base, str(folder))
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"the adapter {str(folder)!r} does not fit this model ({reason}); {remedy}") from error
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    missing = sorted(expected.keys() - header.keys())
    if missing:
        raise InputError(
            f"the adapter {str(folder)!r} lacks {len(missing)} of {len(expected)} tensors, {missing[0]} first; {remedy}"
        )
    foreign = sorted(header.keys() - expected.keys() - model.state_dict().keys())  # resized embeddings are the model's
    if foreign:
        raise InputError(f"the adapter {str(folder)!r} has {foreign[0]}, for which this model has no layer; {remedy}")
    return model


def _check_weights(folder: Path) -> Header:
    import torch
    from safetensors import safe_open

    file = folder / WEIGHTS
    if not file.exists():
        pickle = next((path.name for path in sorted(folder.iterdir()) if is_pickle(path)), None)
        if pickle is not None:
            raise InputError(
                f"{str(folder)!r} has its weights in {pickle}, a pickle, which can run code when opened; save the "
                "adapter again where you trust it, with save_pretrained, which writes safetensors"
            )
        raise InputError(f"{str(folder)!r} has no weights: {WEIGHTS} is missing; save the adapter with save_pretrained")
    try:
        check_regular(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error}); save the adapter again") from error
    header = read_header(file)
    if not header:
        raise InputError(f"{file} holds no tensor; save the adapter again")
    with safe_open(file, "pt") as tensors:
        for name, (dtype, _) in header.items():
            if dtype not in ("F64", "F32", "F16", "BF16"):
                raise InputError(f"{name} in {file} is {dtype}, which is not a weight in full; save the adapter again")
            # in float32, as it is used: a larger number becomes infinite there
            if not bool(torch.isfinite(tensors.get_tensor(name).float()).all()):
                raise InputError(f"{name} in {file} holds NaN or infinity; train or save the adapter again")
    return header


def _patterns(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The regular expressions of a config. A list holds plain names, except for that of ``layers_pattern``."""
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = settings.get(name)
        if isinstance(value, str):
            yield name, value
        elif name == "layers_pattern" and isinstance(value, list):
            yield from ((name, str(pattern)) for pattern in value)
    for name in ("rank_pattern", "alpha_pattern"):
        value = settings.get(name)
        yield from ((name, str(pattern)) for pattern in (value if isinstance(value, dict) else ()))
    saved = settings.get("modules_to_save")
    yield from (("modules_to_save", str(name)) for name in (saved if isinstance(saved, list) else ()))


def _check_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
        is_slow = len(pattern) > LONGEST_PATTERN or _is_slow(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(
            f"{name}={pattern[:80]!r} is not a regular expression ({error}); save the adapter again"
        ) from error
    if is_slow:
        raise InputError(
            f"{name}={pattern[:80]!r} could take for ever to match; write a pattern without nested repeats"
        )


def _is_slow(pattern: str) -> bool:
    """Whether a pattern has a repeat within a repeat, or a choice, or many repeats one after the other."""
    from re import _parser  # type: ignore[attr-defined]

    repeats = 0

    def walk(node: Any, inside: bool) -> bool:
        nonlocal repeats
        if isinstance(node, list | tuple | _parser.SubPattern):
            parts = list(node)
            operation = str(parts[0]) if parts else ""
            if operation in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and isinstance(parts[1], tuple):
                is_long = int(parts[1][1]) > 100
                repeats += is_long
                return (is_long and inside) or walk(parts[1][2], inside or is_long)
            if operation == "BRANCH" and inside:
                return True
            return any(walk(part, inside) for part in parts)
        return False

    return walk(_parser.parse(pattern), False) or repeats > MOST_REPEATS
