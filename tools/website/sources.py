"""Assembles the sources of the site: the documents and notebooks of the repository, in the same folders."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = (
    "README.md", "CHANGELOG.md", "docs/*.md", "notebooks/*.ipynb", "data/*/README.md", "benchmarks/README.md",
)  # fmt: skip
BLOB = "https://github.com/nlora-lab/nlora-lab/blob/main/"
LINK = re.compile(r"(!?\[[^\]\n]*\]\()([^)\s]+)(\))")
BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\(")
TOCTREE = """
```{{toctree}}
:caption: {caption}
:hidden:

{entries}
```
"""


def assemble(target: Path) -> None:
    """Copy the pages of the site into a folder, with links that hold there.

    Links to files of the repository that are not pages lead to the repository. Badges, which are pictures from the
    network, become text. Pictures of notebooks get their line of text as the alternative.

    Args:
        target: the folder. It is emptied first.

    Raises:
        FileNotFoundError: a link leads to nothing in the repository.
    """
    shutil.rmtree(target, ignore_errors=True)
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern)) if _is_committed(path)]
    inside = {path.resolve() for path in pages} | {p.resolve() for p in (ROOT / "docs").glob("*.*")}
    for path in pages:
        place = target / ("index.md" if path == README else path.relative_to(ROOT))
        place.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            notebook = prepare_notebook(json.loads(text), path, inside)
            place.write_text(json.dumps(notebook), encoding="utf-8")
        else:
            place.write_text(mend_links(text, path, inside), encoding="utf-8")
    for picture in [*(ROOT / "docs").glob("*.png"), *(ROOT / "docs").glob("*.svg")]:
        shutil.copy(picture, target / "docs" / picture.name)
    shutil.copy(ROOT / "docs" / "site" / "labs.md", target / "labs.md")
    with (target / "index.md").open("a", encoding="utf-8") as readme:
        readme.write(_contents(pages))


def mend_links(text: str, path: Path, inside: set[Path]) -> str:
    """Return Markdown whose links hold on the site.

    Args:
        text: the Markdown.
        path: the file that it is from.
        inside: the files that are on the site.

    Returns:
        The Markdown with badges as text, and with links to other files of the repository as addresses.

    Raises:
        FileNotFoundError: a link leads to nothing in the repository.
    """

    def mend(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        place, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link) or not place:
            return match.group(0)
        goal = (path.parent / place).resolve()
        if not goal.exists():
            raise FileNotFoundError(f"{path.relative_to(ROOT)}: the link {link} leads to nothing")
        if goal == README:
            return f"{before}{place.removesuffix('README.md')}index.md{after}"
        if goal.is_dir() and goal / "README.md" in inside:
            return f"{before}{place.rstrip('/')}/README.md{after}"
        if goal in inside:
            return match.group(0)
        return f"{before}{BLOB}{goal.relative_to(ROOT).as_posix()}{'#' + anchor if anchor else ''}{after}"

    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", BADGE.sub("[Open in Colab](", text), flags=re.M | re.S)
    return "".join(part if part.startswith("`") else LINK.sub(mend, part) for part in parts)


def prepare_notebook(notebook: dict[str, Any], path: Path, inside: set[Path]) -> dict[str, Any]:
    """Return a notebook for the site: links that hold, and a text for every picture.

    Args:
        notebook: the notebook, as JSON. It is changed.
        path: its file.
        inside: the files that are on the site.

    Returns:
        The notebook.

    Raises:
        ValueError: a cell shows an error, or a picture has no line of text.
        FileNotFoundError: a link leads to nothing in the repository.
    """
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = mend_links("".join(cell["source"]), path, inside)
            continue
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                raise ValueError(f"{path.name}: a cell ends in {output['ename']}")
            data = output.get("data", {})
            if any(kind.startswith("image/") for kind in data):
                text = " ".join("".join(data.get("text/plain", "")).split())
                if not text:
                    raise ValueError(f"{path.name}: a picture has no line of text beside it")
                options = cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})
                options["alt"] = text.replace("|", "")
    return notebook


def _contents(pages: list[Path]) -> str:
    """The side bar."""
    names = [path.relative_to(ROOT).with_suffix("").as_posix() for path in pages if path != README]
    docs = [n for n in names if n.startswith("docs/")]
    course = ["docs/teaching", *(f"docs/{n}" for n in ("notation", "glossary", "bibliography"))]
    groups = {
        "The course": [*(n for n in names if n.startswith("notebooks/")), *(n for n in course if n in docs)],
        "Play": ["labs"],
        "Guides": [n for n in docs if n not in course],
        "Reference": ["api/index"],
        "Data": [n for n in names if n.startswith(("data/", "benchmarks/")) or n == "CHANGELOG"],
    }
    return "".join(TOCTREE.format(caption=c, entries="\n".join(entries)) for c, entries in groups.items())


def _is_committed(path: Path) -> bool:
    """Whether git knows the file, so that nobody's notes are published. Outside a clone every file counts."""
    if not (ROOT / ".git").exists():
        return True
    done = subprocess.run(["git", "ls-files", "--error-unmatch", str(path)], cwd=ROOT, capture_output=True, check=False)
    return done.returncode == 0
