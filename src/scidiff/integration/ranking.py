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

#: what is asked for -> the sign of the scores that are wanted, which are positive where the effect is mimicked
DIRECTIONS = {"mimic": 1.0, "reverse": -1.0}


#: by which candidates are ranked: perturbations, regulators, drugs
FIRST_SCORES = ("lda", "rewired", "ulm", "whitened_spearman", "cosine", "target_set")


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


def one_sided(p_value: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return the p-values of scores being above 0, from two-sided ones of their not being 0."""
    return np.where(np.asarray(score) > 0, np.asarray(p_value) / 2, 1 - np.asarray(p_value) / 2)


def agreement(ranking: pd.DataFrame, other: pd.DataFrame, *, n_first: int = 10) -> pd.DataFrame:
    """Return how well two rankings of the same candidates agree, such as of designed and of real cells.

    One row per kind that both have: ``kind``; ``score``, by which it is ranked; ``n``, candidates in both;
    ``correlation``, Pearson's, of their scores; ``shared``, how many of the first of one are among those of the other.

    Parameters
    ----------
    ranking, other
        From :meth:`scidiff.ScIDiff.attribute`, or of one kind.
    n_first
        How many are the first.
    """
    rows = []
    for kind, own in ranking.groupby("kind", sort=False):
        own, real = own.set_index("name"), other[other["kind"] == kind].set_index("name")
        both = own.index.intersection(real.index)
        score = next((name for name in FIRST_SCORES if name in own and own[name].notna().any()), None)
        if score is None or len(both) < 2:
            continue
        first = [set(table.nsmallest(n_first, "rank").index) for table in (own, real)]
        correlation = own.loc[both, score].corr(real.loc[both, score])
        rows.append((kind, score, len(both), correlation, len(first[0] & first[1])))
    return pd.DataFrame(rows, columns=["kind", "score", "n", "correlation", "shared"])


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
