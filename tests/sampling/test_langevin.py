"""The Langevin corrector against the stationary distribution it must keep and reach."""

from __future__ import annotations

import pytest
import torch

from scidiff.models.gaussian import GaussianNoise
from scidiff.sampling.langevin import corrected, langevin
from scidiff.sampling.solvers import ddim, euler_maruyama, heun

NOISE = GaussianNoise(sigma_min=0.05, sigma_max=10)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_stationary_variance_is_the_predicted_one():
    """Isotropic Gaussian of variance v = 1 + sigma^2: the iteration settles at v (1 + snr^2), here +25 %."""
    sigma, snr = 0.5, 0.5
    v = 1 + sigma**2
    x = v**0.5 * torch.randn(4_000, 8, generator=seeded(), dtype=torch.float64)
    x = langevin(lambda x, level, _: x / v, x, sigma, generator=seeded(1), snr=snr, n_steps=30)
    assert x.var().item() == pytest.approx(v * (1 + snr**2), rel=0.035)  # 4.5 standard errors


def test_true_distribution_is_left_as_it_is(mixture, rng):
    """Moments of 5,000 noisy cells move less than 4 standard errors in 200 steps of which each is small."""
    sigma = 0.4
    x = mixture.draw(5_000, sigma, rng)
    moved = langevin(mixture, x, sigma, generator=rng, snr=0.05, n_steps=200)
    mean, covariance = mixture.moments()
    covariance = covariance + sigma**2 * torch.eye(2)
    variances = covariance.diagonal()
    assert (moved - x).norm(dim=1).mean() > 0.5  # the cells themselves have moved far
    assert ((moved.mean(0) - mean).abs() < 4 * (variances / 5_000).sqrt()).all()
    error = torch.sqrt((torch.outer(variances, variances) + covariance**2) / 5_000)
    assert ((torch.cov(moved.T) - covariance).abs() < 4 * error).all()


def test_a_wrong_distribution_is_drawn_to_the_true_one(gaussian, rng):
    sigma = 1.0
    x = langevin(gaussian, torch.zeros(4_000, 3, dtype=torch.float64), sigma, generator=rng, n_steps=300)
    mean, covariance = gaussian.moments()
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(torch.cov(x.T), covariance + sigma**2 * torch.eye(3), rtol=0.1, atol=0.1)


def test_corrections_repair_a_coarse_solver(gaussian):
    """Euler-Maruyama in 12 steps gets the covariance wrong; eight corrections a step take away most of the error."""
    x, truth = gaussian.draw(5_000, 10.0, seeded()), gaussian.moments()[1]
    levels, errors = NOISE.levels(12), []
    for solver in (euler_maruyama, corrected(euler_maruyama, n_corrections=8)):
        cells = solver(gaussian, x, levels, generator=seeded(1))
        errors.append((torch.cov(cells.T) - truth).norm().item())
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize("solver", [ddim, heun, euler_maruyama])
def test_no_corrections_change_nothing(solver, mixture):
    x, levels = mixture.draw(5, 10.0, seeded()), NOISE.levels(6)
    plain, wrapped = (s(mixture, x, levels, generator=seeded(1)) for s in (solver, corrected(solver, n_corrections=0)))
    torch.testing.assert_close(wrapped, plain, rtol=1e-12, atol=1e-12)
