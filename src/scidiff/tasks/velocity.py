"""Velocity out: where the model takes each cell when RNA velocity pushes it, in the form that others read.

A cell is placed by what the network makes of its molecules; the velocity of its genes, means over its neighbours
there, tilts the molecules of one step (sampling.field), and the network looks again. What has changed is a velocity of
all genes of the model, also of those of which unspliced molecules say nothing.

Step after step, cells flow: each loses some of its molecules and wins others, in the direction of the velocity that
observed cells have where it has come to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scidiff.data.cells import read_cells
from scidiff.data.scaling import fit_pca, log1p_cp10k, row_sums
from scidiff.errors import InputError
from scidiff.integration.fate import Places, transitions
from scidiff.integration.velocity import N_COMPONENTS, N_NEIGHBORS, nearest, read_velocity
from scidiff.model import TrainedModel
from scidiff.sampling.field import displacement, flow_step, log_tilt
from scidiff.sampling.generate import CHUNK
from scidiff.tasks.requests import gene_table

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, eq=False)
class Placed:
    """Cells as the network sees them.

    Parameters
    ----------
    x
        Counts, csr, shape (n_cells, n_genes), genes of the model.
    level
        log1p(CP10k) of what the network expects of each cell, shape (n_cells, n_genes): without what a gene's own
        count says of it alone, which would put cells apart that only chance tells apart.
    pca
        Principal components of ``level``.
    points
        Coordinates of the cells in them, shape (n_cells, n_components).
    """

    x: sparse.csr_matrix
    level: np.ndarray
    pca: Any
    points: np.ndarray


def velocity(
    model: TrainedModel,
    adata: AnnData,
    *,
    dt: float = 1.0,
    strength: float = 1.0,
    n_neighbors: int = N_NEIGHBORS,
    layer: str | None = None,
    on_cells: Callable[[int, int], None] | None = None,
) -> AnnData:
    """Return cells with their velocity; see :meth:`scidiff.ScIDiff.velocity`."""
    cells = placed(model, adata, layer=layer)
    count = None if on_cells is None else lambda done: on_cells(done, adata.n_obs)
    moved, source = moves(model, adata, cells, dt=dt, strength=strength, n_neighbors=n_neighbors, on_cells=count)
    out = with_places(adata, model, cells)
    out.layers.update(counts=cells.x, denoised=cells.level, velocity=moved)
    out.obsm["velocity_pca"] = directions(cells, moved)
    out.obsp["T_fwd"] = transitions(
        Places(cells.points, out.obsm["velocity_pca"]), n_neighbors=min(n_neighbors, len(cells.points) - 1)
    )
    out.uns["scidiff"] = model.provenance(
        "velocity",
        {
            "X": "observed, log1p(CP10k)",
            "counts": "counts",
            "denoised": "log1p(CP10k) of the rate expected from the other genes",
            "velocity": "change of denoised per unit of time, 1 / splicing rate",
        },
        source=source,
        dt=dt,
        strength=strength,
        n_neighbors=n_neighbors,
    )
    return out


def moves(
    model: TrainedModel,
    adata: AnnData,
    cells: Placed,
    *,
    dt: float = 1.0,
    strength: float = 1.0,
    n_neighbors: int = N_NEIGHBORS,
    on_cells: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, str]:
    """Return change of log1p(CP10k) per unit of time, shape (n_cells, n_genes), and the layers it is taken from."""
    if not (np.isfinite(dt) and dt > 0 and np.isfinite(strength) and strength >= 0):
        raise InputError(f"dt={dt}, strength={strength}: need a length above 0 and a strength from 0")
    if n_neighbors < 1:
        raise InputError(f"n_neighbors={n_neighbors}: need at least 1")
    found = read_velocity(adata, genes=model.genes, neighbors=nearest(cells.points, n_neighbors))
    cond = unlabelled(model, adata)
    parts = []
    for start in range(0, adata.n_obs, CHUNK):
        rows = slice(start, min(start + CHUNK, adata.n_obs))
        tilt = log_tilt(torch.from_numpy(found.s[rows]), torch.from_numpy(found.v[rows]), dt=dt)
        x = torch.from_numpy(cells.x[rows].toarray())
        device = model.posterior.device
        step = displacement(
            model.posterior, x.to(device), tilt.to(device), cond[rows].to(device), dt=dt, strength=strength
        )
        rate = np.expm1(cells.level[rows])
        parts.append((np.log1p(rate * np.exp(step.cpu().numpy())) - cells.level[rows]) / np.float32(dt))
        if on_cells is not None:
            on_cells(rows.stop)
    return np.concatenate(parts), found.source


def placed(model: TrainedModel, adata: AnnData, *, layer: str | None = None) -> Placed:
    """Return the cells as the network sees them."""
    if model.standardizer is not None or not model.counted:
        raise InputError("velocity and fate need a model trained on counts with thinning; this one has Gaussian noise")
    cells = read_cells(adata, genes=model.genes, layer=layer)
    model.refuse_cells(cells.scale, adata.obs_names[row_sums(abs(cells.x)) == 0])
    return _placed(model, adata, sparse.csr_matrix(cells.x), lambda x: x)


def placed_by_halves(
    model: TrainedModel, adata: AnnData, cells: Placed, *, seed: int = 0
) -> Iterator[tuple[np.ndarray, Placed]]:
    """Yield the genes of a half, shape (n_genes,), and the cells as the network sees them by these alone, then by the
    other half, then by two other halves, without end.

    Genes that a half lacks have the share of a cell's molecules that they have on average over cells, of which the
    network cannot tell where the cell lies.
    """
    rng = np.random.default_rng(seed)
    share = np.asarray((sparse.diags(1 / row_sums(cells.x)) @ cells.x).mean(axis=0)).ravel()
    while True:
        half = rng.permutation(len(share)) < len(share) // 2
        for seen in (half, ~half):
            yield seen, _placed(model, adata, cells.x, partial(_by_some, seen=seen, share=share))


def _by_some(x: np.ndarray, *, seen: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return counts with those of unseen genes at their share, for the depth that seen genes speak of."""
    depth = np.maximum(x[:, seen].sum(axis=1, keepdims=True) / max(share[seen].sum(), 1e-9), 1)
    return np.where(seen, x, depth * share).astype(np.float32)


def _placed(
    model: TrainedModel, adata: AnnData, counts: sparse.csr_matrix, shown: Callable[[np.ndarray], np.ndarray]
) -> Placed:
    """Return cells as the network sees them by what it is shown of their counts."""
    cond = unlabelled(model, adata)
    chunks = (slice(start, start + CHUNK) for start in range(0, adata.n_obs, CHUNK))
    level = np.concatenate(
        [level_of(model, torch.from_numpy(shown(counts[rows].toarray())), cond[rows]) for rows in chunks]
    )
    n = min(N_COMPONENTS, min(level.shape) - 1)
    if n < 1:
        raise InputError(f"{adata.n_obs} cells and {len(model.genes)} genes: too few to tell a direction")
    pca = fit_pca(level, n)
    return Placed(counts, level, pca, pca.transform(level))


@torch.no_grad()
def level_of(model: TrainedModel, x: torch.Tensor, cond: Any) -> np.ndarray:
    """Return log1p(CP10k) of what the network expects of cells, counts on any device, shape (n_cells, n_genes)."""
    x = x.to(model.posterior.device)
    logits = model.posterior.expected(x, x.sum(dim=1), cond.to(x.device))
    return np.log1p(1e4 * torch.softmax(logits, dim=1).cpu().numpy())


def flow(
    model: TrainedModel,
    adata: AnnData,
    start: np.ndarray,
    *,
    dt: float,
    steps: int,
    n_neighbors: int = N_NEIGHBORS,
    layer: str | None = None,
    seed: int = 0,
) -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
    """Yield cells as they are and after every step, ``steps + 1`` times.

    Comes out: counts of genes of the model, csr, shape (n_flowing, n_genes), each cell with as many molecules as it
    had; and the place in ``adata`` of the observed cell that each is nearest to, shape (n_flowing,).

    Parameters
    ----------
    adata
        Observed cells, with layers for velocity, shape (n_cells, ...).
    start
        Places in ``adata`` of those that flow, shape (n_flowing,).
    dt
        Length of a step, in units of 1 / splicing rate.
    steps
        Number of steps.
    n_neighbors
        Observed cells that a velocity is the mean over.
    layer
        Layer with the counts of the cells.
    seed
        Draws the molecules that go and come.

    Raises
    ------
    InputError
        The model was not trained on counts, or the cells have no velocity.
    """
    from sklearn.neighbors import NearestNeighbors

    cells = placed(model, adata, layer=layer)
    found = read_velocity(adata, genes=model.genes, neighbors=nearest(cells.points, n_neighbors))
    observed = NearestNeighbors(n_neighbors=min(n_neighbors, adata.n_obs)).fit(cells.points)
    generator = torch.Generator(model.posterior.device).manual_seed(seed)
    x, points, cond = cells.x[start], cells.points[start], unlabelled(model, adata[start])
    for step in range(steps + 1):
        near = observed.kneighbors(points, return_distance=False)
        yield x, near[:, 0]
        if step == steps:
            return
        n, k = near.shape
        mean = sparse.csr_matrix(
            (np.full(n * k, 1 / k, np.float32), near.ravel(), np.arange(0, n * k + 1, k)), (n, adata.n_obs)
        )
        moved, places = [], []
        for begin in range(0, len(start), CHUNK):
            rows = slice(begin, begin + CHUNK)
            s, v = (torch.from_numpy(mean[rows] @ some) for some in (found.s, found.v))
            part = torch.from_numpy(x[rows].toarray()).to(model.posterior.device)
            part = flow_step(
                model.posterior,
                part,
                log_tilt(s, v, dt=dt).to(part.device),
                cond[rows].to(part.device),
                dt=dt,
                process=model.posterior.process,
                generator=generator,
            )
            places.append(cells.pca.transform(level_of(model, part, cond[rows])))
            moved.append(sparse.csr_matrix(part.cpu().numpy()))
        x, points = sparse.vstack(moved, format="csr"), np.concatenate(places)


def directions(cells: Placed, moved: np.ndarray) -> np.ndarray:
    """Return changes of log1p(CP10k) in the cells' principal components, shape (n_cells, n_components)."""
    return moved @ cells.pca.components_.T


def unlabelled(model: TrainedModel, adata: AnnData) -> Any:
    """Return conditions that say nothing: told the type of each cell, the network would keep the types apart."""
    return model.vocabulary.encode(pd.DataFrame(index=adata.obs.index))


def with_places(adata: AnnData, model: TrainedModel, cells: Placed) -> AnnData:
    """Return the cells, observed log1p(CP10k) in X, places in ``obsm["X_pca"]``, and what they say of genes in var."""
    from anndata import AnnData

    out = AnnData(log1p_cp10k(cells.x), obs=adata.obs.copy(), var=gene_table(adata, model.genes))
    out.obsm["X_pca"] = cells.points
    out.varm["PCs"] = cells.pca.components_.T
    return out
