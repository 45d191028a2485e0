"""Steering: against closed forms, on a mixture of multinomial cell types whose ideal denoiser is known."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from scidiff.models.gaussian import GaussianNoise
from scidiff.models.thinning import Thinning
from scidiff.sampling.solvers import ancestral, dpmpp_2m
from scidiff.sampling.steering import MAX_TILT, STRONGEST, Steered, calibrated

DEPTH, N = 300, 400
#: rates of two types: gene 0 marks the second, gene 1 goes with it, gene 2 against it, the others are the same in both
RATES = torch.tensor([[1.0, 4, 9, 5, 7, 30], [9, 12, 3, 5, 7, 20]], dtype=torch.float64)
TYPES = RATES / RATES.sum(dim=1, keepdim=True)
SHARES = torch.tensor([0.8, 0.2], dtype=torch.float64)


def types_of(x: Tensor) -> Tensor:
    """P(type | counts), shape (n_cells, 2)."""
    return torch.softmax(SHARES.log() + x.double() @ TYPES.log().T, dim=1)


def ideal(x: Tensor, level: Tensor, cond: object = None) -> Tensor:
    """The logits of the next molecule, exactly."""
    return torch.log(types_of(x) @ TYPES)


def features(logged: Tensor, genes: tuple[int, ...] = (0,)) -> Tensor:
    return logged[:, list(genes)]


def drawn(denoiser, *, n: int = N, steps: int = 30, seed: int = 0, start: Tensor | None = None) -> Tensor:
    """Cells of DEPTH molecules."""
    process = Thinning()
    x = torch.zeros(n, 6) if start is None else start
    levels = process.levels(torch.full((n,), float(DEPTH)), steps, start=x.sum(dim=1))
    cond = SimpleNamespace(depth=torch.full((n,), float(DEPTH)))
    generator = torch.Generator().manual_seed(seed)
    return ancestral(denoiser, x, levels, cond, process=process, generator=generator)


def steered(strength, genes=(0,), **options) -> Steered:
    strength = torch.as_tensor(strength, dtype=torch.float32)
    return Steered(
        ideal, process=Thinning(), features=partial(features, genes=genes), strength=strength.reshape(-1), **options
    )


def logged(x: Tensor) -> Tensor:
    return torch.log1p(x * (1e4 / DEPTH))


# ---- the tilt --------------------------------------------------------------------------------------------------------


def test_strength_zero_is_the_model_itself():
    assert torch.equal(drawn(steered(0.0)), drawn(ideal))


def test_the_tilt_is_what_one_more_molecule_does_to_the_features_of_the_final_cell():
    """Against central differences of the expected final cell, through the types that the counts speak for."""
    start = torch.tensor([[2.0, 3, 8, 4, 6, 20], [1, 4, 2, 1, 2, 8]])
    level, strength = start.sum(dim=1), np.array([0.4, -0.3])

    def score(x: np.ndarray) -> np.ndarray:
        rest = DEPTH - level.numpy()
        final = x + rest[:, None] * (types_of(torch.tensor(x)) @ TYPES).numpy()
        return np.log1p(final * 1e4 / DEPTH)[:, [0, 2]] @ strength

    x, step = start.double().numpy(), 1e-4
    expected = np.stack([(score(x + step * e) - score(x - step * e)) / (2 * step) for e in np.eye(6)], axis=1)
    cond = SimpleNamespace(depth=torch.full((2,), float(DEPTH)))
    tilt = steered(strength, (0, 2))(start, level, cond) - ideal(start, level).float()
    assert np.abs(expected).max() < MAX_TILT
    np.testing.assert_allclose(tilt, expected, atol=2e-4)


def test_the_tilt_is_bounded():
    cond = SimpleNamespace(depth=torch.full((1,), float(DEPTH)))
    start = torch.tensor([[1.0, 4, 2, 1, 2, 8]])
    tilt = steered(1e4)(start, start.sum(dim=1), cond) - ideal(start, start.sum(dim=1)).float()
    assert tilt.abs().max() == pytest.approx(MAX_TILT, rel=1e-5)


def test_steered_cells_are_the_models_cells_weighted_by_the_exponential():
    """p*(x) = p(x) exp(lambda f) / Z: all genes, against a weighted sample of the model's own."""
    strength = 0.5
    own, made = drawn(ideal, n=10_000, seed=1), drawn(steered(strength), n=2000, seed=2)
    weight = torch.softmax(strength * logged(own)[:, 0].double(), dim=0)
    exact = weight @ own.double()
    # far from the 61 of cells that are not steered for the last gene; Monte Carlo noise is .3
    np.testing.assert_allclose(made.double().mean(dim=0), exact, rtol=0.04)
    prior, tilted = types_of(own)[:, 1].mean(), (weight @ types_of(own))[1]
    assert tilted - prior > 0.1
    assert types_of(made)[:, 1].mean() == pytest.approx(float(tilted), abs=0.03)


def test_a_calibrated_strength_reaches_the_level_and_leaves_alone_what_has_nothing_to_do_with_it():
    """Genes are what the share of the types makes them; those the same in both types stay as they were."""
    own = drawn(ideal)
    wanted = float(logged(own)[types_of(own)[:, 1] > 0.5][:, 0].mean())  # as in cells of the second type

    def draw(strength: np.ndarray) -> np.ndarray:
        return logged(drawn(steered(strength))).mean(dim=0)[:1].numpy()

    found = calibrated(draw, np.array([wanted]))
    made = drawn(steered(found.strength), n=2000, seed=5)
    assert logged(made)[:, 0].mean() == pytest.approx(wanted, abs=0.1)
    share = types_of(made)[:, 1].mean()
    assert share > 0.85
    expected = DEPTH * torch.stack([1 - share, share]) @ TYPES
    np.testing.assert_allclose(made.mean(dim=0)[1:], expected[1:], rtol=0.05)
    same = made[:, 3] / (made[:, 3] + made[:, 4])  # equal in both types
    assert same.mean() == pytest.approx(5 / 12, abs=0.01)
    part = made[types_of(made)[:, 1] > 0.5]  # within a type, genes compete for molecules and no more
    within = np.corrcoef(part[:, 0], part[:, 3])[0, 1]
    share = TYPES[1, [0, 3]]
    assert within == pytest.approx(-float((share / (1 - share)).prod().sqrt()), abs=0.06)


def test_genes_that_are_clamped_are_never_drawn():
    offset = torch.zeros(6)
    offset[[0, 5]] = -1e4
    start = torch.zeros(N, 6)
    start[:, 5] = 12
    made = drawn(steered(2.0, offset=offset), start=start)
    assert (made[:, 0] == 0).all()
    assert (made[:, 5] == 12).all()
    assert (made.sum(dim=1) == DEPTH).all()
    assert (drawn(steered(0.0, offset=offset), start=start)[:, 5] == 12).all()


def test_gaussian_cells_move_by_the_strength():
    """exp(lambda x) makes N(0, 1) into N(lambda, 1): the gradient through E[x0 | x] is exact here."""
    process = GaussianNoise()
    strength = 1.5

    def plain(x: Tensor, sigma: Tensor, cond: object = None) -> Tensor:
        return x / (1 + sigma[:, None] ** 2)

    moved = Steered(
        plain, process=process, features=features, strength=torch.tensor([strength]), to_expression=lambda x: 2 * x
    )
    levels = process.levels(40)
    generator = torch.Generator().manual_seed(0)
    x = process.corrupt(torch.zeros(3000, 2), levels[:1].expand(3000), generator=generator)
    made = dpmpp_2m(moved, x, levels, None, generator=generator)
    assert made[:, 0].mean() == pytest.approx(2 * strength, abs=0.1)  # features see twice the value
    assert made[:, 1].mean() == pytest.approx(0, abs=0.1)
    np.testing.assert_allclose(made.std(dim=0), 1, atol=0.1)


# ---- calibration, on means in closed form ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "wanted"),
    [
        (lambda s: 3 * s, 2.0),
        (lambda s: 3 * s, -2.0),
        (lambda s: 30 * s, 0.06),
        (lambda s: s / 60, 2.0),  # a hundred molecules of the gene in every cell: hundreds are needed
        (lambda s: 4 / (1 + np.exp(-(s - 1.3))), 3.0),
        (lambda s: 4 / (1 + np.exp(-10 * (s - 1.3))), 3.0),  # the cells switch between 1.1 and 1.5
        (lambda s: 4 / (1 + np.exp(-20 * (s - 0.01))), 3.9),
        (lambda s: 1 + np.tanh(5 * s), 1.0),
    ],
)
def test_one_feature_comes_to_its_level(curve, wanted):
    calls = []

    def draw(strength: np.ndarray) -> np.ndarray:
        calls.append(strength)
        return curve(strength)

    found = calibrated(draw, np.array([wanted]))
    start = float(curve(np.zeros(1))[0])
    np.testing.assert_allclose(curve(found.strength), found.attained)
    assert abs(found.attained[0] - wanted) <= max(0.08 * abs(wanted - start), 0.0025)
    assert len(calls) == len(found.path) <= 12


@pytest.mark.parametrize(
    ("wanted", "coupling"),
    [
        ([1, 1], 0.0),
        ([1, -1], 0.6),
        ([1, -1], -0.6),
        ([1, 0.2], 0.8),  # the first carries the second farther than wanted: it must be held back
        ([1, 0], 0.8),  # ... or held where it is
        ([0.5, 3], 0.3),
    ],
)
def test_features_that_carry_each_other_come_to_their_levels_together(wanted, coupling):
    """Means of a Gaussian under exp(lambda x): start + covariance lambda; the answer is unique."""
    covariance = np.array([[1, coupling], [coupling, 2]])
    found = calibrated(lambda strength: 1 + covariance @ strength, 1 + np.array(wanted, dtype=float))
    np.testing.assert_allclose(found.attained, 1 + np.array(wanted), atol=0.05 * np.abs(wanted).max())


def test_what_cannot_be_reached_is_approached():
    found = calibrated(lambda strength: np.minimum(2 * strength, 0.7), np.array([3.0]))
    assert found.attained == pytest.approx(0.7)
    assert found.strength.max() <= STRONGEST
    np.testing.assert_allclose(found.path[0], 0)
    stuck = calibrated(lambda strength: 0 * strength, np.array([3.0, -1.0]))
    assert np.isfinite(stuck.strength).all()


def test_what_is_there_already_needs_no_strength():
    found = calibrated(lambda strength: 2 + strength, np.array([2.0]))
    assert found.strength == 0
    assert len(found.path) == 1
