"""Counterfactual cells: what control cells would be under a perturbation, molecule by molecule.

    1. own molecules    a cell keeps its identity: it starts from what was counted in it
    2. new molecules    of every gene that rises, more than will be needed are dealt to the cells that the network
                        thinks likely: a gene's total belongs to the population, its place to the network
    3. queues           the molecules of a gene stand in line, own ones first, else in random order; every one more
                        raises the gene's mean log1p(CP10k) over the cells, and those before the target stay

So genes that rise keep all their own molecules and win new ones, genes that fall lose own ones, means are met in
counts, and the variance is that of counting. In step 2 gene g has T_g molecules to deal, in cells of depth d_c::

    expected_cg = T_g d_c p_cg r_cg / sum_c (d_c p_cg r_cg)      p: the network's composition

r is what a cell keeps of its own: how much more of the gene it had than the network expected, 1 if nothing is told.

Means and depth need not agree: where new molecules fall more evenly than in real cells, or the target is no
composition, the cells reach it with D times the molecules asked for; and in deep cells any D will nearly do. So both
give way a little: CP10k refers to the molecules that the cells end up with, D times those asked for, and the target is
s times that of the closed form in CP10k, with ``log s = -log(D) / 10``; beyond bounds of D, only s gives way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scidiff.sampling.solvers import Denoiser

PER = 1e4
GIVE = 0.1  # -log s / log D
DEPTHS = (0.5, 2.0)  # bounds of D
ROUNDS = 12  # of fitting D and s at most ...
CLOSE = 0.002  # ... until the molecules are those that CP10k refers to, as a share
DEALS = 3  # times that more molecules are dealt of genes that fall short ...
SHORT = 0.01  # ... by more than this, in log1p(CP10k)


@dataclass(frozen=True)
class Allocation:
    """How new molecules are dealt.

    Parameters
    ----------
    n_steps
        Geometric steps; after each the network looks again at the cells as they have become.
    surplus
        How many more molecules are dealt than are expected to be needed.
    """

    n_steps: int = 4
    surplus: float = 1.5


def counterfactual(
    denoiser: Denoiser | None,
    x: sparse.csr_matrix,
    target: np.ndarray,
    cond: object,
    *,
    depth_ratio: float,
    kept: Tensor | None = None,
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
    kept
        How much more a cell had of each gene than the network expected, r of the module head, shape (n_cells, n_genes).
    how
        Settings of the allocation.
    seed
        Makes the result reproducible.
    """
    how = how or Allocation()
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    x = sparse.csr_matrix(x, dtype=np.float32)
    depth = np.maximum(_row_sums(x), 1)
    wished = depth * depth_ratio
    dense = torch.from_numpy(x.toarray())
    kept = torch.ones_like(dense) if kept is None else kept
    new = torch.zeros_like(dense)
    expected = needed(x, target, wished)
    totals = np.where(expected > 0, how.surplus * expected + 4 * np.sqrt(expected) + 1, 0.0)
    for _ in range(DEALS):
        genes = np.flatnonzero(totals)
        room = torch.from_numpy(depth * totals.sum() / depth.sum()).float()
        dealt = torch.from_numpy(totals[genes]).float()
        own = dense + new
        new += deal(denoiser, own, dealt, room, cond, genes=genes, kept=kept, how=how, generator=generator)
        made, short = queued(x, sparse.csr_matrix(new.numpy()), target, depth=wished, rng=rng)
        if not (short > SHORT).any():
            break
        totals = np.where(short > SHORT, 2 * new.sum(dim=0).numpy() + 10, 0.0)
        how = replace(how, n_steps=1)  # of few genes, for cells that by now look as they shall
    return made, short


def needed(x: sparse.csr_matrix, target: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return about how many new molecules each gene needs to reach its target, shape (n_genes,); 0 where it falls.

    Parameters
    ----------
    x
        Molecules that the cells have, shape (n_cells, n_genes).
    target
        Mean log1p(CP10k), shape (n_genes,).
    depth
        Molecules that the cells shall have, shape (n_cells,).
    """
    base = _mean_log(x, PER / depth)
    rise = np.maximum(target - base, 0)
    one = PER / np.median(depth)
    alone = rise / np.log1p(one) * one  # every molecule in a cell that had none: CP10k, as the next
    crowded = np.exp(np.euler_gamma) * (np.expm1(target) - np.expm1(base))  # E log of an exponential is -gamma
    return np.where(rise > 0, np.maximum(alone, crowded) * depth.sum() / PER, 0.0)


# ---- new molecules ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def deal(
    denoiser: Denoiser | None,
    x: Tensor,
    totals: Tensor,
    room: Tensor,
    cond: object,
    *,
    genes: np.ndarray,
    kept: Tensor,
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
        Molecules to deal of each of ``genes``, shape (n_dealt,).
    room
        Molecules each cell shall receive, relative to the others, shape (n_cells,).
    cond
        Conditions of the cells, those they are to be changed to.
    genes
        Positions of the genes of which there are new molecules, shape (n_dealt,).
    kept
        r of the module head, shape (n_cells, n_genes).
    how
        Settings.
    generator
        Source of randomness.
    """
    columns = torch.from_numpy(genes)
    depth = x.sum(dim=1)
    steps = torch.arange(1, how.n_steps + 1)[:, None] / how.n_steps
    grown = ((depth + room) / depth.clamp_min(1)) ** steps
    share = ((grown - 1) * depth / room.clamp_min(1e-12)).clamp(0, 1)  # of a cell's molecules, come after each step
    share[-1] = 1
    new = torch.zeros_like(x)
    before = torch.zeros_like(depth)
    for after in share:
        weight = kept[:, columns] * (room * (after - before))[:, None]
        if denoiser is not None:
            weight *= torch.softmax(denoiser(x + new, depth + new.sum(dim=1), cond), dim=1)[:, columns]
        total = totals * (room @ (after - before)) / room.sum().clamp_min(1e-12)
        weight *= total / weight.sum(dim=0).clamp_min(1e-30)
        new[:, columns] += torch.poisson(weight, generator=generator)
        before = after
    return new


# ---- which molecules stay --------------------------------------------------------------------------------------------


def queued(
    own: sparse.csr_matrix, new: sparse.csr_matrix, target: np.ndarray, *, depth: np.ndarray, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return cells whose genes have the mean log1p(CP10k) asked for, and what lack of molecules left undone.

    Parameters
    ----------
    own, new
        Molecules the cells have and those dealt to them, counts, shape (n_cells, n_genes).
    target
        Mean log1p(CP10k) over the cells, shape (n_genes,).
    depth
        Molecules the cells shall have, shape (n_cells,): what CP10k refers to, until it is known what they do have.
    rng
        Orders the queues.

    Returns
    -------
    counts csr, shape (n_cells, n_genes), and how far genes all of whose molecules were used fell short, (n_genes,).
    """
    queues = _Queues.of(own, new, rng)
    wished, total = depth.sum(), np.asarray(depth, dtype=float)
    log_s, slope, before = 0.0, 2.0, None
    for _ in range(ROUNDS):
        aim = np.log1p(np.exp(log_s) * np.expm1(target))
        stay = queues.before(aim, total)
        made = np.bincount(queues.cell[stay], minlength=len(total))
        excess = np.log(max(made.sum(), 1) / total.sum())
        if abs(excess) < CLOSE:
            break
        if before is not None and before[0] != log_s:  # the secant
            slope = np.clip((excess - before[1]) / (log_s - before[0]), 0.5, 20)
        before = log_s, excess
        log_s -= excess / slope
        total = np.maximum(made, 1.0)
        total *= np.clip(np.exp(-log_s / GIVE), *DEPTHS) * wished / total.sum()
    counts = queues.counts(stay)
    exhausted = np.bincount(queues.gene[~stay], minlength=own.shape[1]) == 0
    return counts, np.where(exhausted, np.maximum(aim - _mean_log(counts, PER / total), 0), 0.0)


@dataclass(frozen=True, eq=False)
class _Queues:
    """Molecules one by one, those of a gene together and in line, shape (n_molecules,) each.

    ``rank``: how many molecules of its gene and cell stand before each; ``first``: position of the first of its gene.
    """

    cell: np.ndarray
    gene: np.ndarray
    rank: np.ndarray
    first: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of(cls, own: sparse.csr_matrix, new: sparse.csr_matrix, rng: np.random.Generator) -> _Queues:
        n_genes = own.shape[1]
        keys = []
        for late, counts in enumerate((own, new)):
            counts = counts.tocoo()
            place = np.repeat(counts.row.astype(np.int64) * n_genes + counts.col, counts.data.astype(np.int64))
            keys.append(2 * place + late + rng.random(len(place)))
        key = np.sort(np.concatenate(keys))  # by cell and gene, own molecules before new ones, then at random
        place = (key // 2).astype(np.int64)
        rank = _places_in_runs(place)
        cell, gene = np.divmod(place, n_genes)
        order = np.argsort(key - 2 * place + 2 * gene)
        gene = gene[order]
        first = np.arange(len(gene)) - _places_in_runs(gene)
        return cls(cell[order], gene, rank[order], first, own.shape)

    def before(self, target: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Return a mask of the molecules before the target; ``total``: of each cell, what CP10k refers to."""
        if not len(self.gene):
            return np.zeros(0, dtype=bool)
        factor = (PER / total)[self.cell]
        gain = np.log1p(factor * (self.rank + 1)) - np.log1p(factor * self.rank)
        reached = np.cumsum(gain)
        reached -= (reached - gain)[self.first]
        # the last one stays if it brings the mean nearer to the target
        return reached - gain / 2 < (target * len(total))[self.gene]

    def counts(self, stay: np.ndarray) -> sparse.csr_matrix:
        """Return the molecules in the mask as counts."""
        ones = np.ones(np.count_nonzero(stay), dtype=np.float32)
        return sparse.csr_matrix((ones, (self.cell[stay], self.gene[stay])), shape=self.shape)


def _places_in_runs(values: np.ndarray) -> np.ndarray:
    """Return how many equal values stand directly before each, for values that are sorted."""
    first = np.flatnonzero(np.diff(values, prepend=-1))
    return np.arange(len(values)) - np.repeat(first, np.diff(first, append=len(values)))


def _mean_log(counts: sparse.csr_matrix, factor: np.ndarray) -> np.ndarray:
    """Return the mean over cells of log1p(factor x counts), shape (n_genes,)."""
    logged = np.log1p(counts.data * np.repeat(factor, np.diff(counts.indptr)))
    return np.bincount(counts.indices, logged, minlength=counts.shape[1]) / counts.shape[0]


def _row_sums(x: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
