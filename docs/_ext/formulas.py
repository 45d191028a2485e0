"""Docstrings as they are written: formulas keep their lines, and ``|x|`` is an absolute value.

Modules begin with their idea and its formula, set off by indentation alone. reStructuredText would flow such lines as a
quotation, and take bars for references; both are marked before it reads them.
"""

from __future__ import annotations

import re
from typing import Any

_LITERAL = re.compile(r"(``.+?``)")


def literal_blocks(lines: list[str]) -> list[str]:
    """Return the lines with ``::`` before every indented block that follows a paragraph."""
    out: list[str] = []
    paragraph = ""  # the last line that was not indented
    for i, line in enumerate(lines):
        begins = line.startswith("    ") and i > 0 and not lines[i - 1].strip()
        if begins and not paragraph.endswith("::") and not paragraph.startswith(("- ", "..")):
            out += ["::", ""]
            paragraph = "::"
        if line.strip() and not line.startswith(" "):
            paragraph = line.rstrip()
        out.append(line)
    return out


def plain_bars(lines: list[str]) -> list[str]:
    """Return the lines with a backslash before every bar that is not in a literal."""
    out: list[str] = []
    within: int | None = None  # indentation of the line with the :: that a literal block belongs to
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if within is not None and line.strip() and indent <= within:
            within = None
        if within is None:
            pieces = _LITERAL.split(line)
            pieces[::2] = [piece.replace("|", r"\|") for piece in pieces[::2]]
            if line.rstrip().endswith("::"):
                within = indent
            line = "".join(pieces)
        out.append(line)
    return out


def mark(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place."""
    lines[:] = plain_bars(literal_blocks(lines) if what == "module" else lines)


def setup(app: Any) -> dict[str, bool]:
    """Ask to see docstrings before they are read."""
    app.connect("autodoc-process-docstring", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
