"""Paths between cells are straight in counts, clocks keep their means, couplings are those of an independent solver."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import ot
import pytest
from scipy import integrate, sparse, stats

from scidiff.sampling import trajectory
from scidiff.sampling.trajectory import (
    Bridge,
    Coupling,
    arrived,
    asynchronous,
    by_composition,
    draw_each,
    draw_spread,
    frames,
)


@pytest.fixture
def pair() -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    rng = np.random.default_rng(0)
    start, end = (sparse.csr_matrix(rng.poisson(rate, (400, 12)), dtype=np.float32) for rate in (1.0, 2.0))
    return start, end


def distance(a, b) -> np.ndarray:
    """Molecules by which cells differ, shape (n_cells,)."""
    return np.asarray(abs(a - b).sum(axis=1)).ravel()


# ---- bridges ---------------------------------------------------------------------------------------------------------


def test_a_bridge_joins_its_cells_and_every_molecule_changes_once(pair):
    start, end = pair
    same = np.zeros(400, int)
    clocks = [np.full((1, 1), c) for c in (0.0, 0.2, 0.5, 0.9, 1.0)]
    made = list(frames(start, end, clocks, same, rng=np.random.default_rng(1)))
    assert (made[0] != start).nnz == 0
    assert (made[-1] != end).nnz == 0
    for x in made:
        assert (x.data == np.rint(x.data)).all()
        assert (x.data >= 0).all()
    # a geodesic: no molecule comes and goes again
    along = sum(distance(a, b) for a, b in pairwise(made))
    np.testing.assert_array_equal(along, distance(start, end))


def test_the_mean_moves_in_a_straight_line(pair):
    start, end = pair
    x = Bridge.between(start, end, rng=np.random.default_rng(2)).at(np.array([[0.3]]), np.zeros(400, int))
    expected = 0.7 * start + 0.3 * end
    n = np.abs((end - start).toarray()).sum()
    error = (x - expected).sum() / np.sqrt(n * 0.3 * 0.7)  # each molecule that differs: a coin
    assert abs(error) < 4
    assert (x < start.minimum(end)).nnz == 0
    assert (x > start.maximum(end)).nnz == 0


def test_genes_and_cells_follow_their_own_clocks(pair):
    start, end = pair
    clock = np.tile([0.0, 1.0], (2, 6))
    clock[1] = 1 - clock[1]
    kind = np.arange(400) % 2
    x = Bridge.between(start, end, rng=np.random.default_rng(3)).at(clock, kind).toarray()
    expected = np.where(clock[kind] == 1, end.toarray(), start.toarray())
    np.testing.assert_array_equal(x, expected)


def test_log_expression_moves_in_a_straight_line():
    start, end = np.zeros((3, 2)), np.ones((3, 2))
    made = list(frames(start, end, [np.array([[0.0], [0.5]])], np.array([0, 1, 1]), rng=np.random.default_rng(0)))
    np.testing.assert_array_equal(made[0], [[0, 0], [0.5, 0.5], [0.5, 0.5]])


# ---- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", [0.5, 1.0, 16.0])
def test_square_roots_of_leaving_and_arriving_masses_move_at_constant_speed(growth):
    share = np.linspace(0, 1, 11)
    m = arrived(share, growth)
    np.testing.assert_allclose(m[[0, -1]], [0, 1])
    ratio = np.sqrt(m[1:-1] / (1 - m[1:-1]))
    np.testing.assert_allclose(ratio, np.sqrt(growth) * share[1:-1] / (1 - share[1:-1]))


@pytest.mark.parametrize("between", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("mean", [0.06, 0.5, 0.94])
def test_the_clocks_of_cells_have_the_mean_of_the_population(between, mean):
    density = lambda z: asynchronous(mean, np.array(z), between=between) * stats.norm.pdf(z)  # noqa: E731
    assert integrate.quad(density, -8, 8, limit=200)[0] == pytest.approx(mean, abs=1e-6)
    assert asynchronous(0.0, np.array([-3.0, 3.0])).tolist() == [0, 0]
    assert asynchronous(1.0, np.array([-3.0, 3.0])).tolist() == [1, 1]


def test_both_cells_speak_by_their_composition_not_by_their_depth():
    start, end = np.array([3000.0, 100.0]), np.array([200.0, 100.0])
    clock = np.array([0.25, 0.25])
    share = by_composition(clock, start, end)
    depth = (1 - share) * start + share * end
    np.testing.assert_allclose(share * end / depth, clock)  # share of the molecules that are the end's
    np.testing.assert_allclose(1 / depth, 0.75 / start + 0.25 / end)
    np.testing.assert_allclose(by_composition(np.array([0.0, 1.0]), start, end), [0, 1])


# ---- couplings -------------------------------------------------------------------------------------------------------


def places(n: int, shift: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3)) + shift


def joint(plan: Coupling, start: np.ndarray) -> np.ndarray:
    chance, descendants = plan.partners(start)
    return chance * descendants[:, None] / len(start)


def cost(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    c = ot.dist(start, end)
    return c / c.mean()


def test_a_coupling_is_entropic_transport(monkeypatch):
    monkeypatch.setattr(trajectory, "ENTROPY", 0.05)
    start, end = places(15, 0, 1), places(22, 1, 2)
    found = joint(Coupling.fit(start, end, uneven=False), start)
    expected = ot.sinkhorn(ot.unif(15), ot.unif(22), cost(start, end), 0.05, method="sinkhorn_log", stopThr=1e-12)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_an_uneven_coupling_is_semi_relaxed_transport(monkeypatch):
    monkeypatch.setattr(trajectory, "ENTROPY", 0.1)
    monkeypatch.setattr(trajectory, "UNEVEN", 0.5)
    start, end = places(12, 0, 3), places(20, 1, 4)
    found = joint(Coupling.fit(start, end, uneven=True), start)
    expected = ot.unbalanced.sinkhorn_unbalanced(
        ot.unif(12), ot.unif(20), cost(start, end), 0.1, (0.5, float("inf")), numItermax=20000, stopThr=1e-12
    )
    np.testing.assert_allclose(found, expected, atol=5e-5)
    np.testing.assert_allclose(found.sum(axis=0), 1 / 20, rtol=1e-2)
    assert np.ptp(found.sum(axis=1)) > 0.01


def test_shifted_cells_find_themselves_also_those_not_coupled():
    start = 10 * places(60, 0, 5)
    plan = Coupling.fit(start[:50], start + 1.0, uneven=False)
    chance, _ = plan.partners(start)
    np.testing.assert_allclose(chance.sum(axis=1), 1)
    assert (chance.argmax(axis=1) == np.arange(60)).mean() > 0.8  # 60 ends for 50 coupled starts: some are shared


def test_draws_follow_their_weights():
    rng = np.random.default_rng(0)
    weight = np.array([0.5, 0.0, 2.5, 1.0])
    assert np.bincount(draw_spread(weight, 800, rng=rng), minlength=4).tolist() == [100, 0, 500, 200]
    drawn = draw_each(np.tile([0.2, 0.0, 0.8], (4000, 1)), rng=rng)
    assert np.bincount(drawn)[1] == 0
    assert np.mean(drawn == 0) == pytest.approx(0.2, abs=0.03)
