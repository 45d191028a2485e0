"""Counts of control cells moved to new means, and which of two rules says who of them receives new molecules.

    amplified   p = network, 2 times as sure of what it sees in a cell,   r = 1
    own counts  p = network as it is,   r = (x + shape) / (l p + shape)   of the cell as a control  (models.own_counts)

p and r as in sampling.perturb. A posterior mean says too little of how a cell differs from its like. Of shallow cells
it has to be said louder; deep cells are known well enough for that to be too loud, and there each cell keeps what it
had of single genes. Which holds can be seen in the training cells: conditions of them, told their true means, are made
from their controls by both rules, and the one whose cells are nearer to the real ones is kept (energy distance in
principal components).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scidiff.conditioning import Conditions
from scidiff.data.cells import Cells
from scidiff.data.scaling import fit_pca, log1p_cp10k, row_sums
from scidiff.model import TrainedModel
from scidiff.predictor import context_keys
from scidiff.sampling.generate import CHUNK
from scidiff.sampling.guidance import Gain
from scidiff.sampling.perturb import counterfactual

#: cells dealt to together: their genes' totals are balanced over all of them
POPULATION = 2000
#: fewer cells than this are predicted among reference cells of their context: too few for their mean to say much
MIN_POPULATION = 10
#: conditions that rules are judged by, those of most cells, with at least and at most so many cells and controls
REHEARSED, CELLS = 3, (50, 200)
#: principal components in which they are
COMPONENTS = 50


@dataclass(frozen=True)
class Dealing:
    """Who receives new molecules.

    Parameters
    ----------
    gain
        How much louder the network says what it sees in a cell (sampling.guidance.Gain).
    own
        Whether a cell keeps what it had of a gene beyond what the network expected.
    """

    gain: float
    own: bool


#: the rules, the first by default
RULES = {"amplified": Dealing(gain=2.0, own=False), "own counts": Dealing(gain=1.0, own=True)}
DEFAULT = "amplified"


def counts_under(
    model: TrainedModel,
    source: sparse.csr_matrix,
    before: pd.DataFrame,
    after: pd.DataFrame,
    effect: np.ndarray,
    *,
    depth_ratio: float,
    network: bool = True,
    seed: int = 0,
) -> sparse.csr_matrix:
    """Return counts of control cells as they would be if their means moved by an effect, csr (n_cells, n_genes).

    Parameters
    ----------
    source
        Counts of control cells of one context; few are predicted among reference cells.
    before, after
        Canonical conditions of the cells, and those that they are changed to, one row per cell.
    effect
        Difference of means in log1p(CP10k), shape (n_genes,).
    depth_ratio
        Molecules per cell, perturbed to control.
    network
        Let the network deal new molecules to cells; False: by depth alone.
    """
    assert model.predictor is not None
    n, like = source.shape[0], model.predictor.like({name: after[name].iloc[0] for name in model.schema.context})
    rows = np.arange(n)
    if n < MIN_POPULATION and like.shape[0]:
        source = sparse.vstack([source, like], format="csr")
        rows = np.concatenate([rows, np.zeros(like.shape[0], int)])
    made = []
    for some in np.array_split(np.arange(len(rows)), -(-len(rows) // POPULATION)):
        part = source[some]
        target = np.maximum(log1p_cp10k(part).mean(axis=0, dtype=float).A1 + effect, 0)
        denoiser, cond, kept = None, None, None
        if network:
            rule, device, depth = RULES[model.settings["dealing"]], model.posterior.device, row_sums(part)
            denoiser = Gain(on_host(model.posterior.expected, device), rule.gain)
            cond = model.encoded(after.iloc[rows[some]], depth=depth * depth_ratio).to(device)
            if rule.own:
                told = model.encoded(before.iloc[rows[some]], depth=depth).to(device)
                kept = beyond_expected(model, torch.from_numpy(part.toarray()).to(device), told).cpu()
        made.append(counterfactual(denoiser, part, target, cond, depth_ratio=depth_ratio, kept=kept, seed=seed)[0])
    return sparse.vstack(made, format="csr")[:n]


@torch.no_grad()
def beyond_expected(model: TrainedModel, x: torch.Tensor, cond: Conditions) -> torch.Tensor:
    """Return how much more each cell has of each gene than the network expects, r of the module head, shape of ``x``.

    ``x``: counts, shape (n_cells, n_genes); ``cond``: their encoded conditions.
    """
    level, denoiser = x.sum(dim=1), model.posterior
    expected = denoiser.expected(x, level, cond)
    return torch.exp(denoiser.updated(expected, x, level) - torch.log_softmax(expected, dim=1))


def on_host(denoiser: Callable[..., torch.Tensor], device: torch.device) -> Callable[..., torch.Tensor]:
    """Return the denoiser for cells that are not on its device, some at a time; their conditions are."""

    def told(x: torch.Tensor, level: torch.Tensor, cond: Conditions) -> torch.Tensor:
        parts = [slice(start, start + CHUNK) for start in range(0, len(x), CHUNK)]
        return torch.cat([denoiser(x[at].to(device), level[at].to(device), cond[at]).cpu() for at in parts])

    return told


# ---- which rule ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """A condition of the training cells and its controls: what rules are judged by.

    ``source``, ``real``: counts of controls and of cells of the condition, csr; ``before``, ``after``: canonical
    conditions of the controls, and that of the others as often.
    """

    source: sparse.csr_matrix
    real: sparse.csr_matrix
    before: pd.DataFrame
    after: pd.DataFrame
    seed: int

    def made(self, model: TrainedModel) -> sparse.csr_matrix:
        """Return the controls as the model would change them if it knew the mean and the depth of the real cells."""
        told = log1p_cp10k(self.real).mean(axis=0, dtype=float).A1 - log1p_cp10k(self.source).mean(axis=0).A1
        ratio = float(row_sums(self.real).mean() / row_sums(self.source).mean())
        return counts_under(model, self.source, self.before, self.after, told, depth_ratio=ratio, seed=self.seed)

    @cached_property
    def _pca(self):
        both = sparse.vstack([log1p_cp10k(self.source), log1p_cp10k(self.real)])
        return fit_pca(both, min(COMPONENTS, both.shape[1] - 1), seed=self.seed)

    def distance(self, made: sparse.csr_matrix) -> float:
        """Return the energy distance of counts to the real cells, in principal components."""
        from scidiff.evaluation.metrics import energy

        return energy(*(self._pca.transform(log1p_cp10k(x)) for x in (made, self.real)))


def rehearsals(model: TrainedModel, cells: Cells, *, seed: int) -> list[Rehearsal]:
    """Return the conditions with most cells; none where no condition has enough cells and controls."""
    table, schema = cells.conditions.reset_index(drop=True), model.schema
    control = schema.is_control(table)
    context = context_keys(table, schema.context)
    treatment = [name for name in ("perturbation", "dose", "time") if name in table]
    pairs = []
    treated = table[~control & table["perturbation"].notna().to_numpy()]
    for _, some in treated.groupby([*schema.context, *treatment], dropna=False):
        if len(some) < CELLS[0]:
            continue
        like = np.flatnonzero(control & (context == context[some.index[0]]))
        if len(like) >= CELLS[0]:
            pairs.append((like, some.index.to_numpy()))
    pairs.sort(key=lambda pair: -min(map(len, pair)))
    rng, made = np.random.default_rng(seed), []
    for pair in pairs[:REHEARSED]:
        source, real = (np.sort(rng.permutation(rows)[: CELLS[1]]) for rows in pair)
        before = table.iloc[source]
        after = before.assign(**{name: table[name].iloc[real[0]] for name in treatment})
        made.append(Rehearsal(cells.x[source], cells.x[real], before, after, seed))
    return made


def calibrated_dealing(model: TrainedModel, cells: Cells, *, seed: int) -> str:
    """Return the name of the rule whose cells are nearest to training cells; see the module head."""
    told = rehearsals(model, cells, seed=seed)
    if not told:
        return DEFAULT
    trials = {name: replace(model, settings=model.settings | {"dealing": name}) for name in RULES}
    loss = {name: sum(one.distance(one.made(trial)) for one in told) for name, trial in trials.items()}
    return min(loss, key=lambda name: loss[name])
