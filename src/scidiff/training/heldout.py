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
from scidiff.models.sparse import depth_of
from scidiff.models.thinning import multinomial_nll
from scidiff.training.batches import InMemory
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

    def __init__(self, cells: InMemory, cond: Conditions, rows: np.ndarray, *, seed: int) -> None:
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

    Of all levels of noise, each cell alike (how well it samples); or, with ``noisy=False``, given all that was kept,
    each molecule alike (how well it denoises: the score of molecular cross-validation).

    Parameters
    ----------
    kept, cond
        What is trained on, and the conditions.
    held
        The molecules set aside, in the same cells.
    seed
        Of the noise, and of the choice of cells where there are many.
    noisy
        Whether what was kept is noised before the model sees it.
    """

    def __init__(self, kept: InMemory, cond: Conditions, held: InMemory, *, seed: int, noisy: bool = True) -> None:
        self.kept, self.cond, self.held, self.seed, self.noisy = kept, cond, held, seed, noisy
        self.rows = np.sort(np.random.default_rng(seed).permutation(len(kept))[:MAX_CELLS])

    def __call__(self, denoiser: Denoiser) -> float:
        """Return the mean over cells, or over molecules."""
        if self.noisy:
            return mean_over_chunks(self, denoiser)
        depth = np.concatenate([depth_of(self.held.take(rows)).numpy() for rows in chunks(self.rows)])
        return mean_over_chunks(self, denoiser, repeats=1, weight=torch.from_numpy(depth))

    def chunk(self, denoiser: Denoiser, rows: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """Return the mean negative log-likelihood of each cell's held-out molecules."""
        x = self.kept.take(rows)
        x, level = denoiser.process.noise(x, generator=generator) if self.noisy else (x, depth_of(x))
        held = self.held.take(rows).to(denoiser.device)
        cond = self.cond[torch.from_numpy(rows)].to(denoiser.device)
        prediction = denoiser(x.to(denoiser.device), level.to(denoiser.device), cond)
        return multinomial_nll(prediction, held)


@torch.no_grad()
def mean_over_chunks(
    judge: HeldOutCells | HeldOutMolecules, denoiser: Denoiser, *, repeats: int = 2, weight: torch.Tensor | None = None
) -> float:
    """Return the mean of ``judge.chunk`` over its cells (weighted), each under ``repeats`` draws of noise."""
    was_training = denoiser.training
    denoiser.eval()
    losses = []
    for repeat in range(repeats):
        for i, rows in enumerate(chunks(judge.rows)):
            generator = step_generator(judge.seed, 0, repeat * len(judge.rows) + i * CHUNK)
            losses.append(judge.chunk(denoiser, rows, generator).cpu())
    denoiser.train(was_training)
    loss = torch.cat(losses)
    weight = torch.ones_like(loss) if weight is None else weight.repeat(repeats)
    return float((loss * weight).sum() / weight.sum())


def chunks(rows: np.ndarray) -> list[np.ndarray]:
    """Return the rows in pieces of at most CHUNK."""
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
