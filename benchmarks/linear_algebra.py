"""Measure the time and the memory of the linear algebra, each together with a peer in the same run.

    python benchmarks/linear_algebra.py                # everything, about ten minutes on two cores
    python benchmarks/linear_algebra.py --quick        # small matrices, to see whether it runs
    python benchmarks/linear_algebra.py --only floor   # one measurement
    python benchmarks/linear_algebra.py --show         # print the table of the record, measure nothing

This package and the peer take turns (A B A B …) after a warm-up, and the medians are compared. A machine that is slow
for a while is therefore slow for both. A full run writes its record to results/linear_algebra.json. With --quick or
--only the record is written only if --out names a file. If there is a CUDA card, the initialisation is measured on it
too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peer_rows import Row, percentile, stored_table, table
from scan_memory import Llama, largest_tensor, make_checkpoint
from torch import Tensor

import nlora_lab
from nlora_lab.core.devices import find_device
from nlora_lab.lowrank.checks import IllConditionedWarning
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.svd import singular_values
from nlora_lab.models.weights import list_weights

HERE = Path(__file__).parent
RECORD = HERE / "results" / "linear_algebra.json"
Shape = tuple[int, int]
MB = 1e6
COMPARED = 1e-3  # singular values above this share of the largest are compared


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how many times."""

    rank: int = 128
    starts: tuple[Shape, ...] = ((2048, 2048), (2048, 5504))
    floors: tuple[Shape, ...] = ((2048, 2048), (4096, 4096))
    curve: tuple[int, int] = (1024, 256)  # order, largest rank
    llama_shapes: tuple[Shape, ...] = ((2048, 2048), (2048, 5504), (5504, 2048), (512, 2048))
    squares: tuple[Shape, ...] = ((1024, 1024), (2048, 2048))
    checkpoints: tuple[Llama, ...] = (Llama(), Llama(layers=3, dtype=torch.bfloat16))
    rounds: int = 25
    slow_rounds: int = 3  # where one call takes seconds
    moves: int = 2  # passes of the slider through all its ranks


QUICK = Sizes(
    rank=32,
    starts=((256, 256), (256, 688)),
    floors=((256, 256), (512, 512)),
    curve=(256, 64),
    llama_shapes=((512, 512), (512, 1376), (1376, 512), (128, 512)),
    squares=((512, 512),),
    checkpoints=(
        Llama(4000, 256, 688, 64, 3),
        Llama(4000, 256, 688, 64, 3, torch.bfloat16),
    ),
    rounds=5,
    moves=1,
)


# --- timing ---


def milliseconds(work: Callable[[], object], device: str) -> float:
    """The time of one call. The result is freed after the clock has stopped."""
    start = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    elapsed = 1e3 * (time.perf_counter() - start)
    del result
    return elapsed


def alternate(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int, device: str = "cpu"
) -> tuple[list[float], list[float]]:
    """Milliseconds of both, which take turns, after one warm-up each."""
    pairs = [(milliseconds(ours, device), milliseconds(peer, device)) for _ in range(rounds + 1)][1:]
    return [a for a, _ in pairs], [b for _, b in pairs]


def gaussian(shape: Shape, device: str = "cpu") -> Tensor:
    """A matrix with entries like those of a newly initialised layer."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02).to(device)


def size(shape: Shape) -> str:
    return f"{shape[0]}×{shape[1]}"


def on(device: str) -> str:
    return ", on the GPU" if device == "cuda" else ""


# --- the measurements ---


def start_of(W: Tensor, rank: int) -> Tensor:
    """The initialisation of NLoRA: the three factors, then the frozen matrix without their product."""
    return nystrom(W, rank).residual(W)


def against_svd(sizes: Sizes, device: str) -> Iterator[Row]:
    for shape in sizes.starts:
        W = gaussian(shape, device)
        times = alternate(
            lambda W=W: start_of(W, sizes.rank),
            lambda W=W: torch.linalg.svd(W, full_matrices=False),
            sizes.slow_rounds,
            device,
        )
        what = f"NLoRA initialisation of {size(shape)}, r = {sizes.rank}, against torch.linalg.svd{on(device)}"
        yield Row("svd", what, "faster", 100, *times)


def against_svd_lowrank(sizes: Sizes, device: str) -> Iterator[Row]:
    for shape in sizes.starts:
        W = gaussian(shape, device)
        times = alternate(
            lambda W=W: start_of(W, sizes.rank),
            lambda W=W: torch.svd_lowrank(W, q=sizes.rank, niter=4),
            sizes.rounds,
            device,
        )
        what = f"NLoRA initialisation of {size(shape)}, against torch.svd_lowrank(niter=4){on(device)}"
        yield Row("svd_lowrank", what, "faster", 5, *times)


def against_floor(sizes: Sizes, device: str) -> Iterator[Row]:
    """The lower bound: the multiply-adds of the residual, which no method can avoid, on contiguous matrices."""
    for shape, reach in zip(sizes.floors, (2.0, 1.25), strict=True):
        W, r = gaussian(shape, device), sizes.rank
        rest, left, right = W[r:, r:].contiguous(), W[r:, :r].contiguous(), W[:r, r:].contiguous()
        times = alternate(
            lambda W=W, r=r: start_of(W, r),
            lambda rest=rest, left=left, right=right: torch.addmm(rest, left, right, alpha=-1),
            sizes.rounds,
            device,
        )
        addmm = f"one addmm of {size(tuple(rest.shape))}, rank {r}"
        what = f"NLoRA initialisation of {size(shape)}, against {addmm}{on(device)}"
        yield Row("floor", what, "of it", reach, *times)


def against_each_rank(sizes: Sizes, device: str) -> Iterator[Row]:
    del device  # measured on the CPU only
    order, top = sizes.curve
    W = gaussian((order, order))

    def one_by_one() -> list[object]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IllConditionedWarning)
            return [relative_error(W, nystrom(W, r)) for r in range(1, top + 1)]

    times = alternate(lambda: error_curve(W, top), one_by_one, sizes.slow_rounds)
    what = f"error_curve of {size((order, order))} at ranks 1 … {top}, against one computation per rank"
    yield Row("curve", what, "faster", 20, *times)


def against_svdvals(sizes: Sizes, device: str) -> Iterator[Row]:
    del device
    layers = "all singular values of LLaMA-like shapes, against torch.linalg.svdvals"
    yield spectra_row(layers, sizes.llama_shapes, 2.0, sizes.slow_rounds)
    square = "all singular values of square matrices, against torch.linalg.svdvals"
    yield spectra_row(square, sizes.squares, 1.5, sizes.slow_rounds)
    errors = [spectral_error(shape) for shape in dict.fromkeys((*sizes.llama_shapes, *sizes.squares))]
    what = f"largest relative error of singular values above {COMPARED:g} σ₁ (peer: svdvals in float32)"
    yield Row("spectra", what, "figure", 1e-4, [max(a for a, _ in errors)], [max(b for _, b in errors)], unit="")


def spectra_row(what: str, shapes: tuple[Shape, ...], reach: float, rounds: int) -> Row:
    """One figure per round: the sum over the shapes."""
    parts = {}
    for shape in shapes:
        W = gaussian(shape)
        parts[size(shape)] = alternate(lambda W=W: singular_values(W), lambda W=W: torch.linalg.svdvals(W), rounds)
    ours, peer = ([sum(p[side][i] for p in parts.values()) for i in range(rounds)] for side in (0, 1))
    ratios = {s: percentile(b, 50) / percentile(a, 50) for s, (a, b) in parts.items()}
    return Row("spectra", f"{what} ({', '.join(parts)})", "faster", reach, ours, peer, more={"ratio_of": ratios})


def spectral_error(shape: Shape) -> tuple[float, float]:
    """The largest relative error of ours, and of svdvals in float32, on a spectrum from 1 down to 1e-5."""
    generator, k = torch.Generator().manual_seed(0), min(shape)
    U, V = (torch.linalg.qr(torch.randn(s, k, generator=generator, dtype=torch.float64)).Q for s in shape)
    W = ((U * torch.logspace(0, -5, k, dtype=torch.float64)) @ V.T).to(torch.float32)
    true = torch.linalg.svdvals(W.double())  # of the matrix after rounding to float32
    compared = true > COMPARED * true[0]

    def error(values: Tensor) -> float:
        return float(((values.double() - true).abs() / true)[compared].max())

    return error(singular_values(W)), error(torch.linalg.svdvals(W))


def memory_of_scan(sizes: Sizes, device: str) -> Iterator[Row]:
    del device
    for llama in sizes.checkpoints:
        with TemporaryDirectory() as folder:
            size_in_bytes = make_checkpoint(Path(folder), llama)
            run = subprocess.run(
                [sys.executable, str(HERE / "scan_memory.py"), folder], check=True, capture_output=True, text=True
            )
        memory = json.loads(run.stdout)
        kind = str(llama.dtype).removeprefix("torch.")
        # two significant digits, because a checkpoint for a test would be "0.0 GB"
        what = (
            f"peak memory of scan, {size_in_bytes / 1e9:.2g} GB of {kind} shards, against the largest tensor in float32"
        )
        ours, largest = [(memory["peak"] - memory["before"]) / MB], [largest_tensor(llama) / MB]
        more = {k: v if k == "seconds" else v / MB for k, v in memory.items()}
        # a tiny scan can end with less memory than it began with
        yield Row("memory", what, "of it", 4.0, [max(ours[0], 1e-3)], largest, unit="MB", more=more)


def slider(sizes: Sizes, device: str) -> Iterator[Row]:
    del device
    from nlora_lab.labs.nystrom import NystromLab
    from nlora_lab.pages.analysed_matrix import MAX_RANK

    largest = max((w for w in list_weights("embedded") if w.place[0] >= 0), key=lambda w: w.shape[0] * w.shape[1])
    lab = NystromLab()
    lab.matrix.value = largest.name
    times = []
    for rank in [r for _ in range(sizes.moves) for r in range(1, min(MAX_RANK, *largest.shape) + 1)]:
        start = time.perf_counter()
        lab.rank.value = rank
        lab.drawing().plotly()
        times.append(1e3 * (time.perf_counter() - start))
    what = f"slider move → new figure data, {size(largest.shape)}, 95th percentile of {len(times)} moves"
    yield Row("slider", what, "figure", 20.0, times, None, percentile=95, more={"median": percentile(times, 50)})


MEASUREMENTS: dict[str, Callable[[Sizes, str], Iterator[Row]]] = {
    "svd": against_svd,
    "svd_lowrank": against_svd_lowrank,
    "floor": against_floor,
    "curve": against_each_rank,
    "spectra": against_svdvals,
    "memory": memory_of_scan,
    "slider": slider,
}
ON_GPU = ("svd", "svd_lowrank", "floor")


def measure(sizes: Sizes, names: list[str]) -> Iterator[Row]:
    card = find_device().kind == "cuda"
    for name in names:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        yield from MEASUREMENTS[name](sizes, "cpu")
        if card and name in ON_GPU:
            yield from MEASUREMENTS[name](sizes, "cuda")


# --- the record and the table ---


def record(rows: list[Row], quick: bool) -> dict[str, Any]:
    return {
        "quick": quick,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "nlora_lab": nlora_lab.__version__,
        "device": find_device().words,
        "rows": [row.record() for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure small matrices")
    parser.add_argument("--only", choices=list(MEASUREMENTS), help="make one measurement")
    parser.add_argument("--out", type=Path, help="file of the record")
    parser.add_argument("--show", action="store_true", help="print the record, measure nothing")
    options = parser.parse_args()
    if options.show:
        print(stored_table(json.loads(RECORD.read_text(encoding="utf-8"))))
        return
    rows = list(measure(QUICK if options.quick else Sizes(), [options.only] if options.only else list(MEASUREMENTS)))
    result = record(rows, options.quick)
    print(f"torch {result['torch']}, {result['device']}, {result['cpus']} CPUs; median (quartiles)\n\n{table(rows)}")
    out = options.out or (None if options.quick or options.only else RECORD)
    if out is not None:
        out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
