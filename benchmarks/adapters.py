"""Compare the adapters with PEFT's LoRA and PiSSA: the training step, attaching, memory.

    python benchmarks/adapters.py                  # measure, write results/adapters.json, print the tables
    python benchmarks/adapters.py --show           # print the tables of the record, measure nothing
    python benchmarks/adapters.py --device cuda    # measure on a GPU, write results/adapters-cuda.json

The model has the shapes of a LLaMA (seven kinds of linear layers, SwiGLU 2.69 times as wide) and random weights. The
rank is 16. Methods take turns within every round. A ratio is the median, over the rounds, of the ratio *within* a
round, so that a busy moment of the machine affects all methods. The figures hold for one machine and are not a test.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
RANK = 16
SHAPES = {"vocab_size": 512, "hidden_size": 1024, "intermediate_size": 2752, "num_attention_heads": 16}
LAYERS = 2
BATCH, LENGTH = 2, 128


def configs() -> dict[str, Callable[[], Any]]:
    """By name, the methods that are measured: those of PEFT and ours."""
    from peft import LoraConfig

    from nlora_lab.adapters import inttune, lora_xs, nlora, slora

    def lora(start: Any = True) -> Callable[[], Any]:
        return lambda: LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", init_lora_weights=start)

    return {
        "PEFT lora": lora(),
        "slora": lambda: slora(RANK),
        "nlora": lambda: nlora(RANK),
        "nlora, folded": lambda: nlora(RANK, pivots="leading", fold=True),
        "inttune": lambda: inttune(RANK),
        "lora-xs": lambda: lora_xs(RANK),
        "PEFT pissa": lora("pissa"),
        "PEFT pissa_niter_4": lora("pissa_niter_4"),
        "nlora, cross pivots": lambda: nlora(RANK, pivots="cross"),
    }


def base_model(device: str, layers: int = LAYERS) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPES, num_hidden_layers=layers)).to(device)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(action: Callable[[], Any], device: str) -> float:
    synchronise(device)
    started = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - started


def compare_with(times: dict[str, list[float]], peer: str) -> dict[str, dict[str, float]]:
    """The median seconds of each method, and its median ratio to the peer within a round."""
    return {
        name: {
            "seconds": statistics.median(seconds),
            "ratio": statistics.median(a / b for a, b in zip(seconds, times[peer], strict=True)),
        }
        for name, seconds in times.items()
    }


STEP_METHODS = ("PEFT lora", "slora", "nlora", "nlora, folded", "inttune", "lora-xs")


def measure_steps(device: str, rounds: int) -> dict[str, Any]:
    """Seconds of forward, backward and AdamW, and the bytes that autograd keeps for the backward pass."""
    from peft import get_peft_model

    models = {name: get_peft_model(base_model(device), configs()[name]()).train() for name in STEP_METHODS}
    ids = torch.randint(0, SHAPES["vocab_size"], (BATCH, LENGTH), device=device)
    optimizers = {n: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad]) for n, m in models.items()}

    def step(name: str) -> None:
        models[name](ids, labels=ids).loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    for name in STEP_METHODS:
        step(name)
        step(name)
    times: dict[str, list[float]] = {name: [] for name in STEP_METHODS}
    for number in range(rounds):
        for i in range(len(STEP_METHODS)):  # each round begins with a different method
            name = STEP_METHODS[(i + number) % len(STEP_METHODS)]
            times[name].append(timed(lambda name=name: step(name), device))
    result: dict[str, Any] = compare_with(times, "PEFT lora")
    for name, model in models.items():
        result[name]["kept_for_backward"] = kept_bytes(model, ids)
        result[name]["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return result


def kept_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes of the distinct storages that autograd saves in one forward pass, without the weights of the model."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(ids, labels=ids).loss
    del loss
    return sum(kept.values())


ATTACH_METHODS = (
    "PEFT lora",
    "slora",
    "nlora",
    "nlora, folded",
    "nlora, cross pivots",
    "PEFT pissa_niter_4",
    "PEFT pissa",
)


def measure_attaching(device: str, rounds: int) -> dict[str, Any]:
    """Seconds of ``get_peft_model`` on a new model."""
    from peft import get_peft_model

    def attach(name: str) -> float:
        model, config = base_model(device), configs()[name]()
        return timed(lambda: get_peft_model(model, config), device)

    attach("nlora")  # a warm-up: imports, first use of memory
    times: dict[str, list[float]] = {name: [] for name in ATTACH_METHODS}
    for _ in range(rounds):
        for name in ATTACH_METHODS:
            times[name].append(attach(name))
            gc.collect()
    result: dict[str, Any] = compare_with(times, "PEFT pissa")
    to_randomised = compare_with(times, "PEFT pissa_niter_4")
    for name in ATTACH_METHODS:
        result[name]["ratio_niter_4"] = to_randomised[name]["ratio"]
    return result


PEAK = """
import re, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
sys.path.insert(0, {folder!r})
import adapters
from peft import get_peft_model
torch.set_num_threads(1)
model, config = adapters.base_model("cpu", 1), adapters.configs()[{name!r}]()
get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 64)), adapters.small_nlora())  # load modules that load lazily
def resident(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak of the resident memory
tuned = get_peft_model(model, config)
adapter = sum(p.numel() * p.element_size() for n, p in tuned.named_parameters() if "lora_" in n)
print(resident("VmHWM") - before, adapter)
"""


def small_nlora() -> Any:
    from nlora_lab.adapters import nlora

    return nlora(2, target_modules=["0"])


def measure_peak() -> dict[str, Any]:
    """The peak of resident memory during attaching, without the adapter itself. Each method has its own process."""
    largest = 4 * SHAPES["hidden_size"] * SHAPES["intermediate_size"]
    result: dict[str, Any] = {"largest_layer": largest}
    for name in ("PEFT lora", "slora", "nlora", "nlora, folded", "nlora, cross pivots", "PEFT pissa"):
        code = PEAK.format(folder=str(Path(__file__).parent), name=name)
        extra = []
        for _ in range(3):
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            peak, adapter = map(int, done.stdout.split())
            extra.append(peak - adapter)
        result[name] = {"extra": statistics.median(extra), "in_layers": statistics.median(extra) / largest}
    return result


def tables(record: dict[str, Any]) -> str:
    """The record as Markdown tables."""
    steps, attach = record["step"], record["attach"]
    lines = [
        f"{record['device']}. {LAYERS} layers of hidden size {SHAPES['hidden_size']}, {BATCH} × {LENGTH} tokens, "
        f"r = {RANK}, float32. Medians of {record['rounds']} rounds.",
        "",
        "| training step | ms | / PEFT lora | kept for backward, MiB | trainable |",
        "|---|---|---|---|---|",
    ]
    for name, row in steps.items():
        kept = row["kept_for_backward"] / 2**20
        lines.append(
            f"| {name} | {1e3 * row['seconds']:.0f} | {row['ratio']:.3f} | {kept:.1f} | {row['trainable']:,} |"
        )
    lines += ["", "| get_peft_model | ms | / pissa | / pissa_niter_4 |", "|---|---|---|---|"]
    for name, row in attach.items():
        lines.append(f"| {name} | {1e3 * row['seconds']:.0f} | {row['ratio']:.4f} | {row['ratio_niter_4']:.3f} |")
    if "peak" in record:
        lines += [
            "",
            "| attaching | extra memory at its peak, MiB | in weights of the largest layer |",
            "|---|---|---|",
        ]
        for name, row in record["peak"].items():
            if name != "largest_layer":
                lines.append(f"| {name} | {row['extra'] / 2**20:.1f} | {row['in_layers']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the record, measure nothing")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=15, help="number of rounds (default: 15)")
    options = parser.parse_args()
    file = RESULTS / ("adapters.json" if options.device == "cpu" else f"adapters-{options.device}.json")
    if not options.show:
        warnings.filterwarnings("ignore", category=FutureWarning)
        torch.set_num_threads(1)
        from nlora_lab.runs.run import versions

        name = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU ({platform.machine()}), one thread"
        record = {"device": name, "rounds": options.rounds, "versions": versions()}
        record["step"] = measure_steps(options.device, options.rounds)
        record["attach"] = measure_attaching(options.device, max(3, options.rounds // 5))
        if options.device == "cpu" and sys.platform == "linux":
            record["peak"] = measure_peak()
        file.write_text(json.dumps(record, indent=1) + "\n")
    print(tables(json.loads(file.read_text())))


if __name__ == "__main__":
    main()
