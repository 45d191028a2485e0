"""Groups of cells of one condition, reduced to what a closed form needs: means and how well they are known.

    mean_i = 1/n_i sum_c x_c          variance_i = s_i^2 / n_i
    s_i^2  = (SS_i + d0 s_context^2) / (n_i - 1 + d0)

A group of three cells in which a gene was never seen does not know that gene exactly: each variance within a group is
moderated toward that of its context, and this toward that of all cells (Smyth 2004; the prior is worth ``d0`` = 10).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.errors import InputError

PRIOR_CELLS = 10.0
CHUNK = 4096

#: columns of the table that are no attributes of a context
TREATMENT = ("perturbation", "dose", "time")


@dataclass(frozen=True, eq=False)
class GroupStats:
    """Means of the distinct conditions of training cells, with their sampling variance.

    Parameters
    ----------
    table
        One row per group. ``perturbation`` is the tuple of parts, () for controls; ``dose`` a tuple with one number a
        part, or None; ``time`` a number or NaN; every other column is an attribute of the context, None where unknown.
    mean, variance
        Mean expression, log1p counts per 10k, and the sampling variance *of that mean*, shape (n_groups, n_genes).
    n
        Cells, shape (n_groups,).
    log_depth, log_depth_variance
        Mean log of the molecules per cell and its sampling variance, shape (n_groups,).
    """

    table: pd.DataFrame
    mean: np.ndarray
    variance: np.ndarray
    n: np.ndarray
    log_depth: np.ndarray
    log_depth_variance: np.ndarray

    def __post_init__(self) -> None:
        rows = len(self.table)
        if "perturbation" not in self.table or not all(isinstance(p, tuple) for p in self.table["perturbation"]):
            raise InputError("the table of groups needs a column 'perturbation' of tuples of parts, () for controls")
        if self.mean.shape != self.variance.shape or any(
            len(values) != rows for values in (self.mean, self.n, self.log_depth, self.log_depth_variance)
        ):
            raise InputError(f"statistics of groups must have one row for each of {rows} conditions")
        if not (np.isfinite(self.mean).all() and (self.variance >= 0).all() and (np.asarray(self.n) > 0).all()):
            raise InputError("means of groups must be finite, variances not negative, and every group needs a cell")

    @property
    def context_columns(self) -> list[str]:
        """Columns of the table that say what a cell was."""
        return [name for name in self.table.columns if name not in TREATMENT]

    @classmethod
    def of(cls, x: sparse.csr_matrix | np.ndarray, conditions: pd.DataFrame, *, depth: np.ndarray) -> GroupStats:
        """Return the statistics of cells; beside ``x`` the memory depends on the number of groups only.

        Parameters
        ----------
        x
            log1p counts per 10k, csr or dense, shape (n_cells, n_genes).
        conditions
            One row per cell, columns as in ``table``.
        depth
            Molecules per cell, shape (n_cells,).
        """
        if len(conditions) != x.shape[0] or len(depth) != x.shape[0]:
            raise InputError(f"{len(conditions)} conditions and {len(depth)} depths for {x.shape[0]} cells")
        key = pd.MultiIndex.from_frame(conditions.astype(object).where(conditions.notna(), "<none>"))
        group, _ = pd.factorize(key)
        first = np.unique(group, return_index=True)[1]
        n = np.bincount(group).astype(float)
        member = sparse.csc_matrix((np.ones(len(group)), (group, np.arange(len(group)))))
        table = conditions.iloc[first].reset_index(drop=True)
        columns = [name for name in table.columns if name not in TREATMENT]
        place = table.groupby(columns, dropna=False).ngroup().to_numpy() if columns else np.zeros(len(table), int)
        mean, within = _moments(member, x, n, place)
        logs = np.log(np.maximum(np.asarray(depth, dtype=float), 1.0))[:, None]
        log_depth, depth_within = _moments(member, logs, n, place)
        return cls(
            table=table,
            mean=mean,
            variance=within,
            n=n,
            log_depth=log_depth[:, 0],
            log_depth_variance=depth_within[:, 0],
        )


def _moments(member: sparse.csc_matrix, x, n: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each group and the moderated sampling variance of it; ``place`` numbers the contexts."""
    size = n[:, None]
    mean, squares = np.zeros((2, len(n), x.shape[1]))
    for start in range(0, x.shape[0], CHUNK):  # squares of all cells at once would double the memory
        cells, block = member[:, start : start + CHUNK], x[start : start + CHUNK]
        mean += _dense(cells @ block) / size
        squares += _dense(cells @ (block.power(2) if sparse.issparse(block) else np.square(block)))
    sum_of_squares = np.maximum(squares - size * mean**2, 0)
    prior = sum_of_squares.sum(axis=0) / max((n - 1).sum(), 1.0)
    for group in (place, np.arange(len(n))):  # contexts toward all, groups toward their context
        sums = pd.DataFrame(sum_of_squares).groupby(group).sum().to_numpy()
        freedom = np.bincount(group, weights=n - 1)[:, None]
        prior = ((sums + PRIOR_CELLS * prior) / (freedom + PRIOR_CELLS))[group]
    return mean, prior / size


def _dense(matrix) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)
