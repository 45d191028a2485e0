"""Denoising where the posterior is known: two compositions, and a cell that shows some molecules of one of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scidiff.models.gaussian import GaussianNoise
from scidiff.models.thinning import Thinning
from scidiff.sampling.denoise import posterior_draw, posterior_mean

RHO = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]]).clamp_min(1e-30)
RHO = RHO / RHO.sum(1, keepdim=True)


def chance_of_first(x: torch.Tensor) -> torch.Tensor:
    """P(first composition | molecules x), equal prior (Bayes)."""
    return torch.softmax(x.double() @ RHO.double().log().T, dim=1)[:, 0]


def ideal(x: torch.Tensor, level: torch.Tensor, cond: object) -> torch.Tensor:
    p = chance_of_first(x)[:, None]
    return (p * RHO[0].double() + (1 - p) * RHO[1].double()).log().float()


def test_the_posterior_mean_is_that_of_bayes():
    x = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [0, 2, 1, 0], [3, 1, 0, 0], [0, 0, 0, 1]])
    clean = posterior_mean(ideal, x, x.sum(1), None, process=Thinning())
    torch.testing.assert_close(clean.sum(1), torch.ones(5))
    p = chance_of_first(x)[:, None].float()
    torch.testing.assert_close(clean, p * RHO[0] + (1 - p) * RHO[1])
    assert clean[4, 0] == pytest.approx(0.1, abs=1e-6)  # the last gene exists in one composition only


def test_a_standard_normal_cell_is_shrunk_by_its_noise():
    """E[x0 | x] = x / (1 + sigma^2) for x0 ~ N(0, 1)."""
    x, sigma = torch.randn(6, 3), torch.linspace(0.1, 3, 6)
    clean = posterior_mean(
        lambda x, level, cond: x / (1 + level[:, None] ** 2), x, sigma, None, process=GaussianNoise()
    )
    torch.testing.assert_close(clean, x / (1 + sigma[:, None] ** 2))


def draw(x: torch.Tensor, depth: float, *, n_steps: int, seed: int = 0) -> torch.Tensor:
    return posterior_draw(
        ideal,
        x,
        torch.full((len(x),), depth),
        None,
        process=Thinning(),
        n_steps=n_steps,
        gain=1.0,
        generator=torch.Generator().manual_seed(seed),
    )


def test_draws_keep_every_molecule_and_reach_the_depth():
    x = torch.poisson(torch.full((50, 4), 2.0), generator=torch.Generator().manual_seed(1))
    drawn = draw(x, 20.0, n_steps=5)
    assert (drawn >= x).all()
    assert torch.equal(drawn.sum(1), torch.clamp(x.sum(1), min=20))
    assert torch.equal(drawn, drawn.round())


def test_draws_are_of_the_posterior_not_of_its_mean():
    """A cell is one of two compositions: deep draws fall to one or the other, with the chances of Bayes."""
    x = torch.tensor([[0.0, 1, 0, 0]]).repeat(4000, 1)
    drawn = draw(x, 60.0, n_steps=59)  # one molecule a step: exact
    first = chance_of_first(drawn) > 0.5
    expected = float(chance_of_first(x)[0])
    assert float(first.float().mean()) == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 4000))
    assert float(drawn[~first, 0].mean()) == pytest.approx(5.9, abs=0.15)  # .1 of the 59 added
    assert float(drawn[first, 0].mean()) == pytest.approx(0.6 * 59, abs=0.3)
