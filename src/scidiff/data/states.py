"""Cell states where nobody named cell types: clusters of control cells, and every other cell at its nearest.

Patients and treatments move whole populations, which would make clusters of them. So every group of cells (one context,
batch and perturbation) is centred first::

    y = z - mean of z over the group        z: principal components of log1p(CP10k)

which is right where all groups hold the same mixture of states. Clusters are those of the control cells, by k-means;
the number is the one with the largest mean silhouette. Treated cells go to the nearest centre.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scidiff.data.cells import read_cells
from scidiff.data.scaling import fit_pca, highly_variable_genes, log1p_cp10k
from scidiff.data.schema import Schema
from scidiff.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

N_COMPONENTS = 20
N_GENES = 2000
MAX_SILHOUETTE = 2000  # cells: its cost grows with their square
MIN_STATE = 20  # control cells that a state must hold


def find_states(
    adata: AnnData, schema: Schema, *, at_most: int = 6, layer: str | None = None, seed: int = 0
) -> pd.Series:
    """Return the state of every cell, ``"state 1"`` (the largest among control cells) and so on, index ``obs_names``.

    Parameters
    ----------
    adata
        Cells that may be learned from; held-out ones must not be among them.
    schema
        Roles of the obs columns. Without a control, all cells are clustered.
    at_most
        Number of states tried, from 2.
    layer
        Layer with the expression; by default counts are looked for.
    seed
        Of the clustering.

    Raises
    ------
    InputError
        ``at_most`` is below 2, or there are too few control cells for two states.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    if at_most < 2:
        raise InputError(f"at_most={at_most}: states are told apart from 2 on")
    cells = read_cells(adata, schema, layer=layer)
    logged = log1p_cp10k(cells.x) if cells.scale == "counts" else cells.x
    control = schema.is_control(cells.conditions) if schema.control is not None else np.ones(adata.n_obs, dtype=bool)
    if control.sum() < 2 * MIN_STATE:
        raise InputError(f"{int(control.sum())} control cells are too few to find states in; name cell types instead")
    logged = logged[:, highly_variable_genes(logged[control], N_GENES)]
    pca = fit_pca(logged[control], min(N_COMPONENTS, min(logged[control].shape) - 1), seed=seed)
    z = _centred(pca.transform(logged), cells.conditions)
    some = np.random.default_rng(seed).permutation(np.flatnonzero(control))[:MAX_SILHOUETTE]
    best = None
    for k in range(2, at_most + 1):
        fitted = KMeans(k, n_init=5, random_state=seed).fit(z[control])
        if np.bincount(fitted.labels_).min() < MIN_STATE:
            continue
        labels = fitted.predict(z[some])
        score = silhouette_score(z[some], labels) if len(set(labels)) > 1 else -1.0
        if best is None or score > best[0]:
            best = score, fitted
    if best is None:
        raise InputError(f"no two states with {MIN_STATE} control cells each; name cell types instead")
    order = np.argsort(np.argsort(-np.bincount(best[1].labels_), kind="stable"))
    return pd.Series([f"state {order[k] + 1}" for k in best[1].predict(z)], index=adata.obs_names, name="state")


def _centred(z: np.ndarray, conditions: pd.DataFrame) -> np.ndarray:
    """Return ``z``, shape (n_cells, n_components), less the mean of each condition."""
    if not conditions.shape[1]:
        return z
    group = conditions.groupby(list(conditions.columns), dropna=False).ngroup().to_numpy()
    means = pd.DataFrame(z).groupby(group).transform("mean").to_numpy()
    return z - means
