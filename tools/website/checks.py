"""Checks of the finished site: links, pictures, addresses, and public names. Each returns what is wrong, in lines."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"img": "src", "script": "src", "iframe": "src", "link": "href", "source": "src"}


class Page(HTMLParser):
    """What a page links to, loads and defines."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.silent: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element links to."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADS and values.get(LOADS[tag]) and values.get("rel") != "canonical":
            self.loads.append(values[LOADS[tag]])
        if tag == "img" and not values.get("alt", "").strip():
            self.silent.append(values.get("src", ""))
        if tag == "iframe" and not values.get("title", "").strip():
            self.silent.append(values.get("src", ""))


def read_site(site: Path) -> dict[Path, Page]:
    """Read every page of a site.

    Args:
        site: the folder.

    Returns:
        The pages by their paths.
    """
    return {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def broken_links(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Return the links and loaded files that are not on the site, and anchors that are not on their page.

    Args:
        site: the folder.
        pages: its pages.

    Returns:
        One line per broken link.
    """
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not goal.is_file():
                broken.append(f"{path.relative_to(site.resolve())}: {link} is not on the site")
            elif anchor and goal in pages and anchor not in pages[goal].anchors:
                broken.append(f"{path.relative_to(site.resolve())}: {link} has no such place on its page")
    return broken


def loads_from_elsewhere(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Return what a page would load from the network when somebody looks at it.

    Args:
        site: the folder.
        pages: its pages.

    Returns:
        One line per address.
    """
    outside = [
        f"{path.relative_to(site.resolve())}: loads {load}"
        for path, page in pages.items()
        for load in page.loads
        if urlsplit(load).netloc
    ]
    for style in sorted(site.rglob("*.css")):
        text = style.read_text(encoding="utf-8")
        if "url(http" in text or "url(//" in text or "@import url" in text:
            outside.append(f"{style.relative_to(site)}: loads from the network")
    return outside


def pictures_without_text(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Return the pictures without an alternative text.

    Args:
        site: the folder.
        pages: its pages.

    Returns:
        One line per picture.
    """
    return [
        f"{path.relative_to(site.resolve())}: {source[:80] or 'a picture'} has no alternative text"
        for path, page in pages.items()
        for source in page.silent
    ]


def missing_names(pages: dict[Path, Page], names: list[str]) -> list[str]:
    """Return the public names that have no entry in the reference.

    Args:
        pages: the pages of the site.
        names: full names, such as ``nlora_lab.lowrank.nystrom``.

    Returns:
        One line per name.
    """
    anchors = {anchor for page in pages.values() for anchor in page.anchors}
    return [f"{name} is not in the reference" for name in names if name not in anchors]
