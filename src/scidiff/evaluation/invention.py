"""Does denoising invent biology? Genes that carry no signal, before and after.

The counts of some genes are dealt anew to the cells of the same depth. Whatever such a gene said about a cell is gone;
how often it is seen, and all other genes, stay. Between two groups of cells that truly differ, matched for depth,

    share of genes without signal at p < .05  =  .05        if nothing is invented

and their correlations with other genes are those of chance. Denoisers borrow from similar cells, and similar cells
share the accidents of the sample: smoothed values repeat one accident many times, and tests believe it (Andrews &
Hemberg 2018).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from scidiff.errors import InputError

N_GENES = 200
STRATUM = 50  # cells of neighbouring depth among which molecules are dealt, and groups matched
MIN_MOLECULES = 50  # of a gene without signal: tests of rarer ones hardly ever reject, invented or not
LEVEL = 0.05
N_STRONG, N_RANDOM, N_ABUNDANT = 100, 1000, 500


@dataclass(frozen=True, eq=False)
class WithoutSignal:
    """Cells in which some genes say nothing.

    Parameters
    ----------
    counts
        Shape (n_cells, n_genes), csr: every gene has the molecules it had, these genes in other cells.
    genes
        Positions of the genes without signal, rising.
    """

    counts: sparse.csr_matrix = field(repr=False)
    genes: np.ndarray


def without_signal(counts: sparse.csr_matrix, *, n_genes: int = N_GENES, seed: int) -> WithoutSignal:
    """Return the cells with ``n_genes`` random genes dealt anew among cells of the same depth, each on its own.

    At most a fifth of the genes are taken, so that cells stay what they are, of those with at least 50 molecules.

    Parameters
    ----------
    counts
        Integer counts, shape (n_cells, n_genes).
    seed
        Chooses and deals.

    Raises
    ------
    InputError
        No gene has molecules enough.
    """
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(counts)
    known = np.flatnonzero(_sums(counts, axis=0) >= MIN_MOLECULES)
    n_genes = min(n_genes, counts.shape[1] // 5, len(known))
    if n_genes < 1:
        raise InputError(f"too few genes have {MIN_MOLECULES} molecules to lose; use more cells or more genes")
    genes = np.sort(rng.choice(known, n_genes, replace=False))
    dealt = counts[:, genes].toarray()
    for rows in _strata(_sums(counts, axis=1), rng):
        dealt[rows] = rng.permuted(dealt[rows], axis=0)
    others = np.ones(counts.shape[1], bool)
    others[genes] = False
    place = sparse.csr_matrix((np.ones(n_genes, counts.dtype), (np.arange(n_genes), genes)), (n_genes, counts.shape[1]))
    mixed = counts @ sparse.diags(others.astype(counts.dtype)) + sparse.csr_matrix(dealt) @ place
    mixed = sparse.csr_matrix(mixed, dtype=counts.dtype)
    mixed.eliminate_zeros()
    mixed.sort_indices()
    return WithoutSignal(mixed, genes)


def matched_groups(depth: np.ndarray, group: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of as many cells of group 0 as of group 1, alike in depth.

    A logarithm of few counts depends on depth: groups that differ in it differ in genes without signal, whatever the
    method.

    Parameters
    ----------
    depth
        Molecules of each cell, shape (n_cells,).
    group
        0, 1, or anything else for cells in neither, same shape.
    """
    rng = np.random.default_rng(seed)
    either = np.flatnonzero((group == 0) | (group == 1))
    chosen: tuple[list[int], list[int]] = ([], [])
    for rows in _strata(depth[either], rng):
        sides = [rng.permutation(either[rows][group[either[rows]] == side]) for side in (0, 1)]
        n = min(map(len, sides))
        for side, cells in zip(chosen, sides, strict=True):
            side.extend(cells[:n])
    return np.sort(np.array(chosen[0], int)), np.sort(np.array(chosen[1], int))


def false_positives(expression, groups: tuple[np.ndarray, np.ndarray], genes: np.ndarray) -> float:
    """Return the share of ``genes`` that Welch's t test calls different between two groups, at p < .05.

    Parameters
    ----------
    expression
        log1p(CP10k), shape (n_cells, n_genes), sparse or dense.
    groups
        Positions of the cells of each.
    genes
        Positions of the genes. One that is constant is not different.
    """
    from scipy import stats

    first, second = (_dense(expression[cells][:, genes]) for cells in groups)
    varied = (first.var(axis=0) > 0) | (second.var(axis=0) > 0)
    p = stats.ttest_ind(first[:, varied], second[:, varied], equal_var=False).pvalue
    return float((p < LEVEL).sum() / len(genes))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of genes, positions, shape (n_pairs, 2) each, and the cells to look at them in.

    ``strong``: most correlated in other cells; ``random``: any two genes as abundant; ``no signal``: one of them has
    none, so that their true correlation is 0. Pairs that hold in cells which did not choose them are real.
    """

    sets: dict[str, np.ndarray]
    cells: np.ndarray

    @classmethod
    def of(cls, expression, no_signal: np.ndarray, *, seed: int) -> Pairs:
        """Return pairs chosen in a random half of the cells of ``expression``, log1p(CP10k) as observed."""
        from scidiff.evaluation.metrics import gene_correlations, strongest

        rng = np.random.default_rng(seed)
        choosing, judging = np.array_split(rng.permutation(expression.shape[0]), 2)
        mean = _sums(expression, axis=0)
        mean[no_signal] = -1
        genes = np.argsort(-mean, kind="stable")[: min(N_ABUNDANT, expression.shape[1] - len(no_signal))]
        correlation = np.abs(gene_correlations(expression[choosing][:, genes]))
        upper = np.column_stack(np.triu_indices(len(genes), k=1))
        sets = {
            "strong": genes[upper[strongest(correlation, N_STRONG)]],
            "random": genes[upper[rng.choice(len(upper), min(N_RANDOM, len(upper)), replace=False)]],
            "no signal": np.column_stack([rng.choice(no_signal, N_RANDOM), rng.choice(genes, N_RANDOM)]),
        }
        return cls(sets, np.sort(judging))

    def correlations(self, expression) -> dict[str, float]:
        """Return the mean absolute correlation of each set of pairs in ``expression``, log1p(CP10k)."""
        genes, place = np.unique(np.concatenate(list(self.sets.values())), return_inverse=True)
        z = _dense(expression[self.cells][:, genes]).astype(np.float64)
        z -= z.mean(axis=0)
        z /= np.maximum(np.sqrt((z**2).sum(axis=0)), 1e-12)
        first, second = place.reshape(-1, 2).T
        each = np.abs(np.einsum("ij,ij->j", z[:, first], z[:, second]))
        ends = np.cumsum([len(pairs) for pairs in self.sets.values()])[:-1]
        return {name: float(part.mean()) for name, part in zip(self.sets, np.split(each, ends), strict=True)}


def _strata(depth: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return positions of cells in runs of neighbouring depth, ties broken at random."""
    order = np.lexsort((rng.random(len(depth)), depth))
    return np.array_split(order, max(1, len(order) // STRATUM))


def _sums(x, *, axis: int) -> np.ndarray:
    return np.asarray(x.sum(axis=axis), dtype=np.float64).ravel()


def _dense(x) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)
