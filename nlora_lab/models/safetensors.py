"""Local safetensors files: their headers, the index of a model that is split, and reading one tensor at a time."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.core.documents import check_regular, parse_json, read_json
from nlora_lab.core.errors import ModelError
from nlora_lab.models.names import CONFIG, INDEX, SINGLE, check_model, is_pickle, read_document

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
CONV1D_NAME = re.compile(r"(?:^|\.)(c_attn|q_attn|c_proj|c_fc)\.weight$")
# where several matrices are stored in one tensor
EXPERTS = re.compile(r"(^|[._])(experts?|moe)([._]|$)|\b(input|output)_linear\.weight$")
GATE_UP = re.compile(r"\b(gate_up_proj|fc1)(?=(\.weight)?$)")  # two matrices side by side: as large as twice the next
DOWN = {"gate_up_proj": "down_proj", "fc1": "fc2"}

Header = dict[str, tuple[str, list[int]]]
"""For each tensor in a file, by name: its dtype as safetensors writes it, and its shape."""

FileTensors = dict[Path, set[str] | None]
"""The files to read. Each has the names of the tensors to read from it, or ``None`` for all."""


def read_header(file: Path) -> Header:
    """Read the dtype and shape of every tensor in a safetensors file, and nothing else of it.

    Args:
        file: the file.

    Returns:
        Dtype and shape by name.

    Raises:
        ModelError: the file is truncated, or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        _check_header(file)
        with safe_open(file, framework="numpy") as f:  # reads no tensor, and imports no torch
            slices = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118 - not a dict
            return {name: (part.get_dtype(), list(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        reason = " ".join(str(error).split())[:150]
        raise ModelError(f"{file} is truncated or not safetensors ({reason}); download or save it again") from error


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix in a safetensors file.

    Attributes:
        name: its name.
        shape: its shape as (out, in).
        transposed: whether it is stored transposed, as (in, out).
        tensor: the tensor that holds it.
        expert: its place in a tensor of several matrices (experts, ·, ·), or ``None`` for a tensor of its own.
    """

    name: str
    shape: tuple[int, int]
    transposed: bool
    tensor: str
    expert: int | None = None


def _check_header(file: Path) -> None:
    """Parse the JSON header of a safetensors file more strictly than safetensors: no key may come twice."""
    check_regular(file)
    with file.open("rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        if size > MOST_HEADER_BYTES:
            raise ValueError(f"its header has {size} bytes")
        parse_json(f.read(size).decode())


MOST_HEADER_BYTES = 10**8  # safetensors' own bound


def find_transposed(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Find the weights of a model that are stored as (in, out), by the shapes of the weights beside them.

    The type of a model does not say it: a model of several parts has one type, and a checkpoint may store experts in
    another orientation than the model that transformers makes of it.

    Args:
        shapes: the shape of every tensor of the model, by name.

    Returns:
        The names of these weights: those of ``Conv1D`` layers, and the experts of a gated layer.
    """
    kinds = {name: match[1] for name in shapes if (match := CONV1D_NAME.search(name)) and len(shapes[name]) == 2}
    # query, key and value together are wider than their input, and so is the inside of a feed-forward layer
    widening = {kind: {_block(n): shapes[n] for n in kinds if kinds[n] == kind} for kind in ("c_fc", "c_attn")}
    blocks = widening["c_fc"] | widening["c_attn"]
    found = {n for n in kinds if _block(n) in blocks and blocks[_block(n)][0] < blocks[_block(n)][1]}
    for name, shape in shapes.items():
        match = GATE_UP.search(name) if len(shape) == 3 else None
        down = name[: match.start()] + DOWN[match[1]] + name[match.end() :] if match else ""
        if len(shapes.get(down, ())) == 3 and [*shape[1:]] == [shapes[down][2], 2 * shapes[down][1]]:
            found |= {name, down}
    return found


def _block(name: str) -> str:
    """The block of a layer: "h.0" for "h.0.attn.c_attn.weight"."""
    return ".".join(name.split(".")[:-3])


def iterate_matrices(header: Header, transposed: Collection[str]) -> Iterator[StoredMatrix]:
    """Yield the matrices of a file: its 2-D floating-point tensors, and each expert of a tensor of experts.

    Args:
        header: what the file holds.
        transposed: the tensors of the model that are stored as (in, out), see ``find_transposed``.

    Yields:
        One matrix after the other.
    """
    for name, (dtype, shape) in header.items():
        if dtype not in FLOATS or 0 in shape:
            continue
        if len(shape) == 2:
            yield StoredMatrix(name, _out_in(shape, name in transposed), name in transposed, name)
        elif holds_experts(name, shape):
            for expert in range(shape[0]):
                turned = name in transposed
                yield StoredMatrix(f"{name}.{expert}", _out_in(shape[1:], turned), turned, name, expert)


def holds_experts(name: str, shape: Sequence[int]) -> bool:
    """Return whether a tensor holds several matrices, by its name: the shape is that of any tensor with three axes."""
    return len(shape) == 3 and min(shape) > 1 and EXPERTS.search(name) is not None


def _out_in(shape: list[int], transposed: bool) -> tuple[int, int]:
    return (shape[1], shape[0]) if transposed else (shape[0], shape[1])


def read_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a model folder; empty if there is none. One that cannot be read is an error."""
    return read_document(folder / CONFIG) if os.path.lexists(folder / CONFIG) else {}


def tensor_reader(find_file: Callable[[], Path], matrix: StoredMatrix) -> Callable[[], Tensor]:
    """Return a function that reads ``matrix``, as it is stored, from the file that ``find_file`` returns."""

    def read() -> Tensor:
        from safetensors import SafetensorError, safe_open

        file = find_file()
        # opened anew each time: the file is mapped, and its pages count as ours until it is closed
        try:
            with safe_open(file, framework="pt") as f:
                if matrix.expert is None:
                    value: Tensor = f.get_tensor(matrix.tensor)
                    return value
                return f.get_slice(matrix.tensor)[matrix.expert]  # type: ignore[no-any-return]
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{matrix.name} cannot be read from {file} ({error}); delete the file, and download or save it again"
            ) from error

    return read


def resolve_files(source: str | Path) -> FileTensors | str:
    """Find the weight files of a source.

    Args:
        source: a safetensors file, a folder of them, "embedded", "larger", or a hub id.

    Returns:
        The files, or the hub id.

    Raises:
        ModelError: the source is none of the four, holds no safetensors file, or cannot be read.
    """
    try:
        return _resolve_files(source)
    except (OSError, RuntimeError) as error:  # too long a name, no such home, a folder that cannot be read
        raise ModelError(f"source={str(source)[:200]!r} cannot be read ({error}); check the path") from error


def _resolve_files(source: str | Path) -> FileTensors | str:
    path = Path(source).expanduser() if str(source) else None
    if path is not None and path.is_file():
        _refuse_pickle(path)
        return {path: None}
    if path is not None and path.is_dir():
        return files_in_folder(path)
    if path is not None and (path.suffix.lower() == ".safetensors" or is_pickle(path)):
        raise ModelError(f"the file {path} does not exist; check the path")
    model = check_model(str(source))
    return files_in_folder(model) if isinstance(model, Path) else model


def _refuse_pickle(path: Path) -> None:
    if is_pickle(path):
        raise ModelError(
            f"{path} is a pickle, which can run code when opened, so it is not opened; convert it where you trust it: "
            "load the model with transformers and call save_pretrained, which writes safetensors"
        )


def files_in_folder(folder: Path) -> FileTensors:
    """Find the weight files of a folder: those in its index, else ``model.safetensors``, else every safetensors file.

    Args:
        folder: the folder of a model.

    Returns:
        The files, with the names of their tensors where an index lists them.

    Raises:
        ModelError: the index is damaged or names a missing file, or the folder holds no safetensors file.
    """
    for index in sorted(folder.glob(INDEX)):
        listed = read_index(index)
        missing = next((file.name for file in listed if not file.is_file()), None)
        if missing is not None:
            raise ModelError(f"{index} names {missing}, which is missing; download the model again")
        return listed
    files = [file for file in sorted(folder.glob("*.safetensors")) if file.is_file()]
    single = [file for file in files if file.name == SINGLE]  # other files beside it are other formats or adapters
    if files:
        return dict.fromkeys(single or files)
    for path in sorted(folder.iterdir()):
        _refuse_pickle(path)
    raise ModelError(f"the folder {folder} holds no .safetensors file; save the model with save_pretrained")


def read_index(index: Path) -> FileTensors:
    """Read the index of a model that is split into several files.

    Args:
        index: the index, a JSON file.

    Returns:
        The files that it names, which lie beside it, each with the names of its tensors.

    Raises:
        ModelError: the file is not an index, or names a file outside its folder.
    """
    try:
        listed = read_json(index)["weight_map"]
        names = sorted(set(listed.values()))
        # only plain names: an index must not lead out of its folder
        files: FileTensors = {
            index.parent / name: {tensor for tensor, file in listed.items() if file == name}
            for name in names if Path(name).name == name
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not a safetensors index ({error!r}); download the model again") from error
    if not files or len(files) != len(names):
        raise ModelError(f"{index} is not a safetensors index: it names no file beside it; download the model again")
    return files
