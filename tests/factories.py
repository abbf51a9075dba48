"""What tests build: tiny models, adapters far enough from their start, small data sets, and finished runs."""

from __future__ import annotations

import csv
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from nlora_lab.adapters import NLoraLayer, inttune, lora_xs, nlora, nlora_released, slora
from nlora_lab.core.files import shipped_folder
from nlora_lab.methods.attachment import attach
from nlora_lab.methods.table import METHODS
from nlora_lab.runs import resolution
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run, Step

ROOT = Path(__file__).resolve().parents[1]


def tiny_llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}))


def tiny_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    )


def tiny_bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64, initializer_range=0.2,
        )
    )  # fmt: skip


def tiny_neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64, initializer_range=0.2,
        )
    )  # fmt: skip


def tiny_mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=3, max_position_embeddings=64,
        )
    )  # fmt: skip


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,  # Conv1D, which stores W transposed; tied embeddings
    "bert": tiny_bert,  # an encoder; biases everywhere
    "neox": tiny_neox,  # one fused layer for query, key and value
}


VARIANTS = [(name, init) for name, m in METHODS.items() for init in (m.inits or (None,))]
ADAPTERS = [(name, init) for name, init in VARIANTS if METHODS[name].build is not None]
OURS = [(name, init) for name, init in ADAPTERS if METHODS[name].build.func.__name__ != "_lora"]
PRESETS = {"slora": slora, "nlora": nlora, "released": nlora_released, "inttune": inttune, "lora-xs": lora_xs}

# What PEFT itself cannot do; a test asserts that it still cannot.
BROKEN_IN_PEFT = {("olora", "gpt2"): "OLoRA's factors are not transposed for Conv1D"}


def variant_id(variant: tuple[str, str | None]) -> str:
    return "-".join(part for part in variant if part)


def base_model(architecture: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same tiny random model every time."""
    torch.manual_seed(7)
    return ARCHITECTURES[architecture]().to(dtype).eval()


def adapted(architecture: str, variant: tuple[str, str | None], seed: int = 1, base: Any = None, **options: Any) -> Any:
    """The tiny model with a method attached, rank 4, under a seed."""
    model = base_model(architecture) if base is None else base
    name, init = variant
    torch.manual_seed(seed)
    options = {"task_type": None, **options}
    if name == "full":
        return attach(model, name)
    with warnings.catch_warnings():  # PEFT says about every GPT-2 that it transposes
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        return attach(model, name, 4, init=init, **options).eval()


def layers(model: Any) -> list[NLoraLayer]:
    found = [m for m in model.modules() if isinstance(m, NLoraLayer)]
    assert len(found) >= 8
    return found


@torch.no_grad()
def move(model: Any, seed: int = 11) -> None:
    """Move what trains far enough that a wrong merge or an empty file would show, and no further.

    An update that dwarfs W makes a network chaotic, and then rounding shows instead.
    """
    generator = torch.Generator().manual_seed(seed)
    ours = [m for m in model.modules() if isinstance(m, NLoraLayer)]
    for layer in ours:
        if layer.active_adapters[0] in layer.nlora_A:
            _move_layer(layer, generator)
    if not ours:
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * (float(p.std()) or 0.5) * torch.randn(p.shape, generator=generator)


def _move_layer(layer: NLoraLayer, generator: torch.Generator) -> None:
    A, N, B = layer.factors(layer.active_adapters[0])
    size = torch.linalg.matrix_norm(layer.base_matrix().float(), 2)
    if not A.requires_grad:  # N alone
        step = torch.randn(N.shape, generator=generator)
        N += step * float(0.2 * size / torch.linalg.matrix_norm(B @ step @ A, 2))
        return
    product = torch.stack([torch.linalg.matrix_norm(f, 2) for f in (A, N, B)]).prod()
    by = 0.3 / float((product / size).clamp(min=1))
    for f in (A, N, B):
        f += by * (float(f.std()) or 0.5) * torch.randn(f.shape, generator=generator)


def tolerance(model: Any) -> float:
    """1e-5 · max(1, the largest layer's ‖B0 N0 A0‖ / ‖W‖), the unit in which float32 rounds a large start."""
    worst = 1.0
    for layer in (m for m in model.modules() if isinstance(m, NLoraLayer)):
        if "default" in layer.nlora_N0:
            worst = max(worst, float(layer.start_weight("default").norm() / layer.base_matrix().norm()))
    return 1e-5 * worst


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


@cache
def _base_logits(architecture: str, tokens: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
    return logits(base_model(architecture), torch.tensor(tokens).reshape(shape))


def base_logits(architecture: str, ids: torch.Tensor) -> torch.Tensor:
    """The untouched model's, computed once a session."""
    return _base_logits(architecture, tuple(ids.flatten().tolist()), tuple(ids.shape))


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    assert torch.isfinite(a).all()
    assert torch.isfinite(b).all()
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


EMBEDDED = shipped_folder("data") / "embedded"
ROWS = 896  # of the embeddings: a few more than the embedded tokenizer's 888 tokens
SIZES = {
    "vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 160, "initializer_range": 0.1,
}  # fmt: skip
FEWER_KEYS = {**SIZES, "num_key_value_heads": 2}
GPT2 = {
    "vocab_size": ROWS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 160, "initializer_range": 0.1,
    "bos_token_id": 0, "eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
CAUSAL = {
    "Llama": FEWER_KEYS, "Mistral": FEWER_KEYS, "Gemma": {**FEWER_KEYS, "head_dim": 8}, "Qwen2": FEWER_KEYS,
    "GPT2": GPT2,
}  # fmt: skip
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ENCODERS = {
    "Bert": {**SIZES, **STILL}, "Roberta": {**SIZES, **STILL, "pad_token_id": 1},
    "DebertaV2": {
        **SIZES, **STILL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
        "type_vocab_size": 0, "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_buckets": 16,
    },
}  # fmt: skip
TOPICS = {"pears": "good", "stones": "bad"}


def save_model(name: str, folder: Path, tokenizer: Any = None, **changes: Any) -> str:
    """A tiny random model of transformers' class ``name``, with the embedded tokenizer or another one."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**(CAUSAL | ENCODERS)[name], **changes})
    kind = "ForMaskedLM" if name in ENCODERS else "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    getattr(transformers, f"{name}{kind}")(config).save_pretrained(folder)
    if tokenizer is None:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(EMBEDDED / file, folder)
    else:
        tokenizer.save_pretrained(folder)
    return str(folder)


def byte_pairs() -> Any:
    """A byte-level BPE tokenizer as GPT-2's: no ``<s>``, no padding, one special token for the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator([f"{row['question']} {row['answer']}" for row in sums(60)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def word_pieces(roberta: bool = False) -> Any:
    """A tokenizer as BERT's, ``[CLS] a [SEP] b [SEP]`` with token types, or as RoBERTa's ``<s> a </s></s> b </s>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, pad, end, unknown = ("<s>", "<pad>", "</s>", "<unk>") if roberta else ("[CLS]", "[PAD]", "[SEP]", "[UNK]")
    special = [start, pad, end, unknown] if roberta else [pad, unknown, start, end]
    words = sorted({word for row in pairs(80) for text in row.values() for word in str(text).split()})
    words += ["good", "bad", *TOPICS]
    made = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(dict.fromkeys([*special, *words]))}, unk_token=unknown)
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    kind = processors.RobertaProcessing if roberta else processors.BertProcessing
    made.post_processor = kind((end, made.token_to_id(end)), (start, made.token_to_id(start)))
    names = ["input_ids", "attention_mask"] if roberta else ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token=start, sep_token=end, pad_token=pad, unk_token=unknown,
        bos_token=start if roberta else None, eos_token=end if roberta else None, model_input_names=names,
    )  # fmt: skip


def sums(count: int) -> list[dict[str, Any]]:
    """Rows as GSM8K's: the steps with calculator notes, and the number after ``####``."""
    rng, rows = Random(1), []
    for _ in range(count):
        a, b = rng.randrange(1, 10), rng.randrange(1, 10)
        rows.append(
            {
                "question": f"Ana has {a} pears and buys {b} pears. How many pears has she?",
                "answer": f"She has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} pears.\n#### {a + b}",
            }
        )
    return rows


def sentences(count: int) -> list[dict[str, Any]]:
    """Rows as SST-2's, told apart by one word."""
    rng = Random(2)
    labels = [i % 2 for i in range(count)]
    return [
        {"sentence": f"{rng.choice(['Ana', 'Ben', 'Cara'])} has {rng.randrange(99)} {list(TOPICS)[label]} ",
         "label": label, "idx": i}
        for i, label in enumerate(labels)
    ]  # fmt: skip


def pairs(count: int, scores: bool = False) -> list[dict[str, Any]]:
    """Rows as MRPC's and, with ``scores``, STS-B's: the second sentence repeats the first, or is about stones."""
    rng, rows = Random(3), []
    for i in range(count):
        first = f"{rng.choice(['Ana', 'Ben', 'Cara'])} has {rng.randrange(9)} pears"
        same = i % 2
        second = first if same else f"Dan has {rng.randrange(9)} stones"
        rows.append({"sentence1": first, "sentence2": second, "label": 5.0 * same if scores else same, "idx": i})
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_table(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def folder_of(path: Path, rows: list[dict[str, Any]], test: str) -> str:
    """A folder with a training and a test split, the last eight rows."""
    write_lines(path / "train.jsonl", rows[:-8])
    write_lines(path / f"{test}.jsonl", rows[-8:])
    return str(path)


# --- finished runs ---


def some_run(**changes):
    config = changes.pop("config", RunConfig(method="slora", init="identity"))
    steps = tuple(Step(i, 1 / i, 1e-3, 0.5) for i in range(1, config.steps + 1))
    fields = {
        "config": config, "steps": steps, "trainable": 10, "seconds": 1.5,
        "metrics": {"accuracy": 0.5, "validation_loss": 0.7, "step0_change": 0.0}, "peak_memory": 2**20,
        "device": "CPU", "versions": {"torch": "2"},
    }  # fmt: skip
    return Run(**{**fields, **changes})


def recorded_run(lr=1e-3, seed=0, loss=1.0, accuracy=0.5, validation=None, diverged=False, **asked):
    config = RunConfig(**{"method": "lora", "lr": lr, "seed": seed, **asked})
    steps = tuple(Step(i, math.nan if diverged else loss, lr, 1.0) for i in range(1, config.steps + 1))
    metrics = {"accuracy": accuracy, "validation_loss": loss if validation is None else validation}
    return some_run(config=config, steps=steps, metrics={} if diverged else metrics, diverged=diverged)


def falling(seed, of, **asked):
    made = recorded_run(seed=seed, **asked)
    steps = tuple(Step(i, of(i), 1e-3, 1.0) for i in range(1, 101))
    return type(made)(**{**{f: getattr(made, f) for f in made.__dataclass_fields__}, "steps": steps})


# --- less work ---


@contextmanager
def few_rows(train: int, validation: int, test: int) -> Iterator[None]:
    """Runs within it load the first rows of each split. Most of a run of three steps is reading and measuring rows."""
    complete = resolution.load_task

    def load(*args: Any, **options: Any) -> Any:
        task = complete(*args, **options)
        sizes = {"train": train, "validation": validation, "test": test}
        parts = {split: getattr(task, split) for split in sizes}
        return replace(task, **{s: rows.select(range(min(sizes[s], len(rows)))) for s, rows in parts.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolution, "load_task", load)
        yield
