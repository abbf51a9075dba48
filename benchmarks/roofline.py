"""What the measurements on a card should give, on paper: operations, bytes, kernel launches, seconds, bottleneck.

    python benchmarks/roofline.py            # count (some minutes, no card needed), write results/roofline.json
    python benchmarks/roofline.py --show     # print the tables of the record, count nothing

Every operation that PyTorch dispatches is counted on the CPU. A step of the 1B shapes runs on fake tensors, which have
shapes and no values. The race and the initialisations run on small real ones. roofline.md explains the tables.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

RECORD = Path(__file__).parent / "results" / "roofline.json"
LAUNCH, SYNC = 6e-6, 2e-5
"""Seconds for Python and PyTorch to launch one kernel, and to wait for the card once. Assumed."""

LLAMA_1B = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_7B = {(4096, 4096): 128, (11008, 4096): 64, (4096, 11008): 32}
"""The linear layers of Llama-2-7B: outputs and inputs, and how many layers have them."""

OPTIMIZER_LAUNCHES, OPTIMIZER_BYTES = 12, 40
"""Clipping (norms, their norm, the factor, the product: 8 launches) and fused AdamW (4), in float32. Bytes per trained
number: the gradient is read three times and written once; weight and two means are read and written."""

BATCH, LENGTH, RANK = 8, 512, 16
STEP_METHODS = ("lora", "slora", "nlora", "inttune", "lora-xs", "dora", "full")
START_METHODS = ("slora", "nlora", "nlora-pivoted", "nlora-core", "nlora-balanced", "inttune", "pissa", "olora")
NO_KERNEL = ("_unsafe_view", "_reshape_alias", "lift_fresh", "empty", "_local_scalar_dense")


@dataclass
class Work:
    """What a piece of code asks of a card: kernel launches, operations, bytes moved, and waits for the card."""

    launches: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    syncs: int = 0

    def seconds(self, flops: float, bandwidth: float) -> tuple[float, str]:
        """Expected seconds on a card with these rates, and the bottleneck."""
        parts = {
            "operations": self.flops / flops,
            "memory": self.bytes / bandwidth,
            "launches": self.launches * LAUNCH + self.syncs * SYNC,
        }
        bottleneck = max(parts, key=lambda part: parts[part])
        # launching and computing overlap; products and elementwise kernels follow each other
        return max(parts["operations"] + parts["memory"], parts["launches"]), bottleneck


class CountWork(TorchDispatchMode):
    """Counts the kernels of the code in its ``with`` block. Views and allocations launch none.

    The bytes are those of elementwise kernels, which read each input and write each output once. A matrix product is
    counted by its operations alone.

    Args:
        smallest: do not count the bytes of tensors with fewer numbers.
    """

    def __init__(self, smallest: int = 0) -> None:
        super().__init__()
        self.work, self.smallest = Work(), smallest

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace != "aten":  # questions that a fake tensor asks about itself
            return result
        returns, name = func._schema.returns, func.__name__
        is_view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        self.work.syncs += "_local_scalar_dense" in name
        if is_view or any(part in name for part in NO_KERNEL):
            return result
        self.work.launches += 1
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.work.flops += formula(*args, **(kwargs or {}), out_val=result)
        elif "attention" in name:
            self.work.flops += attention_flops(name, *args[:2])
        else:
            read = {id(t): t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)}
            sizes = (t.numel() * t.element_size() for t in read.values() if t.numel() >= self.smallest)
            self.work.bytes += sum(sizes)
        return result


def attention_flops(name: str, *tensors: Tensor) -> float:
    """Operations of attention: two products of (T, d) and (d, T) per head forward, five of them backward."""
    rows, heads, length, width = tensors[-1].shape
    return (5 if "backward" in name else 2) * 2.0 * rows * heads * length * length * width


# --- (c) a training step ---


def step_work(method: str, shapes: dict[str, Any] = LLAMA_1B, batch: int = BATCH, length: int = LENGTH) -> Work:
    """Count a step, forward, backward and the fused AdamW, of a model with these shapes under bfloat16 autocast.

    All layers are alike, so models of one and of two layers tell the work of any number.
    """
    one, two = (_shallow_step(method, {**shapes, "num_hidden_layers": n}, batch, length) for n in (1, 2))
    more = shapes["num_hidden_layers"] - 1
    work = Work(*(first + more * (second - first) for first, second in zip(astuple(one), astuple(two), strict=True)))
    work.launches += OPTIMIZER_LAUNCHES
    return work


def _shallow_step(method: str, shapes: dict[str, Any], batch: int, length: int) -> Work:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import LlamaConfig, LlamaForCausalLM

    from nlora_lab.methods.attachment import attach
    from nlora_lab.methods.table import METHODS

    dtype = torch.bfloat16 if METHODS[method].freezes_base else torch.float32
    with torch.device("meta"):
        model = attach(LlamaForCausalLM._from_config(LlamaConfig(**shapes), dtype=dtype), method, RANK).train()
    fake: dict[nn.Parameter, nn.Parameter] = {}  # the head shares the weight of the embedding
    with FakeTensorMode():
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
                empty = torch.empty(p.shape, dtype=p.dtype)
                module._parameters[name] = fake.setdefault(p, nn.Parameter(empty, p.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        ids = torch.zeros(batch, length, dtype=torch.long)
        with CountWork() as counter:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
    counter.work.bytes += OPTIMIZER_BYTES * sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counter.work


# --- (b) the race of small models ---


def race_work(configs: list[Any]) -> tuple[Work, Work]:
    """Count a step of a race of ``configs``, and the sum of a step of each alone."""
    from nlora_lab.training.batched import trainer
    from nlora_lab.training.loop import fine_tune
    from nlora_lab.training.races import race

    with patch.object(trainer, "CPU_TOKENS", 10**9):  # all adapters at once, as on a card
        together = _one_step(lambda on_step: race(configs, lambda cfg, step: cfg is configs[-1] and on_step(step)))
    alone = [_one_step(lambda on_step, cfg=cfg: fine_tune(cfg, on_step)) for cfg in configs]
    summed = Work(*map(sum, zip(*map(astuple, alone), strict=True)))
    for work in (together, summed):
        work.launches += OPTIMIZER_LAUNCHES * len(configs)
        work.syncs = 1 if work is together else 2 * len(configs)  # where the loops read losses and norms
    return together, summed


def _one_step(train: Callable[[Callable[[Any], bool]], object]) -> Work:
    """Count the second step without clipping and optimiser, whose kernels on the CPU are not those of a card."""
    counter = CountWork()

    def on_step(step: Any) -> bool:
        if step.step == 1:
            counter.__enter__()
        elif step.step == 2:
            counter.__exit__(None, None, None)
        return bool(step.step == 2)

    norm = patch("torch.nn.utils.clip_grad_norm_", lambda *_, **__: torch.ones(()))
    with norm, patch("torch.optim.AdamW.step", lambda self, closure=None: None):
        train(on_step)
    return counter.work


def race_configs(batch_size: int = 16) -> list[Any]:
    """The race of benchmarks/race.py under bfloat16 autocast, three steps long."""
    from race import RATES

    from nlora_lab.runs.config import RunConfig

    shared = {"batch_size": batch_size, "steps": 3, "device": "cpu", "precision": "bf16", "train_rows": 64}
    return [RunConfig(method=method, lr=lr, **shared) for method, lr in RATES.items()]


# --- (d) the start of an adapter ---


def start_work(method: str, m: int, n: int, rank: int = RANK) -> Work:
    """Count the initialisation of one layer of m outputs and n inputs in bfloat16.

    It runs on a layer of a sixteenth of the size. Bytes of W and of its copies are scaled up; smaller tensors do not
    count. What LAPACK does inside an SVD or a QR is added by formula.
    """
    small = (m // 16, n // 16)
    model = one_layer(*small)
    with CountWork(smallest=prod(small)) as counter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attach_to_layer(model, method, rank)
    work, scale = counter.work, m * n / prod(small)
    flops, swept = factorisation(method, m, n)
    return Work(work.launches, work.flops * scale + flops, work.bytes * scale + swept, work.syncs)


def one_layer(m: int, n: int, device: str = "cpu") -> nn.Module:
    """A model of one linear layer in bfloat16 with random weights."""
    return nn.ModuleDict({"layer": nn.Linear(n, m, bias=False, dtype=torch.bfloat16, device=device)})


def attach_to_layer(model: nn.Module, method: str, rank: int = RANK) -> Any:
    """Put the adapter of a method, or of a variant of PEFT's LoRA such as "pissa_niter_4", on ``one_layer``."""
    from peft import LoraConfig, get_peft_model

    from nlora_lab.methods.table import METHODS

    if method in METHODS:
        build = METHODS[method].build
        assert build is not None
        config = build(rank, None, None, target_modules=["layer"])
    else:
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=method, target_modules=["layer"])
    return get_peft_model(model, config)


def factorisation(method: str, m: int, n: int) -> tuple[float, float]:
    """Operations of the SVD or QR of a float32 matrix (m, n), and the bytes that it sweeps.

    With k = min(m, n) and l = max(m, n): the SVD with vectors takes 6 l k² + 20 k³ operations (Golub and Van Loan,
    section 8.6). Half of the reduction to bidiagonal form is matrix times vector, which reads the shrinking matrix for
    every column: 4 · k · l k / 2 bytes at least. The QR with Q takes 4 l k² − 4/3 k³.
    """
    k, long = min(m, n), max(m, n)
    if method == "pissa":
        return 6.0 * long * k**2 + 20.0 * k**3, 2.0 * k * long * k
    if method == "olora":
        return 4.0 * long * k**2 - 4 / 3 * k**3, 0.0
    return 0.0, 0.0


def start_floor(m: int, n: int, rank: int, reads_all: bool) -> float:
    """The bytes that the initialisation cannot avoid in bfloat16: all of W, or only r rows and r columns of it."""
    return 2.0 * (m * n if reads_all else rank * (m + n))


# --- the record and its tables ---


def count_all() -> dict[str, Any]:
    together, alone = race_work(race_configs())
    starts: dict[str, Any] = {}
    for method in START_METHODS:
        layers = [(start_work(method, m, n), count) for (m, n), count in LLAMA_7B.items()]
        columns = zip(*[[n * count for n in astuple(work)] for work, count in layers], strict=True)
        starts[method] = asdict(Work(*map(sum, columns)))
    return {
        "race": {"race of 8": asdict(together), "8 runs": asdict(alone)},
        "step": {method: asdict(step_work(method)) for method in STEP_METHODS},
        "start": starts,
    }


def expectations(row: dict[str, Any], bf16: bool = True) -> dict[str, tuple[float, str]]:
    """Expected seconds and bottleneck on an H100 and a T4."""
    from nlora_lab.estimates.throughput import published_speed

    speeds = {name: published_speed(name, bf16) for name in ("H100", "T4")}
    return {name: Work(**row).seconds(speed.flops, speed.bandwidth) for name, speed in speeds.items()}


def tables(record: dict[str, Any]) -> dict[str, str]:
    """A Markdown table of each part."""
    head = "| {} | launches | waits | operations | bytes | H100 | bottleneck | T4 | bottleneck |\n" + "|---" * 9 + "|\n"
    result = {}
    for part, rows in record.items():
        lines = []
        for name, row in rows.items():
            cells = [f"{row['launches']:,.0f}", f"{row['syncs']:,.0f}", f"{row['flops']:.2e}", f"{row['bytes']:.2e}"]
            for seconds, bottleneck in expectations(row, bf16=part != "start").values():
                cells += [f"{seconds * 1e3:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s", bottleneck]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        result[part] = head.format(part) + "\n".join(lines)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the tables of the record, count nothing")
    options = parser.parse_args()
    if not options.show:
        warnings.filterwarnings("ignore", category=FutureWarning)
        torch.set_num_threads(1)
        RECORD.write_text(json.dumps(count_all(), indent=1) + "\n", encoding="utf-8")
    print("\n\n".join(tables(json.loads(RECORD.read_text(encoding="utf-8"))).values()))


if __name__ == "__main__":
    main()
