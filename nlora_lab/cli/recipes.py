"""The commands that tell before a run: the named recipes, and what a run will take in memory and time."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_recipes(commands: Any) -> None:
    """Enter ``recipes`` and ``estimate`` among the subparsers ``commands``."""
    from nlora_lab.cli.run import run_options

    shown = commands.add_parser("recipes", help="named settings of whole runs, and what each is")
    shown.add_argument("name", nargs="?", help="show this one in full")
    shown.add_argument("--json", action="store_true", help="the settings as JSON on stdout")
    shown.set_defaults(command=_recipes)

    words = "what a run will take in memory and time, before anything is loaded"
    asked = commands.add_parser(
        "estimate", help=words, description=f"{words}; --device may name a card that is not here: T4, L4, A100, H100"
    )
    asked.add_argument("--method", dest="methods", default="lora", help="its name, or several with commas")
    run_options(asked)
    asked.add_argument("--json", action="store_true", help="the numbers as JSON on stdout")
    asked.set_defaults(command=_estimate)


def _recipes(options: argparse.Namespace) -> int:
    from nlora_lab.estimates.recipes import RECIPES

    chosen = list(RECIPES.values()) if options.name is None else [RECIPES[options.name]]
    if options.json:
        told = ("name", "title", "source", "note", "rate")
        rows = [
            {**{k: getattr(r, k) for k in told}, **{k: dict(getattr(r, k)) for k in ("base", "rates", "evaluation")}}
            for r in chosen
        ]
        print(json.dumps({"recipes": rows}, indent=2, ensure_ascii=False))
    else:
        print(RECIPES if options.name is None else chosen[0])
    return 0


def _estimate(options: argparse.Namespace) -> int:
    from nlora_lab.cli.run import configs_of
    from nlora_lab.core.devices import DEVICES
    from nlora_lab.estimates.recipes import RECIPES
    from nlora_lab.estimates.requirements import estimate

    device = getattr(options, "device", None)
    if device is not None and device not in DEVICES:
        del options.device  # a card that is not here: no run can have it
    configs = configs_of(options)
    recipe = None if options.recipe is None else RECIPES[options.recipe]
    found = [estimate(c, device, config=None if recipe is None else recipe.own_architecture(c)) for c in configs]
    if options.json:
        rows = [{"method": e.cfg.method, "command": e.cfg.command, **e.to_dict()} for e in found]
        print(json.dumps({"estimates": rows}, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(map(str, found)))
    return 0
