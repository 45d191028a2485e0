"""Genes without signal have none; tests of honest values find none, tests of values that repeat accidents many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from scidiff.data.scaling import log1p_cp10k
from scidiff.errors import InputError
from scidiff.evaluation.invention import Pairs, WithoutSignal, false_positives, matched_groups, without_signal

N_CELLS, N_GENES = 1000, 300


@pytest.fixture(scope="module")
def group() -> np.ndarray:
    return np.random.default_rng(1).integers(2, size=N_CELLS)


@pytest.fixture(scope="module")
def counts(group) -> sparse.csr_matrix:
    """Two kinds of cells that differ twofold or more in all genes; the second is twice as deep."""
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(size=(2, N_GENES)))
    depth = rng.gamma(5, 60, N_CELLS) * (1 + group)
    return sparse.csr_matrix(rng.poisson(depth[:, None] * (rate / rate.sum(1, keepdims=True))[group]), dtype=np.float32)


@pytest.fixture(scope="module")
def made(counts) -> WithoutSignal:
    return without_signal(counts, seed=0)


def depth_of(x) -> np.ndarray:
    return np.asarray(x.sum(axis=1)).ravel()


def test_every_gene_keeps_its_counts_and_other_genes_their_cells(counts, made):
    assert len(made.genes) == N_GENES // 5
    others = np.setdiff1d(np.arange(N_GENES), made.genes)
    assert (made.counts[:, others] != counts[:, others]).nnz == 0
    before, after = counts[:, made.genes].toarray(), made.counts[:, made.genes].toarray()
    assert np.array_equal(np.sort(before, axis=0), np.sort(after, axis=0))
    assert (before != after).mean() > 0.3


def test_deep_cells_keep_more_molecules_of_these_genes(counts, made):
    dealt, depth = depth_of(made.counts[:, made.genes]), depth_of(counts)
    assert stats.spearmanr(dealt, depth).statistic > 0.8


def test_genes_without_signal_do_not_differ_between_groups_of_one_depth(made, counts, group):
    groups = matched_groups(depth_of(made.counts), group, seed=0)
    observed = log1p_cp10k(made.counts)
    assert false_positives(observed, groups, made.genes) < 0.13  # 60 genes: 5 % and three standard errors
    assert false_positives(log1p_cp10k(counts), groups, made.genes) > 0.7  # they did before
    unmatched = np.flatnonzero(group == 0), np.flatnonzero(group == 1)
    assert false_positives(observed, unmatched, made.genes) > 0.3  # depth alone makes logarithms differ


def test_averages_over_a_group_are_caught(made, group):
    """What every smoother does at worst: a share of each value is its group's mean."""
    observed = log1p_cp10k(made.counts).toarray()
    groups = matched_groups(depth_of(made.counts), group, seed=0)
    mean = np.stack([observed[group == side].mean(axis=0) for side in (0, 1)])[group]
    assert false_positives(0.2 * observed + 0.8 * mean, groups, made.genes) > 0.4


def test_groups_are_matched_in_depth_and_in_number():
    rng = np.random.default_rng(3)
    group = rng.choice([0, 1, 2], 3000, p=[0.6, 0.3, 0.1])
    depth = rng.lognormal(5 + 0.5 * (group == 1), 0.5)
    first, second = matched_groups(depth, group, seed=0)
    assert len(first) == len(second) > 500
    assert (group[first] == 0).all()
    assert (group[second] == 1).all()
    assert stats.ks_2samp(depth[first], depth[second]).pvalue > 0.1
    assert stats.ks_2samp(depth[group == 0], depth[group == 1]).pvalue < 1e-9


def test_p_values_are_those_of_scipy():
    x = np.random.default_rng(0).normal(size=(40, 5))
    x[:20, 0] += 5
    x[:, 4] = 1  # constant: not different
    groups = np.arange(20), np.arange(20, 40)
    p = [stats.ttest_ind(x[:20, j], x[20:, j], equal_var=False).pvalue for j in range(4)]
    assert false_positives(sparse.csr_matrix(x), groups, np.arange(5)) == pytest.approx(np.sum(np.array(p) < 0.05) / 5)


def test_pairs_tell_real_from_invented_correlation():
    """Ten genes follow a hidden state, ten have lost it; smoothing over cells correlates everything."""
    rng = np.random.default_rng(5)
    state = rng.normal(size=(2000, 1))
    x = rng.normal(size=(2000, 40)) + 5
    x[:, :10] += 2 * state
    pairs = Pairs.of(x, np.arange(30, 40), seed=0)
    assert {name: part.shape[1] for name, part in pairs.sets.items()} == {"strong": 2, "random": 2, "no signal": 2}
    assert np.isin(pairs.sets["no signal"][:, 0], np.arange(30, 40)).all()
    assert not np.isin(pairs.sets["random"], np.arange(30, 40)).any()
    seen = pairs.correlations(x)
    # 45 of the 100 strongest pairs are real, r = 4 / 5; the others and those without signal are chance
    chance = np.sqrt(2 / np.pi / len(pairs.cells))
    assert seen["strong"] == pytest.approx(0.45 * 0.8 + 0.55 * chance, abs=0.02)
    assert seen["no signal"] == pytest.approx(chance, rel=0.25)
    smooth = x + 3 * x.mean(axis=1, keepdims=True)
    assert pairs.correlations(smooth)["no signal"] > 5 * chance


def test_pairs_are_judged_in_cells_that_did_not_choose_them():
    """Noise alone: the pairs chosen as strongest are no stronger than any in other cells."""
    x = np.random.default_rng(7).normal(size=(400, 50))
    seen = Pairs.of(x, np.arange(40, 50), seed=0).correlations(x)
    assert seen["strong"] == pytest.approx(seen["random"], abs=0.01)


def test_no_gene_to_lose_its_signal():
    with pytest.raises(InputError, match="50 molecules"):
        without_signal(sparse.csr_matrix(np.ones((10, 20))), seed=0)
