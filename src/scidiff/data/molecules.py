"""Splitting the molecules of cells: what is kept and what is held out are two shallower runs of the same cell.

Given a cell's true rates, binomially split counts are independent (up to the sharing of a total), so what was held out
judges what was learned from the rest: molecular cross-validation (Batson, Royer & Webber 2019).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scidiff.errors import InputError


def split_molecules(
    counts: sparse.csr_matrix, *, held_out: float, seed: int
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Return kept and held-out counts, csr float32, shape of ``counts``; they add up to ``counts``.

    Parameters
    ----------
    counts
        Integer counts, shape (n_cells, n_genes).
    held_out
        Chance that a molecule is held out, in [0, 1).
    seed
        Makes the split reproducible.
    """
    if not 0 <= held_out < 1:
        raise InputError(f"held_out={held_out}: need a share of molecules in [0, 1)")
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    drawn = np.random.default_rng(seed).binomial(counts.data.astype(np.int64), held_out).astype(np.float32)
    parts = []
    for values in (counts.data - drawn, drawn):
        part = sparse.csr_matrix((values, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]
