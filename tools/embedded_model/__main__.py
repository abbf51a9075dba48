"""Pretrain the embedded model again: ``python -m tools.embedded_model``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.embedded_model.train import PretrainingConfig, pretrain


def main() -> None:
    """Pretrain the model and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m tools.embedded_model", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/embedded"), help="folder of the model and tokenizer")
    parser.add_argument("--steps", type=int, default=PretrainingConfig.steps, help="number of optimiser steps")
    parser.add_argument("--seed", type=int, default=PretrainingConfig.seed, help="seed of the text and the weights")
    options = parser.parse_args()
    config = PretrainingConfig(steps=options.steps, seed=options.seed)
    print(pretrain(options.out, config, log=lambda line: print(line, file=sys.stderr, flush=True)))


if __name__ == "__main__":
    main()
