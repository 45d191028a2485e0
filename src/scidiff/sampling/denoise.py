"""Denoising: what a cell would show at full depth, from a trained denoiser.

    posterior mean    one evaluation at the cell's own level, no noise added:  rho = softmax(logits)  or  D(x, sigma)
    posterior draw    the cell thickened onward to a greater depth: its molecules stay, more join them

A thinned cell and a shallow cell are the same thing, so the prediction of the molecules that thinning removed is the
prediction of those that sequencing missed. Given the cell, the mean of rho is the rate of every further molecule.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from scidiff.models.gaussian import GaussianNoise
from scidiff.sampling.guidance import Gain
from scidiff.sampling.solvers import Denoiser, ancestral

#: a share of a cell's molecules that is none
TINY = 1e-12


class CountDenoiser(Protocol):
    """What caution needs of :class:`scidiff.models.denoiser.Denoiser`: its prediction in two steps."""

    def expected(self, x_noisy: Tensor, level: Tensor, cond: Any) -> Tensor:
        """Return logits, shape (n_cells, n_genes), that leave out what each gene's own count says of it."""
        ...

    def updated(self, prediction: Tensor, x_noisy: Tensor, level: Tensor) -> Tensor:
        """Return logits that take it in."""
        ...


class Cautious:
    """Believe the network gene by gene, and every cell's own counts in full; for thinning (logits).

        p  ->  pooled (p / pooled)^trust c^trust  ->  updated by own counts

    A gene without trust keeps its pooled share of the molecules, whatever the others do: c, one number per cell, takes
    what genes with trust win or lose from these alone.

    Parameters
    ----------
    denoiser
        A denoiser of counts.
    pooled
        What to believe otherwise: the log composition of all cells together, shape (n_genes,).
    trust
        From 0 to 1, shape (n_genes,): whether the other genes of a cell foretell the gene.
    """

    def __init__(self, denoiser: CountDenoiser, pooled: Tensor, trust: Tensor) -> None:
        self.denoiser, self.pooled, self.trust = denoiser, torch.log_softmax(pooled, dim=0), trust
        self.kept = (1 - trust) @ self.pooled.exp()  # share of the molecules that does not change

    def __call__(self, x_noisy: Tensor, level: Tensor, cond: Any = None) -> Tensor:
        """Return the prediction, shape (n_cells, n_genes)."""
        logits = torch.log_softmax(self.denoiser.expected(x_noisy, level, cond), dim=1)
        logits = self.pooled + self.trust * (logits - self.pooled)
        share = (logits.exp() @ self.trust).clamp_min(TINY)
        scale = ((1 - self.kept).clamp_min(TINY) / share).log()
        return self.denoiser.updated(logits + self.trust * scale[:, None], x_noisy, level)


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
    process: Any,
    n_steps: int,
    gain: float,
    generator: Generator,
) -> Tensor:
    """Return counts of the observed cells ``x`` thickened to ``depth`` molecules, shape (n_cells, n_genes).

    No observed molecule is lost; cells that are as deep already stay as they are.
    """
    levels = process.levels(depth, n_steps, start=x.sum(dim=1))
    return ancestral(Gain(denoiser, gain), x, levels, cond, process=process, generator=generator)
