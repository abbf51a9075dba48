"""The scan of a model: one table with the spectrum of every weight matrix, and how well low rank approximates it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlora_lab.core.array_types import Float
from nlora_lab.core.cache import Cache, cache_folder
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import expand_path
from nlora_lab.core.progress import ProgressLine
from nlora_lab.core.validation import check_whole_number
from nlora_lab.lowrank.checks import check_matrix
from nlora_lab.lowrank.svd import singular_values
from nlora_lab.models.hub import without_bars
from nlora_lab.models.shards import Shard
from nlora_lab.models.weights import Weight, find_weight, list_weights, places
from nlora_lab.spectra.matrix_numbers import PLAIN_COLUMNS, measure, rank_columns
from nlora_lab.spectra.scan_cache import RowCache, content_digest

if TYPE_CHECKING:
    import pandas as pd

RANKS = (4, 8, 16, 32)
LONG_DOWNLOAD = 100 * 10**6  # bytes
LONG_SCAN = 20_000  # units of _cost: half a minute or so on two cores


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
    """Measure every weight matrix of a model: its spectrum, and how well low rank approximates it.

    One tensor is in memory at a time. For a model on the hub, the names and shapes are fetched first. Then weight files
    are downloaded one at a time, and only those with a row that is not in the cache. A second scan of the same commit
    downloads no weights.

    Args:
        source: a model, a safetensors file, a folder of them (also sharded), "embedded", "larger", or a hub id.
        ranks: where to measure the approximations.
        device: where to compute ("cuda" or "cpu"). ``None`` takes the best one of this machine.
        cache: store each row when it is ready, by the content of its matrix. A scan that was interrupted resumes, and a
            second scan is immediate. Give a folder to use it instead of the default, or ``False`` for no cache.
        progress: whether to print a line on stderr with the time left and with the file that is being downloaded.
            ``None`` prints it in a terminal, and anywhere else if the scan will take long (one line every ten seconds).
        revision: the branch, tag or commit of a model on the hub. ``None`` takes its newest state.
        keep: whether downloaded files stay in the cache of the hub. ``False`` deletes each weight file as soon as its
            matrices are done, so that a large model needs disk space for one file. Files from earlier downloads stay.

    Returns:
        One row for each 2-D floating-point weight, in the order of the source. NaN stands where a matrix is too small
        for a rank, or is zero. The columns are:

        - ``layer``: the first number in the name of the weight, −1 if it has none.
        - ``module``: the part of the name after that number. Where an encoder and a decoder would be alike, the part
          before the number comes first.
        - ``out``, ``in``: the shape.
        - ``std``: the root mean square of the entries.
        - ``stable_rank``, ``effective_rank``, ``power_law``: see the functions of these names.
        - ``sigma_max``: the largest singular value.
        - ``above_noise``: how many singular values lie above the Marchenko–Pastur edge for that ``std``.
        - ``nystrom_r``: for each rank r, the relative Frobenius error of the leading block with its pseudo-inverse
          (NLoRA's start). ``optimal_r``: of the same rows and columns with their best core. ``cross_r``: of complete
          pivoting. ``svd_r``: the best possible error.
        - ``cond_r``: the condition number of the leading block.
        - ``leverage_r``: the coherence of the leading block, that is the share of the dominant singular subspaces in
          the leading rows and columns. 1 is average.
        - ``name``: the complete name of the weight.

    Raises:
        InputError: the source or an option cannot be used, or a weight holds NaN or infinity (the message names it).
            Rows that were computed before stay in the cache.
    """
    import pandas as pd

    folder = _cache_folder(cache)
    documents = Cache(folder) if folder is not None else None
    if documents is not None:
        documents.tidy()
    row_cache = RowCache(documents) if documents is not None else None
    matrices = list_weights(source, revision, documents)
    ranks = _check_ranks(ranks, matrices)
    place = _device(device)
    line = _progress_line(matrices, progress)
    rows = []
    with _one_shard_at_a_time(matrices, keep, line, silent=progress is False) as begin:
        for weight, (layer, module) in zip(matrices, places(matrices), strict=True):
            begin(weight)
            numbers, computed = _measured(weight, ranks, place, row_cache)
            rows.append(_table_row(weight, layer, module, numbers, ranks))
            if line is not None:
                if not computed:  # a row from the cache says nothing about the time of the others
                    line.skip(_cost(weight))
                line.advance(f"scanned {len(rows)} of {len(matrices)}", _cost(weight) if computed else 0)
    if line is not None:
        line.say(f"scanned {len(rows)} of {len(matrices)} matrices")
    return pd.DataFrame(rows)


def spectrum(source: Any, name: str, *, device: str | None = None, revision: str | None = None) -> Float[Tensor, " k"]:
    """Compute the singular values of one weight of a model.

    For a model on the hub, only the file that holds this weight is downloaded.

    Args:
        source: as for ``scan``.
        name: the name of the weight, with or without ``.weight``.
        device: where to compute. ``None`` takes the best one of this machine.
        revision: the branch, tag or commit of a model on the hub. ``None`` takes its newest state.

    Returns:
        The singular values, (k,), largest first, in the dtype of the weight (at least float32).

    Raises:
        InputError: the source cannot be used, or has no such weight.
    """
    return singular_values(find_weight(source, name, revision).read().to(_device(device)))


@contextmanager
def _one_shard_at_a_time(
    matrices: list[Weight], keep: bool, line: ProgressLine | None, *, silent: bool
) -> Iterator[Callable[[Weight], None]]:
    """Yield the function to call before each weight. Unless ``keep``, it deletes the files of the weights before."""
    shards = _shards(matrices)
    for shard in shards:
        shard.keep = keep
        shard.report = line.say if line is not None else None

    def begin(weight: Weight) -> None:
        for shard in shards:
            if shard is not weight.shard:
                shard.discard()

    try:
        with without_bars() if silent else nullcontext():
            yield begin
    finally:
        for shard in shards:
            shard.discard()


def _shards(matrices: list[Weight]) -> list[Shard]:
    """The different weight files on the hub that ``matrices`` lie in."""
    return list({id(w.shard): w.shard for w in matrices if w.shard is not None}.values())


def _measured(
    weight: Weight, ranks: list[int], device: torch.device, row_cache: RowCache | None
) -> tuple[dict[str, float], bool]:
    """The numbers of a weight, and whether they had to be computed."""
    digest = row_cache.digest(weight) if row_cache else None
    row = row_cache.row(digest, ranks, weight.shape) if row_cache and digest else None
    if row is not None:
        return row, False
    value = weight.read()
    if row_cache is not None:
        digest = content_digest(value)
        row_cache.put_digest(weight, digest)
        row = row_cache.row(digest, ranks, weight.shape)
        if row is not None:
            return row, False
    try:
        stored, value = value, check_matrix(value.to(device))
    except InputError as error:
        raise InputError(f"{weight.name}: {error}") from error
    is_copy = value.data_ptr() != stored.data_ptr()
    del stored  # in float32 from here on: only one copy stays
    row = measure(value, ranks, weight.read if is_copy else None)
    if row_cache is not None and digest is not None:
        row_cache.put_row(digest, ranks, row)
    return row, True


def _table_row(weight: Weight, layer: int, module: str, numbers: dict[str, float], ranks: list[int]) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": layer, "module": module, "out": weight.shape[0], "in": weight.shape[1]}
    row |= {column: numbers.get(column, math.nan) for column in (*PLAIN_COLUMNS, *rank_columns(ranks))}
    return {**row, "above_noise": int(numbers.get("above_noise", 0)), "name": weight.name}


def _check_ranks(ranks: Sequence[int], matrices: list[Weight]) -> list[int]:
    """The ranks in order, each once."""
    limit = max(min(w.shape) for w in matrices)
    try:
        requested = list(ranks)
    except TypeError:
        raise InputError(f"ranks={ranks!r} must be a sequence of whole numbers, for example (4, 8, 16)") from None
    unique = sorted({check_whole_number(f"ranks[{i}]", r) for i, r in enumerate(requested)})
    if not any(r <= limit for r in unique):
        raise InputError(
            f"ranks={requested}: the largest rank of any weight here is {limit}; give at least one rank up to {limit}"
        )
    return unique


def _device(name: str | None) -> torch.device:
    from nlora_lab.core.devices import find_device

    device = torch.device(find_device(name).kind)
    return torch.device("cpu") if device.type == "mps" else device  # MPS has neither float64 nor an SVD


def _cache_folder(cache: bool | str | Path | None) -> Path | None:
    if cache is None or cache is False:
        return None
    if cache is True:
        return cache_folder()
    if not isinstance(cache, str | Path) or not str(cache):
        raise InputError(f"cache={cache!r} must be True, False or a folder")
    try:
        return expand_path(cache)
    except InputError as error:
        raise InputError(f"cache={cache!r} is not a folder: {error}") from error


def _cost(weight: Weight) -> int:
    """The cost in units of one small matrix. The eigenvalues take most of it."""
    m, n = weight.shape
    return 1 + m * n * min(m, n) // 10**6


def _progress_line(matrices: list[Weight], requested: bool | None) -> ProgressLine | None:
    total = sum(map(_cost, matrices))
    if requested is None:
        download = sum(shard.size for shard in _shards(matrices) if shard.local_file() is None)
        in_terminal = sys.stderr is not None and sys.stderr.isatty()
        requested = download > LONG_DOWNLOAD or total > LONG_SCAN or in_terminal
    return ProgressLine(total) if requested else None
