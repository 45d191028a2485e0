"""Minibatches from cells on disk: every cell once in each pass, mixed from all over the file, read in long stretches.

    blocks    stretches of the file of about a quarter of a million values, as HDF5 packs them
    a pass    all blocks in random order, about 64 at a time into a buffer, the cells of a buffer shuffled
    a step    the next n cells

A file is often sorted by what it holds; 64 stretches from all over it make a minibatch much like one drawn at random.
The order is a function of (seed, process, pass), so a resumed run finds its place by counting. The molecules that are
held out of a block are a function of (seed, block): they are split again whenever it is read, and never stored. While
one buffer is used, a thread reads the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scidiff.data.molecules import split_molecules
from scidiff.data.scaling import row_sums
from scidiff.training.batches import as_tensor

#: values of a block: HDF5 unpacks about so many at once, whether they are wanted or not
BLOCK_VALUES = 1 << 18
#: cells of a block, at least and at most
BLOCK_CELLS = (64, 1024)
#: blocks of a buffer, about: a pass is cut evenly; three buffers are in memory while one is made, 128 MiB each
BUFFER = 64

Matrix: TypeAlias = sparse.csr_matrix


class StoredCounts(Protocol):
    """Counts on disk: ``counts[slice]`` is csr."""

    n_values: int

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Matrix: ...


class StoredBatches:
    """Counts on disk for the training loop, less the molecules that are held out.

    Parameters
    ----------
    counts
        The cells.
    held_out
        Share of the molecules of every cell that is held out.
    seed
        Of the molecules held out, and of the order of the cells.
    """

    def __init__(self, counts: StoredCounts, *, held_out: float, seed: int) -> None:
        self.counts, self.held_out, self.seed = counts, held_out, seed
        per_cell = max(counts.n_values / len(counts), 1)
        self.block_cells = int(np.clip(BLOCK_VALUES / per_cell, *BLOCK_CELLS))
        self.n_blocks = -(-len(counts) // self.block_cells)
        self._place: tuple[int, int, int] | None = None  # of the stream: cells a step, process, next step
        self._stream: Generator[tuple[np.ndarray, Matrix], None, None] | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def rows(self, block: int) -> slice:
        """Return the rows of a block."""
        start = block * self.block_cells
        return slice(start, min(start + self.block_cells, len(self)))

    def split(self, block: int) -> tuple[Matrix, Matrix]:
        """Return what is kept and what is held out of the cells of a block."""
        seed = int(np.random.SeedSequence([self.seed, block]).generate_state(1)[0])
        return split_molecules(self.counts[self.rows(block)], held_out=self.held_out, seed=seed)

    def gather(self, rows: np.ndarray) -> tuple[Matrix, Matrix, np.ndarray]:
        """Return what is kept and what is held out of some cells, and the depths of all; reads the file once.

        ``rows`` are in the order of the file; the depths have shape (n_cells,).
        """
        parts, depth = [], np.zeros(len(self))
        for block in range(self.n_blocks):
            kept, held = self.split(block)
            of = self.rows(block)
            depth[of] = row_sums(kept) + row_sums(held)
            wanted = rows[np.searchsorted(rows, of.start) : np.searchsorted(rows, of.stop)] - of.start
            parts.append((kept[wanted], held[wanted]))
        kept, held = (sparse.vstack(some, format="csr") for some in zip(*parts, strict=True))
        return kept, held, depth

    def draw(self, n: int, *, step: int, rank: int, generator: torch.Generator) -> tuple[np.ndarray, Tensor]:
        """Return the rows of the cells of this step, and the cells; fast when steps are asked for in order."""
        if self._place != (n, rank, step):
            self.close()
        self._stream = self._stream or self._minibatches(n, first=(step - 1) * n, rank=rank)
        rows, x = next(self._stream)
        self._place = (n, rank, step + 1)
        return rows, as_tensor(x)

    def close(self) -> None:
        """Stop reading ahead, and let go of what was read."""
        if self._stream is not None:
            self._stream.close()
        self._place = self._stream = None

    # ---- the stream ----------------------------------------------------------------------------------------------

    def _minibatches(self, n: int, *, first: int, rank: int) -> Generator[tuple[np.ndarray, Matrix], None, None]:
        """Yield rows and cells, ``n`` at a time for ever, from cell number ``first`` of the stream on."""
        buffers = self._buffers(rank)
        buffer = next(buffers)
        while len(buffer) <= first:  # counted, not read
            first -= len(buffer)
            buffer = next(buffers)
        with ThreadPoolExecutor(1) as reader:
            rows, x = reader.submit(self._read, buffer).result()
            rows, x = rows[first:], x[first:]
            while True:
                ahead = reader.submit(self._read, next(buffers))
                whole = len(rows) - len(rows) % n
                for at in range(0, whole, n):
                    yield rows[at : at + n], x[at : at + n]
                rows, x = rows[whole:], x[whole:]  # too few for a step
                more_rows, more = ahead.result()
                rows, x = np.concatenate([rows, more_rows]), sparse.vstack([x, more], format="csr")

    def _buffers(self, rank: int) -> Iterator[np.ndarray]:
        """Yield the rows of each buffer, shuffled, pass after pass."""
        for number in itertools.count():
            rng = np.random.default_rng([self.seed, rank, number])
            blocks = rng.permutation(self.n_blocks)
            for some in np.array_split(blocks, max(round(self.n_blocks / BUFFER), 1)):  # none of a few blocks only
                stretches = [self.rows(block) for block in some]
                yield rng.permutation(np.concatenate([np.arange(of.start, of.stop) for of in stretches]))

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, Matrix]:
        """Return these rows and what is kept of their cells; they are those of some whole blocks."""
        blocks = np.unique(rows // self.block_cells)
        x = sparse.vstack([self.split(block)[0] for block in blocks], format="csr")
        return rows, x[np.argsort(np.argsort(rows))]
