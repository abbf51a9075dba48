"""Pretrain one of the models that ship again: ``python -m tools.embedded_model [larger]``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tools.embedded_model.train import RECIPES, pretrain


def main() -> None:
    """Pretrain the model and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m tools.embedded_model", description=__doc__)
    parser.add_argument("model", choices=RECIPES, nargs="?", default="embedded", help="which model to make")
    parser.add_argument("--out", type=Path, help="folder of the model and tokenizer (default: data/MODEL)")
    parser.add_argument("--steps", type=int, help="number of optimiser steps (default: that of the recipe)")
    parser.add_argument("--seed", type=int, help="seed of the text and the weights (default: that of the recipe)")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("steps", "seed") if getattr(options, name) is not None}
    config = replace(RECIPES[options.model], **given)
    out = options.out or Path("data", options.model)
    print(pretrain(out, config, log=lambda line: print(line, file=sys.stderr, flush=True)))


if __name__ == "__main__":
    main()
