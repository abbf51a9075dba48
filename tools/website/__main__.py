"""``python -m tools.website``: build the site, and fail if anything in it is broken."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from nlora_lab.core.formatting import format_bytes
from nlora_lab.pages.sections import write_labs
from tools.browser import why_no_browser
from tools.website.checks import broken_links, loads_from_elsewhere, missing_names, pictures_without_text, read_site
from tools.website.reference import entries, undocumented, write_reference
from tools.website.sources import ROOT, assemble
from tools.website.width import wider_than_a_phone


def main() -> int:
    """Build the site. Return 1 if something is wrong with it."""
    parser = argparse.ArgumentParser(description="Build the site, and check it.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="the folder of the site")
    out: Path = parser.parse_args().out
    source = out.parent / f"{out.name}-sources"
    if missing := undocumented():
        print("without a docstring:", ", ".join(missing))
        return 1
    assemble(source)
    write_reference(source / "api")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-c", str(ROOT / "docs" / "site")]
    if code := subprocess.run([*command, "-b", "html", str(source), str(out)], check=False).returncode:
        return code
    write_labs(out / "labs-alone.html")  # docs/site/labs.md shows it
    return report(out)


def report(site: Path) -> int:
    """Print what is wrong with a site, and return the exit code."""
    pages = read_site(site)
    names = sorted(set(entries().values()))
    problems = [
        *broken_links(site, pages),
        *loads_from_elsewhere(site, pages),
        *pictures_without_text(site, pages),
        *missing_names(pages, names),
    ]
    if missing := why_no_browser():
        print(f"the pages were not opened at the width of a phone: {missing}")
    else:
        problems += wider_than_a_phone(site, pages)
    print("\n".join(problems))
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    print(f"{len(pages)} pages, {len(names)} public names, {format_bytes(size)}: {site / 'index.html'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
