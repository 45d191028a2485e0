"""A second opinion on the effect of a perturbation in a context where it was not measured: the same fold changes.

    closed form    effects add up:     D                                        (models.effects)
    fold change    effects multiply:   log(e^m f - c (f - 1)) - m,   log f = mean over k of log (r_k / m_k)
    effect         (1 - w) closed form + w fold change

Here m is the mean log1p(CP10k) of the control cells of the context, and m_k and r_k are those of control and perturbed
cells of a context k where both were measured, as molecules per 10,000 plus c = .3. So a gene that hardly any control
cell expresses has little to lose. Contexts count by exp(-|m - m(k)|^2 / (b med)), med the median of these distances
between contexts. The weight w and the width b are those at which the measured effects are foretold best when their
contexts are left out in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from scidiff.models.effect_measured import Measured, canonical
from scidiff.models.effect_prior import Prior
from scidiff.models.effect_process import FEW_ROWS, Asked, Process
from scidiff.models.effects import Effect, EffectModel

#: molecules per 10,000 added to both sides of a fold change: fewer are mostly not counted
ADDED = 0.3
#: widths b to choose from
WIDTHS = (0.1, 0.25, 0.5, 1.0)
#: contexts that must have been left out before a second opinion is believed, measured effects that are asked for
FEW_LEFT_OUT, MAX_ASKED = 4, 40


@dataclass(frozen=True)
class Opinion:
    """How far fold changes are believed.

    Parameters
    ----------
    weight
        w of the module head, 0 to 1.
    width
        b of the module head.
    """

    weight: float = 0.0
    width: float = WIDTHS[0]

    @classmethod
    def fit(cls, effects: EffectModel) -> Opinion:
        """Return what foretells measured effects best in contexts left out; weight 0 where too few can be."""
        process = effects.process
        measured = process.measured
        left_out = _left_out(measured)
        if left_out["context"].nunique() < FEW_LEFT_OUT:
            return cls()
        gained = np.zeros(len(WIDTHS))  # sums over effects of <fold - closed, truth - closed> / |truth|^2
        moved = np.zeros(len(WIDTHS))  # ... and of |fold - closed|^2 / |truth|^2
        for k, asked in left_out.groupby("context"):
            other = measured.without((measured.rows["context"] == k).to_numpy())
            prior = Prior.fit(process.curves.full_size(other))
            blind = Process(other, process.curves, prior, process.kernels, FEW_ROWS)
            for row, one in asked.iterrows():
                ask = Asked(one["parts"], one["dose"], float(one["time"]), process.place(int(k)))
                control, truth = measured.controls[int(k)], measured.effect[int(row), :-1]
                closed = np.maximum(blind.posterior(ask)[0][:-1], -control)
                away = fold_change(other, _alike(other, ask.parts, ask.dose, ask.time), control, widths=WIDTHS) - closed
                gained += away @ (truth - closed) / (truth @ truth)
                moved += (away**2).sum(axis=1) / (truth @ truth)
        weight = np.clip(gained / np.maximum(moved, 1e-12), 0, 1)
        best = int(np.argmin(weight**2 * moved - 2 * weight * gained))
        return cls(round(float(weight[best]), 3), WIDTHS[best])

    def revised(
        self,
        effect: Effect,
        effects: EffectModel,
        perturbation: Sequence[str],
        control_mean: np.ndarray,
        *,
        dose: float | Sequence[float] | None = None,
        time: float | None = None,
    ) -> Effect:
        """Return the effect with the second opinion in it, if there is one: measured, but not in this context.

        Parameters
        ----------
        effect
            The closed form's.
        effects
            Where it comes from.
        perturbation, dose, time
            As :meth:`EffectModel.predict` takes them.
        control_mean
            Mean log1p counts per 10k of the context's control cells, shape (n_genes,).
        """
        if not self.weight or effect.kind != "context":
            return effect
        parts, doses = canonical(perturbation, dose)
        measured, control = effects.process.measured, np.asarray(control_mean, dtype=float)
        rows = _alike(measured, parts, doses, np.nan if time is None else float(time))
        if not len(rows):
            return effect
        fold = fold_change(measured, rows, control, widths=(self.width,))[0]
        mean = (1 - self.weight) * effect.mean + self.weight * fold
        return replace(effect, mean=np.maximum(mean, -control))

    def to_dict(self) -> dict[str, float]:
        """Return JSON values."""
        return asdict(self)


def fold_change(measured: Measured, rows: np.ndarray, control: np.ndarray, *, widths: Sequence[float]) -> np.ndarray:
    """Return the effect that fold changes in other contexts amount to at expression ``control``.

    Parameters
    ----------
    measured
        Measured effects.
    rows
        Those to average: of one perturbation, in some contexts.
    control
        Mean log1p counts per 10k of control cells, shape (n_genes,).
    widths
        Widths of the average, b of the module head.

    Returns
    -------
    Difference to control in mean log1p counts per 10k, not below -``control``, shape (len(widths), n_genes).
    """
    context = measured.rows["context"].to_numpy(int)[rows]
    before = measured.controls[context]
    after = np.maximum(before + measured.effect[rows, :-1], 0)
    logs = np.log(np.expm1(after) + ADDED) - np.log(np.expm1(before) + ADDED)
    noise = measured.controls_noise.sum(axis=1)
    pairs = _square_distances(measured.controls, measured.controls) - noise[:, None] - noise
    typical = max(float(np.median(pairs[np.triu_indices(len(pairs), 1)])), 1e-12)
    away = _square_distances(control[None], before)[0] - noise[context]
    share = np.exp(-(away - away.min()) / (np.asarray(widths)[:, None] * typical))
    logs = share @ logs / share.sum(axis=1, keepdims=True)
    return np.log1p(np.maximum((np.expm1(control) + ADDED) * np.exp(logs) - ADDED, 0)) - control


def _alike(measured: Measured, parts: tuple[str, ...], dose: tuple[float, ...], time: float) -> np.ndarray:
    """Rows of the effects of a perturbation at a dose and time; NaN: any."""
    rows = measured.rows
    same = np.array([some == parts for some in rows["parts"]], dtype=bool)
    if not np.isnan(dose).any():
        same &= np.array([np.array_equal(some, dose) for some in rows["dose"]], dtype=bool)
    if not np.isnan(time):
        same &= (rows["time"] == time).to_numpy()
    return np.flatnonzero(same)


def _left_out(measured: Measured) -> pd.DataFrame:
    """Rows of effects that two other contexts tell about at least; of many, as many of each context."""
    rows = measured.rows.assign(turn=measured.rows.groupby("context").cumcount()).sort_values(["turn", "context"])
    told = []
    for row, one in rows.iterrows():
        alike = measured.rows.iloc[_alike(measured, one["parts"], one["dose"], one["time"])]["context"]
        told += [row] if alike.nunique() > 2 else []
        if len(told) == MAX_ASKED:
            break
    return measured.rows.loc[told]


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances of rows, shape (len(a), len(b))."""
    return (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
