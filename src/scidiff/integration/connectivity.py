"""Connectivity: how much a query, what cells went through, is like each signature of a library.

All scores are pure functions of a query, shape (n_genes,), and signatures, shape (n_signatures, n_genes), over the same
genes; they return (n_signatures,), positive where the signature mimics the query, negative where it reverses it. With
``r`` for ranks:

- ``cosine``: q·s / |q||s|. ``spearman``: the same of centred ranks.
- ``weighted_connectivity`` (WCS; Subramanian et al. 2017): weighted Kolmogorov-Smirnov enrichment scores of the query's
  up and down genes in the signature, (ES_up - ES_down) / 2 if their signs differ, else 0.
- ``xsum`` (Cheng et al. 2014): sum of the signature over the query's up genes less that over its down genes, counting
  only the signature's own N highest and N lowest genes.
- ``zhang`` (Zhang & Gant 2008): sum of products of signed ranks of |q| and |s|, over the largest it could be.
- ``normalized`` (NCS) and ``tau`` (Subramanian et al. 2017) put scores on one scale: over the mean of their sign within
  a group; as a signed percentile of reference scores.

:class:`WhitenedSpearman` decides by default. Genes are correlated and noisy in ways that a library itself shows: by how
much signatures of one drug differ. Ranks tame the few genes that answer to everything; whitening counts once what many
genes say together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from scidiff.errors import InputError

MIN_SIGNATURES = 3  # of a library, to see how its genes go together
N_SET = 100  # genes a set has at most where a query is cut to its highest and lowest: half of it up, half down


def cosine(query: np.ndarray, signatures: np.ndarray) -> np.ndarray:
    """Return q·s / |q||s|; 0 where one of them is zero."""
    norms = np.linalg.norm(query) * np.linalg.norm(signatures, axis=-1)
    return _ratio(signatures @ query, norms)


def spearman(query: np.ndarray, signatures: np.ndarray) -> np.ndarray:
    """Return the correlation of ranks, ties at their mean rank."""
    return cosine(centred_ranks(query), centred_ranks(signatures))


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks over the last axis, mean zero."""
    from scipy.stats import rankdata

    return rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2


def extremes(query: np.ndarray, *, n: int = N_SET) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the at most n/2 highest positive and n/2 lowest negative genes, the strongest first."""
    order = np.argsort(-query, kind="stable")
    up, down = order[: n // 2], order[::-1][: n // 2]
    return up[query[up] > 0], down[query[down] < 0]


def enrichment(genes: np.ndarray, signatures: np.ndarray) -> np.ndarray:
    """Return the weighted Kolmogorov-Smirnov enrichment score of a gene set in each signature, in [-1, 1].

    Down the genes from highest to lowest, a running sum rises by |s_g| / sum over the set at genes of the set and falls
    by 1 / (number of others) elsewhere; the score is where it is farthest from zero (Subramanian et al. 2005, p = 1).

    Parameters
    ----------
    genes
        Positions of the genes of the set, each once. No gene or all of them: 0.
    """
    inside = np.zeros(signatures.shape[-1], dtype=bool)
    inside[genes] = True
    if not inside.any() or inside.all():
        return np.zeros(len(signatures))
    order = np.argsort(-signatures, axis=-1, kind="stable")
    hits = inside[order]
    weights = np.where(hits, np.abs(np.take_along_axis(signatures, order, axis=-1)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.where(total > 0, weights, hits)  # a signature that is zero all over the set: every gene counts alike
    running = np.cumsum(weights / weights.sum(axis=-1, keepdims=True) - ~hits / (~inside).sum(), axis=-1)
    high, low = running.max(axis=-1), running.min(axis=-1)
    return np.where(high >= -low, high, low)


def weighted_connectivity(query: np.ndarray, signatures: np.ndarray, *, n: int = N_SET) -> np.ndarray:
    """Return (ES_up - ES_down) / 2 of the query's extreme genes where the two differ in sign, else 0.

    A query without down (or up) genes has the score of the other half alone.
    """
    up, down = extremes(query, n=n)
    high, low = enrichment(up, signatures), enrichment(down, signatures)
    return _connected(high, low, both=bool(len(up) and len(down)))


def set_connectivity(effect: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Return the weighted connectivity with the roles changed: each signature's up and down genes, found in the effect.

    Parameters
    ----------
    effect
        Shape (n_genes,).
    sets
        Positive for the genes of an up set, negative for those of a down set, shape (n_sets, n_genes).
    """
    scores = []
    for one in sets:
        up, down = np.flatnonzero(one > 0), np.flatnonzero(one < 0)
        high, low = (enrichment(genes, effect[None])[0] for genes in (up, down))
        scores.append(_connected(high, low, both=bool(len(up) and len(down))))
    return np.array(scores)


def _connected(high: np.ndarray, low: np.ndarray, *, both: bool) -> np.ndarray:
    """Return half the difference of two enrichments if their signs differ; of a single set, its own."""
    return np.where(high * low < 0, (high - low) / 2, 0.0) if both else high - low


def xsum(query: np.ndarray, signatures: np.ndarray, *, n: int = N_SET) -> np.ndarray:
    """Return the sum over the query's up genes less that over its down genes, among the n extremes of each signature.

    Strong signatures win: compare it within a drug, or beside another score.
    """
    up, down = extremes(query, n=n)
    kept = np.zeros_like(signatures)
    for row, signature in zip(kept, signatures, strict=True):
        own = np.concatenate(extremes(signature, n=n))
        row[own] = signature[own]
    return kept[:, up].sum(axis=1) - kept[:, down].sum(axis=1)


def zhang(query: np.ndarray, signatures: np.ndarray) -> np.ndarray:
    """Return the connection strength of signed ranks, in [-1, 1].

    Genes are ranked by size, the largest highest, those at zero (not in a set) with rank 0; the sum of products of
    signed ranks is divided by the largest it could be.
    """
    q, s = signed_ranks(query), signed_ranks(signatures)
    best = np.sort(np.abs(s), axis=-1) @ np.sort(np.abs(q))
    return _ratio(s @ q, best)


def signed_ranks(values: np.ndarray) -> np.ndarray:
    """Return sign times rank of the size over the last axis, 1 for the smallest that is not zero, 0 for zeros."""
    from scipy.stats import rankdata

    zeros = (values == 0).sum(axis=-1, keepdims=True)
    return np.sign(values) * (rankdata(np.abs(values), axis=-1) - zeros)


def normalized(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return scores over the mean size of those of the same sign in the same group (cell line, kind): NCS."""
    result = np.zeros(len(scores))
    for group in np.unique(groups):
        for sign in (1, -1):
            rows = (groups == group) & (np.sign(scores) == sign)
            if rows.any():
                result[rows] = scores[rows] / np.abs(scores[rows]).mean()
    return result


def tau(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the signed percentage of reference scores that are smaller in size, in [-100, 100].

    Parameters
    ----------
    scores
        Shape (n_signatures,).
    reference
        Scores of the same signatures with other queries, shape (n_signatures, n_queries), or (n_queries,) for all.
    """
    smaller = np.abs(np.broadcast_to(reference, (len(scores), np.shape(reference)[-1]))) < np.abs(scores)[:, None]
    return 100 * np.sign(scores) * smaller.mean(axis=1)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.shape(a)), where=b > 0)


@dataclass(frozen=True, eq=False)
class WhitenedSpearman:
    """Rank correlation of whitened profiles, with what is noise learned from a library. Made by :meth:`fit`.

    Signatures are centred on the library, each gene is scaled by how much signatures of one drug differ, every
    signature is turned to ranks, the ranks of a drug are averaged and whitened by their covariance within drugs::

        P = rank((x - centre) / scale)        K = (1 - a) R'R + a I, R: standardised residuals of P within drugs
        score = Spearman(K^(-1/2) (query - mean), K^(-1/2) (drug - mean))

    with the shrinkage ``a`` of Ledoit & Wolf (2004), a closed form: there is nothing to tune. Where no drug has two
    signatures, differences between drugs take the place of those within. Ranks before averaging let the doses of a drug
    speak with one voice each, instead of the highest for all; ranks after whitening keep a few genes from deciding.

    Parameters
    ----------
    centre, scale, mean, unit
        Of genes, and of their ranks, shape (n_genes,).
    axes, shrink
        The whitening: ``shrink[0]`` for all directions, ``shrink[1:]`` more or less along ``axes``, orthonormal, shape
        (n_axes, n_genes).
    drugs
        Ranks of the whitened drugs, shape (n_drugs, n_genes).
    """

    centre: np.ndarray = field(repr=False)
    scale: np.ndarray = field(repr=False)
    mean: np.ndarray = field(repr=False)
    unit: np.ndarray = field(repr=False)
    axes: np.ndarray = field(repr=False)
    shrink: np.ndarray = field(repr=False)
    drugs: np.ndarray = field(repr=False)

    @classmethod
    def fit(cls, signatures: np.ndarray, groups: np.ndarray) -> WhitenedSpearman:
        """Return the score for a library.

        Parameters
        ----------
        signatures
            Shape (n_signatures, n_genes).
        groups
            The drug of each, 0 to n_drugs - 1, shape (n_signatures,).

        Raises
        ------
        InputError
            There are fewer than three signatures, or they do not differ.
        """
        from sklearn.covariance import ledoit_wolf_shrinkage

        if len(signatures) < MIN_SIGNATURES:
            raise InputError(
                f"whitening needs at least {MIN_SIGNATURES} signatures; the library has {len(signatures)}: read more, "
                "or name other methods="
            )
        signatures = np.asarray(signatures, dtype=float)
        centre = group_means(signatures, groups).mean(axis=0)
        residuals, freedom = _residuals(signatures - centre, groups)
        scale = _spread(residuals, freedom)
        ranks = centred_ranks((signatures - centre) / scale)
        means = group_means(ranks, groups)
        residuals, freedom = _residuals(ranks, groups)
        unit = _spread(residuals, freedom)
        residuals /= unit
        amount = max(float(ledoit_wolf_shrinkage(residuals, assume_centered=True)), 0.01)
        _, sizes, axes = np.linalg.svd(residuals / np.sqrt(freedom), full_matrices=False)
        kept = sizes > 1e-8 * sizes.max()
        sizes, axes = sizes[kept] ** 2, axes[kept]
        rest = amount**-0.5
        shrink = np.concatenate([[rest], ((1 - amount) * sizes + amount) ** -0.5 - rest])
        score = cls(centre, scale, means.mean(axis=0), unit, axes, shrink, np.empty(0))
        return replace(score, drugs=centred_ranks(score._whiten(means)))

    def __call__(self, query: np.ndarray, *, same_units: bool = True) -> np.ndarray:
        """Return the scores of all drugs, shape (n_drugs,).

        Parameters
        ----------
        query
            Shape (n_genes,), or its replicates, (n, n_genes).
        same_units
            Whether the query was measured as the library was; then what the library has in common is taken off.
        """
        return cosine(self.profile(query, same_units=same_units), self.drugs)

    def profile(self, query: np.ndarray, *, same_units: bool = True) -> np.ndarray:
        """Return the ranks of the whitened query, shape (n_genes,); parameters as above."""
        ranks = centred_ranks((np.atleast_2d(query) - self.centre * same_units) / self.scale).mean(axis=0)
        return centred_ranks(self._whiten(ranks))

    def profiles(self, signatures: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Return the ranks of whitened groups of the library's signatures, shape (n_groups, n_genes).

        Groups are drugs, or doses of a drug: codes 0 to n_groups - 1, shape (n_signatures,).
        """
        ranks = centred_ranks((signatures - self.centre) / self.scale)
        return centred_ranks(self._whiten(group_means(ranks, groups)))

    def _whiten(self, ranks: np.ndarray) -> np.ndarray:
        x = (ranks - self.mean) / self.unit
        return self.shrink[0] * x + (x @ self.axes.T * self.shrink[1:]) @ self.axes


def null_spread(
    signatures: np.ndarray, groups: np.ndarray, compared: np.ndarray | None = None, *, n_folds: int = 5
) -> float:
    """Return the standard deviation of :class:`WhitenedSpearman` with a query that is only noise.

    A fifth of the signatures is left out in turn; what is left of each after the mean of its drug's others (all of it
    where there is none) is a query for the library without them. Genes that a library of that size fails to decorrelate
    show up here, so p-values need not assume them independent. What the doses of a drug truly differ by is taken for
    noise: p-values are rather too large than too small. NaN where nothing can be left out: of three signatures two are
    no library, and of a single drug nothing is another one.

    Parameters
    ----------
    signatures, groups
        As in :meth:`WhitenedSpearman.fit`.
    compared
        What a query is compared with: codes for every signature, of parts of a drug such as its doses. None: drugs.
    """
    if len(signatures) <= MIN_SIGNATURES or not groups.any():
        return np.nan
    compared = groups if compared is None else compared
    scores = []
    folds = _spread_over(groups, n_folds)
    for fold in range(n_folds):
        inside = folds != fold
        kept, codes = np.unique(groups[inside], return_inverse=True)
        score = WhitenedSpearman.fit(signatures[inside], codes)
        means = group_means(signatures[inside], codes)
        _, first, parts = np.unique(compared[inside], return_index=True, return_inverse=True)
        profiles, drug = score.profiles(signatures[inside], parts), groups[inside][first]
        for row in np.flatnonzero(~inside):
            own = kept == groups[row]
            noise = signatures[row] - means[own][0] if own.any() else signatures[row] - score.centre
            found = cosine(score.profile(noise + score.centre), profiles)
            scores.append(found[drug != groups[row]])
    return float(np.sqrt(np.mean(np.concatenate(scores) ** 2)))


def _spread_over(groups: np.ndarray, n: int) -> np.ndarray:
    """Return a fold for every signature, those of a drug as evenly as they go."""
    order = np.argsort(groups, kind="stable")
    folds = np.empty(len(groups), dtype=int)
    folds[order] = np.arange(len(groups)) % n
    return folds


def group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the mean of the rows of every group, shape (n_groups, n_genes); groups are 0 to n_groups - 1."""
    total = np.zeros((groups.max() + 1, values.shape[1]))
    np.add.at(total, groups, values)
    return total / np.bincount(groups)[:, None]


def _residuals(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Return signatures less their drug's mean (without replicates: less the mean of all), and degrees of freedom."""
    freedom = len(values) - len(np.unique(groups))
    if freedom < 2:
        return values - values.mean(axis=0), len(values) - 1
    return values - group_means(values, groups)[groups], freedom


def _spread(residuals: np.ndarray, freedom: int) -> np.ndarray:
    """Return standard deviations of genes; a gene that never differs has the median one."""
    spread = np.sqrt((residuals**2).sum(axis=0) / freedom)
    if not spread.any():
        raise InputError("the signatures of the library do not differ")
    return np.where(spread > 0, spread, np.median(spread[spread > 0]))
