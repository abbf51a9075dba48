"""The weight matrices of a model, a safetensors file, a sharded folder or a hub id, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.core.cache import Cache
from nlora_lab.core.errors import InputError
from nlora_lab.models import hub
from nlora_lab.models.safetensors import _files, _in_folder, _matrices, _reader, _stored_transposed, header

if TYPE_CHECKING:
    from torch import Tensor


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
