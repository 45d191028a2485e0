"""Minibatches: rows of a matrix as the tensor that a noise process corrupts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scidiff.data.scaling import Standardizer
from scidiff.models.sparse import csr_tensor


class Batches(Protocol):
    """What the loop needs of the cells it trains on."""

    def __len__(self) -> int: ...

    def draw(self, n: int, *, step: int, rank: int, generator: torch.Generator) -> tuple[np.ndarray, Tensor]:
        """Return the rows of the ``n`` cells of this step and process, and these cells, shape (n, n_genes)."""
        ...


class InMemory(ABC):
    """Cells of which any can be had at once; those of a step are drawn at random."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, rows: np.ndarray) -> Tensor:
        """Return these cells, shape (len(rows), n_genes)."""

    def draw(self, n: int, *, step: int, rank: int, generator: torch.Generator) -> tuple[np.ndarray, Tensor]:
        """Return ``n`` rows, with replacement, and their cells; ``generator`` knows of step and process."""
        rows = torch.randint(len(self), (n,), generator=generator).numpy()
        return rows, self.take(rows)


class CountBatches(InMemory):
    """Counts, as CSR tensors: nothing is made dense, so memory does not grow with the number of cells."""

    def __init__(self, x: sparse.csr_matrix) -> None:
        self.x = sparse.csr_matrix(x, dtype=np.float32)

    def __len__(self) -> int:
        return self.x.shape[0]

    def take(self, rows: np.ndarray) -> Tensor:
        """Return counts of these cells as a CSR tensor."""
        return as_tensor(self.x[rows])


class ExpressionBatches(InMemory):
    """Expression, standardised per gene, as dense tensors (for data without counts, or Gaussian noise on counts)."""

    def __init__(self, x: sparse.csr_matrix | np.ndarray, standardizer: Standardizer) -> None:
        self.x = x
        self.standardizer = standardizer

    def __len__(self) -> int:
        return self.x.shape[0]

    def take(self, rows: np.ndarray) -> Tensor:
        """Return standardised expression of these cells."""
        return torch.from_numpy(np.asarray(self.standardizer.transform(self.x[rows]), dtype=np.float32))


class Subset(InMemory):
    """Some cells of a matrix, without copying it."""

    def __init__(self, cells: InMemory, rows: np.ndarray) -> None:
        self.cells, self.rows = cells, rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> Tensor:
        """Return these of the cells chosen."""
        return self.cells.take(self.rows[rows])


def as_tensor(x: sparse.csr_matrix) -> Tensor:
    """Return a csr matrix as a CSR tensor."""
    crow, col, values = map(torch.from_numpy, (x.indptr, x.indices, x.data))
    return csr_tensor(crow, col, values, x.shape[1])
