"""Pretrain one of the models that ship, ``embedded`` or ``larger``. It needs nothing but this repository.

The command is ``python -m tools.embedded_model`` or ``python -m tools.embedded_model larger`` (``make models``). If it
is interrupted, run the same command to resume.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tools.embedded_model.corpus import documents
from tools.embedded_model.skills import skills
from tools.embedded_model.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TOKENIZER_DOCUMENTS = 40_000  # number of documents, from the beginning, that the tokenizer is trained on
HELD_OUT_SEED = 1_000_003  # added to the seed, so that held-out documents are never trained on
HELD_OUT_ROWS = 48


@dataclass(frozen=True)
class PretrainingConfig:
    """Everything that decides the weights of a model. The default is the embedded model.

    Attributes:
        steps: optimiser steps.
        batch_size: rows per step.
        context: tokens per row; a row is filled with several documents.
        lr: the highest learning rate.
        final_lr: the learning rate at the last step.
        warmup: steps over which the learning rate rises.
        weight_decay: of the weight matrices.
        seed: the seed of the text and of the initial weights.
        hidden: the hidden size.
        layers: the number of layers.
        heads: the number of attention heads.
        intermediate: the width of the MLP.
        bfloat16: whether training multiplies matrices in bfloat16 and the weights are saved in it. A step then takes
            two thirds of the time, a file half the bytes.
    """

    steps: int = 1500
    batch_size: int = 48
    context: int = 192
    lr: float = 4e-3
    final_lr: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.05
    seed: int = 0
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 352
    bfloat16: bool = False


RECIPES = {
    "embedded": PretrainingConfig(),
    "larger": PretrainingConfig(steps=2000, lr=3e-3, hidden=256, heads=8, intermediate=512, bfloat16=True),
}


def build_model(config: PretrainingConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a newly initialised Llama with tied embeddings, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.04,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def packed_rows(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, context: int) -> Iterator[Tensor]:
    """Yield rows of ``context`` tokens (int64). Documents follow each other as ``<s> text </s>`` and may be cut."""
    buffer: list[int] = []
    while True:
        chunk = tokenizer(list(islice(texts, 1000)))["input_ids"]
        for ids in chunk:
            buffer += [*ids, tokenizer.eos_token_id]
        rows = len(buffer) // context
        for i in range(rows):
            yield torch.tensor(buffer[i * context : (i + 1) * context])
        buffer = buffer[rows * context :]


def learning_rate(step: int, config: PretrainingConfig) -> float:
    """Return the learning rate at a step (from 0): a linear warm-up, then a cosine down to ``final_lr``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, config: PretrainingConfig) -> float:
    """Return the mean cross-entropy in nats per token, on 48 rows of documents that training never uses."""
    rows = packed_rows(documents(config.seed + HELD_OUT_SEED), tokenizer, config.context)
    batch = torch.stack(list(islice(rows, HELD_OUT_ROWS)))
    model.eval()
    loss = model(input_ids=batch, labels=batch).loss.item()
    model.train()
    return float(loss)


def pretrain(
    out: Path,
    config: PretrainingConfig | None = None,
    log: Callable[[str], None] = print,
    log_every: int = 20,
    checkpoint_every: int = 100,
) -> dict[str, Any]:
    """Train the model, save it with its tokenizer to ``out``, and return what was measured.

    A checkpoint next to ``out`` lets an interrupted training resume. The text before that step is generated again, so
    the weights are the same as without the interruption.
    """
    config = config or PretrainingConfig()
    tokenizer = train_tokenizer(islice(documents(config.seed), TOKENIZER_DOCUMENTS))
    model = build_model(config, tokenizer)
    optimizer = _optimizer(model, config)
    rows = packed_rows(documents(config.seed), tokenizer, config.context)
    checkpoint = out.with_name(out.name + ".checkpoint.pt")
    step, seconds = _resume(checkpoint, config, model, optimizer)
    if step:
        next(islice(rows, step * config.batch_size - 1, None))
        log(f"resumed at step {step}")
    started = time.perf_counter() - seconds
    while step < config.steps:
        batch = torch.stack(list(islice(rows, config.batch_size)))  # (B, T)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        seconds = time.perf_counter() - started
        if step % log_every == 0:
            rate = step * batch.numel() / seconds
            log(f"step {step}/{config.steps}  loss {loss.item():.3f}  {rate:,.0f} tokens/s")
        if step % checkpoint_every == 0:
            _save_checkpoint(checkpoint, config, step, seconds, model, optimizer)
    if config.bfloat16:
        model.to(torch.bfloat16)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    model.float()  # what is measured are the weights of the file, computed as every run computes with them
    record = {
        "recipe": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": config.steps * config.batch_size * config.context,
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "held_out_loss": round(held_out_loss(model, tokenizer, config), 4),
        "accuracy": skills(model.eval(), tokenizer),
    }
    (out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    return record


def _optimizer(model: LlamaForCausalLM, config: PretrainingConfig) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.lr,
        betas=(0.9, 0.98),
    )


def _resume(
    checkpoint: Path, config: PretrainingConfig, model: LlamaForCausalLM, optimizer: torch.optim.AdamW
) -> tuple[int, float]:
    """Load the checkpoint if there is one of this config. Return its step and its seconds, otherwise zeros."""
    saved = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
    if saved is None or saved["recipe"] != asdict(config):
        return 0, 0.0
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"], saved["seconds"]


def _save_checkpoint(
    checkpoint: Path,
    config: PretrainingConfig,
    step: int,
    seconds: float,
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
) -> None:
    state = {
        "recipe": asdict(config), "step": step, "seconds": seconds,
        "model": model.state_dict(), "optimizer": optimizer.state_dict(),
    }  # fmt: skip
    torch.save(state, checkpoint.with_suffix(".part"))
    os.replace(checkpoint.with_suffix(".part"), checkpoint)
