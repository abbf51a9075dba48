"""cli.scan."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import check_writable

if TYPE_CHECKING:
    pass


def _scan(options: argparse.Namespace) -> int:
    from nlora_lab.spectra.scanning import scan

    try:
        ranks = [int(word) for word in options.ranks.split(",")]
    except ValueError:
        raise InputError(f"--ranks {options.ranks}: write whole numbers with commas, for example 4,8,16") from None
    if options.csv is not None:  # before the scan, not after it
        if options.csv == Path() or options.csv.is_dir():
            raise InputError(f"--csv {str(options.csv)!r} is no file; for example: --csv scan.csv")
        check_writable(options.csv.parent, f"--csv {options.csv}")
    table = scan(
        options.source, ranks, device=options.device, cache=not options.no_cache, progress=True,
        revision=options.revision, keep=options.keep,
    )  # fmt: skip
    if options.csv is not None:
        table.to_csv(options.csv, index=False)
    if options.json:
        print(table.to_json(orient="records"))
    else:
        r = min(ranks, key=lambda rank: abs(rank - 8))
        shown = [f"{kind}_r{r}" for kind in ("nystrom", "optimal", "cross", "svd", "cond")]
        columns = ["layer", "module", "out", "in", "stable_rank", *shown]
        print(table[columns].to_string(index=False, float_format=lambda v: f"{v:.3g}"))
        print("Relative Frobenius errors; 1 is as bad as zero. nystrom: leading block, as NLoRA starts; svd: the best.")
    return 0
