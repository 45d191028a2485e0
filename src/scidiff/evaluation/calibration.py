"""Is the stated uncertainty true? The randomised PIT of held-out counts under their predictive distribution.

If x comes from the predictive distribution F, then

    u = F(x - 1) + V (F(x) - F(x - 1)),      V ~ Uniform(0, 1)

is uniform, also where x is an integer that is mostly zero (Smith 1985; Czado, Gneiting & Held 2009): an interval of
integers cannot hold exactly 80 % of such a gene, the interval of u can. Predictions that are too narrow pile u up at
both ends, too wide ones in the middle, biased ones at one end.

From m draws, u = (rank of x among them + V) / (m + 1), ties broken at random: exactly uniform for any m where x is
exchangeable with the draws, so few draws make coverage noisier to judge but never wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.errors import InputError

LEVELS = (0.5, 0.8, 0.95)


def pit(draws: Iterable[np.ndarray | sparse.csr_matrix], observed: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the randomised PIT of observed counts under predictive draws, shape of ``observed``, in (0, 1).

    Parameters
    ----------
    draws
        Predictive counts, each of the shape of ``observed``, sparse or dense: an array (n_draws, n_cells, n_genes), or
        anything that gives one draw at a time and need not hold them all.
    observed
        Counts, shape (n_cells, n_genes).
    seed
        Breaks ties.

    Raises
    ------
    InputError
        There are no draws, or their shape is another.
    """
    observed = _dense(observed)
    below, ties, n_draws = np.zeros(observed.shape, np.int32), np.zeros(observed.shape, np.int32), 0
    for draw in draws:
        draw = _dense(draw)
        if draw.shape != observed.shape:
            raise InputError(f"a draw has shape {draw.shape}, the observed counts {observed.shape}; they must agree")
        below += draw < observed
        ties += draw == observed
        n_draws += 1
    if n_draws == 0:
        raise InputError("calibration needs at least one predictive draw")
    return pit_of_cdf(below / (n_draws + 1), (below + ties + 1) / (n_draws + 1), seed=seed)


def pit_of_cdf(below: np.ndarray, upto: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the randomised PIT from a predictive distribution function: ``below`` F(x - 1) and ``upto`` F(x)."""
    v = np.random.default_rng(seed).random(np.shape(below))
    return below + v * (np.asarray(upto) - below)


def coverage(pit: np.ndarray, levels: Sequence[float] = LEVELS) -> dict[float, float]:
    """Return for each level the share of values inside the central interval of that probability.

    Below the level: predictions are too sure of themselves; above it: less sure than they could be.
    """
    return {level: float(np.mean(np.abs(np.asarray(pit) - 0.5) <= level / 2)) for level in levels}


def ks_uniform(pit: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of the values to the uniform distribution; 0 is calibrated."""
    from scipy import stats

    return float(stats.kstest(np.ravel(pit), "uniform").statistic)


def calibration(
    draws: Iterable[np.ndarray | sparse.csr_matrix],
    observed: sparse.csr_matrix,
    *,
    gene_sets: Sequence[np.ndarray] = (),
    k: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Return coverage and KS distance for single genes and for sums of gene sets.

    One row each, index ``highest genes`` and ``gene-set sums`` (left out without sets), columns ``n`` (values judged),
    ``coverage_50``, ``coverage_80``, ``coverage_95``, ``ks``. Sums see what single genes cannot: whether the draws move
    genes *together* as cells do.

    Parameters
    ----------
    draws
        Predictive draws of ``observed``, as for :func:`pit`; read once, one at a time.
    observed
        Held-out counts, shape (n_cells, n_genes).
    gene_sets
        Positions of the genes of each set.
    k
        How many genes, those with the most observed molecules.
    """
    observed = sparse.csr_matrix(observed)
    total = np.asarray(observed.sum(axis=0)).ravel()
    highest = np.argsort(-total, kind="stable")[:k]
    # what is judged, as columns: a gene is the sum of itself
    columns = [*highest[:, None], *(np.unique(genes) for genes in gene_sets)]
    if empty := sum(len(genes) == 0 for genes in columns):
        raise InputError(f"{empty} gene sets have no genes; leave them out")
    genes, column = np.concatenate(columns), np.repeat(np.arange(len(columns)), [len(c) for c in columns])
    sums = sparse.csr_matrix((np.ones(len(genes)), (genes, column)), shape=(observed.shape[1], len(columns)))
    u = pit((sparse.csr_matrix(draw) @ sums for draw in draws), observed @ sums, seed=seed)
    parts = {"highest genes": u[:, : len(highest)], "gene-set sums": u[:, len(highest) :]}
    return pd.DataFrame({name: _summary(values) for name, values in parts.items() if values.size}).T.astype({"n": int})


def _summary(u: np.ndarray) -> dict[str, float]:
    covered = {f"coverage_{100 * level:.0f}": share for level, share in coverage(u).items()}
    return {"n": u.size, **covered, "ks": ks_uniform(u)}


def _dense(x) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)
