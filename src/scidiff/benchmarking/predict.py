"""Who predicts perturbed cells best, where nobody measured them? Every method on the same held-out cells.

One unit of the benchmark is what one split holds out: a cell type, a combination, a dose, a donor. Its methods learn
from ``train``, start from ``source``, control cells in it, and are scored against ``test`` and ``control``, other
control cells::

    fitted = method.fit(train, schema)        cells = fitted.predict(source, condition)

Rows beside those of methods say what scores mean: one half of the real cells in the place of a prediction (the
ceiling), no change at all (the floor), and scIDiff told the true means: what it still loses there is error of shape,
the rest is error of the mean. Told the means that its network predicts alone, it says what the closed form is worth.
Genes are chosen on training cells, so every unit has its own. From few source cells several are drawn each, so that
scores of means and correlations have 400 cells; distances between populations are means over draws.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from scidiff.benchmarking.denoise import content_of
from scidiff.benchmarking.predict_report import (
    ALONE,
    CEILING,
    CLOSED,
    FLOOR,
    IN_COUNTS,
    LARGE,
    ORACLE,
    OURS,
    verdict,
    write_page,
)
from scidiff.benchmarking.results import REFUSED, NotThere, Results
from scidiff.data.cells import read_cells, usual_genes
from scidiff.data.scaling import log1p_cp10k
from scidiff.data.schema import Schema
from scidiff.data.splits import each_holdout, holdout
from scidiff.data.states import find_states
from scidiff.errors import DataWarning, InputError, closest
from scidiff.evaluation.effects import DRAW, MIN_CELLS, MIN_DRAWN, evaluate_effects
from scidiff.evaluation.shifts import SHIFTS, NoChange, Shift, SimilarityShift, controls_of
from scidiff.files import whole_file, write_h5ad
from scidiff.tasks.predict import NETWORK_CELLS, generated_effect
from scidiff.training import TrainConfig

if TYPE_CHECKING:
    from anndata import AnnData

    from scidiff.estimator import ScIDiff

#: obs column of exported cells, and of cells predicted elsewhere: which unit they belong to
HELD_OUT = "held_out"
TREATMENT = ("perturbation", "dose", "time")

Progress = Callable[[str], AbstractContextManager[Callable[..., None]]]


def _silent(what: str) -> AbstractContextManager[Callable[..., None]]:
    return contextlib.nullcontext(lambda *args: None)


class Fitted(Protocol):
    """A method that has learned."""

    def predict(self, source: AnnData, condition: Mapping[str, Any]) -> AnnData:
        """Return the control cells ``source`` under ``condition``, with the obs columns of the schema."""


class Method(Protocol):
    """A method that can learn; classes of :mod:`scidiff.evaluation.shifts` are such, with a class method."""

    def fit(self, train: AnnData, schema: Schema) -> Fitted:
        """Return the method fitted to training cells."""


def benchmark_prediction(
    adata: AnnData,
    schema: Schema,
    *,
    out: str | Path,
    dataset: str = "data",
    split: str = "context=each",
    methods: Mapping[str, Method] | None = None,
    predicted: Mapping[str, AnnData] | None = None,
    features: pd.DataFrame | None = None,
    states: int | None = None,
    seeds: int = 1,
    genes: Sequence[str] | int | None = 2000,
    layer: str | None = None,
    fast: bool = False,
    resume: bool = False,
    seed: int = 0,
    progress: Progress = _silent,
) -> Results:
    """Return the table of all scores, kept in the folder ``out`` with verdict.json and report.html.

    Columns of the table are those of :class:`scidiff.benchmarking.Results` and ``condition``; ``part`` is the unit held
    out, ``split`` the seed. ``seconds`` of a method are those of fitting and predicting; the other rows of scIDiff use
    the model that its first one was charged for.

    Parameters
    ----------
    adata
        Cells with raw counts, or log expression.
    schema
        Roles of the obs columns, perturbation and control among them.
    out
        Folder for the results, new or of an interrupted run.
    dataset
        What the table and the page call the cells.
    split
        What is held out, see :func:`scidiff.data.splits.each_holdout`: ``context=each``, ``batch=each``,
        ``combination=each``, ``perturbation=each``, ``dose=each``, ``time=each``, ``cell_type=B``.
    methods
        Methods by name; default: :data:`scidiff.evaluation.shifts.SHIFTS`. scIDiff always takes part.
    predicted
        Cells that other tools predicted, by the tool's name, from what :func:`export_splits` wrote: their obs column
        ``held_out`` names the unit, as in the exported cells.
    features
        Description of single perturbations, for scIDiff; see :meth:`scidiff.ScIDiff.fit`.
    states
        Look for at most so many cell states in the training cells (:func:`scidiff.data.states.find_states`), as a
        context for scIDiff and in a second round of the methods; scores know nothing of them.
    seeds
        Halvings of the control cells, with a training run for each.
    genes
        Genes to use: a list, or the number of those most variable in the training cells. None: all.
    layer
        Layer with the expression; by default counts are looked for.
    fast
        Closed forms only, no network is trained.
    resume
        Go on with the run that ``out`` holds.
    seed
        Makes the numbers reproducible.
    progress
        ``progress(what)`` is a context that yields ``advance(done, total, note)``.

    Raises
    ------
    InputError
        The schema names no control, the split cannot be made, or ``out`` cannot be used.
    """
    data = Screen.of(adata, schema, split=split, genes=genes, layer=layer)
    if seeds < 1:
        raise InputError(f"seeds={seeds}: at least one is needed")
    chosen = dict(SHIFTS if methods is None else methods)
    for name, cells in (predicted or {}).items():
        if name in chosen or name in (OURS, CLOSED):
            raise InputError(f"predicted cells are called {name!r}, but that is a method here; give them another name")
        data.check(name, cells, seed=seed, seeds=seeds)
    asked = {
        "task": "predict",
        "data": data.content,
        "schema": schema.to_dict(),
        "split": split,
        "genes": genes if genes is None or isinstance(genes, int) else list(genes),
        "features": None if features is None else _table_hash(features),
        "states": states,
        "fast": fast,
        "seed": seed,
    }
    if not Path(out).exists():  # before a folder is made
        data.check_units(seed)
    results = Results.open(out, dataset=dataset, asked=asked, resume=resume)
    config = TrainConfig(steps=1) if fast else TrainConfig()
    skipped: dict[str, str] = {}
    for one in range(seed, seed + seeds):
        for name in data.units:
            try:
                unit = data.unit(name, seed=one, states=states)
            except InputError as error:
                skipped[name] = str(error)
                continue
            run = _Run(unit, results, progress)
            run.limits()
            run.ours(replace(config, seed=one), features, fast=fast)
            for method in chosen:
                run.method(method, chosen[method])
                if states is not None and "state" in unit.schema.context and method not in BLIND:
                    run.method(f"{method}, by state", chosen[method], by_state=True)
            for method, cells in (predicted or {}).items():
                run.elsewhere(method, cells)
    if results.table.empty:
        raise InputError(f"nothing could be held out: {next(iter(skipped.values()), 'no unit')}")
    found = verdict(results.table)
    with whole_file(results.folder / "verdict.json") as place:
        place.write_text(json.dumps(found, indent=1))
    write_page(results, about=data.about(seeds=seeds, seed=seed, fast=fast), skipped=skipped)
    return results


#: methods to which a further context says nothing
BLIND = ("no change", "perturbed mean", "matching mean", "additive", "linear ridge")


def export_splits(
    adata: AnnData,
    schema: Schema,
    *,
    folder: str | Path,
    split: str = "context=each",
    seeds: int = 1,
    genes: Sequence[str] | int | None = 2000,
    layer: str | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write what other tools need to take part, and return a folder per unit and seed. Nothing in it is held out.

    Each has ``train.h5ad``, ``source.h5ad`` (control cells to start from, all of them in train) and ``asked.csv``: one
    condition per row, in the roles of the schema; ``schema.json`` says which obs columns these are. Predicted cells of
    all units go into one h5ad file, with the obs columns of the source cells, ``held_out`` among them: counts or
    log1p(CP10k), not below 0. Units differ in their genes; genes of others only are left at 0.

    Parameters
    ----------
    adata, schema
        Cells, and the roles of their obs columns.
    folder
        Where to write, a new folder.
    split, seeds, genes, layer, seed
        As :func:`benchmark_prediction` takes them; they must be the same when the predictions are scored.

    Raises
    ------
    InputError
        The folder exists, or the split cannot be made.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"cannot write {folder}: it exists; choose another place")
    data = Screen.of(adata, schema, split=split, genes=genes, layer=layer)
    names: list[str] = []
    with whole_file(folder) as part:
        part.mkdir()
        for one in range(seed, seed + seeds):
            for name in data.units:
                try:
                    unit = data.unit(name, seed=one)
                except InputError as error:
                    warnings.warn(f"{name} is left out: {error}", DataWarning, stacklevel=2)
                    continue
                place = part / f"{len(names):03d}"
                place.mkdir()
                (place / "schema.json").write_text(json.dumps(schema.to_dict()))
                for role, cells in (("train", unit.train), ("source", unit.source)):
                    cells = cells.copy()
                    cells.obs[HELD_OUT] = unit.label
                    write_h5ad(place / f"{role}.h5ad", cells)
                pd.DataFrame([condition for condition, _ in unit.asked]).to_csv(place / "asked.csv", index=False)
                names.append(place.name)
    return [folder / name for name in names]


# ---- what is held out ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Screen:
    """Cells whose perturbation is known, expression in ``X``, and what is held out of them: name -> holdout arguments.

    ``genes`` as asked for: names, or how many.
    """

    adata: AnnData
    schema: Schema
    split: str
    units: dict[str, dict[str, Any]]
    genes: Sequence[str] | int | None

    @classmethod
    def of(
        cls, adata: AnnData, schema: Schema, *, split: str, genes: Sequence[str] | int | None, layer: str | None
    ) -> Screen:
        """Return the screen; InputError without a control, or where the split cannot be made."""
        from anndata import AnnData

        if schema.perturbation is None or schema.control is None:
            raise InputError("predictions are judged by effects: name perturbation= and control= in the schema")
        units = each_holdout(adata, schema, split)
        cells = read_cells(adata, schema, layer=layer)
        schema.validate(adata)
        known = cells.conditions["perturbation"].notna().to_numpy()
        x, obs, var = cells.x[known], adata.obs[known], pd.DataFrame(index=cells.genes)
        return cls(AnnData(x, obs=obs, var=var), schema, split, units, genes)

    @property
    def content(self) -> str:
        """A hash of expression, names and conditions."""
        return content_of(read_cells(self.adata)) + _table_hash(self.schema.table(self.adata))

    def unit(self, name: str, *, seed: int, states: int | None = None) -> Unit:
        """Return one unit; InputError where it is too small to be judged."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # said here, by refusing
            split = holdout(self.adata, self.schema, **self.units[name], seed=seed)
        for role in ("test", "source", "control"):
            if (n := len(getattr(split, role))) < MIN_CELLS:
                raise InputError(f"{n} {role} cells, at least {MIN_CELLS} are needed")
        train, genes = read_cells(self.adata[split.train]), self.genes
        if isinstance(genes, int):
            genes = None if genes >= self.adata.n_vars else usual_genes(train, genes)
        adata = self.adata if genes is None else self.adata[:, list(genes)]
        sets = {role: adata[getattr(split, role)].copy() for role in ("train", "test", "source", "control")}
        schema = self.schema
        if states is not None:
            sets["train"].obs["state"] = find_states(sets["train"], schema, at_most=states, seed=seed)
            sets["source"].obs["state"] = sets["train"].obs["state"].reindex(sets["source"].obs_names)
            schema = replace(schema, context=[*schema.context, "state"])
        return Unit(name, seed, self.schema, schema, **sets)

    def check_units(self, seed: int) -> None:
        """Refuse a split of which no unit is large enough to be judged."""
        reason = InputError("nothing could be held out: no unit")
        for name in self.units:
            try:
                self.unit(name, seed=seed)
            except InputError as error:
                reason = InputError(f"nothing could be held out: {error}")
            else:
                return
        raise reason

    def check(self, name: str, cells: AnnData, *, seed: int, seeds: int) -> None:
        """Refuse predicted cells of which nobody can tell to which unit they belong."""
        if HELD_OUT in cells.obs:
            known = [label_of(unit, seed + i) for unit in self.units for i in range(seeds)]
            given = cells.obs[HELD_OUT].astype(str).unique()
            if not set(given) & set(known):
                raise InputError(
                    f"{name} predicts {given[0]!r}, which is not held out by {self.split!r}{closest(given[0], known)}"
                )
        elif seeds > 1 or len(self.units) > 1:
            raise InputError(
                f"cells of {name} have no obs column {HELD_OUT!r}: with several units it must say which one; "
                "export the split and keep the columns of its source cells"
            )

    def about(self, *, seeds: int, seed: int, fast: bool) -> dict[str, Any]:
        """Return facts for the page."""
        return {
            "cells": self.adata.n_obs,
            "genes": self.genes if isinstance(self.genes, int) else self.adata.n_vars,
            "held out": f"{self.split}: {', '.join(self.units)}",
            "control cells": "one half to predict from, the other half to judge by",
            "seeds": f"{seeds}, from {seed}" + (", closed forms only" if fast else ""),
        }


@dataclass(frozen=True, eq=False)
class Unit:
    """One thing held out: four sets of cells, all of the same genes.

    ``judged_by``: the schema of scores; ``schema``: that of the methods, which may know states of cells besides.
    """

    name: str
    seed: int
    judged_by: Schema
    schema: Schema
    train: AnnData
    test: AnnData
    source: AnnData
    control: AnnData

    @property
    def label(self) -> str:
        return label_of(self.name, self.seed)

    @cached_property
    def asked(self) -> list[tuple[dict[str, Any], np.ndarray]]:
        """Every treatment of the held-out cells, and a mask of the source cells it is asked for."""
        schema, table = self.judged_by, self.judged_by.table(self.test).drop(columns="batch", errors="ignore")
        source = self.judged_by.table(self.source)
        out = []
        roles = [role for role in TREATMENT if role in table]
        for _, rows in table.drop_duplicates().groupby(roles, dropna=False, sort=False):
            masks = [controls_of(source, row, schema) for _, row in rows.iterrows()]
            out.append((rows.iloc[0][roles].dropna().to_dict(), np.logical_or.reduce(masks)))
        return out

    def predicted(self, fitted: Fitted) -> AnnData:
        """Return the cells that a method predicts; conditions it refuses are missing, InputError where it is all."""
        from anndata import concat

        made, refused = [], None
        for i, (condition, rows) in enumerate(self.asked):
            try:
                cells = fitted.predict(drawn_again(self.source[rows]), condition)
            except InputError as error:
                refused = error
                continue
            cells.obs_names = cells.obs_names + f"-{i}"
            made.append(cells)
        if not made:
            raise refused or InputError("no condition was asked for")
        return concat(made)

    def scores(self, cells: AnnData, *, limits: bool = False) -> pd.DataFrame:
        """Return the rows of :func:`evaluate_effects`."""
        return evaluate_effects(
            cells,
            self.test,
            source=self.source,
            control=self.control,
            schema=self.judged_by,
            genes=list(self.train.var_names),
            reference=self.train,
            seed=self.seed,
            limits=limits,
        )


def drawn_again(source: AnnData) -> AnnData:
    """Return the cells as often as it takes to predict ``MIN_DRAWN`` cells from them; obs tells draws apart."""
    from anndata import concat

    n = -(-MIN_DRAWN // max(source.n_obs, 1))
    return concat([source] * n, keys=range(n), label=DRAW, index_unique=", draw ", merge="same")


def label_of(name: str, seed: int) -> str:
    """Return what the obs column ``held_out`` calls a unit."""
    return f"{name}, seed {seed}"


# ---- the methods -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Run:
    """Adds the rows of one unit to the results, unless they are there."""

    unit: Unit
    results: Results
    progress: Progress

    def limits(self) -> None:
        """Add what the best and the worst prediction would score: half of the real cells, and no change."""

        def work() -> pd.DataFrame:
            unit = self.unit
            scores = unit.scores(unit.predicted(NoChange.fit(unit.train, unit.judged_by)), limits=True)
            useless = scores["note"].where(scores["note"].str.startswith("cannot tell"), "")
            sides = [
                scores.assign(method=name, value=scores[column], note=useless)
                for name, column in ((CEILING, "ceiling"), (FLOOR, "floor"))
            ]
            return pd.concat(sides, ignore_index=True)[["method", "condition", "metric", "value", "note"]]

        self.results.once(self.unit.name, self.unit.seed, [CEILING, FLOOR], work)

    def method(self, name: str, method: Method, *, by_state: bool = False) -> None:
        """Add the scores of a method."""

        def work() -> pd.DataFrame:
            unit = self.unit
            schema = unit.schema if by_state else unit.judged_by
            with self._quiet(), self.progress(f"{unit.label}: {name}"):
                return _rows(name, unit, lambda: method.fit(unit.train, schema))

        self.results.once(self.unit.name, self.unit.seed, name, work)

    def elsewhere(self, name: str, cells: AnnData) -> None:
        """Add the scores of cells that another tool predicted."""

        def work() -> pd.DataFrame:
            here = cells
            if HELD_OUT in cells.obs:
                here = cells[(cells.obs[HELD_OUT].astype(str) == self.unit.label).to_numpy()].copy()
            if not here.n_obs:
                raise NotThere(f"no predicted cells of {self.unit.label!r}")
            genes = self.unit.train.var_names
            if len(missing := genes.difference(here.var_names)):
                raise InputError(f"{len(missing)} of the {len(genes)} genes are not predicted, first {missing[0]!r}")
            return _scored(name, self.unit, here[:, genes].copy())  # in the file, other units may have other genes

        self.results.once(self.unit.name, self.unit.seed, name, work)

    def ours(self, config: TrainConfig, features: pd.DataFrame | None, *, fast: bool) -> None:
        """Train once, and add scIDiff, its closed form, both told other means, and a baseline made of counts."""
        unit = self.unit
        networks = {f"{CLOSED}{more}": False for more in ("", f", {ORACLE}")} | {IN_COUNTS: False}
        if not fast:
            networks = {OURS: True, f"{OURS}, {ORACLE}": True, ALONE: True} | networks
        if len(unit.asked) > 1:  # to be told apart
            networks[f"{CLOSED}, {LARGE}"] = False

        def work() -> pd.DataFrame:
            start = time.perf_counter()
            with self._quiet():
                with self.progress(f"{unit.label}: {CLOSED if fast else 'training'}") as advance:
                    model = fit(unit.train, unit.schema, config, features, advance)
                trained = time.perf_counter() - start
                others = {
                    ORACLE: lambda: true_means(unit),
                    IN_COUNTS: lambda: means_of(unit, SimilarityShift),
                    ALONE: lambda: network_means(model, unit),
                    LARGE: lambda: observed_means(model, unit),
                }
                made = []
                for name, network in networks.items():
                    instead = next((how for what, how in others.items() if what in name), None)
                    try:
                        known = model if instead is None else with_means(model, instead())
                        made.append(_rows(name, unit, partial(Ours, known, network)))
                    except InputError as error:
                        made.append(_refusal(name, error))
            first = made[0]
            made[0] = first.assign(seconds=first["seconds"] + trained)
            return pd.concat(made, ignore_index=True)

        self.results.once(unit.name, unit.seed, list(networks), work)

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Methods warn the users of single predictions; here the scores tell."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            yield


def fit(
    cells: AnnData, schema: Schema, config: TrainConfig, features: pd.DataFrame | None, advance: Callable[..., None]
) -> ScIDiff:
    """Return a model that predicts, trained on these cells."""
    from scidiff.estimator import ScIDiff

    told = lambda at: advance(at.step, at.steps, f"loss {at.loss:.4g}")  # noqa: E731
    counted = read_cells(cells).scale == "counts"  # log expression has one network for all tasks
    return ScIDiff.fit(cells, schema, features=features, denoise_only=counted, config=config, on_step=told)


@dataclass(frozen=True, eq=False)
class Ours:
    """A trained model as one of the methods."""

    model: ScIDiff
    network: bool = True

    def predict(self, source: AnnData, condition: Mapping[str, Any]) -> AnnData:
        """Return predicted cells."""
        return self.model.predict(source, condition, network=self.network)


def _rows(name: str, unit: Unit, fitted: Callable[[], Fitted]) -> pd.DataFrame:
    """Return the scores of a method, and the seconds of fitting and predicting."""
    start = time.perf_counter()
    cells = unit.predicted(fitted())
    return _scored(name, unit, cells, seconds=time.perf_counter() - start)


def _scored(name: str, unit: Unit, cells: AnnData, **more: Any) -> pd.DataFrame:
    return unit.scores(cells)[["condition", "metric", "value", "note"]].assign(method=name, **more)


def _refusal(name: str, error: InputError) -> pd.DataFrame:
    return pd.DataFrame({"method": [name], "metric": REFUSED, "value": np.nan, "seconds": 0.0, "note": str(error)})


# ---- other means for the same cells ----------------------------------------------------------------------------------

#: a canonical condition with its contexts, and the mean of the control cells -> effect, log depth ratio (None: as is)
Means = Callable[[pd.Series, np.ndarray], tuple[np.ndarray, float | None]]


@dataclass(frozen=True, eq=False)
class _OtherMeans:
    """Stands where a model has its closed form, and says what that says, but for the mean effect."""

    predictor: Any
    schema: Schema
    means: Means

    def predict(
        self, context: Mapping[str, Any], parts: Sequence[str], *, control_mean: np.ndarray, dose=None, time=None
    ) -> Any:
        effect = self.predictor.effects.predict(context, parts, control_mean=control_mean, dose=dose, time=time)
        sep = self.schema.combination_sep or "+"
        asked = dict(context) | {"perturbation": sep.join(parts)}
        asked |= {"dose": sep.join(f"{one:.12g}" for one in dose)} if dose else {}
        asked |= {"time": time} if time is not None else {}
        mean, log_ratio = self.means(self.schema.conditions(asked).iloc[0], control_mean)
        ratio = np.log(self.predictor.depth_ratio(effect)) if log_ratio is None else log_ratio
        return replace(effect, mean=mean, log_depth_ratio=ratio, kind="told")  # no kind that has other estimates

    def __getattr__(self, name: str) -> Any:
        return getattr(self.predictor.effects, name)


def with_means(model: ScIDiff, means: Means) -> ScIDiff:
    """Return a model that makes cells as before, but with other mean effects."""
    if model.predictor is None:
        raise InputError("the training cells hold no perturbation with control cells")
    closed_form: Any = _OtherMeans(model.predictor, model.schema, means)
    return replace(model, predictor=replace(model.predictor, effects=closed_form))


def true_means(unit: Unit) -> Means:
    """Return the means of the held-out cells themselves; InputError where methods know contexts that those lack."""
    if unit.schema is not unit.judged_by:
        raise InputError("the held-out cells have no states")
    schema = unit.schema
    real, source = ((schema.table(cells), read_cells(cells)) for cells in (unit.test, unit.source))

    def means(asked: pd.Series, control: np.ndarray) -> tuple[np.ndarray, float]:
        names = [name for name in (*schema.context, *TREATMENT) if name in asked and pd.notna(asked[name])]
        rows = np.logical_and.reduce([(real[0][name] == asked[name]).to_numpy() for name in names])
        if not rows.any():
            raise InputError("not among the held-out cells")
        mean, log_depth = _moments(real[1], rows)
        _, before = _moments(source[1], controls_of(source[0], asked, schema))
        return mean - control, log_depth - before

    return means


def means_of(unit: Unit, shift: type[Shift]) -> Means:
    """Return the means that a baseline predicts."""
    fitted = shift.fit(unit.train, unit.schema)
    return lambda asked, control: (fitted.effect(asked, control), None)


def observed_means(model: ScIDiff, unit: Unit) -> Means:
    """Return the means of effects as large as they will look in as many cells, see ``Effect.as_observed``."""
    table = unit.schema.table(unit.source)

    def means(asked: pd.Series, control: np.ndarray) -> tuple[np.ndarray, None]:
        condition = {name: asked[name] for name in TREATMENT if name in asked and pd.notna(asked[name])}
        made = model.predict(unit.source[controls_of(table, asked, unit.schema)], condition, network=False)
        return made.uns["scidiff"]["effects"]["as_observed"].to_numpy(), None

    return means


def network_means(model: ScIDiff, unit: Unit) -> Means:
    """Return the means that the network predicts alone, nothing in closed form beside it."""
    if model.effect_network is None:
        raise InputError("the screen has no gaps to fill, or training was too short: no network learned effects alone")
    depth = np.resize(np.asarray(unit.source.X.sum(axis=1), dtype=np.float64).ravel(), NETWORK_CELLS)

    def means(asked: pd.Series, control: np.ndarray) -> tuple[np.ndarray, None]:
        after = pd.DataFrame([asked] * NETWORK_CELLS).reset_index(drop=True)
        before = after.assign(perturbation=model.schema.control)
        effect = generated_effect(model, before, after, depth=depth, seed=unit.seed)
        if effect is None:
            raise InputError("the network does not know this context")
        return effect, None

    return means


def _moments(cells: Any, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Return mean log expression, shape (n_genes,), and mean log depth of some cells; of expression, depth 1."""
    x = cells.x[rows]
    if cells.scale != "counts":
        return np.asarray(x.mean(axis=0)).ravel(), 0.0
    depth = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    return np.asarray(log1p_cp10k(x).mean(axis=0)).ravel(), float(np.log(np.maximum(depth, 1)).mean())


def _table_hash(table: pd.DataFrame) -> str:
    import hashlib

    return hashlib.sha256(table.to_csv().encode()).hexdigest()
