"""Predict: control cells as they would be under a perturbation, one for one.

The closed form, with other estimates where they were right before (models.effect_stacking) and a share of what the
effect network says, gives how much of every gene the cells of a context receive, the network which of them receive it
(tasks.dealing).
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scidiff.data.cells import Cells, read_cells
from scidiff.data.scaling import log1p_cp10k, row_sums
from scidiff.errors import DataWarning, InputError, whole_numbers
from scidiff.model import TrainedModel
from scidiff.models.gaussian import GaussianNoise
from scidiff.predictor import context_keys
from scidiff.sampling.generate import CHUNK, generate
from scidiff.sampling.solvers import dpmpp_2m, invert
from scidiff.tasks.dealing import counts_under
from scidiff.tasks.requests import gene_table, obs_column

if TYPE_CHECKING:
    from anndata import AnnData

    from scidiff.models.effects import Effect

#: share of the effect network in the effect, chosen by hand, and how many times its effect is enlarged at most
NETWORK_SHARE, ENLARGED = 0.15, 2.0
#: cells it generates, in steps, to say so
NETWORK_CELLS, NETWORK_STEPS = 200, 6
#: out-of-distribution score from which on a prediction is warned of
UNKNOWN = 0.5


def predict(
    model: TrainedModel,
    adata: AnnData,
    condition: Mapping[str, Any] | pd.DataFrame,
    *,
    network: bool = True,
    layer: str | None = None,
    seed: int = 0,
    on_cells: Callable[[int, int], None] | None = None,
) -> AnnData:
    """Return predicted cells; see :meth:`scidiff.ScIDiff.predict`."""
    from anndata import concat

    whole_numbers(seed=(seed, 0))
    asked = perturbations(model, condition)
    cells = read_cells(adata, genes=model.genes, layer=layer)
    table = model.conditions_of(adata)
    control = np.ones(adata.n_obs, dtype=bool)
    if model.schema.columns["perturbation"] in adata.obs:
        control = model.schema.is_control(table)
    if not control.any():
        raise InputError(f"none of the {adata.n_obs} cells is a control ({model.schema.control}): none to start from")
    model.refuse_cells(cells.scale, adata.obs_names[control & (row_sums(abs(cells.x)) == 0)])
    sources = np.flatnonzero(control)
    kinds, kind = np.unique(context_keys(table.iloc[sources], model.schema.context), return_inverse=True)
    groups = [sources[kind == k] for k in range(len(kinds))]
    order = np.argsort(np.concatenate(groups))
    parts: list[AnnData] = []
    effects: list[pd.DataFrame] = []
    done = 0
    for _, row in asked.iterrows():
        made = []
        for key, rows in zip(kinds, groups, strict=True):
            # every condition meets the same noise: what differs between two predictions of a cell is their effects
            own = seed_of(seed, key)
            part, effect = _predict_group(model, adata, cells, table, rows, row, network=network, seed=own)
            made.append(part)
            effects.append(effect)
            done += len(rows)
            if on_cells is not None:
                on_cells(done, len(asked) * len(sources))
        whole = concat(made, merge="same")[order].copy()
        whole.obs_names = [f"{name}-{len(parts)}" if parts else name for name in whole.obs_names]
        parts.append(whole)
    made = concat(parts, merge="same")
    made.obs_names_make_unique(".")  # cells may have been called a and a-1
    made.var = gene_table(adata, model.genes)
    for name in ("dose", "time"):
        if (column := model.schema.columns.get(name)) in made.obs:
            made.obs[column] = obs_column(made.obs[column].astype(object))
    made.uns["scidiff"] = model.provenance(
        "predict",
        {"X": "log1p(CP10k)" if model.counted else "training scale"}
        | ({"counts": "counts"} if model.standardizer is None else {}),
        condition=asked.to_json(orient="records"),
        network=network,
        dealing=model.settings["dealing"],
        seed=seed,
        effects=pd.concat(effects, ignore_index=True),
    )
    return made


def _predict_group(
    model: TrainedModel,
    adata: AnnData,
    cells: Cells,
    table: pd.DataFrame,
    rows: np.ndarray,
    asked: pd.Series,
    *,
    network: bool,
    seed: int,
) -> tuple[AnnData, pd.DataFrame]:
    """Predict the control cells ``rows``, all of one context, under one condition."""
    from anndata import AnnData

    assert model.predictor is not None
    counted = model.counted
    source = cells.x[rows]
    logged = log1p_cp10k(source) if counted else source
    own = table[list(model.schema.context)].iloc[rows[0]].dropna()
    control, spread = _moments(logged)
    effect = effect_on(model, asked, own, control)
    told = (
        ["measured in training: this is its estimate, no test of prediction"]
        if effect.kind == "seen" and model.schema.parts(asked["perturbation"])
        else []
    )
    warn_of(model, effect, asked, own, *told)
    # a dose that is not said is not known; a time that is not said is that of the cells
    treatment = [name for name in ("perturbation", "dose") if name in asked]
    treatment += ["time"] if pd.notna(asked.get("time")) else []
    after = table.iloc[rows].assign(**{name: asked[name] for name in treatment})
    obs = adata.obs.iloc[rows].assign(**{model.schema.columns[name]: asked[name] for name in treatment})
    obs["ood_score"] = model.predictor.ood(effect)
    if network and model.effect_network is not None and effect.kind == "context":
        seen = generated_effect(model, table.iloc[rows], after, depth=row_sums(source), seed=seed)
        if seen is not None:
            blend = (1 - NETWORK_SHARE) * effect.mean + NETWORK_SHARE * sized(seen, effect.mean)
            effect = replace(effect, mean=np.maximum(blend, -control))
    var = pd.DataFrame(index=pd.Index(model.genes))
    if model.standardizer is None:
        ratio = model.predictor.depth_ratio(effect)
        counts = counts_under(
            model, source, table.iloc[rows], after, effect.mean, depth_ratio=ratio, network=network, seed=seed
        )
        made = AnnData(log1p_cp10k(counts), obs=obs, var=var, layers={"counts": counts})
    else:
        target = np.maximum(control + effect.mean, 0)
        values = _counterfactual_expression(model, logged, table.iloc[rows], after, target, network=network)
        made = AnnData(values, obs=obs, var=var)
    sampling = (spread + _moments(made.X)[1]) / max(len(rows), 2)
    low, high = model.predictor.interval(effect, sampling)
    condition = " ".join(f"{name}={value}" for name, value in {**own, **asked.dropna()}.items())
    columns = {"condition": condition, "gene": model.genes, "effect": effect.mean, "low": low, "high": high}
    return made, pd.DataFrame(
        columns | {"as_observed": model.predictor.calibrated(effect).as_observed(sampling), "n": len(rows)}
    )


def perturbations(model: TrainedModel, condition: Mapping[str, Any] | pd.DataFrame) -> pd.DataFrame:
    """Return canonical conditions, a row for each; refuse what no control cell can be changed to."""
    if model.predictor is None:
        raise InputError("this model knows no perturbation with control cells; train with perturbation= and control=")
    asked = model.schema.conditions(condition)
    own = [name for name in (*model.schema.context, "batch", *model.schema.modules) if name in asked]
    if fixed := [name for name in own if asked[name].notna().any()]:
        raise InputError(f"{fixed[0]} belongs to the cells and is not changed; choose cells of the one you mean")
    if not len(asked) or asked["perturbation"].isna().any():
        raise InputError("name the perturbation to predict, as in {'perturbation': 'A'}")
    return asked


def effect_on(model: TrainedModel, asked: pd.Series, own: pd.Series, control: np.ndarray) -> Effect:
    """Return the closed form's effect of a condition on cells of a context, in mean log1p(CP10k).

    Parameters
    ----------
    asked
        One of :func:`perturbations`.
    own
        The context, as far as it is known.
    control
        Mean log1p(CP10k) of its control cells, shape (n_genes,).
    """
    assert model.predictor is not None
    effects, parts = model.predictor.effects, model.schema.parts(asked["perturbation"])
    at: dict[str, Any] = {
        "dose": model.schema.dose_parts(asked["dose"]) if pd.notna(asked.get("dose")) else None,
        "time": float(asked["time"]) if pd.notna(asked.get("time")) else None,
    }
    effect = effects.predict(own.to_dict(), parts, control_mean=control, **at)
    if not model.counted:  # fold changes are of counts
        return effect
    return model.predictor.stacking.revised(effect, effects, parts, control, **at)


def warn_of(model: TrainedModel, effect: Effect, asked: pd.Series, own: pd.Series, *more: str) -> None:
    """Warn of what makes an effect doubtful."""
    assert model.predictor is not None
    unknown = model.predictor.ood(effect) > UNKNOWN
    where = ", ".join(f"{name}={value}" for name, value in own.items()) or "these cells"
    for note in (*effect.notes, *more, *["nearly nothing is known of this effect: do not trust it"] * unknown):
        warnings.warn(f"{asked['perturbation']} in {where}: {note}", DataWarning, stacklevel=5)


def seed_of(seed: int, context: str) -> int:
    """Return the seed of a context, by its name: its cells are the same alone as among those of other contexts."""
    return int(np.random.SeedSequence([seed, zlib.crc32(context.encode())]).generate_state(1)[0])


def generated_effect(
    model: TrainedModel, before: pd.DataFrame, after: pd.DataFrame, *, depth: np.ndarray, seed: int
) -> np.ndarray | None:
    """Return what the effect network says of an effect: the difference of two generations, in which what it gets
    wrong in both cancels; in mean log1p(CP10k), shape (n_genes,). None for a context that it does not know.

    Parameters
    ----------
    before, after
        Canonical conditions of cells of one context: controls, and what they are changed to.
    depth
        Molecules of the cells, shape (n_cells,).
    """
    network, known = model.effect_network, model.vocabulary.known
    own = after[list(model.schema.context)].iloc[0]
    if network is None or not all(known[name].eq(value).any() for name, value in own.items()):
        return None
    rows = np.resize(np.arange(len(depth)), NETWORK_CELLS)
    means = []
    for table in (before, after):
        cells: list[torch.Tensor] = []
        generate(
            network,
            model.encoded(table.iloc[rows], depth=depth[rows]),
            n_steps=NETWORK_STEPS,
            generator=torch.Generator(network.device).manual_seed(seed),
            on_cells=cells.append,
        )
        means.append(log1p_cp10k(torch.cat(cells).numpy()).mean(axis=0, dtype=float))
    return means[1] - means[0]


def sized(seen: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return an effect enlarged, or made smaller, until its part along another one is as large as that.

    A network that never saw the context says too little of every effect: which genes move is its to say, how far they
    do is the closed form's. At most ``ENLARGED`` times; what points elsewhere altogether is not enlarged.

    Parameters
    ----------
    seen, like
        Effects on the same genes, shape (n_genes,).
    """
    along = float(seen @ like)
    return seen * min(float(like @ like) / along, ENLARGED) if along > 0 else seen


def _counterfactual_expression(
    model: TrainedModel, logged: Any, before: pd.DataFrame, after: pd.DataFrame, target: np.ndarray, *, network: bool
) -> np.ndarray:
    """Return expression of the cells under the new condition: inverted, solved again, moved to the target mean."""
    assert model.standardizer is not None
    dense = logged.toarray() if sparse.issparse(logged) else np.asarray(logged, dtype=np.float32)
    if network:
        conds = [model.encoded(table) for table in (before, after)]
        assert isinstance(model.denoiser.process, GaussianNoise)
        levels = model.denoiser.process.levels(20)
        moved = []
        for start in range(0, len(dense), CHUNK):
            x = torch.from_numpy(model.standardizer.transform(dense[start : start + CHUNK])).to(model.denoiser.device)
            then, now = (cond[start : start + CHUNK].to(model.denoiser.device) for cond in conds)
            noise = invert(model.denoiser, x, levels.flip(0), then)
            moved.append(dpmpp_2m(model.denoiser, noise, levels, now).float().cpu().numpy())
        dense = model.standardizer.inverse(np.concatenate(moved))
    return _moved_to(dense, target).astype(np.float32)


def _moved_to(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return ``x`` shifted gene by gene so that its mean is the target after what is below 0 was cut."""
    shift = target - x.mean(axis=0)
    for _ in range(20):  # cutting raises means; Newton's method, exact once it is clear which cells are cut
        cut = np.maximum(x + shift, 0)
        shift -= (cut.mean(axis=0) - target) / np.maximum((cut > 0).mean(axis=0), 1 / len(x))
    return np.maximum(x + shift, 0)


def _moments(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance over cells, shape (n_genes,) each."""
    x = sparse.csr_matrix(x)
    mean = np.asarray(x.mean(axis=0)).ravel()
    return mean, np.maximum(np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2, 0)
