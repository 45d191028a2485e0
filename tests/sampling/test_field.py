"""A velocity on counts: nothing at strength 0, and at strength 1 what the velocity says, on average."""

from __future__ import annotations

import math

import pytest
import torch

import scidiff as sd
from scidiff.models.thinning import Thinning
from scidiff.sampling.field import Field, displacement, flow_step, log_tilt, replaced

S = torch.tensor([40.0, 30.0, 20.0, 10.0])
V = torch.tensor([-10.0, 0.0, 5.0, 5.0])


def of_cell(x, level, cond=None):
    """The denoiser that knows the composition S of every cell."""
    return (S / S.sum()).log().expand(len(x), -1)


def cells(n: int) -> torch.Tensor:
    return torch.distributions.Multinomial(100, S).expand([n]).sample()


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_strength_zero_is_the_prior(rng):
    """Cells with Dirichlet compositions, and their exact posterior: means and spread of counts stay as they are."""
    alpha, n = torch.tensor([4.0, 3.0, 2.0, 1.0]), 6_000

    def posterior(x, level, cond=None):
        return torch.log(alpha + x)

    x = torch.distributions.Multinomial(100, torch.distributions.Dirichlet(alpha).sample([n])).sample()
    tilt = torch.randn(n, 4)
    moved = x
    for _ in range(3):
        moved = flow_step(posterior, moved, tilt, dt=0.5, process=Thinning(), generator=rng, strength=0.0, n_steps=4)
    torch.testing.assert_close(moved.mean(dim=0), x.mean(dim=0), atol=0.4, rtol=0)
    torch.testing.assert_close(moved.std(dim=0), x.std(dim=0), atol=0, rtol=0.05)
    assert (displacement(posterior, x, tilt, dt=0.5, strength=0.0) == 0).all()


@pytest.mark.parametrize("dt", [0.1, 0.5, 2.0])
def test_cells_go_where_the_velocity_says(dt, rng):
    n = 4_000
    x = cells(n)
    tilt = log_tilt(S.expand(n, -1), V.expand(n, -1), dt=dt, smooth=0.0)
    moved = flow_step(of_cell, x, tilt, dt=dt, process=Thinning(), generator=rng)
    assert torch.equal(moved.sum(dim=1), x.sum(dim=1))
    assert (moved >= 0).all()
    torch.testing.assert_close((moved - x).mean(dim=0), V * dt, atol=0.4, rtol=0)


def test_a_gene_is_not_taken_below_zero():
    tilt = log_tilt(torch.tensor([[1.0, 1.0]]), torch.tensor([[-100.0, 1e6]]), dt=1.0)
    torch.testing.assert_close(tilt, math.log(10) * torch.tensor([[-1.0, 1.0]]))
    assert log_tilt(torch.zeros(1, 2), torch.zeros(1, 2), dt=1.0).eq(0).all()


def test_field_adds_to_logits():
    x = cells(3)
    tilt = torch.randn(3, 4)
    level = x.sum(dim=1)
    torch.testing.assert_close(Field(of_cell, tilt, strength=2.0)(x, level), of_cell(x, level) + 2 * tilt)


def test_displacement_follows_the_tilt():
    """A denoiser that believes the cell itself: what is won is seen."""

    def itself(x, level, cond=None):
        return torch.log(x + 1e-3)

    moved = displacement(itself, S[None], log_tilt(S[None], V[None], dt=1.0), dt=1.0)
    assert torch.equal(moved.sign()[0, [0, 2, 3]], V.sign()[[0, 2, 3]])


def test_bad_steps():
    with pytest.raises(sd.InputError, match="dt=0"):
        replaced(0)
    with pytest.raises(sd.InputError, match="one shape"):
        log_tilt(torch.ones(2, 3), torch.ones(2, 2), dt=1)
