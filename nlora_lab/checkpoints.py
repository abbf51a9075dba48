"""The weight matrices of a model, a safetensors file, a sharded folder or a hub id, one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.errors import InputError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
# in these architectures transformers stores a linear layer's weight as (in, out)
CONV1D_MODELS = {"gpt2", "openai-gpt", "decision_transformer", "imagegpt"}
CONV1D_NAME = re.compile(r"\.(c_attn|q_attn|c_proj|c_fc)\.weight$")


@dataclass(frozen=True)
class Weight:
    """One matrix, not read yet: its name, its shape as (out, in), and how to read it.

    ``file`` is where it stands, or ``None`` for a live model; ``transposed`` says that it is stored as
    (in, out), which :meth:`read` undoes.
    """

    name: str
    shape: tuple[int, int]
    transposed: bool
    file: Path | None
    load: Callable[[], Tensor]

    def read(self) -> Tensor:
        """The values, (out, in), in the dtype they are stored in."""
        value = self.load()
        return value.T if self.transposed else value

    @property
    def place(self) -> tuple[int, str]:
        """(layer, module): the first number in the name, and what follows it; −1 outside the layers."""
        return split_name(self.name)


def places(found: list[Weight]) -> list[tuple[int, str]]:
    """(layer, module) of each weight, all different.

    Where two would be alike (an encoder and a decoder each have a layer 0), what stands before the number is put
    before the module.
    """
    plain = [weight.place for weight in found]
    if len(set(plain)) == len(plain):
        return plain
    return [
        (layer, module if layer < 0 else _with_front(w.name)) for w, (layer, module) in zip(found, plain, strict=True)
    ]


def _with_front(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    at = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[:at] + parts[at + 1 :])


def split_name(name: str) -> tuple[int, str]:
    """``encoder.layer.3.intermediate.dense.weight`` → ``(3, "intermediate.dense")``.

    Without a number in it: ``(-1, the whole name)``. A final ``.weight`` is left out.
    """
    parts = name.removesuffix(".weight").split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None or at + 1 == len(parts):
        return -1, ".".join(parts)
    return int(parts[at]), ".".join(parts[at + 1 :])


def weights(source: Any) -> list[Weight]:
    """Every 2-D floating-point weight of ``source``, in its order; nothing is read yet.

    ``source``: an ``nn.Module``, a ``.safetensors`` file, a folder with one or several of them (with
    their index), "embedded", or a hub id, which is downloaded to the hub's cache.

    Raises :class:`InputError` where there is nothing to scan, and :class:`ModelError` (its child) for
    files that are missing, corrupt, or pickles, which can run code when opened.
    """
    from torch import nn

    if isinstance(source, nn.Module):
        found = _of_model(source)
        what = f"the {type(source).__name__}"
    elif isinstance(source, str | Path):
        files = _files(source)
        transposed = _stored_transposed(next(iter(files)).parent)
        found = [w for file, names in files.items() for w in _of_file(file, transposed, names)]
        what = str(source)
    else:
        raise InputError(
            f"source={source!r} cannot be scanned: give a model, a safetensors file or folder, 'embedded', or a hub id"
        )
    if not found:
        raise InputError(f"{what} has no 2-D floating-point weight, so there is nothing to scan; choose another source")
    return found


def _of_model(model: Any) -> list[Weight]:
    from transformers.pytorch_utils import Conv1D

    conv = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    found = []
    for name, p in model.named_parameters():  # a tied weight comes once
        if p.ndim != 2 or not p.is_floating_point() or 0 in p.shape:
            continue
        if p.is_meta:
            raise InputError(f"{name} is on the meta device and has no values; load the weights first")
        shape = (p.shape[1], p.shape[0]) if name in conv else (p.shape[0], p.shape[1])
        found.append(Weight(name, shape, name in conv, None, p.detach))
    return found


def _of_file(file: Path, conv: bool, wanted: set[str] | None) -> list[Weight]:
    """The matrices of a file; ``wanted`` are the names that its index lists, or ``None`` for all."""
    from safetensors import SafetensorError, safe_open

    found = []
    try:
        with safe_open(file, framework="pt") as f:
            names = [n for n in f.keys() if wanted is None or n in wanted]  # noqa: SIM118 - not a dict
            _refuse_quantised(file, names)
            for name in names:
                view = f.get_slice(name)
                shape = view.get_shape()
                if len(shape) != 2 or view.get_dtype() not in FLOATS or 0 in shape:
                    continue
                flip = conv and CONV1D_NAME.search(name) is not None
                sides = (shape[1], shape[0]) if flip else (shape[0], shape[1])
                found.append(Weight(name, sides, flip, file, _reader(file, name)))
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ModelError(f"{file} is truncated or not safetensors ({reason}); download or save it again") from error
    return found


def _refuse_quantised(file: Path, names: list[str]) -> None:
    """Packed or scaled weights are not the matrix: its spectrum would be of something else."""
    for name in names:
        if name.endswith((".weight_scale_inv", ".weight_scale", ".qweight", ".weight_packed", ".absmax")):
            raise ModelError(
                f"{file.name} holds quantised weights ({name}); scan the unquantised checkpoint, or load the model "
                "dequantised and scan that"
            )


def _reader(file: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        from safetensors import SafetensorError, safe_open

        # opened anew each time: the file is mapped, and its pages count as ours until it is closed
        try:
            with safe_open(file, framework="pt") as f:
                value: Tensor = f.get_tensor(name)
                return value
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{name} cannot be read from {file} ({error}); download or save it again") from error

    return read


Files = dict[Path, set[str] | None]
"""The files to read, each with the names to read from it, or ``None`` for all."""


def _files(source: str | Path) -> Files:
    try:
        return _find_files(source)
    except (OSError, RuntimeError) as error:  # too long a name, no such home, a folder that cannot be read
        raise ModelError(f"source={str(source)[:200]!r} cannot be read ({error}); check the path") from error


def _find_files(source: str | Path) -> Files:
    from nlora_lab.models import check_model, check_reachable

    path = Path(source).expanduser() if str(source) else None
    if path is not None and path.is_file():
        _refuse_pickle(path)
        return {path: None}
    if path is not None and path.is_dir():
        return _in_folder(path)
    if path is not None and path.suffix.lower() in (".safetensors", *PICKLES):
        raise ModelError(f"the file {path} does not exist; check the path")
    known = check_model(str(source))  # says what is wrong with the name
    if isinstance(known, Path):
        return _in_folder(known)
    check_reachable(known)
    return _in_folder(_download(known))


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.safetensors", "*.safetensors.index.json", "config.json"]
        return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as error:  # the hub's own classes: missing, gated, offline, interrupted
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"source={hub_id!r} could not be fetched from the hub ({reason}); check the id and the connection"
        ) from error


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{path} is a pickle, which can run code when opened, so it is not; convert it where you trust it: "
            "load the model with transformers and call save_pretrained, which writes safetensors"
        )


def _in_folder(folder: Path) -> Files:
    """The files of a folder: what its index names, or ``model.safetensors``, or all that are there."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        listed = _of_index(index)
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


def _of_index(index: Path) -> Files:
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
