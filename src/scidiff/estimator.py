"""ScIDiff: one trained model of single-cell expression, and what it can be asked.

    model = ScIDiff.fit(adata, schema)     model.save(folder)     model = ScIDiff.load(folder)
    cells = model.generate(500, {"cell_type": "B"})

Every verb takes and returns AnnData, writes nothing into the caller's object, and says in ``uns["scidiff"]`` how the
result was made and on which scale each matrix is. This module is the promise; the work is done in ``fitting``,
``model`` (state, folders) and ``tasks``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scidiff import fitting
from scidiff.data.schema import Schema
from scidiff.integration.signatures import Signatures
from scidiff.model import TrainedModel
from scidiff.phenotype import Phenotype
from scidiff.shares import Share
from scidiff.streaming import CellFile, opened
from scidiff.tasks import attribute, denoise, design, fate, generate, influence, predict, trajectory, velocity
from scidiff.training import TrainConfig
from scidiff.training.loop import Progress

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, eq=False, repr=False)
class ScIDiff(TrainedModel):
    """A trained model. Made by :meth:`fit` or :meth:`load`; there is no untrained state."""

    @classmethod
    def fit(
        cls,
        adata: AnnData | CellFile | str | Path,
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
    ) -> ScIDiff:
        """Return a model trained on the cells of ``adata``.

        Parameters
        ----------
        adata
            Raw counts (preferred) or log expression, cells x genes; read, never written. Cells in memory, or the path
            of an .h5ad or .zarr file with raw counts stored as csr, of which no more than a sample is held in memory.
        schema
            Roles of the obs columns; None for an atlas without conditions.
        noise
            "thinning" (default for counts) or "gaussian" (log1p expression).
        genes
            Genes to model: a list, or how many; those that vary most beyond sampling are taken (Lause et al. 2021), of
            log expression the most dispersed. None: all, which is fine for counts.
        layer
            Layer with the expression; by default counts are looked for.
        features
            Description of single perturbations, one row each (fingerprints, gene sets, embeddings); rows may name
            perturbations that were never seen.
        modules
            Gene sets (name -> genes) and TFs (name -> {target: weight}) whose activity cells can be asked to have:
            ``generate(500, {"cell_type": "B", "IFN": 1.5})``. A cell's activity is the (weighted) mean of log1p(CP10k)
            of the module's genes, of those the model has. Scores that are in obs already are named in the schema.
        width, n_blocks
            Size of the networks, by default 384 and 3; that for posterior means of fewer than 30,000 cells 256 and 2.
        config
            Settings of the training run.
        denoise_only
            Train no more than :meth:`denoise` and :meth:`predict` need; faster, and the model refuses to generate.
        seed
            Shorthand for ``config.seed``.
        checkpoint
            Folder in which an interrupted training is kept and from which it goes on.
        on_step
            Called after each training step, counted over all stages.

        Raises
        ------
        InputError
            The data, the schema or a setting cannot be used; the message names it and the remedy.
        """
        with opened(adata) as cells:
            return fitting.fit(
                cls,
                cells,
                schema,
                noise=noise,
                genes=genes,
                layer=layer,
                features=features,
                modules=modules,
                width=width,
                n_blocks=n_blocks,
                config=config,
                denoise_only=denoise_only,
                seed=seed,
                checkpoint=checkpoint,
                on_step=on_step,
            )

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
        on_cells: Callable[[int, int], None] | None = None,
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
            Called with the number of cells made so far, and of all.

        Raises
        ------
        InputError
            Unknown attribute or value (the nearest are named), or a number out of range.
        """
        return generate.generate(
            self,
            n,
            condition,
            depth=depth,
            guidance=guidance,
            n_steps=n_steps,
            solver=solver,
            seed=seed,
            on_cells=on_cells,
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
        n_steps: int = 20,
        seed: int = 0,
        on_cells: Callable[[int, int], None] | None = None,
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
            Called with the number of cells done so far, and of all.

        Raises
        ------
        InputError
            The cells cannot be used with this model, or a request cannot be met; the message names it and the remedy.
        """
        request = denoise.Request(scales, draws, depth, labels, genes, n_steps, seed)
        return denoise.denoise(self, adata, request, layer=layer, on_cells=on_cells)

    def denoise_file(
        self,
        source: str | Path,
        out: str | Path,
        *,
        layer: str | None = None,
        share: Share | None = None,
        half: bool = False,
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
        share
            Which cells: of several processes, each takes its share of them, in runs of 1,024, into a file of its own.
            The numbers do not depend on it.
        half
            Store posterior means as float16: three digits, half the space.
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
        asked = denoise.Request(**options)
        return denoise.denoise_file(self, source, out, asked, layer=layer, share=share, half=half, on_cells=on_cells)

    def predict(
        self,
        adata: AnnData,
        condition: Mapping[str, Any] | pd.DataFrame,
        *,
        network: bool = True,
        layer: str | None = None,
        seed: int = 0,
        on_cells: Callable[[int, int], None] | None = None,
    ) -> AnnData:
        """Return the control cells of ``adata`` as they would be under a perturbation, one for one.

        Thinning: integer counts in ``layers["counts"]`` (csr) and log1p(CP10k) in ``X``. Every cell keeps the molecules
        it had, less those of genes that go down; the population's mean of every gene is that of the effect, and the
        network says which cells receive the new molecules. Gaussian: expression on the training scale in ``X``,
        inverted to noise under the cell's own condition, solved again under the new one, moved to the same means.

        ``obs`` is that of the source cells with the new condition, and ``ood_score``: how little is known of the
        effect (0 as good as measured, .5 as uncertain as effects are large, at most 1). ``uns["scidiff"]["effects"]``
        has one row per condition, context and gene: ``effect``, the difference to control in mean log1p(CP10k), and
        ``low`` and ``high``, the 90 % interval of the effect as it would be observed in ``n`` cells of each kind;
        ``as_observed``, as large as it will look there, noise included: for finding measured effects by distance.

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
            Called with the number of cells made so far, and of all.

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
        return predict.predict(self, adata, condition, network=network, layer=layer, seed=seed, on_cells=on_cells)

    def trajectory(
        self,
        adata: AnnData,
        to: Mapping[str, Any] | None = None,
        *,
        along: Mapping[str, tuple[Any, Any]] | None = None,
        velocity: float | None = None,
        where: Mapping[str, Any] | None = None,
        steps: int = 20,
        n_paths: int | None = None,
        growth: float | None = None,
        network: bool = True,
        layer: str | None = None,
        seed: int = 0,
        on_cells: Callable[[int, int], None] | None = None,
    ) -> AnnData:
        """Return the frames of cells on their way: along time, a dose or RNA velocity, or to another condition.

        Frames are stacked, ``steps + 1`` of them, each with all paths in one order. Counts are in ``layers["counts"]``
        (csr) and log1p(CP10k) in ``X``. ``obs`` has ``frame`` (0, 1, ...), ``position`` (the time or dose; without
        ``along`` the share of the way) and ``cell``, the name of the cell that the path began with. From frame to frame
        a cell keeps its molecules but for those that change in between.

        *Under a perturbation* (``to`` names one) control cells end as :meth:`predict` has them at the end of the path.
        Doses and times that were measured on the way are stops, predicted too; between stops genes move at the pace of
        their effects in closed form. At dose 0 they are the cells themselves, and at time 0 where several times since
        the perturbation were measured.

        *Between populations* (``along={"time": ...}``, or ``to`` another context) nobody knows who becomes whom: the
        cells given are coupled with cells of the next time by optimal transport in 50 principal components. Cells of
        the times to go to are those of ``adata``, else those the model keeps. Each cell changes within a short part of
        the way, at a moment of its own. ``obs["toward"]`` names its partner; contexts in ``obs`` are those of the
        nearer of the two.

        *Along RNA velocity* (``velocity=10``) cells go on their own, step by step: a share of their molecules is
        replaced, in the direction that the velocity of the observed cells around them has, with the network's say in
        which molecules go together. ``adata`` needs layers as for :meth:`velocity`; the number of molecules stays.
        ``obs["near"]`` names the observed cell that each is nearest to; all else in ``obs`` is of the cell it began as.

        Parameters
        ----------
        adata
            Cells to start from, and others that lie on the way.
        to
            The condition at the end.
        along
            What changes and from where to where: ``{"time": (2, 6)}``, ``{"dose": (0, 10)}``.
        velocity
            How long cells follow their RNA velocity, in units of the time in which a molecule is spliced.
        where
            Which cells to start from, as ``{"cell_type": "B"}``. Default: all that are where the path begins.
        steps
            Number of steps.
        n_paths
            Between populations: number of paths, ends drawn evenly, then the past of each. Default: one for each cell
            to start from.
        growth
            Between populations: how many cells there are at the end for one at the start. It says *when* cells change:
            where they multiply, most have arrived early. Cells may then have descendants in uneven numbers. Default:
            numbers stay the same.
        network
            Under a perturbation: as for :meth:`predict`. Between populations: paths end in new cells, half of whose
            molecules are the partner's, the others drawn by the network; False: in the observed cells.
        layer
            Layer with the expression; by default counts are looked for.
        seed
            Makes the paths reproducible.
        on_cells
            Called with the number of cells made so far, and of all.

        Raises
        ------
        InputError
            Nothing says where to, the path goes nowhere, there is no cell where it begins or ends, an attribute is
            unknown or no number, or the cells cannot be used.

        Warns
        -----
        DataWarning
            As for :meth:`predict`.
        """
        return trajectory.trajectory(
            self,
            adata,
            to,
            along=along,
            velocity=velocity,
            where=where,
            steps=steps,
            n_paths=n_paths,
            growth=growth,
            network=network,
            layer=layer,
            seed=seed,
            on_cells=on_cells,
        )

    def design(
        self,
        phenotype: Phenotype,
        n: int = 500,
        condition: Mapping[str, Any] | None = None,
        *,
        cells: AnnData | None = None,
        keep: float | None = None,
        depth: float | np.ndarray | None = None,
        guidance: float | Mapping[str, float] = 1.0,
        particles: int = 1,
        n_steps: int = 20,
        layer: str | None = None,
        seed: int = 0,
        on_cells: Callable[[int, int], None] | None = None,
    ) -> AnnData:
        """Return cells that have a phenotype, and are otherwise what the model takes for real cells of a context.

        Integer counts in ``layers["counts"]`` (csr) and log1p(CP10k) in ``X``. ``uns["scidiff"]`` says how far real
        cells have the phenotype (``verdict``: seen in this context, seen in other contexts only, not seen; ``text``:
        what follows; ``seen_in``: share of the real cells of every condition that have it), what was reached
        (``levels``: one row per wish, beside typical and the best real cells, and on what basis that level was wanted),
        how real the cells are (``realism``, of :func:`scidiff.evaluation.realism.realism`), and which genes nobody
        asked for go further than in real cells with the phenotype (``overshot``).

        Where real cells of the context have the phenotype, sampling is steered towards it, with the least strength that
        reaches it. Where only cells of other contexts have it, what else is different in those is carried over in
        closed form, as for a perturbation, and the network deals the molecules.

        Parameters
        ----------
        phenotype
            What the cells shall look like.
        n
            Number of cells; with ``cells``, one for each.
        condition
            The context, such as ``{"cell_type": "CD8 T"}``. What is not said is left to the phenotype, not drawn.
            Default with ``cells``: the context that all of them share.
        cells
            Cells to change, instead of cells from nothing. They keep all molecules that can stay, and ``obs`` and
            ``var`` come back with them.
        keep
            Instead: the share of molecules of ``cells`` to begin with; the others are sampled anew. With more than
            about .3 a cell keeps its old state.
        depth
            Molecules per cell: one number, or one per cell; with ``cells``, only beside ``keep``. Default: drawn as in
            training, or those of ``cells``.
        guidance
            Weight of classifier-free guidance, one or per attribute.
        particles
            Where sampling is steered: draw each cell, by weight, from so many steered ones (sequential Monte Carlo).
            The cells come nearer to the model's own that have the phenotype, in as many times the time.
            ``uns["scidiff"]["ess"]``: how many of a cell's particles carried the weight at worst, mean over cells.
        n_steps
            Steps of the sampler.
        layer
            Layer of ``cells`` with the counts; by default they are looked for.
        seed
            Makes the cells reproducible.
        on_cells
            Called with the number of cells made so far, and of all, once the strength is known.

        Raises
        ------
        InputError
            A gene of the phenotype is unknown (the nearest is named), the context is, or a number is out of range.

        Warns
        -----
        DataWarning
            Nobody has the phenotype, it was not reached, or the cells left what the model knows.
        """
        return design.design(
            self,
            phenotype,
            n,
            condition,
            cells=cells,
            keep=keep,
            depth=depth,
            guidance=guidance,
            particles=particles,
            n_steps=n_steps,
            layer=layer,
            seed=seed,
            on_cells=on_cells,
        )

    def attribute(
        self,
        cells: AnnData | None = None,
        *,
        reference: AnnData | None = None,
        up: Sequence[str] = (),
        down: Sequence[str] = (),
        effect: Mapping[str, float] | pd.Series | None = None,
        phenotype: Phenotype | None = None,
        condition: Mapping[str, Any] | None = None,
        network: pd.DataFrame | None = None,
        signatures: Signatures | None = None,
        targets: pd.DataFrame | None = None,
        drug_names: pd.Series | None = None,
        direction: str = "mimic",
        each_dose: bool = False,
        pairs: bool = False,
        layer: str | None = None,
    ) -> pd.DataFrame:
        """Return which perturbations, regulators and drugs would cause a phenotype, the best of each kind first.

        One row per candidate: ``kind`` (perturbation, tf, drug), ``name``, ``rank`` within its kind by the first score,
        ``consensus_rank`` over all scores of the kind but ``ulm``, ``mlm`` and ``in_silico``
        (:func:`scidiff.integration.consensus_rank`), a column per score, ``direction`` as it was asked for,
        ``p_value``, ``fdr``, ``leading_genes`` and ``source``.

        Perturbations are those of training (each dose on its own, written ``A @ 10``): ``posterior``, calibrated on the
        training cells, of the one behind the population (empirical-Bayes linear discriminant analysis, column ``lda``),
        and the ``cosine`` of effects beside it. A posterior only compares what was in training: something must come
        first. Regulators and drugs as :func:`scidiff.integration.rank_regulators` and
        :func:`scidiff.integration.rank_drugs` rank them. The first 30 regulators are also tried in the model:
        ``in_silico`` is the cosine of the effect and of what control cells do, as the network sees it, when the
        regulator's targets are moved, over genes that are not its targets. Near 0, the model has not seen the phenotype
        (or that regulator does not make it). Models of counts with thinning have this column.

        Parameters
        ----------
        cells
            Cells that show the phenotype: designed, predicted or observed. Genes that were steered in designed cells
            are no evidence for regulators and drugs.
        reference
            Cells whose control cells of the same contexts the phenotype is compared with; default: the model's own.
        up, down
            Instead of cells: only the names of genes.
        effect
            Instead of cells: gene -> change of mean log1p(CP10k).
        phenotype
            Instead of cells: what they shall look like. Treatments of training are ranked by how far they are predicted
            to move cells there (``gain``, the mean change of the wishes' features, and its ``se``): the question of who
            wants to choose an experiment, where the others ask what has happened.
        condition
            With ``phenotype``: the context, such as ``{"cell_type": "B"}``.
        network
            Regulators and their targets, from :func:`scidiff.integration.read_network`.
        signatures
            Signatures of drugs, from :func:`scidiff.integration.read_signatures`; names alone must be ten at
            least. A drug that was in training has its ``posterior`` beside the scores of its signatures.
        targets
            What drugs bind, from :func:`scidiff.integration.read_drug_targets`: shown beside signatures, with a score;
            without signatures, drugs are ranked by it (:func:`scidiff.integration.rank_target_sets`).
        drug_names
            From :func:`scidiff.integration.read_drug_names`: which names are of one drug.
        direction
            "mimic": what would cause the phenotype; "reverse": what would undo it.
        each_dose
            Rank every dose in the signatures on its own.
        pairs
            Rank pairs of perturbations, their effects added.
        layer
            Layer with the expression; by default counts are looked for.

        Raises
        ------
        InputError
            Nothing, or more than one thing, is asked about; there is nothing to rank, or nothing to compare with.
        """
        return attribute.attribute(
            self,
            cells,
            reference=reference,
            up=up,
            down=down,
            effect=effect,
            phenotype=phenotype,
            condition=condition,
            network=network,
            signatures=signatures,
            targets=targets,
            drug_names=drug_names,
            direction=direction,
            each_dose=each_dose,
            pairs=pairs,
            layer=layer,
        )

    def velocity(
        self,
        adata: AnnData,
        *,
        dt: float = 1.0,
        strength: float = 1.0,
        n_neighbors: int = 30,
        layer: str | None = None,
        on_cells: Callable[[int, int], None] | None = None,
    ) -> AnnData:
        """Return the cells with where they are going, from their spliced and unspliced molecules.

        ======================  ===============================================================================
        ``layers["velocity"]``  change of ``layers["denoised"]``, log1p(CP10k), per unit of time
        ``obsm``                ``X_pca``, places of the cells, and ``velocity_pca``, the change of these
        ``obsp["T_fwd"]``       probabilities of steps between cells, csr, rows sum to 1
        ======================  ===============================================================================

        CellRank reads them: ``VelocityKernel(out, xkey="denoised", vkey="velocity")`` (after ``scanpy.pp.neighbors``)
        or ``PrecomputedKernel("T_fwd", out)``. The unit of time is that in which a molecule is spliced.

        Parameters
        ----------
        adata
            Cells with layers as scVelo and dynamo name them: ``velocity`` with ``Ms``, or ``Ms`` and ``Mu``, or
            ``spliced`` and ``unspliced`` counts; for the last two the velocity is that of the steady state.
        dt
            Length of the step that the network judges: a share ``1 - exp(-dt)`` of a cell's molecules is replaced.
        strength
            Weight of the velocity; 0 leaves cells where they are.
        n_neighbors
            Cells that moments are means over, and that a step may lead to.
        layer
            Layer with the counts that the model was trained on, such as "spliced"; by default they are looked for.
        on_cells
            Called with the number of cells done so far, and of all.

        Raises
        ------
        InputError
            The cells have no such layers or cannot be used, or the model was not trained on counts.
        """
        return velocity.velocity(
            self, adata, dt=dt, strength=strength, n_neighbors=n_neighbors, layer=layer, on_cells=on_cells
        )

    def fate(
        self,
        adata: AnnData,
        terminal: Mapping[str, Sequence[str]],
        *,
        to: Mapping[str, Any] | None = None,
        use_velocity: bool = True,
        n_neighbors: int = 30,
        n_rounds: int = 20,
        layer: str | None = None,
        seed: int = 0,
        on_cells: Callable[[int, int], None] | None = None,
    ) -> AnnData:
        """Return the cells with the probabilities of where they end, on their own and under a perturbation.

        ``obsm["fate"]`` has a column for each end, rows sum to 1; ``fate_low`` and ``fate_high`` are the 90 % interval
        for which cells were caught, not for what the network does not know. Cells are taken to stay as long in every
        end, so that those on the way end in the shares of those there. Cells of a group, one value of the column of
        ends, differ as far as two halves of their genes agree that they do. ``uns["scidiff"]["fate"]`` has the means
        of groups and the share of their cells' differences that was kept (``reliable``). With ``to``,
        ``obsm["fate_perturbed"]`` and columns ``perturbed`` and ``change`` beside them.

        Parameters
        ----------
        adata
            Cells on the way and cells that have arrived. With ``to``, cells that had it say in which shares cells end,
            and those with any perturbation are left out.
        terminal
            The ends: an obs column and some of its values, such as ``{"cell_type": ["Alpha", "Beta"]}``.
        to
            What is done to the cells, as :meth:`predict` takes it: ``{"perturbation": "A"}``. It acts all the way.
        use_velocity
            Walk in the direction of the cells' velocity where they have the layers for it (:meth:`velocity`). Without,
            the walk from cell to cell has no direction but its ends.
        n_neighbors
            Cells that a step may lead to.
        n_rounds
            Halves of the cells that are walked on, for the intervals; from 4, every other round also halves the genes.
        layer
            Layer with the counts that the model was trained on; by default they are looked for.
        seed
            Makes the result reproducible.
        on_cells
            Called with the number of walks from a cell that are done, its velocity and its place by each half of the
            genes counted as one, and of all.

        Raises
        ------
        InputError
            An end is unknown or has too few cells, the perturbation cannot be predicted, or the cells cannot be used.
        """
        return fate.fate(
            self,
            adata,
            terminal,
            to=to,
            use_velocity=use_velocity,
            n_neighbors=n_neighbors,
            n_rounds=n_rounds,
            layer=layer,
            seed=seed,
            on_cells=on_cells,
        )

    def influence(
        self,
        adata: AnnData,
        sources: Sequence[str],
        *,
        n_cells: int = 256,
        layer: str | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return what one more molecule of each source makes the network expect of all genes.

        Rows are the sources, columns the genes of the model: change of the log share of the cell's molecules, mean over
        cells. It is directed, but it is what the network has learned from cells as they are: genes that go together
        foretell each other whether or not one acts on the other. ``table @ change``, with a change of genes such as
        the mean velocity of some cells, ranks sources by how far they foretell a transition.

        Parameters
        ----------
        adata
            Cells of the state, or along the path, that is asked about.
        sources
            Genes that get a molecule more; each costs a pass through the network.
        n_cells
            Cells that the mean is over, at most.
        layer
            Layer with the counts that the model was trained on; by default they are looked for.
        seed
            Chooses the cells.

        Raises
        ------
        InputError
            A source is unknown (the nearest is named), the cells cannot be used, or the model has Gaussian noise.
        """
        return influence.influence(self, adata, sources, n_cells=n_cells, layer=layer, seed=seed)
