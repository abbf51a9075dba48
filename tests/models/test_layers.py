"""Which layers an adapter can sit on, and selections that say more than they do."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from factories import save_model, tiny_llama, tiny_mixtral
from peft import get_peft_model
from torch import nn

import nlora_lab as nl
from nlora_lab.adapters import slora
from nlora_lab.core.errors import InputError
from nlora_lab.methods.attachment import attach
from nlora_lab.models.layers import fused_weights, linear_layers, read_by_parent, target_layers
from nlora_lab.training.session import warn_of_missing_gradients


class Encoder(nn.Module):
    """Torch's own transformer layer between two linear layers, and an attention on its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.pool = nn.MultiheadAttention(16, 2, batch_first=True)
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.inner(self.first(x))
        return self.last(self.pool(x, x, x)[0])


UNCALLED = {
    "inner.linear1": "TransformerEncoderLayer", "inner.linear2": "TransformerEncoderLayer",
    "inner.self_attn.out_proj": "MultiheadAttention", "pool.out_proj": "MultiheadAttention",
}  # fmt: skip


def test_layers_that_are_never_called_are_left_out_by_their_parent():
    model = Encoder()
    assert read_by_parent(model) == UNCALLED
    assert set(linear_layers(model)) == {"first", "last"}
    with pytest.raises(InputError, match=r"pool\.out_proj is inside a MultiheadAttention, which reads its weight"):
        target_layers(model, ["pool.out_proj"])
    with pytest.raises(InputError, match=r"is inside a (Multihead|TransformerEnc)"):
        get_peft_model(model, slora(2, target_modules="all-linear"))


@pytest.mark.parametrize("method", ["lora", "slora", "nlora", "pissa"])
def test_merging_gives_the_model_that_was_trained(method):
    model, x = Encoder(), torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match="4 weights of this Encoder get no adapter, inner"):
        tuned = attach(model, method, 2, task_type=None)
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape)
    tuned.eval()
    tuned(x).sum().backward()
    warn_of_missing_gradients(tuned)  # there are none
    with torch.no_grad():
        live = tuned(x)
        assert torch.allclose(tuned.merge_and_unload()(x), live, atol=1e-5)


def test_a_factor_without_a_gradient_is_named_after_the_first_step():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.used(x) + self.unused.weight.sum()

    tuned = attach(Half(), "slora", 2, task_type=None)
    tuned(torch.ones(1, 8)).sum().backward()
    with pytest.warns(UserWarning, match=r"3 trained parameters got no gradient.*unused\.nlora_A"):
        warn_of_missing_gradients(tuned)


def test_a_run_names_what_gets_no_gradient(tmp_path, monkeypatch):
    import transformers

    folder = save_model("Llama", tmp_path)
    complete = transformers.models.llama.modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(
        transformers.models.llama.modeling_llama.LlamaMLP, "forward",
        lambda self, x: complete(self, x).detach() if self.training else complete(self, x),
    )  # fmt: skip
    cfg = nl.RunConfig("slora", rank=2, model=folder, steps=1, batch_size=2, test_rows=2)
    with pytest.warns(UserWarning, match="got no gradient in the first step"):
        nl.fine_tune(cfg)


def test_experts_in_one_tensor_are_said_to_be_out_of_reach():
    assert {name.split("experts.")[1]: shape for name, shape in fused_weights(tiny_mixtral()).items()} == {
        "gate_up_proj": (3, 96, 32), "down_proj": (3, 32, 48)
    }  # fmt: skip
    with pytest.warns(UserWarning, match=r"2 weights of this MixtralForCausalLM get no adapter.*one tensor of shape"):
        attach(tiny_mixtral(), "slora", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(tiny_llama(), "slora", 2)


def put_on(model, way, **options):
    """By this library's own function, or by PEFT's."""
    if way == "peft":
        return get_peft_model(model, slora(2, **copy.deepcopy(options)))
    return attach(model, way, 2, **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target_modules": ["q_proj", "k_porj"]}, r"target_modules: 'k_porj' matches no module"),
        ({"target_modules": ["q_proj", "proj"]}, r"target_modules: 'proj' matches no module"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["layers.9.q_proj"]}, "exclude_modules: 'layers.9.q_proj'"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "lm_haed"]}, "modules_to_save: 'lm_haed'"),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [0, 7]},
            "layers_to_transform: the model has no layer 7",
        ),
        ({"target_modules": ["q_proj"], "layers_to_transform": -1}, "layers_to_transform: the model has no layer -1"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"q_porj": 2}}, "rank_pattern: 'q_porj' matches no module"),
        ({"target_modules": ["q_proj"], "alpha_pattern": {"(": 2.0}}, r"alpha_pattern: '\(' is not a regular"),
    ],
)
@pytest.mark.parametrize("way", ["lora", "slora", "peft"])
def test_what_matches_nothing_is_refused_beside_what_matches(options, named, way):
    with pytest.raises(InputError, match=named):
        put_on(tiny_llama(), way, **options)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "old weight_norm", "old spectral_norm"])
@pytest.mark.parametrize("way", ["lora", "slora", "peft"])
def test_a_weight_that_is_computed_at_every_call_is_refused(kind, way):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    place = nn.utils if kind.startswith("old ") else nn.utils.parametrizations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(place, kind.removeprefix("old "))(model[1])
    with pytest.raises(InputError, match="the weight of 1 is computed at every call"):
        put_on(model, way, target_modules=["1"], task_type=None)
