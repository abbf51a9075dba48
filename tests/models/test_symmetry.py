from __future__ import annotations

import copy

import pytest
import torch
from factories import tiny_gpt2, tiny_llama

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.lowrank.svd import singular_values
from nlora_lab.models.loading import load_model
from nlora_lab.models.symmetry import permute_heads, permute_neurons, save_renumbered

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


def test_a_renumbered_copy_computes_the_same_and_starts_elsewhere(tmp_path, capfd):
    model, tokenizer = load_model()
    ids = tokenizer("Ana has 3 apples.", return_tensors="pt").input_ids
    blocks = []
    for seed in (1, 1, 2):
        copy, _ = load_model(str(save_renumbered(tmp_path / str(len(blocks)), seed)))
        with torch.no_grad():
            assert torch.allclose(copy(ids).logits, model(ids).logits, atol=1e-4)
        blocks.append(torch.stack([layer.mlp.gate_proj.weight[:8, :8] for layer in copy.model.layers]))
    assert torch.equal(blocks[0], blocks[1])
    assert not torch.allclose(blocks[0], blocks[2], atol=0.01)
    assert capfd.readouterr() == ("", "")


def test_a_copy_never_falls_into_a_folder_with_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for folder, seed, words in ((tmp_path, 1, "not an empty"), (tmp_path / "notes.txt", 1, "not an empty"),
                                (tmp_path / "new", -1, "seed=-1")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            save_renumbered(folder, seed)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_copy_that_could_not_be_written_completely_is_not_there(tmp_path, monkeypatch):
    def full(self, folder):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(load_model()[1]), "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        save_renumbered(tmp_path / "copy", 1)
    assert list(tmp_path.iterdir()) == []
