"""What the user sees: results on stdout, progress, warnings and errors on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from scidiff.errors import DataWarning

if TYPE_CHECKING:
    import pandas as pd


Advance = Callable[..., None]


class Talk:
    """What a verb says: its result on stdout, progress and each distinct DataWarning as one line on stderr.

    Used as a context, in which nothing else reaches stdout; the result is printed when it ends well.
    """

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self.quiet, self.as_json = quiet, as_json
        self.warnings: list[str] = []
        self._result: tuple[dict[str, Any], tuple[Any, ...]] | None = None

    def __enter__(self) -> Talk:
        self._context = contextlib.ExitStack()
        self._context.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # those of libraries are for programmers
        warnings.simplefilter("always", DataWarning)
        warnings.showwarning = self._warn  # type: ignore[assignment]
        self._context.enter_context(contextlib.redirect_stdout(sys.stderr))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._context.close()
        if kind is not None or self._result is None:
            return
        facts, shown = self._result
        if self.as_json:
            print(json.dumps(facts | {"warnings": self.warnings}))
        elif not self.quiet:
            from rich.console import Console

            for one in shown:
                print(one) if isinstance(one, str) else Console().print(one)

    def result(self, facts: dict[str, Any], *shown: Any) -> None:
        """Keep the result: JSON values for machines; texts and tables for people."""
        self._result = facts, shown

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Advance]:
        """Show a progress bar; yield ``advance(done, total, note="")``. In a log file: a line at every tenth."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = "{task.description}", BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        show_bar = console.is_terminal and not self.quiet
        with Progress(
            *columns, TextColumn("{task.fields[note]}"), console=console, transient=True, disable=not show_bar
        ) as bar:
            task = bar.add_task(what, total=None, note="")
            tenth = 0

            def advance(done: int, total: int, note: str = "") -> None:
                nonlocal tenth
                bar.update(task, completed=done, total=total, note=note)
                if not console.is_terminal and not self.quiet and done * 10 // total > tenth:
                    tenth = done * 10 // total
                    print(f"{what}: {done} of {total}  {note}".rstrip(), file=sys.stderr, flush=True)

            yield advance

    def _warn(self, message: Warning | str, *where: object) -> None:
        text = " ".join(str(message).split())
        if text not in self.warnings:
            self.warnings.append(text)
            print(f"warning: {text}", file=sys.stderr)


def fail(message: str, *, code: int = 1) -> int:
    """Say on stderr, in one line, why there is no result; return the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def score_table(scores: pd.DataFrame) -> list[Any]:
    """The scores as a rich table, a column for each method, and their notes as lines."""
    from rich.table import Table

    from scidiff.plotting import format_score

    names = [name for name in ("condition", "metric") if name in scores]
    hidden = ("loss", "n_predicted", "n_real", "n_control")
    numbers = [name for name in scores.select_dtypes("number") if name not in hidden]
    table = Table()
    for column in (*names, *numbers, "better"):
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
    for row in scores.to_dict("records"):
        table.add_row(*(row[name] for name in names), *(format_score(row[name]) for name in numbers), row["better"])
    rows = scores[scores["note"] != ""].to_dict("records")
    return [table, *(f"{' '.join(row[name] for name in names)}: {row['note']}" for row in rows)]


def no_nan(numbers: dict[str, float]) -> dict[str, float | None]:
    """The numbers as JSON values; undefined ones as null."""
    return {name: value if value == value else None for name, value in numbers.items()}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON values; undefined numbers as null."""
    return json.loads(table.to_json(orient="records"))
