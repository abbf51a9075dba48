"""A renderer of formulas for Sphinx: LaTeX becomes MathML when the site is built, by docutils' own converter."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def to_mathml(formula: str, *, block: bool) -> str:
    """Convert a formula.

    Args:
        formula: LaTeX.
        block: a formula on its own line, and not one in the text.

    Returns:
        A ``math`` element. The LaTeX is in its attribute ``alttext``.

    Raises:
        docutils.utils.math.MathError: the formula cannot be converted.
    """
    # docutils has no \dots
    element = str(tex2mathml(formula.replace(r"\dots", r"\ldots"), as_block=block))
    return element.replace("<math", f'<math alttext="{escape(" ".join(formula.split()))}"', 1)


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(to_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math-block">{to_mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer as "mathml"."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
