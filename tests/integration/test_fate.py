"""Fate: the gambler's ruin, and a fork whose branches are taken as planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

import scidiff as sd
from scidiff.integration.fate import (
    MAX_WEIGHT,
    STRENGTHS,
    Fates,
    Places,
    absorbed,
    balance,
    fates,
    reliability,
    toward_mean,
    transitions,
    weighted,
)


def test_gamblers_ruin():
    """A walk on 0..n that goes up with p ends at n with probability (1 - r^i) / (1 - r^n), r = (1 - p) / p."""
    n, p = 10, 0.6
    steps = sparse.diags([np.full(n, 1 - p), np.full(n, p)], [-1, 1]).tocsr()
    ends = np.full(n + 1, -1)
    ends[[0, n]] = 0, 1
    r = (1 - p) / p
    expected = (1 - r ** np.arange(n + 1)) / (1 - r**n)
    np.testing.assert_allclose(absorbed(steps, ends, 2)[:, 1], expected, atol=1e-6)


def test_where_no_end_is_reached_nothing_is_known():
    steps = sparse.csr_matrix(np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1.0]]))
    found = absorbed(steps, np.array([-1, -1, -1, 0]), 2)
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.5, 0.5], [1, 0], [1, 0]], atol=1e-6)


def test_cells_that_can_hardly_be_left_are_no_error():
    """Two cells of which one is left with a chance that is lost in the rounding of 1."""
    steps = sparse.csr_matrix(np.array([[0, 1, 1e-30], [1, 0, 0], [0, 0, 1]]))
    found = absorbed(steps, np.array([-1, -1, 0]), 2)
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.5, 0.5], [1, 0]], atol=1e-6)


def test_steps():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 2))
    still = transitions(Places(points), n_neighbors=7)
    np.testing.assert_allclose(still.sum(axis=1), 1)
    assert (still.diagonal() == 0).all()
    np.testing.assert_allclose(still.data, 1 / 7)
    right = np.tile([1.0, 0.0], (60, 1))
    directed = transitions(Places(points, right), n_neighbors=7)
    assert (((directed - still) @ points)[:, 0] > 0).all()
    np.testing.assert_allclose(transitions(Places(points, push=0 * right), n_neighbors=7).data, 1 / 7)
    pushed = transitions(Places(points, right, -5 * right), n_neighbors=7)
    assert ((pushed - still) @ points)[:, 0].mean() < 0
    some = np.arange(20)
    assert set(transitions(Places(points), among=some, n_neighbors=5).indices) <= set(some)


def test_cells_at_rest_have_no_direction():
    points = np.random.default_rng(0).normal(size=(50, 2))
    direction = np.full((50, 2), 1e-6)
    direction[0] = 1
    steps = transitions(Places(points, direction), n_neighbors=6)
    np.testing.assert_allclose(steps[1:].data, 1 / 6, rtol=1e-3)
    assert np.ptp(steps[0].data) > 0.1


def test_balance():
    chance = np.random.default_rng(0).dirichlet([5, 1, 1], 500)
    shares = np.array([0.2, 0.3, 0.5])
    found = weighted(chance, balance(chance, shares))
    np.testing.assert_allclose(found.mean(axis=0), shares, atol=1e-3)


def fork(n: int = 600, share: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return cells that walk a stem and take its left or right branch: places, directions, ends, stem cells."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 2, n)
    side = np.where(rng.random(n) < share, -1.0, 1.0)
    beyond = np.maximum(t - 1, 0)
    points = np.stack([side * beyond, t], axis=1) + 0.05 * rng.normal(size=(n, 2))
    direction = np.stack([np.where(t > 1, side, 0), np.ones(n)], axis=1)
    ends = np.where(t < 1.7, -1, (side > 0).astype(int))
    return points, direction, ends, t < 0.8


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_fork(share):
    points, direction, ends, stem = fork(share=share)
    found = fates(Places(points, direction), ends, ["left", "right"], n_neighbors=15, n_rounds=6)
    estimate, low, high = found.of(stem)
    np.testing.assert_allclose(estimate, [share, 1 - share], atol=0.1)
    assert (low <= estimate).all()
    assert (estimate <= high).all()
    np.testing.assert_allclose(found.probability.sum(axis=1), 1)
    branch = (ends < 0) & (points[:, 1] > 1.4)
    committed = found.probability[branch, 1] > 0.5
    assert np.mean(committed == (points[branch, 0] > 0)) > 0.95


def test_a_push_changes_fate_in_its_direction():
    points, direction, ends, stem = fork()
    options = {"n_neighbors": 15, "n_rounds": 2 * len(STRENGTHS)}
    own = fates(Places(points, direction), ends, ["left", "right"], **options)
    none = fates(Places(points, direction, 0 * points), ends, ["left", "right"], like=own, **options)
    np.testing.assert_allclose(none.rounds, own.rounds)
    push = Places(points, direction, 0 * points + [0.05, 0])
    pushed = fates(push, ends, ["left", "right"], like=own, **options)
    assert pushed.of(stem)[0][1] > own.of(stem)[0][1] + 0.1
    gain = (pushed.rounds - own.rounds)[:, stem, 1].mean(axis=1)
    assert 0 < gain[0] < gain[-1] - 0.1  # a weak push comes first, the strongest last


def test_reliability_is_that_of_the_mean_of_two():
    """Halves that are a signal and a noise of their own: r is the share of signal in the variance of their mean."""
    rng = np.random.default_rng(0)
    group = np.repeat(["clear", "dim", "noise", "alike"], 4000)
    signal = np.repeat([1.0, 0.5, 0, 0], 4000) * rng.normal(size=16000)
    noise = np.repeat([0.1, 1, 1, 0], 4000) * rng.normal(size=(4, 16000))
    side = 0.5 + 0.1 * (signal + noise)
    found = reliability(np.stack([side, 1 - side], axis=2), group)
    expected = {"clear": 1 / (1 + 0.01 / 2), "dim": 0.25 / (0.25 + 1 / 2), "noise": 0, "alike": 0}
    for name, share in expected.items():
        np.testing.assert_allclose(found[group == name], share, atol=0.06)
        assert np.ptp(found[group == name]) == 0


def test_differences_are_kept_as_far_as_told():
    rng = np.random.default_rng(0)
    chance, group = rng.dirichlet([1, 1, 1], (2, 50)), np.repeat(["a", "b"], 25)
    np.testing.assert_allclose(toward_mean(chance, group, np.ones(50)), chance)
    half = toward_mean(chance, group, np.where(group == "a", 0.5, 0))
    for some in (group == "a", group == "b"):
        np.testing.assert_allclose(half[:, some].mean(axis=1), chance[:, some].mean(axis=1))
    np.testing.assert_allclose(half.sum(axis=2), 1)
    np.testing.assert_allclose(half[:, :25].std(axis=1), chance[:, :25].std(axis=1) / 2)
    np.testing.assert_allclose(half[:, 25:].std(axis=1), 0, atol=1e-12)


def test_noise_of_a_cell_is_no_fate():
    """Cells of the stem are all undecided, whatever side they seem to be on; cells of a branch have decided."""
    _, direction, ends, stem = fork(800)
    rng = np.random.default_rng(1)
    clean = fork(800)[0]
    halves = [Places(clean + rng.normal(size=clean.shape) * [0.3, 0.05], direction) for _ in range(2)]
    whole = Places(np.mean([half.points for half in halves], axis=0), direction)
    options = {"n_neighbors": 15, "n_rounds": 8, "halves": halves}
    group = np.where(stem, "stem", np.where(ends < 0, "branch", "arrived"))
    raw, kept = (fates(whole, ends, ["left", "right"], group=some, **options) for some in (None, group))
    error = [np.abs(found.probability[stem, 1] - 0.5).mean() for found in (raw, kept)]
    assert error[1] < 0.6 * error[0]
    branch = group == "branch"
    right = [found.probability[branch, 1][clean[branch, 0] > 0.2].mean() for found in (raw, kept)]
    assert right[1] > 0.9 * right[0] > 0.7
    np.testing.assert_allclose(kept.of(stem)[0], raw.of(stem)[0])  # groups stay as they are


def told(own: Fates, pushed: Fates, arrived: list[int], over: np.ndarray) -> np.ndarray:
    """Return what cells that had the perturbation make of the mean fate of those that ``over`` counts."""
    found = own.told(np.array(arrived, dtype=int), over, pushed=pushed)
    np.testing.assert_allclose(found.rounds.sum(axis=2), 1)
    return np.average(found.probability, axis=0, weights=over)


def test_fates_are_told_by_cells_that_had_the_perturbation():
    rng = np.random.default_rng(0)
    own, pushed = (
        Fates(["a", "b"], rng.dirichlet([2, some], (4, 300)), np.ones((4, 2)), np.ones(300)) for some in (2, 6)
    )
    over = rng.integers(0, 3, 300).astype(float)
    walked = np.average(pushed.probability, axis=0, weights=over)
    # half of equal cells are equal: the shares are those of n cells and of one more for each end, where the push leads
    for n in (1, 10, 1000):
        expected = (n * np.array([1, 0]) + 2 * walked) / (n + 2)
        np.testing.assert_allclose(told(own, pushed, [0] * n, over), expected, atol=1e-4)
    np.testing.assert_array_equal(told(own, pushed, [], over), walked)


def test_odds_of_ends_change_for_all_cells_alike():
    rng = np.random.default_rng(1)
    own = Fates(
        ["a", "b"],
        np.concatenate([rng.dirichlet([2, 2], (2, 300)), np.tile([1.0, 0.0], (2, 9, 1))], axis=1),
        np.ones((2, 2)),
        np.ones(309),
    )
    found = own.told(np.array([1] * 60 + [0] * 20), np.ones(309), pushed=own)
    odds = (found.rounds[:, :300, 1] / found.rounds[:, :300, 0]) / (own.rounds[:, :300, 1] / own.rounds[:, :300, 0])
    np.testing.assert_allclose(odds, odds[:, :1] * np.ones(300))
    np.testing.assert_array_equal(found.probability[300:], own.probability[300:])  # they have decided
    assert np.ptp(found.rounds.mean(axis=1)[:, 1]) > 0  # which of the 80 were caught is chance


def test_balance_over_some_cells():
    chance = np.random.default_rng(0).dirichlet([5, 1], 500)
    over = np.arange(500) % 2
    found = weighted(chance, balance(chance, np.array([0.3, 0.7]), over=over))
    np.testing.assert_allclose(found[over == 1].mean(axis=0), [0.3, 0.7], atol=1e-3)
    hopeless = balance(np.array([[1, 1e-9]]), np.array([0.0, 1.0]))
    assert hopeless[1] / hopeless[0] == pytest.approx(MAX_WEIGHT**2)


def test_rounds_are_counted():
    points, _, ends, _ = fork(100)
    seen = []
    fates(Places(points), ends, ["left", "right"], n_neighbors=5, n_rounds=3, on_round=seen.append)
    assert seen == [1, 2, 3]


def test_too_little_is_refused():
    points, direction, ends, _ = fork(200)
    with pytest.raises(sd.InputError, match="cells have reached 'nowhere'"):
        fates(Places(points), ends, ["left", "right", "nowhere"])
    with pytest.raises(sd.InputError, match="on the way"):
        fates(Places(points), np.maximum(ends, 0), ["left", "right"])
    with pytest.raises(sd.InputError, match="n_rounds=1"):
        fates(Places(points), ends, ["left", "right"], n_rounds=1)
    with pytest.raises(sd.InputError, match="n_rounds=3: at least 4"):
        fates(Places(points), ends, ["left", "right"], halves=[Places(points)] * 2, n_rounds=3)
    with pytest.raises(sd.InputError, match="direction has shape"):
        Places(points, direction[:, :1])
