"""Cells as sparse CSR tensors: the few operations that torch lacks, each one pass over the stored entries."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def csr_tensor(crow: Tensor, col: Tensor, values: Tensor, n_genes: int) -> Tensor:
    """Return a CSR tensor without torch's notices: that the layout is in beta, that nobody asked for checks.

    torch 2.11 and 2.12 say the second to those who did decline checks, too.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
        return torch.sparse_csr_tensor(crow, col, values, size=(len(crow) - 1, n_genes), check_invariants=False)


def like_csr(x: Tensor, values: Tensor) -> Tensor:
    """Return a CSR tensor with the pattern of ``x`` and other values."""
    return csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape[1])


def depth_of(x: Tensor) -> Tensor:
    """Return molecules per cell, shape (n_cells,), of a dense or CSR tensor."""
    if x.layout == torch.strided:
        return x.sum(dim=1)
    return torch.segment_reduce(x.values(), "sum", offsets=x.crow_indices(), initial=0)


def per_entry(x: Tensor, of_cells: Tensor) -> Tensor:
    """Return a number of each cell, shape (n_cells,), for each stored entry of a CSR tensor."""
    return torch.repeat_interleave(of_cells, x.crow_indices().diff())


def flat_index(x: Tensor) -> Tensor:
    """Return the places of the stored entries of a CSR tensor in the flattened dense one."""
    first = torch.arange(x.shape[0], device=x.values().device) * x.shape[1]
    return per_entry(x, first) + x.col_indices()


def without_zeros(x: Tensor) -> Tensor:
    """Return the CSR tensor without the zeros it stores (thinning leaves many)."""
    keep = x.values().nonzero().squeeze(1)
    # the entries kept before each cell begins; the number of entries is its own last one
    crow = torch.searchsorted(keep, x.crow_indices().to(keep.dtype)).to(x.crow_indices().dtype)
    return csr_tensor(crow, x.col_indices()[keep], x.values()[keep], x.shape[1])


def to_dense(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the dense tensor of this type, shape (n_cells, n_genes)."""
    dense = torch.zeros(x.shape, dtype=dtype, device=x.values().device)
    return dense.put_(flat_index(x), x.values().to(dtype))
