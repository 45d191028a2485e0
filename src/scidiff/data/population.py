"""What the training cells were like as a population: how many of each condition, and how deep.

Kept with a model, so that cells can be generated without the training data: conditions are drawn as often as they
occurred, and depths from the depths of that condition's cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scidiff.data.schema import Schema

#: a condition's depths are kept as this many quantiles
N_QUANTILES = 51


@dataclass(frozen=True, eq=False)
class Population:
    """Distinct training conditions with their frequencies and depths.

    Parameters
    ----------
    conditions
        Canonical table, one row per distinct condition.
    n_cells
        Training cells of each, shape (n_conditions,).
    log_depth
        Quantiles of the natural log of molecules per cell, shape (n_conditions, 51); None for data without counts.
    """

    conditions: pd.DataFrame
    n_cells: np.ndarray
    log_depth: np.ndarray | None

    @classmethod
    def of(cls, table: pd.DataFrame, depth: np.ndarray | None = None) -> Population:
        """Return the population of training cells with this canonical table and these depths."""
        if table.shape[1]:
            group, distinct = pd.factorize(pd.MultiIndex.from_frame(table.astype(object)))
            conditions = pd.DataFrame(list(distinct), columns=table.columns)
        else:
            group, conditions = np.zeros(len(table), int), pd.DataFrame(index=range(1))
        quantiles = None
        if depth is not None:
            steps = np.linspace(0, 1, N_QUANTILES)
            order = np.argsort(group, kind="stable")
            parts = np.split(np.log(np.maximum(depth, 1))[order], np.cumsum(np.bincount(group))[:-1])
            quantiles = np.stack([np.quantile(part, steps) for part in parts]).astype(np.float32)
        return cls(conditions.astype(object), np.bincount(group), quantiles)

    def weights(self, condition: pd.Series) -> np.ndarray:
        """Return numbers of cells of the conditions that agree with ``condition`` where it says something.

        If none agrees, as for a combination never seen, numbers of cells of those that share its contexts, or of all.
        """
        said = {name: value for name, value in condition.items() if not pd.isna(value)}
        contexts = {n: value for n, value in said.items() if n not in ("perturbation", "dose", "time", "batch")}
        for wanted in (said, contexts):
            if (agree := self._agree(wanted)).any():
                return np.where(agree, self.n_cells, 0)
        return self.n_cells

    def knows(self, condition: pd.Series) -> bool:
        """Whether training cells agree with ``condition`` where it says something."""
        return bool(self._agree({name: value for name, value in condition.items() if not pd.isna(value)}).any())

    def _agree(self, wanted: dict[str, object]) -> np.ndarray:
        """A mask of the conditions that have all these values."""
        agree = np.ones(len(self.n_cells), bool)
        for name in wanted.keys() & set(self.conditions):  # modules are no part of a population
            agree &= (self.conditions[name] == wanted[name]).to_numpy(bool)
        return agree

    def complete(self, wanted: pd.DataFrame, *, rng: np.random.Generator) -> pd.DataFrame:
        """Return ``wanted`` with what it leaves open drawn as in the training cells that agree with the rest.

        A condition with which no training cell agrees stays as it is: what it leaves open is null.
        """
        out = wanted.astype(object)  # a dose is a number, or text for a combination
        for key, rows in _identical(wanted):
            if not self.knows(key):
                continue
            weights = self.weights(key)
            drawn = rng.choice(len(weights), size=len(rows), p=weights / weights.sum())
            filled = self.conditions.iloc[drawn].set_axis(out.index[rows])
            for name in filled:
                if pd.isna(key[name]):
                    out.loc[out.index[rows], name] = filled[name]
        return out

    def draw_depth(self, conditions: pd.DataFrame, *, rng: np.random.Generator) -> np.ndarray:
        """Return depths (molecules) for cells of these conditions, shape (n_cells,), drawn as in training."""
        assert self.log_depth is not None
        depth = np.empty(len(conditions))
        steps = np.linspace(0, 1, N_QUANTILES)
        for key, rows in _identical(conditions):
            weights = self.weights(key)
            source = rng.choice(len(weights), size=len(rows), p=weights / weights.sum())
            u = rng.random(len(rows))
            depth[rows] = [np.interp(ui, steps, self.log_depth[k]) for ui, k in zip(u, source, strict=True)]
        return np.maximum(np.rint(np.exp(depth)), 1)

    def to_dict(self) -> dict[str, list]:
        """Return conditions and cell numbers as JSON values (depths are an array and are stored as one)."""
        table = self.conditions.astype(object).where(self.conditions.notna(), None)
        return {"conditions": table.to_dict("records"), "n_cells": self.n_cells.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, list], schema: Schema, log_depth: np.ndarray | None) -> Population:
        """Return the population that :meth:`to_dict` wrote."""
        table = pd.DataFrame(values["conditions"], columns=list(schema.columns), dtype=object)
        if not len(table):
            table = pd.DataFrame(index=range(len(values["n_cells"])))
        return cls(table, np.asarray(values["n_cells"]), log_depth)


def _identical(table: pd.DataFrame):
    """Yield each distinct row as a Series and the positions of its copies."""
    if not table.shape[1]:
        yield pd.Series(dtype=object), np.arange(len(table))
        return
    group, distinct = pd.factorize(pd.MultiIndex.from_frame(table.astype(object)))
    for i, values in enumerate(distinct):
        yield pd.Series(list(values), index=table.columns, dtype=object), np.flatnonzero(group == i)
