"""Steering: cells that meet a phenotype, as close to what the model samples as that allows.

    p*(x) = p(x) exp(sum_j lambda_j f_j(x)) / Z,      lambda such that the mean of every f_j is the level asked for

Of all distributions of cells with these means this one is closest to the model's own (the I-projection, Csiszar 1975),
and lambda is unique. While molecules are added, a gene's chance is tilted by what one more molecule of it does to the
features of the final cell (first order of Doob's h-transform), felt through the network::

    logits_g += clip( d / d n_g  sum_j lambda_j f_j(F) ),      F = (n + (T - l) rho) / T,   l of T molecules are there

Gaussian noise: the predicted clean cell moves by sigma^2 times the gradient of the features at it (DPS with the score
of a tilted density; Chung et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scidiff.models.gaussian import GaussianNoise
from scidiff.sampling.solvers import Denoiser

PER = 1e4
#: a gene's chance is tilted by at most this factor in one step, and a clean cell by this many standard deviations
MAX_TILT = 3.0

#: log1p(CP10k), or expression on the training scale, shape (n_cells, n_genes) -> features (n_cells, n_features)
Features = Callable[[Tensor], Tensor]


class Steered:
    """A denoiser whose cells are drawn towards a phenotype, with the contract ``prediction = steered(x, level, cond)``.

    Parameters
    ----------
    denoiser
        Any denoiser, guided or not.
    process
        Its noise process.
    features
        What cells are judged by; differentiable.
    strength
        lambda, shape (n_features,); zeros leave the denoiser as it is.
    offset
        Thinning: added to all logits, shape (n_genes,); -inf for genes that are never drawn.
    to_expression
        Gaussian noise: standardised expression -> the scale of ``features``. None: the same.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        process: Any,
        features: Features,
        strength: Tensor,
        offset: Tensor | None = None,
        to_expression: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.denoiser, self.process, self.features = denoiser, process, features
        self.strength, self.offset, self.to_expression = strength, offset, to_expression or (lambda x: x)

    def __call__(self, x_noisy: Tensor, level: Tensor, cond: Any = None) -> Tensor:
        """Return the steered prediction, shape (n_cells, n_genes)."""
        if not bool(self.strength.any()):
            return self._moved(self.denoiser(x_noisy, level, cond))
        gaussian = isinstance(self.process, GaussianNoise)
        with torch.enable_grad():
            x = x_noisy.detach().requires_grad_()
            prediction = self._moved(self.denoiser(x, level, cond).float())
            clean = self.to_expression(prediction) if gaussian else self._final(x, level, cond.depth, prediction)
            (tilt,) = torch.autograd.grad((self.features(clean) @ self.strength).sum(), x)
        if gaussian:
            tilt = tilt * level[:, None] ** 2
        return prediction.detach() + tilt.clamp(-MAX_TILT, MAX_TILT)

    def _moved(self, prediction: Tensor) -> Tensor:
        return prediction if self.offset is None else prediction + self.offset

    @staticmethod
    def _final(x: Tensor, level: Tensor, depth: Tensor, logits: Tensor) -> Tensor:
        """Return log1p(CP10k) of the expected final cell."""
        to_come = (depth - level).clamp_min(0)[:, None] * torch.softmax(logits, dim=1)
        return torch.log1p((x + to_come) * (PER / depth.clamp_min(1))[:, None])


#: strengths between which the right one is sought; a tenth of a nat per unit of log expression already moves most
#: cells, but a gene of which a cell has a hundred molecules needs hundreds
WEAKEST, FIRST, STRONGEST = 1e-3, 0.02, 1e3
#: a feature that is nearly there already: distances are measured in no smaller unit
MIN_WAY = 0.05


@dataclass(frozen=True)
class Calibration:
    """The strength that was found, and how the levels came closer.

    ``strength`` and ``attained`` (features' means in the trial that was nearest) have shape (n_features,); ``path`` the
    means of every trial, shape (n_trials, n_features).
    """

    strength: np.ndarray
    attained: np.ndarray
    path: np.ndarray


def calibrated(
    draw: Callable[[np.ndarray], np.ndarray], wanted: np.ndarray, *, n_trials: int = 12, close: float = 0.05
) -> Calibration:
    """Return the strength with which the features of drawn cells have the means ``wanted``.

    One strength for all features is multiplied by 4, divided and bisected until they have come as far as wanted in sum.
    From there each has its own, found by Broyden's method (1965). (Newton's method from the start, with the covariance
    of features as the derivative, fails: cells of two kinds switch within a narrow range of strengths.) The trial
    nearest to what is wanted is taken.

    Parameters
    ----------
    draw
        Strength -> means of the features of cells drawn with it, shape (n_features,); the same random numbers each
        time.
    wanted
        Means of the features, shape (n_features,).
    n_trials
        Populations drawn at most.
    close
        Trials end when no feature is off by more than this share of its way.
    """
    start = draw(np.zeros(len(wanted)))
    way = wanted - start
    unit = np.maximum(np.abs(way), MIN_WAY)
    trials = [(np.zeros(len(wanted)), start)]

    def distance(trial: tuple[np.ndarray, np.ndarray]) -> float:
        return float(np.abs((wanted - trial[1]) / unit).max())

    def goes_on() -> bool:
        return len(trials) < n_trials and min(map(distance, trials)) > close

    low, high, common, made = 0.0, np.inf, FIRST, 0.0
    while goes_on() and WEAKEST < common < STRONGEST and abs(made - 1) > 2 * close:
        strength = common * np.sign(way)
        trials.append((strength, draw(strength)))
        made = (trials[-1][1] - start) @ np.sign(way) / np.abs(way).sum()
        low, high = (common, high) if made < 1 else (low, common)
        common = 4 * low if np.isinf(high) else high / 4 if low == 0 else float(np.sqrt(low * high))
    if abs(made - 1) <= 2 * close:
        strength, means = trials[-1]
        largest = np.abs(strength).max()
        slope = np.diag(np.maximum(np.abs(means - start), MIN_WAY) / largest)
        while goes_on():
            step = np.linalg.lstsq(slope, wanted - means, rcond=None)[0]
            far = largest + 2 * np.abs(strength)
            step = np.clip(step, -far, far)
            strength = strength + step
            moved = draw(strength) - means
            means = means + moved
            trials.append((strength, means))
            slope = slope + np.outer(moved - slope @ step, step) / max(step @ step, 1e-12)
    strength, attained = min(trials, key=distance)
    return Calibration(strength, attained, np.array([mean for _, mean in trials]))
