"""Weighted particles have the tilted distribution where it is known, and steering alone does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist

from scidiff.errors import InputError
from scidiff.models.gaussian import GaussianNoise
from scidiff.models.thinning import Thinning
from scidiff.sampling.particles import Chosen, _one_molecule, particles, systematic
from scidiff.sampling.solvers import ancestral
from scidiff.sampling.steering import Steered

NOISE = GaussianNoise(sigma_min=0.02, sigma_max=10)
DIRECTION = torch.tensor([1.0, 0.5])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Gaussian noise: a mixture, and one noisy number y = a . x + N(0, s^2) known of each cell


def posterior(prior, y: float, s: float):
    """Return p(x | y), again a mixture of Gaussians, and log p(y)."""
    a = DIRECTION.double()
    log_joint, means, covariances = [], [], []
    for weight, mean, covariance in zip(prior.weights, prior.means, prior.covariances, strict=True):
        total = a @ covariance @ a + s**2
        towards = covariance @ a / total
        log_joint.append(weight.log() - ((y - a @ mean) ** 2 / total + (2 * math.pi * total).log()) / 2)
        means.append(mean + towards * (y - a @ mean))
        covariances.append(covariance - torch.outer(towards, a @ covariance))
    log_joint = torch.stack(log_joint)
    return type(prior)(log_joint.softmax(0), torch.stack(means), torch.stack(covariances)), log_joint.logsumexp(0)


def towards(prior, y: float, s: float) -> Steered:
    def log_likelihood(x):
        return (-(((x @ DIRECTION.to(x) - y) / s) ** 2) / 2 - math.log(s * math.sqrt(2 * math.pi)))[:, None]

    strength = torch.ones(1)
    return Steered(prior, process=NOISE, features=log_likelihood, strength=strength, to_expression=lambda x: x)


def energy(cells: torch.Tensor, weights: torch.Tensor, real: torch.Tensor) -> float:
    """Return the energy distance of weighted cells to real ones; that of exact samples falls as 1 / n."""
    x, w, y = cells.numpy(), weights.numpy(), real.numpy()
    v = np.full(len(y), 1 / len(y))
    return 2 * w @ cdist(x, y) @ v - w @ cdist(x, x) @ w - v @ cdist(y, y) @ v


@pytest.mark.parametrize(("y", "s"), [(0.0, 0.5), (-0.5, 0.3)])
def test_weighted_cells_are_samples_given_the_measurement(mixture, y, s):
    """Energy distance to p(x | y), mean of 6 seeds: within twice that of as many exact samples; steered cells are not.

    y = 0 lies between the two kinds of cells, y = -.5 is rare in both.
    """
    exact, log_evidence = posterior(mixture, y, s)
    real, steered, levels = exact.draw(2_000, 0.0, seeded(9)), towards(mixture, y, s), NOISE.levels(80)
    weighted, ideal, evidence = [], [], []
    even = torch.full((400,), 1 / 400)
    for seed in range(6):
        noise = mixture.draw(400, 10.0, seeded(seed)).float()
        out = particles(steered, noise, levels, generator=seeded(seed))
        weighted.append(energy(out.cells, out.log_weights.exp(), real))
        ideal.append(energy(exact.draw(400, 0.0, seeded(100 + seed)), even, real))
        evidence.append(out.log_evidence.item())
    assert np.mean(weighted) < 2 * np.mean(ideal)
    alone = ancestral(steered, noise, levels, process=NOISE, generator=seeded())
    assert energy(alone, even, real) > 5 * np.mean(ideal)
    assert np.mean(evidence) == pytest.approx(log_evidence.item(), abs=0.15)


def test_one_gaussian_needs_no_weights(mixture):
    """h is exact for Gaussian cells, so what is unequal about weights vanishes as steps become finer."""
    prior = type(mixture)([1.0], [[1.0, -2.0]], [[[1.0, 0.6], [0.6, 0.8]]])
    exact, log_evidence = posterior(prior, 3.0, 0.3)
    noise, lost = prior.draw(500, 80.0, seeded()).float(), []
    for n_steps in (75, 300):
        levels = NOISE.levels(n_steps, start=80.0)
        out = particles(towards(prior, 3.0, 0.3), noise, levels, generator=seeded())
        lost.append(1 - out.ess.min().item() / 500)
    assert lost[1] < 0.4 * lost[0] < 0.4 * 0.25
    assert out.n_ancestors.item() == 500
    assert out.log_evidence.item() == pytest.approx(log_evidence.item(), abs=0.1)
    mean, covariance = exact.moments()
    weights = out.log_weights.exp()
    torch.testing.assert_close(weights @ out.cells.double(), mean, atol=0.15, rtol=0)
    torch.testing.assert_close(torch.cov(out.cells.double().T, aweights=weights), covariance, atol=0.1, rtol=0)


def test_the_step_without_noise_is_not_steered(mixture):
    steered, x = towards(mixture, 0.0, 0.5), mixture.draw(50, 1.0, seeded()).float()
    out = particles(steered, x, torch.tensor([1.0, 0.0]), generator=seeded())
    cells = mixture(x, torch.ones(50))
    torch.testing.assert_close(out.cells, cells)
    torch.testing.assert_close(out.log_weights.exp(), steered.features(cells)[:, 0].double().softmax(0))


# thinning: three types of cells, told apart by their molecules; the phenotype is the level of genes 0 and 1 together

SHARES = torch.tensor([0.2, 0.3, 0.5])
TYPES = torch.tensor([[0.02, 0.03, 0.05, 0.3, 0.6], [0.2, 0.1, 0.2, 0.3, 0.2], [0.05, 0.15, 0.5, 0.2, 0.1]])


class Depths:
    """Conditions that say no more than the depth."""

    def __init__(self, depth: torch.Tensor) -> None:
        self.depth = depth

    def __getitem__(self, rows: torch.Tensor) -> Depths:
        return Depths(self.depth[rows])


class Known:
    """The ideal denoiser of the three types: what the molecules that are there say of those to come."""

    calls = 0

    def types(self, x: torch.Tensor) -> torch.Tensor:
        return (SHARES.log() + x @ TYPES.log().T).softmax(1)

    def __call__(self, x: torch.Tensor, level: torch.Tensor, cond: Depths) -> torch.Tensor:
        assert len(x) == len(level) == len(cond.depth)
        self.calls += 1
        return (self.types(x) @ TYPES).log()


def gene_set(x: torch.Tensor) -> torch.Tensor:
    return torch.log1p(torch.expm1(x[:, :2]).sum(1))[:, None]


def tilted(strength: float, **options) -> Steered:
    return Steered(Known(), process=Thinning(), features=gene_set, strength=torch.tensor([strength]), **options)


def truth(depth: int, strength: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the tilted shares of types, the mean composition, and Z, summed over all counts of the gene set."""
    count = np.arange(depth + 1)
    tilt = np.exp(strength * np.log1p(1e4 * count / depth))
    mass, molecules = [], []
    for p in TYPES.double().numpy():
        inside = p[:2].sum()
        density = stats.binom.pmf(count, depth, inside) * tilt
        mean = (density @ count) / density.sum()
        mass.append(density.sum())
        molecules.append(np.r_[p[:2] / inside * mean, p[2:] / (1 - inside) * (depth - mean)])
    joint = SHARES.double().numpy() * np.array(mass)
    shares = joint / joint.sum()
    return shares, shares @ np.array(molecules) / depth, joint.sum()


@pytest.mark.parametrize("strength", [1.0, -1.0, 3.0])
def test_types_and_composition_are_the_tilted_ones(strength):
    """Within Monte Carlo error, molecule by molecule; -1 asks for a type that is 20 % of cells and shall be 96 %."""
    n, depth = 1_500, 50
    cond, levels = Depths(torch.full((n,), float(depth))), torch.arange(depth + 1.0)
    steered, start = tilted(strength), torch.zeros(n, 5)
    out = particles(steered, start, levels, cond, generator=seeded())
    assert torch.equal(out.cells.sum(1), cond.depth)
    shares, composition, z = truth(depth, strength)
    weights, types = out.log_weights.exp().float(), steered.denoiser.types(out.cells)
    error = np.sqrt(shares * (1 - shares) / out.ess.min().item())
    assert (np.abs((weights @ types).numpy() - shares) < 4 * error).all()
    np.testing.assert_allclose(weights @ out.cells / depth, composition, atol=0.015)
    assert out.log_evidence.item() == pytest.approx(np.log(z), abs=0.15)
    if strength < 0:
        alone = ancestral(steered, start, levels, cond, process=Thinning(), generator=seeded())
        assert steered.denoiser.types(alone).mean(0)[0] < 0.7 < shares[0]


@pytest.mark.parametrize("resample_below", [0.0, 0.5, 1.0])
def test_the_mean_weight_is_unbiased_however_small_the_population(resample_below):
    """400 populations of 6: their evidence is Z on average, also where particles are drawn anew at every step."""
    n, depth = 2_400, 12
    groups, cond = torch.arange(n) // 6, Depths(torch.full((n,), float(depth)))
    out = particles(
        tilted(-1.0),
        torch.zeros(n, 5),
        torch.arange(depth + 1.0),
        cond,
        generator=seeded(),
        groups=groups,
        resample_below=resample_below,
    )
    z = out.log_evidence.exp()
    assert out.ess.shape == (depth + 1, 400)
    assert z.mean().item() == pytest.approx(truth(depth, -1.0)[2], abs=4 * z.std().item() / 20)
    torch.testing.assert_close(torch.stack([w.exp().sum() for w in out.log_weights.split(6)]), torch.ones(400).double())


# what holds for both


def test_without_steering_it_is_the_plain_sampler(mixture):
    n = 200
    gaussian = towards(mixture, 0.0, 0.5)
    gaussian.strength = torch.zeros(1)
    noise, cond = mixture.draw(n, 10.0, seeded()).float(), Depths(torch.full((n,), 300.0))
    for steered, start, levels in (
        (gaussian, noise, NOISE.levels(10)),
        (tilted(0.0), torch.zeros(n, 5), Thinning().levels(cond.depth, 10)),
    ):
        out = particles(steered, start, levels, cond, generator=seeded(1))
        torch.testing.assert_close(out.log_weights, torch.full((n,), -math.log(n), dtype=torch.float64))
        torch.testing.assert_close(out.ess, torch.full((11, 1), float(n), dtype=torch.float64))
        assert out.log_evidence.item() == pytest.approx(0, abs=1e-6)
        assert torch.equal(out.origin, torch.arange(n))
        plain = ancestral(steered.denoiser, start, levels, cond, process=steered.process, generator=seeded(1))
        assert torch.equal(out.cells, plain)


def test_conditions_follow_their_particle_and_groups_stay_apart():
    """Depths differ: each cell ends at the depth of the particle that it descends from, in its own group."""
    n = 300
    cond, groups = Depths(torch.arange(100.0, 100 + n)), torch.arange(n) % 3
    steered = tilted(-1.0)
    levels = Thinning().levels(cond.depth, 15)
    out = particles(steered, torch.zeros(n, 5), levels, cond, generator=seeded(), groups=groups, resample_below=1.0)
    assert steered.denoiser.calls == 15
    assert (out.n_ancestors < 100).all()
    assert torch.equal(groups[out.origin], groups)
    assert torch.equal(out.cells.sum(1), cond.depth[out.origin])


def test_a_gene_that_is_ruled_out_is_never_drawn():
    n = 50
    offset = torch.tensor([-math.inf, 0.0, 0.0, 0.0, 0.0])
    cond = Depths(torch.full((n,), 100.0))
    levels = Thinning().levels(cond.depth, 10)
    out = particles(tilted(2.0, offset=offset), torch.zeros(n, 5), levels, cond, generator=seeded())
    assert (out.cells[:, 0] == 0).all()
    assert out.log_weights.isfinite().all()


def test_systematic_resampling_is_unbiased_and_never_off_by_a_whole_particle():
    weights = torch.tensor([0.0, 0.05, 0.33, 0.12, 0.5], dtype=torch.float64)
    rng = seeded()
    drawn = torch.stack([torch.bincount(systematic(weights.log(), generator=rng), minlength=5) for _ in range(4_000)])
    assert (drawn.sum(1) == 5).all()
    assert ((drawn - 5 * weights).abs() < 1).all()
    torch.testing.assert_close(drawn.double().mean(0), 5 * weights, atol=4 * 0.5 / math.sqrt(4_000), rtol=0)


def test_a_whole_molecule_is_what_the_network_would_see_of_it():
    x = torch.tensor([[0.0, 1.0, 7.0], [0.0, 2.0, 998.0]], dtype=torch.float64, requires_grad=True)
    level = torch.tensor([8.0, 1_000.0])
    seen, _ = Thinning().precondition(x, level)
    (slope,) = torch.autograd.grad(seen.sum(), x)
    more, _ = Thinning().precondition(x + 1, level)
    torch.testing.assert_close(_one_molecule(x.detach(), level), ((more - seen) / slope).detach())


@pytest.mark.parametrize("options", [{"groups": torch.zeros(3, dtype=torch.long)}, {"resample_below": 1.5}])
def test_errors_name_the_remedy(mixture, options):
    with pytest.raises(InputError, match="one group per cell and a share"):
        particles(towards(mixture, 0.0, 0.5), torch.zeros(4, 2), NOISE.levels(3), generator=seeded(), **options)


def test_cells_chosen_by_weight_are_samples_given_the_measurement(mixture):
    """Each from 16 of its own: within 1.5 times the energy distance of exact samples; steered cells are not."""
    exact = posterior(mixture, 0.0, 0.5)[0]
    real, even, levels = exact.draw(2_000, 0.0, seeded(9)), torch.full((300,), 1 / 300), NOISE.levels(40)
    steered, noise = towards(mixture, 0.0, 0.5), mixture.draw(300, 10.0, seeded()).float()
    ideal = np.mean([energy(exact.draw(300, 0.0, seeded(100 + seed)), even, real) for seed in range(6)])
    chosen = Chosen(16)
    assert energy(chosen(steered, noise, levels, None, generator=seeded(1)), even, real) < 1.5 * ideal
    assert energy(ancestral(steered, noise, levels, process=NOISE, generator=seeded(1)), even, real) > 2 * ideal
    assert len(chosen.ess) == 300
    assert all(1 <= size <= 16 for size in chosen.ess)
