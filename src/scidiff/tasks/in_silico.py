"""In-silico perturbation: a regulator's targets are moved along its signs, and the model says what all others do.

    x'_g = x_g + l rho_g (2^sign - 1)  for its targets g    (twice as much of what it raises, half of what it lowers)
    response_h = mean over cells of  log1p(10^4 rho'_h) - log1p(10^4 rho_h)  for all other genes h
    score = cosine(response, effect)  over these

x are control cells with l molecules each and rho is what the network makes of one, the composition of its further
molecules. Only genes that the regulator is *not* known to act on are scored, so a high score is evidence of another
kind than regression on targets: in cells of this kind, what goes with the targets goes as in the effect. It is the
first step of a simulation, not one in time, and it knows only what varied together among the cells of training: where
none of them has the phenotype, all scores are near 0.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from scidiff.conditioning import Conditions
from scidiff.model import TrainedModel

#: cells that regulons are moved in: the response is a mean, whose error is small against what regulons differ by
MAX_CELLS = 96
#: factor on targets
DOSE = 2.0


def in_silico(
    model: TrainedModel, effect: np.ndarray, weights: sparse.csc_matrix, counts: sparse.csr_matrix, cond: Conditions
) -> np.ndarray:
    """Return the score of every regulator, cosines, shape (n_tfs,); NaN where nothing responds or was asked about.

    Parameters
    ----------
    effect
        Change of mean log1p(CP10k) that is asked about, shape (n_genes,); NaN for genes that are no evidence.
    weights
        Signed weights of targets, shape (n_genes, n_tfs).
    counts, cond
        Control cells, shape (n_cells, n_genes), and their conditions; of more than :data:`MAX_CELLS`, some are used.
    """
    rows = np.linspace(0, counts.shape[0] - 1, min(counts.shape[0], MAX_CELLS)).astype(int)
    x = torch.from_numpy(counts[rows].toarray()).to(model.posterior.device)
    cond = cond[rows].to(model.posterior.device)
    usual = _composition(model, x, cond)
    molecules = x.sum(dim=1, keepdim=True)
    known = np.isfinite(effect)
    scores = np.full(weights.shape[1], np.nan)
    for i in range(weights.shape[1]):
        column = slice(weights.indptr[i], weights.indptr[i + 1])
        targets = torch.from_numpy(weights.indices[column].astype(np.int64)).to(x.device)
        sign = torch.from_numpy(np.sign(weights.data[column])).to(x)
        moved = x.clone()
        moved[:, targets] += molecules * usual[:, targets] * (DOSE**sign - 1)
        moved.clamp_min_(0)
        others = torch.from_numpy(known).to(x.device)
        others[targets] = False
        response = _logged(_composition(model, moved, cond), others) - _logged(usual, others)
        wanted = torch.from_numpy(effect).to(x)[others]
        size = response.norm() * wanted.norm()
        if size > 0:
            scores[i] = float(response @ wanted / size)
    return scores


@torch.no_grad()
def _composition(model: TrainedModel, x: torch.Tensor, cond: Conditions) -> torch.Tensor:
    """Return what the network makes of cells, no gene's own count added, shape (n_cells, n_genes)."""
    return torch.softmax(model.posterior.expected(x, x.sum(dim=1), cond).float(), dim=1)


def _logged(composition: torch.Tensor, genes: torch.Tensor) -> torch.Tensor:
    """Return mean log1p(CP10k) of these genes, as if there were no others, shape (n_chosen,)."""
    chosen = composition[:, genes]
    return torch.log1p(1e4 * chosen / chosen.sum(dim=1, keepdim=True)).mean(dim=0)
