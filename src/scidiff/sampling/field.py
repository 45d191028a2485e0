"""A velocity field on counts: a cell loses some of its molecules and wins as many where it is going.

    thin      every molecule stays with probability 1 - share,   share = 1 - exp(-dt)
    thicken   to the old depth, logits + strength log r,          r = (s + v dt / share)+ / s

A cell of composition s whose molecules are replaced in proportion to r arrives at (1 - share) s + share s r = s + v dt
on average: what the velocity says, in integers, and with the denoiser's say in which molecules go together. It is shown
the cell as it was before thinning. Molecules that stay, go and come are then exchangeable, so that with strength 0 the
step leaves the denoiser's population as it is, and the cell forgets what it is as slowly as it can.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from scidiff.errors import InputError
from scidiff.sampling.solvers import Denoiser, ancestral

#: bound of log r: no velocity is known well enough to shut a gene off, or to open it more than tenfold
LIMIT = math.log(10)


def replaced(dt: float) -> float:
    """Return the share of a cell's molecules that is replaced in a step of length ``dt``."""
    if not dt > 0:
        raise InputError(f"dt={dt}: a step needs a length above 0")
    return -math.expm1(-dt)


def log_tilt(s: Tensor, v: Tensor, *, dt: float, smooth: float = 0.1) -> Tensor:
    """Return log r, within :data:`LIMIT`, shape (n_cells, n_genes).

    Parameters
    ----------
    s
        Expected counts of the cells, shape (n_cells, n_genes).
    v
        Their change per unit of time, same shape.
    dt
        Length of the step.
    smooth
        Counts added to both sides of the ratio, so that what is hardly there does not rule the step.
    """
    if s.shape != v.shape:
        raise InputError(f"positions {tuple(s.shape)} and velocities {tuple(v.shape)} must have one shape")
    after = (s + v * dt / replaced(dt)).clamp_min(0)
    return ((after + smooth) / (s + smooth)).log().clamp(-LIMIT, LIMIT)


class Field:
    """Tilt what a denoiser predicts: ``logits + strength tilt``. For thinning; one chunk of cells.

    Parameters
    ----------
    denoiser
        Any denoiser of counts.
    tilt
        log r of the cells, shape (n_cells, n_genes).
    strength
        1: the velocity as it is; 0: none.
    """

    def __init__(self, denoiser: Denoiser, tilt: Tensor, *, strength: float = 1.0) -> None:
        self.denoiser, self.tilt, self.strength = denoiser, tilt, strength

    def __call__(self, x_noisy: Tensor, level: Tensor, cond: Any = None) -> Tensor:
        """Return tilted logits, shape (n_cells, n_genes)."""
        return self.denoiser(x_noisy, level, cond) + self.strength * self.tilt


def flow_step(
    denoiser: Denoiser,
    x: Tensor,
    tilt: Tensor,
    cond: Any = None,
    *,
    dt: float,
    process: Any,
    generator: Generator,
    strength: float = 1.0,
    n_steps: int = 2,
) -> Tensor:
    """Return the cells one step later: counts, shape (n_cells, n_genes), as many molecules each as before.

    Parameters
    ----------
    denoiser
        Predicts logits of further molecules.
    x
        Counts, shape (n_cells, n_genes).
    tilt
        From :func:`log_tilt`, for the same ``dt``.
    cond
        Conditions of the cells.
    dt
        Length of the step.
    process
        :class:`~scidiff.models.thinning.Thinning`.
    generator
        Source of randomness.
    strength
        Of the tilt.
    n_steps
        Steps in which lost molecules are replaced.
    """
    kept = process.corrupt(x, torch.full_like(x[:, 0], 1 - replaced(dt)), generator=generator)
    depth = x.sum(dim=1)
    levels = process.levels(2 * depth - kept.sum(dim=1), n_steps, start=depth)
    field = Field(denoiser, tilt, strength=strength)
    return kept + ancestral(field, x, levels, cond, process=process, generator=generator) - x


@torch.no_grad()
def displacement(
    denoiser: Denoiser, x: Tensor, tilt: Tensor, cond: Any = None, *, dt: float, strength: float = 1.0
) -> Tensor:
    """Return how a step moves what the denoiser makes of each cell: change of log composition, (n_cells, n_genes).

    The mean step (fractions of molecules), with the tilt and without: the difference is the tilt's doing alone, free of
    the noise of sampling, and 0 with strength 0. Genes of which no velocity is known follow those of which one is.
    Parameters as in :func:`flow_step`.
    """
    depth, share = x.sum(dim=1), replaced(dt)
    logits = denoiser(x, depth, cond)

    def looked_at(prediction: Tensor) -> Tensor:
        moved = (1 - share) * x + share * depth[:, None] * torch.softmax(prediction, dim=1)
        return torch.log_softmax(denoiser(moved, depth, cond), dim=1)

    return looked_at(logits + strength * tilt) - looked_at(logits)
