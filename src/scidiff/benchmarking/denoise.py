"""Shall these cells be denoised, and with what? Three questions to one data set.

    molecules     half of every cell's molecules is held out; who predicts them best, and does anybody better than the
                  composition of all cells together?
    invention     genes that were made to carry no signal: are they different between groups after denoising?
    calibration   do as many held-out counts lie in the 50, 80 and 95 % intervals of posterior draws as should?

scIDiff is trained without labels throughout: in public data they were made from all molecules, those held out among
them. Only the test with random labels trains on labels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.benchmarking.denoise_report import DRAWS, MEAN, OBSERVED, OURS, sentences, verdict, write_page
from scidiff.benchmarking.results import Results
from scidiff.data.cells import Cells, choose_genes, read_cells, usual_genes
from scidiff.data.molecules import split_molecules
from scidiff.data.scaling import fit_pca, log1p_cp10k
from scidiff.data.schema import Schema
from scidiff.errors import InputError
from scidiff.evaluation.calibration import calibration
from scidiff.evaluation.denoisers import (
    SQRT,
    GlobalMean,
    Neighbours,
    PrincipalComponents,
    Raw,
    baseline_denoisers,
    pooled,
)
from scidiff.evaluation.denoising import Denoised, Denoiser, cross_validate, nll_per_cell
from scidiff.evaluation.invention import MIN_MOLECULES, Pairs, false_positives, matched_groups, without_signal
from scidiff.files import whole_file
from scidiff.training import TrainConfig

if TYPE_CHECKING:
    from anndata import AnnData

    from scidiff.estimator import ScIDiff

HELD_OUT = 0.5
NOTHING = GlobalMean().name
N_DRAWS, N_MATCHINGS = 3, 5  # where genes are tested: shares of genes are averaged over them
MAX_CALIBRATED, N_PREDICTIVE = 400, 20  # cells, and draws of each
N_SETS, IN_SETS = 15, 600  # gene sets, made of so many of the most abundant genes
MIN_GROUP = 30  # cells of a group after matching

Progress = Callable[[str], AbstractContextManager[Callable[..., None]]]


def _silent(what: str) -> AbstractContextManager[Callable[..., None]]:
    return contextlib.nullcontext(lambda *args: None)


@dataclass(eq=False)
class Diffusion:
    """scIDiff as one of the methods; after ``fit_predict``, ``model`` is what it trained.

    Parameters
    ----------
    config
        Settings of the training run; the seed is that of the split.
    advance
        Told of every step, as ``advance(done, total)``.
    """

    config: TrainConfig
    advance: Callable[..., None] = print
    name: str = OURS
    model: ScIDiff | None = None

    def fit_predict(self, kept: sparse.csr_matrix, *, held_depth: np.ndarray, seed: int) -> Denoised:
        """Return the posterior mean composition; a cell with nothing left gets that of all cells."""
        filled = _sums(kept) > 0
        cells = as_anndata(kept[filled])
        self.model = fit(cells, None, replace(self.config, seed=seed), self.advance)
        composition = np.tile(pooled(kept), (kept.shape[0], 1))
        composition[filled] = self.model.denoise(cells, scales=("rate",)).layers["rate"] / 1e4
        run = self.model.history
        return Denoised(composition, note=f"best step {int(run.loc[run['heldout'].idxmin(), 'step'])}")


def fit(cells: AnnData, schema: Schema | None, config: TrainConfig, advance: Callable[..., None]) -> ScIDiff:
    """Return a model that denoises, trained on these cells."""
    from scidiff.estimator import ScIDiff

    told = lambda at: advance(at.step, at.steps, f"loss {at.loss:.4g}")  # noqa: E731
    return ScIDiff.fit(cells, schema, denoise_only=True, config=config, on_step=told)


def benchmark_denoising(
    adata: AnnData,
    schema: Schema | None = None,
    *,
    out: str | Path,
    dataset: str = "data",
    genes: Sequence[str] | int | None = 2000,
    layer: str | None = None,
    splits: int = 3,
    fast: bool = False,
    resume: bool = False,
    seed: int = 0,
    denoisers: Sequence[Denoiser] | None = None,
    progress: Progress = _silent,
) -> Results:
    """Return the table of all scores, kept in the folder ``out`` with verdict.json and report.html.

    Parameters
    ----------
    adata
        Cells with raw counts.
    schema
        Roles of the obs columns, for groups between which genes are tested: a perturbation and control, or a context.
    out
        Folder for the results, new or of an interrupted run.
    dataset
        What the table and the page call the cells.
    genes
        Genes to use: a list, or the number of most variable ones. None: all.
    layer
        Layer with the counts; by default they are looked for.
    splits
        Random halvings of the molecules.
    fast
        A first impression, in about a minute: at most 500 cells, one split, a short training, the quickest methods.
    resume
        Go on with the run that ``out`` holds.
    seed
        Makes the numbers reproducible.
    denoisers
        Methods beside scIDiff; default: all of :func:`scidiff.evaluation.denoisers.baseline_denoisers`.
    progress
        ``progress(what)`` is a context that yields ``advance(done, total, note)``.

    Raises
    ------
    InputError
        The cells have no counts, or ``out`` cannot be used.
    """
    if splits < 1:
        raise InputError(f"splits={splits}: at least one is needed")
    schema = schema or Schema()
    schema.validate(adata)
    cells = read_cells(adata, schema, layer=layer)
    if cells.scale != "counts":
        raise InputError("denoising is judged by held-out molecules: raw counts are needed, in layers['counts']")
    cells = choose_genes(cells, usual_genes(cells, genes) if isinstance(genes, int) else genes)
    config = TrainConfig(seed=seed)
    if fast:
        cells, splits, config = _some(cells, 500, seed), 1, replace(config, steps=200)
    others = list(_quick() if fast else baseline_denoisers()) if denoisers is None else list(denoisers)
    asked = {
        "task": "denoise",
        "data": content_of(cells),
        "schema": schema.to_dict(),
        "fast": fast,
        "seed": seed,
    }
    results = Results.open(out, dataset=dataset, asked=asked, resume=resume)
    run = _Run(cells, schema, config, results, progress)
    for split in range(seed, seed + splits):
        for method in [None, *others]:
            run.molecules(split, method)
    best = run.best(others)
    # which 200 genes lose their signal decides 2 points of false positives, in the observed counts as well: every split
    # takes its own; what denoisers that smooth invent is far above that, and one look is enough
    for split in range(seed, seed + splits):
        run.invention(split, [best] if best is not None and split == seed else [])
    run.random_label(seed)
    found = verdict(results.table)
    with whole_file(results.folder / "verdict.json") as place:
        place.write_text(json.dumps(found | {"text": sentences(found)}, indent=1))
    write_page(results, about=_about(cells, schema, splits, seed))
    return results


# ---- the parts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Run:
    """What all parts need, and one method for each; each adds rows to the results, unless they are there."""

    cells: Cells
    schema: Schema
    config: TrainConfig
    results: Results
    progress: Progress

    def molecules(self, split: int, method: Denoiser | None) -> None:
        """Score a method on a split, and its gain on the pooled composition, cell by cell. None: scIDiff."""
        name = OURS if method is None else method.name

        def work() -> pd.DataFrame:
            with self.progress(f"split {split}: {name}") as advance:
                ours = Diffusion(self.config, advance)
                seen = _Remembered(method or ours)
                table = cross_validate(self.cells.x, [seen], held_out=HELD_OUT, seeds=[split])
                table = table[["metric", "value", "seconds", "note"]]
                if seen.denoised is None:
                    return table
                kept, held = split_molecules(self.cells.x, held_out=HELD_OUT, seed=split)
                more = {} if name in (NOTHING, Raw().name) else gain(seen.denoised.composition, kept, held)
                if ours.model is not None:
                    more |= self._calibration(ours.model, kept, held, seed=split)
            extra = pd.DataFrame({"metric": list(more), "value": list(more.values())})
            return pd.concat([table, extra.assign(**table.iloc[-1][["seconds", "note"]])], ignore_index=True)

        self.results.once("molecules", split, name, work)

    def _calibration(self, model: ScIDiff, kept: sparse.csr_matrix, held: sparse.csr_matrix, *, seed: int):
        """Compare held-out counts with draws of the molecules that thickening the kept ones adds."""
        filled = np.flatnonzero((_sums(kept) > 0) & (_sums(held) > 0))
        rows = np.random.default_rng(seed).permutation(filled)[:MAX_CALIBRATED]
        draws = predictive_draws(model, kept[rows], _sums(held[rows]), n=N_PREDICTIVE, seed=seed)
        found = calibration(draws, held[rows], gene_sets=gene_sets(kept[filled], seed=seed), seed=seed)
        rows = found.drop(columns="n").iterrows()
        return {f"{metric}, {what}": value for what, row in rows for metric, value in row.items()}

    def best(self, methods: Sequence[Denoiser]) -> Denoiser | None:
        """Return the other method that predicted held-out molecules best, None if none could."""
        rows = self.results.rows("molecules")
        gains = rows[rows["metric"] == "gain"].groupby("method")["value"].mean()
        return max((m for m in methods if m.name in gains), key=lambda method: gains[method.name], default=None)

    def invention(self, seed: int, others: Sequence[Denoiser]) -> None:
        """Test genes without signal between true groups, and look at pairs of genes, before and after denoising."""
        made = without_signal(self.cells.x, seed=seed)
        filled = _sums(made.counts) > 0
        counts = made.counts[filled]
        depth, observed = _sums(counts), log1p_cp10k(counts)
        groups = contrasts(self.cells.conditions[filled], self.schema, depth, seed=seed)
        pairs = Pairs.of(observed, made.genes, seed=seed)

        def judge(expression) -> dict[str, float]:
            shares = {
                f"false positives, {name}": float(np.mean([false_positives(expression, g, made.genes) for g in some]))
                for name, some in groups.items()
            }
            return shares | {f"correlation, {k}": value for k, value in pairs.correlations(expression).items()}

        def other(method: Denoiser) -> pd.DataFrame:
            denoised = method.fit_predict(counts, held_depth=depth, seed=seed)
            return _long({method.name: judge(np.log1p(1e4 * denoised.composition))})

        once = self.results.once
        once("invention", seed, OBSERVED, lambda: _long({OBSERVED: judge(observed)}))
        once("invention", seed, [DRAWS, MEAN], lambda: self._before_after(counts, None, judge, seed=seed))
        for method in others:
            once("invention", seed, method.name, partial(other, method))

    def random_label(self, seed: int) -> None:
        """Train with a random label as the condition, and test all genes between its two values."""
        n_cells = len(self.cells.conditions)
        label = np.random.default_rng([seed, 2]).permutation(np.arange(n_cells) % 2)
        groups = matched_groups(_sums(self.cells.x), label, seed=seed)
        genes = np.flatnonzero(_sums(self.cells.x, axis=0) >= MIN_MOLECULES)
        obs = pd.DataFrame({"label": np.where(label == 0, "a", "b")}, index=np.arange(n_cells).astype(str))

        def judge(expression) -> dict[str, float]:
            return {"false positives, a random label": false_positives(expression, groups, genes)}

        observed = log1p_cp10k(self.cells.x)
        self.results.once("random label", seed, OBSERVED, lambda: _long({OBSERVED: judge(observed)}))
        self.results.once(
            "random label", seed, [DRAWS, MEAN], lambda: self._before_after(self.cells.x, obs, judge, seed=seed)
        )

    def _before_after(
        self,
        counts: sparse.csr_matrix,
        obs: pd.DataFrame | None,
        judge: Callable[[Any], dict[str, float]],
        *,
        seed: int,
    ) -> pd.DataFrame:
        """Train on cells, the columns of ``obs`` as conditions; judge posterior draws, one by one, and the mean."""
        with self.progress("training on " + ("genes without signal" if obs is None else "a random label")) as advance:
            cells = as_anndata(counts, obs)
            schema = None if obs is None else Schema(context=list(obs))
            model = fit(cells, schema, replace(self.config, seed=seed), advance)
            cells = model.denoise(cells, draws=N_DRAWS, seed=seed)
        draws = pd.DataFrame([judge(log1p_cp10k(cells.layers[f"draw_{i + 1}"])) for i in range(N_DRAWS)])
        return _long({DRAWS: draws.mean().to_dict(), MEAN: judge(cells.layers["denoised"])})


# ---- what they are made of -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Remembered:
    """A denoiser, and what it said last."""

    method: Denoiser
    denoised: Denoised | None = None

    @property
    def name(self) -> str:
        return self.method.name

    def fit_predict(self, kept: sparse.csr_matrix, *, held_depth: np.ndarray, seed: int) -> Denoised:
        self.denoised = self.method.fit_predict(kept, held_depth=held_depth, seed=seed)
        return self.denoised


def gain(composition: np.ndarray, kept: sparse.csr_matrix, held: sparse.csr_matrix) -> dict[str, float]:
    """Return by how many nats per held-out molecule a composition beats the pooled one, and the standard error.

    ``gain`` is the difference of the two methods' ``nll_molecule``; ``gain_se`` is that of a mean over cells of paired
    differences, cells weighted by their held-out molecules as in the score.
    """
    nothing = np.tile(pooled(kept), (kept.shape[0], 1))
    depth = _sums(held)
    each = (nll_per_cell(nothing, held) - nll_per_cell(composition, held))[depth > 0]
    weight = depth[depth > 0] / depth.sum()
    mean = weight @ each
    return {"gain": float(mean), "gain_se": float(np.linalg.norm(weight * (each - mean)))}


def predictive_draws(
    model: ScIDiff, kept: sparse.csr_matrix, held_depth: np.ndarray, *, n: int, seed: int
) -> Iterator[sparse.csr_matrix]:
    """Yield draws of ``held_depth`` further molecules of each cell: what thickening adds to the kept ones."""
    depth = _sums(kept) + held_depth
    for i in range(n):
        cells = model.denoise(as_anndata(kept), scales=(), draws=1, depth=depth, seed=n * seed + i)
        yield cells.layers["draw_1"] - cells.layers["counts"]


def gene_sets(counts: sparse.csr_matrix, *, seed: int) -> list[np.ndarray]:
    """Return positions of genes that move together: clusters of the most abundant genes by their loadings."""
    from sklearn.cluster import KMeans

    abundant = np.argsort(-_sums(counts, axis=0), kind="stable")[:IN_SETS]
    x = log1p_cp10k(counts)[:, abundant]
    pca = fit_pca(x, min(20, min(x.shape) - 1), seed=seed)
    loadings = (pca.components_ * np.sqrt(pca.explained_variance_)[:, None]).T
    loadings /= np.maximum(np.linalg.norm(loadings, axis=1, keepdims=True), 1e-12)
    of_gene = KMeans(min(N_SETS, len(abundant)), n_init=3, random_state=seed).fit_predict(loadings)
    return [abundant[of_gene == i] for i in np.unique(of_gene)]


def contrasts(
    conditions: pd.DataFrame, schema: Schema, depth: np.ndarray, *, seed: int
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return pairs of groups that truly differ, by name, each matched for depth in several random ways.

    The most frequent perturbation and control; the two most frequent values of each context. Pairs with fewer than 30
    cells a side are left out.
    """
    out: dict[str, np.ndarray] = {}
    if schema.perturbation is not None and schema.control is not None:
        treated = conditions["perturbation"].where(~schema.is_control(conditions))
        if treated.notna().any():
            most = treated.value_counts().index[0]
            out[f"{most} v. {schema.control}"] = np.select([schema.is_control(conditions), treated == most], [0, 1], 2)
    for name in schema.context:
        if len(common := conditions[name].value_counts().index[:2]) == 2:
            a, b = ((conditions[name] == value).to_numpy() for value in common)
            out[f"{common[0]} v. {common[1]}"] = np.select([a, b], [0, 1], 2)
    matched = {
        name: [matched_groups(depth, group, seed=seed + i) for i in range(N_MATCHINGS)] for name, group in out.items()
    }
    return {name: some for name, some in matched.items() if min(len(first) for first, _ in some) >= MIN_GROUP}


def as_anndata(counts: sparse.csr_matrix, obs: pd.DataFrame | None = None) -> AnnData:
    """Return counts as AnnData with plain names, no cell empty."""
    from anndata import AnnData

    n_cells, n_genes = counts.shape
    names = pd.DataFrame(index=np.arange(n_cells).astype(str))
    return AnnData(counts, obs=names if obs is None else obs, var=pd.DataFrame(index=np.arange(n_genes).astype(str)))


def _long(found: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return columns method, metric, value from numbers by method and metric."""
    rows = [(method, metric, value) for method, numbers in found.items() for metric, value in numbers.items()]
    return pd.DataFrame(rows, columns=["method", "metric", "value"])


def _quick() -> list[Denoiser]:
    return [GlobalMean(), Raw(), PrincipalComponents(SQRT), Neighbours(SQRT)]


def _some(cells: Cells, n: int, seed: int) -> Cells:
    """Return at most ``n`` random cells."""
    rows = np.sort(np.random.default_rng(seed).permutation(cells.x.shape[0])[:n])
    return replace(cells, x=cells.x[rows], conditions=cells.conditions.iloc[rows])


def _about(cells: Cells, schema: Schema, splits: int, seed: int) -> dict[str, Any]:
    return {
        "cells": cells.x.shape[0],
        "genes": cells.x.shape[1],
        "median depth": f"{np.median(_sums(cells.x)):.0f} molecules of these genes",
        "splits": f"{splits}, each holds out half of the molecules of every cell",
        "labels": ", ".join(schema.columns.values()) or "none given",
        "seed": seed,
    }


def content_of(cells: Cells) -> str:
    """Return a hash of the counts and gene names."""
    digest = hashlib.sha256("\n".join(cells.genes).encode())
    counts = sparse.csr_matrix(cells.x)
    for array in (counts.data, counts.indices, counts.indptr):
        digest.update(np.ascontiguousarray(array, dtype=np.float64).tobytes())
    return digest.hexdigest()


def _sums(x: sparse.csr_matrix, *, axis: int = 1) -> np.ndarray:
    return np.asarray(x.sum(axis=axis), dtype=np.float64).ravel()
