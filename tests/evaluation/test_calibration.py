"""Calibration: right predictions are found right, wrong ones are found wrong in the right direction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from scidiff.errors import InputError
from scidiff.evaluation.calibration import LEVELS, calibration, coverage, ks_uniform, pit, pit_of_cdf

N_CELLS, N_GENES, N_DRAWS = 400, 60, 19


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def counts_at(rate: np.ndarray, rng, *, sd: float, n: int) -> np.ndarray:
    """Draws of log-normal Poisson counts, shape (n, *rate.shape); ``sd`` of the log rate is what is uncertain."""
    return rng.poisson(rate * np.exp(rng.normal(0, sd, (n, *rate.shape)) - sd**2 / 2))


def rates(rng, low: float, high: float) -> np.ndarray:
    return np.geomspace(low, high, N_GENES) * np.exp(rng.normal(0, 0.3, (N_CELLS, 1)))


@pytest.mark.parametrize(("low", "high"), [(0.003, 0.05), (0.05, 3), (5, 200)])
def test_true_predictions_are_calibrated(rng, low, high):
    """From mostly zeros (98 %) to hundreds: the nominal share is covered, up to four standard errors."""
    rate = rates(rng, low, high)
    u = pit(rng.poisson(rate, (N_DRAWS, *rate.shape)), rng.poisson(rate), seed=0)
    assert ((u > 0) & (u < 1)).all()
    for level, share in coverage(u).items():
        assert share == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / u.size))
    assert ks_uniform(u) < 1.95 / np.sqrt(u.size)  # 1.95: the 99.9th percentile of the Kolmogorov distribution


def test_few_draws_are_no_bias(rng):
    rate = rates(rng, 0.1, 10)
    for n_draws in (1, 2, 5):
        u = pit(rng.poisson(rate, (n_draws, *rate.shape)), rng.poisson(rate), seed=0)
        assert ks_uniform(u) < 1.95 / np.sqrt(u.size)


@pytest.mark.parametrize(("predicted", "true", "direction"), [(0.2, 0.8, -1), (0.8, 0.2, 1)])
def test_too_narrow_and_too_wide_are_told_apart(rng, predicted, true, direction):
    rate = rates(rng, 2, 50)
    u = pit(counts_at(rate, rng, sd=predicted, n=N_DRAWS), counts_at(rate, rng, sd=true, n=1)[0], seed=0)
    found = coverage(u)
    assert all(direction * (found[level] - level) > 0.03 for level in LEVELS)
    assert ks_uniform(u) > 0.03


def test_bias_shows_at_one_end(rng):
    rate = rates(rng, 5, 50)
    u = pit(rng.poisson(1.5 * rate, (N_DRAWS, *rate.shape)), rng.poisson(rate), seed=0)
    assert u.mean() < 0.3  # observed lower than predicted
    assert ks_uniform(u) > 0.2


def test_draws_agree_with_the_distribution_function(rng):
    """Closed form of the limit of many draws, and the ranks by hand."""
    rate = rates(rng, 0.05, 5)
    observed = rng.poisson(rate)
    exact = pit_of_cdf(stats.poisson.cdf(observed - 1, rate), stats.poisson.cdf(observed, rate), seed=3)
    assert ks_uniform(exact) < 1.95 / np.sqrt(exact.size)
    sampled = pit(rng.poisson(rate, (400, *rate.shape)), observed, seed=3)  # the same tie-breaking
    assert np.abs(sampled - exact).max() < 0.15
    assert np.abs(sampled - exact).mean() < 0.015
    # x = 2 among 0, 1, 2, 5: two below, one tie: between ranks 2 and 3 of 0..4
    u = np.array([pit(np.array([0, 1, 2, 5]).reshape(4, 1, 1), np.array([[2]]), seed=s)[0, 0] for s in range(300)])
    assert 2 / 5 < u.min() < 0.42
    assert 0.78 < u.max() < 4 / 5
    np.testing.assert_array_equal(coverage(np.array([0.1, 0.3, 0.5, 0.7, 0.99]), (0.5, 0.95))[0.5], 0.6)


def test_gene_sets_see_correlations_that_single_genes_cannot(rng):
    """Cells share a programme; draws with the right margins but independent genes are too narrow for sums."""
    loading = np.repeat([1.0, 0.0], N_GENES // 2)

    def cells(n, shared):
        shape = (n, N_CELLS, 1) if shared else (n, N_CELLS, N_GENES)
        return rng.poisson(4 * np.exp(0.5 * rng.normal(size=shape) * loading))

    observed = sparse.csr_matrix(cells(1, shared=True)[0])
    sets = [np.arange(N_GENES // 2), np.arange(10, 20)]
    right = calibration((sparse.csr_matrix(d) for d in cells(N_DRAWS, shared=True)), observed, gene_sets=sets, k=40)
    wrong = calibration(cells(N_DRAWS, shared=False), observed, gene_sets=sets, k=40)
    assert list(right.index) == ["highest genes", "gene-set sums"]
    assert right.loc["highest genes", "n"] == 40 * N_CELLS
    assert right.loc["gene-set sums", "n"] == 2 * N_CELLS
    for level in LEVELS:
        column = f"coverage_{100 * level:.0f}"
        # cells are independent, the genes of a cell are not: four standard errors over cells
        tolerance = 4 * np.sqrt(level * (1 - level) / N_CELLS)
        assert (right[column] - level).abs().max() < tolerance
        assert wrong.loc["highest genes", column] == pytest.approx(level, abs=tolerance)
        assert wrong.loc["gene-set sums", column] < level - 0.15
    assert wrong.loc["gene-set sums", "ks"] > 0.1 > right.loc["gene-set sums", "ks"]


def test_highest_genes_are_chosen_by_their_molecules(rng):
    """Only the highest gene is predicted well, so with k = 1 all is well and with k = 2 it is not."""
    observed = rng.poisson([1.0, 30.0, 3.0], (500, 3))
    draws = rng.poisson([9.0, 30.0, 9.0], (N_DRAWS, 500, 3))
    assert calibration(draws, observed, k=1).loc["highest genes", "ks"] < 0.09
    assert calibration(draws, observed, k=2).loc["highest genes", "ks"] > 0.3


def test_errors_name_the_problem():
    with pytest.raises(InputError, match=r"shape \(2, 3\), the observed counts \(2, 2\)"):
        pit(np.zeros((1, 2, 3)), np.zeros((2, 2)), seed=0)
    with pytest.raises(InputError, match="at least one"):
        pit([], np.zeros((2, 2)), seed=0)
    with pytest.raises(InputError, match="1 gene sets have no genes"):
        calibration(np.ones((1, 2, 2)), np.ones((2, 2)), gene_sets=[np.array([], dtype=int)])
