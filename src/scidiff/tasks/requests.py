"""What the requests of several tasks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scidiff.data.scaling import log1p_cp10k
from scidiff.errors import InputError
from scidiff.model import TrainedModel

if TYPE_CHECKING:
    from anndata import AnnData

#: molecules a generated cell may have; every one of them is drawn
MAX_DEPTH = 10_000_000


def checked_depth(depth: float | np.ndarray, n: int) -> np.ndarray:
    """Return molecules for each of ``n`` cells, shape (n,); raise :class:`InputError` for what no cell can have."""
    depth = np.broadcast_to(np.asarray(depth, dtype=float), (n,)) if np.ndim(depth) == 0 else np.asarray(depth, float)
    if depth.shape != (n,) or not ((depth >= 1) & (depth <= MAX_DEPTH)).all():
        raise InputError(
            f"depth must be one number from 1 to {MAX_DEPTH:,} molecules, or one for each of the {n} cells"
        )
    return np.rint(depth)


def obs_column(column: pd.Series) -> pd.Series:
    """Return a column that h5ad can hold: numbers, or text (doses of combinations are); missing values stay missing."""
    given = column.dropna()
    if (len(given) or column.dtype != object) and not given.map(lambda value: isinstance(value, str)).any():
        return column.astype(float)
    text = column.astype(str).where(column.notna(), None)
    return text.astype("category") if column.isna().any() else text.astype(object)


def gene_table(adata: AnnData, genes: Sequence[str]) -> pd.DataFrame:
    """Return what a user's cells say of genes, one row for each of ``genes``; see :func:`described`.

    Of ``var`` and that of ``raw``, the one that has more of the genes: the counts were taken from there.
    """
    tables = [adata.var] if adata.raw is None else [adata.var, adata.raw.var]
    return described(max(tables, key=lambda table: table.index.isin(genes).sum()), genes)


def described(var: pd.DataFrame, genes: Sequence[str]) -> pd.DataFrame:
    """Return the rows of ``genes``, in their order; of those that are not there nothing is known."""
    table = var[~var.index.duplicated()].reindex(genes)
    return table if set(genes) <= set(var.index) else table.apply(obs_column)


def as_cells(model: TrainedModel, x: Any, table: pd.DataFrame) -> AnnData:
    """Return sampled values as AnnData with their canonical conditions in obs.

    ``x``: counts (csr), or standardised expression, shape (n_cells, n_genes).
    """
    from anndata import AnnData

    obs = table.rename(columns=model.schema.columns).set_axis([f"cell{i}" for i in range(len(table))], axis=0)
    obs = obs.apply(obs_column)
    var = pd.DataFrame(index=pd.Index(model.genes))
    if model.standardizer is None:
        return AnnData(log1p_cp10k(x), obs=obs, var=var, layers={"counts": x})
    return AnnData(np.maximum(model.standardizer.inverse(x), 0), obs=obs, var=var)
