"""Which intervention would do it? A posterior over the conditions of a library, in closed form.

Empirical-Bayes linear discriminant analysis: the mean q of the query is compared with the shrunk mean m_i of every
condition, in the metric of what varies within a condition anyway::

    score_i = -1/2 (q - J s - m_i)' K^-1 (q - J s - m_i),    K = .2 Sigma + .8 (tr Sigma / G) I
    posterior_i = softmax(n score_i / temperature),          1/n = 1/n_query + 1/n_library

Everything in it is estimated from the library alone:

- **Sigma**, the covariance within conditions, is kept as principal axes (orthonormal, so K^-1 needs no inversion and
  9,015 genes cost what their axes cost, never genes x genes);
- **m_i**: deviations from the mean of all conditions, shrunk to what exceeds sampling noise, twice: gene by gene, then
  axis by axis (an effect is noise where few conditions differ, in either basis). The gene a condition is named after
  is shrunk on its own: it is changed by construction in most conditions and in few others;
- **batches** move cells too: the library's are removed by an additive fit over conditions, and the query's from its
  control cells: s = query control - library control, and J s is s shrunk in blocks of axes (James & Stein 1961; Cai
  1999 for blocks), so that nothing moves where controls agree within their noise;
- **temperature**: cell numbers overstate certainty. It is the one under which the library, one batch (or random half)
  left out at a time, names the conditions of that batch most probably.

`cosine` of effects is the baseline with the same contract. A query is a population (`Query.of`), an effect
(`Query.of_effect`), or only the names of genes (`from_genes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from scidiff.data.scaling import Matrix
from scidiff.errors import InputError, closest

WITHIN = 0.2  # share of the covariance in K; what is recovered hardly changes between .1 and .5
MAX_CELLS, MAX_AXES = 2000, 512  # cells the axes are found from where there are more genes than that; axes kept
FIRST_BLOCK = 4  # axes in the first James-Stein block; each next one is twice as long
CAUTION = 2.0  # standard deviations by which a block of the control shift must exceed noise
MAX_REHEARSED = 6  # folds, the largest, that are left out to find temperatures
LISTED = 20  # genes up and down, where the library rehearses queries by gene names
ARRAYS = ("profiles", "n", "axes", "axis_variance", "variance")


@dataclass(frozen=True, eq=False)
class Query:
    """A population whose cause is asked for.

    Parameters
    ----------
    mean
        Mean log1p counts per 10k, shape (n_genes,), genes as in the library.
    n
        Cells it is the mean of.
    control, control_n
        The same for control cells measured with it. Without them the query counts as measured in the library's batches.
    """

    mean: np.ndarray
    n: float
    control: np.ndarray | None = None
    control_n: float = 0

    def __post_init__(self) -> None:
        for name in ("mean", "control"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                raise InputError(f"{name} of the query has values that are not finite; give expression of every gene")
        if not self.n > 0 or (self.control is not None and not self.control_n > 0):
            raise InputError("a query needs at least one cell, and one control cell where controls are given")

    @classmethod
    def of(cls, x: Matrix, control: Matrix | None = None) -> Query:
        """Return the query of cells ``x`` (n_cells, n_genes), log1p(CP10k), and of control cells of the same batch."""
        if x.shape[0] == 0 or (control is not None and control.shape[0] == 0):
            raise InputError("a query needs at least one cell, and one control cell where controls are given")
        if control is None:
            return cls(_mean(x), x.shape[0])
        return cls(_mean(x), x.shape[0], _mean(control), control.shape[0])

    @classmethod
    def of_effect(cls, effect: np.ndarray, library: Library, *, n: float = 100) -> Query:
        """Return the query of an effect, the difference to control in mean log1p(CP10k), shape (n_genes,).

        ``n``: about how many cells it was measured in; it decides how certain the answer is, not its order.
        """
        library.check(effect, "an effect")
        return cls(library.control + np.asarray(effect, dtype=float), n)


@dataclass(frozen=True, eq=False)
class Library:
    """What is known of each condition: its mean, and how cells vary within conditions. Made by :meth:`of`.

    Parameters
    ----------
    genes, names
        Gene names, and names of the conditions, without control.
    profiles, n
        Mean log1p(CP10k) without batch effects, shape (1 + n_conditions, n_genes), and cells, (1 + n_conditions,);
        controls come first.
    axes, axis_variance
        Principal axes of the residuals within batch and condition, orthonormal rows (n_axes, n_genes), and the variance
        along each, falling.
    variance
        Variance within batch and condition per gene, shape (n_genes,).
    separator
        Between the parts of a combination's name; None if no name is a combination.
    temperature
        Method (lda, cosine, from_genes) -> what the scores are divided by in its posterior; 1 where it is missing.
    """

    genes: tuple[str, ...]
    names: tuple[str, ...]
    profiles: np.ndarray
    n: np.ndarray
    axes: np.ndarray
    axis_variance: np.ndarray
    variance: np.ndarray
    separator: str | None = "+"
    temperature: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        x: Matrix,
        groups: Sequence[str],
        *,
        control: str,
        genes: Sequence[str],
        batch: Sequence[object] | None = None,
        separator: str | None = "+",
        seed: int = 0,
    ) -> Library:
        """Return the library of cells.

        Parameters
        ----------
        x
            log1p counts per 10k, csr or dense, shape (n_cells, n_genes).
        groups
            Name of the condition of every cell; a dose or time is part of the name.
        control
            Name of the control condition.
        genes
            Names, shape (n_genes,).
        batch
            Batch, replicate or context of every cell, if conditions were measured in several.
        seed
            Decides the random halves where there is one batch, and which cells the axes are found from.

        Raises
        ------
        InputError
            Lengths differ, there are no controls or fewer than two other conditions, or values are not finite.
        """
        labels = np.asarray(groups).astype(str)
        if len(labels) != x.shape[0] or len(genes) != x.shape[1] or (batch is not None and len(batch) != x.shape[0]):
            raise InputError(
                f"{len(labels)} groups and {len(genes)} genes for {x.shape[0]} cells x {x.shape[1]} genes;"
                " give one group (and batch) for each cell and one name for each gene"
            )
        if not np.isfinite(x.data if sparse.issparse(x) else x).all():
            raise InputError("expression has values that are not finite; give log1p counts per 10k")
        names = sorted(set(labels) - {control})
        if control not in labels:
            raise InputError(f"no cell is {control!r}: a library needs control cells{closest(control, names)}")
        if len(names) < 2:
            raise InputError(f"conditions other than {control!r}: {len(names)}; a library needs at least two")
        rng = np.random.default_rng(seed)
        row = pd.Categorical(labels, categories=[control, *names]).codes.astype(int)
        batched = batch is not None and len(set(batch)) > 1
        fold = pd.factorize(np.asarray(batch).astype(str), sort=True)[0] if batched else _halves(row, rng)
        cells = _Cells(x, fold, row, batched)
        sums, axes, axis_variance, variance = _moments(cells, rng)
        library = cls(
            genes=tuple(map(str, genes)),
            names=tuple(names),
            profiles=sums.profiles(),
            n=cells.n.sum(axis=0),
            axes=axes,
            axis_variance=axis_variance,
            variance=variance,
            separator=separator,
        )
        return replace(library, temperature=_temperatures(library, cells, sums))

    # ---- what follows from it ----------------------------------------------------------------------------------------

    @property
    def control(self) -> np.ndarray:
        """Mean expression of control cells, shape (n_genes,)."""
        return self.profiles[0]

    @property
    def cells(self) -> np.ndarray:
        """Cells of every condition, shape (n_conditions,)."""
        return self.n[1:]

    @cached_property
    def shrunk(self) -> np.ndarray:
        """Effects shrunk to what exceeds their sampling noise, shape (n_conditions, n_genes); see the head."""
        cells = self.cells[:, None]
        effects = self.measured[0]
        # conditions of few cells count less in the centre, those of more than about 100 equally
        centre = np.average(effects, axis=0, weights=self.cells / (self.cells + 100))
        raw = effects - centre
        by_gene = raw * _kept(raw, self.variance / cells)
        along, rest = self.along(by_gene)
        along *= _kept(self.along(raw)[0], self.axis_variance / cells)
        shrunk = along @ self.axes + rest
        rows, columns = self._namesakes()
        if len(rows):
            noise = self.variance[columns] / self.cells[rows]
            own, unit = raw[rows, columns], np.maximum(self.variance[columns], 1e-12)
            spread = max(np.mean((own**2 - noise) / unit), 0) * unit
            shrunk[rows, columns] = own * spread / (spread + noise + 1e-12)
        return centre + shrunk

    @cached_property
    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Effects as measured, shape (n_conditions, n_genes), and their inner products."""
        effects = self.profiles[1:] - self.control
        return effects, effects @ effects.T

    @cached_property
    def whitened(self) -> tuple[np.ndarray, np.ndarray]:
        """K^(-1/2) times the shrunk effects, shape (n_conditions, n_genes), and their inner products."""
        effects = self.whiten(self.shrunk)
        return effects, effects @ effects.T

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation within conditions per gene, kept from 0 by a tenth of the mean variance."""
        return np.sqrt(self.variance + self.variance.mean() / 10)

    @property
    def floor(self) -> float:
        """The isotropic part of K."""
        return (1 - WITHIN) * max(self.variance.mean(), 1e-12)

    def along(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the coordinates of rows ``x`` on the axes (n, n_axes), and what no axis holds (n, n_genes)."""
        along = x @ self.axes.T
        return along, x - along @ self.axes

    def whiten(self, x: np.ndarray) -> np.ndarray:
        """Return K^(-1/2) x for rows ``x``, shape (n, n_genes)."""
        along, rest = self.along(x)
        return rest / np.sqrt(self.floor) + (along / np.sqrt(WITHIN * self.axis_variance + self.floor)) @ self.axes

    def shift(self, query: Query) -> np.ndarray:
        """Return J s, the part of the difference between controls that is more than noise, shape (n_genes,)."""
        if query.control is None:
            return np.zeros(len(self.genes))
        along, rest = self.along(query.control - self.control)
        noise = 1 / query.control_n + 1 / self.n[0]
        first, size = 0, FIRST_BLOCK
        while first < len(along):
            last = first + size if len(along) - first >= 2 * size else len(along)
            block = slice(first, last)
            square = np.sum(along[block] ** 2 / self.axis_variance[block]) / noise
            along[block] *= _james_stein(square, last - first)
            first, size = last, 2 * size
        free = len(self.genes) - len(self.axes)
        left = self.variance.sum() - self.axis_variance.sum()
        if free and left > 1e-6 * self.variance.sum():
            rest *= _james_stein(free * np.sum(rest**2) / left / noise, free)
        return along @ self.axes + rest

    def check(self, values: np.ndarray, what: str) -> None:
        """Raise InputError unless ``values`` has one number per gene of the library."""
        if np.shape(values) != (len(self.genes),):
            raise InputError(
                f"{what} has shape {np.shape(values)}; the library has {len(self.genes)} genes, give them in its order"
            )

    def _namesakes(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of conditions, and of the genes that their parts are named after."""
        place = {gene: i for i, gene in enumerate(self.genes)}
        found = [(i, place[part]) for i, name in enumerate(self.names) for part in self.parts(name) if part in place]
        rows, columns = np.array(found, dtype=int).reshape(-1, 2).T
        return rows, columns

    def parts(self, name: str) -> list[str]:
        """Return the parts of the name of a condition."""
        return name.split(self.separator) if self.separator else [name]

    # ---- files -------------------------------------------------------------------------------------------------------

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict]:
        """Return named arrays, float32, as safetensors stores them, and JSON values; :meth:`from_arrays` reads both."""
        about: dict[str, Any] = {"genes": list(self.genes), "names": list(self.names), "separator": self.separator}
        about["temperature"] = dict(self.temperature)
        return {name: np.asarray(getattr(self, name), dtype=np.float32) for name in ARRAYS}, about

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], about: Mapping) -> Library:
        """Return the library that :meth:`to_arrays` wrote."""
        matrices: dict[str, Any] = {name: np.asarray(values, dtype=float) for name, values in arrays.items()}
        rest: dict[str, Any] = {name: about[name] for name in ("separator", "temperature")}
        return cls(genes=tuple(about["genes"]), names=tuple(about["names"]), **matrices, **rest)


# ---- methods: library and query in, one row per candidate out --------------------------------------------------------


def empirical_bayes_lda(library: Library, query: Query, *, pairs: bool = False) -> pd.DataFrame:
    """Return name, score and posterior of every condition, best first; see the head of this module.

    Parameters
    ----------
    pairs
        Rank all pairs of single conditions instead, effects added. The temperature is that of single conditions.

    Raises
    ------
    InputError
        The query has other genes than the library, or ``pairs`` is asked of fewer than two single conditions.
    """
    return _table(library, "lda", _lda, _in_library, query, pairs=pairs)


def cosine(library: Library, query: Query, *, pairs: bool = False) -> pd.DataFrame:
    """Return name, score (cosine of the effects as measured) and posterior of every condition, best first.

    The baseline; arguments and errors as in :func:`empirical_bayes_lda`.
    """
    return _table(library, "cosine", _cosine, _against_controls, query, pairs=pairs)


def from_genes(library: Library, *, up: Iterable[str] = (), down: Iterable[str] = ()) -> pd.DataFrame:
    """Return name, score and posterior of every condition for a phenotype of which only gene names are known.

    The score is the cosine of the signs asked for (1 up, -1 down) with the shrunk effects in units of the spread
    within conditions, centred over conditions: an effect that all have in common answers no question.

    Raises
    ------
    InputError
        No gene is given, one is unknown, or one is to go both ways.
    """
    place = {gene: i for i, gene in enumerate(library.genes)}
    signs = np.zeros(len(place))
    for names, sign in ((up, 1), (down, -1)):
        for gene in [names] if isinstance(names, str) else names:
            if gene not in place:
                raise InputError(f"gene {gene!r} is not in the library{closest(gene, place)}")
            if signs[place[gene]] == -sign:
                raise InputError(f"gene {gene!r} is to go both up and down; keep one")
            signs[place[gene]] = sign
    if not signs.any():
        raise InputError("no gene is asked for; give genes that go up, down, or both")
    return _ranked(library.names, _signs(library, signs[None])[0], _sharpness(library, "from_genes"))


# ---- scores ----------------------------------------------------------------------------------------------------------


Pairs = Sequence[tuple[int, int]] | None


# each: effects to compare with, shape (n, n_genes) -> scores (n, n_candidates)


def _lda(library: Library, effects: np.ndarray, pairs: Pairs = None) -> np.ndarray:
    effects = library.whiten(effects)
    cross, squares = _products(effects, *library.whitened, pairs)
    return cross - squares / 2 - (effects**2).sum(axis=1, keepdims=True) / 2


def _cosine(library: Library, effects: np.ndarray, pairs: Pairs = None) -> np.ndarray:
    cross, squares = _products(effects, *library.measured, pairs)
    norms = np.linalg.norm(effects, axis=1, keepdims=True) * np.sqrt(np.maximum(squares, 0))
    return np.divide(cross, norms, out=np.full(cross.shape, np.nan), where=norms > 0)


def _products(effects: np.ndarray, each: np.ndarray, gram: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of ``each`` candidate with effects and with itself; of sums of two without making them."""
    cross, squares = effects @ each.T, np.diag(gram)
    if pairs is None:
        return cross, squares
    i, j = np.array(pairs).T
    return cross[:, i] + cross[:, j], squares[i] + squares[j] + 2 * gram[i, j]


def _signs(library: Library, signs: np.ndarray) -> np.ndarray:
    z = (library.shrunk - library.shrunk.mean(axis=0)) / library.spread
    norms = np.linalg.norm(signs, axis=1, keepdims=True) * np.linalg.norm(z, axis=1)
    return np.divide(signs @ z.T, norms, out=np.full(norms.shape, np.nan), where=norms > 0)


def _against_controls(library: Library, query: Query) -> np.ndarray:
    """The effect as measured."""
    return query.mean - (library.control if query.control is None else query.control)


def _in_library(library: Library, query: Query) -> np.ndarray:
    """The effect as it would be in the library's batches."""
    return query.mean - library.shift(query) - library.control


def _table(
    library: Library, method: str, score: Callable, effect: Callable, query: Query, *, pairs: bool
) -> pd.DataFrame:
    library.check(query.mean, "the query")
    if query.control is not None:
        library.check(query.control, "the control of the query")
    sharpness = _sharpness(library, method, query.n)
    if not pairs:
        return _ranked(library.names, score(library, effect(library, query)[None])[0], sharpness)
    singles = [i for i, name in enumerate(library.names) if len(library.parts(name)) == 1]
    if len(singles) < 2:
        raise InputError(f"{len(singles)} single conditions are in the library; pairs need at least two")
    chosen = list(combinations(singles, 2))
    names = [(library.separator or "+").join((library.names[i], library.names[j])) for i, j in chosen]
    return _ranked(names, score(library, effect(library, query)[None], chosen)[0], sharpness)


def _sharpness(library: Library, method: str, n: float = np.inf) -> float:
    """Factor of the scores of a query of ``n`` cells in its posterior.

    One number for all candidates: with one each, conditions of few cells would win for being uncertain.
    """
    return float(1 / (1 / n + np.mean(1 / library.cells)) / library.temperature.get(method, 1.0))


def _ranked(names: Sequence[str], scores: np.ndarray, sharpness: float) -> pd.DataFrame:
    """Sorted table; a score that is not a number is worst and has posterior 0; where all are, nothing is known."""
    known = not np.isnan(scores).all()
    posterior = softmax(sharpness * np.where(np.isnan(scores), -np.inf if known else 0.0, scores))
    table = pd.DataFrame({"name": list(names), "score": scores, "posterior": posterior})
    return table.sort_values("score", ascending=False, kind="stable", na_position="last", ignore_index=True)


def _temperatures(library: Library, cells: _Cells, sums: _Sums) -> dict[str, float]:
    """Method -> the temperature under which left-out folds are named most probably; empty if none can be left out."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"lda": [], "cosine": [], "from_genes": []}
    for fold in np.argsort(-cells.n.sum(axis=1), kind="stable")[:MAX_REHEARSED]:
        n, left = cells.n[fold], np.delete(cells.n, fold, axis=0).sum(axis=0)
        kept = np.flatnonzero(left)  # conditions that were measured elsewhere, too
        if not n[0] or not left[0] or len(kept) < 3:
            continue
        there, own = cells.sums(fold)
        names = tuple(np.array(library.names)[kept[1:] - 1])
        others = replace(library, names=names, profiles=sums.without(fold, there, own).profiles(), n=left[kept])
        truth = np.flatnonzero(n[kept[1:]])
        means = own / n[there, None]
        control, means, size = means[0], means[np.isin(there, kept)][1:], n[kept[1:]][truth]
        moved = means - others.shift(Query(control, n[0], control, n[0])) - others.control
        for method, scores, each in (
            ("lda", _lda(others, moved), size),
            ("cosine", _cosine(others, means - control), size),
            ("from_genes", _signs(others, _most_changed(library, means - control)), np.full(len(size), np.inf)),
        ):
            sharpness = np.array([_sharpness(others, method, one) for one in each])
            found[method].append((sharpness[:, None] * np.nan_to_num(scores, nan=-1e9), truth))
    return {method: _temperature(scored) for method, scored in found.items() if any(len(t) for _, t in scored)}


def _most_changed(library: Library, effects: np.ndarray) -> np.ndarray:
    """Signs of the genes that a phenotype by names would list: the LISTED most up and most down, in within-group sd."""
    order = np.argsort(effects / library.spread, axis=1, kind="stable")
    k = min(LISTED, order.shape[1] // 2)
    signs = np.zeros(order.shape)
    np.put_along_axis(signs, order[:, order.shape[1] - k :], 1, axis=1)
    np.put_along_axis(signs, order[:, :k], -1, axis=1)
    return signs


def _temperature(scored: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The temperature of the highest mean log-posterior; of each fold, scores (n_queries, n_names) and true names."""

    def loss(log_temperature: float) -> float:
        each = [log_softmax(s / np.exp(log_temperature), axis=1)[np.arange(len(s)), true] for s, true in scored]
        return -float(np.mean(np.maximum(np.concatenate(each), -1e3)))

    return float(np.exp(minimize_scalar(loss, bounds=(-5.0, 12.0), method="bounded").x))


# ---- moments ---------------------------------------------------------------------------------------------------------


def _kept(values: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Share of each value that is not noise, tau^2 / (tau^2 + noise); tau^2 is per column, over conditions."""
    between = np.maximum((values**2).sum(axis=0) / (len(values) - 1) - noise.mean(axis=0), 0)
    between += 1e-3 * between.mean()
    return np.divide(between, between + noise, out=np.zeros_like(values), where=between + noise > 0)


def _james_stein(chi_square: float, size: int) -> float:
    """Factor 1 - (k + CAUTION sqrt(2 k)) / chi_square, not below 0, of a block of k = ``size`` noisy values.

    The k is James and Stein's; the rest is what chi_square may exceed k by chance, so that a block of noise is dropped.
    """
    return max(0.0, 1 - (size + CAUTION * np.sqrt(2 * size)) / max(chi_square, 1e-12))


def _mean(x: Matrix) -> np.ndarray:
    return np.asarray(x.mean(axis=0), dtype=float).ravel()


def _halves(row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """0 or 1 for every cell, at random, as evenly as possible within each condition."""
    order = np.lexsort((rng.random(len(row)), row))
    fold = np.empty(len(row), dtype=int)
    fold[order] = np.arange(len(row)) % 2
    return fold


@dataclass(frozen=True, eq=False)
class _Cells:
    """Expression of cells with fold and condition. Sums are of one fold at a time: all folds together fill memory."""

    x: Matrix
    fold: np.ndarray
    row: np.ndarray
    batched: bool

    @cached_property
    def n(self) -> np.ndarray:
        """Cells by fold and condition, shape (n_folds, 1 + n_conditions)."""
        shape = self.fold.max() + 1, self.row.max() + 1
        group = self.fold * shape[1] + self.row
        return np.bincount(group, minlength=shape[0] * shape[1]).astype(float).reshape(shape)

    def sums(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the conditions that are in a fold, and the sums over their cells there, shape (n_there, n_genes)."""
        there, cells = np.flatnonzero(self.n[fold]), np.flatnonzero(self.fold == fold)
        row = np.searchsorted(there, self.row[cells])
        member = sparse.csr_matrix((np.ones(len(row)), (row, np.arange(len(row)))), shape=(len(there), len(row)))
        return there, _dense(member @ self.x[cells])

    def squares(self) -> np.ndarray:
        """Return the sums of squares over all cells, shape (n_genes,)."""
        total, n = np.zeros(self.x.shape[1]), self.x.shape[0]
        for start in range(0, n, MAX_CELLS):  # squares of all cells at once would double the memory
            part = self.x[start : start + MAX_CELLS]
            squares = part.power(2) if sparse.issparse(part) else np.square(part)
            total += np.ones(part.shape[0]) @ squares
        return total


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over the cells of conditions (1 + n_conditions, n_genes) and of folds (n_folds, n_genes); ``n`` by both.

    Folds are batches, which differ, or random halves of one. Means without batch effects need no more than this.
    """

    of_conditions: np.ndarray
    of_folds: np.ndarray
    n: np.ndarray
    batched: bool

    def profiles(self) -> np.ndarray:
        """Return means of conditions without batch effects, by least squares, shape (1 + n_conditions, n_genes).

        mean_bi = profile_i + batch_b + noise / n_bi; batch effects sum to 0. A condition seen in some of the batches
        only is thereby compared with the others of these batches.
        """
        total = self.n.sum(axis=0)
        pooled = self.of_conditions / total[:, None]
        if not self.batched or len(self.n) == 1:
            return pooled
        share = self.n / total
        normal = np.diag(self.n.sum(axis=1)) - share @ self.n.T
        batches = np.linalg.lstsq(normal, self.of_folds - self.n @ pooled, rcond=1e-10)[0]
        batches -= batches.mean(axis=0)
        return pooled - share.T @ batches

    def without(self, fold: int, rows: np.ndarray, sums: np.ndarray) -> _Sums:
        """Return the sums of the other folds, for conditions there; in this one ``rows`` have ``sums``."""
        of_conditions, n = self.of_conditions.copy(), np.delete(self.n, fold, axis=0)
        of_conditions[rows] -= sums
        there = n.any(axis=0)
        return _Sums(of_conditions[there], np.delete(self.of_folds, fold, axis=0), n[:, there], self.batched)


def _moments(cells: _Cells, rng: np.random.Generator) -> tuple[_Sums, np.ndarray, np.ndarray, np.ndarray]:
    """Sums by condition and fold; axes, variances along them and per gene within fold and condition."""
    x, n = cells.x, cells.n
    freedom = x.shape[0] - np.count_nonzero(n)
    if freedom < 1:
        raise InputError("every condition has one cell; a library needs several to know how cells vary")
    squares = cells.squares()
    of_conditions, of_folds = np.zeros((n.shape[1], x.shape[1])), np.zeros((len(n), x.shape[1]))
    # more genes than MAX_CELLS: a covariance of that many of the cells has no more axes than cells
    few = x.shape[1] <= MAX_CELLS
    some = np.sort(rng.permutation(x.shape[0])[:MAX_CELLS]) if not few else np.zeros(0, int)
    residual = _dense(x.T @ x) if few else _dense(x[some])
    for fold in range(len(n)):
        there, sums = cells.sums(fold)
        means = sums / n[fold, there, None]
        of_conditions[there] += sums
        of_folds[fold] = sums.sum(axis=0)
        squares -= (sums * means).sum(axis=0)
        if few:
            residual -= sums.T @ means
        else:
            own = np.flatnonzero(cells.fold[some] == fold)
            residual[own] -= means[np.searchsorted(there, cells.row[some[own]])]
    if few:
        axes, axis_variance = _axes(residual / freedom)
    else:
        residual /= np.sqrt(len(some) * freedom / x.shape[0])
        vectors, axis_variance = _axes(residual @ residual.T)
        axes = (vectors @ residual) / np.sqrt(axis_variance)[:, None]
    variance = np.maximum(squares, 0) / freedom
    return _Sums(of_conditions, of_folds, n, cells.batched), axes, axis_variance, variance


def _axes(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The leading eigenvectors of a symmetric matrix, as rows, and their eigenvalues, falling."""
    values, vectors = np.linalg.eigh(square)
    keep = np.argsort(-values, kind="stable")[:MAX_AXES]
    keep = keep[values[keep] > 1e-6 * max(values.max(), 1e-12)]
    return vectors[:, keep].T, values[keep]


def _dense(x: Matrix) -> np.ndarray:
    return x.toarray().astype(float) if sparse.issparse(x) else np.asarray(x, dtype=float)
