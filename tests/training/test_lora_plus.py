"""LoRA+: the factors B learn at a rate of their own."""

import math

import pytest
import torch

import nlora_lab as nl
from nlora_lab.methods.table import METHODS
from nlora_lab.training import setup
from nlora_lab.training.races import race

SHORT = {"steps": 6, "lr": 5e-3, "device": "cpu"}


def built(cfg):
    torch.manual_seed(0)
    return setup.build(cfg)[0]


def optimizer_of(model, cfg):
    trained = [(setup._is_factor_b(name), p) for name, p in model.named_parameters() if p.requires_grad]
    return setup.make_optimizer(trained, cfg, fused=False)


@pytest.mark.parametrize("method", ["lora", "pissa", "dora", "slora", "nlora"])
def test_the_factors_b_and_nothing_else_get_the_larger_rate(method):
    cfg = nl.RunConfig(method=method, lr_ratio=16, **SHORT)
    model = built(cfg)
    names = {id(p): name for name, p in model.named_parameters()}
    others, of_b = optimizer_of(model, cfg).param_groups
    assert (others["lr"], of_b["lr"]) == (cfg.lr, 16 * cfg.lr)
    assert {names[id(p)].split(".")[-3].rpartition("_")[2] for p in of_b["params"]} == {"B"}
    assert len(of_b["params"]) == 28
    assert not any("B" in names[id(p)].split(".")[-3].split("_") for p in others["params"])


def test_the_groups_are_those_of_peft_for_lora():
    from peft.optimizers import create_loraplus_optimizer

    cfg = nl.RunConfig(lr_ratio=16, **SHORT)
    model = built(cfg)
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=cfg.lr, loraplus_lr_ratio=16.0)
    rates = {id(p): group["lr"] for group in theirs.param_groups for p in group["params"]}
    ours = {id(p): group["lr"] for group in optimizer_of(model, cfg).param_groups for p in group["params"]}
    assert ours == rates


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.q_proj.lora_B.default.weight", True),
        ("model.layers.0.q_proj.nlora_B.default.weight", True),
        ("model.embed_tokens.lora_embedding_B.default", True),
        ("model.lora_B.default.q_proj.lora_A.default.weight", False),
        ("score_B.modules_to_save.default.weight", False),
        ("model.layers.0.q_proj.lora_magnitude_vector.default.weight", False),
    ],
)
def test_a_factor_b_is_known_by_its_own_name(name, expected):
    assert setup._is_factor_b(name) is expected


def test_rank_stabilised_lora_is_lora_plus_with_the_root_of_the_rank():
    """Under Adam the size of a gradient does not matter: s·B learns at s·η, and with B = 0 that is all that s does."""
    rank = 4
    scaled = nl.fine_tune(nl.RunConfig(method="rslora", rank=rank, **SHORT))
    two_rates = nl.fine_tune(nl.RunConfig(method="lora", rank=rank, lr_ratio=math.sqrt(rank), **SHORT))
    one_rate = nl.fine_tune(nl.RunConfig(method="lora", rank=rank, **SHORT))
    losses = [torch.tensor([step.loss for step in run.steps]) for run in (scaled, two_rates, one_rate)]
    assert torch.allclose(losses[0], losses[1], rtol=2e-4)
    assert not torch.allclose(losses[0], losses[2], rtol=2e-2)


def test_a_race_and_a_resumed_run_use_both_rates(tmp_path):
    configs = [nl.RunConfig(lr_ratio=ratio, **SHORT) for ratio in (1, 4, 16)]
    alone = [nl.fine_tune(cfg) for cfg in configs]
    for one, together in zip(alone, race(configs), strict=True):
        assert [s.loss for s in together.steps] == pytest.approx([s.loss for s in one.steps], rel=1e-3)
    nl.fine_tune(configs[2], on_step=lambda step: step.step == 4, checkpoints=tmp_path, every=2)
    resumed = nl.fine_tune(configs[2], checkpoints=tmp_path, every=2)
    assert [s.loss for s in resumed.steps] == [s.loss for s in alone[2].steps]


def test_a_method_without_b_refuses_the_ratio():
    for method in METHODS.values():
        if "B" in method.trains.split(", "):
            nl.RunConfig(method=method.name, lr_ratio=2)
        else:
            with pytest.raises(nl.InputError, match=r"lr_ratio=2 is for factors B, which"):
                nl.RunConfig(method=method.name, lr_ratio=2)
    with pytest.raises(nl.InputError, match=r"lr_ratio=2 is for the factors B, and lora trains none"):
        setup.make_optimizer([(False, torch.zeros(1))], nl.RunConfig(lr_ratio=2), fused=False)


@pytest.mark.parametrize("ratio", [0, -1, math.nan, math.inf, "16", None])
def test_a_ratio_that_is_no_positive_number_is_refused(ratio):
    with pytest.raises(nl.InputError, match="lr_ratio"):
        nl.RunConfig(lr_ratio=ratio)


def test_records_without_the_ratio_stay_what_they_were():
    assert "lr_ratio" not in nl.RunConfig().to_dict()
    assert nl.RunConfig(lr_ratio=1).identity() == nl.RunConfig().identity()
    assert nl.RunConfig(lr_ratio=4).identity() != nl.RunConfig().identity()
