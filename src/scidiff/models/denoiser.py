"""The denoiser: the one contract, ``prediction = denoiser(x_noisy, level, cond)``.

    anchor (closed form, frozen)  +  network (starts at zero)  ->  process.head  (->  own counts)  ->  prediction

Thinning predicts logits of the composition of the molecules still to come, Gaussian noise predicts E[x0 | x_noisy].
Both may be combined linearly (guidance, ensembles) and stay predictions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scidiff.conditioning import ConditionEncoder, Conditions
from scidiff.models.anchor import Anchor
from scidiff.models.gaussian import GaussianNoise
from scidiff.models.networks import Backbone
from scidiff.models.own_counts import OwnCounts
from scidiff.models.thinning import Thinning

Process = GaussianNoise | Thinning


class Denoiser(nn.Module):
    """A noise process, an anchor, a condition encoder and a backbone, as one callable.

    Parameters
    ----------
    process
        The noise process.
    anchor
        Closed-form starting point, never trained by gradient.
    encoder
        Makes condition vectors.
    backbone
        The network.
    """

    def __init__(self, process: Process, *, anchor: Anchor, encoder: ConditionEncoder, backbone: Backbone) -> None:
        super().__init__()
        self.process = process
        self.anchor = anchor
        self.encoder = encoder
        self.backbone = backbone
        wanted = isinstance(process, Thinning) and process.own_counts
        self.own_counts = OwnCounts(len(anchor.base)) if wanted else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.genes.device

    def forward(self, x_noisy: Tensor, level: Tensor, cond: Conditions) -> Tensor:
        """Return the process's prediction, shape (n_cells, n_genes).

        Parameters
        ----------
        x_noisy
            Noisy cells, shape (n_cells, n_genes): counts (dense or CSR), or standardised expression plus noise.
        level
            Noise level of each cell, shape (n_cells,): molecules left, or sigma.
        cond
            Encoded conditions of the cells; ``cond.keep()`` is unconditional.
        """
        return self.updated(self.expected(x_noisy, level, cond), x_noisy, level)

    def expected(self, x_noisy: Tensor, level: Tensor, cond: Conditions) -> Tensor:
        """Return the prediction of anchor and network, to which no gene's own count has been added."""
        anchor = self.anchor(cond)
        seen, scale = self.process.precondition(x_noisy, level, anchor)
        raw = self.backbone(seen, scale, self.encoder(cond))
        return self.process.head(raw, x_noisy, level, anchor)

    def updated(self, prediction: Tensor, x_noisy: Tensor, level: Tensor) -> Tensor:
        """Return the prediction updated by each gene's own count, where the process asks for that."""
        return prediction if self.own_counts is None else self.own_counts(prediction, x_noisy, level)

    def score(self, x_noisy: Tensor, sigma: Tensor, cond: Conditions) -> Tensor:
        """Return ``grad log p(x_noisy)`` at noise level sigma (Gaussian process only; Tweedie's formula)."""
        if not isinstance(self.process, GaussianNoise):
            raise TypeError("the score is defined for Gaussian noise; counts have no gradient of a density")
        return self.process.score(self(x_noisy, sigma, cond), x_noisy, sigma)
