"""Every weight matrix of a model in one table: its spectrum, and how well low rank can imitate it."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlora_lab.core.cache import Cache, cache_folder
from nlora_lab.core.errors import InputError
from nlora_lab.core.progress import ProgressLine
from nlora_lab.core.validation import whole_number
from nlora_lab.lowrank.checks import check_matrix, rescaled
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.svd import randomized_svd, singular_values
from nlora_lab.models.hub import without_bars
from nlora_lab.models.weights import Weight, places, weights
from nlora_lab.spectra.measures import (
    block_condition,
    effective_rank,
    leading_leverage,
    marchenko_pastur,
    power_law,
    stable_rank,
)

if TYPE_CHECKING:
    import pandas as pd

RANKS = (4, 8, 16, 32)
FORMAT = 2  # of a cached row: raise it whenever a number would come out differently
BASE = {"std", "stable_rank", "effective_rank", "power_law", "sigma_max", "above_noise"}
LONG_DOWNLOAD = 100 * 10**6  # bytes
LONG = 20_000  # units of _cost: half a minute or so on two cores
PER_RANK = ("nystrom", "optimal", "cross", "svd", "cond", "leverage")


def scan(
    source: Any,
    ranks: Sequence[int] = RANKS,
    *,
    device: str | None = None,
    cache: bool | str | Path | None = True,
    progress: bool | None = None,
    revision: str | None = None,
    keep: bool = True,
) -> pd.DataFrame:
    """One row for each 2-D floating-point weight of ``source``, in its order.

    Args:
        source: a model, a safetensors file, a folder of them (sharded too), "embedded", or a hub id.
        ranks: at which to measure the approximations; NaN where a matrix is too small for one.
        device: where to compute ("cuda", "cpu"; default: the best one here).
        cache: keep each row as soon as it is there, by the content of its matrix: a scan that was stopped goes
            on where it was, and a second one is instant. A folder of your own, or ``False`` for none.
        progress: a line on stderr with the time left; by default in a terminal, and for a scan that will take
            long anywhere (there, a line every ten seconds). It also says which file is being downloaded.
        revision: branch, tag or commit of a model on the hub; default: its newest state.
        keep: whether what is downloaded stays in the hub's cache. ``False`` deletes each weight file as soon as its
            matrices are done, so that a large model needs the disk of one file; files that were there before stay.

    Of a model on the hub the names and shapes are fetched first, then one weight file at a time, and only those
    with a row that is not in the cache: a second scan of the same commit downloads no weights.

    Columns:
        ``layer``: the first number in the weight's name, −1 without one; ``module``: what follows it (with
        what stands before it, where an encoder and a decoder would be alike); ``name``: all of it;
        ``out``, ``in``: its shape; ``std``: root mean square of its entries;
        ``stable_rank``, ``effective_rank``, ``power_law``, ``sigma_max``: see :mod:`nlora_lab.spectra.measures`;
        ``above_noise``: how many singular values stand above the Marchenko–Pastur edge of that ``std``;
        and for each rank r, relative Frobenius errors and what explains them:
        ``nystrom_r``: leading block, pseudo-inverse (NLoRA's start); ``optimal_r``: the same rows and
        columns with their best core; ``cross_r``: complete pivoting; ``svd_r``: the best possible;
        ``cond_r``: condition number of the leading block; ``leverage_r``: its coherence, that is the share of
        the dominant singular subspaces in the leading rows and columns, 1 being average.

    One tensor is in memory at a time. Raises :class:`InputError` for a source or rank that cannot be
    used, and for a weight that holds NaN or infinity, by name; rows computed before stay in the cache.
    """
    import pandas as pd

    folder = _cache_folder(cache)
    kept = Cache(folder) if folder is not None else None
    store = _Store(kept) if kept is not None else None
    found = weights(source, revision, kept)
    wanted = _check_ranks(ranks, found)
    where = _device(device)
    line = _progress(found, progress)
    rows = []
    with _one_shard_at_a_time(found, keep, line, silent=progress is False) as begin:
        for weight, place in zip(found, places(found), strict=True):
            begin(weight)
            measured, fresh = _measured(weight, wanted, where, store)
            rows.append(_row(weight, place, measured, wanted))
            if line is not None:
                if not fresh:  # what was in the cache says nothing of how long the others take
                    line.skip(_cost(weight))
                line.advance(f"scanned {len(rows)} of {len(found)}", _cost(weight) if fresh else 0)
    if line is not None:
        line.say(f"scanned {len(rows)} of {len(found)} matrices")
    return pd.DataFrame(rows)


def spectrum(source: Any, name: str, *, device: str | None = None, revision: str | None = None) -> Tensor:
    """The singular values (k,) of the weight called ``name`` (with or without ``.weight``), largest first.

    Of a model on the hub (as of ``revision``), only the file that holds this weight is downloaded.
    """
    return singular_values(find(source, name, revision).read().to(_device(device)))


def find(source: Any, name: str, revision: str | None = None) -> Weight:
    """The weight of ``source`` called ``name``; :class:`InputError` lists some names if there is none."""
    found = weights(source, revision)
    for weight in found:
        if name in (weight.name, weight.name.removesuffix(".weight")):
            return weight
    some = ", ".join(w.name for w in found[:3])
    raise InputError(f"name={name!r} is not one of the {len(found)} weights; the first are {some}")


def measure(W: Tensor, ranks: Iterable[int] = RANKS) -> dict[str, float]:
    """The numbers of one row of :func:`scan`, but for its name and shape. ``W`` is (m, n).

    A zero matrix has no relative error: NaN. Everything is deterministic: the sketch behind
    ``leverage`` has a seed of its own.
    """
    work = check_matrix(W)
    if work.ndim != 2:
        raise InputError(f"W must be one matrix, not a batch {tuple(work.shape)}; measure them one by one")
    work, scale = rescaled(work)  # only std and sigma_max depend on the scale
    m, n = work.shape
    usable = [r for r in ranks if r <= min(m, n)]
    out: dict[str, float] = {"std": float(torch.linalg.vector_norm(work)) / math.sqrt(m * n)}
    if out["std"] == 0 or not usable:
        top = 0
    else:
        top = max(usable)
        out |= _curves(work, usable, top)
        out |= _leading_block(work, usable, top)
    s = singular_values(work).double()
    out |= {
        "stable_rank": stable_rank(s),
        "effective_rank": effective_rank(s),
        "power_law": power_law(s),
        "sigma_max": float(s[0]),
        "above_noise": float((s > marchenko_pastur(m, n, out["std"])[1]).sum()) if out["std"] > 0 else 0.0,
    }
    if top:
        tails = torch.cat([s.square().flip(0).cumsum(0).flip(0), s.new_zeros(1)])
        out |= {f"svd_r{r}": float((tails[r] / tails[0]).sqrt()) for r in usable}
    return out | {"std": out["std"] / scale, "sigma_max": out["sigma_max"] / scale}


def _curves(W: Tensor, usable: list[int], top: int) -> dict[str, float]:
    """One elimination each serves all ranks."""
    kinds: dict[str, Any] = {"nystrom": {}, "optimal": {"core": "optimal"}, "cross": {"pivots": "cross"}}
    out: dict[str, float] = {}
    for kind, options in kinds.items():
        errors = error_curve(W, top, **options).tolist()
        out |= {f"{kind}_r{r}": errors[r - 1] for r in usable}
    return out


def _leading_block(W: Tensor, usable: list[int], top: int) -> dict[str, float]:
    # wide and well iterated, whatever ranks were asked for: a flat spectrum is slow to separate
    sketch = randomized_svd(W, top, oversample=64, n_iter=4, generator=torch.Generator().manual_seed(0))
    out = {}
    for r in usable:
        sides = leading_leverage(sketch.left, r), leading_leverage(sketch.right.mT, r)
        out[f"leverage_r{r}"] = sum(sides) / 2
        out[f"cond_r{r}"] = block_condition(W, r)
    return out


@contextmanager
def _one_shard_at_a_time(
    found: list[Weight], keep: bool, line: ProgressLine | None, *, silent: bool
) -> Iterator[Callable[[Weight], None]]:
    """What to call before each weight: a file that was downloaded for the weights before goes, unless ``keep``."""
    shards = {id(w.shard): w.shard for w in found if w.shard is not None}.values()
    for shard in shards:
        shard.keep = keep
        shard.tell = line.say if line is not None else None

    def begin(weight: Weight) -> None:
        for shard in shards:
            if shard is not weight.shard:
                shard.forget()

    try:
        with without_bars() if silent else nullcontext():
            yield begin
    finally:
        for shard in shards:
            shard.forget()


# --- rows, and where they are kept ---


@dataclass
class _Store:
    """Rows by the content of their matrix, and which content a file was last seen to have."""

    cache: Cache

    def digest(self, weight: Weight) -> str | None:
        """The content of ``weight`` as of the last scan, if its file has not changed since."""
        file = _identity(weight)
        if file is None:
            return None
        seen = self.cache.get(self._file(file[0]))
        if not isinstance(seen, dict) or seen.get("stamp") != file[1]:
            return None
        digests = seen.get("digests")
        known = digests.get(weight.name) if isinstance(digests, dict) else None
        return known if isinstance(known, str) else None

    def remember(self, weight: Weight, digest: str) -> None:
        file = _identity(weight)
        if file is None:
            return
        name, stamp = self._file(file[0]), file[1]
        seen = self.cache.get(name)
        if not isinstance(seen, dict) or seen.get("stamp") != stamp or not isinstance(seen.get("digests"), dict):
            seen = {"stamp": stamp, "digests": {}}
        seen["digests"][weight.name] = digest
        self.cache.put(name, seen)

    def row(self, digest: str, ranks: Sequence[int], shape: tuple[int, int]) -> dict[str, float] | None:
        """A kept row if it is whole, else ``None``: then it is measured again."""
        kept = self.cache.get(self._row(digest, ranks))
        if not isinstance(kept, dict) or not all(map(_is_number, kept.values())):
            return None
        measured = {f"{kind}_r{r}" for kind in PER_RANK for r in ranks if r <= min(shape)}
        whole_row = kept.keys() == BASE | (measured if kept.get("std") else set())
        return {k: float(v) for k, v in kept.items()} if whole_row else None

    def keep(self, digest: str, ranks: Sequence[int], row: dict[str, float]) -> None:
        # JSON has neither NaN nor infinity; a condition number can be infinite
        kept = {k: v if math.isfinite(v) else str(v) for k, v in row.items()}
        self.cache.put(self._row(digest, ranks), kept)

    @staticmethod
    def _file(name: str) -> str:
        return f"files/{hashlib.sha256(name.encode()).hexdigest()[:24]}"

    @staticmethod
    def _row(digest: str, ranks: Sequence[int]) -> str:
        asked = hashlib.sha256(repr(list(ranks)).encode()).hexdigest()[:12]  # a file's name has room for few ranks
        return f"spectra/{FORMAT}/{digest}-{asked}"


def _is_number(value: object) -> bool:
    return value in ("inf", "nan") or (isinstance(value, int | float) and not isinstance(value, bool))


def _measured(
    weight: Weight, ranks: list[int], device: torch.device, store: _Store | None
) -> tuple[dict[str, float], bool]:
    """The numbers of a weight, and whether they had to be computed."""
    digest = store.digest(weight) if store else None
    kept = store.row(digest, ranks, weight.shape) if store and digest else None
    if kept is not None:
        return kept, False
    value = weight.read()
    if store is not None:
        digest = content(value)
        store.remember(weight, digest)
        kept = store.row(digest, ranks, weight.shape)
        if kept is not None:
            return kept, False
    try:
        value = check_matrix(value.to(device))  # in float32 from here on: only one copy stays
    except InputError as error:
        raise InputError(f"{weight.name}: {error}") from error
    row = measure(value, ranks)
    if store is not None and digest is not None:
        store.keep(digest, ranks, row)
    return row, True


def content(W: Tensor) -> str:
    """A digest of the values, the dtype and the shape of ``W``."""
    flat = W.detach().cpu().contiguous()
    seen = hashlib.blake2b(f"{flat.dtype} {tuple(flat.shape)}".encode(), digest_size=16)
    seen.update(flat.view(torch.uint8).numpy().data)
    return seen.hexdigest()


def _identity(weight: Weight) -> tuple[str, list[int]] | None:
    """A name for the file of a weight and a stamp that changes with it; ``None`` for a live model.

    On the hub the name is that of the content, whatever the commit, and needs no file here.
    """
    if weight.shard is not None:
        return weight.shard.content, [weight.shard.size]
    if weight.file is None:
        return None
    state = weight.file.stat()
    return str(weight.file.resolve()), [state.st_size, state.st_mtime_ns]


def _row(weight: Weight, place: tuple[int, str], measured: dict[str, float], ranks: list[int]) -> dict[str, Any]:
    layer, module = place
    row: dict[str, Any] = {"layer": layer, "module": module, "out": weight.shape[0], "in": weight.shape[1]}
    for name in ("std", "stable_rank", "effective_rank", "power_law", "sigma_max"):
        row[name] = measured.get(name, math.nan)
    row["above_noise"] = int(measured.get("above_noise", 0))
    for kind in PER_RANK:
        row |= {f"{kind}_r{r}": measured.get(f"{kind}_r{r}", math.nan) for r in ranks}
    return {**row, "name": weight.name}


# --- what the caller said ---


def _check_ranks(ranks: Sequence[int], found: list[Weight]) -> list[int]:
    limit = max(min(w.shape) for w in found)
    try:
        given = list(ranks)
    except TypeError:
        raise InputError(f"ranks={ranks!r} must be a sequence of whole numbers, for example (4, 8, 16)") from None
    numbers = [whole_number(r) for r in given]
    for r, number in zip(given, numbers, strict=True):
        if number is None or number < 1:
            raise InputError(f"ranks: {r!r} must be a whole number from 1 on")
    wanted = sorted({r for r in numbers if r is not None})
    if not any(r <= limit for r in wanted):
        raise InputError(f"ranks={given}: the largest rank a weight here can have is {limit}; give one up to it")
    return wanted


def _device(name: str | None) -> torch.device:
    from nlora_lab.core.devices import find_device

    found = torch.device(find_device(name).kind)
    return torch.device("cpu") if found.type == "mps" else found  # which has neither float64 nor an SVD


def _cache_folder(cache: bool | str | Path | None) -> Path | None:
    if cache is None or cache is False:
        return None
    if cache is True:
        return cache_folder()
    if not isinstance(cache, str | Path) or not str(cache):
        raise InputError(f"cache={cache!r} must be True, False or a folder")
    try:
        return Path(cache).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise InputError(f"cache={cache!r} is no folder ({error}); give another one") from error


def _cost(weight: Weight) -> int:
    """In units of one small matrix: the eigenvalues dominate."""
    m, n = weight.shape
    return 1 + m * n * min(m, n) // 10**6


def _progress(found: list[Weight], wanted: bool | None) -> ProgressLine | None:
    total = sum(map(_cost, found))
    if wanted is None:
        shards = {id(w.shard): w.shard for w in found if w.shard is not None}.values()
        wanted = sum(shard.size for shard in shards if shard.here() is None) > LONG_DOWNLOAD
        wanted = wanted or total > LONG or (sys.stderr is not None and sys.stderr.isatty())
    return ProgressLine(total) if wanted else None
