"""Which transcription factors stand behind a change of expression: its regression on their targets.

The univariate linear model (ULM; Badia-i-Mompel et al. 2022) regresses the effect ``e_g`` of the genes on the weights
``w_g`` of one TF's targets (0 elsewhere); the score is the t-value of the slope. The multivariate one (MLM) regresses
on all TFs at once, which tells apart TFs that share targets, at the price of noise: it asks what a TF explains that no
other one can. TFs that act together on the same genes (STAT1, STAT2 and IRF9 after interferon) are set against each
other by it, so that it stands beside the others and has no part in the consensus.

**Rank.** Regression takes targets for a draw from all genes. They are not: networks list genes that are studied, and
these respond to most things, so that regulons of them stand out after any treatment. TFs are therefore ranked by their
targets' effects against those in rewired networks, where every TF keeps its weights and every gene ``g`` is as likely
a target as it is in the network, by the ``k_g`` TFs that list it (Maslov & Sneppen 2002)::

    q_g = (1 + k_g) / Σ (1 + k_h)        m = Σ q_g e_g        s² = Σ q_g (e_g - m)²
    rewired = Σ w_g (e_g - m) / (s sqrt(Σ w_g²))

It has mean 0 and variance 1 over targets drawn by ``q``. Genes count once more than they are listed, lest in a small
network a TF be set against itself.

**p-values.** The t-value takes genes as independent. They are not: what is measured of them fluctuates together, cell
by cell, and of control against control one TF in eleven is "significant" at 5 %. Every slope is a sum ``a'e`` over
genes; with the cells that the effect was measured on, its variance is known without that assumption::

    var(a'e) = var_treated(a'x) / n_treated + var_control(a'x) / n_control  +  |a|² max(s² - t², 0)

The first two terms are sampling noise, from the variance of ``a'x`` over cells, all correlations included. The last is
what true effects, independent of the regulon, add: ``s²`` is the residual variance of the effect over genes, ``t²`` the
part of it that is noise. Without cells p-values are those of the t-value, and too small.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.errors import InputError
from scidiff.integration.activity import activity_of
from scidiff.integration.ranking import consensus_rank
from scidiff.integration.regulons import MIN_TARGETS, size_of, weights_of

MIN_DETECTED = 0.05  # of cells: genes seen in fewer do not change measurably and only dilute
N_LEADING = 10
BLOCK = 2000  # cells whose projections on all TFs are in memory at once

Matrix: TypeAlias = sparse.csr_matrix | np.ndarray


def rank_regulators(
    effect: pd.Series,
    network: pd.DataFrame,
    *,
    cells: tuple[Matrix, Matrix] | None = None,
    leave_out: Iterable[str] = (),
    min_targets: int = MIN_TARGETS,
    min_detected: float = MIN_DETECTED,
    multivariate: bool = True,
    per_cell: bool = True,
) -> pd.DataFrame:
    """Return the TFs of a network, those with the largest activity change of either sign first, one row each.

    Columns: ``kind`` ("tf"); ``name``; ``rank`` by the size of ``rewired``; ``rewired``, the targets' effect against
    that in rewired networks, in its standard deviations there, positive where the TF is more active, as all scores;
    ``ulm`` and ``mlm``, t-values; with ``cells`` also ``aucell``, Welch's t of the activity per cell, treated against
    control (:mod:`~scidiff.integration.activity`); ``consensus_rank`` over rewired and aucell
    (:mod:`~scidiff.integration.ranking`), the sign of rewired being the one to agree with; ``p_value``, two-sided, and
    ``fdr`` (Benjamini & Hochberg 1995) of ulm: whether the targets moved otherwise than other genes do;
    ``leading_genes``, the targets that speak most for the sign of ulm; ``n_targets``; ``source``: what the p-value
    rests on, "cells" or "genes".

    Parameters
    ----------
    effect
        Mean difference of every gene, log1p(CP10k); genes are its index.
    network
        Columns ``source``, ``target``, ``weight`` (:func:`~scidiff.integration.networks.read_network`).
    cells
        Treated and control cells that the effect is the mean difference of, log1p(CP10k), each (n_cells, n_genes) with
        the genes of ``effect`` in its order. For the p-values, and to leave out genes that are hardly seen.
    leave_out
        Genes that are no evidence: a knocked-out gene, genes that were steered.
    min_targets
        A TF with fewer targets among the genes is left out.
    min_detected
        Share of all ``cells`` in which a gene must be seen.
    multivariate
        Whether to fit the MLM, the slower part; False leaves out its column.
    per_cell
        Whether to score single cells where there are some; False leaves out the column ``aucell``.

    Raises
    ------
    InputError
        The effect has values that are no finite numbers or a gene twice, ``cells`` do not fit it, or no TF has enough
        targets among its genes.
    """
    _check(effect, cells)
    keep = ~effect.index.isin(list(leave_out))
    groups = [sparse.csr_matrix(group, dtype=float) for group in cells or ()]
    if groups:
        seen = np.sum([group.getnnz(axis=0) for group in groups], axis=0)
        keep &= seen >= min_detected * sum(group.shape[0] for group in groups)
        groups = [group[:, np.flatnonzero(keep)] for group in groups]
    genes, e = effect.index[keep], effect.to_numpy(dtype=float)[keep]
    names, weights = weights_of(network, genes, min_targets)
    e = e - e.mean()

    ulm = _ulm(e, weights)
    from scipy.stats import false_discovery_control, t

    z, freedom = _studentised(ulm, groups, weights) if groups else (ulm.t, len(genes) - 2)
    p_value = 2 * t.sf(np.abs(z), freedom)
    rewired = _rewired(e, weights)
    columns = {"rewired": rewired, "ulm": ulm.t}
    if multivariate:
        columns["mlm"] = _mlm(e, weights)
    if groups and per_cell:
        columns["aucell"] = _welch(*(activity_of(group, weights) for group in groups))
    agreeing = pd.DataFrame({name: columns[name] for name in ("rewired", "aucell") if name in columns})
    columns["consensus_rank"] = consensus_rank(agreeing.mul(np.sign(rewired), axis=0))
    table = pd.DataFrame({"kind": "tf", "name": names, "rank": 0, **columns, "p_value": p_value})
    table["fdr"] = false_discovery_control(p_value)
    table["leading_genes"] = _leading(e, weights, ulm.t, genes)
    table["n_targets"] = weights.getnnz(axis=0)
    table["source"] = "cells" if groups else "genes"
    table = table.iloc[np.argsort(-np.abs(rewired), kind="stable")].reset_index(drop=True)
    return table.assign(rank=np.arange(1, len(table) + 1))


class Slopes(NamedTuple):
    """Regressions of an effect on one TF each, arrays (n_tfs,).

    ``slope`` a'e with a the weights less their ``mean``; its ``t`` value; ``size`` |a|²; ``residual`` variance of
    genes.
    """

    slope: np.ndarray
    t: np.ndarray
    size: np.ndarray
    residual: np.ndarray
    mean: np.ndarray


def _check(effect: pd.Series, cells: tuple[Matrix, Matrix] | None) -> None:
    if not effect.index.is_unique:
        raise InputError(f"gene {effect.index[effect.index.duplicated()][0]!r} occurs more than once in the effect")
    if not np.isfinite(effect.to_numpy(dtype=float)).all():
        raise InputError("the effect has values that are no finite numbers")
    for group in cells or ():
        if group.shape[0] < 2 or group.shape[1] != len(effect):
            raise InputError(f"cells have shape {group.shape}; at least 2 cells x {len(effect)} genes are needed")


def _ulm(e: np.ndarray, weights: sparse.csc_matrix) -> Slopes:
    """Return the regression of a centred effect on each TF's weights."""
    size = size_of(weights)
    slope = weights.T @ e
    residual = np.maximum(e @ e - slope**2 / size, 1e-300) / (len(e) - 2)
    return Slopes(slope, slope / np.sqrt(size * residual), size, residual, np.asarray(weights.mean(axis=0)).ravel())


def _rewired(e: np.ndarray, weights: sparse.csc_matrix) -> np.ndarray:
    """Return the effect on every TF's targets against that in rewired networks, in standard deviations, (n_tfs,)."""
    share = 1.0 + np.bincount(weights.indices[weights.data != 0], minlength=len(e))
    share /= share.sum()
    e = e - share @ e
    size = np.asarray(weights.multiply(weights).sum(axis=0)).ravel()
    return (weights.T @ e) / np.sqrt(np.maximum(size * (share @ e**2), 1e-300))


def _mlm(e: np.ndarray, weights: sparse.csc_matrix) -> np.ndarray:
    """Return the t-values of the regression of a centred effect on all TFs at once.

    Where TFs have the same targets, or are more than genes, the slopes of least norm are taken.
    """
    x = weights.toarray()
    x -= x.mean(axis=0)
    sizes, axes = np.linalg.eigh(x.T @ x)
    kept = sizes > 1e-10 * sizes.max()
    gram = (axes[:, kept] / sizes[kept]) @ axes[:, kept].T
    slope = gram @ (x.T @ e)
    residual = ((e - x @ slope) ** 2).sum() / max(len(e) - 1 - kept.sum(), 1)
    return slope / np.sqrt(np.maximum(np.diag(gram) * residual, 1e-300))


def _studentised(
    slopes: Slopes, groups: list[sparse.csr_matrix], weights: sparse.csc_matrix
) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes over their standard errors, and the degrees of freedom (Welch 1947), each (n_tfs,)."""
    noise, noise_of_gene = zip(*(_noise(group, weights, slopes.mean) for group in groups), strict=True)
    true = slopes.size * np.maximum(slopes.residual - sum(noise_of_gene), 0)  # effects that are not the regulon's
    parts = [*noise, true]
    sizes = [*(group.shape[0] for group in groups), weights.shape[0] - 1]
    total = np.maximum(sum(parts), 1e-300)
    inverse = sum((part / total) ** 2 / (n - 1) for part, n in zip(parts, sizes, strict=True))
    return slopes.slope / np.sqrt(total), 1 / np.maximum(inverse, 1e-12)


def _noise(group: sparse.csr_matrix, weights: sparse.csc_matrix, mean: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the sampling variance of every slope by these cells, (n_tfs,), and the mean one of a centred gene."""
    n, n_genes = group.shape
    total, squares, level = np.zeros(len(mean)), np.zeros(len(mean)), []
    for start in range(0, n, BLOCK):
        block = group[start : start + BLOCK]
        sums = np.asarray(block.sum(axis=1)).ravel()
        projected = (block @ weights).toarray() - np.outer(sums, mean)
        total, squares = total + projected.sum(axis=0), squares + (projected**2).sum(axis=0)
        level.append(sums / n_genes)
    slope = np.maximum(squares - total**2 / n, 0) / (n - 1) / n
    means = np.asarray(group.mean(axis=0)).ravel()
    of_genes = (np.asarray(group.multiply(group).sum(axis=0)).ravel() - n * means**2) / (n - 1)
    # centred on the mean of all genes, as the effect is
    return slope, float(of_genes.mean() - np.concatenate(level).var(ddof=1)) / n


def _welch(treated: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Return Welch's t of the columns; 0 where no cell differs from another."""
    error = np.sqrt(sum(group.var(axis=0, ddof=1) / len(group) for group in (treated, control)))
    difference = treated.mean(axis=0) - control.mean(axis=0)
    return np.divide(difference, error, out=np.zeros_like(difference), where=error > 1e-12)


def _leading(e: np.ndarray, weights: sparse.csc_matrix, t: np.ndarray, genes: pd.Index) -> list[str]:
    """Return the targets of every TF that speak most for the sign of its score."""
    leading = []
    for i, sign in enumerate(np.sign(t)):
        column = slice(weights.indptr[i], weights.indptr[i + 1])
        share = sign * weights.data[column] * e[weights.indices[column]]
        best = np.argsort(-share, kind="stable")[:N_LEADING]
        leading.append(",".join(genes[weights.indices[column][best[share[best] > 0]]]))
    return leading
