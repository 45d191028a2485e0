"""How much cells of one condition differ among themselves: the spread that generated cells must share with real ones.

    ratio = geometric mean over components of sd(generated) / sd(real),   both around the means of their conditions

The components are those of one half of the real cells; the other half is compared, since cells spread more along
components fitted on themselves than new cells do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

N_COMPONENTS = 10
N_GENES = 2000


@dataclass(frozen=True, eq=False)
class Spread:
    """Spread of real cells within conditions, to compare generated cells with.

    genes : positions of the genes looked at; components : fitted on half of the cells; sd : of the other half, per
    component, shape (n_components,).
    """

    genes: np.ndarray
    components: Any
    sd: np.ndarray

    @classmethod
    def of(cls, counts: sp.csr_matrix, condition: np.ndarray) -> Spread:
        """Return the spread of cells with these counts and condition labels, shape (n_cells,)."""
        from scidiff.data.scaling import fit_pca, highly_variable_genes, log1p_cp10k

        logged = log1p_cp10k(counts)
        genes = highly_variable_genes(logged, min(N_GENES, counts.shape[1]))
        dense = logged[:, genes].toarray()
        n = min(N_COMPONENTS, len(genes) - 1, len(dense) // 4)
        components = fit_pca(dense[::2], n, seed=0)
        return cls(genes, components, _within(components.transform(dense[1::2]), condition[1::2]))

    def ratio(self, counts: sp.csr_matrix, condition: np.ndarray) -> float:
        """Return the spread of other cells, of all genes, over that of the real ones."""
        from scidiff.data.scaling import log1p_cp10k

        pcs = self.components.transform(log1p_cp10k(counts)[:, self.genes].toarray())
        return float(np.exp(np.mean(np.log(_within(pcs, condition) / self.sd))))


def _within(pcs: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Return standard deviations around the condition means, corrected for the means' own number."""
    groups = pd.DataFrame(pcs).groupby(condition)
    square = ((pcs - groups.transform("mean").to_numpy()) ** 2).sum(axis=0)
    return np.sqrt(np.maximum(square / max(len(pcs) - groups.ngroups, 1), 1e-12))
