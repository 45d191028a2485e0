"""Trust goes to genes that follow the state of a cell, and not to those that only follow its depth or themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.data.scaling import fit_pca, log1p_cp10k
from scidiff.training import reliability as module
from scidiff.training.reliability import held_out_t, reliability

N_CELLS, N_GENES, N_MARKERS, BURSTS_TO = 800, 180, 60, 120


def cells(seed: int = 0) -> sparse.csr_matrix:
    """Three kinds of cells that differ in the first 60 genes; the next 60 burst, in any cell; the others are alike."""
    rng = np.random.default_rng(seed)
    share = np.exp(rng.normal(0, 0.5, (3, N_GENES))) / N_GENES
    share[:, N_MARKERS:] = share[:1, N_MARKERS:]
    share = share[rng.integers(3, size=N_CELLS)]
    share[:, N_MARKERS:BURSTS_TO] *= rng.gamma(1, 1, (N_CELLS, BURSTS_TO - N_MARKERS))
    share[:, BURSTS_TO:] *= 10
    return sparse.csr_matrix(rng.poisson(rng.gamma(6, 50, (N_CELLS, 1)) * share), dtype=np.float32)


@pytest.fixture(scope="module")
def trust() -> np.ndarray:
    return reliability(cells(), seed=0)


def test_markers_are_trusted_and_others_are_not(trust):
    assert trust.shape == (N_GENES,)
    assert trust.dtype == np.float32
    assert ((trust >= 0) & (trust <= 1)).all()
    assert trust[:N_MARKERS].mean() > 0.6
    assert trust[N_MARKERS:BURSTS_TO].mean() < 0.15


def test_a_gene_does_not_vouch_for_itself(trust):
    """Components made of single bursting genes predict these genes, unless their own share is taken out."""
    x = log1p_cp10k(cells())
    pca = fit_pca(x, module.N_COMPONENTS, seed=0)
    genes = np.arange(N_MARKERS, BURSTS_TO)
    own, whole = x[:, genes].toarray(), pca.transform(x) @ pca.components_[:, genes]
    agreement = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(own.T, whole.T, strict=True)])
    alone = genes[agreement > 0.7]
    assert len(alone) > 8
    assert np.median(trust[alone]) < 0.1


def test_t_is_that_of_explicit_regressions():
    """Gene by gene with numpy's least squares, on the components without the gene."""
    rng = np.random.default_rng(2)
    fold = rng.integers(module.N_FOLDS, size=300)
    x = rng.normal(size=(300, 12)) + rng.normal(size=(300, 1))
    axes = [np.linalg.qr(rng.normal(size=(12, 4)))[0].T for _ in range(module.N_FOLDS)]
    gain, square = np.zeros(12), np.zeros(12)
    for gene in range(12):
        for i in range(module.N_FOLDS):
            z = x @ axes[i].T - np.outer(x[:, gene], axes[i][:, gene])
            slope = np.linalg.lstsq(z[fold != i], x[fold != i, gene], rcond=None)[0]
            agreement = x[fold == i, gene] * (z[fold == i] @ slope)
            gain[gene] += agreement.sum()
            square[gene] += (agreement**2).sum()
    assert held_out_t(x, [(x @ a.T, a, fold == i) for i, a in enumerate(axes)]) == pytest.approx(
        gain / np.sqrt(square), rel=1e-3
    )


def test_few_cells_cannot_say_and_seeds_repeat(trust):
    assert (reliability(cells()[:50], seed=0) == 1).all()
    assert np.array_equal(trust, reliability(cells(), seed=0))


def test_a_model_keeps_its_trust_and_draws_with_it(tmp_path):
    adata = AnnData(cells()[:200])
    model = sd.ScIDiff.fit(adata, width=16, n_blocks=1, denoise_only=True, config=sd.TrainConfig(steps=5))
    again = sd.ScIDiff.load(model.save(tmp_path / "model"))
    assert np.array_equal(model.trust, again.trust)
    assert np.array_equal(model.trust, reliability(adata.X, seed=0))
    draws = [one.denoise(adata, draws=1, seed=1).layers["draw_1"] for one in (model, again)]
    assert (draws[0] != draws[1]).nnz == 0
    # trusting nothing, what is added has the composition of all cells
    pooled = np.exp(model.posterior.anchor.base.numpy())
    none = replace(model, trust=torch.zeros(N_GENES)).denoise(adata, draws=1, depth=5000, seed=1)
    added = np.asarray((none.layers["draw_1"] - none.layers["counts"]).sum(axis=0)).ravel()
    assert added / added.sum() == pytest.approx(pooled, rel=0.2, abs=1e-4)
