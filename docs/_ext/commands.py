"""The directive ``commands``: every verb of the command line with its options, read from the program itself."""

from __future__ import annotations

from typing import Any

import typer
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from scidiff.cli import app as program


class Commands(SphinxDirective):
    """One section per verb: what it does, how it is called, and what its arguments and options are."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        verbs = typer.main.get_command(program).commands
        return [self._section(name, command) for name, command in verbs.items()]

    def _section(self, name: str, command: Any) -> nodes.section:
        section = nodes.section(ids=[f"scidiff-{name}"], names=[f"scidiff {name}"])
        section += nodes.title("", "", nodes.literal("", f"scidiff {name}"))
        section += [nodes.paragraph("", " ".join(text.split())) for text in (command.help or "").split("\n\n")]
        context = command.make_context(f"scidiff {name}", [], resilient_parsing=True)
        usage = " ".join([f"scidiff {name}", *command.collect_usage_pieces(context)])
        section += nodes.literal_block(usage, usage, language="text")
        section += definitions([record for p in command.params if (record := p.get_help_record(context))])
        return section


def definitions(records: list[tuple[str, str]]) -> nodes.definition_list:
    """Return a list of terms and what the program's help says of them."""
    out = nodes.definition_list(classes=["options"])
    for term, said in records:
        name = nodes.term("", "", nodes.literal("", term))
        out += nodes.definition_list_item("", name, nodes.definition("", nodes.paragraph("", " ".join(said.split()))))
    return out


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
