from __future__ import annotations

import copy

import pytest
import torch
from factories import tiny_gpt2, tiny_llama

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.svd import singular_values
from nlora_lab.models.symmetry import permute_heads, permute_neurons

CHANGES = {"neurons": (permute_neurons, ("mlp", "gate_proj")), "heads": (permute_heads, ("self_attn", "q_proj"))}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_function_stays_the_spectra_stay_and_the_leading_block_moves(change, groups, ids):
    torch.manual_seed(0)
    model = tiny_llama(num_key_value_heads=groups, attention_bias=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # biases too
        before, changed = model(ids).logits, copy.deepcopy(model)
    permute, (block, name) = CHANGES[change]
    order = permute(changed, 1, torch.Generator().manual_seed(3))
    assert sorted(order.tolist()) == list(range(len(order)))
    with torch.no_grad():
        assert torch.allclose(changed(ids).logits, before, atol=1e-4)
    old, new = (getattr(getattr(m.model.layers[1], block), name).weight for m in (model, changed))
    assert torch.allclose(singular_values(old), singular_values(new), atol=1e-5)
    if order.tolist() != list(range(len(order))):
        assert not torch.equal(old, new)
        errors = [relative_error(W, nystrom(W, 6)) for W in (old, new)]
        assert abs(errors[0] - errors[1]) > 0.01


@pytest.mark.parametrize("permute", [permute_neurons, permute_heads])
def test_a_model_or_layer_that_cannot_be_permuted_is_named(permute):
    for model, layer, words in (
        (tiny_llama(), 2, "2 layers"),
        (tiny_llama(), -1, "layer=-1"),
        (tiny_gpt2(), 0, "Llama"),
    ):
        with pytest.raises(InputError, match=words):
            permute(model, layer)
    odd = tiny_llama()
    odd.model.layers[0].mlp = odd.model.layers[0].self_attn = torch.nn.Identity()
    with pytest.raises(InputError, match="layer 0 has no"):
        permute(odd, 0)
