"""ScIDiff: one trained model of single-cell expression, and what it can be asked.

    model = ScIDiff.fit(adata, schema)     model.save(folder)     model = ScIDiff.load(folder)
    cells = model.generate(500, {"cell_type": "B"})

Every verb takes and returns AnnData, writes nothing into the caller's object, and says in ``uns["scidiff"]`` how the
result was made and on which scale each matrix is. The work is done in the rooms; this file wires them together.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scidiff._version import __version__
from scidiff.conditioning import ConditionEncoder, Conditions, Vocabulary
from scidiff.data.cells import Cells, listing, read_cells
from scidiff.data.molecules import split_molecules
from scidiff.data.population import Population
from scidiff.data.scaling import Standardizer, log1p_cp10k
from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError, closest
from scidiff.files import check_cells_place
from scidiff.models.anchor import Anchor
from scidiff.models.denoiser import Denoiser
from scidiff.models.gaussian import GaussianNoise
from scidiff.models.networks import Backbone
from scidiff.models.thinning import Thinning
from scidiff.predictor import Predictor, context_keys
from scidiff.sampling.denoise import Cautious, posterior_draw, posterior_mean
from scidiff.sampling.generate import CHUNK, generate
from scidiff.sampling.guidance import ClassifierFree, Gain
from scidiff.sampling.perturb import counterfactual
from scidiff.sampling.solvers import dpmpp_2m, invert
from scidiff.storage import read_model, write_model
from scidiff.streaming import CellFile, appended, runs
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
from scidiff.training.reliability import reliability

if TYPE_CHECKING:
    from anndata import AnnData

PROCESSES = {"thinning": Thinning, "gaussian": GaussianNoise}

#: thinning as it is learned for denoising: cells that lost about half of their molecules, the deep ones speaking louder
TO_DENOISE = Thinning(empty=0.0, uniform=1.0, middle=True, power=0.5)

#: factors on what a cell's molecules say that calibration may choose from; beyond, the network itself is at fault
GAINS = (0.9, 1.4)
#: scales of posterior means, and the layers they are written to
SCALES = {
    "log1p": "denoised",
    "rate": "rate",
    "expected_counts": "expected_counts",
    "expected_log": "expected_log",
}
DESCRIBED = {
    "denoised": "log1p(CP10k) of the posterior mean rate",
    "rate": "posterior mean rate, counts per 10,000",
    "expected_counts": "mean of new counts at the depth asked for",
    "expected_log": "mean of log1p(CP10k) of new counts at the depth asked for",
}

#: levels of Gaussian noise that cells may be matched to, in standard deviations of a gene, and cells to choose by
SIGMAS = tuple(np.geomspace(0.1, 20, 14).round(3).tolist())
MIN_CELLS_TO_MATCH = 50
#: molecules a generated cell may have; every one of them is drawn
MAX_DEPTH = 10_000_000
#: cells predicted together: their genes' totals are balanced over all of them
POPULATION = 2000
#: gain with which new molecules are dealt: a posterior mean says too little of how genes go together in a cell. Chosen
#: by hand on held-out cell types of one data set (Kang et al. 2018): larger, cells of strong responders spread too far
DEALING_GAIN = 1.5
#: fewer cells than this are predicted among reference cells of their context
MIN_POPULATION = 50
#: out-of-distribution score from which on a prediction is warned of
UNKNOWN = 0.5
#: with fewer, the spread of real cells is too uncertain to calibrate to
MIN_CELLS_TO_CALIBRATE = 200


@dataclass(frozen=True, eq=False)
class ScIDiff:
    """A trained model. Made by :meth:`fit` or :meth:`load`; there is no untrained state.

    Parameters
    ----------
    denoiser
        The network with its anchor and noise process: ``prediction = denoiser(x_noisy, level, cond)``. Cells are
        sampled from it: trained long, until cells vary as real ones do.
    posterior
        The same with other weights, for posterior means: stopped where held-out molecules are predicted best, long
        before. Gaussian noise: the same object.
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
    predictor
        Effects of perturbations in closed form; None without a perturbation and control cells.
    trust
        For draws: how far the other genes of a cell foretell each gene, from 0 to 1, shape (n_genes,); None: fully.
    history
        One row per look at what was held out: step, loss, heldout, seconds, and stage: "sample", or "denoise" for
        the weights of ``posterior`` (``heldout`` is then nats per held-out molecule, given all others of its cell).
    settings
        How the model was made, JSON values.
    """

    denoiser: Denoiser
    posterior: Denoiser
    vocabulary: Vocabulary
    genes: list[str]
    scale: str
    standardizer: Standardizer | None
    population: Population
    predictor: Predictor | None
    trust: torch.Tensor | None
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
        width: int = 384,
        n_blocks: int = 3,
        config: TrainConfig | None = None,
        denoise_only: bool = False,
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
        denoise_only
            Train no more than :meth:`denoise` needs, in a third of the time; such a model refuses to generate.
        seed
            Shorthand for ``config.seed``.
        checkpoint
            Folder in which an interrupted training is kept and from which it goes on.
        on_step
            Called after each training step, counted over both stages.

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
        if denoise_only and noise == "gaussian":
            raise InputError("denoise_only= is for thinning; with Gaussian noise one training serves all requests")

        depth = _sums(cells.x) if cells.scale == "counts" else None
        vocabulary, described = _learn(cells, schema, depth, features)
        cond = vocabulary.encode(cells.conditions, depth=depth)
        control = schema.is_control(cells.conditions)
        task = (_count_task if noise == "thinning" else _expression_task)(cells, cond, control, config)
        size = {"width": width, "n_blocks": n_blocks}
        denoiser = _untrained(PROCESSES[noise](), task.anchor, vocabulary, described, seed=config.seed, **size)
        stages = {"sample": (denoiser, task.judge, config)}
        if noise == "thinning":
            posterior = _untrained(TO_DENOISE, task.anchor, vocabulary, described, seed=config.seed, **size)
            first = {"denoise": (posterior, task.posterior_judge, _to_denoise(config, len(task.batches)))}
            stages = first if denoise_only else first | stages
            denoiser = posterior if denoise_only else denoiser
        lengths = [settings.steps_for(len(task.batches)) for _, _, settings in stages.values()]
        histories: dict[str, pd.DataFrame] = {}
        for i, (stage, (network, judge, settings)) in enumerate(stages.items()):
            histories[stage] = train(
                network,
                task.batches,
                task.cond,
                config=settings,
                judge=judge,
                checkpoint=None if checkpoint is None else Path(checkpoint) / stage,
                on_step=None if on_step is None else _counted(on_step, before=sum(lengths[:i]), total=sum(lengths)),
            )
        model = cls(
            denoiser=denoiser,
            posterior=posterior if noise == "thinning" else denoiser,
            vocabulary=vocabulary,
            genes=cells.genes,
            scale=cells.scale,
            standardizer=task.standardizer,
            population=Population.of(cells.conditions, depth),
            predictor=Predictor.fit(
                cells.x,
                cells.conditions,
                schema,
                counts=cells.scale == "counts",
                features=features,
                seed=config.seed,
            ),
            trust=torch.from_numpy(reliability(cells.x, seed=config.seed)) if noise == "thinning" else None,
            history=pd.concat([history.assign(stage=stage) for stage, history in histories.items()], ignore_index=True),
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
        if noise == "gaussian":
            rows = slice(500) if len(task.unseen) < MIN_CELLS_TO_MATCH else task.unseen
            matched = _matched_sigma(model, cells.x[rows], cond[rows], seed=config.seed)
            return replace(model, settings=model.settings | matched)
        if denoise_only:
            return model
        gain = _calibrated_gain(model, cells, seed=config.seed)
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
        if self.posterior is not self.denoiser:  # its anchor and features are those of the other
            tensors |= {f"posterior/{name}": weight.detach() for name, weight in self.posterior.named_parameters()}
        if self.standardizer is not None:
            tensors |= {f"standardizer/{k}": torch.from_numpy(v) for k, v in self.standardizer.to_arrays().items()}
        if self.population.log_depth is not None:
            tensors["population/log_depth"] = torch.from_numpy(self.population.log_depth)
        if self.trust is not None:
            tensors["trust"] = self.trust
        predictor = None
        if self.predictor is not None:
            arrays, predictor = self.predictor.to_arrays()
            tensors |= {f"predictor/{k}": torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
        about = {
            "settings": self.settings,
            "scale": self.scale,
            "vocabulary": self.vocabulary.to_dict(),
            "population": self.population.to_dict(),
            "factors": [factor.attributes for factor in self.denoiser.anchor.factors],
            "predictor": predictor,
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
        needed = ("settings", "scale", "vocabulary", "population", "factors", "predictor", "history", "genes")
        if missing := [name for name in needed if name not in about]:
            raise InputError(f"the manifest of {folder} has no {missing[0]!r}; train or copy the model again")
        settings, genes = about["settings"], about["genes"]
        vocabulary = Vocabulary.from_dict(about["vocabulary"])
        state = {k.removeprefix("denoiser/"): v for k, v in tensors.items() if k.startswith("denoiser/")}
        anchor = Anchor.from_state(about["factors"], state, prefix="anchor.")
        size = {name: settings[name] for name in ("width", "n_blocks")}
        described = state.get("encoder.part_features")
        process = PROCESSES[settings["noise"]](**settings["process"])
        denoiser = _untrained(process, anchor, vocabulary, described, seed=0, **size)
        denoiser.load_state_dict(state)
        posterior = denoiser
        if best := {k.removeprefix("posterior/"): v for k, v in tensors.items() if k.startswith("posterior/")}:
            posterior = _untrained(TO_DENOISE, anchor, vocabulary, described, seed=0, **size)
            posterior.load_state_dict(state | best)
        arrays = {k.removeprefix("standardizer/"): v.numpy() for k, v in tensors.items() if k.startswith("standard")}
        log_depth = tensors.get("population/log_depth")
        return cls(
            denoiser=denoiser.eval(),
            posterior=posterior.eval(),
            vocabulary=vocabulary,
            genes=genes,
            scale=about["scale"],
            standardizer=Standardizer.from_arrays(arrays) if arrays else None,
            population=Population.from_dict(
                about["population"], vocabulary.schema, None if log_depth is None else log_depth.numpy()
            ),
            predictor=None
            if about["predictor"] is None
            else Predictor.from_arrays(
                {k.removeprefix("predictor/"): v.numpy() for k, v in tensors.items() if k.startswith("predictor/")},
                about["predictor"],
                n_genes=len(genes),
            ),
            trust=tensors.get("trust"),
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
        if "sample" not in set(self.history["stage"]):
            raise InputError("this model was trained to denoise only; fit one without denoise_only to generate cells")
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

    def denoise(
        self,
        adata: AnnData,
        *,
        scales: Sequence[str] = ("log1p",),
        draws: int = 0,
        depth: float | np.ndarray | None = None,
        labels: bool = True,
        genes: Sequence[str] | None = None,
        layer: str | None = None,
        n_steps: int = 10,
        seed: int = 0,
        on_cells: Callable[[int], None] | None = None,
    ) -> AnnData:
        """Return the cells as they would look without the noise of sampling few molecules.

        ``X`` holds the observed log1p(CP10k) and ``layers["counts"]`` the observed counts, of the model's genes. Every
        scale has its own posterior mean (the logarithm of a mean is no mean of logarithms), each in a layer:

        =================  ====================  ===================================================================
        scale              layer                 what it is
        =================  ====================  ===================================================================
        "log1p"            ``denoised``          log1p(CP10k) of the posterior mean rate
        "rate"             ``rate``              posterior mean rate, counts per 10,000
        "expected_counts"  ``expected_counts``   mean of new counts at ``depth``
        "expected_log"     ``expected_log``      mean of log1p(CP10k) of new counts at ``depth``
        =================  ====================  ===================================================================

        A model of log expression has one scale, its own: ``denoised`` is the posterior mean on it.

        Draws are layers ``draw_1`` and so on (csr counts): the observed molecules and as many more, drawn from the
        model, as reach ``depth``. Where uncertainty matters, such as for tests between groups, use draws, not means.

        Parameters
        ----------
        adata
            Cells with counts (with log expression for a model trained on it), trained on or not; genes are aligned by
            name.
        scales
            Scales of the posterior mean.
        draws
            Number of posterior draws.
        depth
            Molecules per cell of the scales and draws that have a depth, one number or one per cell. Default: twice
            those observed for draws, as many as observed for means.
        labels
            Use what obs says of the cells. Labels that are missing or unknown to the model count as not known.
        genes
            Genes of the result; all are used to denoise.
        layer
            Layer with the expression; by default counts are looked for.
        n_steps
            Steps of the sampler from the observed depth to that of the draws.
        seed
            Makes draws reproducible.
        on_cells
            Called with the number of cells done so far.

        Raises
        ------
        InputError
            The cells cannot be used with this model, or a request cannot be met; the message names it and the remedy.
        """
        asked = self._asked(
            len(adata), scales=scales, draws=draws, depth=depth, labels=labels, genes=genes, n_steps=n_steps, seed=seed
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\d+ cells have no molecule", DataWarning)  # said below, by name
            cells = read_cells(adata, genes=self.genes, layer=layer)
        self._refuse_cells(cells.scale, adata.obs_names[_sums(abs(cells.x)) == 0])
        cond = self.vocabulary.encode(self._labels(adata, use=labels))
        return self._denoised(cells.x, adata.obs, cond, asked, on_cells=on_cells)

    def denoise_file(
        self,
        source: str | Path,
        out: str | Path,
        *,
        layer: str | None = None,
        on_cells: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> AnnData:
        """Write to ``out`` what :meth:`denoise` returns for the cells of ``source``, a run of cells at a time.

        The same numbers, in memory that does not grow with the number of cells, their obs apart. The file is whole or
        not there at all.

        Parameters
        ----------
        source, out
            Two .h5ad files or .zarr stores. Matrices that are read must be stored by cells (csr or dense).
        layer, options
            As :meth:`denoise` takes them.
        on_cells
            Called with the number of cells done so far, and of all.

        Returns
        -------
        The cells of ``out`` without their matrices: obs, var and uns.

        Raises
        ------
        InputError
            As for :meth:`denoise`, or a file cannot be read or written.
        """
        source, out = Path(source), Path(out)
        check_cells_place(out, inputs=[source])
        with CellFile(source) as file:
            asked = self._asked(file.n_obs, **options)
            cells = file.choose(self.genes, layer=layer)
            self._refuse_cells(cells.scale, cells.empty)
            cond = self.vocabulary.encode(self._labels(file, use=asked.labels))
            with appended(out, file.obs) as sink:
                for rows in runs(file.n_obs):
                    sink.append(self._denoised(cells[rows], file.obs[rows], cond[rows], asked, first=rows.start))
                    if on_cells is not None:
                        on_cells(rows.stop, file.n_obs)
        return sink.head

    def _asked(
        self,
        n_cells: int,
        *,
        scales: Sequence[str] = ("log1p",),
        draws: int = 0,
        depth: float | np.ndarray | None = None,
        labels: bool = True,
        genes: Sequence[str] | None = None,
        n_steps: int = 10,
        seed: int = 0,
    ) -> _Asked:
        """Return what :meth:`denoise` is asked for, checked."""
        scales = (scales,) if isinstance(scales, str) else tuple(scales)
        if unknown := [scale for scale in scales if scale not in SCALES]:
            raise InputError(f"unknown scale {unknown[0]!r}{closest(unknown[0], SCALES)}")
        if draws < 0 or n_steps < 1 or seed < 0:
            raise InputError(
                f"draws={draws}, n_steps={n_steps}, seed={seed}: need draws and seed from 0, n_steps from 1"
            )
        if self.scale != "counts":
            why = "needs a model trained on counts; this one was trained on log expression"
            if depth is not None:
                raise InputError(f"depth= {why}")
            if other := [scale for scale in scales if scale != "log1p"]:
                raise InputError(f"scale {other[0]!r} {why}")
        if draws and self.standardizer is not None:
            raise InputError("draws= needs a model trained with thinning; Gaussian noise gives means here")
        genes = self.genes if genes is None else list(genes)
        if missing := set(genes) - set(self.genes):
            first = next(gene for gene in genes if gene in missing)
            raise InputError(f"gene {first!r} is not one of the model{closest(first, self.genes)}")
        if not genes or len(set(genes)) < len(genes):
            raise InputError("genes= needs at least one gene, and each only once")
        depth = None if depth is None else _checked_depth(depth, n_cells)
        return _Asked(scales, draws, depth, labels, genes, n_steps, seed)

    def _refuse_cells(self, scale: str, empty: pd.Index) -> None:
        """Raise for cells that this model cannot denoise; ``empty`` names those that have nothing of its genes."""
        if scale != self.scale:
            raise InputError(f"the model was trained on {self.scale}, but the cells hold {scale}")
        if len(empty):
            told = f"{len(empty)} cells have only zeros in the model's genes: {listing(empty)}"
            if scale == "counts":
                raise InputError(f"{told}; leave them out")
            warnings.warn(told, DataWarning, stacklevel=3)

    def _denoised(
        self,
        x: Any,
        obs: pd.DataFrame,
        cond: Conditions,
        asked: _Asked,
        *,
        first: int = 0,
        on_cells: Callable[[int], None] | None = None,
    ) -> AnnData:
        """Return denoised cells with provenance; ``first`` is the place of the first of them among all.

        Cells are worked on in blocks, each with randomness of its own: the result is the same in one call as in many,
        as long as these begin with a block.
        """
        from anndata import AnnData

        counted = self.scale == "counts"
        places = pd.Index(self.genes).get_indexer(asked.genes)
        depth: Any = None
        goal: Any = None
        if counted:
            depth = _sums(x)
            cond = replace(cond, depth=torch.from_numpy(depth).float())
            goal = 2 * depth
            if asked.depth is not None:
                depth = goal = asked.depth[first : first + len(obs)]
        out: dict[str, list[Any]] = {}
        for start in range(0, len(obs), CHUNK):
            rows = slice(start, min(start + CHUNK, len(obs)))
            block = x[rows].toarray() if sparse.issparse(x) else x[rows]
            means = self._posterior(block, cond[rows], asked.scales, None if depth is None else depth[rows])
            for scale, values in means.items():
                out.setdefault(SCALES[scale], []).append(values[:, places])
            if asked.draws:
                own_seed = int(np.random.SeedSequence([asked.seed, first + start]).generate_state(1, np.uint64)[0])
                random = torch.Generator(self.posterior.device).manual_seed(own_seed)
                drawn = self._draws(block, cond[rows], goal[rows], asked.draws, n_steps=asked.n_steps, random=random)
                for i, counts in enumerate(drawn, start=1):
                    out.setdefault(f"draw_{i}", []).append(counts[:, places])
            if on_cells is not None:
                on_cells(rows.stop)
        layers = {
            k: sparse.vstack(v, format="csr") if sparse.issparse(v[0]) else np.concatenate(v) for k, v in out.items()
        }
        logged = log1p_cp10k(x)[:, places] if counted else x[:, places]
        if counted:
            layers["counts"] = x[:, places]
            described = {"X": "observed, log1p(CP10k)"} | {name: DESCRIBED.get(name, "counts") for name in layers}
        else:
            described = {"X": "observed, training scale"} | dict.fromkeys(layers, "posterior mean, training scale")
        made = AnnData(logged, obs=obs.copy(), var=pd.DataFrame(index=pd.Index(asked.genes)), layers=layers)
        made.uns["scidiff"] = {
            "version": __version__,
            "process": self.settings["noise"],
            "schema": json.dumps(self.schema.to_dict()),
            "scales": described,
            "verb": "denoise",
            "labels": asked.labels,
            "depth": "as asked" if asked.depth is not None else "observed; draws twice that",
            "draws": asked.draws,
            "seed": asked.seed,
            "n_steps": asked.n_steps,
        }
        return made

    def predict(
        self,
        adata: AnnData,
        condition: Mapping[str, Any] | pd.DataFrame,
        *,
        network: bool = True,
        layer: str | None = None,
        seed: int = 0,
        on_cells: Callable[[int], None] | None = None,
    ) -> AnnData:
        """Return the control cells of ``adata`` as they would be under a perturbation, one for one.

        Thinning: integer counts in ``layers["counts"]`` (csr) and log1p(CP10k) in ``X``. Every cell keeps the molecules
        it had, less those of genes that go down; the population's mean of every gene is that of the closed form, and
        the network says which cells receive the new molecules. Gaussian: expression on the training scale in ``X``,
        inverted to noise under the cell's own condition, solved again under the new one, moved to the same means.

        ``obs`` is that of the source cells with the new condition, and ``ood_score``: how little is known of the
        effect (0 as good as measured, .5 as uncertain as effects are large, at most 1). ``uns["scidiff"]["effects"]``
        has one row per condition, context and gene: ``effect``, the difference to control in mean log1p(CP10k), and
        ``low`` and ``high``, the 90 % interval of the effect as it would be observed in ``n`` cells of each kind.

        Parameters
        ----------
        adata
            Cells to start from. Those with a perturbation are left out; without a perturbation column all are controls.
        condition
            What is done to them: perturbation (combinations as in training), dose, time. One as a dict, several as a
            DataFrame or list, each applied to all cells.
        network
            Let the network deal new molecules to cells; False: by depth alone, the closed form in counts.
        layer
            Layer with the expression; by default counts are looked for.
        seed
            Makes the cells reproducible.
        on_cells
            Called with the number of cells made so far.

        Raises
        ------
        InputError
            The model knows no perturbations; the one asked for was never seen and no features tell about it; a context
            is asked for; or the cells cannot be used.

        Warns
        -----
        DataWarning
            The condition was measured in training, it lies outside what was measured, or little is known of its effect.
        """
        from anndata import concat

        if self.predictor is None:
            raise InputError(
                "this model knows no perturbation with control cells; train with perturbation= and control="
            )
        if seed < 0:
            raise InputError(f"seed={seed} must be at least 0")
        asked = self.schema.conditions(condition)
        fixed = [name for name in (*self.schema.context, "batch") if name in asked and asked[name].notna().any()]
        if fixed:
            raise InputError(f"{fixed[0]} belongs to the cells and is not changed; choose cells of the one you mean")
        if not len(asked) or asked["perturbation"].isna().any():
            raise InputError("name the perturbation to predict, as in {'perturbation': 'A'}")
        cells = read_cells(adata, genes=self.genes, layer=layer)
        table = self._table(adata)
        control = np.ones(adata.n_obs, dtype=bool)
        if self.schema.columns["perturbation"] in adata.obs:
            control = self.schema.is_control(table)
        if not control.any():
            raise InputError(
                f"none of the {adata.n_obs} cells is a control ({self.schema.control}): none to start from"
            )
        self._refuse_cells(cells.scale, adata.obs_names[control & (_sums(abs(cells.x)) == 0)])
        sources = np.flatnonzero(control)
        kinds, kind = np.unique(context_keys(table.iloc[sources], self.schema), return_inverse=True)
        groups = [sources[kind == k] for k in range(len(kinds))]
        order = np.argsort(np.concatenate(groups))
        parts, effects = [], []
        for _, row in asked.iterrows():
            made = []
            for i, rows in enumerate(groups):
                part, effect = self._predict_group(adata, cells, table, rows, row, network=network, seed=seed + i)
                made.append(part)
                effects.append(effect)
                if on_cells is not None:
                    on_cells(sum(len(done) for done in groups[: i + 1]) + len(parts) * len(sources))
            whole = concat(made, merge="same")[order].copy()
            whole.obs_names = [f"{name}-{len(parts)}" if parts else name for name in whole.obs_names]
            parts.append(whole)
        made = concat(parts, merge="same")
        for name in ("dose", "time"):
            if (column := self.schema.columns.get(name)) in made.obs:
                made.obs[column] = _as_obs(made.obs[column].astype(object))
        made.uns["scidiff"] = {
            "version": __version__,
            "process": self.settings["noise"],
            "schema": json.dumps(self.schema.to_dict()),
            "scales": {"X": "log1p(CP10k)" if self.scale == "counts" else "training scale"}
            | ({"counts": "counts"} if self.standardizer is None else {}),
            "verb": "predict",
            "condition": asked.to_json(orient="records"),
            "network": network,
            "seed": seed,
            "effects": pd.concat(effects, ignore_index=True),
        }
        return made

    def _predict_group(
        self,
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

        assert self.predictor is not None
        counted = self.scale == "counts"
        source = cells.x[rows]
        logged = log1p_cp10k(source) if counted else source
        own = {name: table[name].iloc[rows[0]] for name in self.schema.context}
        control, spread = _moments(logged)
        dose = self.schema.dose_parts(asked["dose"]) if "dose" in asked and not pd.isna(asked["dose"]) else None
        time = float(asked["time"]) if "time" in asked and not pd.isna(asked["time"]) else None
        effect = self.predictor.effects.predict(
            {name: value for name, value in own.items() if not pd.isna(value)},
            self.schema.parts(asked["perturbation"]),
            control_mean=control,
            dose=dose,
            time=time,
        )
        ood = self.predictor.ood(effect)
        notes = list(effect.notes)
        if effect.kind == "seen" and self.schema.parts(asked["perturbation"]):
            notes.append("measured in training: this is its estimate, no test of prediction")
        if ood > UNKNOWN:
            notes.append("nearly nothing is known of this effect: do not trust it")
        where = ", ".join(f"{k}={v}" for k, v in own.items() if not pd.isna(v)) or "these cells"
        for note in notes:
            warnings.warn(f"{asked['perturbation']} in {where}: {note}", DataWarning, stacklevel=4)
        treatment = [name for name in ("perturbation", "dose", "time") if name in asked]
        after = table.iloc[rows].assign(**{name: asked[name] for name in treatment})
        obs = adata.obs.iloc[rows].assign(**{self.schema.columns[name]: asked[name] for name in treatment})
        obs["ood_score"] = ood
        var = pd.DataFrame(index=pd.Index(self.genes))
        if self.standardizer is None:
            ratio = float(np.exp(effect.log_depth_ratio))
            counts = self._counterfactual(source, own, after, effect.mean, ratio, network=network, seed=seed)
            made = AnnData(log1p_cp10k(counts), obs=obs, var=var, layers={"counts": counts})
        else:
            target = np.maximum(control + effect.mean, 0)
            values = self._counterfactual_expression(logged, table.iloc[rows], after, target, network=network)
            made = AnnData(values, obs=obs, var=var)
        low, high = self.predictor.interval(effect, (spread + _moments(made.X)[1]) / max(len(rows), 2))
        condition = " ".join(
            f"{name}={value}" for name, value in {**own, **asked.dropna()}.items() if not pd.isna(value)
        )
        columns = {"condition": condition, "gene": self.genes, "effect": effect.mean, "low": low, "high": high}
        return made, pd.DataFrame(columns | {"n": len(rows)})

    def _counterfactual(
        self,
        source: sparse.csr_matrix,
        own: Mapping[str, Any],
        after: pd.DataFrame,
        effect: np.ndarray,
        depth_ratio: float,
        *,
        network: bool,
        seed: int,
    ) -> sparse.csr_matrix:
        """Return counts of the cells under the new condition; few cells are predicted among reference cells."""
        assert self.predictor is not None
        n, like = source.shape[0], self.predictor.like(own)
        if n < MIN_POPULATION and like.shape[0]:
            source = sparse.vstack([source, like], format="csr")
            after = after.iloc[np.concatenate([np.arange(n), np.zeros(like.shape[0], int)])]
        made = []
        for rows in np.array_split(np.arange(source.shape[0]), -(-source.shape[0] // POPULATION)):
            part = source[rows]
            target = np.maximum(_moments(log1p_cp10k(part))[0] + effect, 0)
            denoiser, cond = None, None
            if network:
                denoiser = _from_cpu(Gain(self.posterior, DEALING_GAIN), self.posterior.device)
                cond = self._encoded(after.iloc[rows], depth=_sums(part) * depth_ratio).to(self.posterior.device)
            made.append(counterfactual(denoiser, part, target, cond, depth_ratio=depth_ratio, seed=seed)[0])
        return sparse.vstack(made, format="csr")[:n]

    def _counterfactual_expression(
        self, logged: Any, before: pd.DataFrame, after: pd.DataFrame, target: np.ndarray, *, network: bool
    ) -> np.ndarray:
        """Return expression of the cells under the new condition: inverted, solved again, moved to the target mean."""
        assert self.standardizer is not None
        dense = logged.toarray() if sparse.issparse(logged) else np.asarray(logged, dtype=np.float32)
        if network:
            conds = [self._encoded(table) for table in (before, after)]
            levels = self.denoiser.process.levels(20)
            moved = []
            for start in range(0, len(dense), CHUNK):
                x = torch.from_numpy(self.standardizer.transform(dense[start : start + CHUNK])).to(self.denoiser.device)
                then, now = (cond[start : start + CHUNK].to(self.denoiser.device) for cond in conds)
                noise = invert(self.denoiser, x, levels.flip(0), then)
                moved.append(dpmpp_2m(self.denoiser, noise, levels, now).float().cpu().numpy())
            dense = self.standardizer.inverse(np.concatenate(moved))
        return _moved_to(dense, target).astype(np.float32)

    def _table(self, adata: AnnData) -> pd.DataFrame:
        """Return the canonical conditions of cells, missing where obs has no such column."""
        lost = [column for column in self.schema.columns.values() if column not in adata.obs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # what is missing is said by those who need it
            return self.schema.table(SimpleNamespace(obs=adata.obs.assign(**dict.fromkeys(lost))))

    def _known_only(self, table: pd.DataFrame, told: list[str] | None = None) -> pd.DataFrame:
        """Return canonical conditions in which values unknown to the network are missing; say so in ``told``."""
        table = table.copy()
        for name, known in self.vocabulary.known.items():
            values = table[name].map(self.schema.parts if name == "perturbation" else lambda value: (value,))
            fine = table[name].isna() | values.map(set(known).issuperset)
            if not fine.all():
                if told is not None:
                    told.append(f"{name} {table[name][~fine].iloc[0]!r} ({int((~fine).sum())} cells)")
                table[name] = table[name].where(fine, None)
        return table

    def _encoded(self, table: pd.DataFrame, *, depth: np.ndarray | None = None) -> Conditions:
        """Return conditions for the network; what is unknown or far from training was said with the effect."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            return self.vocabulary.encode(self._known_only(table.reset_index(drop=True)), depth=depth)

    def _labels(self, adata: AnnData | CellFile, *, use: bool) -> pd.DataFrame:
        """Return the canonical conditions of cells; what is missing from obs or unknown to the model is missing."""
        lost = [column for column in self.schema.columns.values() if column not in adata.obs]
        if not use or len(lost) == len(self.schema.columns):
            return pd.DataFrame(index=adata.obs.index)
        told = [f"obs column {column!r} (absent)" for column in lost]
        table = self._known_only(self._table(adata), told)
        if told:
            warnings.warn(f"not known to the model: {', '.join(told)}; taken as unlabelled", DataWarning, stacklevel=3)
        return table

    def _posterior(
        self, x: np.ndarray, cond: Conditions, scales: Sequence[str], depth: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """Return the posterior means of a chunk of cells, float32, shape (n_cells, n_genes), by scale."""
        device = self.posterior.device
        if self.standardizer is None:
            seen = torch.from_numpy(x).to(device)
            level = seen.sum(dim=1)
        else:
            logged = log1p_cp10k(x) if self.scale == "counts" else x
            seen = torch.from_numpy(self.standardizer.transform(logged)).to(device)
            level = torch.from_numpy(self._sigma(x)).to(device)
        clean = (
            posterior_mean(self.posterior, seen, level, cond.to(device), process=self.posterior.process).cpu().numpy()
        )
        if self.standardizer is not None:
            clean = np.maximum(self.standardizer.inverse(clean), 0)
            if self.scale != "counts":
                return dict.fromkeys(scales, clean)
            clean = _rates(clean, x.sum(axis=1))
        out = {}
        for scale in scales:
            if scale in ("log1p", "rate"):
                rate = clean * np.float32(1e4)
                out[scale] = np.log1p(rate) if scale == "log1p" else rate
            elif scale == "expected_counts":
                out[scale] = clean * depth[:, None].astype(np.float32)
            else:
                from scidiff.evaluation.denoising import expected_log

                out[scale] = expected_log(clean, depth)
        return out

    def _draws(
        self, x: np.ndarray, cond: Conditions, depth: np.ndarray, n: int, *, n_steps: int, random: torch.Generator
    ) -> Iterator[sparse.csr_matrix]:
        """Yield posterior draws of a chunk of cells, csr counts."""
        device = self.denoiser.device
        cond = replace(cond, depth=torch.from_numpy(depth).float()).to(device)
        denoiser = self.posterior
        if self.trust is not None:
            denoiser = Cautious(denoiser, denoiser.anchor.base, self.trust.to(device))
        for _ in range(n):
            drawn = posterior_draw(
                denoiser,
                torch.from_numpy(x).to(device),
                cond.depth,
                cond,
                process=self.posterior.process,
                n_steps=n_steps,
                gain=1.0,
                generator=random,
            )
            yield sparse.csr_matrix(drawn.cpu().numpy())

    def _sigma(self, x: np.ndarray) -> np.ndarray:
        """Return the noise level that cells are matched to: falls as the root of the depth; chosen in training."""
        sigma = np.float32(self.settings["sigma"])
        if self.scale != "counts":
            return np.full(len(x), sigma, np.float32)
        depth = np.maximum(x.sum(axis=1), 1)
        return np.clip(sigma * np.sqrt(self.settings["sigma_depth"] / depth), 0.01, 50).astype(np.float32)

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


@dataclass(frozen=True, eq=False)
class _Asked:
    """What denoising was asked for; ``depth``: molecules of each cell, shape (n_cells,)."""

    scales: tuple[str, ...]
    draws: int
    depth: np.ndarray | None
    labels: bool
    genes: list[str]
    n_steps: int
    seed: int


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


def _count_task(cells: Cells, cond: Conditions, control: np.ndarray, config: TrainConfig) -> _Task:
    """Thinning: a share of the molecules of every cell is held out."""
    kept, held = split_molecules(cells.x, held_out=config.heldout, seed=config.seed)
    batches = CountBatches(kept)
    anchor = Anchor.fit(kept, cond, control=control, counts=True)
    if not held.nnz:
        return _Task(batches, cond, None, anchor)
    judges = [
        HeldOutMolecules(batches, cond, CountBatches(held), seed=config.seed, noisy=noisy) for noisy in (True, False)
    ]
    return _Task(batches, cond, judges[0], anchor, posterior_judge=judges[1])


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
        unseen=held,
    )


def _counted(on_step: Callable[[Progress], None], *, before: int, total: int) -> Callable[[Progress], None]:
    """Count the steps of one stage among those of all."""
    return lambda at: on_step(replace(at, step=before + at.step, steps=total))


def _to_denoise(config: TrainConfig, n_cells: int) -> TrainConfig:
    """Return the settings of the shorter run that stops where held-out molecules are predicted best."""
    return replace(
        config,
        steps=max(1, round(0.75 * config.steps_for(n_cells))),
        batch_size=2 * config.batch_size,
        weight_decay=3 * config.weight_decay,
        patience=config.patience or (4 if config.heldout else None),
    )


def _untrained(
    process: GaussianNoise | Thinning,
    anchor: Anchor,
    vocabulary: Vocabulary,
    features: torch.Tensor | None,
    *,
    width: int,
    n_blocks: int,
    seed: int,
) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser(
            process,
            anchor=anchor,
            encoder=ConditionEncoder(vocabulary, width, features=features),
            backbone=Backbone(len(anchor.base), width=width, n_blocks=n_blocks),
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


def _matched_sigma(model: ScIDiff, x: Any, cond: Conditions, *, seed: int) -> dict[str, float]:
    """Return the noise level that real cells are denoised best at, and the molecules of the cells it was found on.

    Judged by what the network is not shown of a cell: half of its molecules (Batson, Royer & Webber 2019), or without
    counts half of its genes (Batson & Royer 2019).
    """
    from scidiff.evaluation.metrics import nll_molecule

    assert model.standardizer is not None
    depth = 1.0
    if model.scale == "counts":
        kept, held = split_molecules(sparse.csr_matrix(x), held_out=0.5, seed=seed)
        shown, depth = kept.toarray(), float(np.median(_sums(kept)))
        cond = replace(cond, depth=torch.from_numpy(np.maximum(_sums(kept), 1)).float())
        average = np.asarray(kept.sum(axis=0)).ravel() / kept.sum() + 1e-9

        def loss(trial: ScIDiff) -> float:
            rate = trial._posterior(shown, cond, ("rate",), None)["rate"]
            return nll_molecule(held, 0.99e-4 * rate + 0.01 * average)  # a rate of zero would be infinitely wrong
    else:
        dense = x.toarray() if sparse.issparse(x) else x
        hidden = np.random.default_rng(seed).random(dense.shape) < 0.5
        shown = np.where(hidden, model.standardizer.mean, dense)

        def loss(trial: ScIDiff) -> float:
            off = (trial._posterior(shown, cond, ("log1p",), None)["log1p"] - dense) / model.standardizer.sd
            return float(np.square(off[hidden]).mean())

    choices = [{"sigma": sigma, "sigma_depth": depth} for sigma in SIGMAS]
    return min(choices, key=lambda chosen: loss(replace(model, settings=model.settings | chosen)))


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


def _moments(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance over cells, shape (n_genes,) each."""
    x = sparse.csr_matrix(x)
    mean = np.asarray(x.mean(axis=0)).ravel()
    return mean, np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2


def _rates(expected: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the composition whose counts at ``depth`` have this mean of log1p(CP10k), shape (n_cells, n_genes).

    A network that learned from log expression of shallow cells predicts its mean, mostly that of zeros and ones:
    ``expm1`` of it would be no rate.
    """
    from scidiff.evaluation.denoising import expected_log

    p = np.concatenate([[0], np.geomspace(1e-8, 1, 300)])
    means = expected_log(np.broadcast_to(p, (len(depth), len(p))), depth)
    rates = np.stack([np.interp(row, mean, p) for row, mean in zip(expected, means, strict=True)])
    return (rates / np.maximum(rates.sum(axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _from_cpu(denoiser: Callable[..., torch.Tensor], device: torch.device) -> Callable[..., torch.Tensor]:
    """Return the denoiser for cells that are not on its device."""
    return lambda x, level, cond: denoiser(x.to(device), level.to(device), cond).cpu()


def _moved_to(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return ``x`` shifted gene by gene so that its mean is the target after what is below 0 was cut."""
    shift = target - x.mean(axis=0)
    for _ in range(20):  # cutting raises means; Newton's method, exact once it is clear which cells are cut
        cut = np.maximum(x + shift, 0)
        shift -= (cut.mean(axis=0) - target) / np.maximum((cut > 0).mean(axis=0), 1 / len(x))
    return np.maximum(x + shift, 0)


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
