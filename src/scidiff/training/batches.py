"""Minibatches: rows of a matrix as the tensor that a noise process corrupts."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scidiff.data.scaling import Standardizer
from scidiff.models.sparse import csr_tensor


class Batches(Protocol):
    """What the loop needs of a matrix."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> Tensor:
        """Return these cells, shape (len(rows), n_genes)."""
        ...


class CountBatches:
    """Counts, as CSR tensors: nothing is made dense, so memory does not grow with the number of cells."""

    def __init__(self, x: sparse.csr_matrix) -> None:
        self.x = sparse.csr_matrix(x, dtype=np.float32)

    def __len__(self) -> int:
        return self.x.shape[0]

    def take(self, rows: np.ndarray) -> Tensor:
        """Return counts of these cells as a CSR tensor."""
        part = self.x[rows]
        return csr_tensor(*map(torch.from_numpy, (part.indptr, part.indices, part.data)), part.shape[1])


class ExpressionBatches:
    """Expression, standardised per gene, as dense tensors (for data without counts, or Gaussian noise on counts)."""

    def __init__(self, x: sparse.csr_matrix | np.ndarray, standardizer: Standardizer) -> None:
        self.x = x
        self.standardizer = standardizer

    def __len__(self) -> int:
        return self.x.shape[0]

    def take(self, rows: np.ndarray) -> Tensor:
        """Return standardised expression of these cells."""
        return torch.from_numpy(np.asarray(self.standardizer.transform(self.x[rows]), dtype=np.float32))


class Subset:
    """Some cells of a matrix, without copying it."""

    def __init__(self, cells: Batches, rows: np.ndarray) -> None:
        self.cells, self.rows = cells, rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> Tensor:
        """Return these of the cells chosen."""
        return self.cells.take(self.rows[rows])
