"""Generated cells against real ones: one tidy table of scores, each beside its noise ceiling.

One idea: a score means little without the score that *real cells* would get. So every metric is computed twice, for the
generated cells and for other real cells put in their place (the ceiling), in equal numbers and equal shares of every
condition. Three sets of real cells that share none are needed:

    fit      the 50 principal components (fitted on cells that are then scored they hold those cells' own noise,
             and even real cells look false)
    scored   what generated cells and ceiling cells are compared with
    other    the ceiling cells

Generated cells: fit and scored are the halves of ``real``; other comes from ``reference``, the training cells.
Predicted cells (``source`` and ``control`` given): scored and other are the halves of ``real``; fit is ``reference``
less the source cells. Without a usable reference the real cells are split in three.

Effects of predicted cells use all cells: d_pred = mean(generated) - mean(source), d_true = mean(real) - mean(control).
Source and control must not share cells: shared noise rewards any method that keeps it. The ceiling of effects is one
half of the real and control cells against the other half.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scidiff.errors import DataWarning, InputError, expect
from scidiff.evaluation import metrics

if TYPE_CHECKING:
    from anndata import AnnData

    from scidiff.data.schema import Schema

MIN_CELLS = 400  # with fewer, sampling noise of the mean hides differences between methods
MAX_CELLS = 1000  # a side, for pairwise distances and the classifier: their cost grows with its square
MAX_FIT_CELLS = 5000  # for the components: more cells hardly change 50 of them
N_COMPONENTS = 50
N_HALVINGS = 5  # averaged for the ceiling of effects, which a single halving leaves noisy
N_DE = 100  # the most changed genes, by Welch's t of real against control cells

#: every metric in the order of tables, and where its best value lies
BETTER = {
    "pearson_delta": "up",
    "pearson_delta_systema": "up",
    "r2_delta": "up",
    "mse_delta": "0",
    "slope": "1",
    "r2_de100": "up",
    "de_overlap": "up",
    "direction_agreement": "up",
    "pds": "up",
    "corr_responding": "up",
    "r2_var": "up",
    "corr_r2_hvg": "up",
    "energy": "0",
    "mmd": "0",
    "knn_auc": ".5",
    "auc": ".5",
    "zero_gap": "0",
    "r2_mean": "up",
}


def evaluate(
    generated: AnnData,
    real: AnnData,
    *,
    source: AnnData | None = None,
    control: AnnData | None = None,
    schema: Schema | None = None,
    reference: AnnData | None = None,
    n_genes: int = 2000,
    seed: int = 0,
    shared_control: bool = False,
) -> pd.DataFrame:
    """Return the scores of ``generated`` against ``real``, one row per metric.

    Columns: ``metric``; ``value``; ``ceiling``, the same metric for real cells in the place of the generated ones;
    ``better``, where a good value lies ("up", "0", ".5", "1"); ``note``, in words. A value may pass its ceiling, which
    carries the sampling noise of two sets of real cells.

    Counts come from ``layers["counts"]``, else ``X``; an ``X`` without counts is taken as log1p(CP10k). Both sides are
    cut to the genes they share before counts are normalised.

    Parameters
    ----------
    generated
        Cells of a model, one draw per source cell: copies of a cell inflate every pairwise distance.
    real
        Cells of the same conditions that the model has not seen.
    source, control
        For predictions: the cells the prediction started from, and the control cells that the real ones are compared
        with; both or neither.
    schema
        Names the condition columns; sets of cells are then matched condition by condition.
    reference
        The training cells.
    n_genes
        Number of highly variable genes scored, chosen on ``reference`` if given.
    seed
        Makes the scores reproducible.
    shared_control
        Let ``source`` and ``control`` share cells, for comparison with papers that do.

    Raises
    ------
    InputError
        Source and control share cells, or there are too few cells or too few shared genes.

    Warns
    -----
    DataWarning
        Below 400 generated cells, where conditions cannot be matched, and where real cells are among the reference.
    """
    from scidiff.data.scaling import highly_variable_genes

    _check_arguments(generated, real, source, control, shared_control=shared_control)
    if generated.n_obs < MIN_CELLS:
        message = f"{generated.n_obs} generated cells: scores of means need at least {MIN_CELLS}; generate more"
        warnings.warn(message, DataWarning, stacklevel=2)
    if reference is not None and len(seen := real.obs_names.intersection(reference.obs_names)):
        message = (
            f"{len(seen)} real cells are among the reference cells (first: {seen[0]!r}): they are no held-out test"
        )
        warnings.warn(message, DataWarning, stacklevel=2)
    rng = np.random.default_rng(seed)
    given = {"generated": generated, "real": real, "source": source, "control": control, "reference": reference}
    given = {name: adata for name, adata in given.items() if adata is not None}
    genes = _shared_genes(given)
    labels = _labels(given, schema)
    sets = {name: Population(log_expression(adata, genes), labels[name]) for name, adata in given.items()}
    if source is not None and reference is not None:
        sets["reference"] = sets["reference"].take(~reference.obs_names.isin(source.obs_names))

    fit, scored, other = _three_sets(sets, rng)
    hvg = highly_variable_genes(sets.get("reference", fit).x, n_genes)
    sets = {name: population.of_genes(hvg) for name, population in sets.items()}
    fit, scored, other = (population.of_genes(hvg) for population in (fit, scored, other))
    chosen = _like(sets["generated"], scored, len(other.labels), rng)
    other = at_most(other, len(chosen.labels), rng)
    transform = _components(fit, rng, seed)
    value, ceiling = (_population_scores(cells, scored, transform, rng, seed) for cells in (chosen, other))
    if source is not None:
        value |= effect_scores(*(sets[name].x for name in ("generated", "source", "real", "control")))
        ceiling |= _effect_ceiling(sets["real"], sets["control"], rng, shared_control=shared_control)
    return _table(value, ceiling)


def log_expression(adata: AnnData, genes: list[str] | None = None) -> sp.csr_matrix:
    """Return log1p(CP10k) of ``genes`` (default all), csr (n_cells, n_genes); counts are normalised over them."""
    from scidiff.data.cells import read_cells
    from scidiff.data.scaling import log1p_cp10k

    cells = read_cells(adata, genes=genes)
    return sp.csr_matrix(log1p_cp10k(cells.x) if cells.scale == "counts" else cells.x)


# --- sets of cells --------------------------------------------------------------------------------------------------


class Population(NamedTuple):
    """Log expression ``x``, csr (n_cells, n_genes), and the name of each cell's condition, ``labels`` (n_cells,)."""

    x: sp.csr_matrix
    labels: np.ndarray

    def take(self, cells) -> Population:
        return Population(self.x[cells], self.labels[cells])

    def of_genes(self, genes) -> Population:
        return Population(self.x[:, genes], self.labels)


def split_evenly(population: Population, n_parts: int, rng: np.random.Generator) -> list[Population]:
    """Return ``n_parts`` random populations that share no cell, each with the same share of every label."""
    order = _shuffled_by_label(population.labels, rng)
    return [population.take(rng.permutation(order[part::n_parts])) for part in range(n_parts)]


def at_most(population: Population, n: int, rng: np.random.Generator) -> Population:
    """Return at most ``n`` random cells, with the same share of every label."""
    n_cells = len(population.labels)
    if n_cells <= n:
        return population
    return population.take(_shuffled_by_label(population.labels, rng)[np.arange(n) * n_cells // n])


def matched(population: Population, wanted: np.ndarray, rng: np.random.Generator) -> Population | None:
    """Return random cells with the label counts of ``wanted``, in random order.

    Where a label has too few cells, all of them; where it has none at all, the whole answer is None.
    """
    chosen = []
    for label, count in zip(*np.unique(wanted, return_counts=True), strict=True):
        cells = np.flatnonzero(population.labels == label)
        if not len(cells):
            return None
        chosen.append(rng.permutation(cells)[:count])
    return population.take(rng.permutation(np.concatenate(chosen)))


def _shuffled_by_label(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def _three_sets(sets: dict[str, Population], rng: np.random.Generator) -> tuple[Population, Population, Population]:
    """Return the cells that fit, those that are scored, and the other ones; see the head of this module."""
    real, reference = sets["real"], sets.get("reference")
    if reference is not None and "source" in sets:
        scored, other = split_evenly(real, 2, rng)
        return reference, scored, other
    if reference is not None:
        fit, scored = split_evenly(real, 2, rng)
        in_training = matched(reference, scored.labels, rng)
        if in_training is not None:
            return fit, scored, in_training
    fit, scored, other = split_evenly(real, 3, rng)
    return fit, scored, other


def _like(generated: Population, scored: Population, n: int, rng: np.random.Generator) -> Population:
    """Return at most ``n`` generated cells of the scored ones' conditions; with a warning, of all conditions."""
    chosen = matched(generated, scored.labels, rng)
    if chosen is None:
        missing = str(min(set(scored.labels) - set(generated.labels)))
        message = f"no generated cells of condition {missing!r}: all generated cells are compared with all real ones"
        warnings.warn(message, DataWarning, stacklevel=3)
        chosen = generated.take(rng.permutation(len(generated.labels)))
    return at_most(chosen, n, rng)


def _labels(given: dict[str, AnnData], schema: Schema | None) -> dict[str, np.ndarray]:
    """Return the name of every cell's condition, over the attributes all sets have; without schema one name for all."""
    if schema is None:
        return {name: np.full(adata.n_obs, "any") for name, adata in given.items()}
    tables = {name: schema.table(adata) for name, adata in given.items() if name != "generated"}
    roles = list(tables["real"].columns)
    obs = given["generated"].obs  # it may name columns by their roles
    columns = {role: column for role, column in schema.columns.items() if column not in obs and role in obs}
    obs = obs.rename(columns=columns)
    lost = [column for column in schema.columns.values() if column not in obs]
    tables["generated"] = schema.table(SimpleNamespace(obs=obs.assign(**dict.fromkeys(lost))))
    shared = [role for role in roles if all(role in table and table[role].notna().any() for table in tables.values())]
    return {
        name: np.array([", ".join(map(str, row)) for row in table[shared].itertuples(index=False)], dtype=str)
        if shared
        else np.full(len(table), "any")
        for name, table in tables.items()
    }


def _check_arguments(generated, real, source, control, *, shared_control: bool) -> None:
    from anndata import AnnData

    for cells in (generated, real, *([] if source is None else [source]), *([] if control is None else [control])):
        expect(cells, AnnData, "an AnnData", "read a file with anndata.read_h5ad")
    if (source is None) != (control is None):
        missing = "control" if control is None else "source"
        raise InputError(
            f"{missing} is missing: an effect needs both source (predicted) and control (real), or neither"
        )
    if real.n_obs < 12:
        raise InputError(f"{real.n_obs} real cells: at least 12 are needed, to fit, to compare and for the ceiling")
    if generated.n_obs < 2:
        raise InputError(f"{generated.n_obs} generated cells: at least 2 are needed")
    if source is None or shared_control:
        return
    shared = source.obs_names.intersection(control.obs_names)
    if len(shared):
        raise InputError(
            f"source and control share {len(shared)} cells (first: {shared[0]!r}), which inflates every effect score; "
            "give disjoint cells; to compare with papers that share them, Python takes shared_control=True"
        )


def _shared_genes(given: dict[str, AnnData]) -> list[str]:
    """Return the genes that all sets have, in the order of the generated cells; InputError below half of them."""
    generated = given["generated"].var_names
    shared = generated
    for name, adata in given.items():
        missing = shared[~shared.isin(adata.var_names)]
        shared = shared[shared.isin(adata.var_names)]
        if len(shared) < len(generated) / 2:
            raise InputError(
                f"{name} lacks {len(missing)} of the {len(generated)} generated genes (first: {missing[0]!r}); "
                "are both named alike (symbols or Ensembl ids)?"
            )
    if len(shared) < len(generated):
        missing = generated[~generated.isin(shared)]
        message = f"{len(missing)} generated genes are not in the real cells and not scored (first: {missing[0]!r})"
        warnings.warn(message, DataWarning, stacklevel=3)
    return list(shared)


def _components(fit: Population, rng: np.random.Generator, seed: int):
    """Return the function that takes log expression to at most 50 principal components of the cells ``fit``."""
    from scidiff.data.scaling import fit_pca

    x = at_most(fit, MAX_FIT_CELLS, rng).x
    return fit_pca(x, min(N_COMPONENTS, min(x.shape) - 1), seed=seed).transform


# --- scores ---------------------------------------------------------------------------------------------------------


def _population_scores(
    cells: Population, real: Population, transform, rng: np.random.Generator, seed: int
) -> dict[str, float]:
    """Return the scores that compare two populations."""
    few, few_real = at_most(cells, MAX_CELLS, rng), at_most(real, MAX_CELLS, rng)
    pcs, real_pcs = transform(few.x), transform(few_real.x)
    # matched numbers of every condition make ordinary U-statistics negative; strata put that right
    strata = (few.labels, few_real.labels) if set(few.labels) == set(few_real.labels) else None
    return {
        "r2_mean": metrics.r2_mean(cells.x, real.x),
        "r2_var": metrics.r2_var(cells.x, real.x),
        "corr_r2_hvg": metrics.corr_r2_hvg(cells.x, real.x),
        "zero_gap": metrics.zero_gap(cells.x, real.x),
        "energy": metrics.energy(pcs, real_pcs, strata=strata),
        "mmd": metrics.mmd(pcs, real_pcs, strata=strata),
        "auc": metrics.auc(pcs, real_pcs, seed=seed),
    }


def effect_scores(generated, source, real, control) -> dict[str, float]:
    """Return the scores of the effect generated - source against real - control, log expression (n_cells, n_genes).

    Genes that no cell has tie at 0: any two rankings agree on them, so they are never among the most changed.
    """
    d_pred, d_true = difference(generated, source), difference(real, control)
    t_pred, t_true = (np.abs(metrics.welch_t(a, b)) for a, b in ((generated, source), (real, control)))
    k = min(N_DE, int(np.count_nonzero(t_true)))
    de = metrics.strongest(t_true, k)
    return {
        "pearson_delta": metrics.pearson_delta(d_pred, d_true),
        "r2_delta": metrics.r2_delta(d_pred, d_true),
        "mse_delta": metrics.mse_delta(d_pred, d_true),
        "slope": metrics.slope(d_pred, d_true),
        "r2_de100": metrics.r2_de100(generated, real, control),
        "de_overlap": metrics.de_overlap(t_pred, t_true, k=k) if k and np.ptp(t_pred) > 0 else np.nan,
        "direction_agreement": metrics.direction_agreement(d_pred[de], d_true[de]),
        "corr_responding": metrics.corr_responding(generated, real, control),
    }


def difference(cells, control) -> np.ndarray:
    """Return the effect, shape (n_genes,): exactly 0 where nothing but rounding differs, NaN without cells."""
    if not (cells.shape[0] and control.shape[0]):
        return np.full(cells.shape[1], np.nan)
    d = metrics.effect(cells, control)
    return d if np.abs(d).max() > 1e-6 else np.zeros_like(d)


def _effect_ceiling(
    real: Population, control: Population, rng: np.random.Generator, *, shared_control: bool
) -> dict[str, float]:
    """Return the effect scores of one half of the real cells against the other, mean of several random halvings."""
    scores = []
    for _ in range(N_HALVINGS):
        (a, b), (control_a, control_b) = split_evenly(real, 2, rng), split_evenly(control, 2, rng)
        if shared_control:
            control_a = control_b = control
        scores.append(effect_scores(a.x, control_a.x, b.x, control_b.x))
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


# --- the table ------------------------------------------------------------------------------------------------------


def _table(value: dict[str, float], ceiling: dict[str, float]) -> pd.DataFrame:
    names = [name for name in BETTER if name in value]
    return pd.DataFrame(
        {
            "metric": names,
            "value": [value[name] for name in names],
            "ceiling": [ceiling[name] for name in names],
            "better": [BETTER[name] for name in names],
            "note": [_note(name, value[name], ceiling) for name in names],
        }
    )


def loss(metric: str, value):
    """Return how far ``value``, a number or an array, is from the best one (or from 0, negative): smaller is better."""
    better = BETTER[metric]
    return -value if better == "up" else np.abs(value - float(better))


def _note(metric: str, value: float, ceiling: dict[str, float]) -> str:
    """Return what a reader must know about one score, or an empty string."""
    real = ceiling[metric]
    if not np.isfinite(real):
        return "undefined for the real cells"
    if not np.isfinite(value):
        return "undefined for the generated cells"
    if metric in ("auc", "energy", "mmd") and abs(ceiling["auc"] - 0.5) > 0.1:
        return f"cannot tell anything on this data: real v. real scores AUC {ceiling['auc']:.2f}, it should be near .5"
    chance = 0.5 if metric == "direction_agreement" else 0.0
    if BETTER[metric] in ("up", "1") and real < chance + 0.2:
        return f"cannot tell anything on this data: real v. real scores {real:.2f}"
    if loss(metric, value) <= loss(metric, real):
        return "as close as real cells are to each other"
    if metric == "r2_mean":
        return "saturates: predicting no change at all also scores high"
    return ""
