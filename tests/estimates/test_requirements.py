"""Estimates: the formulas against what autograd saves and what PyTorch counts, and the advice that follows."""

from __future__ import annotations

import importlib.util
import json
import time
from dataclasses import replace

import pytest
import torch
from factories import ROOT, write_lines
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig

from nlora_lab.core.devices import Device
from nlora_lab.core.errors import FitError, InputError, ModelError
from nlora_lab.estimates import requirements
from nlora_lab.estimates.conditions import resolve_on, run_setting
from nlora_lab.estimates.memory import cached_bytes, memory_needed, token_bytes
from nlora_lab.estimates.requirements import check_fit, estimate, how_many_fit
from nlora_lab.estimates.row_lengths import RowLengths
from nlora_lab.estimates.shapes import adapter_sizes, architecture_sizes, read_architecture
from nlora_lab.estimates.timing import step_flops
from nlora_lab.methods.attachment import attach
from nlora_lab.methods.parameters import trainable_parameters
from nlora_lab.methods.table import METHODS
from nlora_lab.models import batch_limits
from nlora_lab.models.loading import load_model, meta_body
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import resolve

CPU = Device("cpu", "no", "CPU, float32")
SMALL = {
    "vocab_size": 300, "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
PAPER = LlamaConfig(
    hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008, vocab_size=32000,
    tie_word_embeddings=False,
)  # fmt: skip
SMOL = LlamaConfig(
    **{
        **SMALL, "num_hidden_layers": 30, "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    }
)  # fmt: skip
B, T = 3, 48


def llama(layers=2, **changes):
    return LlamaConfig(**{**SMALL, "num_hidden_layers": layers, **changes})


def training_model(config, cfg, bf16=False):
    torch.manual_seed(0)
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=cfg.attention or "sdpa")
    model = attach(model, cfg.method, cfg.rank)
    if cfg.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def saved_by_autograd(config, cfg, bf16=False):
    """Bytes of all storages that a forward pass saves, without those of the parameters."""
    model = training_model(config, cfg, bf16)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes, tensors = {}, []

    def save(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            tensors.append(tensor)  # or its memory is used again, and counted once
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 300, (B, T))
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model(input_ids=ids, attention_mask=mask, labels=ids)
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("changes", "bf16", "within"),
    [
        ({"method": "lora"}, False, 0.03),
        ({"method": "slora"}, False, 0.03),
        ({"method": "nlora"}, False, 0.06),
        ({"method": "inttune"}, False, 0.06),
        ({"method": "dora"}, False, 0.10),
        ({"method": "full"}, False, 0.03),
        ({"method": "lora", "attention": "eager"}, False, 0.03),
        ({"method": "lora", "precision": "bf16"}, True, 0.06),
        # the layers of this package share bfloat16 inputs that PEFT's copy, so the estimate is too high
        ({"method": "nlora", "precision": "bf16"}, True, 0.20),
    ],
    ids=lambda value: ",".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_a_layer_saves_what_the_formula_says(changes, bf16, within):
    cfg = RunConfig(rank=4, batch_size=B, **changes)
    two, four = (saved_by_autograd(llama(n), cfg, bf16) for n in (2, 4))
    assert activations(4, cfg) - activations(2, cfg) == pytest.approx(four - two, rel=within)


def activations(layers, cfg):
    arch = architecture_sizes(meta_body(llama(layers)))
    return memory_needed(arch, resolve_on(cfg, CPU), RowLengths(T, T, T, 0)).activations


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_with_checkpointing_a_layer_saves_only_its_input():
    cfg = RunConfig(rank=4, batch_size=B, checkpointing=True)
    two, four = (saved_by_autograd(llama(n), cfg) for n in (2, 4))
    assert activations(4, cfg) - activations(2, cfg) == four - two == 2 * B * T * 96 * 4


@pytest.mark.parametrize("config", [llama(), llama(tie_word_embeddings=True), GPT2Config()])
def test_parameters_are_those_of_the_model_with_its_head(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert architecture_sizes(meta_body(config)).parameters() == sum(p.numel() for p in model.parameters())


def test_published_sizes_of_bert_base():
    arch = architecture_sizes(meta_body(BertConfig()))
    assert (arch.layers, arch.hidden, arch.heads, arch.mlp_width, arch.vocabulary) == (12, 768, 12, 3072, 30522)
    assert arch.body == 109_482_240
    assert arch.parameters(head=3) == 109_482_240 + 3 * 768


def test_a_tied_head_is_multiplied_by_but_not_held_twice():
    tied, untied = (architecture_sizes(meta_body(llama(tie_word_embeddings=t))) for t in (True, False))
    assert untied.parameters() - tied.parameters() == 300 * 96
    assert untied.multiplied() == tied.multiplied()


@pytest.mark.parametrize("method", list(METHODS))
def test_sizes_of_the_adapter_are_those_of_the_model(method):
    arch, model = read_architecture("embedded"), attach(load_model()[0], method, 4)
    added = adapter_sizes(arch, resolve_on(RunConfig(method=method, rank=4), CPU))
    assert added.trained == trainable_parameters(model)
    base = 0 if method == "full" else arch.parameters()
    assert added.trained + added.frozen + base == sum(p.numel() for p in model.parameters())


def test_the_papers_run_by_hand():
    cfg = RunConfig(
        method="nlora", rank=128, batch_size=128, accumulation=128, max_length=512, precision="bf16",
        task="metamath", model="meta-llama/Llama-2-7b-hf",
    )  # fmt: skip
    result = estimate(cfg, "H100", config=PAPER)
    assert result.trained == 319_815_680 + 3_670_016
    assert result.weights == 2 * 6_738_415_616
    assert result.adapter == 2 * 4 * result.trained  # with the start that it holds
    assert result.optimizer == 2 * result.gradients == 8 * result.trained
    assert result.logits == 512 * 32_000 * 12


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "changes", [{"method": "lora"}, {"method": "full"}, {"method": "nlora"}, {"method": "lora", "checkpointing": True}]
)
def test_flops_agree_with_pytorchs_counter(changes):
    from torch.utils.flop_counter import FlopCounterMode

    cfg = RunConfig(rank=4, batch_size=B, attention="eager", **changes)
    model = training_model(llama(4), cfg)
    ids = torch.randint(0, 300, (B, T))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    arch = architecture_sizes(meta_body(llama(4)))
    assert step_flops(arch, resolve_on(cfg, CPU), T) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_accumulation_and_length_divide_activations():
    plain = estimate(RunConfig())
    divided = estimate(RunConfig(accumulation=4))
    assert divided.activations == pytest.approx(plain.activations / 4, rel=0.001)
    assert divided.logits == plain.logits / 4
    assert divided.optimizer == plain.optimizer
    assert estimate(RunConfig(max_length=41)).logits == plain.logits / 2


def test_a_card_that_is_not_here_is_estimated_from_published_peaks():
    cfg = RunConfig(model="HuggingFaceTB/SmolLM2-135M", task="word-problems")
    slow, quick = (estimate(cfg, name, config=llama()) for name in ("T4", "A100"))
    assert "not here" in slow.device
    assert "float32" in slow.device
    assert "bfloat16" in quick.device
    assert quick.activations < slow.activations
    assert slow.budget > 14 * 2**30


def test_one_answer_takes_at_least_reading_the_weights():
    cfg = RunConfig(model="a/b", precision="bf16", test_rows=1)
    multiplied = architecture_sizes(meta_body(PAPER)).multiplied()
    assert estimate(cfg, "A100", config=PAPER).evaluation_seconds > 46 * 2 * multiplied / 1555e9


@pytest.mark.parametrize(
    ("cfg", "card", "config", "first"),
    [
        (RunConfig(model="a/b", batch_size=512, max_length=64), "T4", SMOL, "accumulation="),
        (RunConfig(model="a/b", method="full", batch_size=1), "H100", PAPER, "method='lora'"),
    ],
)
def test_advice_helps_and_begins_with_the_smallest_change(cfg, card, config, first):
    result = estimate(cfg, card, config=config)
    assert not result.fits
    assert result.why.startswith("It will not fit")
    assert result.advice[0].startswith(first)
    for change in result.advice:
        settings = eval(f"dict({change.split(' (')[0]})")  # advice is Python, so that it can be copied
        assert estimate(replace(cfg, **settings), card, config=config).fits


def test_batches_are_divided_as_little_as_possible():
    cfg = RunConfig(model="a/b", batch_size=512, max_length=64)
    parts = int(estimate(cfg, "T4", config=SMOL).advice[0].split(" ")[0].removeprefix("accumulation="))
    assert not estimate(replace(cfg, accumulation=parts // 2), "T4", config=SMOL).fits


def test_bf16_is_not_advised_for_a_card_without_it():
    result = estimate(RunConfig(model="a/b", method="lora", rank=8), "T4", config=PAPER)
    assert not result.fits
    assert not any("precision" in change for change in result.advice)


def test_changes_that_are_enough_only_together_are_named_together(monkeypatch):
    cfg = RunConfig(method="nlora", rank=64, batch_size=16)
    alone = min(estimate(replace(cfg, **c)).total for c in ({"accumulation": 16}, {"checkpointing": True}, {"rank": 8}))
    monkeypatch.setattr(requirements, "free_memory", lambda device: int(alone * 0.7))
    (line,) = estimate(cfg).advice
    changes = eval(f"dict({line.split(' together')[0]})")
    assert len(changes) > 1
    assert estimate(replace(cfg, **changes)).fits
    last = list(changes)[-1]
    assert not estimate(replace(cfg, **{k: v for k, v in changes.items() if k != last})).fits


def test_an_impossible_run_names_another_card():
    result = estimate(RunConfig(model="a/b", precision="float32", task="entailment"), "T4", config=PAPER)
    assert result.advice[0].startswith("another device, such as")


def test_check_fit_is_quick_and_silent_for_the_embedded_model():
    check_fit(RunConfig())
    started = time.perf_counter()
    check_fit(RunConfig(), CPU)
    assert time.perf_counter() - started < 0.05


def test_check_fit_says_how_much_is_missing_and_what_to_change(monkeypatch):
    monkeypatch.setattr(requirements, "free_memory", lambda device: 80 * 2**20)
    with pytest.raises(FitError, match=r"will not fit: about .* MiB by estimate.*Try accumulation=2"):
        check_fit(RunConfig(), CPU)
    monkeypatch.setenv("NLORA_LAB_MEMORY_CHECK", "off")
    check_fit(RunConfig(), CPU)


def test_each_process_holds_its_share_of_the_batch(monkeypatch):
    half = estimate(RunConfig(batch_size=8)).total
    monkeypatch.setattr(requirements, "free_memory", lambda device: int(half / 0.94))
    with pytest.raises(FitError):
        check_fit(RunConfig(), CPU)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_fit(RunConfig(), CPU)


def test_as_many_runs_fit_as_the_largest_of_them_allows(monkeypatch):
    runs = [RunConfig(batch_size=size) for size in (4, 16)]
    largest = max(estimate(cfg).total for cfg in runs)
    monkeypatch.setattr(requirements, "free_memory", lambda device: int(3.5 * largest / 0.95))
    assert how_many_fit(runs) == 3
    monkeypatch.setattr(requirements, "free_memory", lambda device: 1)
    assert how_many_fit(runs) == 1
    assert how_many_fit([RunConfig(model="nobody/nothing")]) is None


def test_check_fit_leaves_an_unknown_model_to_the_loader(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nobody-knows"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    check_fit(RunConfig(model=str(tmp_path)))
    check_fit(RunConfig(model="nobody/nothing"))
    with pytest.raises(ModelError):
        estimate(RunConfig(model="nobody/nothing"))


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"device='V100' is not known; choose one of: .*T4"):
        estimate(RunConfig(), "V100")
    with pytest.raises(InputError, match=r"rank=500 is above 128, .*smaller rank"):
        estimate(RunConfig(rank=500))
    with pytest.raises(InputError, match="target_modules: 'nobody' matches no layer"):
        estimate(RunConfig(target_modules="nobody"))


def test_fewer_targets_train_fewer_parameters():
    fewer, every = estimate(RunConfig(target_modules="q_proj,v_proj")), estimate(RunConfig())
    assert fewer.trained == 4 * 2 * 8 * 256
    assert fewer.activations < every.activations


def test_a_classification_head_has_no_logits():
    result = estimate(RunConfig(model="a/b", task="sst2"), "T4", config=BertConfig())
    assert result.logits == result.evaluation == 0
    assert result.trained > 0


def test_the_text_says_that_it_is_an_estimate():
    text = repr(estimate(RunConfig(method="nlora")))
    for words in ("An estimate", "activations", "total", "counted", "within a factor", "80,640 trainable parameters"):
        assert words in text
    assert max(map(len, text.splitlines()[:-2])) < 100


def test_an_estimate_as_json_has_all_but_the_config():
    result = estimate(RunConfig(), "T4")
    record = json.loads(json.dumps(result.to_dict()))
    assert list(record) == [
        "weights", "adapter", "gradients", "optimizer", "activations", "logits", "evaluation", "training", "total",
        "trained", "flops", "seconds_a_step", "seconds", "evaluation_seconds", "device", "speed", "budget", "fits",
        "why", "advice", "assumed",
    ]  # fmt: skip
    assert (record["total"], record["advice"]) == (result.total, [])


def test_the_cache_of_an_answer_is_what_the_model_keeps():
    model, tokenizer = load_model()
    with torch.no_grad():
        cache = model(**tokenizer("Ana has 3 pears.", return_tensors="pt")).past_key_values
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    arch, tokens = read_architecture("embedded"), cache.get_seq_length()
    per_token = cached_bytes(arch, run_setting(arch, resolve_on(RunConfig(), CPU)))
    assert size == tokens * batch_limits.kv_bytes_per_token(model.config, 4) == tokens * per_token


def test_the_record_backs_the_factors_that_estimates_name():
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "estimates.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    record = json.loads(bench.RECORD.read_text())
    assert set(record["cases"]) == set(bench.CASES)
    for row in record["cases"].values():
        assert bench.factor(row["memory"]) <= requirements.MEMORY_FACTOR
        assert bench.factor(row["seconds_a_step"]) <= requirements.TIME_FACTOR


def test_a_longer_row_costs_a_token_more_only_by_its_mask():
    arch = read_architecture("embedded")
    run = resolve_on(RunConfig(), CPU)
    added, setting = adapter_sizes(arch, run), run_setting(arch, run)
    assert token_bytes(arch, added, 200, setting) - token_bytes(arch, added, 100, setting) == 400
    eager = replace(setting, eager_attention=True)
    assert token_bytes(arch, added, 200, eager) - token_bytes(arch, added, 100, eager) == 4 * 4 * 100


def test_a_classifier_of_own_data_has_no_logits_of_a_language_model(tmp_path):
    rows = [{"text": f"pears {i}", "label": i % 2} for i in range(40)]
    cfg = RunConfig("slora", task="own", data=write_lines(tmp_path / "own.jsonl", rows))
    needs = estimate(cfg)
    assert needs.logits == 0
    assert needs.total == estimate(cfg, head=2).total < estimate(cfg, head=0).total
    assert resolve(cfg).head == resolve(cfg).task.head == 2
