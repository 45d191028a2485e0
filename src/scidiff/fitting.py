"""Training from cells to a model: check the cells, learn what is in closed form, train the networks, calibrate.

Counts are learned twice: by a network for posterior means, stopped where held-out molecules are predicted best, and by
one to sample with, trained until generated cells vary as real ones do. A third, small one says which genes a
perturbation moves in contexts where it was not measured. Of a file, the networks see all cells; what is learned in
closed form is learned from as many of them as memory holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scidiff._version import __version__
from scidiff.conditioning import Conditions, Vocabulary
from scidiff.data.cells import Cells, choose_genes, expect_cells, read_cells
from scidiff.data.molecules import split_molecules
from scidiff.data.population import Population
from scidiff.data.reference import Reference
from scidiff.data.scaling import Standardizer, log1p_cp10k, row_sums
from scidiff.data.schema import Schema
from scidiff.errors import InputError, closest, expect, whole_numbers
from scidiff.integration.attribution import Library
from scidiff.model import (
    MANY_CELLS,
    PROCESSES,
    SIZE,
    SMALL,
    TO_DENOISE,
    TrainedModel,
    treatment_name,
    unanchored,
    untrained,
)
from scidiff.models.anchor import Anchor
from scidiff.models.effect_ridge import checked_features
from scidiff.phenotype import module_scores
from scidiff.predictor import Predictor
from scidiff.streaming import CellFile
from scidiff.tasks.dealing import DEFAULT, calibrated_dealing
from scidiff.tasks.denoise import matched_sigma
from scidiff.tasks.generate import calibrated_gain
from scidiff.training import (
    CountBatches,
    ExpressionBatches,
    HeldOutCells,
    HeldOutMolecules,
    StoredBatches,
    Subset,
    TrainConfig,
    train,
)
from scidiff.training.batches import Batches
from scidiff.training.heldout import Judge
from scidiff.training.loop import Progress
from scidiff.training.reliability import reliability

if TYPE_CHECKING:
    from anndata import AnnData

Model = TypeVar("Model", bound=TrainedModel)

#: steps from which on an effect network is of use: at first it believes that nothing has an effect
LEAST_STEPS = 150
#: of a file, what is learned in closed form is learned from at most so many cells, and so many values other than zero
CELLS_IN_MEMORY, VALUES_IN_MEMORY = 50_000, 50_000_000
#: what the library calls control cells
CONTROL = "control"
#: held-out cells with fewer of which the level of Gaussian noise is matched on training cells
MIN_CELLS_TO_MATCH = 50


def fit(
    kind: type[Model],
    adata: AnnData | CellFile,
    schema: Schema | None = None,
    *,
    noise: str | None = None,
    genes: Sequence[str] | int | None = None,
    layer: str | None = None,
    features: pd.DataFrame | None = None,
    modules: Mapping[str, Any] | None = None,
    width: int | None = None,
    n_blocks: int | None = None,
    config: TrainConfig | None = None,
    denoise_only: bool = False,
    seed: int | None = None,
    checkpoint: str | Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Model:
    """Return a trained model, an object of class ``kind``; see :meth:`scidiff.ScIDiff.fit`."""
    schema, config = schema or Schema(), config or TrainConfig()
    expect(schema, Schema, "a Schema", "give scidiff.Schema(perturbation=..., control=..., context=...)")
    expect(config, TrainConfig, "a TrainConfig", "give scidiff.TrainConfig(...)")
    whole_numbers(width=(width, 1), n_blocks=(n_blocks, 1))
    features = None if features is None else checked_features(features)
    if not isinstance(adata, CellFile):  # which is never empty
        expect_cells(adata)
    schema.validate(adata)
    if noise is not None and noise not in PROCESSES:
        raise InputError(f"unknown noise process {noise!r}{closest(noise, PROCESSES)}")
    if isinstance(adata, CellFile) and (noise == "gaussian" or modules):
        what = "Gaussian noise needs" if noise == "gaussian" else "modules need"
        raise InputError(f"{what} all cells in memory: read the file, or a sample of it, with anndata.read_h5ad")
    config = config if seed is None else replace(config, seed=seed)
    read = _from_file if isinstance(adata, CellFile) else _in_memory
    material = read(adata, schema, genes=genes, layer=layer, config=config)
    cells, depth = material.cells, material.depth
    noise = noise or ("thinning" if cells.scale == "counts" else "gaussian")
    if noise == "thinning" and cells.scale != "counts":
        raise InputError("thinning needs raw counts; put them in layers['counts'], or use noise='gaussian'")
    if denoise_only and noise == "gaussian":
        raise InputError("denoise_only= is for thinning; with Gaussian noise one training serves all requests")

    logged = log1p_cp10k(cells.x) if modules and cells.scale == "counts" else cells.x  # for modules only
    computed, weights = module_scores(logged, cells.genes, modules or {})
    scores = pd.concat([schema.module_scores(adata).reset_index(drop=True), computed], axis=1)
    schema = replace(schema, modules=(*schema.modules, *computed))
    if denoise_only and schema.modules:
        raise InputError("a model that only denoises is told of no modules; leave them or denoise_only out")
    vocabulary, described = _learn(material.conditions, schema, depth, features, scores)
    within = {name: scores[name].clip(*bounds).to_numpy() for name, bounds in vocabulary.modules.items()}
    cond = vocabulary.encode(material.conditions.assign(**within), depth=depth)
    control = schema.is_control(cells.conditions)
    task = (_count_task if noise == "thinning" else _expression_task)(material, cond, control, config)
    predictor = Predictor.fit(
        cells.x, cells.conditions, schema, counts=cells.scale == "counts", features=features, seed=config.seed
    )
    told = {name: value for name, value in (("width", width), ("n_blocks", n_blocks)) if value is not None}
    smaller = (SMALL if len(material.conditions) < MANY_CELLS else SIZE) | told
    size = smaller if denoise_only else SIZE | told
    denoiser = untrained(PROCESSES[noise](), task.anchor, vocabulary, described, seed=config.seed, **size)
    stages = {"sample": (denoiser, task.judge, config)}
    if noise == "thinning":
        posterior = untrained(TO_DENOISE, task.anchor, vocabulary, described, seed=config.seed, **smaller)
        first = {"denoise": (posterior, task.posterior_judge, _to_denoise(config, len(task.batches)))}
        stages = first if denoise_only else first | stages
        denoiser = posterior if denoise_only else denoiser
    effect_network, shorter = None, _to_say_effects(config, len(task.batches))
    gaps = predictor is not None and predictor.effects.process.measured.has_gaps
    if noise == "thinning" and gaps and shorter.steps_for(len(task.batches)) >= LEAST_STEPS:
        effect_network = unanchored(task.anchor, vocabulary, described, seed=config.seed, **size)
        stages = {"predict": (effect_network, None, shorter)} | stages  # the last stage is the one that reports show
    lengths = [settings.steps_for(len(task.batches)) for _, _, settings in stages.values()]
    histories: dict[str, pd.DataFrame] = {}
    for i, (stage, (network, judge, settings)) in enumerate(stages.items()):
        histories[stage] = train(
            network,
            task.batches,
            # what is denoised cannot be told its own score, and effects are those of whole populations
            task.cond if stage == "sample" else task.cond.drop(*schema.modules),
            config=settings,
            judge=judge,
            checkpoint=None if checkpoint is None else Path(checkpoint) / stage,
            on_step=None if on_step is None else _counted(on_step, before=sum(lengths[:i]), total=sum(lengths)),
        )
    if material.stored is not None:
        material.stored.close()
    model = kind(
        denoiser=denoiser,
        posterior=posterior if noise == "thinning" else denoiser,
        vocabulary=vocabulary,
        genes=cells.genes,
        scale=cells.scale,
        standardizer=task.standardizer,
        population=Population.of(material.conditions, depth),
        predictor=predictor,
        effect_network=effect_network,
        library=None if denoise_only else _library(cells, schema, seed=config.seed),
        reference=Reference.of(cells.x, cells.conditions, seed=config.seed),
        trust=torch.from_numpy(reliability(cells.x, seed=config.seed)) if noise == "thinning" else None,
        history=pd.concat([history.assign(stage=stage) for stage, history in histories.items()], ignore_index=True),
        settings={
            "version": __version__,
            "noise": noise,
            **size,
            "n_features": 0 if described is None else described.shape[1],
            "n_cells": len(material.conditions),
            "gain": 1.0,
            "dealing": DEFAULT,
            "process": asdict(denoiser.process),
            "posterior": {**smaller, "process": asdict(TO_DENOISE)} if noise == "thinning" else None,
            "training": asdict(config),
            **({"modules": weights} if weights else {}),
        },
    )
    if noise == "gaussian":
        rows = slice(500) if len(task.unseen) < MIN_CELLS_TO_MATCH else task.unseen
        matched = matched_sigma(model, cells.x[rows], cond[rows].drop(*schema.modules), seed=config.seed)
        return replace(model, settings=model.settings | matched)
    more: dict[str, Any] = {}
    if predictor is not None:
        more["dealing"] = calibrated_dealing(model, cells, seed=config.seed)
    if not denoise_only:
        more["gain"] = calibrated_gain(model, cells, seed=config.seed)
    return replace(model, settings=model.settings | more)


# ---- what is learned from --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Material:
    """The cells of a training: those in memory, and what networks and population are told of all."""

    cells: Cells
    #: conditions and depths of all cells; no depths where there are no counts
    conditions: pd.DataFrame
    depth: np.ndarray | None
    #: rows of the cells in memory among all
    rows: np.ndarray | slice
    #: all cells, where they are in a file, and of those in memory the molecules kept and held out
    stored: StoredBatches | None = None
    parts: tuple[sparse.csr_matrix, sparse.csr_matrix] | None = None


def _in_memory(
    adata: AnnData, schema: Schema, *, genes: Sequence[str] | int | None, layer: str | None, config: TrainConfig
) -> _Material:
    """Return the cells of an AnnData."""
    del config
    cells = choose_genes(read_cells(adata, schema, layer=layer), genes)
    return _Material(cells, cells.conditions, row_sums(cells.x) if cells.scale == "counts" else None, slice(None))


def _from_file(
    file: CellFile, schema: Schema, *, genes: Sequence[str] | int | None, layer: str | None, config: TrainConfig
) -> _Material:
    """Return the cells of a file: see :data:`CELLS_IN_MEMORY`. Reads it twice, and again where genes are chosen."""
    counts = file.choose(None, layer=layer, csr_only=True)
    if counts.scale != "counts":
        raise InputError(f"{file.path} holds no counts but log expression: read it with anndata.read_h5ad")
    conditions = schema.table(file)
    n = min(CELLS_IN_MEMORY, VALUES_IN_MEMORY * len(counts) // max(counts.n_values, 1))
    rows = _evenly(conditions, n, seed=config.seed)

    def gathered() -> _Material:
        stored = StoredBatches(counts, held_out=config.heldout, seed=config.seed)
        kept, held, depth = stored.gather(rows)
        if empty := int((depth == 0).sum()):
            raise InputError(f"{empty} cells have no molecule of the {len(counts.genes)} genes chosen; choose more")
        cells = Cells(sparse.csr_matrix(kept + held), counts.genes, conditions.iloc[rows], "counts")
        return _Material(cells, conditions, depth, rows, stored, (kept, held))

    material = gathered()
    if genes is None:
        return material
    counts = counts.of_genes(choose_genes(material.cells, genes).genes)
    return gathered()


def _evenly(conditions: pd.DataFrame, n: int, *, seed: int) -> np.ndarray:
    """Return ``n`` rows at random in their order: of every condition as many, or all it has."""
    order = np.random.default_rng(seed).permutation(len(conditions))
    if conditions.shape[1]:
        key = pd.factorize(pd.MultiIndex.from_frame(conditions.astype(object)))[0]
        order = order[np.argsort(pd.Series(order).groupby(key[order]).cumcount().to_numpy(), kind="stable")]
    return np.sort(order[:n])


@dataclass(frozen=True)
class _Task:
    """What a noise process is trained on, what judges it, where it starts, and the cells that it does not see."""

    batches: Batches
    cond: Conditions
    judge: Judge | None
    anchor: Anchor
    standardizer: Standardizer | None = None
    posterior_judge: Judge | None = None
    unseen: np.ndarray | tuple[()] = ()


def _count_task(material: _Material, cond: Conditions, control: np.ndarray, config: TrainConfig) -> _Task:
    """Thinning: a share of the molecules of every cell is held out."""
    split = material.parts or split_molecules(material.cells.x, held_out=config.heldout, seed=config.seed)
    kept, held = split
    in_memory, known = CountBatches(kept), cond[material.rows]
    batches = material.stored or in_memory
    anchor = Anchor.fit(kept, known, control=control, counts=True)
    if not held.nnz:
        return _Task(batches, cond, None, anchor)
    judges = [
        HeldOutMolecules(in_memory, told, CountBatches(held), seed=config.seed, noisy=noisy)
        for told, noisy in ((known, True), (known.drop(*known.modules), False))
    ]
    return _Task(batches, cond, judges[0], anchor, posterior_judge=judges[1])


def _expression_task(material: _Material, cond: Conditions, control: np.ndarray, config: TrainConfig) -> _Task:
    """Gaussian noise: standardised log expression, a share of the cells is held out."""
    cells = material.cells
    logged = log1p_cp10k(cells.x) if cells.scale == "counts" else cells.x
    anchor = Anchor.fit(logged, cond, control=control, counts=False)
    # the network works around the anchor: there, not around the overall mean, genes shall have unit variance
    overall, around = Standardizer.fit(logged), anchor.residual_sd(logged, cond)
    standardizer = Standardizer(mean=overall.mean, sd=np.where(around > 1e-3 * overall.sd, around, overall.sd))
    everything = ExpressionBatches(logged, standardizer)
    order = np.random.default_rng(config.seed).permutation(len(everything))
    fit, held = np.split(order, [len(order) - int(config.heldout * len(order))])
    return _Task(
        batches=Subset(everything, fit),
        cond=cond[torch.from_numpy(fit)],
        judge=HeldOutCells(everything, cond, held, seed=config.seed) if len(held) else None,
        anchor=anchor.standardised(standardizer.mean, standardizer.sd),
        standardizer=standardizer,
        unseen=held,
    )


def _learn(
    table: pd.DataFrame,
    schema: Schema,
    depth: np.ndarray | None,
    features: pd.DataFrame | None,
    modules: pd.DataFrame,
) -> tuple[Vocabulary, torch.Tensor | None]:
    """Vocabulary, and features of the parts in its order, standardised."""
    extra = () if features is None else tuple(features.index)
    vocabulary = Vocabulary.learn(table, schema, depth=depth, extra_parts=extra, modules=modules)
    if features is None:
        return vocabulary, None
    if missing := [part for part in vocabulary.parts if part not in set(extra)]:
        raise InputError(f"features have no row for perturbation {missing[0]!r}{closest(missing[0], extra)}")
    values = features.loc[list(vocabulary.parts)].to_numpy(np.float32)
    sd = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(sd > 0, sd, 1)
    return vocabulary, torch.from_numpy(scaled / np.sqrt(values.shape[1]))


def _library(cells: Cells, schema: Schema, *, seed: int) -> Library | None:
    """Return the conditions that attribution can name: perturbations, each dose on its own; None if there are none."""
    table = cells.conditions
    if schema.perturbation is None or not (control := schema.is_control(table)).any():
        return None
    known = table["perturbation"].notna().to_numpy()
    names = table["perturbation"].astype(str)
    if "dose" in table:
        told = table["dose"].notna() & known & ~control
        treated = table.loc[told, ["perturbation", "dose"]].drop_duplicates()
        dosed = {
            (name, dose): treatment_name(schema.parts(name), schema.dose_parts(dose), separator=schema.combination_sep)
            for name, dose in treated.itertuples(index=False)
        }
        names[told] = [dosed[pair] for pair in zip(table["perturbation"][told], table["dose"][told], strict=True)]
    names = names.where(~control, CONTROL)
    if names[known & ~control].nunique() < 2:  # with one there is no question
        return None
    batch = table[[name for name in (*schema.context, "batch") if name in table]].astype(str).agg("|".join, axis=1)
    x = cells.x[known]
    try:
        library = Library.of(
            log1p_cp10k(x) if cells.scale == "counts" else x,
            list(names[known]),
            control=CONTROL,
            genes=cells.genes,
            batch=list(batch[known]) if table.shape[1] > 1 else None,
            separator=schema.combination_sep,
            seed=seed,
        )
    except InputError:  # one cell of each condition: nothing says how cells vary
        return None
    return Library.from_arrays(*library.to_arrays())  # as precise as it is kept


# ---- how long --------------------------------------------------------------------------------------------------------


def _counted(on_step: Callable[[Progress], None], *, before: int, total: int) -> Callable[[Progress], None]:
    """Count the steps of one stage among those of all."""
    return lambda at: on_step(replace(at, step=before + at.step, steps=total))


def _to_denoise(config: TrainConfig, n_cells: int) -> TrainConfig:
    """Return the settings of the shorter run that stops where held-out molecules are predicted best."""
    return replace(
        config,
        steps=max(1, round(0.75 * config.steps_for(n_cells))),
        batch_size=2 * config.batch_size,
        weight_decay=9 * config.weight_decay,
        patience=config.patience or (4 if config.heldout else None),
    )


def _to_say_effects(config: TrainConfig, n_cells: int) -> TrainConfig:
    """Return the settings of the short run of an effect network: longer, it learns the training contexts by heart."""
    steps = max(1, round(0.5 * config.steps_for(n_cells)))
    return replace(config, steps=steps, ema=min(config.ema, 0.99), patience=None)
