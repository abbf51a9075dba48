"""After the first backward pass, what got no gradient is named: in a run alone, and in a race on one base model."""

from __future__ import annotations

import pytest
import torch

from nlora_lab.models.loading import load_model
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import resolve
from nlora_lab.training import setup
from nlora_lab.training.batched.adapters import ExtractedAdapter
from nlora_lab.training.batched.model import BatchedModel
from nlora_lab.training.races import race

SMALL = {"steps": 1, "batch_size": 2, "test_rows": 2}
UNUSED = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def with_an_unused_layer(monkeypatch):
    """Loads the embedded model with a layer whose output nobody uses."""
    real = setup.load_base

    def load(run, head=0):
        model, tokenizer = real(run, head)
        layer = model.get_submodule(UNUSED)
        kept = torch.linspace(-1, 1, layer.out_features)

        def replace_output(_module, _inputs, output):
            return kept.expand_as(output)

        attention = model.get_submodule(UNUSED.rpartition(".")[0])
        forward = attention.forward

        def with_hook(*args, **kwargs):
            handle = attention.q_proj.register_forward_hook(replace_output)
            try:
                return forward(*args, **kwargs)
            finally:
                handle.remove()

        attention.forward = with_hook
        return model, tokenizer

    monkeypatch.setattr(setup, "load_base", load)
    monkeypatch.setattr("nlora_lab.training.races.load_base", load)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("methods", [["lora", "slora"], ["nlora", "inttune"]])
def test_a_layer_without_a_gradient_is_named_in_a_run_and_in_a_race(with_an_unused_layer, methods, together):
    configs = [RunConfig(method=method, **SMALL) for method in methods]
    with pytest.warns(UserWarning, match=r"trained parameters got no gradient.*layers\.1\.self_attn\.q_proj") as caught:
        runs = race(configs, together=together)
    assert {run.together for run in runs} == {2 if together else 1}
    named = [str(warning.message) for warning in caught]
    assert len(named) >= 2
    assert not any("layers.0" in text or "v_proj" in text or "k_proj" in text for text in named)


@pytest.mark.parametrize("method", ["lora", "slora", "nlora", "pissa", "dora", "lora-xs", "inttune"])
def test_where_all_layers_train_nothing_is_named(method):
    run = resolve(RunConfig(method=method, rank=4))
    base, tokenizer = load_model()
    adapters = [ExtractedAdapter(setup.build(run.config, 0)[0], base) for _ in range(2)]
    model = BatchedModel(base, adapters)
    ids = torch.tensor([tokenizer("Ana has 7 apples.")["input_ids"]])
    with model.active(adapters, torch.float32):
        logits = model(input_ids=ids.repeat(2, 1), use_cache=False).logits
    logits.square().mean().backward()
    assert adapters[0].factors_without_gradient() == []
    for factors in adapters[0].factors.values():
        for factor in factors.values():
            factor.grad = None
    assert len(adapters[0].factors_without_gradient()) == len(adapters[0].weights())
