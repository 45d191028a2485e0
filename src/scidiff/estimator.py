"""ScIDiff: one trained model of single-cell expression, and what it can be asked.

    model = ScIDiff.fit(adata, schema)     model.save(folder)     model = ScIDiff.load(folder)
    cells = model.generate(500, {"cell_type": "B"})

Every verb takes and returns AnnData, writes nothing into the caller's object, and says in ``uns["scidiff"]`` how the
result was made and on which scale each matrix is. The work is done in the rooms; this file wires them together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scidiff._version import __version__
from scidiff.conditioning import ConditionEncoder, Conditions, Vocabulary
from scidiff.data.cells import Cells, read_cells
from scidiff.data.molecules import split_molecules
from scidiff.data.population import Population
from scidiff.data.scaling import Standardizer, log1p_cp10k
from scidiff.data.schema import Schema
from scidiff.errors import InputError, closest
from scidiff.models.anchor import Anchor
from scidiff.models.denoiser import Denoiser
from scidiff.models.gaussian import GaussianNoise
from scidiff.models.networks import Backbone
from scidiff.models.thinning import Thinning
from scidiff.sampling.generate import generate
from scidiff.sampling.guidance import ClassifierFree
from scidiff.storage import read_model, write_model
from scidiff.training import (
    CountBatches,
    ExpressionBatches,
    HeldOutCells,
    HeldOutMolecules,
    Subset,
    TrainConfig,
    train,
)
from scidiff.training.batches import Batches
from scidiff.training.heldout import Judge
from scidiff.training.loop import Progress

if TYPE_CHECKING:
    from anndata import AnnData

PROCESSES = {"thinning": Thinning, "gaussian": GaussianNoise}

#: factors on what a cell's molecules say that calibration may choose from; beyond, the network itself is at fault
GAINS = (0.9, 1.4)
#: molecules a generated cell may have; every one of them is drawn
MAX_DEPTH = 10_000_000
#: with fewer, the spread of real cells is too uncertain to calibrate to
MIN_CELLS_TO_CALIBRATE = 200


@dataclass(frozen=True, eq=False)
class ScIDiff:
    """A trained model. Made by :meth:`fit` or :meth:`load`; there is no untrained state.

    Parameters
    ----------
    denoiser
        The network with its anchor and noise process: ``prediction = denoiser(x_noisy, level, cond)``.
    vocabulary
        Schema and known conditions.
    genes
        Genes in the order of the model.
    scale
        What the model was trained on: "counts" or "log1p".
    standardizer
        Per-gene scaling of log1p(CP10k) for the Gaussian process; None for thinning.
    population
        Frequencies and depths of the training conditions.
    history
        One row per look at what was held out: step, loss, heldout, seconds.
    settings
        How the model was made, JSON values.
    """

    denoiser: Denoiser
    vocabulary: Vocabulary
    genes: list[str]
    scale: str
    standardizer: Standardizer | None
    population: Population
    history: pd.DataFrame
    settings: dict[str, Any]

    # ---- making one ----------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        adata: AnnData,
        schema: Schema | None = None,
        *,
        noise: str | None = None,
        genes: Sequence[str] | int | None = None,
        layer: str | None = None,
        features: pd.DataFrame | None = None,
        width: int = 256,
        n_blocks: int = 3,
        config: TrainConfig | None = None,
        seed: int | None = None,
        checkpoint: str | Path | None = None,
        on_step: Callable[[Progress], None] | None = None,
    ) -> ScIDiff:
        """Return a model trained on the cells of ``adata``.

        Parameters
        ----------
        adata
            Raw counts (preferred) or log expression, cells x genes; read, never written.
        schema
            Roles of the obs columns; None for an atlas without conditions.
        noise
            "thinning" (default for counts) or "gaussian" (log1p expression).
        genes
            Genes to model: a list, or the number of most variable ones. None: all, which is fine for counts.
        layer
            Layer with the expression; by default counts are looked for.
        features
            Description of single perturbations, one row each (fingerprints, gene sets, embeddings); rows may name
            perturbations that were never seen.
        width, n_blocks
            Size of the network.
        config
            Settings of the training run.
        seed
            Shorthand for ``config.seed``.
        checkpoint
            Folder in which an interrupted training is kept and from which it goes on.
        on_step
            Called after each training step.

        Raises
        ------
        InputError
            The data, the schema or a setting cannot be used; the message names it and the remedy.
        """
        schema = schema or Schema()
        schema.validate(adata)
        config = config or TrainConfig()
        config = config if seed is None else replace(config, seed=seed)
        cells = read_cells(adata, schema, layer=layer)
        cells = choose_genes(cells, genes)
        noise = noise or ("thinning" if cells.scale == "counts" else "gaussian")
        if noise not in PROCESSES:
            raise InputError(f"unknown noise process {noise!r}{closest(noise, PROCESSES)}")
        if noise == "thinning" and cells.scale != "counts":
            raise InputError("thinning needs raw counts; put them in layers['counts'], or use noise='gaussian'")

        depth = _sums(cells.x) if cells.scale == "counts" else None
        vocabulary, described = _learn(cells, schema, depth, features)
        cond = vocabulary.encode(cells.conditions, depth=depth)
        control = schema.is_control(cells.conditions)
        task = (_count_task if noise == "thinning" else _expression_task)(cells, cond, control, config)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            denoiser = Denoiser(
                PROCESSES[noise](),
                anchor=task.anchor,
                encoder=ConditionEncoder(vocabulary, width, features=described),
                backbone=Backbone(len(cells.genes), width=width, n_blocks=n_blocks),
            )
        history = train(
            denoiser,
            task.batches,
            task.cond,
            config=config,
            judge=task.judge,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            on_step=on_step,
        )
        model = cls(
            denoiser=denoiser,
            vocabulary=vocabulary,
            genes=cells.genes,
            scale=cells.scale,
            standardizer=task.standardizer,
            population=Population.of(cells.conditions, depth),
            history=history,
            settings={
                "version": __version__,
                "noise": noise,
                "width": width,
                "n_blocks": n_blocks,
                "n_features": 0 if described is None else described.shape[1],
                "n_cells": cells.x.shape[0],
                "gain": 1.0,
                "process": asdict(denoiser.process),
                "training": asdict(config),
            },
        )
        gain = _calibrated_gain(model, cells, seed=config.seed) if noise == "thinning" else 1.0
        return replace(model, settings=model.settings | {"gain": gain})

    @property
    def schema(self) -> Schema:
        """Roles of the obs columns."""
        return self.vocabulary.schema

    def save(self, folder: str | Path) -> Path:
        """Write the model as a folder of safetensors and JSON, whole or not at all; return its path.

        Raises
        ------
        InputError
            The folder exists and is not a model.
        """
        tensors = {f"denoiser/{name}": tensor for name, tensor in self.denoiser.state_dict().items()}
        if self.standardizer is not None:
            tensors |= {f"standardizer/{k}": torch.from_numpy(v) for k, v in self.standardizer.to_arrays().items()}
        if self.population.log_depth is not None:
            tensors["population/log_depth"] = torch.from_numpy(self.population.log_depth)
        about = {
            "settings": self.settings,
            "scale": self.scale,
            "vocabulary": self.vocabulary.to_dict(),
            "population": self.population.to_dict(),
            "factors": [factor.attributes for factor in self.denoiser.anchor.factors],
            "history": self.history.to_dict("records"),
            "genes": self.genes,
        }
        return write_model(Path(folder), about, tensors)

    @classmethod
    def load(cls, folder: str | Path) -> ScIDiff:
        """Return the model in a folder that :meth:`save` wrote.

        Raises
        ------
        InputError
            There is none, it is damaged, or a newer version wrote it.
        """
        about, tensors = read_model(Path(folder))
        needed = ("settings", "scale", "vocabulary", "population", "factors", "history", "genes")
        if missing := [name for name in needed if name not in about]:
            raise InputError(f"the manifest of {folder} has no {missing[0]!r}; train or copy the model again")
        settings, genes = about["settings"], about["genes"]
        vocabulary = Vocabulary.from_dict(about["vocabulary"])
        state = {k.removeprefix("denoiser/"): v for k, v in tensors.items() if k.startswith("denoiser/")}
        denoiser = Denoiser(
            PROCESSES[settings["noise"]](**settings["process"]),
            anchor=Anchor.from_state(about["factors"], state, prefix="anchor."),
            encoder=ConditionEncoder(vocabulary, settings["width"], features=state.get("encoder.part_features")),
            backbone=Backbone(len(genes), width=settings["width"], n_blocks=settings["n_blocks"]),
        )
        denoiser.load_state_dict(state)
        arrays = {k.removeprefix("standardizer/"): v.numpy() for k, v in tensors.items() if k.startswith("standard")}
        log_depth = tensors.get("population/log_depth")
        return cls(
            denoiser=denoiser.eval(),
            vocabulary=vocabulary,
            genes=genes,
            scale=about["scale"],
            standardizer=Standardizer.from_arrays(arrays) if arrays else None,
            population=Population.from_dict(
                about["population"], vocabulary.schema, None if log_depth is None else log_depth.numpy()
            ),
            history=pd.DataFrame(about["history"]),
            settings=settings,
        )

    # ---- asking it -----------------------------------------------------------------------------------------------

    def generate(
        self,
        n: int = 1,
        condition: Mapping[str, Any] | pd.DataFrame | None = None,
        *,
        depth: float | np.ndarray | None = None,
        guidance: float | Mapping[str, float] = 1.0,
        n_steps: int = 20,
        solver: Callable[..., torch.Tensor] | None = None,
        seed: int = 0,
        on_cells: Callable[[int], None] | None = None,
    ) -> AnnData:
        """Return new cells.

        Thinning: integer counts in ``layers["counts"]`` (csr) and log1p(CP10k) in ``X``. Gaussian: expression on the
        training scale in ``X``.

        Parameters
        ----------
        n
            Cells per condition.
        condition
            One condition as a dict, several as a DataFrame (``n`` cells for each row). Attributes that are left open
            are drawn as in the training cells that agree with the rest. None: conditions as in training.
        depth
            Molecules per cell: one number, or one per cell. Default: drawn from the training cells of the condition.
        guidance
            Weight of classifier-free guidance, one or per attribute; 1 samples the model as it is.
        n_steps
            Steps of the sampler.
        solver
            Gaussian noise only: a function of :mod:`scidiff.sampling.solvers`.
        seed
            Makes the cells reproducible.
        on_cells
            Called with the number of cells made so far.

        Raises
        ------
        InputError
            Unknown attribute or value (the nearest are named), or a number out of range.
        """
        if n < 1 or n_steps < 1 or seed < 0:
            raise InputError(
                f"n={n}, n_steps={n_steps}, seed={seed}: n and n_steps must be at least 1, seed at least 0"
            )
        self._refuse_useless(depth=depth, solver=solver, guidance=guidance)
        # three streams, so that two conditions asked for with one seed share their noise: paired cells
        of_conditions, of_depths, of_noise = np.random.SeedSequence(seed).spawn(3)
        asked = self.schema.conditions({} if condition is None else condition, known=self.vocabulary.known)
        if not len(asked):
            raise InputError("the table of conditions has no rows")
        asked = asked.loc[np.repeat(asked.index, n)].reset_index(drop=True)
        table = self.population.complete(asked, rng=np.random.default_rng(of_conditions))
        depths = None
        if self.scale == "counts" and depth is None:
            depths = self.population.draw_depth(table, rng=np.random.default_rng(of_depths))
        elif depth is not None:
            depths = _checked_depth(depth, len(table))
        cond = self.vocabulary.encode(table, depth=depths)
        guided = ClassifierFree(self.denoiser, guidance)
        chunks: list[Any] = []

        def collect(x: torch.Tensor) -> None:
            chunks.append(sparse.csr_matrix(x.numpy()) if self.standardizer is None else x.numpy())
            if on_cells is not None:
                on_cells(sum(chunk.shape[0] for chunk in chunks))

        generate(
            self.denoiser,
            cond,
            n_steps=n_steps,
            guided=guided,
            solver=solver,
            gain=self.settings["gain"],
            generator=torch.Generator(self.denoiser.device).manual_seed(int(of_noise.generate_state(1)[0])),
            on_cells=collect,
        )
        stack = sparse.vstack(chunks, format="csr") if self.standardizer is None else np.concatenate(chunks)
        return self._as_anndata(
            stack,
            table,
            verb="generate",
            condition="as in training" if condition is None else asked.to_json(orient="records"),
            depth="as in training" if depth is None else "as asked",
            seed=seed,
            n_steps=n_steps,
            solver=getattr(getattr(solver, "func", solver), "__name__", "default"),
            guidance=dict(guidance) if isinstance(guidance, Mapping) else float(guidance),
        )

    def _refuse_useless(self, *, depth: Any, solver: Any, guidance: Any) -> None:
        """Raise for a request that this model could only ignore."""
        if depth is not None and self.scale != "counts":
            raise InputError("depth= needs a model trained on counts; this one was trained on log expression")
        if solver is not None and self.standardizer is None:
            raise InputError("solver= is for Gaussian noise; thinning has one sampler, with n_steps=")
        known = self.vocabulary.attributes
        if isinstance(guidance, Mapping) and (unknown := [name for name in guidance if name not in known]):
            raise InputError(
                f"guidance names {unknown[0]!r}, not an attribute of this model{closest(unknown[0], known)}"
            )

    def _as_anndata(self, x: Any, table: pd.DataFrame, **how: Any) -> AnnData:
        """Return sampled values as AnnData with conditions and provenance."""
        from anndata import AnnData

        schema = self.schema
        obs = table.rename(columns=schema.columns).set_axis([f"cell{i}" for i in range(len(table))], axis=0)
        obs = obs.apply(_as_obs)
        var = pd.DataFrame(index=pd.Index(self.genes))
        if self.standardizer is None:
            out = AnnData(log1p_cp10k(x), obs=obs, var=var, layers={"counts": x})
            scales = {"X": "log1p(CP10k)", "counts": "counts"}
        else:
            values = np.maximum(self.standardizer.inverse(x), 0)
            out = AnnData(values, obs=obs, var=var)
            scales = {"X": "log1p(CP10k)" if self.scale == "counts" else "training scale"}
        out.uns["scidiff"] = {
            "version": __version__,
            "process": self.settings["noise"],
            "schema": json.dumps(schema.to_dict()),
            "scales": scales,
            **how,
        }
        return out


# ---- helpers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What a noise process is trained on, what judges it, and where it starts."""

    batches: Batches
    cond: Conditions
    judge: Judge | None
    anchor: Anchor
    standardizer: Standardizer | None


def _count_task(cells: Cells, cond: Conditions, control: np.ndarray, config: TrainConfig) -> _Task:
    """Thinning: a share of the molecules of every cell is held out."""
    kept, held = split_molecules(cells.x, held_out=config.heldout, seed=config.seed)
    batches = CountBatches(kept)
    judge = HeldOutMolecules(batches, cond, CountBatches(held), seed=config.seed) if held.nnz else None
    return _Task(batches, cond, judge, Anchor.fit(kept, cond, control=control, counts=True), None)


def _expression_task(cells: Cells, cond: Conditions, control: np.ndarray, config: TrainConfig) -> _Task:
    """Gaussian noise: standardised log expression, a share of the cells is held out."""
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
    )


def _calibrated_gain(model: ScIDiff, cells: Cells, *, seed: int) -> float:
    """Return the gain at which generated cells spread within their conditions as the training cells do.

    Bisected on training cells (at most 1,200), generated in their own conditions and depths with the same noise.
    """
    from scidiff.evaluation.spread import Spread

    rows = np.random.default_rng(seed).permutation(len(cells.conditions))[:1200]
    table = cells.conditions.iloc[rows].reset_index(drop=True)
    condition = table.astype(str).agg("|".join, axis=1).to_numpy() if table.shape[1] else np.zeros(len(rows))
    counts = sparse.csr_matrix(cells.x[rows])
    if len(rows) < MIN_CELLS_TO_CALIBRATE or counts.shape[1] < 3:
        return 1.0
    real = Spread.of(counts, condition)
    compared, depth = slice(1, None, 2), _sums(counts)

    def ratio(gain: float) -> float:
        trial = replace(model, settings=model.settings | {"gain": gain})
        made = trial.generate(1, table[compared].reset_index(drop=True), depth=depth[compared], seed=seed)
        return real.ratio(made.layers["counts"], condition[compared])

    low, high = GAINS
    for _ in range(5):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) < 1 else (low, middle)
    return round((low + high) / 2, 3)


def choose_genes(cells: Cells, genes: Sequence[str] | int | None) -> Cells:
    """Return cells with the genes asked for: a list, or the most variable ones of these (training) cells."""
    if genes is None:
        return cells
    if isinstance(genes, Integral):
        from scidiff.data.scaling import highly_variable_genes

        logged = log1p_cp10k(cells.x) if cells.scale == "counts" else cells.x
        places = highly_variable_genes(logged, int(genes))
    else:
        index = pd.Index(cells.genes)
        if len(set(genes)) < len(genes):
            double = pd.Index(genes)[pd.Index(genes).duplicated()][0]
            raise InputError(f"gene {double!r} is asked for more than once; name each gene once")
        if missing := [gene for gene in genes if gene not in index]:
            raise InputError(
                f"{len(missing)} of {len(genes)} genes asked for are not in the data, first {missing[0]!r}"
                f"{closest(missing[0], cells.genes)}"
            )
        places = index.get_indexer(list(genes))
    x = cells.x[:, places]
    empty = _sums(x) == 0
    if cells.scale == "counts" and empty.any():
        raise InputError(f"{int(empty.sum())} cells have no molecule of the {len(places)} genes chosen; choose more")
    return Cells(x=x, genes=[cells.genes[i] for i in places], conditions=cells.conditions, scale=cells.scale)


def _learn(
    cells: Cells, schema: Schema, depth: np.ndarray | None, features: pd.DataFrame | None
) -> tuple[Vocabulary, torch.Tensor | None]:
    """Vocabulary, and features of the parts in its order, standardised."""
    extra = () if features is None else tuple(map(str, features.index))
    vocabulary = Vocabulary.learn(cells.conditions, schema, depth=depth, extra_parts=extra)
    if features is None:
        return vocabulary, None
    if missing := [part for part in vocabulary.parts if part not in set(extra)]:
        raise InputError(f"features have no row for perturbation {missing[0]!r}{closest(missing[0], extra)}")
    values = features.set_axis(list(extra)).loc[list(vocabulary.parts)].to_numpy(np.float32)
    if not np.isfinite(values).all():
        raise InputError("features have missing or infinite values")
    sd = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(sd > 0, sd, 1)
    return vocabulary, torch.from_numpy(scaled / np.sqrt(values.shape[1]))


def _as_obs(column: pd.Series) -> pd.Series:
    """A column that h5ad can hold: numbers with NaN, or text with "unknown" (doses of combinations are text)."""
    given = column.dropna()
    if len(given) and not given.map(lambda value: isinstance(value, str)).any():
        return column.astype(float)
    return column.astype(object).where(column.isna(), column.astype(str)).fillna("unknown")


def _checked_depth(depth: float | np.ndarray, n: int) -> np.ndarray:
    depth = np.broadcast_to(np.asarray(depth, dtype=float), (n,)) if np.ndim(depth) == 0 else np.asarray(depth, float)
    if depth.shape != (n,) or not ((depth >= 1) & (depth <= MAX_DEPTH)).all():
        raise InputError(
            f"depth must be one number from 1 to {MAX_DEPTH:,} molecules, or one for each of the {n} cells"
        )
    return np.rint(depth)


def _sums(x: sparse.csr_matrix | np.ndarray) -> np.ndarray:
    return np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
