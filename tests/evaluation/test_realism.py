"""Realism: real cells pass as real, and each way of not being real is seen by its own number."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scidiff.data.scaling import log1p_cp10k
from scidiff.evaluation.realism import MIN_LIKE, realism

N_GENES = 60
rng = np.random.default_rng(0)
TYPES = np.exp(rng.normal(0, 1, (3, N_GENES)))


def cells(kind: int, n: int, *, seed: int, factor: np.ndarray | float = 1.0, depth: float = 800) -> np.ndarray:
    """log1p(CP10k) of cells of a type whose rates vary along two programs."""
    own = np.random.default_rng(seed)
    programs = np.random.default_rng(1).normal(0, 0.3, (2, N_GENES))
    rate = TYPES[kind] * factor * np.exp(own.normal(size=(n, 2)) @ programs)
    return log1p_cp10k(own.poisson(depth * rate / rate.sum(axis=1, keepdims=True)).astype(np.float32))


REAL = np.concatenate([cells(kind, 200, seed=kind) for kind in range(3)])
LIKE = np.arange(200)


def test_real_cells_are_real():
    told = realism(cells(0, 200, seed=9), REAL, LIKE)
    assert told["distance"] == pytest.approx(1, abs=0.1)
    assert told["novelty"] == pytest.approx(0.05, abs=0.05)
    assert told["diversity"] == pytest.approx(1, abs=0.1)
    assert told["auc"] == pytest.approx(0.5, abs=0.1)
    sparse_told = realism(sparse.csr_matrix(cells(0, 200, seed=9)), sparse.csr_matrix(REAL), LIKE)
    assert sparse_told == pytest.approx(told, rel=1e-3)


def test_cells_that_were_moved_are_found_out():
    factor = np.where(np.arange(N_GENES) % 3 == 0, 3.0, 1.0)
    told = realism(cells(0, 200, seed=9, factor=factor), REAL, LIKE)
    assert told["distance"] > 1.3
    assert told["novelty"] > 0.3
    assert told["auc"] > 0.95


def test_cells_of_another_type_are_real_but_not_like_these():
    told = realism(cells(1, 200, seed=9), REAL, LIKE)
    nearest = realism(cells(1, 200, seed=9), REAL, 200 + LIKE)
    assert nearest["distance"] == pytest.approx(1, abs=0.15)
    assert nearest["auc"] == pytest.approx(0.5, abs=0.1)
    assert told["auc"] > 0.99


def test_copies_of_one_cell_have_no_diversity():
    told = realism(np.repeat(REAL[:1], 100, axis=0), REAL, LIKE)
    assert told["diversity"] == pytest.approx(0, abs=1e-3)
    assert told["distance"] == pytest.approx(0, abs=1e-2)
    assert told["novelty"] == 0


def test_cells_that_are_too_uniform_are_found_out():
    """Means of ten cells lie in the middle of the real ones."""
    middle = cells(0, 1000, seed=9).reshape(100, 10, N_GENES).mean(axis=1)
    told = realism(middle, REAL, LIKE)
    assert told["diversity"] < 0.6
    assert told["auc"] > 0.9


@pytest.mark.parametrize("n", [1, MIN_LIKE - 1])
def test_few_real_cells_tell_of_distance_only(n):
    told = realism(cells(0, 50, seed=9), REAL, LIKE[:n])
    assert np.isfinite(told["distance"])
    assert np.isnan(told["diversity"])
    assert np.isnan(told["auc"])


def test_few_designed_cells_and_few_genes_have_numbers_too():
    told = realism(cells(0, 1, seed=9), REAL, LIKE)
    assert np.isfinite(told["distance"])
    assert np.isnan(told["auc"])
    assert np.isfinite(realism(REAL[:50, :2], REAL[:, :2], LIKE)["distance"])
