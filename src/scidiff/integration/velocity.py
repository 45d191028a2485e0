"""RNA velocity: where each cell is going, from its unspliced and spliced molecules or from who computed it before.

    ds/dt = beta u - gamma s,  in units of beta:   v = u - gamma s                La Manno et al. 2018

Unspliced molecules are the spliced ones to come. A gene at rest has as many of them as its spliced ones decay, u =
gamma s; cells above that line make more, cells below it less. gamma is the slope of least squares through the cells
in the corners of (s, u), which are those most likely at rest (La Manno et al. 2018; Bergen et al. 2020), and genes
whose cells lie on no line are left out. Single counts are too few for this: u and s are means over a cell and its
nearest neighbours, after all cells were brought to one depth (layers ``Mu`` and ``Ms`` of scVelo and dynamo).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scidiff.data.scaling import fit_pca, row_sums
from scidiff.errors import InputError, closest

if TYPE_CHECKING:
    from anndata import AnnData

#: neighbours that moments are means over, and principal components that they are found in
N_NEIGHBORS, N_COMPONENTS = 30, 30
#: share of the cells at each end of a gene that are taken to be at rest
AT_REST = 0.05
#: a gene's cells lie on a line if it explains this share of the variance of its unspliced molecules
MIN_R2 = 0.01
#: unspliced and spliced molecules of a gene, in all cells, below which nothing can be said of it
MIN_MOLECULES = 20
#: layers of which one set must be there, the first that is counts
LAYERS = ({"velocity", "Ms"}, {"velocity", "spliced"}, {"Ms", "Mu"}, {"spliced", "unspliced"})


@dataclass(frozen=True, eq=False)
class Velocity:
    """Where cells are and where they go.

    Parameters
    ----------
    s
        Abundance of spliced RNA, smoothed, shape (n_cells, n_genes), counts at a common depth.
    v
        Its change, shape (n_cells, n_genes), counts per unit of time; 0 for genes of which nothing is known.
    genes
        Names of the columns.
    known
        Genes that have a velocity, shape (n_genes,).
    source
        "velocity", "Ms and Mu" or "spliced and unspliced": the layers that were read.
    gamma
        Decay over splicing, shape (n_genes,), NaN where unknown; None for velocities that were read.
    """

    s: np.ndarray
    v: np.ndarray
    genes: list[str]
    known: np.ndarray
    source: str
    gamma: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.s.shape != self.v.shape or self.s.shape[1] != len(self.genes) or len(self.known) != len(self.genes):
            raise InputError(f"s {self.s.shape}, v {self.v.shape} and {len(self.genes)} genes do not fit together")
        if not (np.isfinite(self.s).all() and np.isfinite(self.v).all()):
            raise InputError("positions and velocities must be finite")
        if not self.known.any():
            raise InputError(
                "no gene has a velocity: unspliced molecules are too few, or do not go with spliced ones; "
                "check that layers spliced and unspliced are counts"
            )


def read_velocity(
    adata: AnnData, *, genes: Sequence[str] | None = None, neighbors: np.ndarray | None = None
) -> Velocity:
    """Return the velocity of cells, as it was computed before or else in steady state from their counts.

    Parameters
    ----------
    adata
        Cells with layers as scVelo and dynamo name them: ``velocity`` (and ``Ms`` or ``spliced``), or ``Ms`` and
        ``Mu``, or ``spliced`` and ``unspliced``; the first that are there are used. Missing velocities (NaN) are genes
        without one.
    genes
        Genes of the result, in this order; those that the cells lack have no velocity. None: all of the cells'.
    neighbors
        Cells that moments are means over, from :func:`nearest`; default: in principal components of ``spliced``.

    Raises
    ------
    InputError
        None of the layers is there, their values cannot be, or no gene has a velocity.
    """
    layers = adata.layers
    if not adata.var_names.is_unique:
        raise InputError("gene names are not unique: make them so with adata.var_names_make_unique()")
    if "velocity" in layers and ("Ms" in layers or "spliced" in layers):
        v = _dense(layers["velocity"], "velocity")
        known = np.isfinite(v).all(axis=0)
        if "velocity_genes" in adata.var:  # scVelo: genes it trusts; others have numbers too
            known &= adata.var["velocity_genes"].to_numpy(bool)
        v = np.where(known, v, 0)
        if "Ms" in layers:
            s = _checked(_dense(layers["Ms"], "Ms"), "Ms")
        else:
            spliced = at_common_depth(_checked_counts(layers["spliced"], "spliced"))
            s = mean_over(spliced, _neighbors(spliced, neighbors))
        found = Velocity(s, v, list(adata.var_names), known & (v != 0).any(axis=0), "velocity")
    elif "Ms" in layers and "Mu" in layers:
        s, u = (_checked(_dense(layers[name], name), name) for name in ("Ms", "Mu"))
        found = steady_state(s, u, list(adata.var_names), source="Ms and Mu")
    elif "spliced" in layers and "unspliced" in layers:
        counts = {name: _checked_counts(layers[name], name) for name in ("spliced", "unspliced")}
        enough = np.minimum(*(np.asarray(x.sum(axis=0)).ravel() for x in counts.values())) >= MIN_MOLECULES
        spliced, unspliced = (at_common_depth(x) for x in counts.values())
        around = _neighbors(spliced, neighbors)
        s, u = mean_over(spliced, around), mean_over(unspliced, around)
        found = steady_state(s, u, list(adata.var_names), allowed=enough)
    else:
        raise InputError(
            "no velocity in these cells: layers 'velocity', 'Ms' and 'Mu', or 'spliced' and 'unspliced' are needed, "
            f"found {sorted(layers) or 'none'}"
        )
    return found if genes is None else _aligned(found, list(genes))


def has_velocity(adata: AnnData) -> bool:
    """Return whether the cells have layers that :func:`read_velocity` can use."""
    have = set(adata.layers)
    return any(wanted <= have for wanted in LAYERS)


def steady_state(
    s: np.ndarray,
    u: np.ndarray,
    genes: Sequence[str],
    *,
    allowed: np.ndarray | None = None,
    source: str = "spliced and unspliced",
) -> Velocity:
    """Return v = u - gamma s, gamma fitted to the cells in the corners of each gene.

    Parameters
    ----------
    s, u
        Spliced and unspliced RNA, smoothed, shape (n_cells, n_genes), each at a common depth.
    genes
        Names of the columns.
    allowed
        Genes that may have a velocity, shape (n_genes,); default: all.
    source
        What the result calls its source.
    """
    if s.shape != u.shape:
        raise InputError(f"spliced {s.shape} and unspliced {u.shape} must have one shape")
    # how far up the diagonal a cell is: both kinds count alike, and no cell stretches the scale
    top_s, top_u = (np.maximum(np.quantile(x, 0.995, axis=0), 1e-9) for x in (s, u))
    place = s / top_s + u / top_u
    low, high = np.quantile(place, [AT_REST, 1 - AT_REST], axis=0)
    corner = (place <= low) | (place >= high)
    square = np.einsum("ij,ij->j", s, s * corner)
    gamma = np.einsum("ij,ij->j", s, u * corner) / np.where(square > 0, square, np.nan)
    v = u - gamma * s
    spread = np.square(u - u.mean(axis=0)).sum(axis=0)
    r2 = 1 - np.square(v).sum(axis=0) / np.where(spread > 0, spread, np.nan)
    known = (r2 > MIN_R2) & (gamma > 0.01)
    if allowed is not None:
        known &= allowed
    v = np.where(known, v, 0).astype(np.float32)
    return Velocity(s.astype(np.float32), v, list(genes), known, source, np.where(known, gamma, np.nan))


# ---- moments ---------------------------------------------------------------------------------------------------------


def at_common_depth(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return counts as if every cell had as many molecules as the median cell, float32; empty cells stay empty."""
    depth = row_sums(counts)
    factor = np.median(depth[depth > 0]) / np.where(depth > 0, depth, 1) if depth.any() else np.zeros(len(depth))
    return sparse.csr_matrix(sparse.diags(factor) @ counts, dtype=np.float32)


def nearest(points: np.ndarray, n: int = N_NEIGHBORS) -> np.ndarray:
    """Return the ``n`` cells next to each cell, itself not among them, shape (n_cells, min(n, n_cells - 1)).

    ``points``: coordinates of the cells, shape (n_cells, n_dimensions).
    """
    from sklearn.neighbors import NearestNeighbors

    if len(points) < 2:
        raise InputError(f"{len(points)} cells have no neighbours")
    tree = NearestNeighbors(n_neighbors=min(n, len(points) - 1)).fit(points)
    return tree.kneighbors(return_distance=False)  # without an argument a point is no neighbour of its own


def mean_over(x: sparse.csr_matrix | np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Return the mean of ``x`` over each cell and its neighbours, dense, shape of ``x``."""
    n, k = neighbors.shape
    near = sparse.csr_matrix((np.ones(n * k, np.float32), neighbors.ravel(), np.arange(0, n * k + 1, k)), (n, n))
    total = (near + sparse.identity(n, dtype=np.float32, format="csr")) @ x
    return (total.toarray() if sparse.issparse(total) else total) / np.float32(k + 1)


def _neighbors(spliced: sparse.csr_matrix, given: np.ndarray | None) -> np.ndarray:
    if given is not None:
        return given
    logged = spliced.log1p()
    n = min(N_COMPONENTS, min(logged.shape) - 1)
    return nearest(fit_pca(logged, n).transform(logged) if n > 0 else logged.toarray())


# ---- checks ----------------------------------------------------------------------------------------------------------


def _dense(x: Any, name: str) -> np.ndarray:
    x = np.asarray(x.toarray() if sparse.issparse(x) else x)
    if x.dtype.kind not in "fiu":
        raise InputError(f"layer {name!r} holds no numbers")
    return x.astype(np.float32)


def _checked(x: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(x).all() or x.min(initial=0) < 0:
        raise InputError(f"layer {name!r} has negative, missing or infinite values; it must hold abundances")
    return x


def _checked_counts(x: Any, name: str) -> sparse.csr_matrix:
    x = sparse.csr_matrix(x, dtype=np.float32)
    _checked(x.data, name)
    return x


def _aligned(found: Velocity, genes: list[str]) -> Velocity:
    """Return the velocity of these genes, in this order."""
    import pandas as pd

    place = pd.Index(found.genes).get_indexer(genes)
    have = place >= 0
    if not have.any():
        raise InputError(
            f"none of the {len(genes)} genes asked for is in the cells' layers, such as {genes[0]!r}"
            f"{closest(genes[0], found.genes)}"
        )

    def taken(x: np.ndarray, missing: Any) -> np.ndarray:
        return np.where(have, x[..., np.where(have, place, 0)], missing)

    gamma = None if found.gamma is None else taken(found.gamma, np.nan)
    return Velocity(taken(found.s, 0), taken(found.v, 0), genes, taken(found.known, False), found.source, gamma)
