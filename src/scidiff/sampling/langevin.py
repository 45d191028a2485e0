"""Langevin corrector: steps at one noise level that undo what a solver got wrong on the way there.

    x <- x + e * score + sqrt(2 e) * z,   score = (D - x) / sigma^2,   z ~ N(0, I)

leaves the noisy data's own distribution p(x; sigma) as it is (up to the finite step e) and draws anything else towards
it. `corrected` puts it behind each step of any Gaussian solver: predictor-corrector sampling (Song et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Generator, Tensor

from scidiff.models.gaussian import standard_normal
from scidiff.sampling.solvers import Denoiser, predict_at, report, sigma_list


@torch.no_grad()
def langevin(
    denoiser: Denoiser,
    x: Tensor,
    level: float,
    cond: Any = None,
    *,
    generator: Generator,
    snr: float = 0.16,
    n_steps: int = 1,
) -> Tensor:
    """Return ``x`` after ``n_steps`` Langevin steps at the sigma ``level > 0``, shape (n_cells, n_genes).

    The step is ``e = 2 (snr |z| / |score|)^2`` with norms averaged over the cells (Song et al. 2021, alg. 4). It is
    finite, so the stationary variance is too large: for an isotropic Gaussian by ``1 + snr^2``, 2.6 % at the
    default.
    """
    for _ in range(n_steps):
        score = (predict_at(denoiser, x, level, cond) - x) / level**2
        z = standard_normal(x, generator)
        size = 2 * (snr * z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2
        x = x + size * score + torch.sqrt(2 * size) * z
    return x


def corrected(solver: Callable[..., Tensor], *, snr: float = 0.16, n_corrections: int = 1) -> Callable[..., Tensor]:
    """Return a solver that follows each step of ``solver`` with Langevin corrections (Song et al. 2021, alg. 1).

    Each step is solved on its own, so `dpmpp_2m` loses its memory and becomes first order. Level 0 is not corrected.
    """

    @wraps(solver)
    def predictor_corrector(denoiser, x, levels, cond=None, *, generator, on_step=None, **options):
        for step, next_sigma in enumerate(sigma_list(levels)[1:], start=1):
            x = solver(denoiser, x, levels[step - 1 : step + 1], cond, generator=generator, **options)
            if next_sigma > 0:
                x = langevin(denoiser, x, next_sigma, cond, generator=generator, snr=snr, n_steps=n_corrections)
            report(on_step, step, x)
        return x

    return predictor_corrector
