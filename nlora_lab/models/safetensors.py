"""models.safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nlora_lab.core.errors import ModelError
from nlora_lab.models import hub

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
# in these architectures transformers stores a linear layer's weight as (in, out)
CONV1D_MODELS = {"gpt2", "openai-gpt", "decision_transformer", "imagegpt"}
CONV1D_NAME = re.compile(r"\.(c_attn|q_attn|c_proj|c_fc)\.weight$")


def header(file: Path) -> hub.Tensors:
    """What a safetensors file holds: of each tensor its dtype and shape; by name. Nothing else is read.

    Raises :class:`ModelError` for a file that is truncated or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as f:
            views = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118 - not a dict
            return {name: (view.get_dtype(), list(view.get_shape())) for name, view in views.items()}
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ModelError(f"{file} is truncated or not safetensors ({reason}); download or save it again") from error


def _matrices(file: str, tensors: hub.Tensors, conv: bool) -> Iterator[tuple[str, tuple[int, int], bool]]:
    """Of each 2-D floating-point tensor: its name, its shape as (out, in), and whether it is stored transposed."""
    _refuse_quantised(file, list(tensors))
    for name, (dtype, shape) in tensors.items():
        if len(shape) != 2 or dtype not in FLOATS or 0 in shape:
            continue
        flip = conv and CONV1D_NAME.search(name) is not None
        yield name, (shape[1], shape[0]) if flip else (shape[0], shape[1]), flip


def _refuse_quantised(file: str, names: list[str]) -> None:
    """Packed or scaled weights are not the matrix: its spectrum would be of something else."""
    for name in names:
        if name.endswith((".weight_scale_inv", ".weight_scale", ".qweight", ".weight_packed", ".absmax")):
            raise ModelError(
                f"{file} holds quantised weights ({name}); scan the unquantised checkpoint, or load the model "
                "dequantised and scan that"
            )


def _reader(where: Callable[[], Path], name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        from safetensors import SafetensorError, safe_open

        file = where()
        # opened anew each time: the file is mapped, and its pages count as ours until it is closed
        try:
            with safe_open(file, framework="pt") as f:
                value: Tensor = f.get_tensor(name)
                return value
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{name} cannot be read from {file} ({error}); delete the file, and download or save it again"
            ) from error

    return read


Files = dict[Path, set[str] | None]
"""The files to read, each with the names to read from it, or ``None`` for all."""


def _files(source: str | Path) -> Files | str:
    """The files of ``source``, or the hub id that it is."""
    try:
        return _find_files(source)
    except (OSError, RuntimeError) as error:  # too long a name, no such home, a folder that cannot be read
        raise ModelError(f"source={str(source)[:200]!r} cannot be read ({error}); check the path") from error


def _find_files(source: str | Path) -> Files | str:
    from nlora_lab.models.names import check_model

    path = Path(source).expanduser() if str(source) else None
    if path is not None and path.is_file():
        _refuse_pickle(path)
        return {path: None}
    if path is not None and path.is_dir():
        return _in_folder(path)
    if path is not None and path.suffix.lower() in (".safetensors", *PICKLES):
        raise ModelError(f"the file {path} does not exist; check the path")
    known = check_model(str(source))  # says what is wrong with the name
    return _in_folder(known) if isinstance(known, Path) else known


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{path} is a pickle, which can run code when opened, so it is not; convert it where you trust it: "
            "load the model with transformers and call save_pretrained, which writes safetensors"
        )


def _in_folder(folder: Path) -> Files:
    """The files of a folder: what its index names, or ``model.safetensors``, or all that are there."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        listed = of_index(index)
        missing = [f.name for f in listed if not f.is_file()]
        if missing:
            raise ModelError(f"{index} names {missing[0]}, which is not there; download the model again")
        return listed
    files = [f for f in sorted(folder.glob("*.safetensors")) if f.is_file()]
    whole = [f for f in files if f.name == "model.safetensors"]  # beside it: other formats, adapters
    if files:
        return dict.fromkeys(whole or files)
    for path in sorted(folder.iterdir()):
        _refuse_pickle(path)
    raise ModelError(f"the folder {folder} holds no .safetensors file; save the model with save_pretrained")


def of_index(index: Path) -> Files:
    """The files that an index names, each beside it, with the tensors it says are in them.

    Raises :class:`ModelError` for what is no index, and for one that leads out of its folder.
    """
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(listed.values()))
        # only plain names: an index must not lead out of its folder
        plain: Files = {
            index.parent / name: {tensor for tensor, file in listed.items() if file == name}
            for name in names if Path(name).name == name
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is not a safetensors index ({error!r}); download the model again") from error
    if not plain or len(plain) != len(names):
        raise ModelError(f"{index} is not a safetensors index: it names no file beside it; download the model again")
    return plain


def _stored_transposed(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config.get("model_type") in CONV1D_MODELS
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False
