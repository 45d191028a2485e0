"""Predicted responses to perturbations against measured ones: one row per condition and metric.

One idea: an effect is a difference of means, ``d = mean(cells) - mean(control)`` in log1p(CP10k), and the prediction
and the truth must not share its noise. The predicted effect is taken against ``source``, the cells it started from,
the true one against ``control``, other control cells of the same context::

    d_pred = mean(predicted) - mean(source)        d_true = mean(real) - mean(control)

Three numbers stand side by side. ``value``: what the prediction scores. ``ceiling``: what one half of the real cells
scores against the other half, each with its own half of the control cells (made from half the cells, so a value may
pass it). ``floor``: what no change scores, one half of the source cells as the prediction from the other half. Both are
means of five random halvings. A metric whose ceilings are not all better than all its floors, or lie less than a fifth
of the way from there to a perfect score, cannot tell anything on these data, and says so.

Distances are on principal components of cells that are not compared: of ``reference``, the training cells, less source
cells; without it, of the control cells and a third of the real ones, which are then left out of all scores.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scidiff.errors import DataWarning, InputError, closest
from scidiff.evaluation import metrics
from scidiff.evaluation.evaluate import (
    BETTER,
    MAX_CELLS,
    MAX_FIT_CELLS,
    N_COMPONENTS,
    N_HALVINGS,
    difference,
    effect_scores,
    log_expression,
    loss,
)
from scidiff.evaluation.shifts import Responses, controls_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

    from scidiff.data.schema import Schema

N_GENES = 2000
MIN_CELLS = 12  # real cells of a condition, and control cells: halves of fewer say little
MIN_DRAWN = 400  # with fewer drawn cells, sampling noise of the mean hides differences between methods
MIN_RANGE = 0.2  # of the way from floor to perfect that the ceiling must lie, or the metric cannot tell anything

#: the metrics of predicted effects
METRICS = tuple(name for name in BETTER if name not in ("auc", "zero_gap", "r2_mean"))
#: obs column of predicted cells that were drawn several times from each source cell: which draw
DRAW = "scidiff_draw"


def evaluate_effects(
    predicted: AnnData,
    real: AnnData,
    *,
    source: AnnData,
    control: AnnData,
    schema: Schema,
    genes: Sequence[str] | None = None,
    reference: AnnData | None = None,
    seed: int = 0,
    shared_control: bool = False,
    limits: bool = True,
) -> pd.DataFrame:
    """Return the scores of ``predicted`` for every treated condition of ``real``, one row per condition and metric.

    Columns: ``condition``; ``metric``; ``value``; ``ceiling``; ``floor``; ``better``, where a good value lies ("up",
    "0", "1"); ``loss``, how far the value is from there: smaller is better for every metric, infinite where the value
    is undefined, so that a method cannot win by saying nothing; ``n_predicted``, ``n_real``, ``n_control``, numbers of
    cells; ``note``, in words.

    Parameters
    ----------
    predicted
        Predicted cells, with the schema's columns (or their roles) in obs. Where each source cell was drawn several
        times, the obs column ``scidiff_draw`` tells the draws apart: distances between populations, which copies of a
        cell inflate, are means over draws, all other scores are of all cells. A condition may be a single row, its
        mean: scores that need cells are NaN then.
    real
        Measured cells that the method has not seen.
    source, control
        Control cells that the prediction started from, and those that the real cells are compared with. Cells of the
        condition's context (and time, where control cells have it) are used.
    schema
        Names the columns. Conditions are told apart by all its attributes but the batch.
    genes
        Genes to score. None: the 2,000 most variable of ``reference``, without one all.
    reference
        The training cells.
    shared_control
        Let ``source`` and ``control`` share cells, for comparison with papers that do; so does the ceiling then.
    limits
        Compute ceilings and floors, most of the work. They are the same for every prediction of the same cells: of many
        methods, all but one can do without; columns and notes that need them are then empty.

    ``pds`` needs two conditions of one context in ``real``, ``pearson_delta_systema`` (the effects against the mean of
    the training perturbations instead of control; Viñas Torné et al. 2025) two of them in ``reference``; where they
    cannot be had these rows are left out.

    Counts come from ``layers["counts"]``, else ``X``; an ``X`` without counts is taken as log1p(CP10k). All sets are
    cut to the genes they share before counts are normalised.

    Raises
    ------
    InputError
        Source and control share cells, a context has no control cells, no condition of ``real`` is predicted, or the
        sets share less than half of their genes.
    """
    if schema.control is None:
        raise InputError("an effect needs control cells: name perturbation= and control= in the schema")
    _check_sharing(real, source, control, reference, shared_control=shared_control)
    rng = np.random.default_rng(seed)
    given = {"predicted": predicted, "real": real, "source": source, "control": control}
    tables = _tables(given, schema)
    given |= {"reference": reference} if reference is not None else {}
    shared = _shared_genes(given)
    x = {name: log_expression(adata, shared) for name, adata in given.items()}
    scored = _scored_genes(shared, genes, x.get("reference"))
    x = {name: matrix[:, scored] for name, matrix in x.items()}
    if reference is not None:
        fit = x.pop("reference")[~reference.obs_names.isin([*source.obs_names, *predicted.obs_names, *real.obs_names])]
    else:
        third = _random_third(_labels(tables["real"]), rng)
        fit = sp.vstack([x["control"], x["real"][third]], format="csr")
        x["real"], tables["real"] = x["real"][~third], tables["real"][~third]
    transform = _components(fit, rng, seed)
    sets = {name: Cells(matrix, transform(matrix), np.zeros(matrix.shape[0], dtype=int)) for name, matrix in x.items()}
    if DRAW in predicted.obs:
        sets["predicted"] = sets["predicted"]._replace(draw=pd.factorize(predicted.obs[DRAW])[0])
    centroid = _training_centroid(reference, schema, shared, scored)
    cases = _cases(sets, tables, schema, [shared[i] for i in scored], centroid)

    value = _scores(cases)
    n = N_HALVINGS if limits else 0
    ceilings = [_scores(_real_half(cases, rng, shared_control=shared_control)) for _ in range(n)]
    floors = [_scores(_source_half(cases, rng)) for _ in range(n)]
    rows = []
    for i, case in enumerate(cases):
        for metric in (name for name in METRICS if name in value[i]):
            ceiling, floor = (np.array([scores[i][metric] for scores in each]) for each in (ceilings, floors))
            rows.append(_row(case, metric, value[i][metric], ceiling, floor))
    return pd.DataFrame(rows)


# --- the sets -------------------------------------------------------------------------------------------------------


class Cells(NamedTuple):
    """Log expression ``x``, csr (n_cells, n_genes), principal components ``pcs``, (n_cells, n_components), and which
    draw of its source cell each is, (n_cells,)."""

    x: sp.csr_matrix
    pcs: np.ndarray
    draw: np.ndarray

    @property
    def n(self) -> int:
        return len(self.pcs)

    def take(self, cells: np.ndarray) -> Cells:
        return Cells(self.x[cells], self.pcs[cells], self.draw[cells])

    def few(self) -> Cells:
        """Return at most ``MAX_CELLS`` of the cells, evenly spread."""
        return self.take(np.arange(0, self.n, -(-self.n // MAX_CELLS)))


class Case(NamedTuple):
    """One condition: its cells, the positions of its target genes, and the training perturbations' mean (or None).

    ``pds`` tells apart the conditions of one ``group``, which have the same control cells.
    """

    label: str
    group: bytes
    predicted: Cells
    real: Cells
    source: Cells
    control: Cells
    targets: list[int]
    centroid: np.ndarray | None


def _check_sharing(
    real: AnnData, source: AnnData, control: AnnData, reference: AnnData | None, *, shared_control: bool
) -> None:
    shared = source.obs_names.intersection(control.obs_names)
    if len(shared) and not shared_control:
        raise InputError(
            f"source and control share {len(shared)} cells (first: {shared[0]!r}), which inflates every effect score; "
            "give disjoint cells; to compare with papers that share them, Python takes shared_control=True"
        )
    if reference is not None and len(seen := real.obs_names.intersection(reference.obs_names)):
        message = f"{len(seen)} real cells are among the reference cells (first: {seen[0]!r})"
        warnings.warn(f"{message}: they are no held-out test", DataWarning, stacklevel=3)


def _shared_genes(given: dict[str, AnnData]) -> list[str]:
    """Return the genes that all sets have, in the order of the predicted cells; InputError below half of them."""
    predicted = shared = given["predicted"].var_names
    for adata in given.values():
        shared = shared[shared.isin(adata.var_names)]
    if len(shared) == len(predicted):
        return list(shared)
    missing = predicted[~predicted.isin(shared)]
    message = f"{len(missing)} of {len(predicted)} predicted genes are not in all other sets (first: {missing[0]!r})"
    if len(shared) < len(predicted) / 2:
        raise InputError(f"{message}; are all named alike (symbols or Ensembl ids)?")
    warnings.warn(f"{message}: they are not scored", DataWarning, stacklevel=3)
    return list(shared)


def _scored_genes(shared: list[str], genes: Sequence[str] | None, reference: sp.csr_matrix | None) -> np.ndarray:
    """Return the positions in ``shared`` of the genes to score."""
    from scidiff.data.scaling import highly_variable_genes

    if genes is None:
        return np.arange(len(shared)) if reference is None else highly_variable_genes(reference, N_GENES)
    at = pd.Index(shared).get_indexer(list(genes))
    if (at < 0).any():
        missing = [gene for gene, i in zip(genes, at, strict=True) if i < 0]
        raise InputError(f"gene {missing[0]!r} is not in all sets of cells{closest(missing[0], shared)}")
    return at


def _tables(given: dict[str, AnnData], schema: Schema) -> dict[str, pd.DataFrame]:
    """Return the canonical table of every set, batches left out; predicted cells may name columns by their roles."""
    import anndata as ad

    schema = dataclasses.replace(schema, batch=None)
    obs = given["predicted"].obs
    columns = {role: column for role, column in schema.columns.items() if column not in obs and role in obs}
    given = given | {"predicted": ad.AnnData(obs=obs.rename(columns=columns))}
    return {name: schema.table(adata) for name, adata in given.items()}


def _labels(table: pd.DataFrame) -> np.ndarray:
    """Return the name of every row's condition, (n_rows,)."""
    rows = table.itertuples(index=False)
    return np.array([", ".join(str(value) for value in row if not pd.isna(value)) for row in rows], dtype=str)


def _random_third(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a mask of a random third of the cells of every label."""
    order = rng.permutation(len(labels))
    third = np.zeros(len(labels), dtype=bool)
    third[order[np.argsort(labels[order], kind="stable")][::3]] = True
    return third


def _components(fit: sp.csr_matrix, rng: np.random.Generator, seed: int):
    """Return the function that takes log expression to at most 50 principal components of the cells ``fit``."""
    from scidiff.data.scaling import fit_pca

    fit = fit[rng.permutation(fit.shape[0])[:MAX_FIT_CELLS]]
    return fit_pca(fit, min(N_COMPONENTS, min(fit.shape) - 1), seed=seed).transform


def _training_centroid(
    reference: AnnData | None, schema: Schema, shared: list[str], scored: np.ndarray
) -> Callable[[pd.Series], np.ndarray | None]:
    """Return a function of a condition: the mean over training perturbations of their means, in its context.

    None where fewer than two were seen there: the mean of one is not what perturbations have in common.
    """
    if reference is None:
        return lambda asked: None
    training = Responses.of(reference[:, shared], schema)

    def centroid(asked: pd.Series) -> np.ndarray | None:
        rows = training.treated
        for name in schema.context:
            rows = rows & (training.conditions[name] == asked[name]).to_numpy(dtype=bool)
        return training.means[rows][:, scored].mean(axis=0) if rows.sum() > 1 else None

    return centroid


def _cases(
    sets: dict[str, Cells],
    tables: dict[str, pd.DataFrame],
    schema: Schema,
    genes: list[str],
    centroid: Callable[[pd.Series], np.ndarray | None],
) -> list[Case]:
    """Return the treated conditions of the real cells, each with its cells of every set."""
    labels = {name: _labels(tables[name]) for name in ("predicted", "real")}
    treated = tables["real"][~schema.is_control(tables["real"])].drop_duplicates()
    if not set(_labels(treated)) & set(labels["predicted"]):
        asked = f", such as {str(_labels(treated)[0])!r}" if len(treated) else ": there is none"
        raise InputError(f"no treated condition of the real cells is predicted{asked}")
    cases = []
    for label, (_, asked) in zip(_labels(treated), treated.iterrows(), strict=True):
        rows = {name: labels[name] == label for name in ("predicted", "real")}
        for name in ("source", "control"):
            rows[name] = controls_of(tables[name], asked, schema)
            if not rows[name].any():
                raise InputError(f"{name} has no control cells of the context of {str(label)!r}; give some")
        cases.append(
            Case(
                label=str(label),
                group=rows["control"].tobytes(),
                targets=[genes.index(part) for part in schema.parts(asked["perturbation"]) if part in genes],
                centroid=centroid(asked),
                **{name: sets[name].take(np.flatnonzero(mask)) for name, mask in rows.items()},
            )
        )
    return cases


# --- scores ---------------------------------------------------------------------------------------------------------


def _scores(cases: list[Case]) -> list[dict[str, float]]:
    """Return the scores of every case; NaN where its cells cannot define one."""
    d_pred = [difference(case.predicted.x, case.source.x) for case in cases]
    d_true = [difference(case.real.x, case.control.x) for case in cases]
    scores = [_scores_of_one(case) for case in cases]
    for group in {case.group for case in cases}:
        same = [i for i, case in enumerate(cases) if case.group == group]
        if len(same) > 1:
            targets = [cases[i].targets for i in same]
            told_apart = metrics.pds(np.array(d_pred)[same], np.array(d_true)[same], targets=targets)  # type: ignore[arg-type]
            for i, score in zip(same, told_apart, strict=True):
                scores[i]["pds"] = score if np.isfinite(d_pred[i]).all() else np.nan
    return scores


def _scores_of_one(case: Case) -> dict[str, float]:
    """Return all scores but ``pds``."""
    left_out = {"pds"} if case.centroid is not None else {"pds", "pearson_delta_systema"}
    if not all(cells.n for cells in (case.predicted, case.real, case.source, case.control)):
        return dict.fromkeys((name for name in METRICS if name not in left_out), np.nan)
    predicted, real = case.predicted, case.real
    scores = effect_scores(predicted.x, case.source.x, real.x, case.control.x) | {
        "r2_var": metrics.r2_var(predicted.x, real.x),
        "corr_r2_hvg": metrics.corr_r2_hvg(predicted.x, real.x),
    }
    draws = [predicted.take(np.flatnonzero(predicted.draw == draw)).few().pcs for draw in np.unique(predicted.draw)]
    for metric in (metrics.energy, metrics.mmd, metrics.knn_auc):
        scores[metric.__name__] = float(np.mean([metric(draw, real.few().pcs) for draw in draws]))
    if case.centroid is not None:
        away = [metrics.gene_means(cells.x) - case.centroid for cells in (predicted, real)]
        scores["pearson_delta_systema"] = metrics.pearson_delta(*away)
    return scores


def _real_half(cases: list[Case], rng: np.random.Generator, *, shared_control: bool) -> list[Case]:
    """Return the cases with one half of the real and control cells in the place of the predicted and source cells."""
    control = {case.group: _halves(case.control, rng) for case in cases}
    halved = []
    for case in cases:
        (a, b), (control_a, control_b) = _halves(case.real, rng), control[case.group]
        if shared_control:
            control_a = control_b = case.control
        halved.append(case._replace(predicted=a, source=control_a, real=b, control=control_b))
    return halved


def _source_half(cases: list[Case], rng: np.random.Generator) -> list[Case]:
    """Return the cases with one half of the source cells as the prediction from the other half."""
    source = {case.group: _halves(case.source, rng) for case in cases}
    return [case._replace(predicted=source[case.group][0], source=source[case.group][1]) for case in cases]


def _halves(cells: Cells, rng: np.random.Generator) -> tuple[Cells, Cells]:
    """Return the cells in two random halves; empty ones, which score NaN, where there are too few."""
    order = rng.permutation(cells.n if cells.n >= MIN_CELLS else 0)
    return cells.take(order[::2]), cells.take(order[1::2])


# --- the table ------------------------------------------------------------------------------------------------------


def _row(case: Case, metric: str, value: float, ceiling: np.ndarray, floor: np.ndarray) -> dict[str, object]:
    """Return one row of the table; ``ceiling`` and ``floor`` hold one score per halving."""
    return {
        "condition": case.label,
        "metric": metric,
        "value": value,
        "ceiling": ceiling.mean() if len(ceiling) else np.nan,
        "floor": floor.mean() if len(floor) else np.nan,
        "better": BETTER[metric],
        "loss": np.nan_to_num(loss(metric, value), nan=np.inf),
        "n_predicted": case.predicted.n,
        "n_real": case.real.n,
        "n_control": case.control.n,
        "note": _note(case, metric, value, ceiling, floor),
    }


def _note(case: Case, metric: str, value: float, ceiling: np.ndarray, floor: np.ndarray) -> str:
    """Return what a reader must know about one score, or an empty string."""
    if not case.predicted.n:
        return "not predicted"
    for name, cells in (("real", case.real), ("control", case.control), ("source", case.source)):
        if cells.n < MIN_CELLS:
            return f"{cells.n} {name} cells: without {MIN_CELLS} there is no telling what the score means"
    if not len(ceiling):
        return ""
    if not (np.isfinite(ceiling).all() and np.isfinite(floor).all()):
        return "undefined for the real cells"
    best = loss(metric, 1.0 if BETTER[metric] == "up" else float(BETTER[metric]))
    at_ceiling, at_floor = loss(metric, ceiling), loss(metric, floor)
    overlap = at_ceiling.max() >= at_floor.min()  # the worst halving of real cells and the best of no change
    if overlap or at_floor.mean() - at_ceiling.mean() < MIN_RANGE * (at_floor.mean() - best):
        scores = f"half of the real cells score {ceiling.mean():.2g}, no change {floor.mean():.2g}"
        return f"cannot tell anything on this data: {scores}"
    if not np.isfinite(value):
        return "undefined for the predicted cells: no effect, or too few cells"
    if loss(metric, value) <= at_ceiling.mean():
        return "as close as half of the real cells to the other half"
    if case.predicted.n < MIN_DRAWN:
        return f"{case.predicted.n} predicted cells: where cells are drawn, means need {MIN_DRAWN}"
    return ""
