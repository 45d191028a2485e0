"""Some training cells that a model keeps, so that what it makes can be compared with real cells anywhere.

At most 200 of each condition, drawn at random: enough for means, quantiles and neighbours, few enough to carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

PER_CONDITION, AT_MOST = 200, 20_000


@dataclass(frozen=True, eq=False)
class Reference:
    """Real cells with their conditions.

    Parameters
    ----------
    x
        Counts, or log expression, csr, shape (n_cells, n_genes).
    conditions
        Canonical conditions, one row per cell.
    """

    x: sparse.csr_matrix
    conditions: pd.DataFrame

    @classmethod
    def of(cls, x: Any, conditions: pd.DataFrame, *, seed: int) -> Reference:
        """Return up to 200 cells of every condition (2,000 where there is one only), at most 20,000 in all."""
        n = len(conditions)
        order = np.random.default_rng(seed).permutation(n)
        if conditions.shape[1]:
            keys = pd.factorize(pd.MultiIndex.from_frame(conditions.astype(object)))[0]
        else:
            keys = np.zeros(n, int)
        each = max(PER_CONDITION, 2000 // (keys.max() + 1)) if n else PER_CONDITION
        rank = pd.Series(order).groupby(keys[order]).cumcount().to_numpy()
        kept = np.sort(order[np.lexsort((order, rank))][: min(int((rank < each).sum()), AT_MOST)])
        return cls(sparse.csr_matrix(x[kept]), conditions.iloc[kept].reset_index(drop=True))

    def __len__(self) -> int:
        return len(self.conditions)

    def where(self, condition: Mapping[str, Any]) -> np.ndarray:
        """Return a mask of the cells that agree with a condition where it says something, shape (n_cells,)."""
        agree = np.ones(len(self), dtype=bool)
        for name, value in condition.items():
            if name in self.conditions and not pd.isna(value):
                agree &= (self.conditions[name] == value).to_numpy(bool)
        return agree

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return named arrays and JSON values."""
        arrays = {name: getattr(self.x, name) for name in ("data", "indices", "indptr")}
        table = self.conditions.astype(object).where(self.conditions.notna(), None)
        return arrays, {"conditions": table.to_dict("list"), "n_cells": len(table)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], *, n_genes: int) -> Reference:
        """Return the cells that :meth:`to_arrays` wrote."""
        parts = tuple(arrays[name] for name in ("data", "indices", "indptr"))
        n = about["n_cells"]
        table = pd.DataFrame(about["conditions"], index=range(n), dtype=object)
        return cls(sparse.csr_matrix(parts, shape=(n, n_genes)), table)
