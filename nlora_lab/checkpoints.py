"""The weight matrices of a model, a safetensors file, a sharded folder or a hub id, one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab import hub
from nlora_lab.cache import Cache
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

    ``file`` is where it stands, or ``None`` for a live model and for the hub, where ``shard`` is what it
    stands in; ``transposed`` says that it is stored as (in, out), which :meth:`read` undoes.
    """

    name: str
    shape: tuple[int, int]
    transposed: bool
    file: Path | None
    load: Callable[[], Tensor]
    shard: hub.Shard | None = None

    def read(self) -> Tensor:
        """The values, (out, in), in the dtype they are stored in. Downloads their file if need be."""
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


def weights(source: Any, revision: str | None = None, kept: Cache | None = None) -> list[Weight]:
    """Every 2-D floating-point weight of ``source``, in its order; nothing is read yet.

    ``source``: an ``nn.Module``, a ``.safetensors`` file, a folder with one or several of them (with
    their index), "embedded", or a hub id, of which only the headers are fetched here: a weight file is
    downloaded when the first of its weights is read. ``revision``: branch, tag or commit on the hub;
    ``kept``: where the headers are kept for the next time.

    Raises :class:`InputError` where there is nothing to scan, and :class:`ModelError` (its child) for
    files that are missing, corrupt, or pickles, which can run code when opened.
    """
    from torch import nn

    if isinstance(source, nn.Module):
        hub.check_revision(revision, None)
        found = _of_model(source)
        what = f"the {type(source).__name__}"
    elif isinstance(source, str | Path):
        found = _of_text(source, revision, kept)
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


def _of_text(source: str | Path, revision: str | None, kept: Cache | None) -> list[Weight]:
    files = _files(source)
    hub.check_revision(revision, files)
    if isinstance(files, str):
        listed = hub.shards(files, revision, kept)
        if not isinstance(listed, Path):
            return _of_shards(listed)
        files = _in_folder(listed)
    conv = _stored_transposed(next(iter(files)).parent)
    return [w for file, names in files.items() for w in _of_file(file, conv, names)]


def _of_shards(shards: list[hub.Shard]) -> list[Weight]:
    config = hub.cached(shards[0].hub_id, hub.CONFIG, shards[0].commit)
    conv = config is not None and _stored_transposed(config.parent)
    found = []
    for shard in shards:
        for name, shape, flip in _matrices(shard.name, shard.tensors, conv):
            found.append(Weight(name, shape, flip, None, _reader(shard.fetch, name), shard))
    return found


def _of_file(file: Path, conv: bool, wanted: set[str] | None) -> list[Weight]:
    """The matrices of a file; ``wanted`` are the names that its index lists, or ``None`` for all."""
    listed = {name: what for name, what in header(file).items() if wanted is None or name in wanted}
    return [
        Weight(name, shape, flip, file, _reader(lambda: file, name))
        for name, shape, flip in _matrices(file.name, listed, conv)
    ]


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
    from nlora_lab.models import check_model

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
