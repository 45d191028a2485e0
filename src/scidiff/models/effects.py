"""The mean effect of a perturbation in a condition where it was not measured, in closed form and with its uncertainty.

    effect = posterior mean of one Gaussian process over conditions      (effect_process: contexts, doses, times, sums)
           + sum of w_p x effect of p, for parts never measured          (effect_ridge: what their features say)

Groups of cells (effect_groups) become measured effects (effect_measured), these the process. Nothing here is iterated:
an effect is a weighted sum of measured differences, and the answer says which kind of gap the weights had to bridge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy.special import ndtr

from scidiff.errors import InputError, closest
from scidiff.models import effect_measured, effect_prior
from scidiff.models.effect_curves import Curves
from scidiff.models.effect_groups import GroupStats
from scidiff.models.effect_measured import Measured, canonical, joined
from scidiff.models.effect_prior import FEW_CONTEXT_SHARE, FEW_CONTEXTS, Prior
from scidiff.models.effect_process import Asked, Kernel, Place, Process
from scidiff.models.effect_ridge import FeatureRidge


@dataclass(frozen=True, eq=False)
class Effect:
    """A predicted effect.

    Parameters
    ----------
    mean, variance
        Difference to control in mean log1p counts per 10k, and posterior variance of the true one, shape (n_genes,)
        for all genes or for those that were asked for.
    log_depth_ratio
        Log of the ratio of molecules per cell, perturbed to control.
    kind
        What had to be bridged, the hardest first: features, combination, context, dose, time; else seen.
    notes
        What the user should know, one sentence each.
    """

    mean: np.ndarray
    variance: np.ndarray
    log_depth_ratio: float
    kind: str
    notes: list[str] = field(default_factory=list)

    def as_observed(self, sampling: np.ndarray) -> np.ndarray:
        """Return the effect as large as it will look: the expected absolute difference, with the more probable sign.

        The mean is nearest to the truth, and smaller than what is measured: noise enlarges. Where predictions are to
        find measured effects among others by distance, they must be of their size, and so are these; an ensemble of
        estimates with the spread of what it estimates is no ensemble of posterior means (Louis 1984).

        Parameters
        ----------
        sampling
            Variance of the difference of means that comes from the number of cells, shape (n_genes,).
        """
        spread = np.sqrt(np.maximum(self.variance + sampling, 1e-12))
        z = np.abs(self.mean) / spread
        folded = np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + z * (2 * ndtr(z) - 1)  # mean of |N(z, 1)|
        return np.sign(self.mean) * spread * folded


@dataclass(frozen=True, eq=False)
class EffectModel:
    """Predicts effects.

    Parameters
    ----------
    process
        Measured effects and what they say about other conditions.
    ridge
        What features say about parts never measured; None without features.
    """

    process: Process
    ridge: FeatureRidge | None = None

    @classmethod
    def fit(cls, stats: GroupStats, *, features: pd.DataFrame | None = None) -> EffectModel:
        """Return the model of training groups.

        Parameters
        ----------
        features
            What is known of perturbations, measured or not: index = names of parts, columns of numbers.

        Raises
        ------
        InputError
            There are no control cells, no perturbed cells of their contexts, or the features cannot be used.
        """
        process = Process.fit(Measured.of(stats))
        if features is None:
            return cls(process)
        parts = process.measured.parts
        asked = (Asked((part,), (np.nan,), np.nan, process.place()) for part in parts)
        effects = np.array([process.full.posterior(ask)[0][:-1] for ask in asked])
        return cls(process, FeatureRidge.fit(features, parts, effects))

    def predict(
        self,
        context: Mapping[str, object],
        perturbation: Sequence[str],
        *,
        control_mean: np.ndarray | None = None,
        dose: float | Sequence[float] | None = None,
        time: float | None = None,
        genes: np.ndarray | None = None,
    ) -> Effect:
        """Return the effect of a perturbation in a context, measured or not.

        Parameters
        ----------
        context
            Attribute -> value. Attributes left out are averaged over the training contexts that match the others.
        perturbation
            Its parts, in any order; () is the control.
        control_mean
            Mean log1p counts per 10k of control cells of this context, shape (n_genes,). A context without control
            cells in training finds its place by it.
        dose, time
            One dose for all parts, or one each. Not given: as measured, on average.
        genes
            Positions of the genes that are asked for: a few take a small part of the time of all, the default.

        Raises
        ------
        InputError
            No part was ever measured and there are no features of it, a dose or time is negative, an attribute is
            unknown, or ``control_mean`` has other genes.
        """
        measured = self.process.measured
        n_genes = measured.controls.shape[1]
        if control_mean is not None and np.shape(control_mean) != (n_genes,):
            raise InputError(f"control_mean has shape {np.shape(control_mean)}; the model has {n_genes} genes")
        if time is not None and not time >= 0:
            raise InputError(f"time {time} is negative; give a time from 0")
        parts, doses = canonical(perturbation, dose)
        if not parts:
            note = ["dose 0 is exactly no effect"] if len(perturbation) else []
            nothing = np.zeros(n_genes if genes is None else len(genes))
            return Effect(nothing, nothing, 0.0, "dose" if note else "seen", note)

        together = joined(parts, doses, measured.parts)
        if set(together[0]) <= set(measured.parts):
            parts, doses = together
        control = None if control_mean is None else np.asarray(control_mean, dtype=float)
        place, notes = self._place(context, control)
        ask = Asked(parts, doses, np.nan if time is None else float(time), place)
        told, untold = self._told(ask)
        here = np.arange(n_genes) if genes is None else np.asarray(genes)
        with_depth = np.append(here, n_genes)
        mean, variance = self.process.posterior(_only(ask, lambda part: part not in told), genes=with_depth)
        for part in told:
            more, unknown = self._from_features(part, doses[parts.index(part)], ask)
            mean, variance = mean + more[with_depth], variance + unknown[with_depth]
        effect, ratio = mean[:-1], float(mean[-1])
        few = place.new and len(measured.contexts) < FEW_CONTEXTS
        if few and control is not None:
            base = np.average(measured.controls[:, here], axis=0, weights=measured.controls_n)
            effect = _rescaled(effect, base, control[here])
        if control is not None:
            effect = np.maximum(effect, -control[here])  # expression cannot fall below zero
        notes += self._notes(ask, told, untold, few)
        return Effect(effect, variance[:-1], ratio, "features" if told else self._kind(ask), notes)

    # ---- what was asked ----------------------------------------------------------------------------------------------

    def _told(self, ask: Asked) -> tuple[list[str], list[str]]:
        """Parts never measured: those that features tell about, and those that nothing does."""
        known = self.process.measured.parts
        new = [part for part in ask.parts if part not in known]
        features = [] if self.ridge is None else self.ridge.features.index
        told = [part for part in new if part in features]
        untold = [part for part in new if part not in told]
        if len(untold) == len(ask.parts):
            what = f"perturbation {untold[0]!r} was never measured"
            if self.ridge is None:
                remedy = "train with features=, one row per perturbation and one for this"
                raise InputError(f"{what}{closest(untold[0], known)}; {remedy}")
            raise InputError(f"{what} and has no row in features{closest(untold[0], features)}")
        return told, untold

    def _from_features(self, part: str, dose: float, ask: Asked) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the effect of a part never measured: a weighted sum of measured ones."""
        assert self.ridge is not None
        weights, unknown = self.ridge.weights(part)
        donors, time = self.ridge.parts, np.array([ask.time])
        sizes = np.array([self.process.curves.sizes([(one,)], [(dose,)], time, [one])[0, 0] for one in donors])
        asked = (Asked((one,), (np.nan,), np.nan, ask.place) for one in donors)
        effects = np.array([self.process.full.posterior(each)[0] for each in asked])
        typical = np.average(sizes, weights=np.abs(weights) + 1e-12)
        return (weights * sizes) @ effects, np.append(typical**2 * unknown, 0.0)

    def _place(self, context: Mapping[str, object], control: np.ndarray | None) -> tuple[Place, list[str]]:
        """Where a context lies among those of training, and what is to be said of it."""
        contexts, n_cells = self.process.measured.contexts, self.process.measured.controls_n
        for name in context:
            if name not in contexts.columns:
                raise InputError(f"contexts have no attribute {name!r}{closest(name, contexts.columns)}")
        match = np.ones(len(contexts), dtype=bool)
        for name, value in context.items():
            match &= (contexts[name] == value).to_numpy(dtype=bool)
        if match.sum() == 1 or (match.any() and control is None):
            note = [f"average over {match.sum()} training contexts"] if match.sum() > 1 else []
            return Place(np.append(match * n_cells, 0.0) / n_cells[match].sum()), note
        note = [] if control is not None else [f"nothing is known of context {dict(context)}: give its control cells"]
        return Place(np.append(np.zeros(len(contexts)), 1.0), control, dict(context)), note

    def _kind(self, ask: Asked) -> str:
        rows = self.process.measured.rows
        rows = rows[[parts == ask.parts for parts in rows["parts"]]]
        if not len(rows):
            return "combination"
        rows = rows[ask.place.weights[rows["context"].to_numpy(int)] > 0]
        if not len(rows):
            return "context"
        if not np.isnan(ask.dose).any():
            rows = rows[[np.array_equal(dose, ask.dose) or np.isnan(dose).all() for dose in rows["dose"]]]
            if not len(rows):
                return "dose"
        times = rows["time"].dropna()
        return "time" if len(times) and not np.isnan(ask.time) and not np.isclose(times, ask.time).any() else "seen"

    def _notes(self, ask: Asked, told: list[str], untold: list[str], few: bool) -> list[str]:
        measured, curves, notes = self.process.measured, self.process.curves, []
        if few:
            notes.append(
                f"{len(measured.contexts)} training contexts cannot say how contexts differ: {FEW_CONTEXT_SHARE:.0%} of"
                " the variance between perturbations is assumed, and half of the effect scales with control expression"
            )
        if told and self.ridge is not None and self.ridge.gain == 0:
            notes.append(f"features say nothing beyond the mean of the measured perturbations: this stands for {told}")
        notes += [f"{part!r} was never measured: the average perturbation stands for it" for part in untold]
        alone = {parts[0] for parts in measured.rows["parts"] if len(parts) == 1}
        for part, dose in zip(ask.parts, ask.dose, strict=True):
            seen = measured.doses(part)
            if part in measured.parts and part not in alone:
                notes.append(f"{part!r} was measured in combinations only")
            if len(seen) and not np.isnan(dose) and not seen.min() <= dose <= seen.max():
                known = "" if part in curves.dose else "; a single dose has no curve, so its effect is taken"
                notes.append(f"extrapolation: {part!r} was measured at {seen.min():g} to {seen.max():g}{known}")
        times = measured.rows["time"].dropna()
        if len(times) and not np.isnan(ask.time) and not times.min() <= ask.time <= times.max():
            notes.append(f"extrapolation: times {times.min():g} to {times.max():g} were measured")
        return notes

    # ---- files -------------------------------------------------------------------------------------------------------

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict]:
        """Return named arrays, as safetensors stores them, and JSON values; :meth:`from_arrays` reads both."""
        process, measured = self.process, self.process.measured
        arrays = {name: getattr(measured, name) for name in effect_measured.ARRAYS}
        arrays |= {name: getattr(process.prior, name) for name in effect_prior.ARRAYS}
        about = {
            "measured": measured.to_dict(),
            "curves": process.curves.to_dict(),
            "prior_parts": process.prior.parts,
            "kernels": [[*kernel, weight] for kernel, weight in process.kernels.items()],
            "ridge": None,
        }
        if self.ridge is not None:
            more, about["ridge"] = self.ridge.to_arrays()
            arrays |= more
        return arrays, about

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], about: Mapping) -> EffectModel:
        """Return the model that :meth:`to_arrays` wrote."""
        measured = Measured.from_dict({name: arrays[name] for name in effect_measured.ARRAYS}, about["measured"])
        prior = Prior(**{name: arrays[name] for name in effect_prior.ARRAYS}, parts=about["prior_parts"])
        kernels = {Kernel(*kernel): weight for *kernel, weight in about["kernels"]}
        process = Process(measured, Curves.from_dict(about["curves"]), prior, kernels)
        return cls(process, None if about["ridge"] is None else FeatureRidge.from_arrays(arrays, about["ridge"]))


def _only(ask: Asked, keep: Callable[[str], bool]) -> Asked:
    kept = [(part, dose) for part, dose in zip(ask.parts, ask.dose, strict=True) if keep(part)]
    return replace(ask, parts=tuple(part for part, _ in kept), dose=tuple(dose for _, dose in kept))


def _rescaled(effect: np.ndarray, base: np.ndarray, control: np.ndarray) -> np.ndarray:
    """The mean of an effect and of the same fold change of CP10k, carried from control ``base`` to ``control``."""
    fold = np.clip((np.expm1(np.maximum(base + effect, 0)) + 0.1) / (np.expm1(base) + 0.1), 0.02, 50)
    scaled = np.log1p(np.maximum((np.expm1(control) + 0.1) * fold - 0.1, 0)) - control
    return (effect + scaled) / 2
