"""What the command measures. Each function makes the cases of a part, and each case returns its figures."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import race as race_benchmark
import torch
from roofline import RANK, START_METHODS, attach_to_layer, one_layer, start_floor
from scan_memory import largest_tensor, make_checkpoint, watch

from nlora_lab.core.devices import PeakMemory, find_device, release_memory
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run, versions
from nlora_lab.training.loop import fine_tune
from nlora_lab.training.races import race as run_race

from .engine import MEASURED, CannotMeasureError, Case, Context, read_part
from .models import step_model, timed_steps
from .sizes import VARIANTS

ROOT = Path(__file__).parents[2]
PEERS = ("pissa", "pissa_niter_4", "olora")
SLOW_PEERS = ("pissa", "olora")  # one layer of each shape is timed once
EVA = "it starts from activations of data, not from the weight alone"


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# --- the machine and its tests ---


def machine(context: Context) -> dict[str, Case]:
    return {"device": partial(describe, context.device, context.sizes.tiny)}


def describe(device: str, tiny: bool) -> dict[str, Any]:
    card = torch.cuda.get_device_properties(0) if device == "cuda" else None
    return {
        "name": find_device(device).words,
        "tiny": tiny,
        "memory": 0 if card is None else card.total_memory,
        "capability": None if card is None else [card.major, card.minor],
        "versions": versions(),
    }


def gpu_tests(context: Context) -> dict[str, Case]:
    return {"pytest": partial(run_gpu_tests, context)}


def run_gpu_tests(context: Context) -> dict[str, Any]:
    import pytest  # noqa: F401  a card's machine may lack it: this says so

    report = context.out / "tests.txt"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "-rA",
        "-W",
        "default",
        "tests/gpu",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    report.write_text(done.stdout + done.stderr, encoding="utf-8")
    lines = done.stdout.splitlines()
    counts = {word: sum(line.startswith(word.upper()) for line in lines) for word in ("passed", "failed", "error")}
    if context.device == "cuda" and done.returncode:
        raise AssertionError(f"{counts}; see {report.name}")
    return {**counts, "exit_code": done.returncode}


# --- (b) the race, (i) the grid ---


def race(context: Context) -> dict[str, Case]:
    return {f"batch {size}": partial(time_race, context, size) for size in context.sizes.race_batches}


def time_race(context: Context, batch_size: int) -> dict[str, Any]:
    s = context.sizes
    rates = dict(list(race_benchmark.RATES.items())[: s.race_methods])
    return race_benchmark.measure(batch_size, context.device, s.race_rounds, s.race_steps, rates)


def grid(context: Context) -> dict[str, Case]:
    from tools.record_grid import fixed_grid

    s, configs = context.sizes, fixed_grid()
    first = [replace(config, device=context.device, **s.grid_changes) for config in configs[: s.grid_runs]]
    chunks = range(0, len(first), s.grid_together)
    return {
        f"runs {i + 1} to {i + s.grid_together}": partial(time_grid, first[i : i + s.grid_together], len(configs))
        for i in chunks
    }


def time_grid(configs: list[RunConfig], grid_size: int) -> dict[str, Any]:
    started = time.perf_counter()
    runs = run_race(configs)
    seconds = time.perf_counter() - started
    return {
        "runs": len(runs),
        "seconds": seconds,
        "seconds_for_the_grid": seconds / len(runs) * grid_size,
        "runs_in_the_grid": grid_size,
        "accuracies": {f"{r.config.method}, {r.config.lr:g}": r.metrics.get("accuracy") for r in runs},
    }


# --- (c) training steps, (g) estimates ---


def steps(context: Context) -> dict[str, Case]:
    s = context.sizes
    first, rest = s.step_methods[:4], s.step_methods[4:]
    cases = {method: partial(time_steps, context, method) for method in first}
    cases |= {
        f"{method}, {name}": partial(time_steps, context, method, **VARIANTS[name])
        for name in s.variants
        for method in s.varied
    }
    return {**cases, **{method: partial(time_steps, context, method) for method in rest}}


def time_steps(context: Context, method: str, **settings: Any) -> dict[str, Any]:
    """Seconds per step and peak memory of a model with random weights, prepared and trained as a run does it."""
    release_memory()
    s = context.sizes
    cfg = step_config(context, method, **settings)
    model = step_model(cfg, s.shapes, context.device)
    peak = PeakMemory(context.device)
    seconds = timed_steps(model, cfg, (s.batch, s.length), s.steps, context.device)
    peak.look()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for n, p in model.named_parameters() if "nlora_" in n and not p.requires_grad)
    widest = max(p.numel() * p.element_size() for n, p in model.named_parameters() if "base_layer" in n or "proj" in n)
    return {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "peak_memory": peak.bytes,
        "trained": trained,
        "frozen_factors": frozen,
        "largest_layer_bytes": widest,
    }


def step_config(context: Context, method: str, **settings: Any) -> RunConfig:
    """The run that a step stands for. The name of the model is that of any model but the embedded one."""
    shared = {"rank": RANK, "batch_size": context.sizes.batch, "precision": "bf16", "device": context.device}
    return RunConfig(method=method, model="HuggingFaceTB/SmolLM2-135M", **shared, **settings)


def estimates(context: Context) -> dict[str, Case]:
    measured = {name: row for name, row in read_part(context.out, "steps").items() if row["status"] == MEASURED}
    if not measured:
        raise CannotMeasureError("no step is measured")
    return {name: partial(estimate_step, context, name, row) for name, row in measured.items()}


def estimate_step(context: Context, name: str, row: dict[str, Any]) -> dict[str, Any]:
    """What the library expects of a step, with the speed measured here and with a card's published speed."""
    from transformers import LlamaConfig

    from nlora_lab.estimates.memory import memory_needed
    from nlora_lab.estimates.row_lengths import RowLengths
    from nlora_lab.estimates.shapes import architecture_sizes
    from nlora_lab.estimates.throughput import published_speed
    from nlora_lab.estimates.timing import device_speed, step_seconds
    from nlora_lab.models.loading import meta_body
    from nlora_lab.runs.resolution import resolve

    method, _, variant = name.partition(", ")
    s = context.sizes
    settings = VARIANTS[variant] if variant else {}
    run = resolve(step_config(context, method, **settings))
    arch = architecture_sizes(meta_body(LlamaConfig(**s.shapes)))
    lengths = RowLengths(s.length, s.length, s.length, 0)
    return {
        "memory": {"estimated": memory_needed(arch, run, lengths).training, "measured": row["peak_memory"]},
        "seconds": {
            "estimated": step_seconds(arch, run, lengths, device_speed(arch, run)),
            "estimated, H100 as published": step_seconds(arch, run, lengths, published_speed("H100", True)),
            "measured": row["seconds"],
        },
    }


# --- (d) initialisation ---


def starts(context: Context) -> dict[str, Case]:
    methods = [*START_METHODS, "nlora-released", *PEERS]
    cases: dict[str, Case] = {method: partial(time_starts, context, method) for method in dict.fromkeys(methods)}
    return {**cases, "eva": partial(refuse, EVA)}


def refuse(why: str) -> dict[str, Any]:
    raise CannotMeasureError(why)


def time_starts(context: Context, method: str) -> dict[str, Any]:
    """Seconds of all initialisations, from the median of each shape, and of the bytes that cannot be avoided."""
    total, floor, by_shape = 0.0, 0.0, {}
    rounds = 1 if method in SLOW_PEERS else context.sizes.starts
    bandwidth, reads_all = copy_bandwidth(context.device), method not in ("slora", "nlora", "nlora-balanced", "inttune")
    time_one_start(context.device, method, (64, 64))  # a warm-up: imports and the first use of the solvers
    for shape, count in context.sizes.layers.items():
        samples = [time_one_start(context.device, method, shape) for _ in range(rounds)]
        seconds, extra = statistics.median(t for t, _ in samples), samples[0][1]
        by_shape["×".join(map(str, shape))] = {"seconds": seconds, "layers": count, "extra_memory": extra}
        total += count * seconds
        floor += count * start_floor(*shape, RANK, reads_all) / bandwidth
    return {"seconds": total, "floor_seconds": floor, "bandwidth": bandwidth, "by_shape": by_shape, "rounds": rounds}


def time_one_start(device: str, method: str, shape: tuple[int, int]) -> tuple[float, int]:
    """Seconds of one initialisation, and on a card the bytes that it held beyond the layer at its peak."""
    model = one_layer(*shape, device)
    synchronise(device)
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    peak = PeakMemory(device)
    started = time.perf_counter()
    attach_to_layer(model, method)
    synchronise(device)
    seconds = time.perf_counter() - started
    peak.look()
    return seconds, peak.bytes - before if device == "cuda" else 0


def copy_bandwidth(device: str) -> float:
    """Bytes per second that a copy reads and writes."""
    x = torch.ones(2**28 if device == "cuda" else 2**22, device=device, dtype=torch.bfloat16)
    y, seconds = torch.empty_like(x), []
    for _ in range(4):
        synchronise(device)
        started = time.perf_counter()
        y.copy_(x)
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return 4 * x.numel() / min(seconds[1:])


# --- (e) scan ---


def scan(context: Context) -> dict[str, Case]:
    import pandas  # noqa: F401  the table of scan needs it

    return {f"{llama.layers} layers": partial(time_scan, context.device, llama) for llama in context.sizes.checkpoints}


def time_scan(device: str, llama: Any) -> dict[str, Any]:
    from nlora_lab.spectra.scanning import scan as scan_weights

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        size = make_checkpoint(Path(folder), llama)
        writing = time.perf_counter() - started
        before = PeakMemory("cpu").bytes  # resident before the scan
        on_card = PeakMemory(device)
        started = time.perf_counter()
        peak, mapped = watch(
            lambda: scan_weights(Path(folder), (8, 32), device=device, cache=False, progress=False)
        )  # fmt: skip
        seconds = time.perf_counter() - started
        on_card.look()
    return {
        "seconds": seconds, "bytes": size, "seconds_of_writing": writing, "resident": peak - before, "mapped": mapped,
        "on_card": on_card.bytes if device == "cuda" else 0, "largest_tensor_in_float32": largest_tensor(llama),
    }  # fmt: skip


# --- (f) repetition ---


def repeats(context: Context) -> dict[str, Case]:
    shared = {"steps": context.sizes.repeat_steps, "test_rows": 8, "train_rows": 64}
    cases: dict[str, Case] = {}
    for method, lr in (("lora", 1e-2), ("nlora", 1e-4)):
        run = RunConfig(method=method, lr=lr, device=context.device, **shared)
        cases[f"{method}, same seed twice"] = partial(compare_runs, run, run)
        cases[f"{method}, CPU against {context.device}"] = partial(compare_runs, replace(run, device="cpu"), run)
        if context.device != "cpu":
            exact = replace(run, precision="float32")
            on_cpu = replace(exact, device="cpu")
            cases[f"{method}, CPU against {context.device}, float32"] = partial(compare_runs, on_cpu, exact)
    return cases


def trained(cfg: RunConfig) -> Run:
    """The run without its evaluation: a stopped run is not evaluated."""
    return fine_tune(replace(cfg, steps=cfg.steps + 1), lambda step: step.step == cfg.steps)


def compare_runs(first: RunConfig, second: RunConfig) -> dict[str, Any]:
    """How far two runs are apart: bitwise equal or not, and the largest differences."""
    one, two = trained(first), trained(second)
    pairs = [(a.loss, b.loss) for a, b in zip(one.steps, two.steps, strict=True)]
    assert one.weights is not None
    assert two.weights is not None
    weights = [(a, two.weights[name]) for name, a in one.weights.items()]
    return {
        "bitwise": all(a == b for a, b in pairs) and all(torch.equal(a, b) for a, b in weights),
        "loss": max(abs(a - b) / abs(a) for a, b in pairs),
        "first_loss": abs(pairs[0][0] - pairs[0][1]) / abs(pairs[0][0]),
        "weights": max(float((a - b).norm() / a.norm().clamp_min(1e-12)) for a, b in weights),
        "step0_change": [one.metrics["step0_change"], two.metrics["step0_change"]],
    }


# --- (h) the way through notebook 08 ---


def path(context: Context) -> dict[str, Case]:
    """The notebook's cells that train, with the embedded model: its own model is on the hub."""
    from nlora_lab.estimates.recipes import RECIPES

    recipe = RECIPES["laptop"]
    quick: dict[str, Any] = {"steps": context.sizes.path_steps, "train_rows": 512, "test_rows": 8}
    quick["device"] = context.device
    short = recipe.config("nlora", **quick)
    return {
        "estimate": lambda: {"bytes": recipe.estimate("nlora", device="H100").total},
        "accumulation": partial(compare_runs, replace(short, accumulation=1), replace(short, accumulation=4)),
        "stop and resume": partial(stop_and_resume, short),
        "race and export": partial(race_and_export, recipe.configs(("lora", "nlora"), **quick)),
    }


def stop_and_resume(cfg: RunConfig) -> dict[str, Any]:
    middle = cfg.steps // 2
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(cfg, lambda step: step.step == middle, checkpoints=folder)
        resumed = fine_tune(cfg, checkpoints=folder)
    straight = fine_tune(cfg)
    same = [a.loss for a in resumed.steps] == [b.loss for b in straight.steps]
    return {"bitwise": same, "steps": len(resumed.steps)}


def race_and_export(configs: list[RunConfig]) -> dict[str, Any]:
    """Race, answer, save as LoRA, load in stock PEFT on the base model: the largest difference of logits."""
    from peft import PeftModel

    from nlora_lab.evaluation.scoring import answers
    from nlora_lab.models.loading import load_model
    from nlora_lab.tasks.registry import load_task
    from nlora_lab.training.export import save_adapter, tuned_model

    runs = run_race(configs)
    tuned, tokenizer = tuned_model(runs[1])
    answered = answers(tuned, tokenizer, load_task(configs[0].task, test_rows=3))
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(runs[1], folder, "lora")
        loaded = PeftModel.from_pretrained(load_model(configs[0].model)[0], folder).to(tuned.device)
    ids = tokenizer("Ana has 3 pears. She buys 4 more.", return_tensors="pt").input_ids.to(tuned.device)
    with torch.no_grad():
        ours, stock = tuned(ids).logits, loaded(ids).logits
    return {
        "losses": [run.final_loss for run in runs],
        "together": [run.together for run in runs],
        "answers": len(answered),
        "logits": float((ours - stock).abs().max() / ours.abs().max()),
    }
