"""How fast and how frugal the linear algebra is, each figure beside its peer's in the same run.

    python benchmarks/linear_algebra.py                # everything, some ten minutes on two cores
    python benchmarks/linear_algebra.py --quick        # small matrices: does it run?
    python benchmarks/linear_algebra.py --only floor   # one measurement

Ours and the peer's are run in turn (A B A B …) after a warm-up, and the medians are compared: a machine that
is slow for a while is slow for both. A full run leaves its record in results/linear_algebra.json; with
--quick or --only nothing is written unless --out says where. Where there is a CUDA card, the
initialisation is measured on it too.
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
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from scan_memory import Llama, largest_tensor, make_checkpoint
from torch import Tensor

import nlora_lab
from nlora_lab.core.devices import find_device
from nlora_lab.lowrank.checks import IllConditionedWarning
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.svd import singular_values
from nlora_lab.models.weights import weights

HERE = Path(__file__).parent
STORE = HERE / "results" / "linear_algebra.json"
Shape = tuple[int, int]
MB = 1e6
ABOVE = 1e-3  # of the largest singular value: those above are compared


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how often."""

    rank: int = 128
    starts: tuple[Shape, ...] = ((2048, 2048), (2048, 5504))
    floors: tuple[Shape, ...] = ((2048, 2048), (4096, 4096))
    curve: tuple[int, int] = (1024, 256)  # order, largest rank
    llama_shapes: tuple[Shape, ...] = ((2048, 2048), (2048, 5504), (5504, 2048), (512, 2048))
    squares: tuple[Shape, ...] = ((1024, 1024), (2048, 2048))
    checkpoints: tuple[Llama, ...] = (Llama(), Llama(layers=3, dtype=torch.bfloat16))
    rounds: int = 25
    slow_rounds: int = 3  # where one call takes seconds
    moves: int = 2  # times the slider goes through all its ranks


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


@dataclass
class Row:
    """Two lists of figures, one a round, and what is asked of them.

    ``kind`` says what ``ratio`` is: "faster", the peer's median by ours, which must be at least ``reach``;
    "of it", ours by the peer's, at most ``reach``; "figure", none: ours itself must be at most ``reach``.
    Ours is the median, or another ``percentile``. Without a ``reach`` the row is told for comparison.
    """

    name: str
    what: str
    kind: str
    reach: float | None
    ours: list[float]
    peer: list[float] | None
    unit: str = "ms"
    percentile: int = 50
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def ours_figure(self) -> float:
        return percentile(self.ours, self.percentile)

    @property
    def peer_figure(self) -> float | None:
        return None if self.peer is None else percentile(self.peer, 50)

    @property
    def ratio(self) -> float | None:
        if self.kind == "figure" or self.peer_figure is None:
            return None
        return self.peer_figure / self.ours_figure if self.kind == "faster" else self.ours_figure / self.peer_figure

    @property
    def reached(self) -> bool | None:
        if self.reach is None:
            return None
        judged = self.ours_figure if self.ratio is None else self.ratio
        return judged >= self.reach if self.kind == "faster" else judged <= self.reach

    def record(self) -> dict[str, Any]:
        derived = {
            "ours_figure": self.ours_figure,
            "ours_quartiles": quartiles(self.ours),
            "peer_figure": self.peer_figure,
            "peer_quartiles": None if self.peer is None else quartiles(self.peer),
            "ratio": self.ratio,
            "reached": self.reached,
        }
        return rounded(asdict(self) | derived)


def percentile(values: list[float], p: int) -> float:
    return values[0] if len(values) == 1 else quantiles(values, n=100, method="inclusive")[p - 1]


def quartiles(values: list[float]) -> list[float]:
    return [percentile(values, 25), percentile(values, 75)]


def rounded(value: Any) -> Any:
    """Six significant digits: more would be noise in a file under version control."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


# --- how it is measured ---


def milliseconds(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    took = 1e3 * (time.perf_counter() - start)
    del result  # freed outside the time, for either side
    return took


def alternate(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int, device: str = "cpu"
) -> tuple[list[float], list[float]]:
    """Milliseconds of both, in turn, after one warm-up each."""
    pairs = [(milliseconds(ours, device), milliseconds(peer, device)) for _ in range(rounds + 1)][1:]
    return [a for a, _ in pairs], [b for _, b in pairs]


def gaussian(shape: Shape, device: str = "cpu") -> Tensor:
    """Entries like those of a freshly initialised layer."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02).to(device)


def size(shape: Shape) -> str:
    return f"{shape[0]}×{shape[1]}"


def on(device: str) -> str:
    return ", on the GPU" if device == "cuda" else ""


# --- the measurements ---


def start_of(W: Tensor, rank: int) -> Tensor:
    """NLoRA's initialisation: the three factors, and the matrix that stays frozen."""
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
        what = f"the same of {size(shape)}, against torch.svd_lowrank(niter=4){on(device)}"
        yield Row("svd_lowrank", what, "faster", 5, *times)


def against_floor(sizes: Sizes, device: str) -> Iterator[Row]:
    """The multiply-adds nobody can leave out: the residual's, with everything contiguous."""
    for shape, reach in zip(sizes.floors, (2.0, 1.25), strict=True):
        W, r = gaussian(shape, device), sizes.rank
        rest, left, right = W[r:, r:].contiguous(), W[r:, :r].contiguous(), W[:r, r:].contiguous()
        times = alternate(
            lambda W=W, r=r: start_of(W, r),
            lambda rest=rest, left=left, right=right: torch.addmm(rest, left, right, alpha=-1),
            sizes.rounds,
            device,
        )
        what = f"the same of {size(shape)}, against one addmm of {size(tuple(rest.shape))}, rank {r}{on(device)}"
        yield Row("floor", what, "of it", reach, *times)


def against_each_rank(sizes: Sizes, device: str) -> Iterator[Row]:
    del device  # a curve is for looking at
    order, top = sizes.curve
    W = gaussian((order, order))

    def one_by_one() -> list[object]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IllConditionedWarning)
            return [relative_error(W, nystrom(W, r)) for r in range(1, top + 1)]

    times = alternate(lambda: error_curve(W, top), one_by_one, sizes.slow_rounds)
    what = f"error_curve of {size((order, order))} at ranks 1 … {top}, against each rank anew"
    yield Row("curve", what, "faster", 20, *times)


def against_svdvals(sizes: Sizes, device: str) -> Iterator[Row]:
    del device
    layers = "all singular values of LLaMA-like shapes, against torch.linalg.svdvals"
    yield spectra_row(layers, sizes.llama_shapes, 2.0, sizes.slow_rounds)
    square = "all singular values of square matrices, against torch.linalg.svdvals"
    yield spectra_row(square, sizes.squares, 1.5, sizes.slow_rounds)
    both = [spectral_error(shape) for shape in dict.fromkeys((*sizes.llama_shapes, *sizes.squares))]
    what = f"their largest relative error above {ABOVE:g} σ₁ (peer: svdvals in float32; both against float64)"
    yield Row("spectra", what, "figure", 1e-4, [max(a for a, _ in both)], [max(b for _, b in both)], unit="")


def spectra_row(what: str, shapes: tuple[Shape, ...], reach: float, rounds: int) -> Row:
    """One figure a round: the sum over the shapes."""
    parts = {}
    for shape in shapes:
        W = gaussian(shape)
        parts[size(shape)] = alternate(lambda W=W: singular_values(W), lambda W=W: torch.linalg.svdvals(W), rounds)
    ours, peer = ([sum(p[side][i] for p in parts.values()) for i in range(rounds)] for side in (0, 1))
    ratios = {s: percentile(b, 50) / percentile(a, 50) for s, (a, b) in parts.items()}
    return Row("spectra", f"{what} ({', '.join(parts)})", "faster", reach, ours, peer, more={"ratio_of": ratios})


def spectral_error(shape: Shape) -> tuple[float, float]:
    """Largest relative error of ours and of float32's svdvals, on a spectrum from 1 down to 1e-5."""
    generator, k = torch.Generator().manual_seed(0), min(shape)
    U, V = (torch.linalg.qr(torch.randn(s, k, generator=generator, dtype=torch.float64)).Q for s in shape)
    W = ((U * torch.logspace(0, -5, k, dtype=torch.float64)) @ V.T).to(torch.float32)
    true = torch.linalg.svdvals(W.double())  # of the matrix as float32 has it
    kept = true > ABOVE * true[0]

    def error(values: Tensor) -> float:
        return float(((values.double() - true).abs() / true)[kept].max())

    return error(singular_values(W)), error(torch.linalg.svdvals(W))


def memory_of_scan(sizes: Sizes, device: str) -> Iterator[Row]:
    del device
    for llama in sizes.checkpoints:
        with TemporaryDirectory() as folder:
            made = make_checkpoint(Path(folder), llama)
            run = subprocess.run(
                [sys.executable, str(HERE / "scan_memory.py"), folder], check=True, capture_output=True, text=True
            )
        seen = json.loads(run.stdout)
        kind = str(llama.dtype).removeprefix("torch.")
        # two digits for small ones: a checkpoint for a test is not "0.0 GB"
        what = f"peak memory of scan, {made / 1e9:.2g} GB of {kind} shards, against the largest tensor in float32"
        ours, largest = [(seen["peak"] - seen["before"]) / MB], [largest_tensor(llama) / MB]
        more = {k: v if k == "seconds" else v / MB for k, v in seen.items()}
        # on its very first readings a tiny scan can end below where it began
        yield Row("memory", what, "of it", 4.0, [max(ours[0], 1e-3)], largest, unit="MB", more=more)


def slider(sizes: Sizes, device: str) -> Iterator[Row]:
    del device
    from nlora_lab.labs.nystrom import NystromLab

    largest = max((w for w in weights("embedded") if w.place[0] >= 0), key=lambda w: w.shape[0] * w.shape[1])
    lab = NystromLab(figures="image")
    lab.matrix.value = largest.name
    lab._held = True  # nothing is drawn: the time is that of the data
    took = []
    for rank in [r for _ in range(sizes.moves) for r in range(1, lab.rank.max + 1)]:
        start = time.perf_counter()
        lab.rank.value = rank
        lab.drawing().plotly()
        took.append(1e3 * (time.perf_counter() - start))
    what = f"slider move → new figure data, {size(largest.shape)}, 95th percentile of {len(took)} moves"
    yield Row("slider", what, "figure", 20.0, took, None, percentile=95, more={"median": percentile(took, 50)})


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


# --- what is told ---


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


def digits(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    plain = f"{value:.1e}" if value < 1e-2 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{plain} {unit}".strip()


def asked(row: Row) -> str:
    if row.reach is None:
        return "–"
    told = digits(row.reach, row.unit) if row.kind == "figure" else f"{row.reach:g}×"
    return f"≥ {told}" if row.kind == "faster" else f"≤ {told}"


def spread(values: list[float], middle: float, unit: str) -> str:
    if len(values) == 1:
        return digits(middle, unit)
    low, high = quartiles(values)
    return f"{digits(middle, unit)} ({digits(low, '')}–{digits(high, '')})"


def line(row: Row) -> str:
    ours = spread(row.ours, row.ours_figure, row.unit)
    peer = "–" if row.peer is None else spread(row.peer, row.peer_figure or 0, row.unit)
    ratio = "–" if row.ratio is None else f"{row.ratio:.3g}×"
    reached = {True: "yes", False: "**no**", None: "–"}[row.reached]
    return f"| {row.what} | {ours} | {peer} | {ratio} | {asked(row)} | {reached} |"


def table(rows: list[Row]) -> str:
    head = ["| what | ours | peer | ratio | asked for | reached |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *map(line, rows)])


def stored(told: dict[str, Any]) -> str:
    """The table of a record."""
    names = [f.name for f in fields(Row)]
    return table([Row(**{name: row[name] for name in names}) for row in told["rows"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=list(MEASUREMENTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", action="store_true", help="print the record, measure nothing")
    options = parser.parse_args()
    if options.show:
        print(stored(json.loads(STORE.read_text(encoding="utf-8"))))
        return
    rows = list(measure(QUICK if options.quick else Sizes(), [options.only] if options.only else list(MEASUREMENTS)))
    told = record(rows, options.quick)
    print(f"torch {told['torch']}, {told['device']}, {told['cpus']} CPUs; median (quartiles)\n\n{table(rows)}")
    out = options.out or (None if options.quick or options.only else STORE)
    if out is not None:
        out.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
