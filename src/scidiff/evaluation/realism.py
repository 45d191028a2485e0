"""Are designed cells cells? Four questions to where they lie among real ones.

    distance     how far to the nearest real cell, in units of how far real cells are from theirs      (1: as real ones)
    novelty      share of cells farther from all real cells than 95 % of the real ones are             (.05)
    diversity    spread among themselves, in units of the spread of the real cells like them           (1)
    auc          can a classifier tell them from the real cells that are most like them?               (.5)

Distances are Euclidean, in principal components of log1p(CP10k) of real cells.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scidiff.data.scaling import fit_pca
from scidiff.evaluation.metrics import auc

N_COMPONENTS = 30
#: with fewer real cells like the designed ones, diversity and auc are not told
MIN_LIKE = 20


def realism(designed, real, like: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Return the four numbers; NaN where there are too few real cells for one.

    Parameters
    ----------
    designed, real
        log1p(CP10k), shape (n_cells, n_genes); ``real`` of all contexts.
    like
        Positions of the real cells that the designed ones should resemble.
    seed
        Of the folds of the classifier.
    """
    from sklearn.neighbors import NearestNeighbors

    real, designed = sparse.csr_matrix(real), sparse.csr_matrix(designed)
    n = min(N_COMPONENTS, min(real.shape) - 1)
    # components are of the real cells that are not compared with, where these are many enough: those fitted on the
    # cells compared tell them from any others
    rest = np.setdiff1d(np.arange(real.shape[0]), like)
    components = fit_pca(real[rest] if len(rest) > 4 * n else real, n, seed=seed)
    places, real_places = components.transform(designed), components.transform(real)
    neighbours = NearestNeighbors(n_neighbors=2).fit(real_places)
    own = neighbours.kneighbors(real_places[like])[0][:, 1]  # the first is the cell itself
    far = neighbours.kneighbors(places, n_neighbors=1)[0][:, 0]
    enough = len(like) >= MIN_LIKE
    spread = np.sqrt(places.var(axis=0).sum() / max(real_places[like].var(axis=0).sum(), 1e-12))
    return {
        "distance": float(np.median(far) / max(np.median(own), 1e-12)),
        "novelty": float((far > np.quantile(own, 0.95)).mean()),
        "diversity": float(spread) if enough else float("nan"),
        "auc": auc(places, real_places[like], seed=seed) if enough else float("nan"),
    }
