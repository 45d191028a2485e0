"""The words a model knows for conditions, and conditions as tensors.

A :class:`Vocabulary` is learned from the canonical table of the training cells (:meth:`Schema.table`) and turns any
such table into :class:`Conditions`, the ``cond`` of ``denoiser(x_noisy, level, cond)``. Code 0 is the *null token*:
the attribute is unknown, and the model answers for all its values together.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError, closest

#: quantiles between which a module's score is one that cells have: single cells are far out
MIDDLE = (0.005, 0.995)


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Encoded conditions of a batch of cells; all tensors have the cells as first axis.

    Parameters
    ----------
    codes
        One long tensor (n_cells,) per categorical attribute (contexts, batch): 0 null, else 1 + place in the
        vocabulary. ``codes["perturbation"]`` numbers whole perturbations, combinations included; one that was not in
        training, as a combination may be, has the number after the last.
    parts
        Single perturbations of each cell, shape (n_cells, max_parts): 0 empty (a control has no parts), else 1 + place.
        A part of dose 0 is no part: it is dropped, here and from ``codes["perturbation"]``.
    doses
        Dose of each part, same shape; NaN unknown.
    time
        Shape (n_cells,); NaN null.
    depth
        Molecules the clean cell has, shape (n_cells,); NaN null. It is not an attribute of the biology: `drop` and
        `keep` leave it alone.
    modules
        One tensor (n_cells,) per module; NaN null.
    """

    codes: dict[str, Tensor]
    parts: Tensor
    doses: Tensor
    time: Tensor
    depth: Tensor
    modules: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.depth)

    def _map(self, function: Any) -> Conditions:
        codes = {name: function(code) for name, code in self.codes.items()}
        modules = {name: function(score) for name, score in self.modules.items()}
        parts, doses, time, depth = (function(t) for t in (self.parts, self.doses, self.time, self.depth))
        return Conditions(codes, parts, doses, time, depth, modules)

    def __getitem__(self, rows: Any) -> Conditions:
        """Return the conditions of some cells (indices, mask or slice)."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> Conditions:
        """Return the same conditions on a device."""
        return self._map(lambda tensor: tensor.to(device))

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names that `drop` and `keep` take."""
        return (*self.codes, "dose", "time", *self.modules)

    def drop(self, *attributes: str, cells: Tensor | None = None) -> Conditions:
        """Return a copy in which these attributes are null, for all cells or where the mask ``cells`` is true."""
        if unknown := [name for name in attributes if name not in self.attributes]:
            raise InputError(f"no attribute {unknown[0]!r} in the conditions{closest(unknown[0], self.attributes)}")
        cells = torch.ones(len(self), dtype=torch.bool, device=self.depth.device) if cells is None else cells
        codes = {k: code.masked_fill(cells, 0) if k in attributes else code for k, code in self.codes.items()}
        parts, doses, time = self.parts, self.doses, self.time
        if "perturbation" in attributes:
            parts = parts.masked_fill(cells[:, None], 0)
        if "dose" in attributes or "perturbation" in attributes:
            doses = doses.masked_fill(cells[:, None], torch.nan)
        if "time" in attributes:
            time = time.masked_fill(cells, torch.nan)
        modules = {k: v.masked_fill(cells, torch.nan) if k in attributes else v for k, v in self.modules.items()}
        return Conditions(codes, parts, doses, time, self.depth, modules)

    def keep(self, *attributes: str) -> Conditions:
        """Return a copy in which all other attributes are null; without names, the unconditional."""
        if unknown := [name for name in attributes if name not in self.attributes]:
            raise InputError(f"no attribute {unknown[0]!r} in the conditions{closest(unknown[0], self.attributes)}")
        return self.drop(*(name for name in self.attributes if name not in attributes))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Known values of every attribute, and the scales of the continuous ones.

    Parameters
    ----------
    schema
        Roles of the obs columns.
    categories
        Known values of each context and of the batch.
    perturbations
        Whole perturbations seen in training, combinations and the control included.
    parts
        Single perturbations the model can be asked for: those seen, and those with features.
    doses
        Median training dose of each part, where there are doses; the starting point of the learned curve.
    time_range, dose_range
        Smallest and largest training value, or None.
    n_times
        Different training times; None: not known, taken as many.
    depth
        Mean and standard deviation of the natural log of the molecules per training cell.
    units
        Units of dose and time, where the data had them.
    modules
        Module -> range that holds the scores of 99 % of the training cells.
    """

    schema: Schema
    categories: dict[str, tuple[str, ...]]
    perturbations: tuple[str, ...]
    parts: tuple[str, ...]
    doses: tuple[float, ...] = ()
    time_range: tuple[float, float] | None = None
    dose_range: tuple[float, float] | None = None
    n_times: int | None = None
    depth: tuple[float, float] = (0.0, 1.0)
    units: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    modules: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @classmethod
    def learn(
        cls,
        table: pd.DataFrame,
        schema: Schema,
        *,
        depth: np.ndarray | None = None,
        extra_parts: tuple[str, ...] = (),
        modules: pd.DataFrame | None = None,
    ) -> Vocabulary:
        """Return the vocabulary of a canonical table.

        Parameters
        ----------
        table
            From ``schema.table(adata)``, training cells only.
        schema
            Its schema.
        depth
            Molecules per cell, shape (n_cells,); None where the data has no counts.
        extra_parts
            Single perturbations that were not seen but have features.
        modules
            Scores of the cells, a column per module.

        Raises
        ------
        InputError
            A module does not differ between cells.
        """
        categories = {
            name: tuple(sorted(table[name].dropna().unique())) for name in (*schema.context, "batch") if name in table
        }
        perturbations: tuple[str, ...] = ()
        parts: tuple[str, ...] = ()
        if "perturbation" in table:
            perturbations = tuple(sorted(table["perturbation"].dropna().unique()))
            seen = {part for perturbation in perturbations for part in schema.parts(perturbation)}
            parts = tuple(sorted(seen | set(extra_parts)))
        medians: tuple[float, ...] = ()
        dose_range = None
        if "dose" in table and parts:
            given: dict[str, list[float]] = {part: [] for part in parts}
            pairs = table[["perturbation", "dose"]].value_counts(dropna=True)
            for (perturbation, dose), n in pairs.items():
                for part, amount in zip(schema.parts(perturbation), schema.dose_parts(dose), strict=False):
                    given[part] += [amount] * int(n)
            amounts = np.array([a for values in given.values() for a in values if np.isfinite(a) and a > 0])
            if amounts.size:
                dose_range = (float(amounts.min()), float(amounts.max()))
                typical = float(np.median(amounts))
                medians = tuple(float(np.median(v)) if v and np.median(v) > 0 else typical for v in given.values())
        ranges = {} if modules is None else {name: _range(name, scores.to_numpy()) for name, scores in modules.items()}
        time = table["time"].dropna() if "time" in table else pd.Series(dtype=float)
        log_depth = np.log(np.maximum(depth, 1)) if depth is not None else np.zeros(1)
        return cls(
            schema=schema,
            categories=categories,
            perturbations=perturbations,
            parts=parts,
            doses=medians,
            time_range=(float(time.min()), float(time.max())) if len(time) else None,
            n_times=int(time.nunique()) or None,
            dose_range=dose_range,
            depth=(float(log_depth.mean()), float(max(log_depth.std(), 0.1))),
            units=dict(table.attrs.get("units", {})),
            modules=ranges,
        )

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attributes of the schema, in the order of its table, then modules."""
        return (*self.schema.columns, *self.schema.modules)

    @property
    def known(self) -> pd.DataFrame:
        """Values, and units of dose and time, that :meth:`Schema.conditions` accepts."""
        both = {"perturbation": self.perturbations + self.parts} if "perturbation" in self.attributes else {}
        values = self.categories | both
        known = pd.DataFrame({name: pd.Series(of_name, dtype=object) for name, of_name in values.items()})
        known.attrs["units"] = dict(self.units)
        return known

    def encode(self, table: pd.DataFrame, *, depth: np.ndarray | None = None) -> Conditions:
        """Return the conditions of a canonical table as tensors.

        Parameters
        ----------
        table
            From ``schema.table`` or ``schema.conditions``; missing columns are null, modules among them.
        depth
            Molecules each clean cell has, shape (n_cells,); None is null.

        Raises
        ------
        InputError
            A value is not in the vocabulary; the nearest are named.
        """
        unknown = np.full(len(table), np.nan)
        whole, parts, doses = self._perturbations(table)
        codes = {}
        for name in self.attributes:
            if name in self.categories:
                codes[name] = _codes(table, name, self.categories[name])
            elif name == "perturbation":
                codes[name] = torch.from_numpy(whole)
        time = np.asarray(pd.to_numeric(table["time"]) if "time" in table else unknown, dtype=np.float32)
        _warn_outside("time", time, self.time_range)
        _warn_outside("dose", doses, self.dose_range)
        modules = {name: np.asarray(table.get(name, unknown), dtype=np.float32) for name in self.modules}
        for name, scores in modules.items():
            _warn_outside(f"module {name}", scores, self.modules[name])
        return Conditions(
            codes=codes,
            parts=torch.from_numpy(parts),
            doses=torch.from_numpy(doses),
            time=torch.from_numpy(time),
            depth=torch.tensor(unknown if depth is None else np.maximum(depth, 1), dtype=torch.float32),
            modules={name: torch.from_numpy(scores) for name, scores in modules.items()},
        )

    def _perturbations(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes of the whole perturbations, (n_cells,); codes and doses of their parts, (n_cells, max_parts)."""
        n = len(table)
        if "perturbation" not in table:
            return np.zeros(n, np.int64), np.zeros((n, 1), np.int64), np.full((n, 1), np.nan, np.float32)
        place_of_whole = {perturbation: i + 1 for i, perturbation in enumerate(self.perturbations)}
        place = {part: i + 1 for i, part in enumerate(self.parts)}
        doses_of = table["dose"] if "dose" in table else pd.Series(np.nan, index=table.index)
        pairs = pd.MultiIndex.from_arrays([table["perturbation"].astype(object), doses_of.astype(object)])
        cell, distinct = pd.factorize(pairs)  # conditions are few where cells are many
        # pandas leaves pairs with a missing value in the index as they are: every cell has a code
        split = [self.schema.parts(None if pd.isna(p) else p) for p, _ in distinct]
        width = max([1, *map(len, split)])
        whole = np.zeros(len(distinct), np.int64)
        codes = np.zeros((len(distinct), width), np.int64)
        doses = np.full((len(distinct), width), np.nan, np.float32)
        for row, (names, (perturbation, dose)) in enumerate(zip(split, distinct, strict=True)):
            if unknown := [name for name in names if name not in place]:
                raise InputError(
                    f"perturbation {unknown[0]!r} was not in training and has no features"
                    f"{closest(unknown[0], self.parts)}"
                )
            if pd.isna(perturbation):
                continue
            amounts = self.schema.dose_parts(dose)
            if len(amounts) != len(names):
                amounts = (np.nan,) * len(names)
            given = [(name, amount) for name, amount in zip(names, amounts, strict=True) if amount != 0]
            if len(given) < len(names):  # dose 0 is the control, for the anchor as for the network
                perturbation = (self.schema.combination_sep or "").join(name for name, _ in given)
                perturbation = perturbation or self.schema.control
            whole[row] = place_of_whole.get(perturbation, len(self.perturbations) + 1)
            for slot, (name, amount) in enumerate(given):
                codes[row, slot], doses[row, slot] = place[name], amount
        return whole[cell], codes[cell], doses[cell]

    def to_dict(self) -> dict[str, Any]:
        """Return the vocabulary as plain JSON values."""
        plain = {"schema": self.schema.to_dict(), "units": dict(self.units), "modules": dict(self.modules)}
        return dataclasses.asdict(self) | plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Vocabulary:
        """Return the vocabulary that :meth:`to_dict` wrote (lists become tuples again)."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        plain["schema"] = Schema.from_dict(values["schema"])
        plain["categories"] = {name: tuple(v) for name, v in values["categories"].items()}
        plain["modules"] = {name: tuple(bounds) for name, bounds in values.get("modules", {}).items()}
        return cls(**plain)


def _range(name: str, scores: np.ndarray) -> tuple[float, float]:
    known = scores[np.isfinite(scores)]
    low, high = np.quantile(known, MIDDLE).tolist() if known.size else (0.0, 0.0)
    if low == high:
        raise InputError(f"module {name} does not differ between cells: leave it out, or give it more genes")
    return low, high


def _warn_outside(name: str, values: np.ndarray, bounds: tuple[float, float] | None) -> None:
    if bounds is None:
        return
    low, high = np.array(bounds, dtype=np.float32)
    if (outside := values[(values < low) | (values > high)]).size:
        warnings.warn(
            f"{name} {outside[0]:g} is outside the {bounds[0]:g} to {bounds[1]:g} of the training cells: extrapolated",
            DataWarning,
            stacklevel=4,
        )


def _codes(table: pd.DataFrame, name: str, values: tuple[str, ...]) -> Tensor:
    """1 + the place of each value, 0 where it is missing."""
    if name not in table:
        return torch.zeros(len(table), dtype=torch.long)
    column = table[name].astype(object)
    codes = pd.Index(values, dtype=object).get_indexer(column) + 1
    new = (codes == 0) & column.notna().to_numpy()
    if new.any():
        value = column[new].iloc[0]
        raise InputError(f"{name} {value!r} was not in training{closest(value, values)}")
    return torch.from_numpy(codes.astype(np.int64))
