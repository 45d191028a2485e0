"""Denoising: what a cell would show at full depth, from a trained denoiser.

    posterior mean    one evaluation at the cell's own level, no noise added:  rho = softmax(logits)  or  D(x, sigma)
    posterior draw    the cell thickened onward to a greater depth: its molecules stay, more join them

A thinned cell and a shallow cell are the same thing, so the prediction of the molecules that thinning removed is the
prediction of those that sequencing missed. Given the cell, the mean of rho is the rate of every further molecule.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from scidiff.models.gaussian import GaussianNoise
from scidiff.sampling.guidance import Gain
from scidiff.sampling.solvers import Denoiser, ancestral


@torch.no_grad()
def posterior_mean(denoiser: Denoiser, x: Tensor, level: Tensor, cond: object, *, process: object) -> Tensor:
    """Return the posterior mean of clean cells, shape (n_cells, n_genes).

    Thinning: the composition, rows sum to 1. Gaussian noise: standardised expression (Tweedie's formula, Robbins 1956).

    Parameters
    ----------
    denoiser
        ``prediction = denoiser(x, level, cond)``.
    x
        Observed counts, or standardised expression, shape (n_cells, n_genes).
    level
        Molecules of each cell, or the sigma its noise is matched to, shape (n_cells,).
    cond
        Encoded conditions.
    process
        The noise process.
    """
    prediction = denoiser(x, level, cond)
    return prediction if isinstance(process, GaussianNoise) else torch.softmax(prediction, dim=1)


def posterior_draw(
    denoiser: Denoiser,
    x: Tensor,
    depth: Tensor,
    cond: object,
    *,
    process: object,
    n_steps: int,
    gain: float,
    generator: Generator,
) -> Tensor:
    """Return counts of the observed cells ``x`` thickened to ``depth`` molecules, shape (n_cells, n_genes).

    No observed molecule is lost; cells that are as deep already stay as they are.
    """
    levels = process.levels(depth, n_steps, start=x.sum(dim=1))
    return ancestral(Gain(denoiser, gain), x, levels, cond, process=process, generator=generator)
