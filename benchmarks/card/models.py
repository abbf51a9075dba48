"""A model of given shapes with random weights and an adapter, and the time of its training steps."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from nlora_lab.methods.attachment import attach
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import resolve

WARM_UP = 2  # steps; the first one compiles


def step_model(cfg: RunConfig, shapes: dict[str, Any], device: str) -> Any:
    """Build the model of a run on the device, as a run prepares it.

    It is built without values and filled with noise afterwards. So no adapter pays for its initialisation, which for
    some of them takes an SVD of every layer. Time and memory of a step do not depend on the values.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = getattr(torch, resolve(cfg).dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(
            LlamaConfig(**shapes), dtype=dtype, attn_implementation=cfg.attention or "sdpa"
        )
        model = attach(model, cfg.method, cfg.rank)
    model = model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
            parameter.normal_(std=0.02)
        for buffer in model.buffers():
            buffer.fill_(0.01)  # such as the frequencies of the positions
    if cfg.checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model.train()


def timed_steps(model: Any, cfg: RunConfig, batch: tuple[int, int], steps: int, device: str) -> list[float]:
    """Seconds of each step after the warm-up: forward and backward under autocast, clipping, fused AdamW."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device == "cuda")
    run: Any = torch.compile(model, dynamic=True) if cfg.compile else model
    seconds = []
    for _ in range(WARM_UP + steps):
        ids = torch.randint(0, model.config.vocab_size, batch, device=device)
        started = time.perf_counter()
        loss = _step(run, ids, trained, optimizer)
        loss.item()  # as a run reads it; waits for the card
        seconds.append(time.perf_counter() - started)
    return seconds[WARM_UP:]


def _step(model: Any, ids: Tensor, trained: list[Tensor], optimizer: torch.optim.Optimizer) -> Tensor:
    with torch.autocast(ids.device.type, torch.bfloat16):
        loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()
