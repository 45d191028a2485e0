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

What a perturbation does to a cell's expression says little of where the cell goes: cells can be pushed toward an end
that they will not choose, and how hard a push is beside a step of the walk is not known. Rounds take it from a quarter
of d to its double, in turns, and the interval shows what that changes. Where cells had the perturbation, they say more:
they are counted where they have arrived, and the ends of the walk weighted once more, with w such that it ends in these
shares (:meth:`Fates.told`).

Which cells were caught is chance: the walk is done on halves of the cells, drawn anew for every round. The mean over
rounds is the estimate, better than one walk over all (Breiman 1996), and their spread that of the estimate from all
cells (half-samples without repetition vary as the bootstrap does: Bühlmann & Yu 2002).

    F_i  <-  m + r (F_i - m),    r = 2 c / (1 + c)           m the mean of the group of cell i

Where a single cell lies within its group is to a good part chance as well: what was counted, and what its genes do each
on their own. Where it will go is a matter of many genes. So every other round walks where half of the genes place the
cells; c is how well two halves agree on the cells of a group, r how reliable their mean is (Spearman 1910; Brown 1910).
A cell's difference from its group is kept as far as it is reliable, which errs least on average (Kelley 1927; Efron &
Morris 1973); means of groups stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from scidiff.errors import InputError
from scidiff.integration.velocity import N_NEIGHBORS

#: steps after which nothing is known of a walk: far more than any walk to an end takes, far fewer than rounding allows
LOST = 1e8
#: cells that an end needs: each half then has two
MIN_ARRIVED = 4
#: of a push, in turns: what it does to a cell, beside the distance that neighbours have
STRENGTHS = (0.25, 0.5, 1.0, 2.0)
#: bound of the weight of an end: one that walks hardly ever reach is not made likely by what little leads there
MAX_WEIGHT = 100.0


@dataclass(frozen=True, eq=False)
class Places:
    """Where cells are and where they go.

    Parameters
    ----------
    points
        Coordinates of the cells, shape (n_cells, n_dimensions).
    direction
        Where cells go, shape of ``points``; None: the walk has no direction but its ends.
    push
        What a perturbation does to cells, shape of ``points``; None: nothing.
    """

    points: np.ndarray
    direction: np.ndarray | None = None
    push: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("direction", "push"):
            vectors = getattr(self, name)
            if vectors is not None and vectors.shape != self.points.shape:
                raise InputError(f"{name} has shape {vectors.shape}, the cells' places {self.points.shape}")


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
    reliable
        Share of a cell's difference from its group that was kept, shape (n_cells,).
    """

    names: list[str]
    rounds: np.ndarray
    weights: np.ndarray
    reliable: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """Mean over rounds, shape (n_cells, n_ends); rows sum to 1."""
        return self.rounds.mean(axis=0)

    def of(self, cells: np.ndarray, *, level: float = 0.9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean probability of some cells and its interval (estimate, low, high), shape (n_ends,) each."""
        rounds = self.rounds[:, cells].mean(axis=1)
        return rounds.mean(axis=0), *interval(rounds, level=level)

    def told(self, arrived: np.ndarray, over: np.ndarray, *, pushed: Fates, seed: int = 0) -> Fates:
        """Return the fates with the odds of ends changed, for all cells alike, until they end where others were found.

        Little is known from a few cells, so the pushed walk has a say as of one more cell for each end: Laplace's rule
        of succession, with the push in place of equal shares.

        Parameters
        ----------
        arrived
            Ends of cells that had the perturbation, as places in ``names``, shape (n_others,).
        over
            How many of those still on the way each cell stands for, shape (n_cells,): these will end so.
        pushed
            Fates under the push of the perturbation, from as many rounds.
        seed
            Draws halves of the others, one for each round.
        """
        rng, n, k = np.random.default_rng(seed), len(arrived), len(self.names)
        if not n:
            return pushed
        rounds, weights = [], []
        for own, walked, before in zip(self.rounds, pushed.rounds, self.weights, strict=True):
            half = rng.permutation(arrived)[: -(-n // 2)]
            found = np.bincount(half, minlength=k) / len(half)
            shares = (n * found + k * np.average(walked, axis=0, weights=over)) / (n + k)
            change = balance(own, shares, over=over)
            rounds.append(weighted(own, change))
            weights.append(before * change)
        return Fates(self.names, np.stack(rounds), np.stack(weights), self.reliable)


def interval(rounds: np.ndarray, *, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of values over rounds, the first axis."""
    low, high = np.quantile(rounds, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def check_walk(ends: np.ndarray, names: list[str], *, n_rounds: int, least: int = 2) -> None:
    """Raise :class:`InputError` where cells cannot be walked; arguments as those of :func:`fates`."""
    if n_rounds < least:
        raise InputError(f"n_rounds={n_rounds}: at least {least} are needed")
    for place, name in enumerate(names):
        if (found := int((ends == place).sum())) < MIN_ARRIVED:
            raise InputError(f"{found} cells have reached {name!r}: at least {MIN_ARRIVED} are needed")
    if not (ends < 0).any():
        raise InputError(f"all {len(ends)} cells have arrived: none is on the way, whose end could be asked")


def fates(
    places: Places,
    ends: np.ndarray,
    names: list[str],
    *,
    halves: Sequence[Places] = (),
    group: np.ndarray | None = None,
    like: Fates | None = None,
    n_neighbors: int = N_NEIGHBORS,
    n_rounds: int = 20,
    seed: int = 0,
    on_round: Callable[[int], None] | None = None,
) -> Fates:
    """Return the probability that each cell ends in each of the ends.

    Parameters
    ----------
    places
        Where cells are and where they go.
    ends
        For each cell the place in ``names`` of the end it has reached, -1 if it is on the way, shape (n_cells,).
    names
        The ends.
    halves
        The same from half of the genes, then from the others, then from two other halves, ...: every other round walks
        in one of these.
    group
        Group of each cell, shape (n_cells,): within it, cells differ as far as two halves agree that they do. None:
        as they are walked.
    like
        Fates without a push: ends are weighted, and differences kept, as they were there.
    n_neighbors
        Cells that a step may lead to.
    n_rounds
        Halves of the cells that are walked on.
    seed
        Draws the halves: the same for the same seed, so that two fates may be compared round by round.
    on_round
        Called with the number of rounds that are done.

    Raises
    ------
    InputError
        An end has too few cells, none is on the way, or rounds are too few for the halves.
    """
    check_walk(ends, names, n_rounds=n_rounds, least=max(2, 2 * len(halves)))
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(ends == place) for place in range(-1, len(names))]
    shares = np.array([len(some) for some in groups[1:]], dtype=float)
    rounds, used = [], []
    for i in range(n_rounds):
        half = np.concatenate([rng.permutation(some)[: -(-len(some) // 2)] for some in groups])
        now = halves[i // 2 % len(halves)] if halves and i % 2 else places
        if now.push is not None:
            now = replace(now, push=now.push * STRENGTHS[i // 2 % len(STRENGTHS)])
        steps = transitions(now, among=np.sort(half), n_neighbors=min(n_neighbors, len(half) - 1))
        chance = absorbed(steps, ends, len(names), among=half)
        used.append(balance(chance[ends < 0], shares / shares.sum()) if like is None else like.weights[i])
        rounds.append(weighted(chance, used[-1]))
        if on_round is not None:
            on_round(i + 1)
    walked, kept = np.stack(rounds), np.ones(len(ends))
    if like is not None:
        kept = like.reliable
    elif group is not None and halves:
        turns = walked[1::2]
        kept = reliability(np.stack([turns[i :: len(halves)].mean(axis=0) for i in range(len(halves))]), group)
    if group is not None:
        walked = toward_mean(walked, group, kept)
    return Fates(list(names), walked, np.stack(used), kept)


def reliability(walked: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return how reliably the mean of two halves tells cells of a group apart, from 0 to 1, shape (n_cells,).

    Parameters
    ----------
    walked
        Chances from halves A, B, A, B, ..., shape (n_halves, n_cells, n_ends).
    group
        Of each cell, shape (n_cells,).
    """
    out = np.zeros(len(group))
    for name in np.unique(group):
        cells = group == name
        apart = walked[:, cells] - walked[:, cells].mean(axis=1, keepdims=True)
        square = np.square(apart).sum(axis=(1, 2))
        together = (apart[::2] * apart[1::2]).sum(axis=(1, 2))
        agree = np.mean(together / np.sqrt(np.maximum(square[::2] * square[1::2], 1e-24)))
        out[cells] = 2 * max(agree, 0) / (1 + max(agree, 0))
    return out


def toward_mean(chance: np.ndarray, group: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return chances, shape (..., n_cells, n_ends), of which a share of the difference from the group is kept."""
    out = chance.copy()
    for name in np.unique(group):
        cells = group == name
        mean = chance[..., cells, :].mean(axis=-2, keepdims=True)
        out[..., cells, :] = mean + kept[cells, None] * (chance[..., cells, :] - mean)
    return out


def balance(chance: np.ndarray, shares: np.ndarray, *, over: np.ndarray | None = None) -> np.ndarray:
    """Return weights of the ends with which cells end in these shares, shape (n_ends,), mean of their logarithms 0.

    Parameters
    ----------
    chance
        Of the ends for each cell, shape (n_cells, n_ends).
    shares
        Of the ends, shape (n_ends,), sum 1. Ends come no nearer to theirs than :data:`MAX_WEIGHT` allows.
    over
        How much each cell counts, shape (n_cells,); default: all alike.
    """
    from scipy.optimize import Bounds, minimize

    def gap(log_weight: np.ndarray) -> tuple[float, np.ndarray]:
        """Return a convex function and its gradient, by how much shares are not met: 0 where it is least."""
        weights = np.exp(log_weight)
        value = np.average(np.log(chance @ weights), weights=over) - shares @ log_weight
        return float(value), np.average(weighted(chance, weights), axis=0, weights=over) - shares

    bound = np.log(MAX_WEIGHT)
    found = minimize(
        gap, np.zeros(len(shares)), jac=True, bounds=Bounds(-bound, bound), options={"ftol": 1e-15, "gtol": 1e-7}
    )
    return np.exp(found.x - found.x.mean())


def weighted(chance: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return chances of ends with weights, rows sum to 1."""
    out = chance * weights
    return out / out.sum(axis=1, keepdims=True)


def transitions(
    places: Places, *, among: np.ndarray | None = None, n_neighbors: int = N_NEIGHBORS
) -> sparse.csr_matrix:
    """Return the probability of a step from cell to cell, csr, shape (n_cells, n_cells), rows sum to 1.

    Parameters
    ----------
    places
        Where cells are and where they go.
    among
        Cells that a step may lead to; default: all.
    n_neighbors
        Nearest of them that it does lead to; a cell is no neighbour of its own.
    """
    from sklearn.neighbors import NearestNeighbors

    points, direction, push = np.asarray(places.points, dtype=float), places.direction, places.push
    n = len(points)
    among = np.arange(n) if among is None else among
    if not 1 <= n_neighbors < len(among):
        raise InputError(f"n_neighbors={n_neighbors}: need a number from 1 to {len(among) - 1}")
    found = among[NearestNeighbors(n_neighbors=n_neighbors + 1).fit(points[among]).kneighbors(points)[1]]
    own = found == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True  # a cell that is not among them has one neighbour too many
    near = found[~own].reshape(n, n_neighbors)
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
