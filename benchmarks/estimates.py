"""Estimates of nlora_lab beside measurements: peak memory and seconds per step, on a CPU.

    python benchmarks/estimates.py            # measure (about 3 minutes) and print the table
    python benchmarks/estimates.py --write    # and write results/estimates.json
    python benchmarks/estimates.py --show     # only print the table from the record

A model of SmolLM2-135M's shape with random weights and the embedded model take a few steps on random tokens. Each case
has a process of its own with one thread.

Measured is the largest growth of the process's resident size from just before the model is built, read every 2 ms. A
tiny model has taken a step before, so that libraries and their buffers are loaded. The time of a step is the smallest
processor time of all steps but the first. On one thread that is wall-clock time where nothing else runs.

Estimated are the ``training`` bytes and ``seconds_a_step``. No card takes part, so nothing is compared for cards.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
RECORD = RESULTS / "estimates.json"
TOKENS, STEPS = 128, 3
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {**SHAPE, "vocab_size": 512, "hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 1}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "nlora": {"method": "nlora"},
    "full": {"method": "full"},
    "lora, checkpointing": {"method": "lora", "checkpointing": True},
    "lora, accumulation 4": {"method": "lora", "accumulation": 4},
    "lora, eager attention": {"method": "lora", "attention": "eager"},
    "lora, bf16": {"method": "lora", "precision": "bf16"},
    "embedded, lora": {"method": "lora", "model": "embedded", "batch_size": 16},
    "embedded, nlora": {"method": "nlora", "model": "embedded", "batch_size": 16},
}


def case_config(name: str) -> tuple[Any, Any]:
    """The run of a case, and the config of its model."""
    from transformers import AutoConfig, LlamaConfig

    from nlora_lab.core.files import shipped_folder
    from nlora_lab.runs.config import RunConfig

    settings = {"rank": 16, "batch_size": 4, "device": "cpu", **CASES[name]}
    embedded = settings.get("model") == "embedded"
    config = AutoConfig.from_pretrained(shipped_folder("data") / "embedded") if embedded else LlamaConfig(**SHAPE)
    return RunConfig(**{"model": "HuggingFaceTB/SmolLM2-135M", **settings}), config


def build_model(cfg: Any, config: Any) -> Any:
    """A model of ``config`` with random weights, prepared as a run prepares it."""
    import torch
    from transformers import AutoModelForCausalLM

    from nlora_lab.methods.attachment import attach

    torch.manual_seed(0)
    dtype = torch.bfloat16 if cfg.precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=cfg.attention or "sdpa")
    model = attach(model, cfg.method, cfg.rank)
    if cfg.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def train(model: Any, cfg: Any, vocabulary: int, steps: int) -> list[float]:
    """The seconds of each step."""
    import torch

    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-5)
    seconds = []
    for _ in range(steps):
        ids = torch.randint(0, vocabulary, (cfg.batch_size, TOKENS))
        mask = torch.ones_like(ids)
        mask[0, -5:] = 0  # padding, as real batches have: it makes attention take a mask
        started = time.process_time()
        for part in range(cfg.accumulation):
            rows = slice(part, None, cfg.accumulation)
            with torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision == "bf16"):
                loss = model(input_ids=ids[rows], attention_mask=mask[rows], labels=ids[rows]).loss
            (loss / cfg.accumulation).backward()
            del loss
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
    return seconds


def measure(name: str) -> dict[str, Any]:
    """Estimate and measure one case, in this process."""
    import psutil
    import torch
    from transformers import LlamaConfig

    from nlora_lab.estimates.memory import memory_needed
    from nlora_lab.estimates.row_lengths import RowLengths
    from nlora_lab.estimates.shapes import architecture_sizes
    from nlora_lab.estimates.timing import device_speed, step_seconds
    from nlora_lab.models.loading import meta_body
    from nlora_lab.runs.resolution import resolve

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cfg, config = case_config(name)
    tiny = LlamaConfig(**TINY)
    train(build_model(replace(cfg, rank=4), tiny), cfg, tiny.vocab_size, 1)
    arch, run, lengths = architecture_sizes(meta_body(config)), resolve(cfg), RowLengths(TOKENS, TOKENS, TOKENS, 0)
    memory = memory_needed(arch, run, lengths)
    estimated_step = step_seconds(arch, run, lengths, device_speed(arch, run))
    process, peak, finished = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        untouched = build_model(cfg, config) if cfg.method == "full" else None  # as a run holds one, for comparison
        seconds = train(build_model(cfg, config), cfg, config.vocab_size, STEPS)
        del untouched
    finally:
        finished.set()
        watcher.join()
    return {
        "memory": {"estimated": memory.training, "measured": peak - before},
        "seconds_a_step": {"estimated": round(estimated_step, 4), "measured": round(min(seconds[1:]), 4)},
    }


def factor(row: dict[str, float]) -> float:
    """How far estimate and measurement are apart, at least 1."""
    ratio = row["estimated"] / row["measured"]
    return max(ratio, 1 / ratio)


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = [
        f"{record['device']}; batches of 4 (embedded: 16) rows of {TOKENS} tokens, rank 16.",
        "",
        "| case | memory estimated, MiB | measured | ratio | seconds per step, estimated | measured | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in record["cases"].items():
        cells = []
        for key, scale, digits in (("memory", 2**20, 0), ("seconds_a_step", 1, 2)):
            estimated, measured = row[key]["estimated"], row[key]["measured"]
            cells += [f"{n / scale:,.{digits}f}" for n in (estimated, measured)] + [f"{estimated / measured:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    worst = {key: max(factor(row[key]) for row in record["cases"].values()) for key in ("memory", "seconds_a_step")}
    lines += ["", f"Largest factor: memory {worst['memory']:.2f}, time {worst['seconds_a_step']:.2f}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the record and measure nothing")
    parser.add_argument("--write", action="store_true", help="write results/estimates.json")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--one", choices=list(CASES), metavar="CASE", help="one case in this process, as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    record = json.loads(RECORD.read_text()) if options.show else measure_all(options.cases)
    if options.write:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


def measure_all(names: list[str]) -> dict[str, Any]:
    """Measure each case in a process of its own."""
    from nlora_lab.runs.run import versions

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NLORA_LAB_DEVICE": "cpu"}
    cases = {}
    for name in names:
        command = [sys.executable, __file__, "--one", name]
        process = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        cases[name] = json.loads(process.stdout.splitlines()[-1])
        print(name, file=sys.stderr, flush=True)
    return {"device": f"CPU ({platform.machine()}), one thread", "versions": versions(), "cases": cases}


if __name__ == "__main__":
    main()
