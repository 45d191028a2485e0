"""Paths between cells: one cell turns into another molecule by molecule, and who turns into whom.

    x(c) = min(a, b)  +  what only a has, not yet gone  +  what only b has, already come         mean: (1 - c) a + c b

Every molecule by which the two cells a and b differ has a time of its own, uniform on [0, 1], and changes when the
clock c passes it: displacement interpolation (McCann 1997) in counts. They stay integers, zeros stay zeros, and
successive frames of a path share all molecules but those that changed in between. A clock may run differently for each
gene, as the effects of a perturbation do, or for each cell.

Populations that nobody followed are coupled by optimal transport, and a cell's clock has two parts::

    m(s) = s^2 G / ((1 - s)^2 + s^2 G)                              share that has arrived, after the share s of the way
    c(s) = Phi((Phi^-1(m(s)) - sqrt(r) z) / sqrt(1 - r))            z ~ N(0, 1) of each cell; the mean over cells is m

Cells that multiply: where the population grows G-fold, the square roots of the masses that leave and arrive change at
constant speed (the Fisher-Rao geodesic, which unbalanced transport follows over long ways; Chizat et al. 2018), so most
cells have arrived early. Cells are not in step: r is the share of the variance in time that lies between cells rather
than between the molecules of one. r = 0 moves all together, through states that no cell has; r = 1 lets each jump.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import sparse

Matrix: TypeAlias = sparse.csr_matrix | np.ndarray

#: r, above: a cell changes as a whole; its molecules are a third as far apart in time (in deviations) as the cells are
BETWEEN_CELLS = 0.9
#: entropy of a coupling, in mean costs: enough for cells to have several partners, as noisy cells have
ENTROPY = 0.01
#: what it costs, in mean costs, that cells leave more or fewer descendants than others
UNEVEN = 1.0
#: rounds of fitting a coupling at most, products in each, and when to stop: relative change of a weight in a round
MAX_ROUNDS, PRODUCTS, CLOSE = 100, 20, 0.01


# ---- from a cell to its end ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bridge:
    """The molecules by which pairs of cells differ, and when each of them changes.

    Parameters
    ----------
    shared
        What both cells of a pair have, counts, csr, shape (n_cells, n_genes).
    cell, gene
        Place of each molecule that only one of them has, shape (n_molecules,).
    comes
        Whether it is the end's; else it is the start's and goes.
    when
        What the clock shows when it changes, in [0, 1).
    """

    shared: sparse.csr_matrix
    cell: np.ndarray
    gene: np.ndarray
    comes: np.ndarray
    when: np.ndarray

    @classmethod
    def between(cls, start: sparse.csr_matrix, end: sparse.csr_matrix, *, rng: np.random.Generator) -> Bridge:
        """Return the bridge from each cell of ``start`` to that of ``end``, counts, shape (n_cells, n_genes) each."""
        start, end = sparse.csr_matrix(start), sparse.csr_matrix(end)
        change = (end - start).tocoo()
        n = np.abs(change.data).astype(np.int64)
        cell, gene = np.repeat(change.row, n), np.repeat(change.col, n)
        return cls(start.minimum(end), cell, gene, np.repeat(change.data > 0, n), rng.random(len(cell)))

    def at(self, clock: np.ndarray, kind: np.ndarray) -> sparse.csr_matrix:
        """Return the cells when the clock shows a time, counts, csr, shape (n_cells, n_genes).

        Parameters
        ----------
        clock
            0 at the start, 1 at the end, shape (n_kinds, n_genes), or (n_kinds, 1) where genes keep step.
        kind
            Row of ``clock`` that each cell follows, shape (n_cells,).
        """
        row = kind[self.cell]
        shown = clock[row, 0] if clock.shape[1] == 1 else clock[row, self.gene]
        here = (self.when < shown) == self.comes
        ones = np.ones(np.count_nonzero(here), dtype=np.float32)
        counts = sparse.csr_matrix((ones, (self.cell[here], self.gene[here])), shape=self.shared.shape)
        return sparse.csr_matrix(self.shared + counts, dtype=np.float32)


def frames(
    start: Matrix, end: Matrix, clocks: Iterable[np.ndarray], kind: np.ndarray, *, rng: np.random.Generator
) -> Iterator[Matrix]:
    """Yield the cells at each clock: counts (sparse) molecule by molecule, dense log expression in a straight line.

    Parameters
    ----------
    start, end
        Pairs of cells, shape (n_cells, n_genes) each.
    clocks, kind
        As :meth:`Bridge.at` takes them.
    rng
        Gives every molecule its time.
    """
    if not sparse.issparse(start):
        for clock in clocks:
            yield start + clock[kind] * (end - start)
        return
    bridge = Bridge.between(start, end, rng=rng)
    for clock in clocks:
        yield bridge.at(clock, kind)


# ---- clocks ----------------------------------------------------------------------------------------------------------


def arrived(share: np.ndarray | float, growth: float) -> np.ndarray:
    """Return the share m of a population that has arrived after a share of the way; ``growth``: end to start."""
    share = np.asarray(share, dtype=float)
    came, stayed = growth * share**2, (1 - share) ** 2
    return came / (came + stayed)


def asynchronous(mean: float, earliness: np.ndarray, *, between: float = BETWEEN_CELLS) -> np.ndarray:
    """Return the clock of each cell, shape (n_cells,), where the population's shows ``mean``.

    Parameters
    ----------
    mean
        Mean of the clocks, m, in [0, 1].
    earliness
        -z: standard normal numbers, one per cell, the same at all times.
    between
        r, the share of the variance in time that lies between cells, in [0, 1).
    """
    from scipy.stats import norm

    return norm.cdf((norm.ppf(mean) + np.sqrt(between) * earliness) / np.sqrt(1 - between))


def by_composition(clock: np.ndarray, start_depth: np.ndarray, end_depth: np.ndarray) -> np.ndarray:
    """Return the share of molecules to change so that the mean composition is (1 - c) that of start + c of end.

    Without it, the deeper of two cells would speak louder. Depth follows the weighted harmonic mean. Shape (n_cells,).
    """
    leaving, coming = (1 - clock) / np.maximum(start_depth, 1), clock / np.maximum(end_depth, 1)
    return coming / (leaving + coming)


# ---- who turns into whom ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Coupling:
    """Entropic optimal transport between two populations, as what it says of any cell of the first (Cuturi 2013)::

        plan_ij = exp(f_i + g_j - |x_i - y_j|^2 / unit) / (n_start n_end)

    f_i follows from g and x_i alone, so that cells which were not among those coupled have their partners too.

    Parameters
    ----------
    end
        Places of the cells of the second population, shape (n_end, n_components).
    potential
        g, shape (n_end,).
    unit
        Squared distance that costs one nat.
    held
        1: all cells of the first population weigh the same. Below: they may have descendants in uneven numbers, at the
        price of a Kullback-Leibler divergence (Chizat et al. 2018; Schiebinger et al. 2019).
    """

    end: np.ndarray
    potential: np.ndarray
    unit: float
    held: float

    @classmethod
    def fit(cls, start: np.ndarray, end: np.ndarray, *, uneven: bool) -> Coupling:
        """Return the coupling of two samples of cells, principal components, shape (n_cells, n_components) each."""
        from scipy.spatial.distance import cdist
        from scipy.special import logsumexp

        cost = cdist(start, end, "sqeuclidean")
        unit = ENTROPY * max(float(cost.mean()), 1e-12)
        cost /= unit
        held = UNEVEN / (UNEVEN + ENTROPY) if uneven else 1.0
        log_n, log_m = np.log(cost.shape)
        g = np.zeros(len(end))
        for _ in range(MAX_ROUNDS):  # each begins in logarithms, exact, and goes on with products, fast
            f = -held * (logsumexp(g - cost, axis=1) - log_m)
            g = -(logsumexp(f[:, None] - cost, axis=0) - log_n)
            f0, g0, kernel = f, g, np.exp(f[:, None] + g - cost)
            for _ in range(PRODUCTS):
                before = f
                f = -held * (np.log(kernel @ np.exp(g - g0)) - f0 - log_m)
                g = -(np.log(np.exp(f - f0) @ kernel) - g0 - log_n)
            if np.abs(f - before).max() < CLOSE / PRODUCTS:
                break
        return cls(end, g, unit, held)

    def partners(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the chance of each partner, rows sum to 1, shape (n_start, n_end), and the relative number of
        descendants of each cell, shape (n_start,)."""
        from scipy.spatial.distance import cdist
        from scipy.special import logsumexp

        chance = self.potential - cdist(start, self.end, "sqeuclidean") / self.unit
        total = logsumexp(chance, axis=1)
        return np.exp(chance - total[:, None]), np.exp((1 - self.held) * (total - np.log(len(self.end))))


def draw_each(chance: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Return one column for each row, drawn with these chances, shape (n_rows,)."""
    edges = np.cumsum(chance, axis=1)
    at = rng.random(len(chance)) * edges[:, -1]
    return np.minimum((edges <= at[:, None]).sum(axis=1), chance.shape[1] - 1)


def draw_spread(weight: np.ndarray, n: int, *, rng: np.random.Generator) -> np.ndarray:
    """Return ``n`` indices, each as often as its weight says to within one (systematic sampling), shape (n,)."""
    edges = np.cumsum(weight)
    at = (np.arange(n) + rng.random()) / n * edges[-1]
    return np.minimum(np.searchsorted(edges, at, side="right"), len(weight) - 1)
