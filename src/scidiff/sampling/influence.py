"""Influence: what one more molecule of a gene makes the denoiser expect of all genes.

    J[s, t] = mean over cells of  log p_t(x + e_s) - log p_t(x)        p: composition that is expected of the cell

The Jacobian of the denoiser for counts, which come in ones: of most genes a cell has none, and the slope at none says
little of the first. The number of molecules that the cell is told it has does not change with x. The prediction is
that from all genes together, to which a gene's own count has not been added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Expected = Callable[[Tensor, Tensor, Any], Tensor]


@torch.no_grad()
def influence(expected: Expected, x: Tensor, cond: Any, sources: Sequence[int]) -> Tensor:
    """Return J, shape (n_sources, n_genes).

    Parameters
    ----------
    expected
        Logits from counts, molecules and conditions, such as ``Denoiser.expected``.
    x
        Counts, shape (n_cells, n_genes).
    cond
        Conditions of the cells.
    sources
        Positions of the genes that get a molecule more.
    """
    depth = x.sum(dim=1)
    before = torch.log_softmax(expected(x, depth, cond), dim=1)
    rows = []
    for gene in sources:
        more = x.clone()
        more[:, gene] += 1
        change = torch.log_softmax(expected(more, depth, cond), dim=1) - before
        rows.append(change.mean(dim=0))
    return torch.stack(rows)
