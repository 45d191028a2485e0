"""Formulas as MathML, made while the site is built: browsers draw it without JavaScript and without a network.

docutils has the converter from LaTeX; Sphinx only has to be told of it.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)


def converted(node: nodes.Element, *, as_block: bool) -> str:
    """Return a formula as MathML; one that cannot be read as it is, with a warning."""
    code = node.astext()
    try:
        return tex2mathml(code, as_block=as_block)
    except MathError as error:
        logger.warning("cannot read the formula %s: %s", code, error, location=node)
        return f"<code>{code}</code>"


def inline(translator: Any, node: nodes.math) -> None:
    """Write a formula in a line of text."""
    translator.body.append(converted(node, as_block=False))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    translator.body.append(f'<div class="math">{converted(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer as ``html_math_renderer = "mathml"``."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
