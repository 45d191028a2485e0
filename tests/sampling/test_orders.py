"""The order of convergence of every solver, against exact solutions."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from scidiff.models.gaussian import GaussianNoise
from scidiff.sampling.solvers import ancestral, ddim, ddpm, dpmpp_2m, euler_maruyama, heun, invert

NOISE = GaussianNoise(sigma_min=0.1, sigma_max=10)
ODE = {"ddim": (ddim, 1), "heun": (heun, 2), "dpmpp_2m": (dpmpp_2m, 2)}
SDE = {
    "ancestral": partial(ancestral, process=NOISE),
    "ddpm": ddpm,
    "ddim eta=1": partial(ddim, eta=1.0),
    "ddim eta=0.5": partial(ddim, eta=0.5),
    "euler_maruyama": euler_maruyama,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slope(steps: list[int], errors: list[float]) -> float:
    """Return the order of convergence: minus the slope of log error on log steps."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def test_ideal_denoiser_is_tweedie_of_the_log_density(mixture, rng):
    """The closed-form posterior mean against automatic differentiation of the marginal density."""
    level = torch.tensor([0.05, 0.3, 1.0, 3.0, 20.0], dtype=torch.float64).repeat(20)
    x = (mixture.draw(100, 0.0, rng) + level[:, None] * torch.randn(100, 2, generator=rng)).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, level).sum(), x)
    torch.testing.assert_close(NOISE.score(mixture(x, level), x, level), gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ODE)
def test_order_of_convergence_against_the_exact_flow(name, gaussian, rng):
    solver, order = ODE[name]
    x = gaussian.draw(50, NOISE.sigma_max, rng)
    exact = gaussian.flow(x, NOISE.sigma_max, NOISE.sigma_min)
    steps = [64, 128, 256]
    errors = [(solver(gaussian, x, NOISE.levels(n + 1)[:-1]) - exact).abs().max().item() for n in steps]
    assert slope(steps, errors) == pytest.approx(order, abs=0.15)
    assert errors[-1] < {1: 0.1, 2: 1e-3}[order]


@pytest.mark.parametrize("name", ODE)
def test_order_of_convergence_on_a_mixture_against_scipy(name, mixture, rng):
    """A nonlinear ODE, its solution by an independent adaptive Runge-Kutta method of order 8."""
    solver, order = ODE[name]
    x = mixture.draw(4, NOISE.sigma_max, rng)

    def right_hand_side(sigma: float, flat: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(flat).view(4, 2)
        return ((state - mixture(state, torch.full((4,), sigma, dtype=torch.float64))) / sigma).numpy().ravel()

    span = (NOISE.sigma_max, NOISE.sigma_min)
    solution = solve_ivp(right_hand_side, span, x.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
    exact = torch.from_numpy(solution.y[:, -1]).view(4, 2)
    steps = [128, 256, 512]
    errors = [(solver(mixture, x, NOISE.levels(n + 1)[:-1]) - exact).norm().item() for n in steps]
    assert slope(steps, errors) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", SDE)
def test_stochastic_solvers_are_of_weak_order_one(name, monkeypatch):
    """The exact variance that each solver gives to Gaussian data, without Monte Carlo error.

    For x0 ~ N(0, v) the result is linear in the start and in every z. Cell k gets 1 in place of the k-th of them and 0
    for the others, so its result is that one's coefficient, and the variance is the sum of their squares.
    """
    v = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    errors, steps = [], [64, 128, 256]
    for n in steps:
        unit_vectors = iter(torch.eye(n + 1, dtype=torch.float64)[:, :, None].expand(-1, -1, 3))
        for module in ("models.gaussian", "sampling.solvers"):
            monkeypatch.setattr(f"scidiff.{module}.standard_normal", lambda *_, unit=unit_vectors: next(unit))
        start = torch.sqrt(v + NOISE.sigma_max**2) * next(unit_vectors)
        coefficients = SDE[name](
            lambda x, level, _: v / (v + level[:, None] ** 2) * x, start, NOISE.levels(n + 1)[:-1], generator=seeded()
        )
        errors.append(((coefficients**2).sum(0) - v - NOISE.sigma_min**2).norm().item())
    assert slope(steps, errors) == pytest.approx(1, abs=0.15)


def test_invert_then_solve_is_the_identity(mixture):
    """Order 3, one better than either way: the leading errors of a method of even order and of its reverse cancel."""
    cells, noise = mixture.draw(200, 0.0, seeded()), GaussianNoise()
    errors = []
    for n in (64, 128, 256):
        latent = invert(mixture, cells, noise.levels(n).flip(0))
        errors.append((heun(mixture, latent, noise.levels(n)) - cells).norm(dim=1).mean().item())
    assert errors[-1] < 1e-5
    assert slope([64, 128, 256], errors) == pytest.approx(3, abs=0.3)
    assert latent.std().item() == pytest.approx(80, rel=0.1)  # and the latent is noise


def test_inversion_of_a_gaussian_is_its_exact_flow(gaussian):
    cells = gaussian.draw(100, 0.0, seeded())
    noise, steps, errors = GaussianNoise(sigma_min=0.005, sigma_max=10), [64, 128, 256], []
    for n in steps:
        latent = invert(gaussian, cells, noise.levels(n).flip(0))
        errors.append((latent - gaussian.flow(cells, 0.0, noise.sigma_max)).norm(dim=1).mean().item())
    assert slope(steps, errors) == pytest.approx(2, abs=0.15)
    assert errors[-1] < 1e-2
