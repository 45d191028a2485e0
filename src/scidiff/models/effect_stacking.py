"""Stacked estimates of an effect in a context where it was not measured: closed form, fold change, no change.

    closed form    effects add up:     D                                        (models.effects)
    fold change    effects multiply:   log(e^m f - c (f - 1)) - m,   log f = mean over k of log (r_k / m_k)
    no change      of other contexts nothing follows:   0
    effect         (1 - w - u) closed form + w fold change + u no change

Here m is the mean log1p(CP10k) of the control cells of the context, and m_k and r_k are those of control and perturbed
cells of a context k where both were measured, as molecules per 10,000 plus c = .3. So a gene that hardly any control
cell expresses has little to lose. Contexts count by exp(-|m - m(k)|^2 / (b med)), med the median of these distances
between contexts. The weights w and u, not negative and at most 1 in all, and the width b are those at which the
measured effects are foretold best when their contexts are left out in turn, or their patients where it is patients
that lack effects (stacking: Breiman 1996). Where contexts differ by more than the closed form believes, u is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from scidiff.models.effect_measured import Measured, canonical
from scidiff.models.effect_prior import Prior
from scidiff.models.effect_process import FEW_ROWS, Asked, Process, left_out_together
from scidiff.models.effects import Effect, EffectModel

#: molecules per 10,000 added to both sides of a fold change: fewer are mostly not counted
ADDED = 0.3
#: widths b to choose from
WIDTHS = (0.1, 0.25, 0.5, 1.0)
#: contexts (or patients) that must have been left out before other estimates have weight, effects that are asked for
FEW_LEFT_OUT, MAX_ASKED = 4, 40


@dataclass(frozen=True)
class Stacking:
    """Weights of the estimates beside the closed form; by default they have none.

    Parameters
    ----------
    weight
        w of the module head, 0 to 1.
    width
        b of the module head.
    none
        u of the module head, 0 to 1.
    """

    weight: float = 0.0
    width: float = WIDTHS[0]
    none: float = 0.0

    @classmethod
    def fit(cls, effects: EffectModel) -> Stacking:
        """Return what foretells measured effects best in contexts left out; weights 0 where too few can be."""
        process = effects.process
        measured = process.measured
        folds = left_out_together(measured)
        left_out = _left_out(measured, folds)
        if left_out["fold"].nunique() < FEW_LEFT_OUT:
            return cls()
        # of closed form and fold change, for each width: sums over effects, relative to their size, of the products
        # with one another and with the truth
        products, told = np.zeros((len(WIDTHS), 2, 2)), np.zeros((len(WIDTHS), 2))
        for fold, asked in left_out.groupby("fold"):
            other = measured.without(folds[measured.rows["context"].to_numpy(int)] == fold)
            prior = Prior.fit(process.curves.full_size(other))
            blind = Process(other, process.curves, prior, process.kernels, FEW_ROWS)
            for row, one in asked.iterrows():
                k = int(one["context"])
                ask = Asked(one["parts"], one["dose"], float(one["time"]), process.place(k))
                control, truth = measured.controls[k], measured.effect[int(row), :-1]
                if not truth.any():
                    continue
                closed = np.maximum(blind.posterior(ask)[0][:-1], -control)
                folded = fold_change(other, _alike(other, ask.parts, ask.dose, ask.time), control, widths=WIDTHS)
                both = np.stack([np.broadcast_to(closed, folded.shape), folded], axis=1) / np.linalg.norm(truth)
                products += both @ both.transpose(0, 2, 1)
                told += both @ (truth / np.linalg.norm(truth))
        shares = np.array([_shares(*pair) for pair in zip(products, told, strict=True)])
        losses = np.einsum("wi,wij,wj->w", shares, products, shares) - 2 * (shares * told).sum(axis=1)
        best = int(losses.argmin())
        adds, multiplies = shares[best]
        return cls(round(float(multiplies), 3), WIDTHS[best], round(float(max(1 - adds - multiplies, 0)), 3))

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
        """Return the effect with the other estimates in it, where it was measured, but not in this context.

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
        if not self.weight + self.none or effect.kind != "context":
            return effect
        parts, doses = canonical(perturbation, dose)
        measured, control = effects.process.measured, np.asarray(control_mean, dtype=float)
        rows = _alike(measured, parts, doses, np.nan if time is None else float(time))
        if not len(rows):
            return effect
        fold = fold_change(measured, rows, control, widths=(self.width,))[0]
        mean = (1 - self.weight - self.none) * effect.mean + self.weight * fold
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


def _left_out(measured: Measured, folds: np.ndarray) -> pd.DataFrame:
    """Rows of effects, with their ``fold``, that two contexts outside it tell about; of many, as many of each context.

    ``folds``: the fold of each context, shape (n_contexts,).
    """
    table = measured.rows.assign(fold=folds[measured.rows["context"].to_numpy(int)])
    turns = table.assign(turn=table.groupby("context").cumcount()).sort_values(["turn", "context"])
    told = []
    for row, one in turns.iterrows():
        alike = table.iloc[_alike(measured, one["parts"], one["dose"], one["time"])]
        told += [row] if alike.loc[alike["fold"] != one["fold"], "context"].nunique() > 1 else []
        if len(told) == MAX_ASKED:
            break
    return table.loc[told]


def _shares(products: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Weights x >= 0, at most 1 in all, of two predictors with the least x'(products)x - 2 x'(told), shape (2,)."""
    if not np.trace(products) > 0:  # neither says anything
        return np.zeros(2)
    root = np.linalg.cholesky(products + 1e-9 * np.trace(products) * np.eye(2)).T
    firm = 1e3 * np.linalg.norm(root)  # the third is what is left to no change: together they are 1
    lines = np.vstack([np.column_stack([root, np.zeros(2)]), np.full(3, firm)])
    return nnls(lines, np.append(np.linalg.solve(root.T, told), firm))[0][:2]


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances of rows, shape (len(a), len(b))."""
    return (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
