"""How active every regulator is in every cell: AUCell (Aibar et al. 2017), in closed form.

The genes of a cell are ranked, the highest first. A target at rank ``r`` among the first ``m`` (a twentieth of all
genes) counts at ``m - r`` later places; the area under the recovery curve of a regulon is the sum of these, over the
largest that so many targets can have::

    AUC = sum over targets max(m - r, 0) / sum over i = 1 .. min(k, m - 1) of (m - i)

A sum over genes is a matrix product: all regulators of all cells cost two of them. Most counts of a cell are 0 or 1, so
most ranks are tied; a tied gene has the mean of what its places are worth, which is the mean over all ways of breaking
ties at random, and needs no random numbers.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.data.scaling import Matrix
from scidiff.errors import InputError
from scidiff.integration.regulons import MIN_TARGETS, weights_of

TOP = 0.05  # share of the genes, from the highest, in which targets are looked for


def regulator_activity(
    x: Matrix, genes: pd.Index, network: pd.DataFrame, *, min_targets: int = MIN_TARGETS, top: float = TOP
) -> pd.DataFrame:
    """Return the activity of every regulator in every cell, from -1 to 1, shape (n_cells, n_tfs), TFs by name.

    The AUC of the targets that the regulator raises, less that of those it lowers, each weighted by its share of the
    targets. With a network that has no signs it is AUCell's score.

    Parameters
    ----------
    x
        Expression on any scale that keeps the order of genes in a cell (counts, log1p), not negative, csr or dense,
        shape (n_cells, n_genes).
    genes
        Names, shape (n_genes,).
    network
        Columns ``source``, ``target``, ``weight`` (:func:`~scidiff.integration.networks.read_network`); of a weight,
        only the sign counts.
    min_targets
        A regulator with fewer targets among the genes is left out.
    top
        Share of the genes, the highest of each cell, that the curve runs over.

    Raises
    ------
    InputError
        Expression is negative or has not one column per gene, ``top`` is no share, or no regulator has enough targets.
    """
    x = sparse.csr_matrix(x)
    if x.shape[1] != len(genes):
        raise InputError(f"cells have {x.shape[1]} genes, {len(genes)} are named")
    if x.data.size and x.data.min() < 0:
        raise InputError(f"expression is negative (lowest {x.data.min():.3g}); activity takes counts or log1p of them")
    if not 0 < top <= 1:
        raise InputError(f"top={top}: a share of the genes, above 0 and at most 1")
    names, weights = weights_of(network, pd.Index(genes), min_targets)
    return pd.DataFrame(activity_of(x, weights, top=top), columns=names)


def activity_of(x: sparse.csr_matrix, weights: sparse.csc_matrix, *, top: float = TOP) -> np.ndarray:
    """Return the activities, (n_cells, n_tfs), of regulators with these weights, (n_genes, n_tfs)."""
    first = max(math.ceil(top * x.shape[1]), 2)
    worth, unseen = _worth(x, first)
    signs = weights.sign()
    k = np.asarray(abs(signs).sum(axis=0)).ravel()
    activity = np.zeros((x.shape[0], weights.shape[1]))
    for sign in (1, -1):
        member = (signs == sign).astype(float)
        size = np.asarray(member.sum(axis=0)).ravel()
        area = (worth @ member).toarray() + np.outer(unseen, size)
        reached = np.minimum(size, first - 1)
        largest = reached * first - reached * (reached + 1) / 2
        activity += sign * size / k * area / np.maximum(largest, 1)
    return activity


def _worth(x: sparse.csr_matrix, first: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return what every gene's rank adds to an area, as the worth of genes not seen, (n_cells,), and what is more.

    The second is a csr matrix, (n_cells, n_genes), so that nothing is ever dense.
    """
    x = x.copy()
    x.eliminate_zeros()
    n_genes = x.shape[1]
    places = np.maximum(first - np.arange(1, n_genes + 1), 0.0)
    total = np.concatenate([[0.0], np.cumsum(places)])
    worth, unseen = np.zeros(len(x.data)), np.zeros(x.shape[0])
    for cell, (start, stop) in enumerate(zip(x.indptr[:-1], x.indptr[1:], strict=True)):
        values = x.data[start:stop]
        seen = len(values)
        if seen < n_genes:
            unseen[cell] = (total[n_genes] - total[seen]) / (n_genes - seen)
        if not seen:
            continue
        order = np.argsort(-values)
        ordered = values[order]
        begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        ends = np.append(begins[1:], seen)
        tied = (total[ends] - total[begins]) / (ends - begins)
        worth[start + order] = np.repeat(tied, ends - begins) - unseen[cell]
    return sparse.csr_matrix((worth, x.indices, x.indptr), shape=x.shape), unseen
