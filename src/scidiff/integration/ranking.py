"""One order from several, and where it is kept: methods that rank the same candidates by scores in different units.

Every method's ranks are divided by the number of candidates, and a candidate has the mean of their logarithms, the rank
product (Breitling et al. 2004): what several methods put first comes first, and one method's bad day costs little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scidiff.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData


def consensus_rank(scores: pd.DataFrame) -> np.ndarray:
    """Return the order of the candidates by all methods together, 1 for the best, shape (n_candidates,).

    Parameters
    ----------
    scores
        A column per method, the higher the better, shape (n_candidates, n_methods). A candidate that a method did not
        score (NaN) shares the places after those it did. The first method decides where all together are even.
    """
    ranks = (-scores).rank(na_option="bottom")
    product = np.log(ranks / len(ranks)).mean(axis=1)
    order = np.lexsort((ranks.iloc[:, 0], product.round(12)))
    places = np.empty(len(ranks), dtype=int)
    places[order] = np.arange(1, len(ranks) + 1)
    return places


def annotated(adata: AnnData, table: pd.DataFrame, *, activity: pd.DataFrame | None = None) -> AnnData:
    """Return a copy of cells that carries what was found about them.

    Parameters
    ----------
    adata
        The cells that were asked about.
    table
        Their ranking; it stands in ``uns["scidiff_ranking"]``, with missing texts empty, so that h5ad can hold it.
    activity
        Activity of every regulator in every cell (:func:`~scidiff.integration.activity.regulator_activity`), rows in
        the order of the cells; it stands in ``obsm["tf_activity"]``.

    Raises
    ------
    InputError
        There is not one row of ``activity`` per cell.
    """
    if activity is not None and len(activity) != adata.n_obs:
        raise InputError(f"activity has {len(activity)} rows; one for each of {adata.n_obs} cells is needed")
    out = adata.copy()
    texts = list(table.select_dtypes("object")) + list(table.select_dtypes("string"))
    kept = table.assign(**{name: table[name].fillna("").astype(str) for name in texts})
    out.uns["scidiff_ranking"] = kept.set_axis(kept.index.astype(str))
    if activity is not None:
        out.obsm["tf_activity"] = activity.set_axis(adata.obs_names)
    return out
