"""Answers by vLLM, with a stand-in in its place."""

from __future__ import annotations

import sys
import types

import pytest

from nlora_lab.core.errors import InputError
from nlora_lab.evaluation.vllm_engine import generate_texts


def test_the_error_without_vllm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match="pip install vllm"):
        generate_texts("model", None, [[1]], 3, 2)


@pytest.fixture
def vllm(monkeypatch):
    """A stand-in that records its arguments and answers with the sum of the prompt."""
    calls = {}

    class LLM:
        def __init__(self, **options):
            calls.update(options)

        def generate(self, prompts, sampling, lora_request):
            calls.update(sampling=sampling, lora=lora_request)
            return [
                types.SimpleNamespace(outputs=[types.SimpleNamespace(text=str(sum(p["prompt_token_ids"])))])
                for p in prompts
            ]

    fake = types.ModuleType("vllm")
    fake.LLM, fake.SamplingParams = LLM, dict
    request = types.ModuleType("vllm.lora.request")
    request.LoRARequest = lambda *arguments: arguments
    for name, module in (("vllm", fake), ("vllm.lora", types.ModuleType("vllm.lora")), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_vllm_generates_the_likeliest_tokens(vllm, tmp_path):
    assert generate_texts("model", None, [[1, 2], [4]], 7, 2) == ["3", "4"]
    assert vllm["sampling"] == {"temperature": 0.0, "max_tokens": 7, "stop_token_ids": [2]}
    assert vllm["trust_remote_code"] is False
    assert vllm["lora"] is None
    assert "enable_lora" not in vllm

    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 12}')
    generate_texts("model", tmp_path, [[1]], 1, 2)
    assert (vllm["enable_lora"], vllm["max_lora_rank"]) == (True, 16)
    assert vllm["lora"] == ("adapter", 1, str(tmp_path))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ('{"peft_type": "NLORA", "r": 8}', "is a NLORA adapter"),
        ('{"peft_type": "LORA", "r": 4096}', "has rank 4096"),
        ("{", "is damaged"),
        ('{"peft_type": "LORA"}', "has no rank, r=None"),
    ],
)
def test_an_adapter_that_vllm_cannot_load_is_named(vllm, tmp_path, config, names):
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(InputError, match=names):
        generate_texts("model", tmp_path, [[1]], 1, 2)
    assert not vllm
