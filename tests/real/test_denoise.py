"""Denoising real cells: half of their molecules foretell the other half, and draws scatter as they do."""

from __future__ import annotations

import numpy as np
import pytest

from scidiff.benchmarking.denoise import as_anndata, gene_sets, predictive_draws
from scidiff.data.catalog import load
from scidiff.data.molecules import split_molecules
from scidiff.data.scaling import highly_variable_genes, log1p_cp10k
from scidiff.estimator import ScIDiff
from scidiff.evaluation.calibration import calibration
from scidiff.evaluation.denoising import Denoised, score_denoised

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def halves(real_data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCIDIFF_DATA", str(real_data))
        counts = load("kang18").X
    kept, held = split_molecules(counts[:, highly_variable_genes(log1p_cp10k(counts), 2000)], held_out=0.5, seed=0)
    filled = (kept.getnnz(axis=1) > 0) & (held.getnnz(axis=1) > 0)
    return kept[filled], held[filled]


@pytest.fixture(scope="module")
def model(halves):
    return ScIDiff.fit(as_anndata(halves[0]), denoise_only=True, seed=0)


def test_held_out_molecules_are_foretold(model, halves):
    """MAGIC at its best has 3.94 nats and .232, neighbours 3.83 and .203."""
    kept, held = halves
    composition = model.denoise(as_anndata(kept), scales="rate").layers["rate"] / 1e4
    scores = score_denoised(Denoised(composition), held)
    assert scores["nll_molecule"] < 3.66
    assert scores["poisson_deviance"] < 0.160
    assert scores["mse_log"] < 0.350


def test_draws_cover_genes_and_sums_of_genes(model, halves):
    kept, held = halves
    rows = np.random.default_rng(0).permutation(kept.shape[0])[:400]
    draws = predictive_draws(model, kept[rows], np.asarray(held[rows].sum(axis=1)).ravel(), n=12, seed=0)
    found = calibration(draws, held[rows], gene_sets=gene_sets(kept, seed=0), seed=0)
    nominal = np.array([0.50, 0.80, 0.95])
    covered = found[["coverage_50", "coverage_80", "coverage_95"]]
    # three points, and as much as 15 sums in 400 cells vary by chance
    assert (abs(covered - nominal) < 0.03 + 0.01).all(axis=None), covered
