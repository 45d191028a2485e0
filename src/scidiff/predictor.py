"""What a model holds to predict perturbed cells: effects in closed form, how sure they are, some control cells.

    low, high = effect -+ 1.645 sqrt(w^2 v + s^2)     v: posterior variance of the true effect, s^2: of the cells' mean

``w`` widens what the closed form believes of itself to what it earns: measured conditions are predicted without their
own cells, and w is what lets the intervals hold 90 % of the effects that were measured. One w for each kind of gap (a
new context, combination, dose or time): cross-conformal calibration (Vovk 2015) over conditions. The same conditions
say which share of the foretold change of molecules per cell comes true; few of them say little against all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.data.scaling import log1p_cp10k
from scidiff.data.schema import Schema
from scidiff.errors import InputError
from scidiff.models.effect_groups import GroupStats
from scidiff.models.effect_measured import NothingMeasured
from scidiff.models.effect_stacking import Stacking
from scidiff.models.effects import Effect, EffectModel

#: control cells kept for each context, so that a single cell can be predicted among its like
REFERENCE_CELLS = 200
#: conditions that are predicted without their own cells to calibrate intervals
CONDITIONS_TO_CALIBRATE = 40
#: genes by which w is found in each of them, drawn at random: one number needs no more
GENES_TO_CALIBRATE = 300
#: measured perturbations with features from which on features can say something of others
MIN_DESCRIBED = 3
NORMAL_90 = 1.6448536
#: standard deviation of the share of a depth ratio that comes true, as believed before any condition was left out
DEPTH_SHARE_SD = 0.5
#: kinds of effects that were measured, or are given
SURE = ("seen", "told")
#: genes with less mean log1p(CP10k) in control cells say nothing of errors: their effects are 0
EXPRESSED = 0.01
#: least and largest w^2
WIDEN = (0.05, 25.0)


@dataclass(frozen=True, eq=False)
class Predictor:
    """Predicts mean effects of perturbations, with intervals.

    Parameters
    ----------
    effects
        The closed form.
    widen
        Factor on the posterior standard deviation for each kind of prediction.
    depth_share
        Share of the log depth ratio that comes true, 0 to 1, for each kind of prediction.
    stacking
        Weights of other estimates beside the closed form: fold changes, which only counts have, and no change.
    reference
        Counts (or log expression) of some control cells, csr, shape (n_reference, n_genes).
    reference_contexts
        Their contexts, one row each.
    """

    effects: EffectModel
    widen: dict[str, float]
    depth_share: dict[str, float]
    stacking: Stacking
    reference: sparse.csr_matrix
    reference_contexts: pd.DataFrame

    @classmethod
    def fit(
        cls,
        x: sparse.csr_matrix | np.ndarray,
        table: pd.DataFrame,
        schema: Schema,
        *,
        counts: bool,
        features: pd.DataFrame | None,
        seed: int,
    ) -> Predictor | None:
        """Return the predictor of training cells; None where there is no perturbation with control cells to learn from.

        Parameters
        ----------
        x
            Counts, or log expression, shape (n_cells, n_genes).
        table
            Canonical conditions of the cells.
        schema
            Roles.
        counts
            Whether ``x`` holds counts.
        features
            What is known of perturbations, rows named by them.
        seed
            Of the choice of reference cells.
        """
        if schema.perturbation is None or not schema.is_control(table).any():
            return None
        groups = conditions_of_groups(table, schema)
        told = groups["perturbation"].notna().to_numpy()
        measured = {part for parts in groups["perturbation"][told] for part in parts}
        if features is not None and len(measured & set(map(str, features.index))) < MIN_DESCRIBED:
            features = None  # too few examples of what features mean: perturbations never measured are refused
        chosen = x[told]
        depth = np.asarray(chosen.sum(axis=1, dtype=np.float64)).ravel() if counts else np.ones(told.sum())
        logged = log1p_cp10k(chosen) if counts else chosen
        try:
            stats = GroupStats.of(logged, groups[told].reset_index(drop=True), depth=depth)
            effects = EffectModel.fit(stats, features=features)
        except NothingMeasured:
            return None
        control = np.flatnonzero(schema.is_control(table))
        contexts = table.iloc[control][list(schema.context)].reset_index(drop=True)
        keys = pd.Series(context_keys(contexts, schema.context))
        shuffled = keys.sample(frac=1, random_state=np.random.default_rng(seed))
        rank = shuffled.groupby(shuffled).cumcount().sort_index().to_numpy()
        kept = np.flatnonzero(rank < REFERENCE_CELLS)
        widen, depth_share = calibrated(effects)
        return cls(
            effects=effects,
            widen=widen,
            depth_share=depth_share,
            stacking=Stacking.fit(effects) if counts else Stacking(),
            reference=sparse.csr_matrix(x[control[kept]]),
            reference_contexts=contexts.iloc[kept].reset_index(drop=True),
        )

    def interval(self, effect: Effect, sampling: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the 90 % interval of an effect as it would be observed, shape (n_genes,) each.

        ``sampling``: variance of the difference of means that comes from the number of cells, shape (n_genes,).
        """
        half = NORMAL_90 * np.sqrt(self.calibrated(effect).variance + sampling)
        return effect.mean - half, effect.mean + half

    def calibrated(self, effect: Effect) -> Effect:
        """Return the effect with the variance that leaving conditions out has shown it to have."""
        widest = max(self.widen.values(), default=1.0)
        return replace(effect, variance=self.widen.get(effect.kind, widest) ** 2 * effect.variance)

    def depth_ratio(self, effect: Effect) -> float:
        """Return molecules per cell, perturbed to control, as far as such changes come true."""
        least = min(self.depth_share.values(), default=1.0)  # of kinds that could not be tried
        share = 1.0 if effect.kind in SURE else self.depth_share.get(effect.kind, least)
        return float(np.exp(share * effect.log_depth_ratio))

    def ood(self, effect: Effect) -> float:
        """Return how little is known of an effect, 0 to 1; .5: as uncertain as effects are large."""
        measured = self.effects.process.measured
        reference = measured.rows["reference"].to_numpy(int)
        signal = (measured.effect**2 - measured.noise - measured.reference_noise[reference])[:, :-1].mean()
        unknown = float(effect.variance.mean())
        return unknown / (unknown + max(float(signal), 1e-12)) if unknown > 0 else 0.0

    def like(self, context: Mapping[str, Any]) -> sparse.csr_matrix:
        """Return the reference cells of a context, of which attributes may be missing; none if it is new."""
        match = np.ones(len(self.reference_contexts), dtype=bool)
        for name, value in context.items():
            match &= pd.isna(value) or (self.reference_contexts[name] == value).to_numpy()
        return self.reference[match]

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return named arrays and JSON values."""
        arrays, about = self.effects.to_arrays()
        for name in ("data", "indices", "indptr"):
            arrays[f"reference_{name}"] = getattr(self.reference, name)
        contexts = self.reference_contexts.astype(object).where(self.reference_contexts.notna(), None)
        more = {
            "contexts": contexts.to_dict("list"),
            "n": len(contexts),
            "widen": self.widen,
            "depth": self.depth_share,
        }
        return arrays, {"effects": about, "stacking": self.stacking.to_dict(), "reference": more}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], *, n_genes: int) -> Predictor:
        """Return the predictor that :meth:`to_arrays` wrote."""
        parts = tuple(arrays[f"reference_{name}"] for name in ("data", "indices", "indptr"))
        kept = about["reference"]
        return cls(
            effects=EffectModel.from_arrays(arrays, about["effects"]),
            widen=dict(kept["widen"]),
            depth_share=dict(kept["depth"]),
            stacking=Stacking(**about["stacking"]),
            reference=sparse.csr_matrix(parts, shape=(kept["n"], n_genes)),
            reference_contexts=pd.DataFrame(kept["contexts"], index=range(kept["n"]), dtype=object),
        )


def context_keys(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Return a name of the values in some columns of every row of a canonical table, shape (n_rows,)."""
    return table[list(columns)].astype(str).agg("|".join, axis=1).to_numpy() if columns else np.full(len(table), "")


def conditions_of_groups(table: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """Return canonical conditions as the effect model reads them: parts and doses as tuples, contexts, time."""
    distinct = table.drop_duplicates()
    parts = {value: schema.parts(value) if isinstance(value, str) else None for value in distinct["perturbation"]}
    out = table[list(schema.context)].reset_index(drop=True)
    out["perturbation"] = table["perturbation"].map(parts).to_numpy()
    if "dose" in table:
        doses = {value: schema.dose_parts(value) or None for value in distinct["dose"]}
        out["dose"] = pd.Series([doses.get(value) for value in table["dose"]], dtype=object)
        fits = [
            p is not None and d is not None and len(p) == len(d)
            for p, d in zip(out["perturbation"], out["dose"], strict=True)
        ]
        out["dose"] = out["dose"].where(fits, None)
    if "time" in table:
        out["time"] = pd.to_numeric(table["time"]).to_numpy()
    return out


def calibrated(effects: EffectModel) -> tuple[dict[str, float], dict[str, float]]:
    """Return for each kind of prediction the factor on standard deviations and the share of the log depth ratio."""
    process = effects.process
    measured = process.measured
    errors: dict[str, list[np.ndarray]] = {}
    depths: dict[str, list[tuple[float, float]]] = {}
    rng = np.random.default_rng(0)
    for row in rng.permutation(len(measured.rows))[:CONDITIONS_TO_CALIBRATE]:
        asked = measured.rows.iloc[row]
        context = measured.contexts.iloc[int(asked["context"])].to_dict()
        noise = measured.noise[row] + measured.reference_noise[int(asked["reference"])]
        seen = np.flatnonzero(measured.controls[int(asked["context"])] > EXPRESSED)
        seen = rng.permutation(seen)[:GENES_TO_CALIBRATE]
        for drop in _gaps(measured.rows, row):
            without = replace(effects, process=replace(process, measured=measured.without(drop)), ridge=None)
            try:
                guess = without.predict(
                    context, asked["parts"], dose=_known(asked["dose"]), time=_known(asked["time"]), genes=seen
                )
            except InputError:  # a perturbation that nothing else tells about
                continue
            error = measured.effect[row, seen] - guess.mean
            errors.setdefault(guess.kind, []).append(np.stack([error**2, guess.variance, noise[seen]]))
            depths.setdefault(guess.kind, []).append((guess.log_depth_ratio, measured.effect[row, -1]))
    kinds = [kind for kind in errors if kind != "seen"]
    widen = {kind: _widened(*np.concatenate(errors[kind], axis=1)) for kind in kinds}
    return widen, {kind: _share(*np.transpose(depths[kind])) for kind in kinds}


def _gaps(rows: pd.DataFrame, row: int) -> list[np.ndarray]:
    """Masks of the measured effects to leave out so that one of them is a new combination, context, dose or time."""
    asked = rows.iloc[row]
    drop = np.array([parts == asked["parts"] for parts in rows["parts"]])
    masks = [drop.copy()] if len(asked["parts"]) > 1 else []
    drop &= (rows["context"] == asked["context"]).to_numpy()
    masks.append(drop)
    dose = np.array([dose == asked["dose"] for dose in rows["dose"]])
    for same in (dose, (rows["time"] == asked["time"]).to_numpy()):
        if same[row] and not same[drop].all():  # not the same as itself: unknown
            masks.append(drop & same)
    return [mask for mask in masks if not mask.all()]


def _widened(squares: np.ndarray, variance: np.ndarray, noise: np.ndarray) -> float:
    """Return w at which 90 % of the squared errors lie within 1.645^2 (w^2 variance + noise), all shape (n,)."""
    beyond = (squares / NORMAL_90**2 - noise) / np.maximum(variance, 1e-12)  # the least w^2 that covers each error
    return float(np.sqrt(np.clip(np.quantile(beyond, 0.9), *WIDEN)))


def _share(guesses: np.ndarray, truths: np.ndarray) -> float:
    """Return b of truth = b guess, before N(1, DEPTH_SHARE_SD^2), between 0 and 1; both shape (n,)."""
    prior = ((truths - guesses) ** 2).mean() / DEPTH_SHARE_SD**2 + 1e-12
    return float(np.clip((guesses @ truths + prior) / (guesses @ guesses + prior), 0, 1))


def _known(value: Any) -> Any:
    return None if np.isnan(np.asarray(value, dtype=float)).any() else value
