"""Classifier-free guidance: identities, and closed forms for Gaussian data and for compositions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from scidiff.errors import InputError
from scidiff.models.gaussian import GaussianNoise
from scidiff.sampling.guidance import ClassifierFree, Gain
from scidiff.sampling.solvers import heun

GAUSSIAN = GaussianNoise(sigma_min=0.01, sigma_max=50)
# E[x | nothing], and what each attribute adds to it
BASE = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
SHIFTS = {
    "perturbation": torch.tensor([2.0, 0.0, 0.5], dtype=torch.float64),
    "cell_type": torch.tensor([0.0, -3.0, 0.5], dtype=torch.float64),
    "batch": torch.tensor([0.0, 0.3, 0.0], dtype=torch.float64),
}


@dataclass(frozen=True)
class Conditions:
    """A stand-in for encoded conditions: the attributes that are not null."""

    known: frozenset[str] = frozenset(SHIFTS)

    def drop(self, *attributes: str) -> Conditions:
        return replace(self, known=self.known - set(attributes))

    def keep(self, *attributes: str) -> Conditions:
        return replace(self, known=self.known & set(attributes))


def mean(cond: Conditions) -> Tensor:
    return BASE + sum((SHIFTS[attribute] for attribute in cond.known), torch.zeros(3))


def gaussian_denoiser(x: Tensor, level: Tensor, cond: Conditions) -> Tensor:
    """Ideal for x0 ~ N(mean(cond), I)."""
    return mean(cond) + (x - mean(cond)) / (1 + level[:, None] ** 2)


def logit_denoiser(x: Tensor, level: Tensor, cond: Conditions) -> Tensor:
    return (mean(cond) + 0.1 * x).log_softmax(dim=1)


CASES = [
    pytest.param(gaussian_denoiser, id="gaussian"),
    pytest.param(logit_denoiser, id="thinning"),
]
COND = Conditions()
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LEVEL = torch.full((6,), 0.8, dtype=torch.float64)


@pytest.mark.parametrize("denoiser", CASES)
@pytest.mark.parametrize("drop", [None, ["perturbation"]])
def test_weight_one_is_conditional_and_zero_unconditional(denoiser, drop):
    null = COND.keep() if drop is None else COND.drop(*drop)
    for weight, cond in ((1.0, COND), (0.0, null)):
        guided = ClassifierFree(denoiser, weight, drop=drop)
        torch.testing.assert_close(guided(X, LEVEL, COND), denoiser(X, LEVEL, cond), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("denoiser", CASES)
@pytest.mark.parametrize("weight", [0.5, 3.0, -1.0])
def test_guidance_is_linear(denoiser, weight):
    null, full = denoiser(X, LEVEL, COND.keep()), denoiser(X, LEVEL, COND)
    guided = ClassifierFree(denoiser, weight)(X, LEVEL, COND)
    torch.testing.assert_close(guided, (1 - weight) * null + weight * full)


@pytest.mark.parametrize("weight", [4.0, {"perturbation": 3.0, "cell_type": -1.0}])
def test_guided_composition_is_the_normalised_product_of_powers(weight):
    """rho_0 * prod (rho_a / rho_0)^w_a, and it sums to one."""
    composition = ClassifierFree(logit_denoiser, weight)(X, LEVEL, COND).softmax(dim=1)
    if isinstance(weight, dict):
        null = logit_denoiser(X, LEVEL, COND.keep("batch")).exp()
        product = null
        for attribute, w in weight.items():
            product = product * (logit_denoiser(X, LEVEL, COND.keep("batch", attribute)).exp() / null) ** w
    else:
        null = logit_denoiser(X, LEVEL, COND.keep()).exp()
        product = null * (logit_denoiser(X, LEVEL, COND).exp() / null) ** weight
    torch.testing.assert_close(composition, product / product.sum(1, keepdim=True))
    torch.testing.assert_close(composition.sum(1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("denoiser", CASES)
def test_one_attribute_in_a_mapping_is_the_same_as_dropping_it(denoiser):
    mapping = ClassifierFree(denoiser, {"cell_type": 2.5})
    dropped = ClassifierFree(denoiser, 2.5, drop=["cell_type"])
    torch.testing.assert_close(mapping(X, LEVEL, COND), dropped(X, LEVEL, COND))


def test_weights_per_attribute_add_up_from_the_null_prediction():
    """All attributes named: p_0 + sum_a w_a (p_a - p_0), p_a conditioned on a alone (Liu et al. 2022, eq. 11)."""
    weights = {"perturbation": 2.0, "cell_type": 0.7, "batch": 0.0}
    null = gaussian_denoiser(X, LEVEL, COND.keep())
    expected = null + sum(w * (gaussian_denoiser(X, LEVEL, COND.keep(a)) - null) for a, w in weights.items())
    guided = ClassifierFree(gaussian_denoiser, weights)
    torch.testing.assert_close(guided(X, LEVEL, COND), expected)


def test_guided_prediction_is_the_ideal_denoiser_of_the_product_of_gaussians():
    """N(m0, v0 + s^2)^(1-w) N(m1, v1 + s^2)^w is Gaussian: precisions and precision-weighted means add."""
    (m0, v0), (m1, v1), w = (0.5, 2.0), (3.0, 0.4), 1.6
    variance = LEVEL[:, None] ** 2

    def denoiser(x: Tensor, level: Tensor, cond: Conditions) -> Tensor:
        m, v = (m1, v1) if cond.known else (m0, v0)
        return m + v / (v + variance) * (x - m)

    p0, p1 = (1 - w) / (v0 + variance), w / (v1 + variance)
    product_mean = (p0 * m0 + p1 * m1) / (p0 + p1)
    expected = X + variance * (p0 + p1) * (product_mean - X)  # Tweedie: x + s^2 grad log p
    torch.testing.assert_close(ClassifierFree(denoiser, w)(X, LEVEL, COND), expected)


@pytest.mark.parametrize("weight", [1.0, 2.5, {"perturbation": 2.0, "cell_type": 0.5, "batch": 0.0}])
def test_sampled_cells_have_the_guided_mean(weight):
    """Gaussians of equal covariance: guidance moves the mean to m_0 + sum w (m_c - m_0) and keeps the covariance."""
    shift = sum(weight[a] * s for a, s in SHIFTS.items()) if isinstance(weight, dict) else weight * sum(SHIFTS.values())
    rng = torch.Generator().manual_seed(1)
    guided = ClassifierFree(gaussian_denoiser, weight)
    x = BASE + shift + (1 + 50**2) ** 0.5 * torch.randn(4_000, 3, generator=rng, dtype=torch.float64)
    cells = heun(guided, x, GAUSSIAN.levels(60), COND)
    torch.testing.assert_close(cells.mean(0), BASE + shift, rtol=0, atol=4.5 / 4_000**0.5)
    torch.testing.assert_close(
        torch.cov(cells.T), torch.eye(3, dtype=torch.float64), rtol=0, atol=4.5 * (2 / 4_000) ** 0.5
    )


def test_a_weight_of_one_costs_one_prediction():
    seen = []
    guided = ClassifierFree(lambda x, level, cond: seen.append(cond) or x, 1.0)
    guided(X, LEVEL, COND)
    assert seen == [COND]


def test_without_conditions_there_is_nothing_to_guide():
    guided = ClassifierFree(lambda x, level, cond: x if cond is None else 0 * x, 7.0)
    assert torch.equal(guided(X, LEVEL, None), X)


@pytest.mark.parametrize(
    ("weight", "drop"), [(float("nan"), None), ({"dose": float("inf")}, None), ({"dose": 1.0}, ["dose"])]
)
def test_bad_weights_are_refused(weight, drop):
    with pytest.raises(InputError, match="guidance"):
        ClassifierFree(gaussian_denoiser, weight, drop=drop)


def test_gain_multiplies_what_the_cell_says():
    """p(empty) + gain (p(x) - p(empty)); gain 1 is the denoiser itself."""
    empty = logit_denoiser(torch.zeros_like(X), torch.zeros_like(LEVEL), COND)
    full = logit_denoiser(X, LEVEL, COND)
    torch.testing.assert_close(Gain(logit_denoiser, 1.0)(X, LEVEL, COND), full)
    torch.testing.assert_close(Gain(logit_denoiser, 1.3)(X, LEVEL, COND), empty + 1.3 * (full - empty))


def test_gain_asks_for_the_empty_cell_once():
    asked = []

    def counting(x, level, cond):
        asked.append(float(level.max()))
        return logit_denoiser(x, level, cond)

    amplified = Gain(counting, 1.5)
    for level in (0.0, 0.5, 0.8):
        amplified(X * level, LEVEL.clone().fill_(level), COND)
    assert asked == [0.0, 0.5, 0.8]
