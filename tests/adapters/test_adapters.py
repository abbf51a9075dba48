"""The effect of presets and options of NLoraConfig on a layer."""

from __future__ import annotations

import math

import pytest
import torch
from factories import PRESETS, adapted, apart, base_logits, base_model, layers, logits, move
from peft import get_peft_model
from torch import nn

from nlora_lab.adapters import NLoraConfig, NLoraLayer, inttune, lora_xs, nlora, nlora_released, slora
from nlora_lab.adapters.products import add_update, subtract_start, update_pair
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import IllConditionedWarning
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.slora_init import CORE_INITS, split_init
from nlora_lab.lowrank.svd import truncated_svd

STARTS = {
    "nlora": lambda: nlora(4),
    "released": lambda: nlora_released(4),
    "optimal": lambda: nlora(4, core="optimal"),
    "cross": lambda: nlora(4, pivots="cross"),
    "qr": lambda: nlora(4, pivots="qr"),
    "balanced": lambda: nlora(4, balance=True),
    "inttune, cross": lambda: inttune(4, pivots="cross"),
}


@pytest.mark.parametrize("name", list(STARTS))
def test_the_factors_are_those_of_the_algebra(make_model, name):
    config = STARTS[name]()
    model = get_peft_model(make_model(), config)
    for layer in layers(model):
        W, (A, N, B) = layer.base_matrix(), (f.detach() for f in layer.factors("default"))
        expected = nystrom(W, 4, pivots=config.pivots, core=config.core, balance=config.balance)
        assert torch.equal(A, expected.right)
        assert torch.equal(N, expected.core)
        assert torch.equal(B, expected.left)
        if name in ("nlora", "released", "optimal"):
            assert torch.equal(A, W[:4, :])
            assert torch.equal(B, W[:, :4])
        if name == "released":
            assert torch.equal(N, W[:4, :4])
        assert A.data_ptr() != layer.get_base_layer().weight.data_ptr()


def test_lora_xs_stands_on_the_leading_singular_vectors(make_model):
    for layer in layers(get_peft_model(make_model(), lora_xs(4))):
        W, (A, N, B) = layer.base_matrix(), (f.detach() for f in layer.factors("default"))
        assert torch.allclose(A @ A.T, torch.eye(4), atol=1e-5)
        assert torch.allclose(B @ A, truncated_svd(W, 4).product(), atol=1e-4)
        assert 0 < float(N.detach().abs().max()) < 1e-4


@pytest.mark.parametrize("init", CORE_INITS)
def test_every_init_of_n_is_what_its_name_says(init):
    torch.manual_seed(0)
    model = get_peft_model(base_model("llama"), slora(8, init=init, init_std=0.3))
    for layer in layers(model):
        A, N, B = (f.detach() for f in layer.factors("default"))
        assert not B.any()
        bound_of_a = 1 / math.sqrt(A.shape[1])  # that of LoRA's A in PEFT
        assert 0.98 * bound_of_a < float(A.abs().max()) <= bound_of_a
        shape, scaled = split_init(init)
        if scaled:
            assert float(torch.linalg.matrix_norm(N)) == pytest.approx(math.sqrt(8 / 3))
        elif init == "identity":
            assert torch.equal(N, torch.eye(8))
        elif init == "orthogonal":
            assert torch.allclose(N @ N.T, torch.eye(8), atol=1e-5)
        elif init == "normal":
            assert 0.2 < float(N.std()) < 0.4
        else:
            bound = math.sqrt(1 / 8) if init == "kaiming" else math.sqrt(6 / 16)
            assert 0.8 * bound < float(N.abs().max()) <= bound
        if scaled and shape in ("identity", "orthogonal"):
            assert torch.allclose(N @ N.T, torch.eye(8) / 3, atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("with_core", [True, False])
@pytest.mark.parametrize("start_of", ["nothing", "N", "all"])
def test_an_update_is_the_product_of_its_pair_at_every_scale(scale, with_core, start_of):
    torch.manual_seed(0)
    (A, N, B), (A0, N0, B0) = [
        (torch.randn(3, 6), torch.randn(3, 3) if with_core else None, torch.randn(5, 3)) for _ in range(2)
    ]
    known = {"nothing": (None, None, None), "N": (None, N0, None), "all": (A0, N0, B0)}[start_of]
    left, right = update_pair((A, N, B), known, scale)

    def product(B, N, A):
        return B @ A if N is None else B @ N @ A

    subtracted = {"nothing": 0, "N": product(B, N0, A) if with_core else 0, "all": product(B0, N0, A0)}[start_of]
    assert torch.allclose(left @ right, scale * (product(B, N, A) - subtracted), atol=1e-5)


def test_kaiming_is_of_the_size_that_the_scaled_starts_are_brought_to():
    torch.manual_seed(0)
    sizes = [
        float(torch.linalg.matrix_norm(layer.factors("default")[1].detach()) ** 2)
        for _ in range(8)
        for layer in layers(get_peft_model(base_model("llama"), slora(8)))
    ]
    assert sum(sizes) / len(sizes) == pytest.approx(8 / 3, rel=0.05)


def test_scales_ranks_and_their_patterns():
    config = slora(
        4,
        alpha=8.0,
        rank_pattern={"q_proj": 2, r"layers\.1\..*down_proj": 6},
        alpha_pattern={"model.layers.0.self_attn.v_proj": 3.0},
    )
    model = get_peft_model(base_model("llama"), config)
    layers_by_name = {
        n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, NLoraLayer)
    }
    ranks = {name: layer.r["default"] for name, layer in layers_by_name.items()}
    assert {n for n, r in ranks.items() if r == 2} == {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)}
    assert [n for n, r in ranks.items() if r == 6] == ["model.layers.1.mlp.down_proj"]
    scales = {name: layer.scaling["default"] for name, layer in layers_by_name.items()}
    assert scales["model.layers.0.self_attn.q_proj"] == 8 / 2
    assert scales["model.layers.0.self_attn.v_proj"] == 3 / 4
    assert scales["model.layers.1.mlp.down_proj"] == 8 / 6
    assert slora(9, alpha=6.0, use_rslora=True).scaling == 6 / 3
    assert slora(4).scaling == 1
    assert slora(4, rank_pattern={"q_proj": 2}).scaling_of("q_proj") == 1  # alpha=None follows the layer's rank


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_update_is_that_of_its_dense_matrix(name, make_model, ids):
    """The step and the merge use one formula, also where a single vector goes in."""
    torch.manual_seed(1)
    model = get_peft_model(make_model(), PRESETS[name](4, alpha=8.0)).eval()
    move(model)
    for layer in layers(model):
        x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
        A, N, B = (f.detach().double() for f in layer.factors("default"))  # the plain formula cancels in float32
        A0, N0, B0 = (f.detach().double() for f in layer.start_factors("default"))
        delta = (2.0 * (B @ N @ A - B0 @ N0 @ A0 if "default" in layer.nlora_N0 else B @ N @ A)).float()
        assert torch.allclose(layer.get_delta_weight("default"), delta, atol=1e-3 * float(delta.abs().max()))
        change = layer(x) - layer.base_layer(x)
        assert torch.allclose(change, x @ delta.T, atol=1e-3 * float((x @ delta.T).abs().max()))
        one = layer.base_layer(x[0, 0]) + x[0, 0] @ delta.T  # a single vector
        assert torch.allclose(layer(x[0, 0]), one, atol=1e-3 * float(one.abs().max()))


def test_gradients_are_those_of_the_formula():
    """Compared with finite differences in float64, where a complete start is subtracted."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5), (3, 3), (4, 3)]
    now = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    start = tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    x = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    result = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)

    def update(x, *factors):
        return add_update(result, x, subtract_start(factors, start), 0.7)

    A, N, B = now
    A0, N0, B0 = start
    assert torch.allclose(update(x, *now), result + 0.7 * x @ (B @ N @ A - B0 @ N0 @ A0).T)
    assert torch.autograd.gradcheck(update, (x, *now))


@pytest.mark.parametrize("layers", [(), (3,)], ids=["one layer", "batched layers"])
@pytest.mark.parametrize("kept", ["", "N", "ANB", "AB"])
def test_the_pair_is_the_update_whatever_start_is_subtracted(kept, layers):
    """``kept``: the factors whose start is subtracted; a method of two factors (``AB``) has no N."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"A": (2, 5), "N": (2, 2), "B": (4, 2)}
    now, start = (
        {f: torch.randn(*layers, *shape, generator=generator, dtype=torch.float64) for f, shape in shapes.items()}
        for _ in range(2)
    )
    if kept == "AB":
        del now["N"]
    before = {f: start[f] if f in kept else now[f] for f in now}
    left, right = update_pair(
        (now["A"], now.get("N"), now["B"]), tuple(start[f] if f in kept else None for f in "ANB"), 0.7
    )

    def product(factors):
        return factors["B"] @ factors.get("N", torch.eye(2, dtype=torch.float64)) @ factors["A"]

    assert torch.allclose(left @ right, 0.7 * (product(now) - product(before) if kept else product(now)))
    assert right.shape == (*layers, 4 if "A" in kept else 2, 5)


def test_only_some_layers_and_modules():
    model = get_peft_model(base_model("llama"), nlora(4, target_modules=["q_proj", "up_proj"], layers_to_transform=[1]))
    names = [n for n, m in model.named_modules() if isinstance(m, NLoraLayer)]
    assert [n.split("layers.")[1] for n in names] == ["1.self_attn.q_proj", "1.mlp.up_proj"]
    model = get_peft_model(base_model("llama"), nlora(4, target_modules=r".*\.0\.mlp\.(up|down)_proj"))
    assert sum(isinstance(m, NLoraLayer) for m in model.modules()) == 2
    model = get_peft_model(base_model("llama"), nlora(4, exclude_modules=["down_proj"]))
    assert sum(isinstance(m, NLoraLayer) for m in model.modules()) == 12
    model = get_peft_model(base_model("llama"), nlora(4, target_modules=None))  # what PEFT's LoRA takes for a Llama
    assert {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, NLoraLayer)} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"r": 0}, "r=0"),
        ({"r": 2.5}, "r=2.5"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": "much"}, "dropout='much'"),
        ({"init": "zeros"}, "nothing can learn"),
        ({"init": "best"}, "init='best'"),
        ({"init_std": 0.0}, "init_std=0.0"),
        ({"start": "warm"}, "start='warm'"),
        ({"core": "inverse", "start": "nystrom"}, "core='inverse'"),
        ({"pivots": "best", "start": "nystrom"}, "pivots='best'"),
        ({"pivots": ([0], [1]), "start": "nystrom"}, "pivots="),
        ({"residual": True}, "residual=True"),
        ({"residual": True, "start": "svd"}, "residual=True"),
        ({"fold": True}, "fold=True"),
        ({"train": "A"}, "train='A'"),
        ({"train": "N"}, "never gets a gradient"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\]=0"),
        ({"alpha_pattern": {"q_proj": -2}}, r"alpha_pattern\['q_proj'\]=-2"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layers_pattern": "layers", "target_modules": ["q_proj"]}, "layers_pattern"),
        ({"bias": "all"}, "bias='all'"),
    ],
)
def test_a_bad_config_is_named(options, names):
    with pytest.raises(InputError, match=names):
        NLoraConfig(**options)


def test_the_saved_config_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        nlora(4, target_modules=["v_proj", "q_proj", "up_proj"]).save_pretrained(tmp_path / name)
    texts = [(tmp_path / name / "adapter_config.json").read_text() for name in ("a", "b")]
    assert texts[0] == texts[1]
    assert texts[0].index("q_proj") < texts[0].index("up_proj") < texts[0].index("v_proj")
    assert NLoraConfig.from_pretrained(tmp_path / "a").target_modules == {"v_proj", "q_proj", "up_proj"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", list(PRESETS))
def test_factors_are_float32_however_the_model_is_held(dtype, name, ids):
    torch.manual_seed(0)
    model = get_peft_model(base_model("llama", dtype), PRESETS[name](4))
    assert {p.dtype for n, p in model.named_parameters() if "nlora_" in n} == {torch.float32}
    rounded = get_peft_model(base_model("llama", dtype), PRESETS[name](4), autocast_adapter_dtype=False)
    assert {p.dtype for p in rounded.parameters()} == {dtype}
    assert torch.isfinite(logits(rounded, ids)).all()


def test_a_start_that_float16_cannot_hold_is_refused():
    """The pseudo-inverse of a tiny block is 1e6, which does not fit into float16."""
    model = base_model("llama", torch.float16)
    weight = model.model.layers[1].self_attn.q_proj.weight
    weight.data = torch.eye(32, dtype=torch.float16) * 1e-6
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj: the start does not fit into torch.float16"):
        get_peft_model(model, nlora(4), autocast_adapter_dtype=False)


def test_a_singular_block_warns_and_still_starts_exactly(ids):
    model = base_model("llama")
    model.model.layers[1].self_attn.q_proj.weight.data[:4, :4] = 1.0
    before = logits(model, ids)
    with pytest.warns(IllConditionedWarning):
        model = get_peft_model(model, nlora(4))
    assert torch.equal(logits(model, ids), before)


def test_under_bf16_autocast_the_two_products_are_not_rounded_before_they_are_subtracted(embedded):
    """After a few steps the embedded model is hardly further from float32 than its base model is."""
    from nlora_lab.models.loading import load_model

    torch.manual_seed(0)
    model = get_peft_model(load_model()[0], nlora(8)).eval()
    tokens = embedded[1](["Ana has 12 pears. She finds 5 more. Q: How many pears does Ana have? A: 12+5=17."])
    ids = torch.tensor(tokens["input_ids"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(logits(model, ids), logits(embedded[0], ids))  # step 0 is exact under autocast too
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    for _ in range(3):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def error(use):
        exact = logits(use, ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return float((logits(use, ids).float() - exact).norm() / exact.norm())

    assert error(model) < 3 * error(embedded[0]) < 0.03


def test_adapters_of_different_kinds_and_ranks_live_side_by_side(ids):
    model = adapted("llama", ("nlora", None))
    kinds = {"slora": slora(2), "int": inttune(6), "xs": lora_xs(3), "released": nlora_released(5)}
    for name, config in kinds.items():
        config.target_modules = {"q_proj", "down_proj"}
        model.add_adapter(name, config)
    base = base_logits("llama", ids)
    for name in ("default", *kinds):
        model.set_adapter(name)
        if name in ("default", "slora", "int"):
            assert torch.equal(logits(model, ids), base)
        move(model.get_submodule("base_model.model.model.layers.1"), seed=len(name))
        trained = {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad}
        assert trained == ({"nlora_N"} if name in ("int", "xs") else {"nlora_A", "nlora_N", "nlora_B"})
    for name in kinds:
        model.set_adapter(name)
        alone = logits(model, ids)
        model.base_model.set_adapter([name, "default"])  # both at once
        assert apart(logits(model, ids), alone) > 1e-3


@pytest.mark.parametrize("name", list(PRESETS))
def test_frozen_factors_stay_frozen_through_everything_that_thaws(name):
    model = get_peft_model(base_model("llama", torch.bfloat16), PRESETS[name](4))
    expected = {n for n, p in model.named_parameters() if p.requires_grad}
    assert expected

    def trained():
        return {n for n, p in model.named_parameters() if p.requires_grad}

    with model.disable_adapter():
        assert trained() == set()
    assert trained() == expected
    model.set_adapter("default")
    model.set_requires_grad("default", True)
    model.base_model._cast_adapter_dtype("default")
    model.enable_input_require_grads()
    model.train()
    assert trained() == expected


def test_a_first_step_with_dropout_is_unchanged_too(ids):
    """Both products get the same input after dropout, so they cancel in training mode as well."""
    model = get_peft_model(base_model("llama"), nlora(4, dropout=0.5)).train()
    assert torch.equal(logits(model, ids), logits(base_model("llama").train(), ids))
    move(model)
    assert not torch.equal(logits(model, ids), logits(model, ids))
    assert torch.equal(logits(model.eval(), ids), logits(model, ids))


def test_layers_it_cannot_sit_on_are_named():
    with pytest.raises(InputError, match=r"r=33 is above .*q_proj"):
        get_peft_model(base_model("llama"), nlora(33))
    with pytest.raises(InputError, match="embed_tokens is a Embedding"):
        get_peft_model(base_model("llama"), nlora(4, target_modules=["embed_tokens"]))
    convolution = nn.Sequential(nn.Conv1d(4, 4, 1))
    with pytest.raises(InputError, match="0 is a Conv1d"):
        get_peft_model(convolution, nlora(2, target_modules=["0"]))


def test_any_torch_module_will_do():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(5, 6)
    before = net(x)
    model = get_peft_model(net, nlora(2, target_modules=["0", "2"]))
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_has_the_rank_of_a_config_unless_told(preset):
    assert preset().r == NLoraConfig().r == 8


@pytest.mark.filterwarnings("ignore:Adapter cannot be set when the model is merged")  # it is unmerged afterwards
@pytest.mark.parametrize("alpha", [3, 12])
def test_an_adapter_added_beside_a_merged_one_starts_from_the_weight_before(alpha):
    model = get_peft_model(base_model("llama"), nlora(3, alpha))
    move(model)
    before = layers(model)[0].original_matrix().clone()
    model.merge_adapter()
    assert not torch.allclose(layers(model)[0].base_matrix(), before, atol=1e-3)
    assert torch.allclose(layers(model)[0].original_matrix(), before, atol=1e-5)
    model.add_adapter("second", nlora(3))
    alone = get_peft_model(base_model("llama"), nlora(3))
    for mine, other in zip(layers(model)[0].factors("second"), layers(alone)[0].factors("default"), strict=True):
        assert torch.allclose(mine, other, atol=1e-3)
