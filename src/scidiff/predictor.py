"""What a model holds to predict perturbed cells: effects in closed form, how sure they are, some control cells.

    low, high = effect -+ 1.645 sqrt(w^2 v + s^2),   v posterior variance of the true effect, s^2 that of the cells' mean

``w`` widens what the closed form believes of itself to what it earns: every measured condition is predicted without
its own cells, and w is where 90 % of the genes' standardised errors lie, over the 90 % point of a normal. One w for
each kind of gap (a new context, a new combination, ...): cross-conformal calibration (Vovk 2015) over conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.data.scaling import log1p_cp10k
from scidiff.data.schema import Schema
from scidiff.errors import InputError
from scidiff.models.effect_groups import GroupStats
from scidiff.models.effects import Effect, EffectModel

#: control cells kept for each context, so that a single cell can be predicted among its like
REFERENCE_CELLS = 200
#: conditions that are predicted without their own cells to calibrate intervals
CONDITIONS_TO_CALIBRATE = 40
#: measured perturbations with features from which on features can say something of others
MIN_DESCRIBED = 3
NORMAL_90 = 1.6448536


@dataclass(frozen=True, eq=False)
class Predictor:
    """Predicts mean effects of perturbations, with intervals.

    Parameters
    ----------
    effects
        The closed form.
    widen
        Factor on the posterior standard deviation for each kind of prediction.
    reference
        Counts (or log expression) of some control cells, csr, shape (n_reference, n_genes).
    reference_contexts
        Their contexts, one row each.
    """

    effects: EffectModel
    widen: dict[str, float]
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
        except InputError as error:
            if "no perturbed" not in str(error):
                raise
            return None
        control = np.flatnonzero(schema.is_control(table))
        contexts = table.iloc[control][list(schema.context)].reset_index(drop=True)
        key = contexts.astype(str).agg("|".join, axis=1) if contexts.shape[1] else pd.Series("", index=contexts.index)
        order = np.random.default_rng(seed).permutation(len(control))
        rank = key.iloc[order].groupby(key.iloc[order]).cumcount().sort_index().to_numpy()
        kept = np.flatnonzero(rank < REFERENCE_CELLS)
        return cls(
            effects=effects,
            widen=calibrated(effects),
            reference=sparse.csr_matrix(x[control[kept]]),
            reference_contexts=contexts.iloc[kept].reset_index(drop=True),
        )

    def interval(self, effect: Effect, sampling: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the 90 % interval of an effect as it would be observed, shape (n_genes,) each.

        ``sampling``: variance of the difference of means that comes from the number of cells, shape (n_genes,).
        """
        widest = max(self.widen.values(), default=1.0)
        half = NORMAL_90 * np.sqrt(self.widen.get(effect.kind, widest) ** 2 * effect.variance + sampling)
        return effect.mean - half, effect.mean + half

    def ood(self, effect: Effect) -> float:
        """Return how little is known of an effect, 0 to 1; .5: as uncertain as effects are large."""
        measured = self.effects.process.measured
        reference = measured.rows["reference"].to_numpy(int)
        signal = (measured.effect**2 - measured.noise - measured.reference_noise[reference])[:, :-1].mean()
        unknown = float(effect.variance.mean())
        return unknown / (unknown + max(float(signal), 1e-12)) if unknown > 0 else 0.0

    def like(self, context: Mapping[str, Any]) -> sparse.csr_matrix:
        """Return the reference cells of a context; none if it is new."""
        match = np.ones(len(self.reference_contexts), dtype=bool)
        for name, value in context.items():
            match &= (self.reference_contexts[name] == value).to_numpy()
        return self.reference[match]

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return named arrays and JSON values."""
        arrays, about = self.effects.to_arrays()
        for name in ("data", "indices", "indptr"):
            arrays[f"reference_{name}"] = getattr(self.reference, name)
        contexts = self.reference_contexts.astype(object).where(self.reference_contexts.notna(), None)
        more = {"contexts": contexts.to_dict("list"), "n": len(contexts), "widen": self.widen}
        return arrays, {"effects": about, "reference": more}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], *, n_genes: int) -> Predictor:
        """Return the predictor that :meth:`to_arrays` wrote."""
        parts = tuple(arrays[f"reference_{name}"] for name in ("data", "indices", "indptr"))
        kept = about["reference"]
        return cls(
            effects=EffectModel.from_arrays(arrays, about["effects"]),
            widen=dict(kept["widen"]),
            reference=sparse.csr_matrix(parts, shape=(kept["n"], n_genes)),
            reference_contexts=pd.DataFrame(kept["contexts"], index=range(kept["n"]), dtype=object),
        )


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


def calibrated(effects: EffectModel) -> dict[str, float]:
    """Return the factor on posterior standard deviations for each kind of prediction; see the module head."""
    process = effects.process
    measured = process.measured
    rows = np.arange(len(measured.rows))
    if len(rows) > CONDITIONS_TO_CALIBRATE:
        rows = np.sort(np.random.default_rng(0).choice(rows, CONDITIONS_TO_CALIBRATE, replace=False))
    errors: dict[str, list[np.ndarray]] = {}
    for row in rows:
        asked = measured.rows.iloc[row]
        same = np.array([parts == asked["parts"] for parts in measured.rows["parts"]])
        drop = same & (measured.rows["context"] == asked["context"]).to_numpy()
        if drop.all():
            continue
        without = replace(effects, process=replace(process, measured=measured.without(drop)), ridge=None)
        context = measured.contexts.iloc[int(asked["context"])].to_dict()
        try:
            guess = without.predict(context, asked["parts"], dose=_known(asked["dose"]), time=_known(asked["time"]))
        except InputError:  # a perturbation that nothing else tells about
            continue
        noise = measured.noise[row] + measured.reference_noise[int(asked["reference"])]
        seen = measured.controls[int(asked["context"])] > 0.01
        z = (measured.effect[row] - np.append(guess.mean, 0))[:-1] / np.sqrt(guess.variance + noise[:-1] + 1e-12)
        errors.setdefault(guess.kind, []).append(np.quantile(np.abs(z[seen]), 0.9))
    return {kind: float(np.clip(np.mean(q) / NORMAL_90, 0.5, 3)) for kind, q in errors.items()}


def _known(value: Any) -> Any:
    return None if np.isnan(np.asarray(value, dtype=float)).any() else value
