"""Which columns of ``adata.obs`` say what was done to a cell, and the canonical table of it.

A *condition* is a row of attributes: the perturbation, the contexts (cell type, patient), dose, time, batch. Files
write them in many ways; every other room sees only the canonical table that a :class:`Schema` makes::

    perturbation   str: 'control', 'A', or 'A+B' with sorted parts and no control part
    <context>      str, one column per context under its own name
    dose           float, 0 for control cells; 'x+y' for a combination, in the order of its parts
    time           float
    batch          str

Missing attributes are None (text) or NaN (numbers) and mean *unconditional*. Units of dose and time, where values had
them, are recorded in ``table.attrs["units"]``.

*Modules* are numbers that every cell has of its own, such as the activity of a gene set. They make no groups of cells,
so the table leaves them out; a request may name them.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scidiff.data.quantities import to_numbers
from scidiff.errors import DataWarning, InputError, closest, expect

if TYPE_CHECKING:
    from anndata import AnnData

ROLES = ("perturbation", "dose", "time", "batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """The roles of obs columns. All are optional: a plain atlas needs none.

    Parameters
    ----------
    perturbation
        Column with what was done to the cell: gene, drug, cytokine, or combinations of them.
    control
        The value in that column that marks untreated cells.
    context
        Columns with what the cell was: cell type, cell line, patient. One name or several.
    dose, time
        Columns of numbers, or strings with units such as ``'10 uM'``, ``'24h'``.
    batch
        Column with the technical batch or replicate.
    combination_sep
        What separates the parts of a combination; None where names may contain it and there are no combinations.
    modules
        Columns of numbers, such as activities of TFs or scores of gene sets: what a cell can be asked to have.

    Raises
    ------
    InputError
        A column has two roles, or ``control`` is given without ``perturbation``.
    """

    perturbation: str | None = None
    control: str | None = None
    context: Sequence[str] = ()
    dose: str | None = None
    time: str | None = None
    batch: str | None = None
    combination_sep: str | None = "+"
    modules: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("context", "modules"):
            columns = getattr(self, name)
            several = isinstance(columns, Iterable) and not isinstance(columns, str)
            object.__setattr__(self, name, tuple(columns) if several else () if columns is None else (columns,))
        context = self.context
        single = [getattr(self, name) for name in (*ROLES, "combination_sep") if getattr(self, name) is not None]
        if wrong := [name for name in (*context, *self.modules, *single) if not isinstance(name, str)]:
            raise InputError(f"a schema has names of obs columns, not {wrong[0]!r}")
        if self.control is not None:
            object.__setattr__(self, "control", str(self.control))
            if self.perturbation is None:
                raise InputError(f"control={self.control!r} needs perturbation=, the obs column it is a value of")
        if self.combination_sep == "":
            raise InputError("combination_sep is empty; use None where there are no combinations")
        used = [*self.columns.values(), *self.modules]
        if double := [column for column in used if used.count(column) > 1] + [
            c for c in context if context.count(c) > 1
        ]:
            raise InputError(f"obs column {double[0]!r} has two roles in the schema; give each role its own column")
        for what, names in (("context column", context), ("module", self.modules)):
            if clash := [name for name in names if name in ROLES]:
                raise InputError(f"{what} {clash[0]!r} has the name of a role; use {clash[0]}= or rename the column")

    # ---- columns -------------------------------------------------------------------------------------------------

    @property
    def columns(self) -> dict[str, str]:
        """Columns of the canonical table, in order, and the obs column each is read from."""
        first = {"perturbation": self.perturbation}
        rest = {"dose": self.dose, "time": self.time, "batch": self.batch}
        both = first | {name: name for name in self.context} | rest
        return {name: column for name, column in both.items() if column is not None}

    def key(self, name: str, other: Iterable[str] = ()) -> str:
        """Return the table column that ``name`` means: a role, else an obs column of the schema, else one of ``other``.

        Raises
        ------
        InputError
            ``name`` is none of them; the nearest are named.
        """
        columns = self.columns
        if name in columns:
            return name
        for role, column in columns.items():
            if column == name:
                return role
        known = [*columns, *columns.values(), *self.modules, *other]
        if name in known:
            return name
        raise InputError(f"unknown attribute {name!r}{closest(name, dict.fromkeys(known))}")

    def validate(self, adata: AnnData) -> pd.DataFrame:
        """Return :meth:`table` of ``adata`` after checking that the schema fits; warn of cells that lack a value.

        To be called where a model or a split is made. Parts of a data set, such as held-out cells, may lack control
        cells and are read with :meth:`table`, which asks only that the columns exist.

        Raises
        ------
        InputError
            A column is missing, no cell is a control, or a dose or time cannot be read.
        """
        table = self.table(adata)
        if self.control is not None and not self.is_control(table).any():
            values = table["perturbation"].dropna().unique()
            raise InputError(
                f"control {self.control!r} is not in obs column {self.perturbation!r}{closest(self.control, values)}"
            )
        for name, column in self.columns.items():
            if n_missing := int(table[name].isna().sum()):
                not_control = ", not as control" if name == "perturbation" else ""
                warnings.warn(
                    f"{n_missing} of {len(table)} cells have no value in obs column {column!r}: "
                    f"they count as cells of unknown {name}{not_control}",
                    DataWarning,
                    stacklevel=2,
                )
        return table

    # ---- tables --------------------------------------------------------------------------------------------------

    def table(self, adata: AnnData) -> pd.DataFrame:
        """Return the canonical conditions of each cell, index ``obs_names``, one column per role that is set.

        Raises
        ------
        InputError
            An obs column is missing, or a dose, time or combination cannot be read.
        """
        obs = adata.obs
        for name, column in self.columns.items():
            if column not in obs:
                raise InputError(f"no obs column {column!r} for {name}{closest(column, obs.columns)}")
        if not self.columns:
            return pd.DataFrame(index=obs.index)
        # conditions are few where cells are many: make each distinct row canonical once
        codes = np.column_stack([pd.factorize(obs[column])[0] for column in self.columns.values()])
        _, first, inverse = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        rows = {name: obs[column].iloc[first].tolist() for name, column in self.columns.items()}
        distinct = self._canonical(pd.DataFrame(rows, dtype=object))
        table = distinct.iloc[np.ravel(inverse)].set_axis(obs.index, axis=0)
        table.attrs = distinct.attrs
        return table

    def module_scores(self, adata: AnnData) -> pd.DataFrame:
        """Return the modules of each cell, float, index ``obs_names``; NaN where there is no value.

        Raises
        ------
        InputError
            An obs column is missing, or holds something else than numbers.
        """
        if missing := [name for name in self.modules if name not in adata.obs]:
            raise InputError(f"no obs column {missing[0]!r} for a module{closest(missing[0], adata.obs.columns)}")
        scores = {name: _to_floats(adata.obs[name], name) for name in self.modules}
        return pd.DataFrame(scores, index=adata.obs.index)

    def conditions(
        self, request: Mapping[str, Any] | Iterable[Mapping[str, Any]] | pd.DataFrame, known: Any = None
    ) -> pd.DataFrame:
        """Return the conditions asked for, one row each, with all columns of the schema, modules last.

        Parameters
        ----------
        request
            One condition as a dict, several as a list of dicts or a DataFrame. Keys are role names or obs column names;
            what is not mentioned is missing.
        known
            Table of the training cells (from :meth:`table`), or a mapping from column to known values. Contexts,
            batches and the parts of perturbations must be among them; doses, times and new combinations need not.

        Raises
        ------
        InputError
            Unknown key or value; the nearest are named.
        """
        rows = request
        if isinstance(request, pd.DataFrame):  # without columns it still has rows: cells of no condition
            rows = request.to_dict("records") if request.shape[1] else [{}] * len(request)
        rows = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, Mapping) else [rows]
        keyed = [self._keyed(row) for row in rows]
        units = getattr(known, "attrs", {}).get("units", {})
        table = self._canonical(pd.DataFrame(keyed, columns=list(self.columns), dtype=object), units)
        if known is not None:
            self._refuse_unknown(table, known)
        asked = pd.DataFrame(keyed, columns=list(self.modules), dtype=object)
        return table.assign(**{name: _to_floats(asked[name], name) for name in asked})

    def select(self, data: AnnData | pd.DataFrame, condition: Mapping[str, Any]) -> np.ndarray:
        """Return a boolean mask, shape (n_cells,), of the cells that match all named values.

        Parameters
        ----------
        data
            AnnData (any obs column may be named, those outside the schema are compared as text) or a canonical table.
        condition
            Attribute -> value, or list of values of which any may match.

        Raises
        ------
        InputError
            Unknown attribute, or a value that no cell has; the nearest are named.
        """
        table, obs = (self.table(data), data.obs) if hasattr(data, "obs") else (data, data)
        wanted = {key: _as_list(value) for key, value in self._keyed(condition, obs.columns).items()}
        rows = pd.DataFrame(list(itertools.product(*wanted.values())), columns=list(wanted), dtype=object)
        inside = self._canonical(rows[[key for key in wanted if key in self.columns]], table.attrs.get("units", {}))
        mask = np.zeros(len(table), dtype=bool)
        hits = {}
        for key in wanted:
            column = table[key] if key in inside else obs[key].astype(object).map(_text)
            values = inside[key] if key in inside else rows[key].map(_text)
            hits[key] = [_equal(column, value) for value in values]
            for value, hit in zip(values, hits[key], strict=True):
                if not hit.any():
                    raise InputError(f"no cell has {key}={value!r}{closest(value, column.dropna().unique())}")
        for i in range(len(rows)):
            mask |= np.logical_and.reduce([hits[key][i] for key in wanted], axis=0) if wanted else True
        return mask

    def is_control(self, table: pd.DataFrame) -> np.ndarray:
        """Return a boolean mask, shape (n_rows,), of the control rows of a canonical table."""
        if self.control is None:
            return np.zeros(len(table), dtype=bool)
        return (table["perturbation"] == self.control).to_numpy(dtype=bool)

    # ---- values --------------------------------------------------------------------------------------------------

    def parts(self, perturbation: str | None) -> tuple[str, ...]:
        """Return the single perturbations of a (combined) one, sorted; empty for the control and for None.

        Raises
        ------
        InputError
            A combination has an empty part, as in ``'A+'``.
        """
        return tuple(sorted(part for part in self._split(perturbation) if part != self.control))

    def dose_parts(self, dose: float | str | None) -> tuple[float, ...]:
        """Return the doses in a value of the canonical dose column: one, or one for each part of a combination."""
        if isinstance(dose, str):
            return tuple(float(part) for part in _split_doses(dose, self.combination_sep))
        return () if dose is None or pd.isna(dose) else (float(dose),)

    def by_role(self, condition: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``condition`` as keyword arguments of :func:`scidiff.data.holdout`, contexts under ``context``."""
        condition = dict(condition)
        roles = {"combination": condition.pop("combination")} if "combination" in condition else {}
        for key, value in self._keyed(condition).items():
            if key in self.context:
                roles.setdefault("context", {})[key] = value
            else:
                roles[key] = value
        return roles

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        settings = dataclasses.asdict(self) | {"context": list(self.context), "modules": list(self.modules)}
        return settings if self.modules else {name: settings[name] for name in settings if name != "modules"}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Schema:
        """Return the schema that :meth:`to_dict` wrote."""
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in settings if name not in names]:
            raise InputError(f"a schema has no setting {unknown[0]!r}{closest(unknown[0], names)}")
        return cls(**settings)

    # ---- how a row becomes canonical -----------------------------------------------------------------------------

    def _keyed(self, row: Mapping[str, Any], other: Iterable[str] = ()) -> dict[str, Any]:
        """The row under table columns, without missing values."""
        expect(row, (Mapping, pd.Series), "a dict", "write a condition as in {'cell_type': 'B'}")
        out: dict[str, Any] = {}
        for name, value in row.items():
            key = self.key(str(name), other)
            if np.ndim(value) == 0 and pd.isna(value):
                continue
            if key in out and out[key] != value:
                raise InputError(
                    f"{name!r} and {key!r} are one attribute but ask for {value!r} and {out[key]!r}; give one"
                )
            out[key] = value
        return out

    def _canonical(self, raw: pd.DataFrame, units: Mapping[str, str | None] | None = None) -> pd.DataFrame:
        """Rows with table columns and values as written, made canonical; ``units`` are those the numbers must have."""
        out: dict[str, Any] = {}
        found: dict[str, str | None] = {}
        for name in raw:
            if bad := [value for value in raw[name] if np.ndim(value) > 0]:
                raise InputError(
                    f"{name} has the value {bad[0]!r}; give one value each, several conditions as a list of dicts"
                )
            if name == "time":
                out[name], found[name] = to_numbers(raw[name].tolist(), "time")
            elif name not in ("perturbation", "dose"):
                out[name] = raw[name].map(_text).astype(object)
        if "perturbation" in raw or "dose" in raw:
            self._canonical_perturbation(raw, out, found)
        for name, unit in found.items():
            if unit is not None and units and name in units and units[name] != unit:
                raise InputError(f"{name} is asked for in {unit}, but the data give it {_in_unit(units[name])}")
        table = pd.DataFrame({name: out[name] for name in raw}, index=raw.index)
        for name in table.select_dtypes(object):
            table[name] = table[name].where(table[name].notna(), np.nan if name == "dose" else None)
        table.attrs["units"] = found | {name: units[name] for name in found if units and name in units}
        return table

    def _canonical_perturbation(self, raw: pd.DataFrame, out: dict[str, Any], found: dict[str, str | None]) -> None:
        """Sort the parts of combinations, and their doses with them; control parts go, control cells get dose 0."""
        parts = [self._split(value) for value in raw["perturbation"]] if "perturbation" in raw else [()] * len(raw)
        written = (
            [_split_doses(dose, self.combination_sep) for dose in raw["dose"]] if "dose" in raw else [()] * len(raw)
        )
        numbers, unit = to_numbers(list(itertools.chain(*written)), "dose")
        found |= {"dose": unit} if "dose" in raw else {}
        stream = iter(numbers.tolist())
        names: list[str | None] = []
        doses: list[float | str] = []
        for i, (row_parts, row_written) in enumerate(zip(parts, written, strict=True)):
            row = [next(stream) for _ in row_written]
            if len(row) == 1:  # one dose written for a combination holds for each part
                row = row * max(len(row_parts), 1)
            if row and row_parts and len(row) != len(row_parts):
                text = f"dose {raw['dose'].iloc[i]!r} of {raw['perturbation'].iloc[i]!r}"
                raise InputError(
                    f"{text} has {len(row)} parts for {len(row_parts)}; give one dose, or one for each part"
                )
            amounts = row if len(row) == len(row_parts) else [np.nan] * len(row_parts)
            pairs = sorted(pair for pair in zip(row_parts, amounts, strict=True) if pair[0] != self.control)
            is_control = bool(row_parts) and not pairs
            names.append(self.control if is_control else (self.combination_sep or "").join(p for p, _ in pairs) or None)
            doses.append(0.0 if is_control else _join_doses([amount for _, amount in pairs] if row_parts else row))
        if "perturbation" in raw:
            out["perturbation"] = pd.Series(names, index=raw.index, dtype=object)
        if "dose" in raw:
            mixed = any(isinstance(dose, str) for dose in doses)
            out["dose"] = pd.Series(doses, index=raw.index, dtype=object if mixed else float)

    def _split(self, perturbation: object) -> tuple[str, ...]:
        """The parts of a perturbation as written, control parts among them; empty if missing."""
        text = _text(perturbation)
        if text is None:
            return ()
        if text == self.control or self.combination_sep is None:
            return (text,)
        parts = tuple(part.strip() for part in text.split(self.combination_sep))
        if not all(parts):
            sep = self.combination_sep
            raise InputError(
                f"perturbation {text!r} has an empty part; if {sep!r} belongs to names, set combination_sep=None"
            )
        return parts

    def _refuse_unknown(self, table: pd.DataFrame, known: Any) -> None:
        for name in table.columns.drop(["dose", "time"], errors="ignore"):
            if name not in known:
                continue
            values = pd.Series(known[name], dtype=object).dropna().unique()
            asked = table[name].dropna().unique()
            if name == "perturbation":
                asked = {part: None for value in asked for part in self.parts(value) or (value,)}
                values = dict.fromkeys(part for value in values for part in self.parts(value) or (value,))
            if unknown := [value for value in asked if value not in set(values)]:
                raise InputError(f"unknown {name} {unknown[0]!r}{closest(unknown[0], values)}")


def _text(value: Any) -> str | None:
    """The value as text; None if missing. Whole floats lose their '.0': pandas adds it where values are missing."""
    if value is None or (np.ndim(value) == 0 and pd.isna(value)):
        return None
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)


def _to_floats(column: pd.Series, name: str) -> pd.Series:
    """The column as finite numbers, NaN where it is missing."""
    numbers = pd.to_numeric(column.astype(object), errors="coerce").astype(float)
    bad = (numbers.isna() & column.notna()) | np.isinf(numbers)
    if bad.any():
        raise InputError(f"module {name}: {column[bad].iloc[0]!r} is no finite number")
    return numbers


def _as_list(value: Any) -> list[Any]:
    return (
        list(value)
        if isinstance(value, list | tuple | set | frozenset | np.ndarray | pd.Index | pd.Series)
        else [value]
    )


def _equal(column: pd.Series, value: object) -> np.ndarray:
    if isinstance(value, float) and column.dtype != object:
        return np.isclose(column.to_numpy(dtype=float), value, rtol=1e-9, atol=0)
    return (column == value).to_numpy(dtype=bool)


def _split_doses(dose: Any, sep: str | None) -> list[Any]:
    """The doses in one value, as written. The exponent in '1e+3' is no separator."""
    if isinstance(dose, str):
        seps = {"+", sep or "+"}
        return list(re.split(rf"(?<![\d.][eE])(?:{'|'.join(map(re.escape, seps))})", dose))
    return [dose]


def _join_doses(amounts: list[float]) -> float | str:
    if len(amounts) < 2:
        return amounts[0] if amounts else np.nan
    return np.nan if np.isnan(amounts).any() else "+".join(f"{amount:.12g}" for amount in amounts)


def _in_unit(unit: str | None) -> str:
    return "without a unit: ask for a plain number" if unit is None else f"in {unit}"
