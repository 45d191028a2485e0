"""Spread within conditions: 1 for the same population, the planted factor for cells that differ more or less."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scidiff.evaluation.spread import Spread


def cells(scale: float, *, seed: int, n: int = 1500) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts of two conditions whose cells vary along three programmes of log expression, times ``scale``."""
    programmes = np.random.default_rng(0).normal(0, 0.8, (3, 60))
    rng = np.random.default_rng(seed)
    condition = rng.integers(0, 2, n)
    log_rate = scale * rng.normal(size=(n, 3)) @ programmes + np.where(condition[:, None], 1.5, 0.0) * (
        np.arange(60) < 20
    )
    rate = np.exp(log_rate)
    return sparse.csr_matrix(rng.poisson(3000 * rate / rate.sum(1, keepdims=True)).astype(np.float32)), condition


def test_the_same_population_has_ratio_one():
    real = Spread.of(*cells(1.0, seed=1))
    assert real.ratio(*cells(1.0, seed=2)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("scale", [0.6, 0.8, 1.2])
def test_it_follows_the_planted_spread(scale):
    """In the order and about the size of the planted factor; sequencing noise, shared by all, pulls it towards 1."""
    ratio = Spread.of(*cells(1.0, seed=1)).ratio(*cells(scale, seed=3))
    assert abs(np.log(ratio)) > 0.4 * abs(np.log(scale))
    assert (ratio - 1) * (scale - 1) > 0


def test_differences_between_conditions_do_not_count():
    """The same cells with the conditions shifted further apart have the same spread."""
    counts, condition = cells(1.0, seed=4)
    shifted = counts.toarray()
    shifted[condition == 1, :5] *= 4
    real = Spread.of(counts, condition)
    merged = real.ratio(sparse.csr_matrix(shifted), np.zeros(len(condition)))
    assert real.ratio(sparse.csr_matrix(shifted), condition) < merged
