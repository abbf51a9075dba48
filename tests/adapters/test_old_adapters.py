"""Adapters that the code wrote before it was divided into packages still load and compute the same.

Each was attached to a Llama of ``base()`` with rank 3, moved a little, and saved. ``logits.json`` holds what the model
computed then.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from factories import ROOT, logits, tiny_llama
from peft import PeftModel

from nlora_lab.adapters import NLoraLayer, save_as_lora

FOLDER = ROOT / "tests" / "data" / "before_packages" / "adapters"
SAVED = json.loads((FOLDER / "logits.json").read_text(encoding="utf-8"))


@torch.no_grad()
def base() -> Any:
    """The base model of the saved adapters: the same on every version of transformers, because each weight is drawn."""
    model, generator = tiny_llama(vocab_size=29), torch.Generator().manual_seed(5)
    for _, parameter in sorted(model.named_parameters()):
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("name", list(SAVED["logits"]))
def test_an_old_adapter_computes_what_it_did(name, tmp_path):
    ids, expected = torch.tensor(SAVED["ids"]), torch.tensor(SAVED["logits"][name])
    untouched = logits(base(), ids)
    assert float((untouched - expected).abs().max()) > 1e-2
    model = PeftModel.from_pretrained(base(), FOLDER / name).eval()
    assert torch.allclose(logits(model, ids), expected, atol=1e-5)
    assert sum(isinstance(layer, NLoraLayer) for layer in model.modules()) == 4
    lora = PeftModel.from_pretrained(base(), save_as_lora(FOLDER / name, tmp_path)).eval()
    assert torch.allclose(logits(lora, ids), expected, atol=1e-5)


def test_all_four_kinds_are_tested():
    kinds = {file.name for file in FOLDER.iterdir() if file.is_dir()}
    assert kinds == set(SAVED["logits"]) == {"slora", "nlora", "nlora_released", "inttune"}
