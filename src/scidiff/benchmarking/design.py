"""Does the biology follow? Cells are designed from a few genes of a real effect, and judged by all the others.

The few genes that a perturbation raises most are the phenotype, at the level that perturbed cells have. Nobody is told
of the perturbation. If designed cells are cells, their *other* genes change as those of really perturbed cells do::

    score = Pearson(mean of designed cells - control cells,  mean of perturbed cells - other control cells)

over all genes but those that were steered. Half of every group of cells is seen in training; the truth is the other
half. Three settings, harder from one to the next:

    unlabelled   perturbed cells of the context are in training, without their label
    withheld     only those of other contexts are
    controls     nobody's are
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.benchmarking.denoise import content_of
from scidiff.benchmarking.results import Results
from scidiff.data.cells import Cells, choose_genes, read_cells
from scidiff.data.scaling import fit_pca, highly_variable_genes, log1p_cp10k
from scidiff.data.schema import Schema
from scidiff.errors import InputError, closest
from scidiff.evaluation import metrics
from scidiff.evaluation.report import new_axes, write_report
from scidiff.files import whole_file
from scidiff.training import TrainConfig

if TYPE_CHECKING:
    from anndata import AnnData

    from scidiff.estimator import ScIDiff

SETTINGS = ("unlabelled", "withheld", "controls")
OURS, TOLD, HALF = "designed", "told the label", "half of the real cells"
TARGETS_ONLY, BEST_REAL, BEST_MADE = "targets moved", "best real cells", "best of 8 generated"
#: cells of a group from which on it can be judged by halves
MIN_CELLS = 30
N_COMPONENTS = 30
#: generated cells from which each of the best is chosen
OUT_OF = 8

Progress = Callable[[str], AbstractContextManager[Callable[..., None]]]


def _silent(what: str) -> AbstractContextManager[Callable[..., None]]:
    return contextlib.nullcontext(lambda *args: None)


def benchmark_design(
    adata: AnnData,
    schema: Schema,
    *,
    out: str | Path,
    dataset: str = "data",
    perturbation: str | None = None,
    contexts: Sequence[str] | None = None,
    targets: Sequence[str] | int = 4,
    settings: Sequence[str] = SETTINGS,
    seeds: int = 1,
    n: int = 400,
    genes: int | None = 2000,
    layer: str | None = None,
    fast: bool = False,
    resume: bool = False,
    seed: int = 0,
    progress: Progress = _silent,
) -> Results:
    """Return the table of all scores, kept in the folder ``out`` with verdict.json and report.html.

    ``part`` is setting and context, ``split`` the seed of halves and training. Metrics: ``pearson_other`` and
    ``slope_other`` (of the genes that were not steered), ``auc`` (against the true half of the perturbed cells, in
    components of other contexts), ``reached`` (share of the way of the steered genes), ``distance`` (to the nearest
    true perturbed cell, in units of their own).

    Parameters
    ----------
    adata
        Cells with raw counts.
    schema
        Roles of the obs columns: perturbation, control and one context.
    out
        Folder for the results, new or of an interrupted run.
    dataset
        What the table and the page call the cells.
    perturbation
        The one that gives the phenotype; default: the one with most cells.
    contexts
        Contexts to design in; default: the three with most perturbed cells.
    targets
        Genes to steer, or how many of the most raised ones.
    settings
        Of ``unlabelled``, ``withheld`` and ``controls``.
    seeds
        Halvings, each with its training runs.
    n
        Cells to design.
    genes
        Most variable genes of the training cells to model, beside the steered ones. None: all.
    layer
        Layer with the counts; by default they are looked for.
    fast
        A first impression: one context, 300 training steps.
    resume
        Go on with the run that ``out`` holds.
    seed
        Makes the numbers reproducible.
    progress
        ``progress(what)`` is a context that yields ``advance(done, total, note)``.

    Raises
    ------
    InputError
        The schema lacks a role, there are too few cells, or ``out`` cannot be used.
    """
    if schema.perturbation is None or schema.control is None or len(schema.context) != 1:
        raise InputError("the design benchmark needs perturbation=, control= and one context= in the schema")
    if not (genes is None or isinstance(genes, int)):
        raise InputError("the design benchmark chooses its own genes: give their number, not a list")
    if unknown := [name for name in settings if name not in SETTINGS]:
        raise InputError(f"unknown setting {unknown[0]!r}{closest(unknown[0], SETTINGS)}")
    cells = read_cells(adata, schema, layer=layer)
    if cells.scale != "counts":
        raise InputError("design is judged on raw counts; they are needed, in layers['counts']")
    screen = _Screen.of(cells, schema, perturbation=perturbation, contexts=contexts, targets=targets, genes=genes)
    config = TrainConfig(seed=seed)
    if fast:
        screen, config = replace(screen, contexts=screen.contexts[:1]), replace(config, steps=300)
    asked = {
        "task": "design",
        "data": content_of(cells),
        "schema": schema.to_dict(),
        "perturbation": screen.perturbation,
        "targets": screen.targets,
        "n": n,
        "genes": genes,
        "fast": fast,
        "seed": seed,
    }
    results = Results.open(out, dataset=dataset, asked=asked, resume=resume)
    for one in range(seed, seed + seeds):
        halves = screen.halved(one)
        for setting in settings:
            _Run(halves, setting, replace(config, seed=one), n, results, progress).all()
    found = verdict(results.table)
    with whole_file(results.folder / "verdict.json") as place:
        place.write_text(json.dumps(found, indent=1))
    write_page(results, screen)
    return results


# ---- what is asked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Screen:
    """Cells under control or one perturbation, the contexts to design in, and the genes to steer."""

    cells: Cells
    schema: Schema
    perturbation: str
    contexts: list[str]
    targets: list[str]
    genes: int | None

    @classmethod
    def of(
        cls,
        cells: Cells,
        schema: Schema,
        *,
        perturbation: str | None,
        contexts: Sequence[str] | None,
        targets: Sequence[str] | int,
        genes: int | None,
    ) -> _Screen:
        table = cells.conditions
        control = schema.is_control(table)
        counts = table["perturbation"][~control].value_counts()
        if counts.empty:
            raise InputError("there are no perturbed cells to take a phenotype from")
        perturbation = str(counts.index[0]) if perturbation is None else perturbation
        if perturbation not in counts:
            raise InputError(f"unknown perturbation {perturbation!r}{closest(perturbation, counts.index)}")
        perturbed = (table["perturbation"] == perturbation).to_numpy()
        kept = control | perturbed
        some = Cells(cells.x[kept], cells.genes, table[kept].reset_index(drop=True), "counts")
        context = some.conditions[schema.context[0]].astype(str)
        sizes = context[perturbed[kept]].value_counts()
        sizes = sizes[sizes.index.isin(context[control[kept]].value_counts().loc[lambda n: n >= MIN_CELLS].index)]
        sizes = sizes[sizes >= MIN_CELLS]
        chosen = list(sizes.index[:3]) if contexts is None else list(contexts)
        if not chosen or (missing := [name for name in chosen if name not in sizes]):
            name = missing[0] if chosen else "every context"
            raise InputError(f"{name} has too few cells: at least {MIN_CELLS} perturbed and control cells are needed")
        if context.nunique() < 2:
            raise InputError("the design benchmark compares contexts; these cells have one only")
        if isinstance(targets, int):
            logged = log1p_cp10k(some.x)
            strength = metrics.welch_t(logged[perturbed[kept]], logged[control[kept]])
            names = [some.genes[i] for i in np.argsort(-np.nan_to_num(strength))[:targets]]
        else:
            names = list(targets)
            if missing := [gene for gene in names if gene not in some.genes]:
                raise InputError(f"gene {missing[0]!r} is not in the data{closest(missing[0], some.genes)}")
        return cls(some, schema, perturbation, chosen, names, genes)

    def halved(self, seed: int) -> _Halves:
        """Return the cells with every group of them halved, and genes chosen on the half for training."""
        table = self.cells.conditions
        context = table[self.schema.context[0]].astype(str).to_numpy()
        perturbed = (table["perturbation"] == self.perturbation).to_numpy()
        rng, seen = np.random.default_rng(seed), np.zeros(len(table), dtype=bool)
        groups = pd.DataFrame({"context": context, "perturbed": perturbed}).groupby(["context", "perturbed"])
        for rows in groups.indices.values():
            seen[rng.permutation(rows)[: len(rows) // 2]] = True
        cells = self.cells
        if self.genes is not None and self.genes < len(cells.genes):
            variable = highly_variable_genes(log1p_cp10k(cells.x[seen]), self.genes)
            names = {cells.genes[i] for i in variable} | set(self.targets)
            cells = choose_genes(cells, [gene for gene in cells.genes if gene in names])
        return _Halves(self, cells, context, perturbed, seen, seed)


@dataclass(frozen=True, eq=False)
class _Halves:
    """One halving: ``seen`` cells may be trained on, the others are the truth."""

    screen: _Screen
    cells: Cells
    context: np.ndarray
    perturbed: np.ndarray
    seen: np.ndarray
    seed: int

    @cached_property
    def logged(self) -> sparse.csr_matrix:
        return log1p_cp10k(self.cells.x)

    @cached_property
    def steered(self) -> np.ndarray:
        return pd.Index(self.cells.genes).get_indexer(self.screen.targets)

    def rows(self, context: str, *, perturbed: bool, seen: bool) -> np.ndarray:
        return np.flatnonzero((self.context == context) & (self.perturbed == perturbed) & (self.seen == seen))

    def mean(self, context: str, *, perturbed: bool, seen: bool) -> np.ndarray:
        return metrics.gene_means(self.logged[self.rows(context, perturbed=perturbed, seen=seen)])

    def training(self, setting: str, context: str | None, *, labelled: bool = False) -> AnnData:
        """Return the training cells of a setting, without the label of the perturbation unless asked for."""
        from anndata import AnnData

        keep = self.seen.copy()
        if setting == "withheld":
            keep &= ~(self.perturbed & (self.context == context))
        elif setting == "controls":
            keep &= ~self.perturbed
        obs = pd.DataFrame({"context": self.context[keep]}, index=np.flatnonzero(keep).astype(str))
        if labelled:
            obs["perturbation"] = np.where(self.perturbed[keep], "perturbed", "control")
        return AnnData(self.cells.x[keep], obs=obs, var=pd.DataFrame(index=self.cells.genes))

    def scores(self, designed: sparse.csr_matrix, context: str) -> pd.DataFrame:
        """Return the metrics of designed cells, counts, shape (n_cells, n_genes)."""
        logged = log1p_cp10k(designed)
        control, true_control = (self.mean(context, perturbed=False, seen=seen) for seen in (True, False))
        real_rows = self.rows(context, perturbed=True, seen=False)
        effect = metrics.gene_means(logged) - control
        truth = metrics.gene_means(self.logged[real_rows]) - true_control
        others = np.setdiff1d(np.arange(len(effect)), self.steered)
        wanted = self.mean(context, perturbed=True, seen=True)[self.steered] - control[self.steered]
        # components of other contexts: those fitted on the cells compared tell them from any others
        elsewhere = np.flatnonzero(self.context != context)
        components = fit_pca(self.logged[elsewhere], min(N_COMPONENTS, len(elsewhere) // 2), seed=self.seed)
        places = [components.transform(x) for x in (logged, self.logged[real_rows])]
        return pd.DataFrame(
            {
                "pearson_other": metrics.pearson_delta(effect[others], truth[others]),
                "slope_other": metrics.slope(effect[others], truth[others]),
                "auc": metrics.auc(*places, seed=self.seed),
                "reached": float(np.mean(effect[self.steered] / wanted)),
                "distance": _distance(*places),
            }.items(),
            columns=["metric", "value"],
        )


def _distance(designed: np.ndarray, real: np.ndarray) -> float:
    """Median distance to the nearest real cell, in units of that of real cells to the nearest other."""
    from sklearn.neighbors import NearestNeighbors

    neighbours = NearestNeighbors(n_neighbors=2).fit(real)
    own = np.median(neighbours.kneighbors(real)[0][:, 1])
    return float(np.median(neighbours.kneighbors(designed, n_neighbors=1)[0]) / max(own, 1e-12))


# ---- the methods -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Run:
    """All rows of one halving in one setting, unless they are there; ``models`` are trained when first needed."""

    halves: _Halves
    setting: str
    config: TrainConfig
    n: int
    results: Results
    progress: Progress
    models: dict[tuple[str | None, bool], ScIDiff] = field(default_factory=dict)

    def all(self) -> None:
        """Add the rows of every context."""
        for context in self.halves.screen.contexts:
            part = f"{self.setting}, {context}"
            seed = self.halves.seed
            self.results.once(part, seed, HALF, partial(self._half, context))
            self.results.once(part, seed, TARGETS_ONLY, partial(self._targets_only, context))
            self.results.once(part, seed, BEST_REAL, partial(self._best_real, context))
            self.results.once(part, seed, [OURS, BEST_MADE], partial(self._designed, context))
            if self.setting == "unlabelled":
                self.results.once(part, seed, TOLD, partial(self._told, context))

    def _half(self, context: str) -> pd.DataFrame:
        halves = self.halves
        return halves.scores(halves.cells.x[halves.rows(context, perturbed=True, seen=True)], context)

    def _targets_only(self, context: str) -> pd.DataFrame:
        """Control cells with the steered genes of perturbed cells, drawn one by one."""
        halves = self.halves
        rng = np.random.default_rng(halves.seed)
        cells = halves.cells.x[halves.rows(context, perturbed=False, seen=True)].toarray()
        real = halves.cells.x[halves.rows(context, perturbed=True, seen=True)]
        cells[:, halves.steered] = real[rng.integers(real.shape[0], size=len(cells))][:, halves.steered].toarray()
        return halves.scores(sparse.csr_matrix(cells), context)

    def _best_real(self, context: str) -> pd.DataFrame:
        """The training cells of the context that have most of the phenotype, as many as bring their mean nearest."""
        halves = self.halves
        seen = self.halves.training(self.setting, context)
        return halves.scores(self._best(seen[seen.obs["context"] == context].X, context), context)

    def _best(self, counts: sparse.csr_matrix, context: str) -> sparse.csr_matrix:
        """Return the cells with most of the phenotype, at least 10: as many as bring the mean level nearest."""
        halves = self.halves
        level = np.asarray(log1p_cp10k(counts)[:, halves.steered].mean(axis=1)).ravel()
        order = np.argsort(-level, kind="stable")
        wanted = halves.mean(context, perturbed=True, seen=True)[halves.steered].mean()
        running = np.cumsum(level[order]) / np.arange(1, len(order) + 1)
        k = max(10, int(np.argmin(np.abs(running - wanted))) + 1)
        return counts[order[: min(k, self.n)]]

    def _model(self, context: str | None, *, labelled: bool = False) -> ScIDiff:
        """Return a model of the training cells; in most settings one serves all contexts."""
        from scidiff.estimator import ScIDiff

        key = (context if self.setting == "withheld" else None, labelled)
        if key not in self.models:
            schema = Schema(context=["context"])
            if labelled:
                schema = Schema(perturbation="perturbation", control="control", context=["context"])
            with self.progress(f"seed {self.halves.seed}, {self.setting}: training") as advance:
                self.models[key] = ScIDiff.fit(
                    self.halves.training(self.setting, context, labelled=labelled),
                    schema,
                    config=self.config,
                    on_step=lambda at: advance(at.step, at.steps, f"loss {at.loss:.4g}"),
                )
        return self.models[key]

    def _designed(self, context: str) -> pd.DataFrame:
        from scidiff.phenotype import Phenotype

        halves, model = self.halves, self._model(context)
        level = halves.mean(context, perturbed=True, seen=True)[halves.steered]
        wanted = Phenotype(up=[f"{gene}={x:.4f}" for gene, x in zip(halves.screen.targets, level, strict=True)])
        made = model.design(wanted, self.n, {"context": context}, seed=halves.seed)
        ours = halves.scores(made.layers["counts"], context).assign(
            method=OURS, note=str(made.uns["scidiff"]["verdict"])
        )
        many = model.generate(OUT_OF * self.n, {"context": context}, seed=halves.seed)
        best = halves.scores(self._best(many.layers["counts"], context), context)
        return pd.concat([ours, best.assign(method=BEST_MADE)], ignore_index=True)

    def _told(self, context: str) -> pd.DataFrame:
        """Cells of a model that knows the label and is asked for it."""
        model = self._model(context, labelled=True)
        asked = {"context": context, "perturbation": "perturbed"}
        made = model.generate(self.n, asked, seed=self.halves.seed)
        return self.halves.scores(made.layers["counts"], context)


# ---- what came out ---------------------------------------------------------------------------------------------------


def summary(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return means over seeds: a row per setting and context, a column per method."""
    rows = table[table["metric"] == metric]
    return rows.pivot_table(index="part", columns="method", values="value", sort=False)


def verdict(table: pd.DataFrame) -> dict[str, Any]:
    """Return, ``by`` setting and context, the score, its share of the ceiling and the AUC; and all as ``text``."""
    pearson, auc = summary(table, "pearson_other"), summary(table, "auc")
    by = {
        str(part): {
            "pearson_other": round(float(row[OURS]), 4),
            "of_ceiling": round(float(row[OURS] / row[HALF]), 4),
            "auc": round(float(auc.loc[part, OURS]), 4),
            "auc_real": round(float(auc.loc[part, HALF]), 4),
        }
        for part, row in pearson.iterrows()
    }
    return {"by": by, "text": [_sentence(part, one) for part, one in by.items()]}


def _sentence(part: str, one: dict[str, float]) -> str:
    return (
        f"{part}: {one['pearson_other']:.3f}, {one['of_ceiling']:.0%} of what half of the real cells reach; "
        f"AUC against real cells {one['auc']:.2f} (real against real {one['auc_real']:.2f})."
    )


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return a summary for people: three digits, what was not run left empty."""
    rounded = table.round(3).astype(object)
    return rounded.where(table.notna(), "").reset_index()


def write_page(results: Results, screen: _Screen) -> None:
    """Write report.html into the folder of the results."""
    table = results.table
    pearson = summary(table, "pearson_other")
    axes = new_axes(7.2, 0.5 + 0.55 * len(pearson))
    for j, method in enumerate(pearson.columns):
        axes.plot(pearson[method], np.arange(len(pearson)), "o" if method == OURS else ".", label=method, zorder=3 - j)
    axes.set_yticks(np.arange(len(pearson)), pearson.index)
    axes.invert_yaxis()
    axes.set_xlabel("Pearson correlation of the other genes' change")
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    names = ", ".join(screen.targets)
    write_report(
        results.folder / "report.html",
        title=f"Do designed cells of {results.dataset} follow biology?",
        about={
            "phenotype": f"{names} at the level of {screen.perturbation}",
            "contexts": ", ".join(screen.contexts),
            "cells": len(screen.cells.conditions),
            "seeds": table["split"].nunique(),
        },
        summary=verdict(table)["text"],
        extra_sections=[
            ("The genes that were not steered", [PEARSON, _shown(pearson), axes]),
            ("Are they told from real cells?", [AUC, _shown(summary(table, "auc"))]),
            ("Levels of the steered genes", [REACHED, _shown(summary(table, "reached"))]),
        ],
    )


PEARSON = (
    "Mean change of all genes but the steered ones, in designed cells against control cells of training, correlated "
    "with the change in really perturbed cells, which nobody was shown, against other control cells. A method that "
    "only moves the steered genes scores little; half of the real cells in the place of designed ones is the ceiling."
)
AUC = (
    "How well gradient boosting tells the cells from held-out perturbed cells of the same context (.5: not at all), in "
    "principal components of other contexts."
)
REACHED = "Share of the way from control cells to perturbed cells, mean over the steered genes."
