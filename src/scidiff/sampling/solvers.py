"""Samplers: each is one visible loop that turns noise into cells by asking a denoiser, level by level.

    solver(denoiser, x, levels, cond=None, *, generator, on_step=None) -> x,   prediction = denoiser(x, level, cond)

`ancestral` serves every noise process through ``process.step``. The others are for Gaussian noise, where the prediction
is D = E[x0 | x] and two equations share the marginals of the data (Song et al. 2021; Karras et al. 2022, eq. 1 and 6):

    probability-flow ODE   dx / dsigma = (x - D) / sigma
    reverse SDE            dx = (D - x) / sigma^2 |d sigma^2| + sqrt(|d sigma^2|) z

Their levels are sigmas, shape (n_steps + 1,), strictly decreasing, usually ending in 0 (`GaussianNoise.levels`,
`ddpm_levels`); ``x`` is noise at the first of them. The step into 0 returns D itself. "Order k" means that the error
falls as n_steps^-k. ``on_step(step, x)``, step = 1, 2, ..., watches every step. Gradients are off; a wrapper that needs
them (steering) switches them on for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from scidiff.errors import InputError
from scidiff.models.gaussian import GaussianNoise, standard_normal

Denoiser = Callable[[Tensor, Tensor, Any], Tensor]
OnStep = Callable[[int, Tensor], None] | None
Rng = Generator | None


@torch.no_grad()
def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    cond: Any = None,
    *,
    process: Any,
    generator: Generator,
    on_step: OnStep = None,
) -> Tensor:
    """Return samples of any noise process: ``x <- process.step(x, prediction)`` down the levels.

    ``levels`` has shape (n_steps + 1,), the same for all cells, or (n_steps + 1, n_cells).
    """
    if levels.ndim not in (1, 2) or len(levels) < 2 or (levels.ndim == 2 and levels.shape[1] != len(x)):
        raise InputError(
            f"levels of shape {tuple(levels.shape)} for {len(x)} cells: need (n_steps + 1,) or (n_steps + 1, n_cells)"
        )
    levels = levels.to(x).reshape(len(levels), -1).expand(-1, len(x))
    for step, (level, next_level) in enumerate(pairwise(levels), start=1):
        prediction = denoiser(x, level, cond)
        x = process.step(x, level, next_level=next_level, prediction=prediction, generator=generator)
        report(on_step, step, x)
    return x


def ddpm(
    denoiser: Denoiser, x: Tensor, levels: Tensor, cond: Any = None, *, generator: Generator, on_step: OnStep = None
) -> Tensor:
    """Return samples by DDPM: `ancestral` with the exact Gaussian posterior (Ho et al. 2020, alg. 2). Weak order 1.

    With ``ddpm_levels(linear_betas(1000))`` it is the original chain, in sigma units.
    """
    sigma_list(levels)
    return ancestral(denoiser, x, levels, cond, process=GaussianNoise(), generator=generator, on_step=on_step)


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    cond: Any = None,
    *,
    eta: float = 0.0,
    generator: Rng = None,
    on_step: OnStep = None,
) -> Tensor:
    """Return samples by DDIM (Song, Meng & Ermon 2021, eq. 12). Order 1.

    ``eta=0`` is deterministic: Euler's method on the probability-flow ODE. ``eta=1`` is `ddpm`; values between share
    out the noise. ``generator`` is needed for ``eta > 0``.
    """
    if not 0 <= eta <= 1 or (eta > 0 and generator is None):
        raise InputError(f"eta={eta}: need 0 <= eta <= 1, and a generator where eta > 0")
    for step, (sigma, next_sigma) in enumerate(pairwise(sigma_list(levels)), start=1):
        prediction = predict_at(denoiser, x, sigma, cond)
        std = eta * next_sigma / sigma * math.sqrt(sigma**2 - next_sigma**2)
        x = prediction + math.sqrt(next_sigma**2 - std**2) / sigma * (x - prediction)
        if std > 0:
            x = x + std * standard_normal(x, generator)
        report(on_step, step, x)
    return x


@torch.no_grad()
def euler_maruyama(
    denoiser: Denoiser, x: Tensor, levels: Tensor, cond: Any = None, *, generator: Generator, on_step: OnStep = None
) -> Tensor:
    """Return samples of the reverse SDE by Euler-Maruyama in sigma^2 (Song et al. 2021, eq. 6). Weak order 1.

    The step into 0 takes the mean only: noise added there would stay in the cells.
    """
    for step, (sigma, next_sigma) in enumerate(pairwise(sigma_list(levels)), start=1):
        prediction = predict_at(denoiser, x, sigma, cond)
        variance = sigma**2 - next_sigma**2
        x = x + variance / sigma**2 * (prediction - x)
        if next_sigma > 0:
            x = x + math.sqrt(variance) * standard_normal(x, generator)
        report(on_step, step, x)
    return x


@torch.no_grad()
def heun(
    denoiser: Denoiser, x: Tensor, levels: Tensor, cond: Any = None, *, generator: Rng = None, on_step: OnStep = None
) -> Tensor:
    """Return samples of the ODE by Heun's method (Karras et al. 2022, alg. 1). Order 2, deterministic.

    Two predictions a step, one in the step into 0: ``2 n_steps - 1`` in all.
    """
    for step, (sigma, next_sigma) in enumerate(pairwise(sigma_list(levels)), start=1):
        x = _heun_step(denoiser, x, sigma, next_sigma, cond)
        report(on_step, step, x)
    return x


@torch.no_grad()
def invert(
    denoiser: Denoiser, x: Tensor, levels: Tensor, cond: Any = None, *, generator: Rng = None, on_step: OnStep = None
) -> Tensor:
    """Return the noise that the ODE turns into the cells ``x``: `heun` run backwards. Order 2, deterministic.

    ``levels`` increase, from 0 (clean cells) or any level at which ``x`` is: ``process.levels(n).flip(0)``.
    """
    for step, (sigma, next_sigma) in enumerate(pairwise(sigma_list(levels, increasing=True)), start=1):
        x = _heun_step(denoiser, x, sigma, next_sigma, cond)
        report(on_step, step, x)
    return x


@torch.no_grad()
def dpmpp_2m(
    denoiser: Denoiser, x: Tensor, levels: Tensor, cond: Any = None, *, generator: Rng = None, on_step: OnStep = None
) -> Tensor:
    """Return samples of the ODE by DPM-Solver++(2M) (Lu et al. 2022, alg. 2). Order 2, deterministic.

    The linear part of the ODE is solved exactly and D is extrapolated in ``-ln sigma`` from the previous step: second
    order for one prediction a step. The first step and the step into 0 are first order.
    """
    previous, previous_width = None, math.nan
    for step, (sigma, next_sigma) in enumerate(pairwise(sigma_list(levels)), start=1):
        prediction = predict_at(denoiser, x, sigma, cond)
        width = math.log(sigma / next_sigma) if next_sigma > 0 else math.inf
        trend = 0.0 if previous is None or next_sigma == 0 else width / (2 * previous_width) * (prediction - previous)
        ahead = prediction + trend
        x = ahead + next_sigma / sigma * (x - ahead)
        previous, previous_width = prediction, width
        report(on_step, step, x)
    return x


def _heun_step(denoiser: Denoiser, x: Tensor, sigma: float, next_sigma: float, cond: Any) -> Tensor:
    slope = _slope(denoiser, x, sigma, cond)
    euler = x + (next_sigma - sigma) * slope
    if next_sigma == 0:
        return euler
    return x + (next_sigma - sigma) / 2 * (slope + _slope(denoiser, euler, next_sigma, cond))


def _slope(denoiser: Denoiser, x: Tensor, sigma: float, cond: Any) -> Tensor:
    """Return dx/dsigma of the probability-flow ODE. It is -sigma * score, so it vanishes for clean cells."""
    return (x - predict_at(denoiser, x, sigma, cond)) / sigma if sigma > 0 else torch.zeros_like(x)


def predict_at(denoiser: Denoiser, x: Tensor, sigma: float, cond: Any) -> Tensor:
    return denoiser(x, x.new_full((len(x),), sigma), cond)


def sigma_list(levels: Tensor, *, increasing: bool = False) -> list[float]:
    """Return checked levels as numbers, fetched once: reading them in the loop would wait for the accelerator."""
    sigmas = levels.tolist() if levels.ndim == 1 else []
    order = sigmas if increasing else sigmas[::-1]
    if len(order) < 2 or order[0] < 0 or order[-1] == math.inf or not all(a < b for a, b in pairwise(order)):
        raise InputError(
            f"levels of shape {tuple(levels.shape)} must be two or more finite sigmas >= 0 in strictly "
            f"{'increasing' if increasing else 'decreasing'} order"
        )
    return sigmas


def report(on_step: OnStep | None, step: int, x: Tensor) -> None:
    if on_step is not None:
        on_step(step, x)
