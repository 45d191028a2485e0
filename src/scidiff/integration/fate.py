"""Fate: where a cell ends, from a walk over the cells there are, until it meets one that has arrived.

    T_ij ~ exp((v_i / |v|  +  d_i / l) . e_ij / c)        j among the neighbours of i, e_ij the unit vector to j
    F = (1 - Q)^-1 R                                       probability of each end, per cell

From a cell the walk goes on to its neighbours, the more likely the better they lie in the direction v that the cell is
moving in (La Manno et al. 2018; Bergen et al. 2020; c is the median cosine, Lange et al. 2022). |v| is the root mean
square over cells: cells at rest go anywhere, where a cosine for each cell would make a direction of their noise. A
perturbation pushes: d is what it does to a cell, l the distance that neighbours have, so that no effect changes
nothing. Cells that have arrived are left no more: the chain is absorbing, and the probabilities of where it ends have
a closed form, Q the part of T among cells on the way, R that into the ends (Kemeny & Snell 1960).

Neighbours say which way cells can go, not how many of them do: the end that is nearest takes too many. Where cells flow
steadily and stay as long in every end, as many flow into each as are found there. Ends are therefore weighted, F_b w_b
normalised for every cell, which is the walk told where it will end (Doob's transform), with w such that the cells on
the way end in the shares of those that have arrived (the balance of Weinreb et al. 2018, for the ends alone).

Which cells were caught is chance: the walk is done on halves of the cells, drawn anew for every round. The mean over
rounds is the estimate, better than one walk over all (Breiman 1996), and their spread that of the estimate from all
cells (half-samples without repetition vary as the bootstrap does: Bühlmann & Yu 2002).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from scidiff.errors import InputError
from scidiff.integration.velocity import N_NEIGHBORS

#: steps after which nothing is known of a walk
LOST = 1e8


@dataclass(frozen=True, eq=False)
class Fates:
    """Probabilities of the ends of cells.

    Parameters
    ----------
    names
        The ends.
    rounds
        Probabilities in each round, shape (n_rounds, n_cells, n_ends).
    weights
        Weights of the ends in each round, shape (n_rounds, n_ends).
    """

    names: list[str]
    rounds: np.ndarray
    weights: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """Mean over rounds, shape (n_cells, n_ends); rows sum to 1."""
        return self.rounds.mean(axis=0)

    def of(self, cells: np.ndarray, *, level: float = 0.9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean probability of some cells and its interval (estimate, low, high), shape (n_ends,) each."""
        rounds = self.rounds[:, cells].mean(axis=1)
        return rounds.mean(axis=0), *interval(rounds, level=level)


def interval(rounds: np.ndarray, *, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of values over rounds, the first axis."""
    low, high = np.quantile(rounds, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def fates(
    points: np.ndarray,
    ends: np.ndarray,
    names: list[str],
    *,
    direction: np.ndarray | None = None,
    push: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    n_neighbors: int = N_NEIGHBORS,
    n_rounds: int = 20,
    seed: int = 0,
) -> Fates:
    """Return the probability that each cell ends in each of the ends.

    Parameters
    ----------
    points
        Where cells are, shape (n_cells, n_dimensions).
    ends
        For each cell the place in ``names`` of the end it has reached, -1 if it is on the way, shape (n_cells,).
    names
        The ends.
    direction
        Where cells go, shape of ``points``; None: the walk has no direction but those ends.
    push
        What a perturbation does to cells, shape of ``points``; None: nothing.
    weights
        Of the ends in each round, shape (n_rounds, n_ends), as of fates without a push. Default: in balance.
    n_neighbors
        Cells that a step may lead to.
    n_rounds
        Halves of the cells that are walked on.
    seed
        Draws the halves: the same for the same seed, so that two fates may be compared round by round.

    Raises
    ------
    InputError
        An end has too few cells, or there are too few on the way.
    """
    n = len(points)
    if n_rounds < 2:
        raise InputError(f"n_rounds={n_rounds}: an interval needs two rounds at least")
    for place, name in enumerate(names):
        if (found := int((ends == place).sum())) < 4:
            raise InputError(f"{found} cells have reached {name!r}: at least 4 are needed")
    if n < 4 * 4 or not (ends < 0).any():
        raise InputError(f"of {n} cells {int((ends < 0).sum())} are on the way: there is nothing to ask, or too few")
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(ends == place) for place in range(-1, len(names))]
    shares = np.array([len(group) for group in groups[1:]], dtype=float)
    rounds, used = [], []
    for i in range(n_rounds):
        half = np.concatenate([rng.permutation(group)[: -(-len(group) // 2)] for group in groups])
        steps = transitions(
            points, direction=direction, push=push, among=np.sort(half), n_neighbors=min(n_neighbors, len(half) - 1)
        )
        chance = absorbed(steps, ends, len(names), among=half)
        used.append(balance(chance[ends < 0], shares / shares.sum()) if weights is None else weights[i])
        rounds.append(weighted(chance, used[-1]))
    return Fates(list(names), np.stack(rounds), np.stack(used))


def balance(chance: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return weights of the ends with which cells end in these shares, shape (n_ends,), mean of their logarithms 0.

    ``chance``: of the ends for each cell, shape (n_cells, n_ends). No end gets more than a hundred times its chance.
    """
    log_weight = np.zeros(len(shares))
    for _ in range(100):
        found = weighted(chance, np.exp(log_weight)).mean(axis=0)
        gap = np.log(shares / np.maximum(found, 1e-12))
        log_weight = np.clip(log_weight + gap, -np.log(100), np.log(100))
        if np.abs(gap).max() < 1e-4:
            break
    return np.exp(log_weight - log_weight.mean())


def weighted(chance: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return chances of ends with weights, rows sum to 1."""
    out = chance * weights
    return out / out.sum(axis=1, keepdims=True)


def transitions(
    points: np.ndarray,
    *,
    direction: np.ndarray | None = None,
    push: np.ndarray | None = None,
    among: np.ndarray | None = None,
    n_neighbors: int = N_NEIGHBORS,
) -> sparse.csr_matrix:
    """Return the probability of a step from cell to cell, csr, shape (n_cells, n_cells), rows sum to 1.

    Parameters
    ----------
    points, direction, push
        As in :func:`fates`.
    among
        Cells that a step may lead to; default: all.
    n_neighbors
        Nearest of them that it does lead to; a cell is no neighbour of its own.
    """
    from sklearn.neighbors import NearestNeighbors

    n = len(points)
    for name, vectors in (("direction", direction), ("push", push)):
        if vectors is not None and vectors.shape != points.shape:
            raise InputError(f"{name} has shape {vectors.shape}, the cells' places {points.shape}")
    among = np.arange(n) if among is None else among
    if not 1 <= n_neighbors < len(among):
        raise InputError(f"n_neighbors={n_neighbors}: need a number from 1 to {len(among) - 1}")
    found = among[NearestNeighbors(n_neighbors=n_neighbors + 1).fit(points[among]).kneighbors(points)[1]]
    own = found == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True  # a cell that is not among them has one neighbour too many
    near = found[~own].reshape(n, n_neighbors)
    points = np.asarray(points, dtype=float)
    steps = points[near] - points[:, None]
    length = np.linalg.norm(steps, axis=2)
    steps /= np.maximum(length, 1e-12)[..., None]
    logits, scale = np.zeros(near.shape), 1.0
    if direction is not None:
        speed = np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
        cosine = np.einsum("nkd,nd->nk", steps, direction / speed)
        scale = max(float(np.median(np.abs(cosine))), 1e-6)
        logits = cosine * speed / np.sqrt(np.mean(speed**2)) / scale
    if push is not None:
        logits = logits + np.einsum("nkd,nd->nk", steps, push) / (scale * max(float(np.median(length)), 1e-12))
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    bounds = np.arange(0, n * n_neighbors + 1, n_neighbors)
    matrix = sparse.csr_matrix((weight.ravel(), near.ravel(), bounds), shape=(n, n))
    matrix.sort_indices()
    return matrix


def absorbed(steps: sparse.csr_matrix, ends: np.ndarray, n_ends: int, *, among: np.ndarray | None = None) -> np.ndarray:
    """Return the probability that a walk ends in each end, shape (n_cells, n_ends).

    Parameters
    ----------
    steps
        Probabilities of steps, rows sum to 1, shape (n_cells, n_cells).
    ends
        As in :func:`fates`; what leads out of cells that have arrived is not looked at.
    n_ends
        Number of ends.
    among
        Cells that steps lead to; default: all. The others take one step into these.

    Cells from which no end can be reached have equal probabilities: nothing is known of them. So a walk is taken to be
    lost after :data:`LOST` steps on average, which also keeps the equations solvable where one can hardly be left.
    """
    from scipy.sparse.linalg import splu

    inside = np.zeros(len(ends), dtype=bool)
    inside[slice(None) if among is None else among] = True
    out = np.eye(n_ends)[np.maximum(ends, 0)] * (ends >= 0)[:, None]
    way = inside & (ends < 0)
    if way.any():
        goes_on = 1 - 1 / LOST
        into = goes_on * (steps[way] @ out) + 1 / LOST / n_ends
        out[way] = splu((sparse.identity(way.sum()) - goes_on * steps[way][:, way]).tocsc()).solve(into)
    others = ~inside & (ends < 0)
    out[others] = steps[others] @ np.where(inside[:, None], out, 0)
    out = np.clip(out, 0, None)
    return out / out.sum(axis=1, keepdims=True)
