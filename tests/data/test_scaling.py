"""Scales: closed forms, exact inverses, and that sparse and dense agree."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from scidiff.data.scaling import (
    Standardizer,
    expected_counts,
    fit_pca,
    highly_variable_genes,
    log1p_cp10k,
    overdispersed_genes,
)
from scidiff.errors import InputError

COUNTS = hnp.arrays(
    np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 5000) | st.just(0)
)


@given(COUNTS)
def test_log1p_is_the_formula_and_keeps_zeros(counts):
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    want = np.log1p(1e4 * counts / total)
    x = sparse.csr_matrix(counts)
    before = x.copy()
    got = log1p_cp10k(x)
    np.testing.assert_allclose(got.toarray(), want, rtol=1e-5)
    np.testing.assert_allclose(log1p_cp10k(counts), want, rtol=1e-5)
    assert got.nnz == x.nnz
    assert got.dtype == np.float32
    assert (x != before).nnz == 0


@given(COUNTS)
def test_expected_counts_invert(counts):
    total = counts.sum(axis=1)
    for x in (counts, sparse.csr_matrix(counts)):
        back = expected_counts(log1p_cp10k(x), total)
        back = back.toarray() if sparse.issparse(back) else back
        np.testing.assert_allclose(back, counts, rtol=2e-5, atol=1e-4)
    seen = total > 0
    np.testing.assert_allclose(expected_counts(log1p_cp10k(counts), 1.0).sum(axis=1)[seen], 1, rtol=1e-4)


def test_log1p_agrees_with_scanpy():
    counts = np.random.default_rng(0).poisson(2, (30, 50)).astype(np.float32)
    adata = ad.AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    np.testing.assert_allclose(log1p_cp10k(counts), adata.X, rtol=1e-5)


def test_total_of_genes_left_out():
    counts = np.array([[1, 3, 6], [0, 2, 8]])
    whole = log1p_cp10k(counts)
    np.testing.assert_allclose(log1p_cp10k(counts[:, :2], total=counts.sum(axis=1)), whole[:, :2], rtol=1e-6)
    with pytest.raises(InputError, match="one number for each of 2 cells"):
        log1p_cp10k(counts, total=np.ones(3))
    with pytest.raises(InputError, match="negative"):
        log1p_cp10k(-counts)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (7, 4), elements=st.floats(-100, 100, width=32)))
def test_standardizer_inverts_and_standardizes(x):
    scaler = Standardizer.fit(x)
    z = scaler.transform(x)
    np.testing.assert_allclose(scaler.inverse(z), x, atol=1e-3)
    sd = x.astype(float).std(axis=0)
    varied = sd > 1e-2
    np.testing.assert_allclose(z.mean(axis=0)[varied], 0, atol=2e-2)
    np.testing.assert_allclose(z.std(axis=0)[varied], 1, atol=2e-2)
    assert np.abs(z[:, sd == 0]).max(initial=0) < 1e-3
    again = Standardizer.from_arrays(scaler.to_arrays())
    np.testing.assert_array_equal(again.transform(x), z)
    thin = Standardizer.fit(sparse.csr_matrix(x))
    np.testing.assert_allclose(thin.mean, scaler.mean, atol=1e-4)
    np.testing.assert_allclose(thin.transform(sparse.csr_matrix(x)), thin.transform(x), rtol=1e-6)


def test_standardizer_uses_training_cells_only():
    train = np.random.default_rng(0).normal(5, 2, (500, 3))
    scaler = Standardizer.fit(train)
    np.testing.assert_allclose(scaler.transform(np.full((1, 3), 7.0)), 1, atol=0.15)
    with pytest.raises(InputError, match="sd above 0"):
        Standardizer(mean=np.zeros(2), sd=np.zeros(2))


def test_variable_genes_are_the_planted_ones():
    generator = np.random.default_rng(0)
    x = generator.normal(2, 0.1, (200, 600))
    planted = np.array([3, 17, 180, 400, 599])
    spread = np.repeat(np.log1p([0.43, 12.43]), 100)  # same mean before the log, so the same bin as the others
    x[:, planted] = generator.permuted(np.tile(spread, (5, 1)), axis=1).T
    np.testing.assert_array_equal(highly_variable_genes(x, 5), planted)
    np.testing.assert_array_equal(highly_variable_genes(sparse.csr_matrix(x), 5), planted)
    np.testing.assert_array_equal(highly_variable_genes(x, 999), np.arange(600))
    x[:, 300:] = 0  # ties and genes never seen
    assert len(highly_variable_genes(x, 200)) == 200
    with pytest.raises(InputError, match="0 genes"):
        highly_variable_genes(x, 0)


def test_genes_that_vary_beyond_sampling_are_the_planted_ones():
    generator = np.random.default_rng(0)
    depth = generator.integers(200, 2000, (300, 1))
    rate = generator.gamma(0.3, size=600)
    strong = np.argsort(-rate)[:20]  # in a bin of the mean of their own, and most of them respond
    fold = np.where(np.isin(np.arange(600), strong[:15]) & (np.arange(300) < 150)[:, None], 5.0, 1.0)
    rate = rate * fold
    x = sparse.csr_matrix(generator.poisson(depth * rate / rate.sum(axis=1, keepdims=True)).astype(np.float32))
    np.testing.assert_array_equal(overdispersed_genes(x, 15), np.sort(strong[:15]))
    np.testing.assert_array_equal(overdispersed_genes(x.toarray(), 15), np.sort(strong[:15]))
    dense = x.toarray()
    expected = dense.sum(axis=1, keepdims=True) * dense.sum(axis=0) / dense.sum()
    with np.errstate(invalid="ignore"):  # a gene that nobody has
        residual = (dense - expected) / np.sqrt(expected + expected**2 / 100)
    variance = np.nan_to_num(np.clip(residual, -np.sqrt(300), np.sqrt(300)).var(axis=0))
    np.testing.assert_array_equal(overdispersed_genes(x, 200), np.sort(np.argsort(-variance, kind="stable")[:200]))
    np.testing.assert_array_equal(overdispersed_genes(x, 999), np.arange(600))
    with pytest.raises(InputError, match="0 genes"):
        overdispersed_genes(x, 0)


def test_pca_of_sparse_is_pca_of_dense():
    generator = np.random.default_rng(1)
    x = generator.poisson(1, (80, 30)) * generator.integers(1, 5, 30)
    thin, dense = fit_pca(sparse.csr_matrix(x, dtype=float), 5, seed=0), fit_pca(x.astype(float), 5, seed=3)
    np.testing.assert_allclose(thin.transform(sparse.csr_matrix(x)), dense.transform(x), atol=1e-6)
    centred = x - x.mean(axis=0)
    np.testing.assert_allclose(thin.singular_values_, np.linalg.svd(centred, compute_uv=False)[:5], rtol=1e-8)
    with pytest.raises(InputError, match="30 components"):
        fit_pca(x, 30)
