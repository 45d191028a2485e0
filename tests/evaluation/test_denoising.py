"""Molecular cross-validation: predictive means against brute force, scores with known answers, one split for all."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from scidiff.data.molecules import split_molecules
from scidiff.errors import InputError
from scidiff.evaluation.denoising import (
    METRICS,
    Denoised,
    cross_validate,
    expected_log,
    nll_per_cell,
    score_denoised,
)
from scidiff.evaluation.metrics import nll_molecule

N_CELLS, N_GENES = 250, 40


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def population(rng) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts of unequal depth and the true composition of each cell."""
    p = rng.dirichlet(np.geomspace(0.05, 5, N_GENES), N_CELLS)
    depth = rng.integers(20, 400, N_CELLS)
    counts = np.array([rng.multinomial(n, q) for n, q in zip(depth, p, strict=True)])
    return sparse.csr_matrix(counts.astype(np.float32)), p


@dataclass(eq=False)
class Says:
    """A denoiser with a given answer, which remembers what it was shown and spoils it for the next one."""

    name: str
    composition: np.ndarray
    seen: list = field(default_factory=list)

    def fit_predict(self, kept, *, held_depth, seed):
        self.seen.append((kept.copy(), held_depth.copy(), seed))
        kept.data[:] = 0
        return Denoised(self.composition, note="as given")


class Fails:
    def __init__(self, name: str, error: Exception):
        self.name, self.error = name, error

    def fit_predict(self, kept, *, held_depth, seed):
        raise self.error


# --- predictive means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 7, 60, 150, 1000, 20000])
def test_expected_log_equals_the_sum_over_all_counts(depth):
    """From 10^-4 expected molecules to all molecules in one gene."""
    mean = np.append(np.geomspace(1e-4, min(depth, 3000) * 0.9999, 120), [0, depth])
    p = mean / depth
    k = np.arange(depth + 1)
    true = [stats.binom.pmf(k, depth, q) @ np.log1p(1e4 * k / depth) for q in p]
    found = expected_log(p[None], np.array([depth]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], true, atol=1e-4)


def test_expected_log_uses_the_depth_of_each_cell(rng):
    """Cells in any order and number, also without molecules."""
    p = rng.dirichlet(np.full(N_GENES, 0.1), 600)
    depth = rng.integers(0, 200, 600)
    depth[0] = 0
    together = expected_log(p, depth)
    for i in (0, 255, 256, 599):
        np.testing.assert_array_equal(together[i], expected_log(p[[i]], depth[[i]])[0])
    assert not together[0].any()


def test_a_predictive_mean_scores_better_than_the_log_of_the_mean(rng):
    counts, p = population(rng)
    _, held = split_molecules(counts, held_out=0.5, seed=0)
    mean = score_denoised(Denoised(p), held)["mse_log"]
    log_of_mean = score_denoised(Denoised(p, predictive_log=np.log1p(1e4 * p)), held)["mse_log"]
    assert mean < 0.8 * log_of_mean


# --- scores -----------------------------------------------------------------------------------------------------------


def test_nll_per_cell_averages_to_the_score(rng):
    counts, p = population(rng)
    counts = sparse.csr_matrix(sparse.vstack([counts, sparse.csr_matrix((1, N_GENES))]))
    p = np.vstack([p, p[:1]])
    each, depth = nll_per_cell(p, counts), np.asarray(counts.sum(axis=1)).ravel()
    assert np.isnan(each[-1])
    assert np.average(each[:-1], weights=depth[:-1]) == pytest.approx(nll_molecule(counts, p))
    by_hand = -counts[3].toarray()[0] @ np.log(p[3]) / depth[3]
    assert each[3] == pytest.approx(by_hand)


def test_standard_error_equals_the_bootstrap_over_cells(rng):
    counts, _ = population(rng)
    p = np.tile(np.full(N_GENES, 1 / N_GENES) * np.linspace(0.5, 1.5, N_GENES), (N_CELLS, 1))
    found = score_denoised(Denoised(p), counts)["nll_molecule_se"]
    picks = rng.integers(0, N_CELLS, (400, N_CELLS))
    bootstrap = np.std([nll_molecule(counts[pick], p[pick]) for pick in picks])
    assert found == pytest.approx(bootstrap, rel=0.15)


def test_known_scores():
    """Uniform composition: log of the number of genes, whatever was observed; deviance and mse by hand."""
    held = sparse.csr_matrix(np.array([[2.0, 0], [1, 1]]))
    found = score_denoised(Denoised(np.full((2, 2), 0.5)), held)
    assert list(found) == list(METRICS)
    assert found["nll_molecule"] == pytest.approx(np.log(2))
    assert found["nll_molecule_se"] == pytest.approx(0, abs=1e-9)
    # cell 1: mu 1, 1 against 2, 0 -> 2 (2 log 2 - 1) + 2; cell 2 is predicted exactly
    assert found["poisson_deviance"] == pytest.approx((2 * (2 * np.log(2) - 1) + 2) / 4)
    one, two = np.log1p(5000), np.log1p(10000)
    expected = one / 2 + two / 4  # Binomial(2, 1/2)
    mse = ((two - expected) ** 2 + expected**2 + 2 * (one - expected) ** 2) / 4
    assert found["mse_log"] == pytest.approx(mse, rel=1e-5)


def test_what_is_no_composition_is_refused():
    with pytest.raises(InputError, match="sum to 1"):
        Denoised(np.full((2, 2), 0.4))
    with pytest.raises(InputError, match="finite rates"):
        Denoised(np.array([[np.nan, 1]]))
    with pytest.raises(InputError, match="finite rates"):
        Denoised(np.array([[-0.5, 1.5]]))
    with pytest.raises(InputError, match="predictive_log has shape"):
        Denoised(np.full((2, 2), 0.5), predictive_log=np.zeros((2, 3)))
    with pytest.raises(InputError, match="must agree"):
        score_denoised(Denoised(np.full((2, 2), 0.5)), sparse.csr_matrix((3, 2)))


# --- cross-validation -------------------------------------------------------------------------------------------------


def test_the_truth_wins(rng):
    """Over the composition of all cells, and over the truth pulled a tenth towards it."""
    counts, p = population(rng)
    flat = np.tile(p.mean(axis=0), (N_CELLS, 1))
    table = cross_validate(counts, [Says("flat", flat), Says("near", 0.9 * p + 0.1 * flat), Says("truth", p)])
    scores = table.pivot_table(index="method", columns=["split", "metric"], values="value")
    for seed in (0, 1, 2):
        for metric in ("nll_molecule", "poisson_deviance", "mse_log"):
            assert scores.loc["truth", (seed, metric)] < scores.loc["near", (seed, metric)]
            assert scores.loc["near", (seed, metric)] < scores.loc["flat", (seed, metric)]


def test_all_methods_see_the_same_split(rng):
    counts, p = population(rng)
    methods = [Says("a", p), Says("b", p)]
    table = cross_validate(counts, methods, held_out=0.3, seeds=(5, 6))
    for (kept_a, depth_a, seed_a), (kept_b, depth_b, seed_b) in zip(methods[0].seen, methods[1].seen, strict=True):
        assert (kept_a != kept_b).nnz == 0  # although the first method spoilt its copy
        assert seed_a == seed_b
        np.testing.assert_array_equal(depth_a, depth_b)
        np.testing.assert_array_equal(depth_a, np.asarray((counts - kept_a).sum(axis=1)).ravel())
        assert depth_a.sum() / counts.sum() == pytest.approx(0.3, abs=0.02)
    assert (methods[0].seen[0][0] != methods[0].seen[1][0]).nnz > 0
    values = table.pivot(index=["split", "metric"], columns="method", values="value")
    np.testing.assert_array_equal(values["a"], values["b"])


def test_the_table_is_tidy_and_names_who_is_missing(rng):
    counts, p = population(rng)
    missing = Fails("magic", ImportError("MAGIC needs its package"))
    table = cross_validate(counts, [missing, Says("said", p), Fails("few", InputError("too few cells"))], seeds=(4,))
    assert list(table.columns) == ["method", "split", "metric", "value", "seconds", "note"]
    assert list(table["method"].unique()) == ["magic", "said", "few"]
    assert list(table["metric"]) == [*METRICS] * 3
    absent = table[table["method"] != "said"]
    assert absent[["value", "seconds"]].isna().all().all()
    assert set(absent["note"]) == {"MAGIC needs its package", "too few cells"}
    there = table[table["method"] == "said"]
    assert there["value"].notna().all()
    assert (there["seconds"] >= 0).all()
    assert set(there["note"]) == {"as given"}
    assert not table.duplicated(["method", "split", "metric"]).any()
    assert isinstance(table, pd.DataFrame)


def test_mistakes_in_a_method_are_not_swallowed(rng):
    with pytest.raises(ZeroDivisionError):
        cross_validate(population(rng)[0], [Fails("bug", ZeroDivisionError())], seeds=(0,))


def test_input_that_cannot_be_split_is_refused(rng):
    counts, p = population(rng)
    for bad in (counts * 0.5, -counts, sparse.csr_matrix((3, 3))):
        with pytest.raises(InputError, match="integer counts"):
            cross_validate(bad, [Says("a", p)])
    with pytest.raises(InputError, match="held_out=1"):
        cross_validate(counts, [Says("a", p)], held_out=1)
    with pytest.raises(InputError, match="two denoisers are called 'a'"):
        cross_validate(counts, [Says("a", p), Says("a", p)])
