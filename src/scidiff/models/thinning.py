"""Thinning: the noise of shallow sequencing, for integer counts.

    forward    n_kappa ~ Binomial(n, kappa)            every molecule is kept with probability kappa
    predict    logits; rho = softmax(logits) is the composition of the molecules removed, given n_kappa
    reverse    add molecules, genes drawn from rho, in geometric steps of growing depth ("thickening")

Thinning composes, kappa_1 then kappa_2 is kappa_1 kappa_2, so it is a Markov noise process on counts. Given its depth l
(the number of molecules left), the thinned cell is a uniform subset of the molecules whatever kappa was: the level that
a denoiser is told is therefore l itself. Nothing is ever negative, zeros are exact, and the depth is chosen.
The idea of generating by un-thinning: Chen & Zhou 2023, "Learning to Jump" (ICML).

Cells come as sparse CSR tensors (training) or dense tensors (sampling), shape (n_cells, n_genes), of counts.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from scidiff.errors import InputError
from scidiff.models.sparse import depth_of, flat_index, like_csr, per_entry

#: counts are put on this scale before the logarithm: a gene with one molecule in a cell of 1,000 gives log 2
INPUT_SCALE = 1e3


@dataclasses.dataclass(frozen=True)
class Thinning:
    """The thinning process. Levels are depths: numbers of molecules.

    Parameters
    ----------
    empty
        Share of training cells that are thinned to nothing, so that the first step of generation is learned well.
    uniform
        Share of training cells whose keep-fraction is uniform in [0, 1]; the rest is log-uniform. Uniform weights the
        levels by their share of the likelihood of a whole cell, most molecules being added late; log-uniform gives
        the early levels, which decide what kind of cell it becomes, enough examples.
    middle
        Keep-fractions near one half instead of uniform ones: the median of three uniform numbers, Beta(2, 2).
    power
        Cells count in the loss as the number of molecules they lost to this power. 0: all alike; 1: the likelihood of
        the molecules, in which the deepest cells speak loudest.
    own_counts
        Update what the network says of a gene by the cell's count of it: :mod:`scidiff.models.own_counts`.
    """

    empty: float = 0.05
    uniform: float = 0.5
    middle: bool = False
    power: float = 0.0
    own_counts: bool = False

    def __post_init__(self) -> None:
        for name in ("empty", "uniform"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: need a share of cells in [0, 1]")
        if not 0 <= self.power <= 1:
            raise InputError(f"power={self.power}: need a number in [0, 1]")

    def draw_level(self, depth: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return keep-fractions for cells of these depths, shape (n_cells,), each in [0, 1]; see ``uniform``."""
        u = torch.rand(5 if self.middle else 3, len(depth), generator=generator, device=generator.device)
        u = u.to(depth.device)
        log_uniform = torch.exp(-u[0] * depth.clamp_min(1).log())
        share = u[[0, 3, 4]].median(dim=0).values if self.middle else u[0]
        kappa = torch.where(u[1] < self.uniform, share, log_uniform)
        return torch.where(u[2] < self.empty, 0.0, kappa)

    def corrupt(self, x: Tensor, kappa: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return thinned counts: Binomial(x, kappa), the layout and sparsity pattern of ``x``, shape of ``x``."""
        if x.layout == torch.strided:
            return binomial(x, kappa[:, None].expand_as(x), generator=generator)
        kept = binomial(x.values(), per_entry(x, kappa), generator=generator)
        return like_csr(x, kept)

    def noise(self, x: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return thinned cells and their depths, for one training step."""
        kappa = self.draw_level(depth_of(x), generator=generator)
        x_noisy = self.corrupt(x, kappa, generator=generator)
        return x_noisy, depth_of(x_noisy)

    def levels(self, depth: Tensor, n: int, *, start: Tensor | None = None) -> Tensor:
        """Return depths from ``start`` (default 0) to ``depth`` in ``n`` geometric steps, shape (n + 1, n_cells).

        The ratio of successive depths is constant: each step adds the same fraction of what is there, which keeps
        the molecules added together nearly independent given the state.
        """
        if n < 1:
            raise InputError(f"n_steps={n}: at least one step is needed")
        final = depth.round()
        start = torch.zeros_like(final) if start is None else start.round()
        low = start.clamp_min(1).log()
        rise = (final.clamp_min(1).log() - low).clamp_min(0)
        steps = torch.arange(1, n + 1, device=depth.device)[:, None] / n
        path = torch.exp(low + rise * steps).round()
        path = torch.cat([start[None], path]).minimum(torch.maximum(final, start))
        path[-1] = torch.maximum(final, start)
        return path

    def precondition(self, x_noisy: Tensor, level: Tensor, anchor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what the network sees: ``log(1 + 1000 x / depth)``, and ``log(1 + depth) / 4`` per cell."""
        scale = INPUT_SCALE / level.clamp_min(1)
        if x_noisy.layout == torch.strided:
            seen = torch.log1p(x_noisy * scale[:, None])
        else:
            seen = like_csr(x_noisy, torch.log1p(x_noisy.values() * per_entry(x_noisy, scale)))
        return seen, torch.log1p(level) / 4

    def head(self, raw: Tensor, x_noisy: Tensor, level: Tensor, anchor: Tensor) -> Tensor:
        """Return logits, shape (n_cells, n_genes): the anchor's log composition, moved by the network."""
        return raw.float() + anchor

    def loss(self, prediction: Tensor, x: Tensor, *, x_noisy: Tensor, level: Tensor) -> Tensor:
        """Return the negative log-likelihood of the removed molecules, nats per molecule, shape (n_cells,).

        The multinomial likelihood without its constant; averaged over held-out molecules it is the score of molecular
        cross-validation. ``x`` and ``x_noisy`` share a sparsity pattern. Cells that lost nothing count 0. With
        ``power``, times the weight of each cell, which is 1 on average.
        """
        nll = multinomial_nll(prediction, like_csr(x, x.values() - x_noisy.values()))
        if not self.power:
            return nll
        weight = (depth_of(x) - level).clamp_min(0) ** self.power
        return nll * weight / weight.mean().clamp_min(1e-6)

    def step(
        self, x: Tensor, level: Tensor, *, next_level: Tensor, prediction: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return ``x`` with ``next_level - level`` molecules added to each cell, genes drawn from the prediction."""
        return x + draw_molecules(prediction, next_level - level, generator=generator)


def draw_molecules(logits: Tensor, n: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return multinomial counts, shape (n_cells, n_genes): ``n`` molecules per cell, genes from softmax(logits).

    Inverts the cumulative distribution: one uniform number and one binary search per molecule, cheap because a cell
    has far fewer molecules than a matrix has entries.
    """
    n_cells, n_genes = logits.shape
    row = torch.arange(n_cells, device=logits.device)
    # one search in all cells at once: the distribution of cell i lies in (i, i + 1], which needs double precision
    cdf = torch.softmax(logits, dim=1).cumsum(dim=1, dtype=torch.float64).add_(row[:, None])
    cells = torch.repeat_interleave(row, n.clamp_min(0).long())
    u = torch.rand(len(cells), generator=generator, dtype=torch.float64, device=cdf.device)
    place = torch.searchsorted(cdf.view(-1), cells + u)
    place = place.clamp(cells * n_genes, cells * n_genes + n_genes - 1)  # rounding at the edge of a cell
    counts = torch.zeros(n_cells * n_genes, dtype=logits.dtype, device=cdf.device)
    return counts.index_add_(0, place, counts.new_ones(len(cells))).view(n_cells, n_genes)


class _MultinomialNLL(torch.autograd.Function):
    """-sum_g k_g log softmax(z)_g / sum_g k_g per cell, for sparse k; two passes over z with its gradient."""

    @staticmethod
    def forward(ctx, logits: Tensor, counts: Tensor) -> Tensor:
        p, place, total = torch.softmax(logits, dim=1), flat_index(counts), depth_of(counts)
        ctx.save_for_backward(p, counts.values(), place, total)
        ctx.counts = counts
        smallest = torch.finfo(p.dtype).tiny
        log_likelihood = counts.values() * torch.take(p, place).clamp_min_(smallest).log_()
        return -depth_of(like_csr(counts, log_likelihood)) / total.clamp_min(1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        p, counts, place, total = ctx.saved_tensors
        scale = grad / total.clamp_min(1)
        out = p * (scale * total)[:, None]
        out.view(-1).scatter_add_(0, place, counts * per_entry(ctx.counts, -scale))
        return out, None


def multinomial_nll(logits: Tensor, counts: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of molecules under softmax(logits), nats, shape (n_cells,).

    ``counts`` are the molecules, CSR, shape (n_cells, n_genes), the shape of ``logits``; a cell without any counts 0.
    """
    return _MultinomialNLL.apply(logits.float(), counts)


#: up to this count the binomial is inverted term by term for all entries at once
FEW = 4


def binomial(count: Tensor, probability: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return Binomial(count, probability), the shape of ``count``. Most counts are 0 or 1, where one coin is enough."""
    u = torch.rand(count.shape, generator=generator, device=count.device)
    kept = ((u < probability) & (count > 0)).to(count.dtype)
    several = (count > 1).view(-1).nonzero().squeeze(1)
    if len(several):
        n, p = torch.take(count, several), torch.take(probability, several).to(count.dtype)
        drawn = _invert_binomial(n, p, torch.take(u, several))
        many = (n > FEW).nonzero().squeeze(1)
        drawn[many] = torch.binomial(n[many], p[many], generator=generator)
        kept.view(-1)[several] = drawn
    return kept


def _invert_binomial(n: Tensor, p: Tensor, u: Tensor) -> Tensor:
    """Return the binomial quantiles of uniform numbers, right for n up to FEW."""
    q = torch.minimum(p, 1 - p)  # the rarer side, whose probabilities do not underflow
    odds = q / (1 - q)
    chance = (1 - q) ** n.clamp_max(FEW)  # of exactly j
    beyond = 1 - chance  # of more than j
    drawn = torch.zeros_like(n)
    for j in range(1, FEW + 1):
        drawn += u < beyond
        chance = chance * (odds / j) * (n - (j - 1)).clamp_min(0)
        beyond = beyond - chance
    drawn = torch.minimum(drawn, n)  # rounding may leave a little chance beyond n
    return torch.where(p > 0.5, n - drawn, drawn)
