"""Gaussian noise on standardised expression: one number, sigma, says how noisy a cell is.

    x_noisy = x + sigma * z,   z ~ N(0, I),   x = log1p(CP10k), standardised per gene

The network predicts D(x_noisy, sigma) = E[x | x_noisy], and everything else follows from it: the score
``grad log p(x_noisy) = (D - x_noisy) / sigma^2`` (Tweedie's formula), the reverse SDE and the probability-flow ODE.

The variance-preserving chain of DDPM, ``q(x_k | x_{k-1}) = N(sqrt(1 - b_k) x_{k-1}, b_k I)``, is the same process in
other units. With ``alpha_bar = prod(1 - b)`` its state is ``x_vp = sqrt(alpha_bar) x_noisy`` at
``sigma^2 = (1 - alpha_bar) / alpha_bar``; the functions at the end of this file convert both ways.

Notation and preconditioning: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scidiff.errors import InputError


@dataclass(frozen=True)
class GaussianNoise:
    """The Gaussian noise process. All levels are sigmas, in units of the standardised expression.

    Parameters
    ----------
    sigma_min, sigma_max
        Smallest and largest level that a sampler visits (it then goes to 0 in one last step).
    sigma_data
        Standard deviation of the clean data: 1, because genes are standardised.
    p_mean, p_std
        Training levels are drawn as ``ln sigma ~ N(p_mean, p_std^2)``. Karras et al. use (-1.2, 1.2) for images;
        expression needs larger levels and a wider range. Genes are correlated, so the axes that tell cell types apart
        have standard deviations of several and are decided at sigma 1 to 20, single genes at 0.1 to 1.
    rho
        Curvature of the sampling schedule: larger puts more steps at small sigma.

    Raises
    ------
    InputError
        If a setting is out of its range.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 1.0
    p_mean: float = 1.0
    p_std: float = 1.6
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(
                f"sigma_min={self.sigma_min} and sigma_max={self.sigma_max}: need 0 < sigma_min < sigma_max < inf"
            )
        for name in ("sigma_data", "p_std", "rho"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)} must be a positive, finite number")
        if not math.isfinite(self.p_mean):
            raise InputError(f"p_mean={self.p_mean} must be a finite number")

    def draw_level(self, n_cells: int, *, generator: torch.Generator) -> Tensor:
        """Return log-normal training levels, shape (n_cells,) (Karras et al. 2022, table 1)."""
        z = torch.randn(n_cells, generator=generator, device=generator.device)
        return torch.exp(self.p_mean + self.p_std * z)

    def levels(self, n: int, *, start: float | None = None) -> Tensor:
        """Return sampling levels, shape (n + 1,), float64: from ``start`` down to ``sigma_min``, then 0.

        Equal steps in ``sigma^(1/rho)`` (Karras et al. 2022, eq. 5). ``start`` defaults to ``sigma_max``; a smaller
        one begins part of the way down.
        """
        start = self.sigma_max if start is None else start
        if n < 1 or not self.sigma_min <= start < math.inf:
            raise InputError(f"n={n}, start={start}: need n >= 1 and a finite start >= sigma_min={self.sigma_min}")
        roots = torch.linspace(start ** (1 / self.rho), self.sigma_min ** (1 / self.rho), n, dtype=torch.float64)
        return torch.cat([roots**self.rho, roots.new_zeros(1)])

    def corrupt(self, x: Tensor, level: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return ``x + level * z``, shape (n_cells, n_genes). Zeros in place of ``x`` give the start of a sampler."""
        return x + _column(level, x) * standard_normal(x, generator)

    def noise(self, x: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return noisy cells and their levels, for one training step."""
        level = self.draw_level(len(x), generator=generator)
        return self.corrupt(x, level, generator=generator), level

    def precondition(self, x_noisy: Tensor, level: Tensor, anchor: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Return what the network sees: its input, scaled to unit variance, and ``ln(sigma) / 4`` per cell.

        ``anchor`` is the mean that the closed form expects; the network works on what is left around it.
        """
        sigma = _column(level, x_noisy)
        return (x_noisy - anchor) / torch.sqrt(sigma**2 + self.sigma_data**2), sigma[:, 0].log() / 4

    def head(self, raw: Tensor, x_noisy: Tensor, level: Tensor, anchor: Tensor | float = 0.0) -> Tensor:
        """Return the prediction ``D = anchor + c_skip (x_noisy - anchor) + c_out raw`` (Karras et al. 2022, eq. 7).

        The coefficients make the network's regression target have unit variance at every level, so at small sigma the
        network corrects ``x_noisy`` and at large sigma it names the cell.
        """
        sigma = _column(level, x_noisy)
        total = sigma**2 + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()
        return anchor + c_skip * (x_noisy - anchor) + c_out * raw.to(x_noisy)

    def loss(self, prediction: Tensor, x: Tensor, *, x_noisy: Tensor, level: Tensor) -> Tensor:
        """Return the squared error of each cell over ``c_out^2``, averaged over genes, shape (n_cells,).

        That is the network's own squared error, near 1 at the start of training at every level. ``x_noisy`` belongs to
        the processes' common signature and is not needed here.
        """
        sigma = _column(level, x)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        return (weight * (prediction - x) ** 2).mean(dim=1)

    def step(
        self, x: Tensor, level: Tensor, *, next_level: Tensor, prediction: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Draw ``x`` at ``next_level <= level`` from the exact posterior q(x_next | x, x0 = prediction).

        ``N(x0 + (s'/s)^2 (x - x0), s'^2 (s^2 - s'^2) / s^2)`` for levels s > s': the DDPM posterior (Ho et al. 2020,
        eq. 6-7) in sigma units.
        """
        sigma, next_sigma = _column(level, x), _column(next_level, x)
        shrink = next_sigma / sigma
        std = shrink * torch.sqrt(sigma**2 - next_sigma**2)
        return prediction + shrink**2 * (x - prediction) + std * standard_normal(x, generator)

    def score(self, prediction: Tensor, x_noisy: Tensor, level: Tensor) -> Tensor:
        """Return ``grad log p(x_noisy)`` at ``level > 0``, shape (n_cells, n_genes) (Tweedie's formula; Efron 2011)."""
        return (prediction - x_noisy) / _column(level, x_noisy) ** 2


def sigma_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """Return the sigma at which this process has the signal-to-noise ratio of a VP chain at ``alpha_bar``."""
    return torch.sqrt((1 - alpha_bar) / alpha_bar)


def alpha_bar_from_sigma(sigma: Tensor) -> Tensor:
    """Return the VP chain's ``alpha_bar = prod(1 - beta)`` at ``sigma``."""
    return 1 / (1 + sigma**2)


def vp_to_sigma(x_vp: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return a VP (DDPM) state in this process's units; ``alpha_bar`` has shape (n_cells,)."""
    return x_vp / _column(alpha_bar, x_vp).sqrt()


def sigma_to_vp(x_noisy: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return a state of this process in VP (DDPM) units, the inverse of `vp_to_sigma`."""
    return x_noisy * _column(alpha_bar, x_noisy).sqrt()


def linear_betas(n_steps: int) -> Tensor:
    """Return the linear schedule, shape (n_steps,), float64 (Ho et al. 2020: 1e-4 to 0.02 over 1,000 steps).

    Other lengths scale the betas by ``1000 / n_steps``, so that the chain still ends in noise.
    """
    if n_steps <= 20:
        raise InputError(f"n_steps={n_steps}: the linear DDPM schedule needs more than 20 steps; use cosine_betas")
    return torch.linspace(1e-4, 0.02, n_steps, dtype=torch.float64) * (1000 / n_steps)


def cosine_betas(n_steps: int) -> Tensor:
    """Return the cosine schedule, shape (n_steps,), float64 (Nichol & Dhariwal 2021, eq. 17; betas <= 0.999)."""
    if n_steps < 1:
        raise InputError(f"n_steps={n_steps}: a schedule needs at least one step")
    progress = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((progress + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def ddpm_levels(betas: Tensor) -> Tensor:
    """Return the sigmas that a DDPM chain with these betas visits, noisiest first, then 0, shape (n_steps + 1,)."""
    sigmas = sigma_from_alpha_bar(torch.cumprod(1 - betas, dim=0))
    return torch.cat([sigmas.flip(0), sigmas.new_zeros(1)])


def _column(level: Tensor, x: Tensor) -> Tensor:
    """Return per-cell values, shape (n_cells,), as a column of the type and on the device of ``x``."""
    return level.to(x)[:, None]


def standard_normal(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return N(0, 1) numbers of the shape and type and on the device of ``x``."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
