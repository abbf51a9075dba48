"""The commands before a run: ``recipes`` shows named settings, ``estimate`` the memory and time that a run needs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from nlora_lab.cli.parsers import add_command
from nlora_lab.cli.settings import add_settings, configs_of


def add_recipes(commands: Any) -> argparse.ArgumentParser:
    """Add ``recipes`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "recipes", "show named settings for complete runs, with their sources",
        "nlora-lab recipes colab-gsm8k", _recipes,
    )  # fmt: skip
    parser.add_argument("name", nargs="?", help="show all settings of this recipe (default: list the recipes)")
    parser.add_argument("--json", action="store_true", help="print the settings as JSON")
    return parser


def add_estimate(commands: Any) -> argparse.ArgumentParser:
    """Add ``estimate`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "estimate", "estimate memory and time of a run before anything is downloaded",
        "nlora-lab estimate --recipe colab-gsm8k --method nlora --device T4", _estimate,
    )  # fmt: skip
    add = parser.add_argument
    add("--method", dest="methods", default="lora", metavar="METHOD", help="a method, or several separated by commas")
    add_settings(parser, device="cuda, mps, cpu, or a card of another machine: T4, L4, A100, H100")
    add("--json", action="store_true", help="print the numbers as JSON")
    return parser


def _recipes(options: argparse.Namespace) -> int:
    from nlora_lab.estimates.recipes import RECIPES

    recipes = list(RECIPES.values()) if options.name is None else [RECIPES[options.name]]
    if options.json:
        plain, mappings = ("name", "title", "source", "note", "rate"), ("base", "rates", "evaluation")
        rows = [{**{k: getattr(r, k) for k in plain}, **{k: dict(getattr(r, k)) for k in mappings}} for r in recipes]
        print(json.dumps({"recipes": rows}, indent=2, ensure_ascii=False))
    else:
        print(RECIPES if options.name is None else recipes[0])
    return 0


def _estimate(options: argparse.Namespace) -> int:
    from nlora_lab.core.devices import DEVICES
    from nlora_lab.estimates.recipes import RECIPES
    from nlora_lab.estimates.requirements import estimate

    device = getattr(options, "device", None)
    if device is not None and device not in DEVICES:
        del options.device  # a card such as a T4: RunConfig does not accept it
    configs = configs_of(options)
    recipe = None if options.recipe is None else RECIPES[options.recipe]
    estimates = [estimate(c, device, config=None if recipe is None else recipe.model_config(c)) for c in configs]
    if options.json:
        rows = [{"method": e.cfg.method, "command": e.cfg.command, **e.to_dict()} for e in estimates]
        print(json.dumps({"estimates": rows}, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(map(str, estimates)))
    return 0
