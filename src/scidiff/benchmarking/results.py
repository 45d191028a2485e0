"""The table of a benchmark: one row per number, written after every piece of work, so that a run can be resumed.

    dataset, part, split, method  ->  metric, value, seconds, note

A piece of work is what has one such key: a method on a split in a part of the task. What is in the table is not done
again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from scidiff.errors import InputError
from scidiff.files import check_folder_place, reason, whole_file, writing

KEY = ["part", "split", "method"]
COLUMNS = ["dataset", *KEY, "metric", "value", "seconds", "note"]
TABLE, REQUEST = "results.csv", "request.json"
#: stand for the metric where a method gave none: something it needs is missing, or it cannot do what was asked
MISSING, REFUSED = "not there", "not run"


class NotThere(InputError):
    """What a method needs is not there; it may be when the run goes on."""


@dataclass(eq=False)
class Results:
    """The rows so far, and the folder they are kept in. Made by :meth:`open`.

    Parameters
    ----------
    folder
        Where ``results.csv`` is, and ``request.json``: what the run was asked.
    dataset
        What the rows are about.
    table
        See the head of this module.
    """

    folder: Path
    dataset: str
    table: pd.DataFrame = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path, *, dataset: str, asked: Mapping[str, Any], resume: bool = False) -> Results:
        """Return an empty table in a new folder, or that of a run with the same request.

        Parameters
        ----------
        asked
            What decides the numbers, JSON values: data, settings, seed. A run goes on with the same only.
        resume
            Whether to go on with what the folder holds, if it holds a run.

        Raises
        ------
        InputError
            The folder holds a run, but ``resume`` is not set or the run was asked something else; or it holds other
            things, or cannot be written.
        """
        folder = Path(folder)
        check_folder_place(folder)
        asked = json.loads(json.dumps(dict(asked)))
        others = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
        if folder.is_file() or (others and not (folder / REQUEST).is_file()):
            raise InputError(f"cannot write {folder}: it exists and is no benchmark; choose another place")
        if not (folder / REQUEST).is_file():
            with writing(folder):
                folder.mkdir(exist_ok=True)
            with whole_file(folder / REQUEST) as part:
                part.write_text(json.dumps(asked, indent=1))
            return cls(folder, dataset, pd.DataFrame(columns=COLUMNS))
        if not resume:
            raise InputError(f"{folder} holds a benchmark: go on with --resume, or delete it")
        try:
            before = json.loads((folder / REQUEST).read_text())
            there = (folder / TABLE).is_file()
            table = pd.read_csv(folder / TABLE) if there else pd.DataFrame(columns=COLUMNS)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no benchmark to resume: {reason(error)}; delete it") from None
        for name, value in asked.items():
            if before.get(name) != value:
                raise InputError(f"{folder} holds a benchmark with other {name}; ask for the same, or delete it")
        return cls(folder, dataset, table.assign(note=table["note"].fillna("")))

    def once(self, part: str, split: int, methods: str | Sequence[str], work: Callable[[], pd.DataFrame]) -> None:
        """Do a piece of work unless its rows are there; add them and write the table.

        What something was missing for (a package, predicted cells) is tried again, as it may be there by now; what was
        refused is not.

        ``work`` returns columns ``metric`` and ``value``, with several methods ``method`` (one of them), and, if it
        likes, ``seconds`` (default: those of all the work) and ``note``; further columns are kept. What a method cannot
        do (ImportError, InputError) is a row without a value, the reason its note.
        """
        methods = [methods] if isinstance(methods, str) else list(methods)
        there = [self.rows(part, split=split, method=method) for method in methods]
        if all(len(rows) for rows in there) and not any((rows["metric"] == MISSING).any() for rows in there):
            return
        self.table = self.table.drop(index=[row for rows in there for row in rows.index]).reset_index(drop=True)
        start = time.perf_counter()
        try:
            made = work()
        except (ImportError, InputError) as error:
            metric = MISSING if isinstance(error, (ImportError, NotThere)) else REFUSED
            made = pd.DataFrame({"method": methods, "metric": metric, "value": float("nan"), "note": str(error)})
        known = {"dataset": self.dataset, "part": part, "split": split}
        missing = {"method": methods[0], "seconds": time.perf_counter() - start, "note": ""}
        made = made.assign(**known, **{name: value for name, value in missing.items() if name not in made})
        made = made[[*COLUMNS, *made.columns.difference(COLUMNS)]]
        self.table = made if self.table.empty else pd.concat([self.table, made], ignore_index=True)
        with whole_file(self.folder / TABLE) as place:
            self.table.to_csv(place, index=False, float_format="%.6g")

    def rows(self, part: str, *, split: int | None = None, method: str | None = None) -> pd.DataFrame:
        """Return the rows of a part, of one split or method if asked."""
        chosen = self.table["part"] == part
        if split is not None:
            chosen &= self.table["split"] == split
        if method is not None:
            chosen &= self.table["method"] == method
        return self.table[chosen]
