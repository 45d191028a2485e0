"""Counterfactual cells: what control cells would be under a perturbation, molecule by molecule.

    1. own molecules     a cell keeps its identity: it starts from what was counted in it
    2. new molecules     of every gene, more than will be needed, are dealt to the cells that the network thinks likely:
                         a gene's total belongs to the population, its place to the network
    3. thresholds        every molecule draws a mark in [0, 1] and stays if it is below its gene's threshold, which is
                         bisected until the population's mean log1p(CP10k) is the target

Genes that go up keep all their own molecules and win new ones, genes that go down lose own ones, so that means are met
in counts and the variance is that of counting. Step 2 balances rows (the depth each cell shall have) and columns (the
totals) of the allocation by iterative proportional fitting (Sinkhorn 1967).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scidiff.sampling.solvers import Denoiser

PER = 1e4


@dataclass(frozen=True)
class Allocation:
    """How new molecules are dealt.

    Parameters
    ----------
    n_steps
        Geometric steps; after each the network looks again at the cells as they have become.
    sweeps
        Of the balancing of each step.
    noise
        Shape of the gamma noise that makes cells differ beyond what the network foresees; inf: none.
    surplus
        How many more molecules are dealt than are expected to be needed.
    """

    n_steps: int = 6
    sweeps: int = 3
    noise: float = 5.0
    surplus: float = 1.5


@torch.no_grad()
def deal(
    denoiser: Denoiser | None,
    x: Tensor,
    totals: Tensor,
    room: Tensor,
    cond: object,
    *,
    how: Allocation,
    generator: torch.Generator,
) -> Tensor:
    """Return new molecules for the cells ``x``, counts, shape (n_cells, n_genes).

    Parameters
    ----------
    denoiser
        Predicts logits of each cell's further molecules. None: all cells alike.
    x
        Molecules the cells have, shape (n_cells, n_genes).
    totals
        Molecules of each gene to deal, shape (n_genes,).
    room
        Molecules each cell shall receive, relative to the others, shape (n_cells,).
    cond
        Conditions of the cells, those they are to be changed to.
    how
        Settings.
    generator
        Source of randomness.
    """
    room = room.clamp_min(1e-3)
    share = room / room.sum()
    new = torch.zeros_like(x)
    depth = x.sum(dim=1)
    grown = ((depth + room) / depth.clamp_min(1)) ** (torch.arange(1, how.n_steps + 1)[:, None] / how.n_steps)
    parts = ((grown - 1) * depth / room).clamp(0, 1)  # share of the new molecules that have come after each step
    before = torch.zeros_like(parts[0])
    for after in parts:
        weight = (
            torch.ones_like(x) if denoiser is None else torch.softmax(denoiser(x + new, depth + new.sum(1), cond), 1)
        )
        if np.isfinite(how.noise):
            weight = weight * torch._standard_gamma(torch.full_like(weight, how.noise), generator=generator)
        rows = share * (after - before)
        expected = balanced(weight, rows / rows.sum().clamp_min(1e-12), totals * float(rows.sum()), sweeps=how.sweeps)
        new = new + torch.poisson(expected, generator=generator)
        before = after
    return new


def balanced(weight: Tensor, rows: Tensor, columns: Tensor, *, sweeps: int) -> Tensor:
    """Return ``weight`` scaled so that columns sum to ``columns`` and rows nearly to shares ``rows`` of everything."""
    weight = weight.clamp_min(1e-12)
    row_scale = rows * columns.sum()
    for _ in range(sweeps):
        weight = weight * (columns / weight.sum(dim=0).clamp_min(1e-12))
        weight = weight * (row_scale / weight.sum(dim=1).clamp_min(1e-12))[:, None]
    return weight * (columns / weight.sum(dim=0).clamp_min(1e-12))


def thresholded(
    own: sparse.csr_matrix,
    new: sparse.csr_matrix,
    target: np.ndarray,
    *,
    depth: np.ndarray,
    seed: int,
    rounds: int = 5,
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return cells whose genes have the mean log1p(CP10k) asked for, and what no threshold reached.

    Parameters
    ----------
    own, new
        Molecules the cells have and those dealt to them, counts, shape (n_cells, n_genes).
    target
        Mean log1p(CP10k) over the cells, shape (n_genes,).
    depth
        Molecules the cells shall have, shape (n_cells,): what CP10k refers to, until it is known what they do have.
    seed
        Of the marks.
    rounds
        How often thresholds are fitted; from the second on to the totals that came out.

    Returns
    -------
    counts csr, shape (n_cells, n_genes), and target minus reached where all molecules were used, shape (n_genes,).
    """
    rng = np.random.default_rng(seed)
    pools = [_Molecules(part, rng) for part in (own, new)]
    n_genes = own.shape[1]
    keep_own, keep_new = np.ones(n_genes), np.zeros(n_genes)
    total = np.asarray(depth, dtype=float)
    for _ in range(rounds):
        factor = PER / np.maximum(total, 1)
        down = _mean_log(own, factor) > target
        keep_own = np.where(down, _bisect(partial(pools[0].mean_log, None, factor), target, n_genes), 1.0)
        keep_new = np.where(down, 0.0, _bisect(partial(pools[1].mean_log, own, factor), target, n_genes))
        made = pools[0].below(keep_own) + pools[1].below(keep_new)
        reached, total = total, np.asarray(made.sum(axis=1)).ravel()
    short = np.where(keep_new >= 1, target - _mean_log(made, PER / np.maximum(reached, 1)), 0.0)
    return made, np.maximum(short, 0.0)


class _Molecules:
    """Molecules one by one, each with its mark, sorted by the (cell, gene) they belong to."""

    def __init__(self, counts: sparse.csr_matrix, rng: np.random.Generator) -> None:
        counts = sparse.csr_matrix(counts)
        counts.eliminate_zeros()
        self.shape = counts.shape
        n = counts.data.astype(np.int64)
        rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        self.place = np.repeat(rows * counts.shape[1] + counts.indices.astype(np.int64), n)
        self.gene = np.repeat(counts.indices, n)
        self.mark = rng.random(len(self.gene), dtype=np.float32)

    def below(self, threshold: np.ndarray) -> sparse.csr_matrix:
        """Return the counts of the molecules below their gene's threshold."""
        place = self.place[self.mark < threshold[self.gene]]
        where, n = np.unique(place, return_counts=True)
        rows, columns = np.divmod(where, self.shape[1])
        return sparse.csr_matrix((n.astype(np.float32), (rows, columns)), shape=self.shape)

    def mean_log(self, also: sparse.csr_matrix | None, factor: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        """Return the mean log1p of those, and of the counts ``also``, times a factor per cell."""
        kept = self.below(threshold)
        return _mean_log(kept if also is None else kept + also, factor)


def _mean_log(counts: sparse.csr_matrix, factor: np.ndarray) -> np.ndarray:
    """Return the mean over cells of log1p(factor x counts), shape (n_genes,)."""
    logged = np.log1p(counts.data * np.repeat(factor, np.diff(counts.indptr)))
    return np.bincount(counts.indices, logged, minlength=counts.shape[1]) / counts.shape[0]


def _bisect(value, target: np.ndarray, n: int, *, halvings: int = 14) -> np.ndarray:
    """Return thresholds at which the rising ``value`` of each gene meets its target; 1 if it cannot."""
    low, high = np.zeros(n), np.ones(n)
    reachable = value(high) >= target
    for _ in range(halvings):
        middle = (low + high) / 2
        enough = value(middle) >= target
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(reachable, (low + high) / 2, 1.0)


def counterfactual(
    denoiser: Denoiser | None,
    x: sparse.csr_matrix,
    target: np.ndarray,
    cond: object,
    *,
    depth_ratio: float,
    how: Allocation | None = None,
    seed: int,
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return control cells as they would be under a perturbation, csr counts, and how far means fell short.

    Parameters
    ----------
    denoiser
        Deals new molecules; None: by depth alone.
    x
        Counts of control cells of one context, shape (n_cells, n_genes).
    target
        Mean log1p(CP10k) of the perturbed population, shape (n_genes,).
    cond
        Encoded conditions of the cells under the perturbation.
    depth_ratio
        Molecules per cell, perturbed to control.
    how
        Settings of the allocation.
    seed
        Makes the result reproducible.
    """
    how = how or Allocation()
    generator = torch.Generator().manual_seed(seed)
    x = sparse.csr_matrix(x, dtype=np.float32)
    depth = np.asarray(x.sum(axis=1)).ravel()
    wished = depth * depth_ratio
    base = _mean_log(x, PER / np.maximum(wished, 1))
    # a first guess of the molecules each gene needs: in proportion to its fold change of CP10k at the mean
    rate = np.asarray(x.multiply((PER / np.maximum(depth, 1))[:, None]).sum(axis=0)).ravel() / x.shape[0]
    step = np.maximum(target - base, 0)
    slope = np.where(rate > 0, base / np.maximum(rate, 1e-9), np.log1p(PER / np.median(depth)) * np.median(depth) / PER)
    wanted = how.surplus * step / np.maximum(slope, 1e-9) * wished.sum() / PER
    wanted = np.where(step > 0, wanted + 3, 0.0)
    room = np.maximum(depth, 1) * max(wanted.sum() / max(depth.sum(), 1), 1e-3)
    dense = torch.from_numpy(x.toarray())
    new = torch.zeros_like(dense)
    for attempt in range(3):
        totals = torch.from_numpy(wanted).float()
        dealt = deal(denoiser, dense + new, totals, torch.from_numpy(room).float(), cond, how=how, generator=generator)
        new = new + dealt
        made, short = thresholded(x, sparse.csr_matrix(new.numpy()), target, depth=wished, seed=seed)
        if attempt == 2 or not (short > 0.01).any():
            break
        wanted = np.where(short > 0.01, 2 * np.asarray(new.sum(0)) + 10, 0.0)
    return made, short
