"""A check of the finished site in a browser: no page is wider than a phone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tools.browser import open_browser

WIDTH, HEIGHT = 390, 844  # pixels
OVER = """() => {
  const edge = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= edge + 1) return null;
  // what can be scrolled inside its own box does not widen the page
  const scrolls = e => getComputedStyle(e).overflowX !== 'visible';
  const inside = e => e && e !== document.body && (scrolls(e) || inside(e.parentElement));
  const wide = [...document.body.querySelectorAll('*')]
    .filter(e => e.getBoundingClientRect().right > edge + 1 && !inside(e.parentElement)).pop();
  const name = wide ? wide.tagName.toLowerCase() + (wide.className ? '.' + wide.className : '') : 'the page';
  return [document.documentElement.scrollWidth, name];
}"""


def wider_than_a_phone(site: Path, pages: Iterable[Path]) -> list[str]:
    """Open pages at the width of a phone, and return those that scroll sideways.

    Args:
        site: the folder of the site.
        pages: its pages.

    Returns:
        One line per page, with the innermost element that is too wide.
    """
    wide = []
    with open_browser() as browser:
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        for path in pages:
            tab.goto(path.resolve().as_uri())
            if over := tab.evaluate(OVER):
                width, element = over
                name = path.resolve().relative_to(site.resolve())
                wide.append(f"{name}: {width} pixels wide on a phone of {WIDTH}, because of {element}")
    return wide
