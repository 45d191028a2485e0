"""Data whose ideal denoiser is known: mixtures of Gaussians, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor


class Mixture:
    """Sum over k of weights[k] N(means[k], covariances[k]); itself the ideal denoiser E[x0 | x, sigma] of its cells."""

    def __init__(self, weights, means, covariances) -> None:
        self.weights, self.means, self.covariances = (
            torch.as_tensor(part, dtype=torch.float64) for part in (weights, means, covariances)
        )
        self.variances, self.axes = torch.linalg.eigh(self.covariances)
        self.calls = 0

    def _components(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return log(weight_k p_k(x)), shape (n_cells, k), and E[x0 | x, k], shape (n_cells, k, n_genes)."""
        log_joint, posterior_means = [], []
        for weight, mean, variances, axes in zip(self.weights, self.means, self.variances, self.axes, strict=True):
            along, total = (x - mean) @ axes, variances + level[:, None] ** 2
            log_density = -0.5 * (along**2 / total + torch.log(2 * math.pi * total)).sum(1)
            log_joint.append(weight.log() + log_density)
            posterior_means.append(mean + variances / total * along @ axes.T)
        return torch.stack(log_joint, 1), torch.stack(posterior_means, 1)

    def log_density(self, x: Tensor, level: Tensor) -> Tensor:
        return self._components(x, level)[0].logsumexp(1)

    def __call__(self, x: Tensor, level: Tensor, cond: object = None) -> Tensor:
        self.calls += 1
        log_joint, posterior_means = self._components(x.double(), level.double())
        return (log_joint.softmax(1)[..., None] * posterior_means).sum(1).to(x)

    def draw(self, n: int, sigma: float, generator: torch.Generator) -> Tensor:
        """Return noisy cells at ``sigma``, shape (n, n_genes)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        cells = self.means[k] + torch.einsum("nga,na->ng", self.axes[k], self.variances[k].sqrt() * z)
        return cells + sigma * torch.randn(cells.shape, generator=generator, dtype=torch.float64)

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = self.weights @ self.means
        centred = self.means - mean
        within = torch.einsum("k,kgh->gh", self.weights, self.covariances)
        return mean, within + torch.einsum("k,kg,kh->gh", self.weights, centred, centred)

    def flow(self, x: Tensor, sigma: float, next_sigma: float) -> Tensor:
        """Return the exact solution of the probability-flow ODE from ``sigma`` to ``next_sigma``; one component only.

        Along an axis of variance v it keeps (x - mean) / sqrt(v + sigma^2).
        """
        (variances,), (axes,), (mean,) = self.variances, self.axes, self.means
        scale = torch.sqrt((variances + next_sigma**2) / (variances + sigma**2))
        return mean + (x - mean) @ axes * scale @ axes.T


@pytest.fixture
def gaussian() -> Mixture:
    return Mixture([1.0], [[1.0, -2.0, 0.5]], [[[1.0, 0.6, 0.0], [0.6, 0.8, -0.2], [0.0, -0.2, 0.3]]])


@pytest.fixture
def mixture() -> Mixture:
    return Mixture([0.3, 0.7], [[-2.0, 1.0], [1.5, 0.0]], [[[0.3, 0.1], [0.1, 0.2]], [[0.5, -0.3], [-0.3, 0.6]]])


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
