"""The grammar of conditions on the command line: ``cell_type="CD4 T",perturbation=IFN-beta``.

A condition is a comma-separated list of ``name=value``; a value with ``,`` ``=`` or ``"`` inside is quoted as in CSV
(``"a ""quoted"" word"``). Names are roles or obs columns, and a role name wins. Where a *different* obs column has the
name of a role, nobody can tell from a string which one was meant, so that is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from scidiff.data.schema import ROLES, Schema
from scidiff.errors import InputError

_PAIR = re.compile(r'\s*(?P<name>[^=,"]+?)\s*=\s*(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>[^,"=]*))\s*(?:,|$)')


def parse_condition(
    text: str | Iterable[str] | None, *, schema: Schema | None = None, columns: Iterable[str] = ()
) -> dict[str, str]:
    """Return the names and values of a condition, all as text: the :class:`~scidiff.data.schema.Schema` types them.

    Parameters
    ----------
    text
        One string, or several from a repeated flag, which add up. None and empty strings name nothing.
    schema, columns
        Where known, the schema and the obs columns of the data; names that could mean two things are refused then.

    Raises
    ------
    InputError
        The text does not follow the grammar, gives two values to one name, or a name means two columns.
    """
    texts = [text] if isinstance(text, str) else list(text or ())
    condition: dict[str, str] = {}
    for one in texts:
        for name, value in _pairs(one):
            if condition.setdefault(name, value) != value:
                raise InputError(f"condition gives {name!r} two values, {condition[name]!r} and {value!r}; give one")
    if schema is not None:
        for name in condition:
            column = schema.columns.get(name)
            if name in ROLES and column not in (None, name) and name in set(columns):
                raise InputError(
                    f"{name!r} is both a role (obs column {column!r}) and a different obs column: "
                    f"write {column}=... for the role"
                )
    return condition


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs, position = [], 0
    while text[position:].strip():
        match = _PAIR.match(text, position)
        if match is None or not (match["quoted"] or match["plain"]):
            rest = text[position:].strip()
            raise InputError(f'cannot read condition {text!r} at {rest!r}; write name=value, with " around , and =')
        value = match["plain"].strip() if match["quoted"] is None else match["quoted"].replace('""', '"')
        pairs.append((match["name"], value))
        position = match.end()
    return pairs
