"""What a cell's own molecules of a gene say about the gene, beyond what the network makes of them.

A network of a few hundred dimensions knows cells by what their genes share. How far one gene of one cell departs from
that has no place in it. Such a departure, taken as Gamma distributed, is updated by the gene's count in closed form:

    x ~ Poisson(l p r),   r ~ Gamma(shape, shape)      ->      E[r | x] = (x + shape) / (l p + shape)

p is what the network says, l the molecules of the cell, x those of the gene. One shape per gene is learned with the
network: small, and the gene's own count decides; large, and the network does. Molecules that are drawn in this way one
after the other are Polya's urn, and scatter as counts do: negative binomial, not Poisson (Robbins 1956; Efron 2010).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scidiff.models.sparse import flat_index

#: shape of every gene before training, and how much faster than weights its logarithm moves: Adam takes steps of one
#: size, small for a network's weights, and shapes differ by orders of magnitude
START, SPEED = 4.0, 10.0


class OwnCounts(nn.Module):
    """Update a predicted composition by the counts that it was predicted from, gene by gene.

    Parameters
    ----------
    n_genes
        Genes, each with a shape of its own.
    """

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.departure = nn.Parameter(torch.zeros(n_genes))

    @property
    def shape(self) -> Tensor:
        """Shapes of the Gamma distributions, shape (n_genes,): 1 / shape is the squared variation of the departures."""
        return START * torch.exp(SPEED * self.departure)

    def forward(self, logits: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Return updated logits, shape (n_cells, n_genes).

        Parameters
        ----------
        logits
            What the network predicts, shape (n_cells, n_genes).
        x
            Counts it was shown, dense or CSR, same shape.
        level
            Molecules of each cell, shape (n_cells,).
        """
        return _Update.apply(logits, self.shape, x, level)


class _Update(torch.autograd.Function):
    """``log softmax(z) + log((x + shape) / (l p + shape))``: few passes over all genes, for x only where there is any.

    The gradient takes ``trust = shape / (l p + shape)``, the share that is left to the network where x is 0.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, shape: Tensor, x: Tensor, level: Tensor) -> Tensor:
        p = torch.softmax(logits, dim=1)
        trust = shape / torch.addcmul(shape, level[:, None], p)
        out = (p * trust).clamp_min_(torch.finfo(p.dtype).tiny).log_()
        place, gene, count = _seen(x)
        out.view(-1).scatter_add_(0, place, torch.log1p(count / shape[gene]))
        ctx.save_for_backward(p, trust, shape, place, gene, count)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        p, trust, shape, place, gene, count = ctx.saved_tensors
        of_network = grad * trust
        of_counts = grad.view(-1)[place] * (count / (count + shape[gene]))
        of_log_shape = (grad.sum(dim=0) - of_network.sum(dim=0)).scatter_add_(0, gene, -of_counts)
        return of_network - p * of_network.sum(dim=1, keepdim=True), of_log_shape / shape, None, None


def _seen(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return place in the flattened matrix, gene, and count of what is not 0."""
    if x.layout == torch.strided:
        place = x.reshape(-1).nonzero().squeeze(1)
        return place, place % x.shape[1], x.reshape(-1)[place]
    return flat_index(x).long(), x.col_indices().long(), x.values()
