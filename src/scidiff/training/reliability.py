"""Which genes do the other genes of a cell foretell? How far to trust a network that says they do.

A network that learned from a few thousand cells gives every gene a difference between kinds of cells, also a gene that
has none: it fits the accident of these very cells, and later draws repeat it. Whether a gene follows the state of a
cell is asked of other cells: state is the cell's principal components without the gene's own share,

    z_k = sum_{h != g} V_hk x_h,     x_g ~ b z in some cells,     t = sum x_g b z / sqrt(sum (x_g b z)^2) in others

x and z are residuals on depth, on a smooth curve of it: log1p(CP10k) bends with depth in every gene, and what two genes
share of that is no state. The trust is ``1 - (1.5 / t)^2``, James and Stein's factor (1961) for what has to be one and
a half standard errors before it counts: 0 for t below 1.5, near 1 for genes that mark a kind of cell. At 2 sums of
many genes that each follow the state a little vary less in draws than in cells, at 1 tests of draws between kinds of
cells find genes without signal (`benchmarks/denoise.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from scidiff.data.scaling import fit_pca, log1p_cp10k

N_COMPONENTS = 30
N_FOLDS = 4
MAX_CELLS = 5000  # more make no gene less certain that matters
MIN_CELLS = 100  # fewer cannot say: every gene is trusted
DOUBT = 1.5  # standard errors
DEPTH_KNOTS = 10
CHUNK = 500  # genes at a time


def reliability(counts: sparse.csr_matrix, *, seed: int) -> np.ndarray:
    """Return how far each gene follows the state of its cell, float32, shape (n_genes,), from 0 to 1.

    Parameters
    ----------
    counts
        Training cells, integer counts, shape (n_cells, n_genes), no cell empty.
    seed
        Chooses the folds, and the cells where there are many.
    """
    n_cells, n_genes = counts.shape
    if n_cells < MIN_CELLS or n_genes < 3:
        return np.ones(n_genes, np.float32)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(n_cells)[:MAX_CELLS])
    fold = rng.integers(N_FOLDS, size=len(rows))
    x = log1p_cp10k(counts[rows])
    log_depth = np.log(np.asarray(counts[rows].sum(axis=1), dtype=np.float64).ravel())
    off_depth = _Residuals(depth_curves(log_depth))
    # loadings remember the cells they were fitted on, and with them a gene's accidents: fitted without those judged
    folds = []
    for i in range(N_FOLDS):
        pca = fit_pca(x[fold != i], min(N_COMPONENTS, min(x[fold != i].shape) - 1), seed=seed)
        folds.append((off_depth(pca.transform(x)), pca.components_, fold == i))
    columns, t = sparse.csc_matrix(x), []
    for start in range(0, n_genes, CHUNK):
        genes = slice(start, start + CHUNK)
        values = off_depth(columns[:, genes].toarray())
        t.append(held_out_t(values, [(state, axes[:, genes], judged) for state, axes, judged in folds]))
    return (1 - (DOUBT / np.maximum(np.concatenate(t), DOUBT)) ** 2).astype(np.float32)


def depth_curves(log_depth: np.ndarray) -> np.ndarray:
    """Return a basis of smooth curves of depth, shape (n_cells, n_curves); all cells of one depth: the constant."""
    from sklearn.preprocessing import SplineTransformer

    knots = np.unique(np.quantile(log_depth, np.linspace(0, 1, DEPTH_KNOTS)))
    if len(knots) < 3:
        return np.ones((len(log_depth), 1))
    return SplineTransformer(knots=knots[:, None]).fit_transform(log_depth[:, None])


def held_out_t(x: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the t of every gene against its prediction in cells that the prediction has not seen, shape (n_genes,).

    Parameters
    ----------
    x
        Residual expression, shape (n_cells, n_genes).
    folds
        For each: the components of all cells, (n_cells, n_components); the loadings of these genes, (n_components,
        n_genes); a mask of the cells judged, (n_cells,).
    """
    gain, square = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for state, axes, judged in folds:
        seen, z = x[~judged], state[~judged]
        # normal equations of every gene on the components without its own share, z - x_g axes_g
        cross, own = z.T @ seen, (seen**2).sum(axis=0)
        shared = np.einsum("kg,lg->gkl", cross, axes)
        gram = z.T @ z - shared - shared.transpose(0, 2, 1) + np.einsum("g,kg,lg->gkl", own, axes, axes)
        ridge = 1e-6 * np.trace(gram, axis1=1, axis2=2) / len(axes)
        slope = np.linalg.solve(gram + ridge[:, None, None] * np.eye(len(axes)), (cross - own * axes).T[:, :, None])
        slope = slope[:, :, 0].T
        agreement = x[judged] * (state[judged] @ slope - x[judged] * (axes * slope).sum(axis=0))
        gain += agreement.sum(axis=0)
        square += (agreement**2).sum(axis=0)
    return gain / np.sqrt(np.maximum(square, 1e-12))


class _Residuals:
    """What is left of columns after least squares on a few others."""

    def __init__(self, basis: np.ndarray) -> None:
        self.q = np.linalg.qr(basis)[0]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x - self.q @ (self.q.T @ x)
