"""Steered particles: a population that is steered, weighted for it, and resampled (sequential Monte Carlo).

    log w += log p(x'|x) - log q(x'|x) + log h(x') - log h(x),        w = h at the start

p is the sampler's plain step, q the steered one, and h(x) estimates how much phenotype the cell that x becomes will
have; at the end it is exp(u) of the cell itself, u = lambda . f. All h in between cancel: weighted cells have the
distribution p(x) exp(u(x)) / Z that steering alone only leans towards. Where few particles carry the weight, they are
drawn anew by their weights (twisted diffusion sampler, Wu et al. 2023; Feynman-Kac steering, Singhal et al. 2025).

How many particles that takes depends on h. exp(u(F)) of the predicted final cell F is far too sure while there is much
noise, and a handful of particles takes over. So h is E[exp(u) | x] to second order, where V is the variance of u given
x, and k says how far u falls behind a straight line where steering goes, as it does near a phenotype that is met::

    log h = u(F) + V / (2 (1 + k)) - log(1 + k) / 2,        steps steered by 1 / (1 + k) of the gradient

V costs nothing: the gradient that steers is, by Tweedie's formula (Efron 2011), the covariance of the final cell with
u. This is exact for Gaussian cells and u linear, or the logarithm of a Gaussian likelihood of one number.

**When cells are exact.** p(x) is what `ancestral` draws with this denoiser and these levels. Weights are exact for it,
whatever h: added molecules are multinomial, Gaussian steps normal, and the step into 0, which has no noise, is not
steered. The mean of all weights is an unbiased estimate of Z, and weighted means become right as the population grows.
How far a finite one is from that, ``ess`` and ``n_ancestors`` tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from scidiff.errors import InputError
from scidiff.models.gaussian import GaussianNoise
from scidiff.models.thinning import INPUT_SCALE
from scidiff.sampling.steering import MAX_TILT, PER, Steered

#: variances below are rounding
SMALLEST = 1e-9


@dataclass(frozen=True)
class Particles:
    """Weighted cells and how they came about; the groups are in ascending order.

    Parameters
    ----------
    cells
        Counts, or standardised expression, shape (n_cells, n_genes). They count by their weights;
        ``cells[systematic(log_weights, generator=...)]`` of one group are cells that count alike.
    log_weights
        Shape (n_cells,), float64; the weights of a group sum to 1.
    ess
        Effective sample size, 1 / sum(w^2), before each step and at the end, shape (n_steps + 1, n_groups).
    origin
        The particle at the start that each cell descends from, shape (n_cells,): ``cond[origin]`` are its conditions.
    n_ancestors
        Particles at the start that have descendants, shape (n_groups,): independent lineages.
    log_evidence
        log Z, Z the mean of exp(u) over the plain sampler's cells, shape (n_groups,). The weighted mean of u less log Z
        is how rare the phenotype is: the Kullback-Leibler divergence from the plain sampler's cells, nats.
    """

    cells: Tensor
    log_weights: Tensor
    ess: Tensor
    origin: Tensor
    n_ancestors: Tensor
    log_evidence: Tensor


@torch.no_grad()
def particles(
    steered: Steered,
    x: Tensor,
    levels: Tensor,
    cond: Any = None,
    *,
    generator: Generator,
    groups: Tensor | None = None,
    resample_below: float = 0.5,
) -> Particles:
    """Return weighted cells with the distribution p(x) exp(u(x)) / Z; see above for when it is exact.

    Each step takes one pass through the network and back, as steering alone does.

    Parameters
    ----------
    steered
        Says what is sampled (its denoiser, with its offset) and towards what (its features and their strength). Its
        own tilt is not used.
    x
        Where sampling starts, shape (n_cells, n_genes): no molecules, or noise at the first level.
    levels
        As in :func:`~scidiff.sampling.solvers.ancestral`.
    cond
        Conditions of the cells. They and the levels follow a particle when it is resampled. A wrapper that knows cells
        by their place (:class:`~scidiff.sampling.guidance.Gain`) needs the same conditions throughout a group.
    generator
        Source of randomness.
    groups
        Population that each cell belongs to, integers, shape (n_cells,); default: one. Weights and resampling stay
        within a population.
    resample_below
        A population is resampled where its effective sample size falls below this share of its cells; 0: never.

    Raises
    ------
    InputError
        ``groups`` do not match the cells, or ``resample_below`` is no share.
    """
    groups = torch.zeros(len(x), dtype=torch.long) if groups is None else groups
    if groups.shape != (len(x),) or not 0 <= resample_below <= 1:
        raise InputError(
            f"groups of shape {tuple(groups.shape)} for {len(x)} cells, resample_below={resample_below}: need one "
            "group per cell and a share in [0, 1]"
        )
    members = [(groups == group).nonzero().squeeze(1).to(x.device) for group in groups.unique()]
    levels = levels.to(x).reshape(len(levels), -1).expand(-1, len(x))
    origin = torch.arange(len(x), device=x.device)
    log_w = x.new_zeros(len(x), dtype=torch.float64)
    log_h, ess = torch.zeros_like(log_w), []
    for level, next_level in pairwise(range(len(levels))):
        plain, prediction, log_h_here = _look(steered, x, levels[level, origin], _rows(cond, origin))
        log_w = log_w + log_h_here - log_h
        ess.append(_ess(log_w, members))

        chosen = torch.arange(len(x), device=x.device)
        for cells, size in zip(members, ess[-1].tolist(), strict=True):
            if size < resample_below * len(cells):
                chosen[cells] = cells[systematic(log_w[cells], generator=generator)]
                log_w[cells] = _log_mean(log_w[cells])
        x, plain, prediction, log_h, origin = (part[chosen] for part in (x, plain, prediction, log_h_here, origin))

        here, there = levels[level, origin], levels[next_level, origin]
        if isinstance(steered.process, GaussianNoise) and not bool(there.any()):
            prediction = plain  # the step into 0 has no noise, so no density to weigh
        x_next = steered.process.step(x, here, next_level=there, prediction=prediction, generator=generator)
        log_w = log_w + _log_ratio(steered.process, x, x_next, here, there, plain, prediction)
        x = x_next

    log_w = log_w + _potential(steered, x).double() - log_h
    ess.append(_ess(log_w, members))
    evidence = torch.stack([_log_mean(log_w[cells]) for cells in members])
    for cells in members:
        log_w[cells] = log_w[cells].log_softmax(0)
    n_ancestors = torch.tensor([len(origin[cells].unique()) for cells in members])
    return Particles(x, log_w, torch.stack(ess), origin, n_ancestors, evidence)


class Chosen:
    """A solver: every cell is drawn, by weight, from a small population of its own with its conditions.

    Cells stay independent, and the more particles each has, the nearer are they to p(x) exp(u(x)) / Z; one is steering
    alone. ``ess`` is the smallest effective sample size that each cell's population had, of all cells so far.

    Parameters
    ----------
    n
        Particles of each cell.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.ess: list[float] = []

    def __call__(self, steered: Steered, x: Tensor, levels: Tensor, cond: Any, *, generator: Generator) -> Tensor:
        """Return the cells, shape (n_cells, n_genes)."""
        cell = torch.arange(len(x), device=x.device).repeat_interleave(self.n)
        levels = levels.to(x).reshape(len(levels), -1).expand(-1, len(x))[:, cell]
        made = particles(steered, x[cell], levels, _rows(cond, cell), generator=generator, groups=cell)
        self.ess += made.ess.amin(dim=0).tolist()
        weights = made.log_weights.exp().reshape(len(x), self.n)
        place = torch.multinomial(weights.to(generator.device), 1, generator=generator).squeeze(1).to(x.device)
        return made.cells[torch.arange(len(x), device=x.device) * self.n + place]


def systematic(log_weights: Tensor, *, generator: Generator) -> Tensor:
    """Return the places of n survivors among n particles, ascending, shape (n,).

    Particle i survives n w_i times on average, rounded up or down: one random number places a comb of n teeth on the
    cumulative weights (Kitagawa 1996).
    """
    n = len(log_weights)
    shift = torch.rand(1, generator=generator, dtype=torch.float64, device=generator.device).to(log_weights.device)
    teeth = (torch.arange(n, device=log_weights.device) + shift) / n
    edges = log_weights.double().softmax(0).cumsum(0)
    return torch.searchsorted(edges / edges[-1], teeth).clamp_max(n - 1)


def _look(steered: Steered, x: Tensor, level: Tensor, cond: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the plain prediction, the steered one and log h(x), all from one pass through the network and back."""
    gaussian = isinstance(steered.process, GaussianNoise)

    def final(prediction: Tensor) -> Tensor:
        return prediction if gaussian else x + (cond.depth - level).clamp_min(0)[:, None] * prediction.softmax(dim=1)

    with torch.enable_grad():
        x = x.detach().requires_grad_()
        plain = steered.denoiser(x, level, cond).to(x)
        if steered.offset is not None:
            plain = plain + steered.offset
        cells = final(plain)
        u = _potential(steered, cells)
        slope, direct, tilt = torch.autograd.grad(u.sum(), (plain, cells, x))
    x, plain, u = x.detach(), plain.detach(), u.detach().double()
    tilt = tilt * level[:, None] ** 2 if gaussian else direct + _one_molecule(x, level) * (tilt - direct)

    variance = (slope * tilt).double().sum(dim=1).clamp_min(0)
    reach = MAX_TILT / tilt.abs().amax(dim=1).clamp_min(MAX_TILT)  # as far as steps go
    short = u + reach * variance - _potential(steered, final(plain + reach[:, None] * tilt)).double()
    bend = (2 * short / (reach**2 * variance).clamp_min(SMALLEST)).clamp_min(0) * (variance > SMALLEST)
    log_h = u + variance / (2 * (1 + bend)) - bend.log1p() / 2
    tilt = tilt / (1 + bend).to(tilt)[:, None]
    return plain, plain + tilt.clamp(-MAX_TILT, MAX_TILT), log_h


def _one_molecule(x: Tensor, level: Tensor) -> Tensor:
    """Return what a whole molecule does to the network's input over what the slope says, shape (n_cells, n_genes).

    The input is log(1 + 1000 x / depth). For the first molecule of a gene in a shallow cell the slope says up to a
    hundred times too much, and particles that follow it lose their weight in the first steps.
    """
    scale = INPUT_SCALE / level.clamp_min(1)[:, None]
    now = 1 + scale * x
    return now / scale * torch.log1p(scale / now)


def _potential(steered: Steered, cells: Tensor) -> Tensor:
    """Return lambda . f of finished cells, shape (n_cells,)."""
    if isinstance(steered.process, GaussianNoise):
        expression = steered.to_expression(cells)
    else:
        expression = torch.log1p(cells * (PER / cells.sum(dim=1, keepdim=True).clamp_min(1)))
    return steered.features(expression) @ steered.strength


def _log_ratio(
    process: Any, x: Tensor, x_next: Tensor, level: Tensor, next_level: Tensor, plain: Tensor, steered: Tensor
) -> Tensor:
    """Return log p(x_next | x) - log q(x_next | x) for steps by the plain and by the steered prediction, (n_cells,)."""
    if not isinstance(process, GaussianNoise):
        added = x_next - x
        log_odds = plain.log_softmax(dim=1) - steered.log_softmax(dim=1)
        return torch.where(added > 0, added * log_odds, 0.0).double().sum(dim=1)  # 0 of an impossible gene: no matter
    shrink = (next_level / level)[:, None]
    std = shrink * (level**2 - next_level**2).sqrt()[:, None]
    drawn = (x_next - steered - shrink**2 * (x - steered)) / std
    apart = (1 - shrink**2) * (plain - steered) / std
    return torch.where(std > 0, apart * (drawn - apart / 2), 0.0).double().sum(dim=1)


def _rows(cond: Any, rows: Tensor) -> Any:
    return None if cond is None else cond[rows]


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def _ess(log_weights: Tensor, members: list[Tensor]) -> Tensor:
    """Return 1 / sum(w^2) of each group, w normalised, shape (n_groups,)."""
    return torch.stack([1 / log_weights[cells].softmax(0).square().sum() for cells in members])
