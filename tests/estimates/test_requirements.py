"""Estimates: the formulas against what autograd keeps and what PyTorch counts, and the words around them."""

from __future__ import annotations

import importlib.util
import json
import time
from dataclasses import replace

import pytest
import torch
from factories import ROOT
from transformers import BertConfig, GPT2Config, LlamaConfig

import nlora_lab.estimates.requirements as estimates
from nlora_lab.core.devices import Device
from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.estimates.memory import Lengths, adapter, architecture, memory, sizes, step_flops, token_bytes
from nlora_lab.estimates.requirements import check_fit, estimate, setting_of
from nlora_lab.methods.attachment import attach
from nlora_lab.methods.parameters import trainable_parameters
from nlora_lab.methods.table import METHODS
from nlora_lab.models import batch_limits as portions
from nlora_lab.models.loading import load_model, meta_body
from nlora_lab.runs.config import RunConfig

CPU = Device("cpu", "no", "CPU, float32")
SMALL = {
    "vocab_size": 300, "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
PAPER = LlamaConfig(
    hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008, vocab_size=32000,
    tie_word_embeddings=False,
)  # fmt: skip
B, T = 3, 48


def llama(layers=2, **changes):
    return LlamaConfig(**{**SMALL, "num_hidden_layers": layers, **changes})


def built(config, cfg, half=False):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    kept = torch.bfloat16 if half else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=kept, attn_implementation=cfg.attention or "sdpa")
    model = attach(model, cfg.method, cfg.rank)
    if cfg.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def kept_by_autograd(config, cfg, half=False):
    """Bytes of all storages that a forward pass keeps, without the parameters' own."""
    model = built(config, cfg, half)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            alive.append(tensor)  # or its memory is used again, and counted once
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 300, (B, T))
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        model(input_ids=ids, attention_mask=mask, labels=ids)
    return sum(held.values())


@pytest.mark.parametrize(
    ("changes", "half", "within"),
    [
        ({"method": "lora"}, False, 0.03),
        ({"method": "slora"}, False, 0.03),
        ({"method": "nlora"}, False, 0.06),
        ({"method": "inttune"}, False, 0.06),
        ({"method": "dora"}, False, 0.10),
        ({"method": "full"}, False, 0.03),
        ({"method": "lora", "attention": "eager"}, False, 0.03),
        ({"method": "lora", "precision": "bf16"}, True, 0.06),
        # its own layers share bf16 inputs that PEFT's copy: estimated too high
        ({"method": "nlora", "precision": "bf16"}, True, 0.20),
    ],
    ids=lambda value: ",".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_a_layer_keeps_what_the_formula_says(changes, half, within):
    cfg = RunConfig(rank=4, batch_size=B, **changes)
    two, four = (kept_by_autograd(llama(n), cfg, half) for n in (2, 4))
    place = replace(CPU, precision="bf16") if half else CPU
    assert activations(4, cfg, place) - activations(2, cfg, place) == pytest.approx(four - two, rel=within)


def activations(layers, cfg, place=CPU):
    arch = sizes(meta_body(llama(layers)))
    return memory(arch, cfg, Lengths(T, T, T, 0), setting_of(cfg, arch, place)).activations


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_with_checkpointing_a_layer_keeps_its_input_alone():
    cfg = RunConfig(rank=4, batch_size=B, checkpointing=True)
    two, four = (kept_by_autograd(llama(n), cfg) for n in (2, 4))
    assert activations(4, cfg) - activations(2, cfg) == four - two == 2 * B * T * 96 * 4


@pytest.mark.parametrize("config", [llama(), GPT2Config(vocab_size=300, n_embd=96, n_layer=2, n_head=4), BertConfig()])
def test_sizes_are_those_of_the_architecture(config):
    body = meta_body(config)
    arch = sizes(body)
    assert arch.layers == config.num_hidden_layers
    assert arch.body == sum(p.numel() for p in body.parameters())
    assert arch.numbers(head=3) == arch.body + 3 * arch.hidden


def test_a_tied_head_is_multiplied_by_but_not_held_twice():
    tied, untied = (sizes(meta_body(llama(tie_word_embeddings=t))) for t in (True, False))
    assert untied.numbers() - tied.numbers() == 300 * 96
    assert untied.multiplied() == tied.multiplied()


@pytest.mark.parametrize("method", list(METHODS))
def test_numbers_of_the_adapter_are_those_of_the_model(method):
    cfg = RunConfig(method=method, rank=4)
    model = attach(load_model()[0], method, 4)
    added = adapter(architecture("embedded"), cfg)
    assert added.trained == trainable_parameters(model)
    whole = sum(p.numel() for p in model.parameters())
    everything = 0 if method == "full" else architecture("embedded").numbers()
    assert added.trained + added.frozen + everything == whole


def test_the_papers_run_by_hand():
    found = estimate(
        RunConfig(method="nlora", rank=128, batch_size=128, accumulation=128, max_length=512, precision="bf16",
                  task="metamath", model="meta-llama/Llama-2-7b-hf"),
        "H100",
        config=PAPER,
    )  # fmt: skip
    assert found.trained == 319_815_680 + 3_670_016
    assert found.weights == 2 * 6_738_415_616
    assert found.adapter == 2 * 4 * found.trained  # with the start that it keeps
    assert found.optimizer == 2 * found.gradients == 8 * found.trained
    assert found.logits == 512 * 32_000 * 12


def test_flops_are_two_a_number_and_pass():
    arch = sizes(meta_body(llama()))
    N, tokens = arch.multiplied(), 16 * T
    attention = 12 * T * 96 * 2
    full = step_flops(arch, RunConfig(method="full"), T)
    assert full == tokens * (6 * N + attention)
    lora = step_flops(arch, RunConfig(rank=4), T)
    assert lora == tokens * (4 * N + attention + 6 * adapter(arch, RunConfig(rank=4)).trained)
    assert step_flops(arch, RunConfig(rank=4, checkpointing=True), T) > 1.2 * lora


def test_flops_agree_with_pytorchs_counter():
    from torch.utils.flop_counter import FlopCounterMode

    cfg = RunConfig(method="lora", rank=4, batch_size=B, attention="eager")
    model = built(llama(4), cfg)
    ids = torch.randint(0, 300, (B, T))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    assert step_flops(sizes(meta_body(llama(4))), cfg, T) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_accumulation_and_length_divide_activations():
    whole = estimate(RunConfig())
    parts = estimate(RunConfig(accumulation=4))
    assert parts.activations == pytest.approx(whole.activations / 4, rel=0.001)
    assert parts.logits == whole.logits / 4
    assert parts.optimizer == whole.optimizer
    assert estimate(RunConfig(max_length=41)).logits == whole.logits / 2


def test_a_card_that_is_not_here_is_reckoned_from_published_peaks():
    cfg = RunConfig(model="HuggingFaceTB/SmolLM2-135M", task="word-problems")
    slow, quick = (estimate(cfg, name, config=llama()) for name in ("T4", "A100"))
    assert "not here" in slow.device
    assert "float32" in slow.device
    assert "bfloat16" in quick.device
    assert quick.activations < slow.activations
    assert slow.budget > 14 * 2**30


def test_one_answer_takes_at_least_reading_the_weights():
    cfg = RunConfig(model="a/b", precision="bf16", test_rows=1)
    found = estimate(cfg, "A100", config=PAPER)
    body = sizes(meta_body(PAPER)).multiplied()
    assert found.evaluation_seconds > 46 * 2 * body / 1555e9


@pytest.mark.parametrize(
    ("cfg", "card", "first"),
    [
        (RunConfig(model="a/b", batch_size=512, max_length=64, task="word-problems"), "T4", "accumulation="),
        (RunConfig(model="a/b", method="full", batch_size=1), "H100", "method='lora'"),
    ],
)
def test_advice_helps_and_begins_with_the_smallest_change(cfg, card, first):
    config = llama(30, vocab_size=49152, hidden_size=576, intermediate_size=1536, num_attention_heads=9,
                   num_key_value_heads=3) if card == "T4" else PAPER  # fmt: skip
    found = estimate(cfg, card, config=config)
    assert not found.fits
    assert found.why.startswith("It will not fit")
    assert found.advice[0].startswith(first)
    for words in found.advice:
        changes = eval(f"dict({words.split(' (')[0]})")  # the words are Python, so that they can be copied
        assert estimate(replace(cfg, **changes), card, config=config).fits


def test_batches_are_divided_no_more_than_it_takes():
    cfg = RunConfig(model="a/b", batch_size=512, max_length=64)
    config = llama(30, vocab_size=49152, hidden_size=576, intermediate_size=1536, num_attention_heads=9,
                   num_key_value_heads=3)  # fmt: skip
    parts = int(estimate(cfg, "T4", config=config).advice[0].split(" ")[0].removeprefix("accumulation="))
    assert not estimate(replace(cfg, accumulation=parts // 2), "T4", config=config).fits


def test_no_card_here_is_told_to_use_bf16_it_lacks():
    found = estimate(RunConfig(model="a/b", method="lora", rank=8), "T4", config=PAPER)
    assert not found.fits
    assert not any("precision" in words for words in found.advice)


def test_changes_that_only_do_it_together_are_named_together(monkeypatch):
    cfg = RunConfig(method="nlora", rank=64, batch_size=16)
    alone = min(estimate(replace(cfg, **c)).total for c in ({"accumulation": 16}, {"checkpointing": True}, {"rank": 8}))
    monkeypatch.setattr(estimates, "free_memory", lambda place: int(alone * 0.7))
    (words,) = estimate(cfg).advice
    changes = eval(f"dict({words.split(' together')[0]})")
    assert len(changes) > 1
    assert estimate(replace(cfg, **changes)).fits
    last = list(changes)[-1]
    assert not estimate(replace(cfg, **{k: v for k, v in changes.items() if k != last})).fits


def test_an_impossible_run_names_another_card():
    found = estimate(RunConfig(model="a/b", precision="float32", task="entailment"), "T4", config=PAPER)
    assert found.advice[0].startswith("another device, such as")


def test_check_fit_is_quick_and_silent_for_the_embedded_model():
    check_fit(RunConfig())
    started = time.perf_counter()
    check_fit(RunConfig(), CPU)
    assert time.perf_counter() - started < 0.05


def test_check_fit_says_how_much_and_what_to_change(monkeypatch):
    monkeypatch.setattr(estimates, "free_memory", lambda place: 80 * 2**20)
    with pytest.raises(InputError, match=r"will not fit: about .* MiB by estimate.*Try accumulation=2"):
        check_fit(RunConfig(), CPU)


def test_check_fit_leaves_an_unknown_model_to_the_loader(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nobody-knows"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    check_fit(RunConfig(model=str(tmp_path)))
    check_fit(RunConfig(model="nobody/nothing"))
    with pytest.raises(ModelError):
        estimate(RunConfig(model="nobody/nothing"))


def test_what_cannot_be_estimated_is_named():
    with pytest.raises(InputError, match="T4"):
        estimate(RunConfig(), "V100")
    with pytest.raises(InputError, match="smaller rank"):
        estimate(RunConfig(rank=500))
    with pytest.raises(InputError, match="matches no layer"):
        estimate(RunConfig(target_modules="nobody"))


def test_fewer_targets_train_fewer_numbers():
    some, every = estimate(RunConfig(target_modules="q_proj,v_proj")), estimate(RunConfig())
    assert some.trained == 4 * 2 * 8 * 256
    assert some.activations < every.activations


def test_a_classification_head_has_no_logits():
    found = estimate(RunConfig(model="a/b", task="sst2"), "T4", config=BertConfig())
    assert found.logits == found.evaluation == 0
    assert found.trained > 0


def test_the_table_says_that_it_is_an_estimate():
    text = repr(estimate(RunConfig(method="nlora")))
    for word in ("An estimate", "activations", "total", "counted", "within a factor", "80,640 numbers train"):
        assert word in text
    assert max(map(len, text.splitlines()[:-2])) < 100


def test_the_cache_of_an_answer_is_what_the_model_keeps():
    model, tokenizer = load_model()
    with torch.no_grad():
        cache = model(**tokenizer("Ana has 3 pears.", return_tensors="pt")).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    tokens = cache.get_seq_length()
    arch = architecture("embedded")
    assert kept == tokens * portions.cached_bytes(model.config, 4) == tokens * arch.layers * 2 * arch.cached * 4


def test_the_record_bears_out_the_factors_named():
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "estimates.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    record = json.loads(bench.RECORD.read_text())
    assert set(record["cases"]) == set(bench.CASES)
    for row in record["cases"].values():
        assert bench.factor(row["memory"]) <= estimates.MEMORY_FACTOR
        assert bench.factor(row["seconds_a_step"]) <= estimates.TIME_FACTOR


def test_a_longer_row_costs_a_token_more_only_by_its_mask():
    arch, cfg = architecture("embedded"), RunConfig()
    added, setting = adapter(arch, cfg), setting_of(cfg, arch, CPU)
    assert token_bytes(arch, added, 200, setting) - token_bytes(arch, added, 100, setting) == 400
    quadratic = replace(setting, quadratic=True)
    assert token_bytes(arch, added, 200, quadratic) - token_bytes(arch, added, 100, quadratic) == 4 * 4 * 100
