"""The weight matrices of a model, a safetensors file, a folder or a hub id, each read when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.core.cache import Cache
from nlora_lab.core.errors import InputError
from nlora_lab.models.hub import cached_file, check_revision
from nlora_lab.models.layers import Shape, is_conv1d
from nlora_lab.models.names import CONFIG
from nlora_lab.models.safetensors import (
    files_in_folder,
    has_conv1d,
    iterate_matrices,
    read_header,
    resolve_files,
    tensor_reader,
)
from nlora_lab.models.shards import Shard, list_shards

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Weight:
    """One weight matrix of a model, not read yet.

    Attributes:
        name: its name in the model.
        shape: its shape as (out, in).
        transposed: whether it is stored as (in, out). ``read`` undoes that.
        file: the file that it lies in, or ``None`` for a live model and for the hub.
        load: reads it as it is stored.
        shard: the weight file on the hub that it lies in, or ``None`` elsewhere.
    """

    name: str
    shape: Shape
    transposed: bool
    file: Path | None
    load: Callable[[], Tensor]
    shard: Shard | None = None

    def read(self) -> Tensor:
        """Read the values. A file on the hub is downloaded first.

        Returns:
            The matrix, (out, in), in the dtype that it is stored in.

        Raises:
            ModelError: the file cannot be read or downloaded.
        """
        value = self.load()
        return value.T if self.transposed else value

    @property
    def place(self) -> tuple[int, str]:
        """The layer and the module: the first number in the name, and the part after it. See ``split_name``."""
        return split_name(self.name)


def places(matrices: list[Weight]) -> list[tuple[int, str]]:
    """Return the layer and the module of each weight, so that no two are alike.

    An encoder and a decoder each have a layer 0. Where two weights would be alike, the part of the name before the
    number is put before the module.

    Args:
        matrices: the weights of one model.

    Returns:
        One pair (layer, module) for each weight.
    """
    plain = [weight.place for weight in matrices]
    if len(set(plain)) == len(plain):
        return plain
    return [
        (layer, module if layer < 0 else _with_prefix(weight.name))
        for weight, (layer, module) in zip(matrices, plain, strict=True)
    ]


def _with_prefix(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    at = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[:at] + parts[at + 1 :])


def split_name(name: str) -> tuple[int, str]:
    """Split the name of a weight into layer and module.

    For example, ``encoder.layer.3.intermediate.dense.weight`` is ``(3, "intermediate.dense")``.

    Args:
        name: the name. A final ``.weight`` is left out.

    Returns:
        The first number in the name and the part after it; without a number, −1 and the complete name.
    """
    parts = name.removesuffix(".weight").split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None or at + 1 == len(parts):
        return -1, ".".join(parts)
    return int(parts[at]), ".".join(parts[at + 1 :])


def list_weights(source: Any, revision: str | None = None, cache: Cache | None = None) -> list[Weight]:
    """List every 2-D floating-point weight of a source. Nothing is read yet.

    For a hub id only the headers of the weight files are fetched. A weight file is downloaded when the first of its
    weights is read.

    Args:
        source: an ``nn.Module``, a safetensors file, a folder with one or several of them (and their index),
            "embedded", or a hub id.
        revision: the branch, tag or commit of a model on the hub. ``None`` means its main branch.
        cache: where the headers are stored for the next time.

    Returns:
        The weights, in the order of the source.

    Raises:
        InputError: the source has no weight to scan.
        ModelError: a file is missing or damaged, or is a pickle, which can run code when opened.
    """
    from torch import nn

    if isinstance(source, nn.Module):
        check_revision(revision, None)
        listed = _in_model(source)
        label = f"the {type(source).__name__}"
    elif isinstance(source, str | Path):
        listed = _in_source(source, revision, cache)
        label = str(source)
    else:
        raise InputError(
            f"source={source!r} cannot be scanned: give a model, a safetensors file or folder, 'embedded', or a hub id"
        )
    if not listed:
        raise InputError(f"{label} has no 2-D floating-point weight, so there is nothing to scan; give another source")
    return listed


def find_weight(source: Any, name: str, revision: str | None = None) -> Weight:
    """Find one weight of a source by its name.

    Args:
        source: as for ``list_weights``.
        name: the name, with or without ``.weight``.
        revision: the branch, tag or commit of a model on the hub. ``None`` means its main branch.

    Returns:
        The weight.

    Raises:
        InputError: the source has no such weight. The message lists some names.
    """
    listed = list_weights(source, revision)
    for weight in listed:
        if name in (weight.name, weight.name.removesuffix(".weight")):
            return weight
    examples = ", ".join(weight.name for weight in listed[:3])
    raise InputError(f"name={name!r} is not one of the {len(listed)} weights; the first are {examples}")


def _in_model(model: Any) -> list[Weight]:
    conv1d = {f"{name}.weight" for name, module in model.named_modules() if is_conv1d(module)}
    listed = []
    for name, p in model.named_parameters():  # a tied weight comes once
        if p.ndim != 2 or not p.is_floating_point() or 0 in p.shape:
            continue
        if p.is_meta:
            raise InputError(f"{name} is on the meta device and has no values; load the weights first")
        shape = (p.shape[1], p.shape[0]) if name in conv1d else (p.shape[0], p.shape[1])
        listed.append(Weight(name, shape, name in conv1d, None, p.detach))
    return listed


def _in_source(source: str | Path, revision: str | None, cache: Cache | None) -> list[Weight]:
    files = resolve_files(source)
    check_revision(revision, files)
    if isinstance(files, str):
        listed = list_shards(files, revision, cache)
        if not isinstance(listed, Path):
            return _in_shards(listed)
        files = files_in_folder(listed)
    conv1d = has_conv1d(next(iter(files)).parent)
    return [weight for file, names in files.items() for weight in _in_file(file, conv1d, names)]


def _in_shards(shards: list[Shard]) -> list[Weight]:
    config = cached_file(shards[0].hub_id, CONFIG, shards[0].commit)
    conv1d = config is not None and has_conv1d(config.parent)
    return [
        Weight(name, shape, transposed, None, tensor_reader(shard.download, name), shard)
        for shard in shards
        for name, shape, transposed in iterate_matrices(shard.name, shard.header, conv1d)
    ]


def _in_file(file: Path, conv1d: bool, names: set[str] | None) -> list[Weight]:
    """The matrices of a file: those with ``names``, which its index lists, or all for ``None``."""
    header = {name: entry for name, entry in read_header(file).items() if names is None or name in names}
    return [
        Weight(name, shape, transposed, file, tensor_reader(lambda: file, name))
        for name, shape, transposed in iterate_matrices(file.name, header, conv1d)
    ]
