"""The anchor: per-condition expression in closed form, shrunk by empirical Bayes; where the network starts.

    counts       log rho_g(cond) = log base_g + sum_k effect_{r_k(cond), g}          (up to a constant)
    no counts    mean_g(cond)    =     base_g + sum_k effect_{r_k(cond), g}

A *factor* is a set of attributes, a *row* one of its values: cell type "B"; perturbation part "IFN-beta"; the pair of
both. Factors are fitted one after the other, each to what the ones before left over, and every row is shrunk to zero by
what its own data can support. Unknown attributes have no row, so a null condition falls back to the base (control
cells, where there are any), an unseen pair to the sum of its parts.

Shrinkage of counts: observed n ~ Poisson(e r), ratio r ~ Gamma(a, a), so log r is estimated by
``log((n + a) / (e + a))``; ``a`` maximises the negative-binomial likelihood of all rows and genes of the factor
(Robbins 1956; as in DESeq's moderation of fold changes, Love et al. 2014). Without counts: normal means with known
sampling variance, prior variance by moments (Efron & Morris 1973).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse, stats
from torch import Tensor, nn
from torch.nn import functional as F

from scidiff.conditioning import Conditions

#: names of the factors that are no attributes; no obs column is called so
PART, COMBINATION = "<part>", "<combination>"
#: values of groups x genes, and cells, that are worked on at a time
VALUES, CELLS = 4_000_000, 4096


@dataclass(frozen=True)
class Factor:
    """One kind of effect: the attributes whose joint value picks the row; single perturbations; combinations."""

    attributes: tuple[str, ...]

    def keys(self, cond: Conditions) -> Tensor:
        """Return an integer per cell (per part) that names the row, shape (n_cells, k); -1 where there is none."""
        if self.attributes == (PART,):
            return torch.where(cond.parts > 0, cond.parts, -1)
        if self.attributes == (COMBINATION,):  # what a combination does beyond the sum of its parts
            several = (cond.parts > 0).sum(dim=1) > 1
            return torch.where(several, cond.codes["perturbation"], -1)[:, None]
        key = torch.zeros(len(cond), dtype=torch.long, device=cond.depth.device)
        known = torch.ones_like(key, dtype=torch.bool)
        for name in self.attributes:
            code = cond.codes[name]
            key = (key * 1_000_003 + code) & (2**63 - 1)  # many attributes overflow: keep the hash positive
            known &= code > 0
        return torch.where(known, key, -1)[:, None]


def factors_of(cond: Conditions) -> list[Factor]:
    """Return the factors of a set of conditions, from coarse to fine."""
    contexts = tuple(name for name in cond.codes if name not in ("perturbation", "batch"))
    factors = [Factor((name,)) for name in contexts]
    if len(contexts) > 1:
        factors.append(Factor(contexts))
    if "perturbation" in cond.codes:
        # first the parts that were seen alone, then those seen in combinations only
        factors += [Factor((PART,)), Factor((PART,)), Factor((COMBINATION,))]
        if contexts:
            factors.append(Factor((*contexts, "perturbation")))
    if "batch" in cond.codes:
        factors.append(Factor(("batch",)))
    return factors


class Anchor(nn.Module):
    """Return the closed-form expression of each condition, shape (n_cells, n_genes).

    Parameters
    ----------
    base
        Shape (n_genes,): log composition of all cells (of control cells, where there are any), or their mean.
    factors
        Kinds of effects.
    keys
        For each factor, the sorted keys of its rows.
    effects
        All rows of all factors, shape (1 + n_rows, n_genes); the first is zero, for "no row".
    """

    base: Tensor
    effects: Tensor

    def __init__(self, base: Tensor, factors: Sequence[Factor], keys: Sequence[Tensor], effects: Tensor) -> None:
        super().__init__()
        self.factors = list(factors)
        self.register_buffer("base", base)
        self.register_buffer("effects", effects)
        for i, key in enumerate(keys):
            self.register_buffer(f"keys_{i}", key)

    def rows(self, cond: Conditions) -> Tensor:
        """Return the rows of ``effects`` that add up to each cell's anchor, shape (n_cells, k); 0 where none."""
        found, first = [], 1
        for i, factor in enumerate(self.factors):
            known: Tensor = getattr(self, f"keys_{i}")
            if len(known):
                key = factor.keys(cond)
                place = torch.searchsorted(known, key).clamp_max(len(known) - 1)
                found.append(torch.where(known[place] == key, place + first, 0))
                first += len(known)
        return torch.cat(found, dim=1) if found else torch.zeros_like(cond.parts[:, :1])

    def forward(self, cond: Conditions) -> Tensor:
        """Return the anchor of each cell."""
        # conditions are few where cells are many: sum the rows of each distinct condition once
        distinct, place = distinct_rows(self.rows(cond))
        each = self.base + F.embedding_bag(distinct, self.effects, mode="sum", padding_idx=0)
        return each.index_select(0, place)

    @classmethod
    def fit(cls, x: sparse.csr_matrix | np.ndarray, cond: Conditions, *, control: np.ndarray, counts: bool) -> Anchor:
        """Return the anchor of training cells.

        Parameters
        ----------
        x
            Counts (csr) or, with ``counts=False``, expression on the model's scale; shape (n_cells, n_genes).
        cond
            Conditions of the cells.
        control
            Mask of the control cells, shape (n_cells,); where there are any, the base and the effects of contexts are
            estimated from them, so that perturbation effects are differences to control.
        """
        groups = _Groups(x, cond, control=control, counts=counts)
        factors = factors_of(cond)
        has_control = bool(groups.control.any())
        keys = list[Tensor]()
        everything = np.ones(len(groups.size), bool)
        for i, factor in enumerate(factors):
            use, done = everything, np.zeros(0, int)
            if factor.attributes == (PART,):
                again = i > 0 and factors[i - 1] == factor
                alone = (groups.cond.parts > 0).sum(dim=1).numpy() == 1
                use, done = (~alone, keys[-1].numpy()) if again else (alone, done)
            elif has_control and not {COMBINATION, "perturbation", "batch"} & set(factor.attributes):
                use = groups.control
            keys.append(torch.from_numpy(groups.fit_factor(factor, use, done=done)))
        none = np.zeros((1, x.shape[1]))
        effects = np.concatenate([none, *(rows for _, rows in groups.found)], dtype=np.float32)
        return cls(torch.from_numpy(groups.base), factors, keys, torch.from_numpy(effects))

    def residual_sd(self, x: sparse.csr_matrix | np.ndarray, cond: Conditions) -> np.ndarray:
        """Return the standard deviation of expression around its condition's mean, per gene, shape (n_genes,)."""
        groups = _Groups(x, cond, control=np.zeros(len(cond), bool), counts=False)
        return np.sqrt(np.maximum(groups.square, 0)).astype(np.float32)

    def standardised(self, mean: np.ndarray, sd: np.ndarray) -> Anchor:
        """Return the same anchor for expression standardised as ``(x - mean) / sd`` per gene."""
        centre, scale = torch.from_numpy(mean), torch.from_numpy(sd)
        keys = [getattr(self, f"keys_{i}") for i in range(len(self.factors))]
        return Anchor((self.base - centre) / scale, self.factors, keys, self.effects / scale)

    @classmethod
    def from_state(cls, factors: Sequence[Sequence[str]], state: Mapping[str, Tensor], *, prefix: str) -> Anchor:
        """Return the anchor whose buffers are in a state dict."""
        keys = [state[f"{prefix}keys_{i}"] for i in range(len(factors))]
        kinds = [Factor(tuple(attributes)) for attributes in factors]
        return cls(state[f"{prefix}base"], kinds, keys, state[f"{prefix}effects"])


class _Groups:
    """The distinct conditions, and the effects found so far.

    There can be a group for nearly every cell (each perturbation in each batch), so nothing is kept of groups x genes:
    sums over their cells, and what is fitted to them, are made again for each factor, block by block.
    """

    def __init__(self, x: sparse.csr_matrix | np.ndarray, cond: Conditions, *, control: np.ndarray, counts: bool):
        columns = [*cond.codes.values(), *cond.parts.unbind(1)]
        rows = torch.stack(columns, dim=1).numpy() if columns else np.zeros((len(cond), 1), int)
        _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        group = group.ravel()
        shape = len(first), len(group)
        self.x, self.counts = x, counts
        self.member = sparse.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))), shape)
        self.cond = cond[torch.from_numpy(first)]  # one row per group
        self.control = np.bincount(group, weights=control) > 0
        #: for each factor that has rows: which of them each group has, (n_groups, n_rows), and their effects
        self.found: list[tuple[sparse.csr_matrix, np.ndarray]] = []
        cells = np.bincount(group).astype(float)
        self.size = np.zeros(len(first)) if counts else cells  # molecules, or cells, per group
        use = self.control if self.control.any() else np.ones(len(first), bool)
        pooled, everything, squares = np.zeros((3, x.shape[1]))
        for some in self._blocks(np.arange(len(first))):
            total = _sums(self.member[some], x)
            pooled += total[use[some]].sum(axis=0)
            everything += total.sum(axis=0)
            if counts:
                self.size[some] = total.sum(axis=1)
            else:
                within = _sums(self.member[some], x, squared=True) - total**2 / cells[some, None]
                squares += within.sum(axis=0)
        self.square = squares / max(len(group) - len(first), 1)  # variance within groups, not for counts
        if counts:
            # half a molecule for genes never seen in these cells: their rate is small, not zero
            rate = (pooled + 0.5 * (everything > 0) + 1e-3) / pooled.sum()
            self.base = np.log(rate / rate.sum()).astype(np.float32)
        else:
            self.base = (pooled / self.size[use].sum()).astype(np.float32)

    def fit_factor(self, factor: Factor, use: np.ndarray, *, done: np.ndarray) -> np.ndarray:
        """Estimate the rows of one factor from the groups ``use``, add them to what is found, return their keys.

        Keys in ``done`` have their row already.
        """
        keys = factor.keys(self.cond).numpy()
        known = np.setdiff1d(keys[use], [-1, *done])
        if not len(known):
            return known
        group, slot = np.nonzero(np.isin(keys, known))
        row = np.searchsorted(known, keys[group, slot])
        have = sparse.csr_matrix((np.ones(len(row)), (group, row)), (len(keys), len(known)))
        seen = sparse.diags(use.astype(float)) @ have
        seen.eliminate_zeros()
        self.found.append((have, self._counts_effect(seen) if self.counts else self._mean_effect(seen)))
        return known

    def _counts_effect(self, member: sparse.csr_matrix) -> np.ndarray:
        observed, expected = np.zeros((2, member.shape[1], len(self.base)))
        for some in self._blocks(np.flatnonzero(np.diff(member.indptr))):
            fitted = self._fitted(some)
            composition = np.exp(fitted - fitted.max(axis=1, keepdims=True))
            composition /= composition.sum(axis=1, keepdims=True)
            _add(observed, member[some], _sums(self.member[some], self.x))
            _add(expected, member[some], self.size[some, None] * composition)
        a = gamma_shape(observed, expected)
        observed += a
        expected += a
        observed /= expected
        return np.log(observed, out=observed)

    def _mean_effect(self, member: sparse.csr_matrix) -> np.ndarray:
        left_over = np.zeros((member.shape[1], len(self.base)))
        for some in self._blocks(np.flatnonzero(np.diff(member.indptr))):
            total = _sums(self.member[some], self.x)
            _add(left_over, member[some], total - self.size[some, None] * self._fitted(some))
        n = (member.T @ self.size)[:, None]
        left_over /= n
        noise = self.square / n
        prior = np.maximum((left_over**2 - noise).mean(axis=0), 1e-8)
        return left_over * prior / (prior + noise)

    def _blocks(self, groups: np.ndarray) -> Iterator[np.ndarray]:
        """Yield groups a few at a time, at most :data:`VALUES` values of all genes."""
        step = max(VALUES // self.x.shape[1], 1)
        return (groups[start : start + step] for start in range(0, len(groups), step))

    def _fitted(self, some: np.ndarray) -> np.ndarray:
        """Return base and effects found so far, added up for some of the groups, shape (n_some, n_genes)."""
        fitted = np.tile(self.base, (len(some), 1))
        for member, effect in self.found:
            fitted += (member[some] @ effect).astype(np.float32)
        return fitted


def gamma_shape(observed: np.ndarray, expected: np.ndarray) -> float:
    """Return the shape ``a`` of ratios ~ Gamma(a, a) that makes counts with these expectations most likely.

    Large ``a``: the rows do not differ by more than sampling noise. One number for all genes and rows.
    """
    inside = np.flatnonzero(expected > 0.5)  # rarer genes say nothing about a and dominate the sum by number
    if not len(inside):
        return 1e4
    if len(inside) > 200_000:  # the likelihood is smooth: a fixed sample gives the same maximum
        inside = inside[np.linspace(0, len(inside) - 1, 200_000).astype(int)]
    n, e = np.rint(observed.ravel()[inside]), expected.ravel()[inside]
    grid = np.geomspace(0.1, 1e4, 26)
    return float(grid[np.argmax([stats.nbinom.logpmf(n, a, a / (a + e)).sum() for a in grid])])


def _sums(member: sparse.csr_matrix, x: sparse.csr_matrix | np.ndarray, *, squared: bool = False) -> np.ndarray:
    """Return sums over the cells of groups, ``member`` (n_groups, n_cells), shape (n_groups, n_genes)."""
    cells, total = member.indices, np.zeros((member.shape[0], x.shape[1]))
    own = sparse.csr_matrix((member.data, np.arange(len(cells)), member.indptr), (len(total), len(cells)))
    for start in range(0, len(cells), CELLS):
        part: Any = x[cells[start : start + CELLS]]
        if squared:
            part = part.power(2) if sparse.issparse(part) else np.square(part)
        summed = own[:, start : start + CELLS] @ part
        total += summed.toarray() if sparse.issparse(summed) else summed
    return total


def _add(rows: np.ndarray, member: sparse.csr_matrix, values: np.ndarray) -> None:
    """Add the values of groups to the rows that they are ``member`` (n_groups, n_rows) of, in place."""
    touched = np.unique(member.indices)  # few of many
    rows[touched] += member[:, touched].T @ values


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows of a matrix of integers, and for every row of it the place of its own among them."""
    if not len(rows):
        return rows, rows[:, 0]
    key = torch.zeros_like(rows[:, 0])
    for column in rows.unbind(1):  # after each column the key counts distinct rows, so that it cannot grow
        key = torch.unique(key * (column.max() + 1) + column, return_inverse=True)[1]
    order = torch.arange(len(key), device=key.device)
    first = torch.empty_like(order[: int(key.max()) + 1]).scatter_(0, key, order)
    return rows[first], key
