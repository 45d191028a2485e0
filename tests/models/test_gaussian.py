"""The Gaussian process against Bayes' rule and the definition of its preconditioning."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scidiff.errors import InputError
from scidiff.models.gaussian import GaussianNoise, cosine_betas, linear_betas

NOISE = GaussianNoise()
sigmas = st.floats(1e-3, 1e3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


@given(sigmas, st.floats(0, 1), st.floats(-5, 5), st.floats(-5, 5))
def test_step_is_the_conditional_of_the_joint_gaussian(sigma, fraction, x0, x):
    """Given x0, the states (x_next, x) are jointly Gaussian with covariance [[a, a], [a, b]]: condition on x."""
    level = torch.full((1,), sigma, dtype=torch.float64)
    a, b = (fraction * sigma) ** 2, sigma**2
    z = torch.randn(1, 1, generator=seeded(), dtype=torch.float64).item()
    expected = x0 + a / b * (x - x0) + math.sqrt(max(a - a * a / b, 0)) * z
    clean, noisy = torch.full((1, 1), x0, dtype=torch.float64), torch.full((1, 1), x, dtype=torch.float64)
    stepped = NOISE.step(noisy, level, next_level=fraction * level, prediction=clean, generator=seeded())
    assert stepped.item() == pytest.approx(expected, rel=1e-9, abs=3e-8 * sigma + 1e-9)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 20.0])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_preconditioning_gives_unit_variance_input_and_target(sigma, sigma_data):
    noise = GaussianNoise(sigma_data=sigma_data)
    n = 20_000
    x, level = sigma_data * normal(n, 1), torch.full((n,), sigma, dtype=torch.float64)
    x_noisy = noise.corrupt(x, level, generator=seeded())
    network_input, c_noise = noise.precondition(x_noisy, level)
    offset, slope = noise.head(torch.zeros_like(x), x_noisy, level), noise.head(torch.ones_like(x), x_noisy, level)
    target = (x - offset) / (slope - offset)  # what the network must return for head(...) = x
    assert network_input.var().item() == pytest.approx(1, abs=0.05)  # 5 standard errors
    assert target.var().item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(c_noise, level.log() / 4)
    # the weighted loss is the squared error of the network itself
    raw = normal(n, 1, seed=7)
    loss = noise.loss(noise.head(raw, x_noisy, level), x, x_noisy=x_noisy, level=level)
    torch.testing.assert_close(loss, ((raw - target) ** 2)[:, 0])


def test_head_is_the_ideal_denoiser_where_the_network_knows_nothing():
    """For x ~ N(0, sigma_data^2 I) the posterior mean is c_skip x_noisy: a silent network is already ideal."""
    level = torch.tensor([0.1, 1.0, 50.0], dtype=torch.float64)
    x_noisy = normal(3, 4)
    ideal = x_noisy / (1 + level[:, None] ** 2)
    torch.testing.assert_close(NOISE.head(torch.zeros_like(x_noisy), x_noisy, level), ideal)
    torch.testing.assert_close(NOISE.score(ideal, x_noisy, level), -x_noisy / (1 + level[:, None] ** 2))


@pytest.mark.parametrize(
    "change", [lambda d: d + 0.1, lambda d: 1.1 * d, lambda d: 0.9 * d, lambda d: d + 0.1 * d.sin()]
)
def test_ideal_denoiser_has_the_lowest_loss(change):
    x, level = normal(50_000, 2), NOISE.draw_level(50_000, generator=seeded(5)).double()
    x_noisy = NOISE.corrupt(x, level, generator=seeded())
    ideal = x_noisy / (1 + level[:, None] ** 2)
    excess = NOISE.loss(change(ideal), x, x_noisy=x_noisy, level=level) - NOISE.loss(
        ideal, x, x_noisy=x_noisy, level=level
    )
    assert excess.mean() > 4 * excess.std() / math.sqrt(len(excess))


def test_anchor_shifts_the_cells_and_nothing_else():
    x_noisy, raw, anchor, level = (
        normal(3, 4),
        normal(3, 4, seed=2),
        normal(3, 4, seed=3),
        torch.tensor([0.1, 1.0, 9.0]),
    )
    seen, _ = NOISE.precondition(x_noisy, level, anchor)
    torch.testing.assert_close(seen, NOISE.precondition(x_noisy - anchor, level)[0])
    anchored = NOISE.head(raw, x_noisy, level, anchor)
    torch.testing.assert_close(anchored, anchor + NOISE.head(raw, x_noisy - anchor, level))


def test_training_noise_has_the_level_that_it_reports():
    x = torch.zeros(2_000, 10)
    x_noisy, level = NOISE.noise(x, generator=seeded())
    assert (x_noisy / level[:, None]).std().item() == pytest.approx(1, abs=0.03)


def test_training_levels_are_log_normal():
    logs = NOISE.draw_level(100_000, generator=seeded()).log()
    assert logs.mean().item() == pytest.approx(NOISE.p_mean, abs=5 * NOISE.p_std / math.sqrt(100_000))
    assert logs.std().item() == pytest.approx(NOISE.p_std, rel=0.012)


@given(st.integers(1, 60), st.floats(0.002, 80))
def test_levels_fall_in_equal_steps_of_the_root_and_end_in_zero(n, start):
    levels = NOISE.levels(n, start=start)
    assert levels.shape == (n + 1,)
    assert levels[0].item() == pytest.approx(start, rel=1e-9)
    assert levels[-1] == 0
    if n > 1:
        assert levels[-2].item() == pytest.approx(NOISE.sigma_min, rel=1e-9)
        widths = (levels[:-1] ** (1 / NOISE.rho)).diff()
        torch.testing.assert_close(widths, widths.mean().expand_as(widths), rtol=1e-6, atol=1e-12)


def test_corrupt_adds_each_cells_own_noise_and_zeros_start_a_sampler():
    level = torch.tensor([0.0, 1.0, 80.0]).repeat_interleave(20_000)
    x = torch.full((60_000, 1), 3.0)
    spread = (NOISE.corrupt(x, level, generator=seeded()) - x).view(3, -1)
    assert spread[0].abs().max() == 0
    torch.testing.assert_close(spread[1:].std(dim=1), torch.tensor([1.0, 80.0]), rtol=0.03, atol=0)
    start = NOISE.corrupt(torch.zeros(4, 2), torch.full((4,), 80.0), generator=seeded())
    torch.testing.assert_close(start, 80 * torch.randn(4, 2, generator=seeded()))


def test_levels_in_double_do_not_change_the_type_of_cells():
    x, level = torch.zeros(3, 2), NOISE.levels(2)
    outputs = [
        NOISE.corrupt(x, level, generator=seeded()),
        *NOISE.precondition(x, level),
        NOISE.head(x, x, level),
        NOISE.loss(x, x, x_noisy=x, level=level),
        NOISE.step(x, level, next_level=level / 2, prediction=x, generator=seeded()),
        NOISE.score(x, x, level),
    ]
    assert {output.dtype for output in outputs} == {torch.float32}


@pytest.mark.parametrize(
    "settings",
    [{"sigma_min": 0}, {"sigma_max": 0.001}, {"sigma_data": -1}, {"p_std": 0}, {"rho": math.nan}, {"p_mean": math.inf}],
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        GaussianNoise(**settings)


@pytest.mark.parametrize(
    "make",
    [lambda: NOISE.levels(0), lambda: NOISE.levels(5, start=0.001), lambda: linear_betas(20), lambda: cosine_betas(0)],
)
def test_impossible_schedules_are_refused(make):
    with pytest.raises(InputError, match=r"n=|n_steps="):
        make()
