"""Counterfactual cells of planted populations: means, own molecules, depth, and who receives the new ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from scidiff.sampling.perturb import Allocation, counterfactual, deal, needed, queued

N_CELLS, N_GENES = 400, 60
PLAIN = Allocation()


def mean_log(counts) -> np.ndarray:
    """Return the mean log1p(CP10k) of counts, each cell over its own total; cells without molecules count 0."""
    dense = np.asarray(sparse.csr_matrix(counts).todense(), dtype=float)
    return np.log1p(1e4 * dense / np.maximum(dense.sum(axis=1, keepdims=True), 1)).mean(axis=0)


def population(n: int = N_CELLS, *, depth: float = 500, effect: float = 0.0, seed: int = 0) -> sparse.csr_matrix:
    """Poisson cells; with an effect every third gene rises, every third falls, by that factor in log rate."""
    rng = np.random.default_rng(seed)
    share = np.exp(np.random.default_rng(99).normal(size=N_GENES))
    share = share * np.exp(effect * np.resize([1, -1, 0], N_GENES))
    depths = depth * np.exp(0.3 * rng.standard_normal(n))
    return sparse.csr_matrix(rng.poisson(depths[:, None] * share / share.sum()), dtype=np.float32)


def made_of(x, target, *, depth_ratio: float = 1.0, denoiser=None, how: Allocation = PLAIN, seed: int = 0):
    return counterfactual(denoiser, x, target, None, depth_ratio=depth_ratio, how=how, seed=seed)


# ---- means and depth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "ratio"), [(500, 1.0), (500, 1.6), (500, 0.6), (3000, 1.0), (100, 1.0)])
def test_means_and_depth_of_a_population_that_was_truly_perturbed(depth, ratio):
    control, treated = population(depth=depth), population(depth=depth * ratio, effect=0.8, seed=1)
    target = mean_log(treated)
    made, short = made_of(control, target, depth_ratio=ratio)
    np.testing.assert_allclose(mean_log(made), target, atol=0.02)
    assert not short.any()
    assert made.sum() == pytest.approx(control.sum() * ratio, rel=0.08)
    spread = [np.log1p(1e4 * c.toarray() / c.sum(axis=1)).std(axis=0) for c in (made, treated)]
    assert np.corrcoef(*spread)[0, 1] > 0.95  # the variance is that of counting


def test_genes_never_counted_can_appear_and_genes_can_vanish():
    control, treated = population().toarray(), population(seed=1).toarray()
    control[:, :5], treated[:, 5:10] = 0, 0
    treated[:, 0] = np.arange(N_CELLS) < 3  # in three cells
    control, target = sparse.csr_matrix(control), mean_log(treated)
    made, short = made_of(control, target)
    np.testing.assert_allclose(mean_log(made), target, atol=0.02)
    assert made[:, 5:10].nnz == 0
    assert not short.any()


def test_no_effect_leaves_every_molecule_where_it_is():
    control = population()
    made, _ = made_of(control, mean_log(control))
    assert (made != control).nnz == 0


@pytest.mark.parametrize("how", [PLAIN, Allocation(n_steps=1)])
def test_a_gene_that_rises_keeps_its_molecules_and_one_that_falls_wins_none(how):
    control, target = population(), mean_log(population(effect=0.8, seed=1))
    made = made_of(control, target, how=how)[0].toarray()
    own = control.toarray()
    more, fewer = (made >= own).all(axis=0), (made <= own).all(axis=0)
    assert (more | fewer).all()
    change = target - mean_log(control)
    assert more[change > 0.4].all()
    assert fewer[change < -0.6].all()
    assert (made >= 0).all()
    np.testing.assert_array_equal(made, np.rint(made))


@pytest.mark.parametrize(("factor", "depth"), [(0.8, 0.5), (1.2, 2.0)])
def test_what_is_no_composition_keeps_its_shape_and_depth_within_bounds(factor, depth):
    control = population()
    target = factor * mean_log(control)
    made, _ = made_of(control, target)
    assert made.sum() / control.sum() == pytest.approx(depth, rel=0.05)
    assert np.corrcoef(mean_log(made), target)[0, 1] > 0.99


def test_one_cell_and_cells_without_molecules():
    one = population(1)
    grown = one.toarray()
    grown[0, 0] *= 3
    made, _ = made_of(one, mean_log(grown), depth_ratio=grown.sum() / one.sum())
    np.testing.assert_allclose(made.toarray(), grown, atol=0.02 * grown.max())
    nothing = sparse.csr_matrix((3, N_GENES), dtype=np.float32)
    assert made_of(nothing, np.zeros(N_GENES))[0].nnz == 0
    assert made_of(nothing, np.full(N_GENES, 1.0))[0].shape == (3, N_GENES)


def test_the_seed_makes_cells():
    control, target = population(), mean_log(population(effect=0.8, seed=1))
    first, again, other = (made_of(control, target, how=Allocation(), seed=seed)[0] for seed in (3, 3, 4))
    assert (first != again).nnz == 0
    assert (first != other).nnz > 0


# ---- the parts -------------------------------------------------------------------------------------------------------


def test_dealt_molecules_follow_totals_depths_and_the_network():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.poisson(5, (30, 8))).float()
    odds = torch.from_numpy(rng.normal(size=(30, 8))).float()
    kept = torch.from_numpy(rng.gamma(2, 0.5, (30, 8))).float()
    genes, totals, room = np.array([1, 2, 5]), torch.tensor([3e4, 1e5, 0.0]), torch.linspace(1, 3, 30)
    new = deal(
        lambda x, level, cond: odds,
        x,
        totals,
        room,
        None,
        genes=genes,
        kept=kept,
        how=PLAIN,
        generator=torch.Generator().manual_seed(0),
    ).numpy()
    weight = (room[:, None] * kept * odds.softmax(dim=1))[:, genes].numpy()
    expected = weight / weight.sum(axis=0) * totals.numpy()
    np.testing.assert_allclose(new[:, genes], expected, atol=5 * np.sqrt(expected.max()))
    assert np.abs(new[:, genes] - expected).sum() / expected.sum() < 0.03
    assert new.sum() == new[:, genes[:2]].sum()


def test_queues_stop_at_the_molecule_nearest_to_the_target():
    """Against trying every length of one gene's queue by hand, in cells whose total one gene does not change."""
    rng = np.random.default_rng(0)
    ballast = np.full((40, 1), 5000)
    own = sparse.csr_matrix(np.hstack([rng.poisson(2, (40, 1)), ballast]), dtype=np.float32)
    new = sparse.csr_matrix(np.hstack([rng.poisson(3, (40, 1)), 0 * ballast]), dtype=np.float32)
    depth = np.asarray(own.sum(axis=1)).ravel()
    steady = mean_log(own)[1]
    for wish in (0.0, 0.03, 0.3, 1.0, 2.0):
        made, short = queued(own, new, np.array([wish, steady]), depth=depth, rng=np.random.default_rng(1))
        assert abs(mean_log(made)[0] - wish) < np.log1p(2) / 2 / 40 + 0.002
        assert short[0] == 0
    wish = mean_log(own + new)[0] + 0.5
    made, short = queued(own, new, np.array([wish, steady]), depth=depth, rng=np.random.default_rng(1))
    assert made[:, 0].sum() == own[:, 0].sum() + new[:, 0].sum()
    assert short[0] == pytest.approx(0.5, abs=0.01)


def test_needed_molecules_are_foreseen_from_rare_to_abundant():
    control, treated = population(), population(effect=0.8, seed=1)
    expected = needed(control, mean_log(treated), np.asarray(control.sum(axis=1)).ravel())
    true = np.asarray(treated.sum(axis=0) - control.sum(axis=0)).ravel()
    rising = np.resize([True, False, False], N_GENES)
    ratio = expected[rising] / true[rising]
    assert (ratio > 0.6).all()
    assert (ratio < 3).all()


# ---- the network -----------------------------------------------------------------------------------------------------


def responders(x: torch.Tensor, level: torch.Tensor, cond: object) -> torch.Tensor:
    """Logits of a network that knows: cells with the marker (gene 0) answer with genes 1 to 10, others hardly."""
    logits = torch.zeros_like(x)
    logits[:, 1:11] = torch.where(x[:, :1] > 0, 5.0, -5.0)
    return logits


def answering():
    """Control cells, every second with a marker (gene 0); means and depth when these answered with genes 1 to 10."""
    control, treated = population().toarray(), population(seed=1).toarray()
    for counts in (control, treated):
        counts[:, 0] = np.resize([30, 0], N_CELLS)
    control[:, 1:11], treated[1::2, 1:11] = 0, 0
    return sparse.csr_matrix(control), mean_log(treated), treated.sum() / control.sum()


@pytest.mark.parametrize(("denoiser", "share"), [(responders, 1.0), (None, 0.5)])
def test_the_network_says_which_cells_answer(denoiser, share):
    control, target, ratio = answering()
    made, short = made_of(control, target, denoiser=denoiser, depth_ratio=ratio)
    won = (made - control)[:, 1:11].toarray()
    assert won[::2].sum() / won.sum() == pytest.approx(share, abs=0.05)
    together = np.corrcoef(np.log1p(won).T)[np.triu_indices(10, 1)].mean()
    assert (together > 0.5) == (denoiser is not None)
    np.testing.assert_allclose(mean_log(made)[1:11], target[1:11], atol=0.05)
    if denoiser is not None:  # molecules spread more evenly than in truth reach the means with fewer
        assert made.sum() / control.sum() == pytest.approx(ratio, rel=0.05)
    assert short.max() < 0.05


def test_a_gene_rises_in_the_cells_that_had_more_of_it_than_was_expected():
    control, target = population(), mean_log(population(effect=0.8, seed=1))
    kept = np.ones(control.shape, np.float32)
    kept[: N_CELLS // 2, 0] = 3.0
    made = counterfactual(None, control, target, None, depth_ratio=1.0, kept=torch.from_numpy(kept), seed=0)[0]
    new = (made - control).toarray()
    first, second = new[: N_CELLS // 2].sum(axis=0), new[N_CELLS // 2 :].sum(axis=0)
    assert first[0] / second[0] == pytest.approx(3, rel=0.15)
    rising = new.sum(axis=0) > 300
    rising[0] = False
    assert rising.sum() > 5
    assert np.allclose(first[rising] / second[rising], 1, atol=0.3)
    np.testing.assert_allclose(mean_log(made), target, atol=0.02)
