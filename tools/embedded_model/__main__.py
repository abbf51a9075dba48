"""``python -m tools.embedded_model``: rebuild the embedded model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.embedded_model.train import Recipe, pretrain


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.embedded_model", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/embedded"))
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args()
    recipe = Recipe(steps=options.steps, seed=options.seed)
    print(pretrain(options.out, recipe, say=lambda line: print(line, file=sys.stderr, flush=True)))


if __name__ == "__main__":
    main()
