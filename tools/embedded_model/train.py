"""Pretrain the embedded model from nothing but this repository; resumable, one command.

``python -m tools.embedded_model --out data/embedded`` (or ``make model``).
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


TOKENIZER_DOCUMENTS = 40_000  # the first so many documents of the stream train the tokenizer


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    steps: int = 1500
    batch_size: int = 48
    context: int = 192  # tokens of packed documents a row
    lr: float = 4e-3
    final_lr: float = 1e-4
    warmup: int = 100  # steps
    weight_decay: float = 0.05
    seed: int = 0
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 352


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama with tied embeddings, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.04,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def packed_rows(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, context: int) -> Iterator[Tensor]:
    """Documents end to end, ``<s> text </s>``, cut into rows of ``context`` tokens, int64."""
    buffer: list[int] = []
    while True:
        chunk = tokenizer(list(islice(texts, 1000)))["input_ids"]
        for ids in chunk:
            buffer += [*ids, tokenizer.eos_token_id]
        rows = len(buffer) // context
        for i in range(rows):
            yield torch.tensor(buffer[i * context : (i + 1) * context])
        buffer = buffer[rows * context :]


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to ``final_lr``."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.final_lr + (recipe.lr - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> float:
    """Mean cross-entropy in nats a token on 48 rows of a stream the training never draws from."""
    rows = packed_rows(documents(recipe.seed + 1_000_003), tokenizer, recipe.context)
    batch = torch.stack(list(islice(rows, 48)))
    model.eval()
    loss = model(input_ids=batch, labels=batch).loss.item()
    model.train()
    return float(loss)


def pretrain(
    out: Path,
    recipe: Recipe | None = None,
    say: Callable[[str], None] = print,
    say_every: int = 20,
    checkpoint_every: int = 100,
) -> dict[str, Any]:
    """Train, save model and tokenizer to ``out``, and return what was measured.

    A checkpoint beside ``out`` lets an interrupted run go on where it was; the text stream is
    replayed up to that point, so the result is the same as without the interruption.
    """
    recipe = recipe or Recipe()
    tokenizer = train_tokenizer(islice(documents(recipe.seed), TOKENIZER_DOCUMENTS))
    model = build_model(recipe, tokenizer)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=(0.9, 0.98),
    )
    rows = packed_rows(documents(recipe.seed), tokenizer, recipe.context)
    checkpoint = out.with_name(out.name + ".checkpoint.pt")
    step, seconds = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["recipe"] == asdict(recipe):
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            step, seconds = saved["step"], saved["seconds"]
            next(islice(rows, step * recipe.batch_size - 1, None))
            say(f"resumed at step {step}")
    started = time.perf_counter() - seconds
    while step < recipe.steps:
        batch = torch.stack(list(islice(rows, recipe.batch_size)))  # (B, T)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        seconds = time.perf_counter() - started
        if step % say_every == 0:
            rate = step * batch.numel() / seconds
            say(f"step {step}/{recipe.steps}  loss {loss.item():.3f}  {rate:,.0f} tokens/s")
        if step % checkpoint_every == 0:
            state = {
                "recipe": asdict(recipe), "step": step, "seconds": seconds,
                "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            }  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".part"))
            os.replace(checkpoint.with_suffix(".part"), checkpoint)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": recipe.steps * recipe.batch_size * recipe.context,
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "held_out_loss": round(held_out_loss(model, tokenizer, recipe), 4),
        "accuracy": skills(model.eval(), tokenizer),
    }
    (out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    return record
