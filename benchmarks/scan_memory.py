"""Measure the peak memory of ``scan`` on a sharded checkpoint, without the memory that the imports take.

    python benchmarks/scan_memory.py FOLDER   # print the figures as JSON

linear_algebra.py makes the checkpoint and starts this script in a new process. Otherwise memory that an earlier
measurement left in the allocator would count too.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

RANKS = (8, 32)
INTERVAL = 0.005  # seconds between two readings


@dataclass(frozen=True)
class Llama:
    """The shapes of a LLaMA-like checkpoint of random tensors."""

    vocabulary: int = 32000
    hidden: int = 2048
    intermediate: int = 5504
    key_value: int = 512
    layers: int = 9
    dtype: torch.dtype = torch.float32

    def shards(self) -> Iterator[dict[str, tuple[int, int]]]:
        """Names and shapes of the tensors in each file: the embedding, each layer, the head."""
        h, i, kv = self.hidden, self.intermediate, self.key_value
        yield {"model.embed_tokens.weight": (self.vocabulary, h)}
        attention = {"q_proj": (h, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, h)}
        mlp = {"gate_proj": (i, h), "up_proj": (i, h), "down_proj": (h, i)}
        for layer in range(self.layers):
            names = {f"self_attn.{k}": s for k, s in attention.items()} | {f"mlp.{k}": s for k, s in mlp.items()}
            yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in names.items()}
        yield {"lm_head.weight": (self.vocabulary, h)}


def make_checkpoint(folder: Path, llama: Llama) -> int:
    """Write the shards and their index, with one shard in memory at a time. Return the bytes of all files."""
    generator, files = torch.Generator().manual_seed(0), {}
    for number, shapes in enumerate(llama.shards()):
        file = folder / f"model-{number:05d}.safetensors"
        save_file({name: noise(shape, generator).to(llama.dtype) for name, shape in shapes.items()}, file)
        files |= dict.fromkeys(shapes, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def noise(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator) * 0.02


def largest_tensor(llama: Llama) -> int:
    """Bytes of the largest tensor in float32."""
    return 4 * max(m * n for shapes in llama.shards() for m, n in shapes.values())


def watch(work: Callable[[], object]) -> tuple[int, int]:
    """The largest resident size while ``work`` runs, and how much of it was mapped files, in bytes."""
    process, done = psutil.Process(), threading.Event()
    readings = [(0, 0)]

    def read() -> None:
        while not done.is_set():
            now = process.memory_info()
            # pages of the mapped shard count as resident; only Linux reports them apart
            readings.append((now.rss, getattr(now, "shared", 0)))
            time.sleep(INTERVAL)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return max(readings)


def high_water() -> int:
    """The peak of this process by the operating system, in bytes; 0 on Windows, which has no ``resource``."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(folder: Path, ranks: tuple[int, ...] = RANKS) -> dict[str, float]:
    """Resident bytes before the scan of ``folder`` (after imports and a tiny scan), and the peaks during it."""
    from nlora_lab.spectra.scanning import scan

    def one_scan(source: Path) -> None:
        scan(source, ranks, device="cpu", cache=False, progress=False)

    tiny = Llama(vocabulary=96, hidden=64, intermediate=80, key_value=32, layers=1)
    with TemporaryDirectory() as warm_up:
        make_checkpoint(Path(warm_up), tiny)
        one_scan(Path(warm_up))
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    peak, mapped = watch(lambda: one_scan(folder))
    seconds = time.perf_counter() - start
    return {"before": before, "peak": peak, "mapped": mapped, "high_water": high_water(), "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
