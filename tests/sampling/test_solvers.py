"""What every solver promises: the true distribution, and the contract."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from scipy import stats

from scidiff.errors import InputError
from scidiff.models.gaussian import GaussianNoise, cosine_betas, ddpm_levels
from scidiff.models.thinning import Thinning
from scidiff.sampling.langevin import corrected
from scidiff.sampling.solvers import ancestral, ddim, ddpm, dpmpp_2m, euler_maruyama, heun, invert

NOISE = GaussianNoise(sigma_min=0.1, sigma_max=10)
ODE = {"ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m}
SDE = {
    "ancestral": partial(ancestral, process=NOISE),
    "ddpm": ddpm,
    "ddim eta=1": partial(ddim, eta=1.0),
    "ddim eta=0.5": partial(ddim, eta=0.5),
    "euler_maruyama": euler_maruyama,
}
ALL = ODE | SDE | {"corrected": corrected(ddim)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", [*ODE, "ddpm", "ddim eta=0.5", "euler_maruyama", "corrected"])
def test_sampled_cells_have_the_true_distribution(name, gaussian, mixture):
    """5,000 cells within Monte Carlo error; 300 steps leave a discretisation error below one standard error of that."""
    levels = GaussianNoise(sigma_min=0.02, sigma_max=10).levels(100 if name in ("heun", "dpmpp_2m") else 300)
    for truth in (gaussian, mixture):
        cells = ALL[name](truth, truth.draw(5_000, 10.0, seeded()), levels, generator=seeded(1))
        mean, covariance = truth.moments()
        variances = covariance.diagonal()
        assert ((cells.mean(0) - mean).abs() < 4 * (variances / len(cells)).sqrt()).all()
        error = torch.sqrt((torch.outer(variances, variances) + covariance**2) / len(cells))
        assert ((torch.cov(cells.T) - covariance).abs() < 4 * error).all()
        for gene in range(len(mean)):

            def cdf(value, gene=gene, truth=truth):
                scale = truth.covariances[:, gene, gene].sqrt().numpy()
                return stats.norm.cdf(value[:, None], truth.means[:, gene], scale) @ truth.weights.numpy()

            assert stats.kstest(cells[:, gene].numpy(), cdf).pvalue > 1e-3


def test_ddim_with_eta_one_is_ddpm(mixture):
    x = mixture.draw(100, 10.0, seeded())
    for levels in (NOISE.levels(12), ddpm_levels(cosine_betas(12))):
        one = ddim(mixture, x, levels, eta=1.0, generator=seeded(1))
        torch.testing.assert_close(one, ddpm(mixture, x, levels, generator=seeded(1)), rtol=1e-10, atol=1e-10)


def test_number_of_predictions(gaussian):
    x = gaussian.draw(2, 10.0, seeded())
    for name, expected in {"ddim": 7, "dpmpp_2m": 7, "heun": 13, "ddpm": 7, "euler_maruyama": 7}.items():
        gaussian.calls = 0
        ALL[name](gaussian, x, NOISE.levels(7), generator=seeded())
        assert gaussian.calls == expected


@pytest.mark.parametrize("name", ALL)
def test_the_last_step_returns_the_prediction_of_the_level_before(name, mixture):
    x = mixture.draw(5, 0.7, seeded())
    levels = torch.tensor([0.7, 0.0], dtype=torch.float64)
    expected = mixture(x, torch.full((5,), 0.7, dtype=torch.float64))
    torch.testing.assert_close(ALL[name](mixture, x, levels, generator=seeded()), expected)


@pytest.mark.parametrize("name", ALL)
def test_seed_type_device_and_input_are_respected(name, mixture):
    x = mixture.draw(6, 10.0, seeded()).float()
    before, levels = x.clone(), NOISE.levels(5)
    first, again, other = (ALL[name](mixture, x, levels, generator=seeded(seed)) for seed in (1, 1, 2))
    assert first.dtype == torch.float32
    assert torch.equal(x, before)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name in ODE)  # only the ODE solvers ignore the seed


@pytest.mark.parametrize("name", ALL)
def test_on_step_sees_every_state_and_gradients_are_off(name, mixture):
    def denoiser(x, level, cond):
        assert not torch.is_grad_enabled()
        assert level.shape == (4,)
        assert cond == "condition"
        return mixture(x, level)

    seen = []
    x = mixture.draw(4, 10.0, seeded())
    cells = ALL[name](denoiser, x, NOISE.levels(3), "condition", generator=seeded(), on_step=lambda *a: seen.append(a))
    assert [step for step, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[-1][1], cells)


@pytest.mark.parametrize("per_cell", [False, True])
def test_ancestral_serves_thinning_with_its_own_depth_for_each_cell(per_cell):
    levels = torch.tensor([[0.0, 0.0], [5.0, 3.0], [40.0, 7.0]]) if per_cell else torch.tensor([0.0, 5.0, 40.0])
    log_composition = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]).log()

    def denoiser(x, level, cond):
        assert torch.equal(x.sum(1), level)  # the level is the depth of the cell
        return log_composition

    cells = ancestral(denoiser, torch.zeros(2, 3), levels, process=Thinning(), generator=seeded())
    depths = [40, 7] if per_cell else [40, 40]
    assert cells.sum(1).tolist() == depths
    assert cells[0, 2] == 0
    assert cells[1].tolist() == [0, 0, depths[1]]


BAD_LEVELS = [[1.0], [1.0, 1.0], [0.0, 1.0], [1.0, -1.0], [math.inf, 1.0], [math.nan, 0.0], [[1.0, 1.0], [0.5, 0.5]]]


@pytest.mark.parametrize("name", [name for name in ALL if name != "ancestral"])
@pytest.mark.parametrize("levels", BAD_LEVELS, ids=str)
def test_bad_levels_are_refused(name, levels, gaussian):
    with pytest.raises(InputError, match=r"levels of shape .* strictly decreasing"):
        ALL[name](gaussian, torch.zeros(2, 3), torch.tensor(levels), generator=seeded())


def test_other_bad_arguments_are_refused(gaussian):
    x = torch.zeros(2, 3)
    with pytest.raises(InputError, match="strictly increasing"):
        invert(gaussian, x, NOISE.levels(3))
    with pytest.raises(InputError, match="2 cells"):
        ancestral(gaussian, x, torch.ones(4, 3), process=NOISE, generator=seeded())
    with pytest.raises(InputError, match=r"eta=1\.5"):
        ddim(gaussian, x, NOISE.levels(3), eta=1.5, generator=seeded())
    with pytest.raises(InputError, match="generator"):
        ddim(gaussian, x, NOISE.levels(3), eta=0.5)
