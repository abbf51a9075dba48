"""Labs as HTML files that need nothing: no kernel, no network, no other file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import expand_path, write_atomically
from nlora_lab.pages.scripts import module, style

PAGE_STYLE = """
:root { color-scheme: light dark; }
body { background: Canvas; color: CanvasText; font: 14px/1.45 system-ui, "DejaVu Sans", Helvetica, Arial, sans-serif;
  margin: 0 auto; max-width: 1240px; padding: 6px 14px; }
h1 { font-size: 17px; margin: 4px 0 2px; }
h2 { font-size: 15px; margin: 18px 0 4px; }
p { margin: 0 0 8px; max-width: 75em; }
"""
ONLY_THIS_FILE = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""The content security policy: the browser itself refuses every request."""


@dataclass(frozen=True)
class Lab:
    """A lab in a page.

    Attributes:
        heading: the heading above it.
        text: a paragraph below the heading.
        scripts: the files of its module, in their order.
        state: the values of its model. Bytes are allowed anywhere in it.
    """

    heading: str
    text: str
    scripts: tuple[str, ...]
    state: Mapping[str, Any]


def write_page(path: str | Path, title: str, labs: Sequence[Lab]) -> Path:
    """Write labs into one HTML file.

    Args:
        path: the file. Missing folders are made.
        title: the title of the page.
        labs: the labs, from top to bottom.

    Returns:
        The file.

    Raises:
        InputError: the file cannot be written.
    """
    target = expand_path(path)
    if target.is_dir():
        raise InputError(f"path={str(path)!r} is a folder; name a file in it, such as {str(target / 'lab.html')!r}")
    return write_atomically(target, page_html(title, labs))


def page_html(title: str, labs: Sequence[Lab]) -> str:
    """Return labs as one HTML document.

    Args:
        title: the title of the page.
        labs: the labs, from top to bottom.

    Returns:
        The document. It names no other address.
    """
    parts = [_section(f"lab{i}", lab) for i, lab in enumerate(labs, start=1)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{ONLY_THIS_FILE}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{PAGE_STYLE}{style()}</style>\n</head>\n"
        f"<body>\n<h1>{html.escape(title)}</h1>\n{''.join(parts)}</body>\n</html>\n"
    )


def _section(name: str, lab: Lab) -> str:
    state = json.dumps(lab.state, default=_base64, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    heading = f"<h2>{html.escape(lab.heading)}</h2>\n" if lab.heading else ""
    return (
        f'<section>\n{heading}<p>{html.escape(lab.text)}</p>\n<div id="{name}"></div>\n'
        f'<script type="application/json" id="{name}-state">{_in_script(state)}</script>\n'
        f'<script type="module">\n{_in_script(module((*lab.scripts, "page.js")))}\nopenLab("{name}");\n</script>\n'
        "</section>\n"
    )


def _in_script(text: str) -> str:
    """A text that ends no script element and opens no comment, whatever is in it."""
    return text.replace("</", "<\\/").replace("<!--", "<\\u0021--")


def _base64(value: object) -> dict[str, str]:
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} cannot be written into a page")
    return {"base64": base64.b64encode(value).decode()}
