"""The named recipes, and the commands that show and estimate them."""

from __future__ import annotations

import json
import math

import pytest

from nlora_lab.analysis.selection import best_rates
from nlora_lab.cli.main import main
from nlora_lab.core.errors import InputError
from nlora_lab.estimates.recipes import RECIPES
from nlora_lab.runs.config import RunConfig


def command_output(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_makes_runs_and_names_its_source(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    runs = recipe.configs(["lora", "slora", "nlora", "inttune"])
    assert [run.method for run in runs] == ["lora", "slora", "nlora", "inttune"]
    assert all(isinstance(run, RunConfig) and run.steps == recipe.base["steps"] for run in runs)
    for word in (recipe.title, recipe.source, recipe.note, "rank"):
        assert word in str(recipe)


def test_an_unknown_name_lists_the_known_ones():
    for name in ("paper", 3, None):
        with pytest.raises(InputError, match=r"paper-gsm8k, .*laptop"):
            RECIPES[name]
    assert "paper" not in RECIPES
    assert RECIPES.get("paper") is None


def test_recipes_are_read_only():
    with pytest.raises(TypeError):
        RECIPES["mine"] = RECIPES["laptop"]
    with pytest.raises(TypeError):
        RECIPES["laptop"].base["rank"] = 4


@pytest.mark.parametrize(("name", "batch"), [("paper-gsm8k", 128), ("paper-gsm8k-small-batch", 16)])
def test_both_readings_of_the_papers_batch_see_every_row_once(name, batch):
    run = RECIPES[name].config()
    assert (run.batch_size, run.steps, run.train_rows) == (batch, math.ceil(100_000 / batch), 100_000)
    assert (run.rank, run.alpha, run.lr, run.warmup, run.max_length) == (128, 128, 2e-4, 0.03, 512)
    assert RECIPES[name].config("pissa").lr == 2e-5
    assert "128" in RECIPES[name].note
    assert "16" in RECIPES[name].note


def test_the_laptop_recipe_has_the_best_recorded_rates():
    assert dict(RECIPES["laptop"].rates) == best_rates()["rate"].to_dict()


def test_a_method_takes_its_own_rate_unless_another_is_named():
    colab = RECIPES["colab-gsm8k"]
    assert [run.lr for run in colab.configs()] == [1e-3, 5e-4, 2e-4]
    assert colab.config("dora").lr == 2e-4
    assert RECIPES["laptop"].config("lora", lr=1e-3, steps=7) == RunConfig(lr=1e-3, steps=7)
    with pytest.raises(InputError, match="field='learning_rate' is not known"):
        colab.config("lora", learning_rate=1e-3)


@pytest.mark.parametrize("name", ["colab-gsm8k", "colab-sst2"])
@pytest.mark.parametrize("method", ["lora", "nlora"])
def test_the_colab_recipes_fit_a_t4_within_a_quarter_of_an_hour(name, method):
    estimate = RECIPES[name].estimate(method, "T4")
    assert estimate.fits
    assert estimate.seconds + estimate.evaluation_seconds < 15 * 60


def test_the_paper_does_not_fit_a_t4_and_the_laptop_is_measured_here():
    assert not RECIPES["paper-gsm8k"].estimate("nlora", "T4").fits
    assert RECIPES["laptop"].estimate().device.startswith("CPU")


def test_another_model_is_not_estimated_by_the_recipes_architecture():
    small = RECIPES["colab-gsm8k"].estimate("lora", "T4", model="embedded")
    assert small.weights < 4 * 2**20


def test_the_commands_list_show_and_estimate(capsys):
    listing = command_output(capsys, "recipes")
    assert all(name in listing for name in RECIPES)
    assert RECIPES["laptop"].note in command_output(capsys, "recipes", "laptop")
    assert len(json.loads(command_output(capsys, "recipes", "--json"))["recipes"]) == len(RECIPES)

    text = command_output(capsys, "estimate", "--recipe", "paper-gsm8k", "--method", "nlora", "--device", "T4")
    assert "323,485,696 trainable parameters" in text
    assert "It will not fit" in text
    output = command_output(capsys, "estimate", "--method", "lora,nlora", "--rank", "4", "--json")
    rows = json.loads(output)["estimates"]
    assert [row["method"] for row in rows] == ["lora", "nlora"]
    assert rows[0]["trained"] == RECIPES["laptop"].estimate("lora", rank=4).trained
    assert rows[0]["fits"] is True
