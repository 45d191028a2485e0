"""How alike two populations of cells are: every score of the project as a pure function of arrays.

One idea: a score compares *populations*, so nothing here depends on the order of the cells. Three families:

- moments and effects, on log1p counts per 10k, shape (n_cells, n_genes), sparse or dense (means and variances never
  densify). An effect is a difference of means, ``d = mean(cells) - mean(control)``;
- distances between distributions, on principal components, shape (n_cells, n_components). They are U-statistics: the
  pairs of a cell with itself are left out, so that two samples of one population score 0 on average (single values may
  be negative);
- likelihoods of held-out molecules, on counts, and rankings of labels, on scores.

Names and formulas are fixed for the whole project. A score that the data cannot define (no variance, no cells) is NaN,
and NaN always ranks last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp

BLOCK = 1024  # cells per block of pairwise distances: 8 MB per thousand cells on the other side


# --- moments --------------------------------------------------------------------------------------------------------


def gene_means(cells) -> np.ndarray:
    """Return the mean of every gene, shape (n_genes,), of ``cells`` (n_cells, n_genes), sparse or dense."""
    return np.asarray(cells.astype(np.float64).mean(axis=0)).ravel()  # sparse sums of single precision are rounded


def gene_variances(cells) -> np.ndarray:
    """Return the unbiased variance of every gene, shape (n_genes,); sparse input stays sparse."""
    n_cells = cells.shape[0]
    if n_cells < 2:
        return np.full(cells.shape[1], np.nan)
    if not sp.issparse(cells):
        return np.asarray(cells, dtype=np.float64).var(axis=0, ddof=1)
    means = gene_means(cells)
    squares = np.asarray(cells.astype(np.float64).power(2).sum(axis=0)).ravel()
    return np.maximum(squares - n_cells * means**2, 0) / (n_cells - 1)


def zero_fraction(cells) -> float:
    """Return the share of entries of ``cells`` (n_cells, n_genes) that are exactly zero."""
    n_nonzero = cells.count_nonzero() if sp.issparse(cells) else np.count_nonzero(cells)
    return 1.0 - n_nonzero / (cells.shape[0] * cells.shape[1])


def effect(cells, control) -> np.ndarray:
    """Return the mean difference to control per gene, shape (n_genes,), in log1p counts per 10k."""
    return gene_means(cells) - gene_means(control)


def welch_t(cells, control) -> np.ndarray:
    """Return Welch's t of ``cells`` against ``control`` per gene, shape (n_genes,); 0 where both are constant."""
    error = np.sqrt(gene_variances(cells) / cells.shape[0] + gene_variances(control) / control.shape[0])
    difference = effect(cells, control)
    return np.divide(difference, error, out=np.zeros_like(difference), where=error > 0)


def gene_correlations(cells) -> np.ndarray:
    """Return the upper triangle of the gene-gene Pearson correlations, shape (n_genes * (n_genes - 1) / 2,).

    A gene that is constant in ``cells`` co-varies with nothing: its correlations are 0.
    """
    x = np.asarray(cells.toarray() if sp.issparse(cells) else cells, dtype=np.float64)
    x = x - x.mean(axis=0)
    norms = np.linalg.norm(x, axis=0)
    x = np.divide(x, norms, out=np.zeros_like(x), where=norms > 1e-12)
    return (x.T @ x)[np.triu_indices(x.shape[1], k=1)]


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation of two vectors; NaN where one of them is constant or not finite."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(a) < 2 or not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def strongest(values: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the ``k`` largest values, largest first; ties keep their order, NaN is last."""
    return np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:k]


# --- agreement of populations, on log1p counts per 10k --------------------------------------------------------------


def r2_mean(generated, real) -> float:
    """Return the squared Pearson correlation of the gene means. Saturates near 0.95 for "nothing changes"."""
    return pearson(gene_means(generated), gene_means(real)) ** 2


def r2_var(generated, real) -> float:
    """Return the squared Pearson correlation of the per-gene variances."""
    return pearson(gene_variances(generated), gene_variances(real)) ** 2


def r2_de100(generated, real, control, *, k: int = 100) -> float:
    """Return the squared Pearson of the means of the ``k`` genes most changed (Welch t), real v. control."""
    genes = strongest(np.abs(welch_t(real, control)), k)
    return pearson(gene_means(generated)[genes], gene_means(real)[genes]) ** 2


def corr_r2_hvg(generated, real, *, k: int = 100) -> float:
    """Return the squared Pearson correlation of the gene-gene correlations of the ``k`` genes highest in ``real``."""
    genes = strongest(gene_means(real), k)
    return pearson(gene_correlations(generated[:, genes]), gene_correlations(real[:, genes])) ** 2


def corr_responding(generated, real, control, *, k: int = 50) -> float:
    """Return the Pearson correlation of the gene-gene correlations of the ``k`` genes most changed (Welch t)."""
    genes = strongest(np.abs(welch_t(real, control)), k)
    return pearson(gene_correlations(generated[:, genes]), gene_correlations(real[:, genes]))


def zero_gap(generated, real) -> float:
    """Return the fraction of zeros in ``generated`` less that in ``real``: negative means too few zeros."""
    return zero_fraction(generated) - zero_fraction(real)


# --- effects (differences of means), shape (n_genes,) ---------------------------------------------------------------


def pearson_delta(d_pred: np.ndarray, d_true: np.ndarray) -> float:
    """Return Pearson's correlation of the predicted and the true effect.

    Control cells shared between the two effects raise it without any skill: use disjoint ones.
    """
    return pearson(d_pred, d_true)


def r2_delta(d_pred: np.ndarray, d_true: np.ndarray) -> float:
    """Return the share of the true effect's variance over genes that is explained (at most 1, may be negative)."""
    d_pred, d_true = np.asarray(d_pred, dtype=np.float64), np.asarray(d_true, dtype=np.float64)
    total = np.sum((d_true - d_true.mean()) ** 2)
    return float(1 - np.sum((d_true - d_pred) ** 2) / total) if total > 0 else float("nan")


def mse_delta(d_pred: np.ndarray, d_true: np.ndarray) -> float:
    """Return the mean squared error of the predicted effect, in squared log1p units."""
    return float(np.mean((np.asarray(d_pred, dtype=np.float64) - np.asarray(d_true, dtype=np.float64)) ** 2))


def slope(d_pred: np.ndarray, d_true: np.ndarray) -> float:
    """Return the least-squares slope, with intercept, of predicted on true effects: below 1 they are attenuated."""
    d_true = np.asarray(d_true, dtype=np.float64)
    centred = d_true - d_true.mean()
    total = centred @ centred
    return float(centred @ np.asarray(d_pred, dtype=np.float64) / total) if total > 0 else float("nan")


def direction_agreement(d_pred: np.ndarray, d_true: np.ndarray) -> float:
    """Return the share of genes whose predicted effect has the sign of the true one, of those with a true effect.

    A predicted effect of exactly 0 does not agree.
    """
    changed = np.asarray(d_true) != 0
    return float(np.mean(np.sign(d_pred)[changed] == np.sign(d_true)[changed])) if changed.any() else float("nan")


def de_overlap(strength_pred: np.ndarray, strength_true: np.ndarray, *, k: int = 100) -> float:
    """Return the share of the ``k`` strongest true genes that are among the ``k`` strongest predicted ones.

    Strength is any score of differential expression, larger is stronger; here \\|Welch t\\|.
    """
    k = min(k, len(strength_true))
    return len(np.intersect1d(strongest(strength_pred, k), strongest(strength_true, k))) / k


# --- distances between distributions, on principal components -------------------------------------------------------


Strata = tuple[np.ndarray, np.ndarray] | None


def energy(generated: np.ndarray, real: np.ndarray, *, strata: Strata = None) -> float:
    """Return the energy distance 2 E|x-y| - E|x-x'| - E|y-y'|, Euclidean, as a U-statistic.

    Inputs are principal components, shape (n_cells, n_components), fitted on neither set of cells; one draw per source
    cell, since copies shrink E|x-x'|. Székely & Rizzo (2013), eq. 1.2, with the diagonal left out.

    ``strata``: the conditions of the generated and of the real cells, where cells were drawn condition by condition in
    fixed numbers. Pairs within a condition are then counted as often as in the mixture. Without this, matched samples
    of one population score below 0: leaving out the diagonal removes only pairs within conditions, the near ones.
    """
    return _distance(generated, real, strata, "euclidean", lambda distance: distance)


def mmd(generated: np.ndarray, real: np.ndarray, *, strata: Strata = None) -> float:
    """Return the squared maximum mean discrepancy, as a U-statistic.

    The kernel is the sum over b in (.5, 1, 2) of exp(-|x - y|^2 / (b m)), m the median squared distance between real
    cells (of at most 2,000, evenly taken). Arguments as in :func:`energy`. Gretton et al. (2012), eq. 3.
    """
    from scipy.spatial.distance import pdist

    if min(len(generated), len(real)) < 2:
        return float("nan")
    median = np.median(pdist(real[:: -(-len(real) // 2000)], "sqeuclidean"))
    if median == 0:
        return float("nan")
    # a characteristic kernel is minus a distance: 2 E d(x,y) - E d(x,x') - E d(y,y') with d = 3 - k is the MMD
    return _distance(
        generated,
        real,
        strata,
        "sqeuclidean",
        lambda square: 3 - sum(np.exp(square / (-b * median)) for b in (0.5, 1, 2)),
    )


def _distance(x: np.ndarray, y: np.ndarray, strata: Strata, metric: str, d: Callable) -> float:
    """Return 2 E d(x,y) - E d(x,x') - E d(y,y') over distinct pairs, for any d with d(x,x) = 0."""
    if min(len(x), len(y)) < 2:
        return float("nan")
    labels_x, labels_y = (np.zeros(len(x)), np.zeros(len(y))) if strata is None else strata
    between = _sum_of_pairs(x, y, metric, d) / (len(x) * len(y))
    return 2 * between - _mean_within(x, labels_x, metric, d) - _mean_within(y, labels_y, metric, d)


def _mean_within(x: np.ndarray, labels: np.ndarray, metric: str, d: Callable) -> float:
    """Return E d(x,x') of the mixture of strata: sum over strata a, b of p_a p_b (mean of d over distinct pairs)."""
    total = _sum_of_pairs(x, x, metric, d)
    for label in np.unique(labels):
        stratum = x[labels == label]
        if len(stratum) > 1:
            total += _sum_of_pairs(stratum, stratum, metric, d) / (len(stratum) - 1)
    return total / len(x) ** 2


def _sum_of_pairs(x: np.ndarray, y: np.ndarray, metric: str, d: Callable) -> float:
    """Return the sum of d over all pairs, holding ``BLOCK`` rows of distances at a time."""
    from scipy.spatial.distance import cdist

    return sum(float(d(cdist(x[i : i + BLOCK], y, metric)).sum()) for i in range(0, len(x), BLOCK))


def auc(generated: np.ndarray, real: np.ndarray, *, seed: int = 0, folds: int = 4) -> float:
    """Return the two-sample AUC: how well gradient boosting tells generated from real cells it was not trained on.

    0.5: it cannot; 1: always. Equal numbers (the larger set is subsampled), shuffled and stratified folds, mean of the
    folds' areas. Inputs as in :func:`energy`. Lopez-Paz & Oquab (2017) for the idea.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    classifier = HistGradientBoostingClassifier(random_state=seed)
    with threadpool_limits(1, user_api="openmp"):  # so few cells: on a busy machine threads wait long for each other
        return _auc_of(classifier, generated, real, seed=seed, folds=folds, least=2)


def knn_auc(generated: np.ndarray, real: np.ndarray, *, seed: int = 0, folds: int = 4, k: int = 10) -> float:
    """Return the two-sample AUC of the ``k`` nearest neighbours: 0.5 if these cannot tell generated from real cells.

    Numbers, folds and inputs as in :func:`auc`; blunter, but it needs fewer cells and asks only whether cells lie where
    real ones do.
    """
    from sklearn.neighbors import KNeighborsClassifier

    return _auc_of(KNeighborsClassifier(k), generated, real, seed=seed, folds=folds, least=k + 1)


def _auc_of(classifier, generated: np.ndarray, real: np.ndarray, *, seed: int, folds: int, least: int) -> float:
    """Return the area under a classifier's curve, mean over folds; NaN if it learns from fewer than ``least``."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    n = min(len(generated), len(real))
    if n < 2 * folds or 2 * n * (folds - 1) // folds < least:
        return float("nan")
    rng = np.random.default_rng(seed)
    samples = [cells[rng.choice(len(cells), n, replace=False)] for cells in (generated, real)]
    cells, label = np.concatenate(samples), np.repeat([1, 0], n)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, cells, label, cv=split, scoring="roc_auc").mean())


# --- likelihood of held-out molecules, on counts --------------------------------------------------------------------


def nll_molecule(held_out, composition: np.ndarray) -> float:
    """Return nats per held-out molecule, - sum x log p / sum x.

    ``held_out`` counts (n_cells, n_genes), sparse or dense; ``composition`` p (n_cells, n_genes), rows summing to 1. A
    molecule of a gene with p = 0 makes it infinite.
    """
    held_out = sp.coo_matrix(held_out)
    p = np.asarray(composition)[held_out.row, held_out.col].astype(np.float64)
    with np.errstate(divide="ignore"):
        return float(-(held_out.data @ np.log(p)) / held_out.data.sum())


def poisson_deviance(held_out, composition: np.ndarray) -> float:
    """Return the mean over entries of 2 (x log(x / mu) - (x - mu)), mu = p times the cell's held-out depth.

    Arguments as in :func:`nll_molecule`. The entries with x = 0 contribute 2 mu, so only the others are visited.
    """
    held_out = sp.coo_matrix(held_out)
    composition = np.asarray(composition)
    depth = np.asarray(held_out.sum(axis=1), dtype=np.float64).ravel()
    x = held_out.data.astype(np.float64)
    mu = composition[held_out.row, held_out.col] * depth[held_out.row]
    seen = x > 0
    with np.errstate(divide="ignore"):
        log_terms = x[seen] @ np.log(x[seen] / mu[seen])
    expected = depth @ composition.sum(axis=1, dtype=np.float64)
    return float(2 * (log_terms - x.sum() + expected) / composition.size)


def mse_log(held_out, expected_log: np.ndarray) -> float:
    """Return the mean squared error of log1p(CP10k) of the held-out counts.

    ``expected_log`` (n_cells, n_genes) is the posterior predictive mean of that very quantity at the held-out depth:
    the logarithm of the mean rate is a different, larger number, and scores badly here.
    """
    from scidiff.data.scaling import log1p_cp10k

    observed = sp.csr_matrix(log1p_cp10k(sp.csr_matrix(held_out))).toarray()
    return float(np.mean((observed - np.asarray(expected_log)) ** 2))


# --- directions ------------------------------------------------------------------------------------------------------


def cross_boundary_direction(
    points: np.ndarray,
    velocity: np.ndarray,
    labels: Sequence[str],
    transitions: Sequence[tuple[str, str]],
    *,
    neighbors: np.ndarray,
) -> dict[tuple[str, str], float]:
    """Return how well cells at a boundary that is crossed one way point across it: 1 straight, 0 along, -1 back.

    For each (source, target) of ``transitions`` the mean over cells i of the source, of the mean over their neighbours
    j in the target, of cos(velocity_i, x_j - x_i); NaN where no cell has such a neighbour. Qiao & Huang (2021), CBDir.

    ``points``, ``velocity``: in the same coordinates, shape (n_cells, n_dimensions); ``neighbors``: of each cell, shape
    (n_cells, k).
    """
    kinds = np.asarray(labels).astype(str)
    speed = np.linalg.norm(velocity, axis=1)
    found = {}
    for source, target in transitions:
        values = []
        for i in np.flatnonzero(kinds == source):
            across = neighbors[i][kinds[neighbors[i]] == target]
            if len(across) and speed[i] > 0:
                step = points[across] - points[i]
                length = np.maximum(np.linalg.norm(step, axis=1), 1e-12)
                values.append(np.mean(step @ velocity[i] / (length * speed[i])))
        found[source, target] = float(np.mean(values)) if values else float("nan")
    return found


# --- rankings -------------------------------------------------------------------------------------------------------


def pds(d_pred: np.ndarray, d_true: np.ndarray, *, targets: Sequence[int | None] | None = None) -> np.ndarray:
    """Return the discrimination score of every perturbation, shape (n_perturbations,): 1 is best, 0.5 chance.

    1 - rank / P, rank = how many of the P true effects are nearer (L1) to the prediction than its own; a tie counts
    half, a prediction that is not finite is worse than all. ``d_pred``, ``d_true``: (n_perturbations, n_genes), rows
    in the same order. ``targets``: position of each perturbation's target gene, which is left out (it is changed by
    construction); None leaves nothing out. Metric of the Virtual Cell Challenge (2025).
    """
    d_pred, d_true = np.asarray(d_pred, dtype=np.float64), np.asarray(d_true, dtype=np.float64)
    n = len(d_true)
    scores = np.zeros(n)
    for i in range(n):
        gap = np.abs(d_true - d_pred[i])
        if targets is not None and targets[i] is not None:
            gap[:, targets[i]] = 0
        distance = gap.sum(axis=1)
        own, others = distance[i], np.delete(distance, i)
        rank = np.sum(others < own) + 0.5 * np.sum(others == own) if np.isfinite(own) else n - 1
        scores[i] = 1 - rank / n
    return scores


def true_ranks(scores: np.ndarray, truth: Sequence[int]) -> np.ndarray:
    """Return the rank (1 = best) of the true label of every query, shape (n_queries,).

    ``scores`` (n_queries, n_labels), larger is better; ``truth`` the position of each query's true label. Labels that
    tie with the true one rank before it, and NaN ranks last: a method cannot win by saying nothing.
    """
    scores = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    own = scores[np.arange(len(scores)), np.asarray(truth)]
    return np.sum(scores >= own[:, None], axis=1)


def recall_at_k(scores: np.ndarray, truth: Sequence[int], k: int) -> float:
    """Return the share of queries whose true label is among the ``k`` best. Arguments as in :func:`true_ranks`."""
    return float(np.mean(true_ranks(scores, truth) <= k))


def mrr(scores: np.ndarray, truth: Sequence[int]) -> float:
    """Return the mean reciprocal rank of the true label. Arguments as in :func:`true_ranks`."""
    return float(np.mean(1 / true_ranks(scores, truth)))


def ndcg(scores: np.ndarray, truth: Sequence[int]) -> float:
    """Return the mean normalised discounted cumulative gain, one true label a query (Järvelin & Kekäläinen 2002).

    Arguments as in :func:`true_ranks`; a tie ranks against the true label, as there.
    """
    return float(np.mean(discounted(true_ranks(scores, truth))))


def discounted(ranks: np.ndarray) -> np.ndarray:
    """Return what finding the one true label at these ranks (1 = best) is worth, 1 / log2(1 + rank)."""
    return 1 / np.log2(1 + np.asarray(ranks, dtype=np.float64))


def ece(confidence: np.ndarray, right: np.ndarray, *, bins: int = 10) -> float:
    """Return the expected calibration error: the mean gap of confidence and share of right answers over equal bins.

    ``confidence`` from 0 to 1 of each answer, ``right`` whether it is true, shape (n_answers,). Bins count by their
    answers (Naeini et al. 2015). Even a calibrated confidence has an error above 0 where answers are few.
    """
    confidence, right = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
