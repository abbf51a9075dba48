"""Tiny random models saved in the hub's layout, and small data sets in the formats of the real ones."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch

from nlora_lab.files import shipped

EMBEDDED = shipped("data") / "embedded"
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
