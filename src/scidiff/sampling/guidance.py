"""Guidance: a denoiser that wraps a denoiser, so it works with every sampler and every noise process.

    prediction = p_0 + w (p_c - p_0)

p_c is conditioned, p_0 has its conditions replaced by the null token. In Gaussian predictions (equivalently scores)
and in logits alike this samples p_0 * (p_c / p_0)^w: w = 0 ignores the condition, 1 is the model's own conditional,
above 1 exaggerates what sets the condition apart (Ho & Salimans 2022). With one weight per attribute, the sum over a of
w_a (p_a - p_0) composes attributes (Liu et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from scidiff.errors import InputError
from scidiff.sampling.solvers import Denoiser


class ClassifierFree:
    """Classifier-free guidance, with the denoiser's contract ``prediction = guided(x_noisy, level, cond)``.

    ``cond`` needs two methods: ``drop(*attributes)`` and ``keep(*attributes)`` return a copy in which these attributes,
    or all others, are null. Without conditions (``cond=None``) there is nothing to guide.

    Parameters
    ----------
    denoiser
        The denoiser to guide, trained with conditions dropped at random.
    weight
        One number guides all dropped attributes together. A mapping ``{attribute: weight}`` guides each on its own:
        p_0 has all of them null, p_a all but a; attributes it does not name keep their condition everywhere.
    drop
        With one number: the attributes to guide (default: all). The others keep their condition in both terms.

    Raises
    ------
    InputError
        If a weight is not finite, or ``drop`` comes with a mapping, which already names its attributes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weight: float | Mapping[str, float],
        *,
        drop: Iterable[str] | None = None,
    ) -> None:
        if not all(map(math.isfinite, weight.values() if isinstance(weight, Mapping) else [weight])):
            raise InputError(f"guidance weight {weight} must be finite")
        if isinstance(weight, Mapping) and drop is not None:
            raise InputError("guidance: give weights per attribute or drop=..., not both")
        self.denoiser = denoiser
        self.weight = dict(weight) if isinstance(weight, Mapping) else weight
        self.drop = None if drop is None else tuple(drop)

    def __call__(self, x_noisy: Tensor, level: Tensor, cond: Any = None) -> Tensor:
        """Return the guided prediction, shape (n_cells, n_genes)."""
        if cond is None or self.weight == 1:
            return self.denoiser(x_noisy, level, cond)
        unconditional = self.denoiser(x_noisy, level, self._null(cond))
        guided = unconditional
        for weight, conditions in self._terms(cond):
            guided = guided + weight * (self.denoiser(x_noisy, level, conditions) - unconditional)
        return guided

    def _null(self, cond: Any) -> Any:
        """Return ``cond`` with every guided attribute null."""
        if isinstance(self.weight, dict):
            return cond.drop(*self.weight)
        return cond.keep() if self.drop is None else cond.drop(*self.drop)

    def _terms(self, cond: Any) -> list[tuple[float, Any]]:
        """Return each weight with the conditions that it pulls towards."""
        if isinstance(self.weight, dict):
            return [(w, cond.drop(*(self.weight.keys() - {attribute}))) for attribute, w in self.weight.items()]
        return [(self.weight, cond)]


class Gain:
    """Multiply what a cell's own molecules say: ``prediction = p(empty) + gain (p(x) - p(empty))``.

    p(empty) is the prediction for a cell without molecules, what its condition alone says. A network trained on a few
    thousand cells trusts the molecules it sees too little, as any estimate from finite data is drawn to the mean, and
    populations come out too uniform. One number, calibrated after training, gives them their spread. For thinning
    (predictions are logits). Not for several chunks of cells: p(empty) is made at the first call and kept.

    Parameters
    ----------
    denoiser
        Any denoiser, guided or not.
    gain
        1 leaves predictions as they are.
    """

    def __init__(self, denoiser: Denoiser, gain: float) -> None:
        self.denoiser = denoiser
        self.gain = gain
        self._empty: Tensor | None = None

    def __call__(self, x_noisy: Tensor, level: Tensor, cond: Any = None) -> Tensor:
        """Return the amplified prediction, shape (n_cells, n_genes)."""
        prediction = self.denoiser(x_noisy, level, cond)
        if self.gain == 1:
            return prediction
        if self._empty is None:
            starts_empty = not bool(level.any())
            self._empty = (
                prediction if starts_empty else self.denoiser(torch.zeros_like(x_noisy), torch.zeros_like(level), cond)
            ).detach()
        return self._empty + self.gain * (prediction - self._empty)
