"""Sigma units against the DDPM chain's own variance-preserving (VP) formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scidiff.models.gaussian import (
    GaussianNoise,
    alpha_bar_from_sigma,
    cosine_betas,
    ddpm_levels,
    linear_betas,
    sigma_from_alpha_bar,
    sigma_to_vp,
    vp_to_sigma,
)

NOISE = GaussianNoise()
BETAS = {"linear": linear_betas, "cosine": cosine_betas}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", BETAS)
@pytest.mark.parametrize("k", [1, 2, 40, 99])
def test_step_is_the_textbook_ddpm_posterior(schedule, k):
    """Ho et al. 2020, eq. 7, in their own VP units, with the same standard normal numbers."""
    betas = BETAS[schedule](100)
    alpha_bar = torch.cumprod(1 - betas, 0)
    beta, now, before = betas[k], alpha_bar[k], alpha_bar[k - 1]
    x0, x_vp = normal(5, 3, seed=1), normal(5, 3, seed=2)
    mean = before.sqrt() * beta / (1 - now) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - now) * x_vp
    beta_tilde = (1 - before) / (1 - now) * beta
    expected = mean + beta_tilde.sqrt() * torch.randn(5, 3, generator=seeded(), dtype=torch.float64)

    levels = ddpm_levels(betas).flip(0)[1:]
    stepped = NOISE.step(
        vp_to_sigma(x_vp, now.expand(5)),
        levels[k].expand(5),
        next_level=levels[k - 1].expand(5),
        prediction=x0,
        generator=seeded(),
    )
    torch.testing.assert_close(sigma_to_vp(stepped, before.expand(5)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", BETAS)
def test_ddpm_levels_are_the_marginals_of_the_chain(schedule):
    """Run q(x_k | x_{k-1}) symbolically: scale *= sqrt(1 - b), variance = (1 - b) variance + b."""
    betas = BETAS[schedule](50)
    levels = ddpm_levels(betas)
    assert levels[-1] == 0
    scale, variance = 1.0, 0.0
    for beta, level in zip(betas.tolist(), levels[:-1].flip(0).tolist(), strict=True):
        scale, variance = scale * math.sqrt(1 - beta), (1 - beta) * variance + beta
        assert level == pytest.approx(math.sqrt(variance) / scale, rel=1e-10)


def test_schedules_are_those_of_the_papers():
    linear, cosine = linear_betas(1000), cosine_betas(1000)
    assert (linear[0].item(), linear[-1].item()) == pytest.approx((1e-4, 0.02), rel=1e-12)
    assert torch.cumprod(1 - linear, 0)[-1].item() == pytest.approx(
        4.04e-5, rel=1e-2
    )  # Ho et al. 2020: KL 1e-5 to noise
    middle = math.cos(0.508 / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert torch.cumprod(1 - cosine, 0)[499].item() == pytest.approx(middle, rel=1e-9)
    assert cosine[-1] == 0.999
    assert sigma_from_alpha_bar(torch.cumprod(1 - linear_betas(30), 0))[-1] > 80  # short chains end in noise, too


@given(st.floats(1e-3, 1e3))
def test_vp_and_sigma_convert_exactly_both_ways(sigma):
    level = torch.tensor([sigma], dtype=torch.float64)
    alpha_bar = alpha_bar_from_sigma(level)
    # 1 - alpha_bar loses digits at small sigma: eps / sigma^2 is all that float64 can hold
    assert sigma_from_alpha_bar(alpha_bar).item() == pytest.approx(sigma, rel=1e-14 + 3e-16 / sigma**2)
    x = normal(1, 4)
    torch.testing.assert_close(vp_to_sigma(sigma_to_vp(x, alpha_bar), alpha_bar), x, rtol=1e-14, atol=0)
    # sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) z is sqrt(alpha_bar) (x0 + sigma z)
    z = normal(1, 4, seed=3)
    expected = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * z
    torch.testing.assert_close(sigma_to_vp(x + sigma * z, alpha_bar), expected, rtol=1e-9, atol=1e-9)
