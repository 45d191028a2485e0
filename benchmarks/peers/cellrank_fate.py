"""Fate probabilities by CellRank on the velocity that benchmarks/fate.py --plain wrote, in an environment of its own.

    python benchmarks/peers/cellrank_fate.py plain.h5ad fates.csv        # pip install cellrank

Its velocity kernel and its connectivity kernel, .8 to .2, absorbed in the cells of the four lineages (ran with
CellRank 2.0.7, scanpy 1.11.5).
"""

from __future__ import annotations

import sys
import warnings

import anndata as ad
import cellrank
import numpy as np
import pandas as pd
import scanpy as sc

LINEAGES = ["Alpha", "Beta", "Delta", "Epsilon"]


def main(plain: str, out: str) -> None:
    """Write cells x lineages."""
    warnings.simplefilter("ignore")
    adata = ad.read_h5ad(plain)
    sc.pp.neighbors(adata, n_neighbors=30, use_rep="X_pca")
    velocity = cellrank.kernels.VelocityKernel(
        adata, xkey="Ms", vkey="velocity", gene_subset=adata.var["velocity_genes"].to_numpy()
    ).compute_transition_matrix(show_progress_bar=False)
    alike = cellrank.kernels.ConnectivityKernel(adata).compute_transition_matrix()
    walk = cellrank.estimators.GPCCA(0.8 * velocity + 0.2 * alike)
    label = adata.obs["cell_type"].astype(str)
    walk.set_terminal_states(pd.Series(label.where(label.isin(LINEAGES)), dtype="category"))
    walk.compute_fate_probabilities(use_petsc=False, show_progress_bar=False)
    found = walk.fate_probabilities
    pd.DataFrame(np.asarray(found), index=adata.obs_names, columns=list(found.names))[LINEAGES].to_csv(out)


if __name__ == "__main__":
    main(*sys.argv[1:3])
