"""When to stop: the loss on what was held out, under noise that is the same at every look.

Two kinds. *Molecules*, for counts: a tenth of the molecules of every cell is set aside before training, and the model
must predict them from what noise leaves of the others. No cell is lost to training, and a model that learns the counts
of its cells by heart, rather than their rates, is caught. *Cells*, for data without counts.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from scidiff.conditioning import Conditions
from scidiff.models.denoiser import Denoiser
from scidiff.models.thinning import multinomial_nll
from scidiff.training.batches import Batches
from scidiff.training.randomness import step_generator

#: cells looked at: enough for the mean loss, few enough to take little time
MAX_CELLS = 1000
CHUNK = 256


class Judge(Protocol):
    """What the loop asks: how good is this denoiser on what it has not seen? Lower is better."""

    def __call__(self, denoiser: Denoiser) -> float: ...


class HeldOutCells:
    """Mean training loss of cells that are not trained on.

    Parameters
    ----------
    cells, cond
        All cells and their conditions.
    rows
        Which of them are held out.
    seed
        Of the noise.
    """

    def __init__(self, cells: Batches, cond: Conditions, rows: np.ndarray, *, seed: int) -> None:
        self.cells, self.cond, self.rows, self.seed = cells, cond, rows[:MAX_CELLS], seed

    def __call__(self, denoiser: Denoiser) -> float:
        """Return the mean loss, in the units of the process's loss."""
        return mean_over_chunks(self, denoiser)

    def chunk(self, denoiser: Denoiser, rows: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """Return the loss of each of these cells."""
        x = self.cells.take(rows)
        x_noisy, level = denoiser.process.noise(x, generator=generator)
        x, x_noisy, level = (t.to(denoiser.device) for t in (x, x_noisy, level))
        prediction = denoiser(x_noisy, level, self.cond[torch.from_numpy(rows)].to(denoiser.device))
        return denoiser.process.loss(prediction, x, x_noisy=x_noisy, level=level)


class HeldOutMolecules:
    """Negative log-likelihood of held-out molecules of the training cells, nats per molecule.

    Parameters
    ----------
    kept, cond
        What is trained on, and the conditions.
    held
        The molecules set aside, in the same cells.
    seed
        Of the noise, and of the choice of cells where there are many.
    """

    def __init__(self, kept: Batches, cond: Conditions, held: Batches, *, seed: int) -> None:
        self.kept, self.cond, self.held, self.seed = kept, cond, held, seed
        self.rows = np.sort(np.random.default_rng(seed).permutation(len(kept))[:MAX_CELLS])

    def __call__(self, denoiser: Denoiser) -> float:
        """Return the mean over cells."""
        return mean_over_chunks(self, denoiser)

    def chunk(self, denoiser: Denoiser, rows: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """Return the mean negative log-likelihood of each cell's held-out molecules."""
        x_noisy, level = denoiser.process.noise(self.kept.take(rows), generator=generator)
        held = self.held.take(rows).to(denoiser.device)
        cond = self.cond[torch.from_numpy(rows)].to(denoiser.device)
        prediction = denoiser(x_noisy.to(denoiser.device), level.to(denoiser.device), cond)
        return multinomial_nll(prediction, held)


@torch.no_grad()
def mean_over_chunks(judge: HeldOutCells | HeldOutMolecules, denoiser: Denoiser, *, repeats: int = 2) -> float:
    """Return the mean of ``judge.chunk`` over its cells, each under ``repeats`` draws of noise."""
    was_training = denoiser.training
    denoiser.eval()
    losses = []
    for repeat in range(repeats):
        for start in range(0, len(judge.rows), CHUNK):
            generator = step_generator(judge.seed, 0, repeat * len(judge.rows) + start)
            losses.append(judge.chunk(denoiser, judge.rows[start : start + CHUNK], generator))
    denoiser.train(was_training)
    return float(torch.cat(losses).mean())
