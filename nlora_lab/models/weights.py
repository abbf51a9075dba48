"""The weight matrices of a model, a safetensors file, a folder or a hub id, each read when it is needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.core.cache import Cache
from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.models.hub import cached_file, check_revision
from nlora_lab.models.layers import Shape, fused_weights, is_conv1d
from nlora_lab.models.layouts import check_plain, check_plain_model
from nlora_lab.models.names import CONFIG, is_layer_number, split_name
from nlora_lab.models.safetensors import (
    FLOATS,
    Header,
    files_in_folder,
    find_transposed,
    holds_experts,
    iterate_matrices,
    read_config,
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
    at = next(i for i, part in enumerate(parts) if is_layer_number(part))
    return ".".join(parts[:at] + parts[at + 1 :])


def list_weights(source: Any, revision: str | None = None, cache: Cache | None = None) -> list[Weight]:
    """List every 2-D floating-point weight of a source, and each expert of a 3-D one. Nothing is read yet.

    For a hub id only the headers of the weight files are fetched. A weight file is downloaded when the first of its
    weights is read.

    Args:
        source: an ``nn.Module``, a safetensors file, a folder with one or several of them (and their index),
            "embedded", "larger", or a hub id.
        revision: the branch, tag or commit of a model on the hub. ``None`` means its main branch.
        cache: where the headers are stored for the next time.

    Returns:
        The weights, in the order of the source.

    Raises:
        InputError: the source has no weight to scan.
        ModelError: a file is missing or damaged, or is a pickle, which can run code when opened.
    """
    if isinstance(source, str | Path):
        listed = _in_source(source, revision, cache)
        label = str(source)
    elif _is_module(source):
        check_revision(revision, None)
        listed = _in_model(source)
        label = f"the {type(source).__name__}"
    else:
        raise InputError(
            f"source={source!r} cannot be scanned: give a model, a safetensors file or folder, 'embedded', or a hub id"
        )
    if not listed:
        raise InputError(f"{label} has no 2-D floating-point weight, so there is nothing to scan; give another source")
    return listed


def _is_module(source: Any) -> bool:
    from torch import nn  # not at the top: names of files and models need no torch

    return isinstance(source, nn.Module)


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
    check_plain_model(model)
    conv1d = {f"{name}.weight" for name, module in model.named_modules() if is_conv1d(module)}
    fused = fused_weights(model)
    experts = {name: shape for name, shape in fused.items() if holds_experts(name, shape)}
    _say_what_is_left_out(fused.keys() - experts.keys())
    turned = find_transposed(experts) | conv1d
    listed = []
    for name, p in model.named_parameters():  # a tied weight comes once
        if (p.ndim != 2 and name not in experts) or not p.is_floating_point() or 0 in p.shape:
            continue
        if p.is_meta:
            raise InputError(f"{name} is on the meta device and has no values; load the weights first")
        transposed = name in turned
        m, n = reversed(p.shape[-2:]) if transposed else p.shape[-2:]
        if name not in experts:
            listed.append(Weight(name, (m, n), transposed, None, p.detach))
            continue
        parts = enumerate(p.detach())
        listed += [Weight(f"{name}.{i}", (m, n), transposed, None, part.detach) for i, part in parts]
    return listed


def _in_source(source: str | Path, revision: str | None, cache: Cache | None) -> list[Weight]:
    files = resolve_files(source)
    check_revision(revision, files)
    if isinstance(files, str):
        listed = list_shards(files, revision, cache)
        if not isinstance(listed, Path):
            return _in_shards(listed)
        files = files_in_folder(listed)
    headers = {file: _named(read_header(file), names) for file, names in files.items()}
    together = _together(headers.values())
    check_plain(str(source), together, read_config(next(iter(files)).parent))
    _say_what_is_left_out(_left_out(together))
    transposed = _transposed(together)
    return [
        Weight(stored.name, stored.shape, stored.transposed, file, tensor_reader(file.absolute, stored))
        for file, header in headers.items()
        for stored in iterate_matrices(header, transposed)
    ]


def _left_out(header: Header) -> list[str]:
    """The tensors with three axes that are neither experts nor kernels of convolutions, which only names tell apart."""
    return [
        name
        for name, (dtype, shape) in header.items()
        if dtype in FLOATS and len(shape) == 3 and min(shape) > 1 and not holds_experts(name, shape)
        if "conv" not in name
    ]


def _say_what_is_left_out(names: Collection[str]) -> None:
    if names:
        warnings.warn(
            f"left out, because the name does not say what the axes are: tensors with three axes, such as {min(names)} "
            f"({len(names)} in all)",
            stacklevel=4,
        )


def _named(header: Header, names: set[str] | None) -> Header:
    """The tensors of a file with ``names``, which its index lists, or all for ``None``."""
    return {name: entry for name, entry in header.items() if names is None or name in names}


def _together(headers: Iterable[Header]) -> Header:
    together: dict[str, tuple[str, list[int]]] = {}
    for header in headers:
        if twice := together.keys() & header.keys():
            raise ModelError(
                f"{min(twice)} is in several files, as the parts of one weight on several cards are; save the model in "
                "one piece"
            )
        together.update(header)
    return together


def _transposed(header: Header) -> set[str]:
    return find_transposed({name: shape for name, (_, shape) in header.items()})


def _in_shards(shards: list[Shard]) -> list[Weight]:
    file = cached_file(shards[0].hub_id, CONFIG, shards[0].commit)
    config = {} if file is None else read_config(file.parent)
    together = _together(shard.header for shard in shards)
    check_plain(shards[0].hub_id, together, config)
    _say_what_is_left_out(_left_out(together))
    transposed = _transposed(together)
    return [
        Weight(stored.name, stored.shape, stored.transposed, None, tensor_reader(shard.download, stored), shard)
        for shard in shards
        for stored in iterate_matrices(shard.header, transposed)
    ]
