"""The one kind of error a user can cause, and the words for it.

Every message is one line: what is wrong, named, and what to do about it. The command line prints it as it is
and exits with status 1; in Python it is an ordinary ``ValueError``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral

#: characters of a message, above which its middle is left out
LONGEST = 1000


class InputError(ValueError):
    """Something in the caller's data, request or files cannot be used."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())  # what is quoted in it may have lines, and be as long as a file
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")


class DataWarning(UserWarning):
    """The data can be used, but the user should know what was found or changed."""


def expect(value: object, kind: type | tuple[type, ...], what: str, remedy: str) -> None:
    """Refuse what is of another type than users are likely to mean: ``expected a table, got str; read it with ...``."""
    if not isinstance(value, kind):
        raise InputError(f"expected {what}, got {type(value).__name__}; {remedy}")


def whole_numbers(**numbers: tuple[object, int]) -> None:
    """Refuse numbers, each with the lowest that is allowed, that are lower or not whole; None is left to a default."""
    for name, (number, low) in numbers.items():
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, Integral) or number < low:
            raise InputError(f"{name}={number!r}: must be a whole number, at least {low}")


#: known values up to this number are all named
FEW = 12


def closest(name: object, known: Iterable[object], *, n: int = 3) -> str:
    """Return a clause that names the known values most like ``name``, for the end of an error message.

    ``"; nearest: 'CD4 T', 'CD8 T'"`` where some are alike, else ``"; known: ..."`` with the first few.
    """
    values = [str(value) for value in known]
    folded = {value.casefold(): value for value in values}
    alike = [folded[key] for key in difflib.get_close_matches(str(name).casefold(), folded, n=n, cutoff=0.5)]
    if alike:
        return "; nearest: " + ", ".join(map(repr, alike))
    if not values:
        return "; there are none"
    shown = values if len(values) <= FEW else values[: 2 * n]
    rest = f" and {len(values) - len(shown)} more" if len(values) > len(shown) else ""
    return "; known: " + ", ".join(map(repr, shown)) + rest
