"""Scales of expression, and what is fitted to them on training cells.

The scale shared by all rooms is ``log1p(CP10k)``, natural logarithm: ``x = log(1 + 10^4 n / N)`` with n the counts of a
gene and N the total of its cell. Zeros stay zeros, so sparse matrices stay sparse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

from scidiff.errors import InputError

PER = 1e4
#: Pearson residuals, which are dense, that are computed at a time
RESIDUALS = 20_000_000

Matrix: TypeAlias = sparse.csr_matrix | np.ndarray


def log1p_cp10k(counts: Matrix, *, total: np.ndarray | None = None) -> Matrix:
    """Return log(1 + counts per 10,000), float32, sparse if ``counts`` are.

    Parameters
    ----------
    counts
        Shape (n_cells, n_genes).
    total
        Molecules of each cell, shape (n_cells,); by default the sum over the genes given. Give it where these are only
        some of the genes measured. Cells without molecules stay zero.

    Raises
    ------
    InputError
        A count is negative, or ``total`` has another length.
    """
    copy: Any = sparse.csr_matrix if sparse.issparse(counts) else np.array
    x = copy(counts, dtype=np.float32, copy=True)
    values = x.data if sparse.issparse(x) else x
    if values.size and values.min() < 0:
        raise InputError(f"counts are negative (lowest {values.min():.3g}); log1p_cp10k takes raw counts")
    if total is None:
        total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    total = np.asarray(total, dtype=np.float64)
    if total.shape != x.shape[:1]:
        raise InputError(f"total has shape {total.shape}; one number for each of {x.shape[0]} cells is needed")
    factor = (PER / np.where(total > 0, total, 1)).astype(np.float32)
    if sparse.issparse(x):
        x.data *= np.repeat(factor, np.diff(x.indptr))
        np.log1p(x.data, out=x.data)
        return x
    x *= factor[:, None]
    return np.log1p(x, out=x)


def expected_counts(x_log: Matrix, total: np.ndarray | float) -> Matrix:
    """Return the counts, with fractions, that cells of ``total`` molecules have at log1p(CP10k) expression ``x_log``.

    The inverse of :func:`log1p_cp10k` where ``total`` is the true one; ``total=1`` gives the composition and
    ``total=10_000`` counts per 10,000. Shape (n_cells, n_genes), float32, sparse if ``x_log`` is.
    """
    factor = np.broadcast_to(np.asarray(total, dtype=np.float32) / np.float32(PER), x_log.shape[:1])
    if sparse.issparse(x_log):
        x = sparse.csr_matrix(x_log, dtype=np.float32, copy=True)
        x.data = np.expm1(x.data) * np.repeat(factor, np.diff(x.indptr))
        return x
    return np.expm1(np.asarray(x_log, dtype=np.float32)) * factor[:, None]


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Each gene to mean 0 and standard deviation 1, as it was in the training cells.

    Parameters
    ----------
    mean, sd
        Per gene, shape (n_genes,), float32. Genes that never varied have sd 1, so they become 0.
    """

    mean: np.ndarray
    sd: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", np.asarray(self.mean, dtype=np.float32))
        object.__setattr__(self, "sd", np.asarray(self.sd, dtype=np.float32))
        if self.mean.ndim != 1 or self.mean.shape != self.sd.shape:
            raise InputError(f"mean {self.mean.shape} and sd {self.sd.shape} must be vectors of one length")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.sd).all() and (self.sd > 0).all()):
            raise InputError("mean and sd must be finite, sd above 0")

    @classmethod
    def fit(cls, x: Matrix) -> Standardizer:
        """Return the standardizer of training cells ``x``, shape (n_cells, n_genes)."""
        if sparse.issparse(x):
            from sklearn.utils.sparsefuncs import mean_variance_axis

            mean, variance = mean_variance_axis(sparse.csr_matrix(x, dtype=np.float64), axis=0)
        else:
            mean, variance = np.mean(x, axis=0, dtype=np.float64), np.var(x, axis=0, dtype=np.float64)
        sd = np.sqrt(variance)
        # rounding leaves a spread of about 1e-8 of the mean in genes that are constant
        return cls(mean=mean, sd=np.where(sd > 1e-6 * np.maximum(np.abs(mean), 1e-6), sd, 1.0))

    def transform(self, x: Matrix) -> np.ndarray:
        """Return standardised expression, dense float32, shape (n_cells, n_genes): pass batches of sparse cells."""
        dense = x.toarray() if sparse.issparse(x) else np.asarray(x)
        return ((dense - self.mean) / self.sd).astype(np.float32, copy=False)

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """Return expression on the original scale, dense float32, shape (n_cells, n_genes)."""
        return (np.asarray(z) * self.sd + self.mean).astype(np.float32, copy=False)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the settings as named arrays, as safetensors stores them."""
        return {"mean": self.mean, "sd": self.sd}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Standardizer:
        """Return the standardizer that :meth:`to_arrays` wrote."""
        return cls(mean=arrays["mean"], sd=arrays["sd"])


def highly_variable_genes(x_log: Matrix, n: int) -> np.ndarray:
    """Return the positions of the ``n`` most variable genes, rising, shape (min(n, n_genes),).

    Normalised dispersion within bins of mean expression (Satija et al. 2015), as scanpy computes it. Give training
    cells only: a choice made on all cells leaks what the held-out ones look like.

    Parameters
    ----------
    x_log
        log1p(CP10k) of the training cells, shape (n_cells, n_genes).
    """
    if n < 1:
        raise InputError(f"cannot choose {n} genes; give a number from 1")
    if n >= x_log.shape[1]:
        return np.arange(x_log.shape[1])
    import anndata
    import scanpy

    table = scanpy.pp.highly_variable_genes(anndata.AnnData(x_log), n_top_genes=n, flavor="seurat", inplace=False)
    # scanpy returns more than n genes where dispersions tie; genes never seen have none and come last
    order = np.argsort(-table["dispersions_norm"].fillna(-np.inf).to_numpy(), kind="stable")
    return np.sort(order[:n])


def overdispersed_genes(counts: Matrix, n: int) -> np.ndarray:
    """Return the positions of the ``n`` genes that vary most beyond sampling, rising, shape (min(n, n_genes),).

    Variance of Pearson residuals (Lause, Berens & Kobak 2021), as scanpy computes it. Other than dispersions within
    bins of the mean, which say little where few genes are in a bin, it keeps strong genes of a strong response.

    Parameters
    ----------
    counts
        Molecules of the training cells, shape (n_cells, n_genes).
    """
    if n < 1:
        raise InputError(f"cannot choose {n} genes; give a number from 1")
    if n >= counts.shape[1]:
        return np.arange(counts.shape[1])
    import anndata
    import scanpy

    table = scanpy.experimental.pp.highly_variable_genes(
        anndata.AnnData(counts),
        n_top_genes=n,
        flavor="pearson_residuals",
        chunksize=max(1, RESIDUALS // counts.shape[0]),
        check_values=False,
        inplace=False,
    )
    order = np.argsort(-table["residual_variances"].fillna(-np.inf).to_numpy(), kind="stable")
    return np.sort(order[:n])


def fit_pca(x: Matrix, n: int, *, seed: int = 0):
    """Return a fitted scikit-learn PCA of ``n`` components; its ``transform`` takes dense and sparse cells.

    Parameters
    ----------
    x
        Training cells, shape (n_cells, n_genes); sparse matrices are centred implicitly and stay sparse.

    Raises
    ------
    InputError
        ``n`` is not below both the number of cells and of genes.
    """
    if not 1 <= n < min(x.shape):
        raise InputError(f"cannot fit {n} components to {x.shape[0]} cells x {x.shape[1]} genes; ask for fewer")
    from sklearn.decomposition import PCA

    return PCA(n_components=n, svd_solver="arpack", random_state=seed).fit(x)


def row_sums(x: Matrix) -> np.ndarray:
    """Return the sum of every row, of counts the molecules of every cell, shape (n_cells,), float64."""
    return np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
