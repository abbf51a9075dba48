"""Measure everything that a card must show, within ten minutes. Run it again to measure what is missing.

    python -m benchmarks.card --out FOLDER                      # on a card
    python -m benchmarks.card --out FOLDER --device cpu --tiny  # the same code on tiny sizes, without a card
    python -m benchmarks.card --report                          # write card.md from the records

It needs torch, transformers, peft and accelerate, and pandas for two parts and pytest for one. It needs no network.
Every part writes a JSON file into the folder. A part that fails writes its error, and the others are still measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

from . import parts, report
from .engine import Context, Part, run_parts
from .sizes import sizes_of

HERE = Path(__file__).parents[1]

PARTS = [
    Part("machine", "the card", parts.machine, 0),
    Part("tests", "(a) the tests marked gpu", parts.gpu_tests, 20),
    Part("race", "(b) a race of eight against eight runs", parts.race, 15),
    Part("steps", "(c) training steps of a Llama of 1B shapes", parts.steps, 15),
    Part("starts", "(d) initialisation on all layers of Llama-2-7B's shapes", parts.starts, 10),
    Part("repeats", "(f) repetition, and CPU against card", parts.repeats, 10),
    Part("estimates", "(g) estimates against measurements", parts.estimates, 3),
    Part("path", "(h) the way through notebook 08", parts.path, 15),
    Part("grid", "(i) the first runs of the recorded grid", parts.grid, 20),
    Part("scan", "(e) scan of a checkpoint of 7B shapes", parts.scan, 30),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "card", help="folder of the records")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that every part runs")
    parser.add_argument("--minutes", type=float, default=9.0, help="start no part after this time (default: 9)")
    parser.add_argument("--only", nargs="+", choices=[p.name for p in PARTS], metavar="PART", help="parts to measure")
    parser.add_argument("--report", action="store_true", help="write card.md from the records, measure nothing")
    options = parser.parse_args()
    if options.report:
        (HERE / "card.md").write_text(report.report(options.out, PARTS), encoding="utf-8")
        return
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.pop("NLORA_LAB_DEVICE", None)  # every part names its device
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chosen = [part for part in PARTS if options.only is None or part.name in options.only]
    context = Context(options.device, sizes_of(options.tiny), options.out)
    run_parts(chosen, context, options.minutes, lambda line: print(line, file=sys.stderr, flush=True))
    print(report.report(options.out, PARTS))


if __name__ == "__main__":  # a spawned process imports this module too
    main()
