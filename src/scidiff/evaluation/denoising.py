"""Does denoising predict molecules it has not seen? Molecular cross-validation of any denoiser.

Every molecule of every cell goes to one of two sides by a coin (Batson, Royer & Webber 2019). The sides are independent
given the cell's true composition, so the side a method never saw judges it, without any ground truth:

    kept x1 -> denoiser -> composition p,      nll_molecule = - sum x2 log p / sum x2,   x2 the held-out molecules

A denoiser is whatever has the two members of :class:`Denoiser`. Its composition is its posterior mean of the rates;
what it expects of log1p(CP10k) at the held-out depth is another quantity, the posterior predictive mean, and scored as
such (the logarithm of a mean rate is no mean of logarithms).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.errors import InputError

BLOCK = 256  # cells at a time where an array per entry is needed in double precision
SERIES_UP_TO = 30.0  # expected molecules; above it the moment expansion is exact to 2e-5
MEANS = (0.0, 0.05, 0.5, 2.0, 8.0, SERIES_UP_TO)  # entries of similar mean need equally many terms of the series


@dataclass(frozen=True, eq=False)
class Denoised:
    """What a denoiser says about the cells it was shown.

    Parameters
    ----------
    composition
        Predicted rates, float32, shape (n_cells, n_genes), rows sum to 1.
    predictive_log
        E[log(1 + 10^4 k / held-out depth)] of the held-out counts k, same shape. None: computed from the composition,
        as if it were known exactly (:func:`expected_log`).
    note
        What the reader of a table should know, such as the settings chosen.
    """

    composition: np.ndarray = field(repr=False)
    predictive_log: np.ndarray | None = field(default=None, repr=False)
    note: str = ""

    def __post_init__(self) -> None:
        p = np.asarray(self.composition, dtype=np.float32)
        object.__setattr__(self, "composition", p)
        if p.ndim != 2 or not (np.isfinite(p).all() and (p >= 0).all()):
            raise InputError("a composition needs finite rates from 0, one row per cell and one column per gene")
        if np.abs(p.sum(axis=1, dtype=np.float64) - 1).max(initial=0) > 1e-3:
            raise InputError("the rows of a composition must sum to 1; divide each cell by its total")
        if self.predictive_log is not None and np.shape(self.predictive_log) != p.shape:
            raise InputError(f"predictive_log has shape {np.shape(self.predictive_log)}, the composition {p.shape}")


class Denoiser(Protocol):
    """A method under test."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def fit_predict(self, kept: sparse.csr_matrix, *, held_depth: np.ndarray, seed: int) -> Denoised:
        """Return the rates behind ``kept``, integer counts as csr float32 (n_cells, n_genes).

        ``held_depth``: how many molecules of each cell were held out, shape (n_cells,), for the predictive mean alone.
        Raise ImportError where a package is missing and InputError where the method cannot be used on these cells: the
        benchmark then reports the reason.
        """
        ...


def expected_log(composition: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return E[log(1 + 10^4 k / depth)], k ~ Binomial(depth, p), float32, shape (n_cells, n_genes).

    Exact sum over k up to a mean of 30 molecules, beyond it the expansion in central moments up to the fourth; error
    below 1e-4 everywhere. Cells of depth 0 give 0.

    Parameters
    ----------
    composition
        p, shape (n_cells, n_genes).
    depth
        Molecules of each cell, shape (n_cells,).
    """
    depth = np.asarray(depth, dtype=np.float64)
    result = np.empty(composition.shape, dtype=np.float32)
    for start in range(0, len(result), BLOCK):
        rows = slice(start, start + BLOCK)
        p = np.clip(composition[rows].astype(np.float64), 0, 1 - 1e-7)  # the odds of p = 1 are infinite
        n = np.broadcast_to(depth[rows, None], p.shape)
        mean, block = n * p, np.zeros(p.shape)
        for low, high in pairwise(MEANS):
            chosen = (mean > low) & (mean <= high)
            block[chosen] = _by_series(p[chosen], n[chosen], high)
        chosen = mean > SERIES_UP_TO
        block[chosen] = _by_moments(p[chosen], n[chosen])
        result[rows] = block
    return result


def nll_per_cell(composition: np.ndarray, held: sparse.csr_matrix) -> np.ndarray:
    """Return nats per held-out molecule of each cell, shape (n_cells,); NaN where nothing was held out.

    The mean weighted by held-out depth is ``nll_molecule``. Compare two methods by their difference in each cell: cells
    are independent, and most of the spread between them is shared by all methods.
    """
    held = sparse.coo_matrix(held)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -held.data * np.log(composition[held.row, held.col].astype(np.float64))
        return np.bincount(held.row, surprise, minlength=held.shape[0]) / _depth(held)


def score_denoised(denoised: Denoised, held: sparse.csr_matrix) -> dict[str, float]:
    """Return the scores on held-out counts (n_cells, n_genes), less is better in all.

    ``nll_molecule`` (nats per molecule) with its standard error over cells ``nll_molecule_se``, ``poisson_deviance``
    (mean over entries) and ``mse_log`` (log1p(CP10k) of the held-out counts against the predictive mean).
    """
    from scidiff.evaluation.metrics import mse_log, nll_molecule, poisson_deviance

    p = denoised.composition
    if p.shape != held.shape:
        raise InputError(f"the composition has shape {p.shape}, the held-out counts {held.shape}; they must agree")
    depth = _depth(held)
    nll = nll_molecule(held, p)
    off = np.where(depth > 0, depth * (nll_per_cell(p, held) - nll), 0)  # of a ratio of sums over independent cells
    predictive = denoised.predictive_log if denoised.predictive_log is not None else expected_log(p, depth)
    return {
        "nll_molecule": nll,
        "nll_molecule_se": float(np.sqrt(off @ off) / depth.sum()),
        "poisson_deviance": poisson_deviance(held, p),
        "mse_log": mse_log(held, predictive),
    }


METRICS = ("nll_molecule", "nll_molecule_se", "poisson_deviance", "mse_log")


def cross_validate(
    counts: sparse.csr_matrix, denoisers: Sequence[Denoiser], *, held_out: float = 0.5, seeds: Sequence[int] = (0, 1, 2)
) -> pd.DataFrame:
    """Return the scores of every denoiser on the same splits: method, split, metric, value, seconds, note.

    One row per method, split and metric, in the order given. ``seconds`` is the time of ``fit_predict``. A method that
    lacks its package, or cannot be used on these cells, has NaN for a value and the reason in ``note``.

    Parameters
    ----------
    counts
        Integer counts, shape (n_cells, n_genes).
    denoisers
        Methods to score, such as :func:`baseline_denoisers` returns.
    held_out
        Chance that a molecule is held out.
    seeds
        One split each; the seed is given to the methods too.

    Raises
    ------
    InputError
        ``counts`` are not counts, nothing would be held out, or two methods have one name.
    """
    from scidiff.data.molecules import split_molecules

    counts = sparse.csr_matrix(counts)
    if counts.nnz == 0 or counts.data.min() < 0 or np.any(counts.data != np.rint(counts.data)):
        raise InputError("molecules can be held out of integer counts only; pass raw counts with molecules in them")
    if not 0 < held_out < 1:
        raise InputError(f"held_out={held_out}: both sides need molecules, give a share between 0 and 1")
    names = [denoiser.name for denoiser in denoisers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two denoisers are called {twice[0]!r}; give each its own name")
    rows = []
    for seed in seeds:
        kept, held = split_molecules(counts, held_out=held_out, seed=seed)
        depth = _depth(held)
        for denoiser in denoisers:
            start = time.perf_counter()
            try:
                denoised = denoiser.fit_predict(kept.copy(), held_depth=depth, seed=seed)
            except (ImportError, InputError) as error:
                seconds, scores, note = np.nan, dict.fromkeys(METRICS, np.nan), str(error)
            else:
                seconds = time.perf_counter() - start
                scores, note = score_denoised(denoised, held), denoised.note
            rows += [(denoiser.name, seed, metric, value, seconds, note) for metric, value in scores.items()]
    return pd.DataFrame(rows, columns=["method", "split", "metric", "value", "seconds", "note"])


def _depth(counts) -> np.ndarray:
    """Return molecules per cell, shape (n_cells,), float64."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


def _by_series(p: np.ndarray, n: np.ndarray, highest_mean: float) -> np.ndarray:
    """Return sum over k of Binomial(k; n, p) log(1 + 10^4 k / n); flat arrays, mean n p up to ``highest_mean``."""
    from scipy import stats

    from scidiff.data.scaling import PER

    chance, odds, per = np.exp(n * np.log1p(-p)), p / (1 - p), PER / n
    total = np.zeros_like(p)
    # a binomial has a lighter tail than the Poisson of its mean
    for k in range(1, int(stats.poisson.isf(1e-8, highest_mean)) + 1):
        chance = chance * odds * (np.maximum(n - k + 1, 0) / k)
        total += chance * np.log1p(per * k)
    return total


def _by_moments(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the same by Taylor's formula around the mean."""
    from scidiff.data.scaling import PER

    variance = n * p * (1 - p)
    third = variance * (1 - 2 * p)
    fourth = variance * (3 * variance + 1 - 6 * p * (1 - p))
    at = n / PER + n * p  # log(1 + 10^4 k / n) = log(10^4 / n) + log(n / 10^4 + k)
    return np.log(at * PER / n) - variance / (2 * at**2) + third / (3 * at**3) - fourth / (4 * at**4)
