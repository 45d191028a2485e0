"""What the requests of several tasks have in common."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scidiff.errors import InputError

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
    """Return a column that h5ad can hold: numbers with NaN, or text with "unknown" (doses of combinations are text)."""
    given = column.dropna()
    if len(given) and not given.map(lambda value: isinstance(value, str)).any():
        return column.astype(float)
    return column.astype(object).where(column.isna(), column.astype(str)).fillna("unknown")
