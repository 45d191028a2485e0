"""What all readers share: a file is opened as text, plain or gzipped, and whatever fails names the file in one line."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from scidiff import files
from scidiff.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PICKLES = (".pkl", ".pickle", ".p", ".dat", ".joblib")


def check_file(path: str | Path) -> Path:
    """Return the path of a file that exists and is no pickle, which would run whatever code it holds."""
    path = Path(path)
    files.check_file(path)
    if path.suffix in PICKLES:
        raise InputError(f"{path} is a pickle, which can run any code when read: write it as a table, GMT or JSON")
    return path


def suffix_of(path: Path) -> str:
    """Return the last suffix, a closing ``.gz`` left out, in lower case."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Yield the text of a file, plain or gzipped (told by its first bytes, not by its name)."""
    with open(path, "rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if gzipped else raw
        with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
            yield text


@contextlib.contextmanager
def naming(path: Path, expected: str) -> Iterator[None]:
    """Say of any failure which file could not be read and what was expected: damaged files raise anything."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise InputError(f"{path} cannot be read as {expected}: {type(error).__name__} {reason}".rstrip()) from error


def head(path: Path, n: int = 4) -> list[str]:
    """Return the first lines, at most 100,000 characters of each; InputError if the file is empty or no text."""
    with naming(path, "text"), open_text(path) as text:
        lines = [line for _ in range(n) if (line := text.readline(100_000).rstrip("\r\n"))]
    if not lines:
        raise InputError(f"{path} is empty")
    return lines


def separator(line: str) -> str:
    """Return what separates the columns of a table with this first line: tab, comma or semicolon."""
    return max("\t,;", key=line.count)


def read_columns(path: Path, **options) -> pd.DataFrame:
    """Return a table with named columns, all values as text, missing ones empty; the separator is found out."""
    import pandas as pd

    options = {"sep": separator(head(path)[0]), "dtype": str, "keep_default_na": False} | options
    with naming(path, "a table"), open_text(path) as text:
        return pd.read_csv(text, **options)


def pick(columns: list[str], *names: str) -> str | None:
    """Return the first of ``names`` that is a column, capitals and blanks or underscores apart; None if none is."""
    known = {plain(column): column for column in reversed(columns)}
    return next((known[plain(name)] for name in names if plain(name) in known), None)


def plain(name: str) -> str:
    """Return a name in small letters, without what people write differently."""
    return "".join(character for character in str(name).casefold() if character.isalnum())


def found(columns: list[str]) -> str:
    """Return the end of an error message: the first columns that a file does have."""
    return f"found columns {', '.join(map(repr, columns[:6]))}{' ...' if len(columns) > 6 else ''}"
