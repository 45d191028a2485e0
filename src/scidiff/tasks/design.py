"""Design: cells that have a phenotype and are otherwise what the model takes for real.

What real cells show decides how. Denoised real cells are ranked by how much of the phenotype they have:

    seen here        cells of this context have it          sampling is steered, with the strength that just reaches it
    seen elsewhere   only cells of other contexts have it   what else is different in them is carried to this context
    not seen         nobody has it                          sampling is steered, and the answer says what that is worth

From given cells, the change from typical to designed cells is made in them, and most of their molecules stay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scidiff.conditioning import Conditions
from scidiff.data.cells import read_cells
from scidiff.data.scaling import PER, log1p_cp10k, row_sums
from scidiff.errors import DataWarning, InputError, whole_numbers
from scidiff.evaluation.realism import realism
from scidiff.model import TrainedModel
from scidiff.models.effect_groups import GroupStats
from scidiff.models.effects import Effect, EffectModel
from scidiff.phenotype import Phenotype, Wish
from scidiff.sampling.generate import CHUNK
from scidiff.sampling.generate import generate as sample
from scidiff.sampling.guidance import ClassifierFree, Gain
from scidiff.sampling.particles import Chosen
from scidiff.sampling.perturb import counterfactual
from scidiff.sampling.steering import MIN_WAY, Calibration, Steered, calibrated
from scidiff.tasks.dealing import on_host
from scidiff.tasks.denoise import posterior
from scidiff.tasks.requests import as_cells, checked_depth, gene_table

if TYPE_CHECKING:
    from anndata import AnnData

#: gain with which molecules are dealt where an effect is carried over: that at which training cells spread as real ones
#: do (`benchmarks/dealing.py`). At that of prediction genes go together more, and designed cells are told more easily
CARRIED_GAIN = 1.5
#: cells of a trial population
TRIAL = 160
#: real cells that count as the best: this share of a context, at least so many
BEST_SHARE, MIN_BEST = 0.05, 10
#: a phenotype is seen where the best cells have come so far from typical to wanted, in every wish
SEEN = 0.8
#: real cells that have more than this of the phenotype are those that designed cells are compared with
HALF = 0.5
#: share of cells that must meet a wish that is asked of every cell, before the rest are replaced
MEET = 0.9
#: rounds of replacing cells that do not meet a wish asked of every cell
ROUNDS = 4
#: rounds of correcting an effect until denoised levels are reached
CORRECTIONS = 3
#: added to the logit of a gene that is never drawn
NEVER = -1e4
#: a gene that nobody asked for goes too far with twice the level it should have, and this many standard errors
TWOFOLD, SURELY = float(np.log(2)), 5
#: designed cells farther from real ones than this many times the usual distance have left the manifold
FAR = 1.5

SEEN_HERE, SEEN_ELSEWHERE, NOT_SEEN = "seen in this context", "seen in other contexts only", "not seen"


def design(
    model: TrainedModel,
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
    """Return designed cells; see :meth:`scidiff.ScIDiff.design`."""
    if not isinstance(phenotype, Phenotype):
        raise InputError(f"design takes a Phenotype, such as Phenotype(up=['IL2RA']), not {phenotype!r}")
    whole_numbers(n=(n, 1), n_steps=(n_steps, 1), particles=(particles, 1), seed=(seed, 0))
    if isinstance(condition, str):
        raise InputError(f"condition={condition!r}: name the attribute, such as {{'cell_type': {condition!r}}}")
    if keep is not None and (cells is None or not 0 <= keep <= 1):
        raise InputError(f"keep={keep}: the share of molecules to keep, from 0 to 1, of the cells given as cells=")
    if "sample" not in set(model.history["stage"]):
        raise InputError("this model was trained to denoise only; fit one without denoise_only to design cells")
    if not model.counted or model.standardizer is not None:
        raise InputError(
            "design needs a model of counts, and this one is of log expression: train on raw counts (layer= names them)"
        )
    if cells is not None and keep is None and depth is not None:
        raise InputError("cells that keep their molecules keep their depth; depth= goes with keep=, from 0 to 1")
    given = None
    if cells is not None:
        if not len(cells):
            raise InputError("cells= holds no cells; choose some to change")
        given = read_cells(cells, genes=model.genes, layer=layer)
        if condition is None or not len(condition):
            condition = _shared(model, cells)
        model.refuse_cells(given.scale, cells.obs_names[row_sums(abs(given.x)) == 0])
        n, depth = len(cells), row_sums(given.x) if depth is None else depth
    depths = None if depth is None else checked_depth(depth, n)
    start = None if given is None or keep is None else _thinned(given.x, keep, seed=seed)
    asked = model.schema.conditions({} if condition is None else condition, known=model.vocabulary.known)
    if len(asked) != 1:
        raise InputError(f"design takes one condition, not {len(asked)}")
    phenotype = _at_activity(model, phenotype, asked.iloc[0])
    question = Question(
        model,
        phenotype,
        asked.iloc[0],
        guidance=guidance,
        n_steps=n_steps,
        seed=seed,
        depth=depths,
        start=start,
        particles=particles,
    )
    question.check()
    carried = question.verdict == SEEN_ELSEWHERE
    if given is not None and keep is None:
        counts = question.changed(given.x, question.carried if carried else question.change(given.x))
    else:
        counts = question.sampled(n, carried=carried, on_cells=on_cells)
    made = as_cells(model, counts, question.table(n))
    if cells is not None:
        made.obs, made.var = cells.obs.copy(), gene_table(cells, model.genes)
        for name, value in question.condition.dropna().items():
            made.obs[model.schema.columns.get(name, name)] = value
    levels, how_real = question.judged(counts)
    overshot = question.overshot(counts, levels["designed"].to_numpy())
    text = question.sentences(levels, how_real, overshot, question.meets(counts))
    for sentence in text[question.verdict == SEEN_HERE :]:
        warnings.warn(sentence, DataWarning, stacklevel=3)
    strength = {} if carried else dict(zip(levels.index, map(float, question.steering.strength), strict=True))
    made.uns["scidiff"] = model.provenance(
        "design",
        {"X": "log1p(CP10k)", "counts": "counts"},
        phenotype=repr(phenotype),
        genes=phenotype.genes,
        condition=asked.to_json(orient="records"),
        verdict=question.verdict,
        text=text,
        levels=levels,
        seen_in=question.seen_in,
        overshot=overshot,
        realism=how_real,
        strength=strength,
        **question.weighted(),
        keep="all that can stay" if keep is None else keep,
        start="nothing" if cells is None else "cells",
        seed=seed,
        n_steps=n_steps,
    )
    return made


@dataclass(frozen=True, eq=False)
class Question:
    """A phenotype in a context, and what the model's real cells say about it.

    Features of cells, shape (n_cells, n_wishes), come on two scales: ``observed``, of log1p(CP10k) of counts, and
    ``denoised``, of log1p(CP10k) of the posterior mean rate. Each wish is about one of them.

    ``depth``: molecules of each designed cell, None as in training; ``start``: molecules that each begins with. Trial
    populations take them in turn, so that a strength found on them is right for the cells asked for. ``particles``: of
    which each cell is drawn; ``ess`` collects their effective sample sizes in the last draw.
    """

    model: TrainedModel
    phenotype: Phenotype
    condition: pd.Series
    guidance: float | Mapping[str, float]
    n_steps: int
    seed: int
    depth: np.ndarray | None = None
    start: sparse.csr_matrix | None = None
    particles: int = 1
    ess: list[float] = field(default_factory=list)

    def check(self) -> None:
        """Raise for a phenotype of other genes, a context never seen, or functions that cells cannot be steered by."""
        some = np.flatnonzero(self.here)[:2]
        if self.weights.shape[0] == len(self.phenotype.clamp):
            raise InputError("every gene of the model is clamped; leave some to the model")
        logged = torch.from_numpy(log1p_cp10k(self.model.reference.x[some].toarray())).to(self.model.denoiser.device)
        for wish in self.phenotype.wishes:
            if wish.function is None:
                continue
            try:
                out = wish.function(logged.requires_grad_())
            except Exception as error:
                shape = tuple(logged.shape)
                raise InputError(
                    f"the function {wish.name} fails for log1p(CP10k) of shape {shape}: {error}"
                ) from error
            if not isinstance(out, torch.Tensor) or out.shape != (len(some),):
                raise InputError(f"the function {wish.name} must return one number per cell, a tensor (n_cells,)")
            if not out.requires_grad:
                raise InputError(f"the function {wish.name} has no gradient; compute it with torch, from its argument")
            if not torch.isfinite(out).all():
                raise InputError(f"the function {wish.name} is not finite for real cells; it gives {out.tolist()}")

    # ---- features ------------------------------------------------------------------------------------------------

    @cached_property
    def weights(self) -> np.ndarray:
        """Weights of genes in features, shape (n_genes, n_wishes)."""
        return self.phenotype.matrix(self.model.genes)

    def features(self, logged: torch.Tensor) -> torch.Tensor:
        """Return the features of log expression, differentiable."""
        out = logged @ torch.from_numpy(self.weights).to(logged)
        functions = [(j, wish.function) for j, wish in enumerate(self.phenotype.wishes) if wish.function is not None]
        if not functions:
            return out
        columns = list(out.unbind(dim=1))
        for j, function in functions:
            columns[j] = function(logged).to(out)
        return torch.stack(columns, dim=1)

    @cached_property
    def of_denoised(self) -> np.ndarray:
        """Mask of the wishes about denoised levels, shape (n_wishes,)."""
        return np.array([wish.level in ("top", "bottom", "above", "below") for wish in self.phenotype.wishes])

    def observed(self, counts: sparse.csr_matrix) -> np.ndarray:
        """Return features of counts."""
        if all(wish.function is None for wish in self.phenotype.wishes):
            return np.asarray(log1p_cp10k(counts) @ self.weights)
        chunks = (counts[start : start + CHUNK] for start in range(0, counts.shape[0], CHUNK))
        return np.concatenate([self._numbers(log1p_cp10k(chunk.toarray())) for chunk in chunks])

    def denoised(self, counts: sparse.csr_matrix, table: pd.DataFrame) -> np.ndarray:
        """Return features of the posterior mean rates of cells, told no more of them than their context."""
        labels = [name for name in table if name not in self.model.schema.context]
        table, out = table.astype(object).assign(**dict.fromkeys(labels)), []
        for start in range(0, counts.shape[0], CHUNK):
            rows = slice(start, start + CHUNK)
            cond = self.model.encoded(table.iloc[rows], depth=row_sums(counts[rows]))
            out.append(self._numbers(posterior(self.model, counts[rows].toarray(), cond, ("log1p",), None)["log1p"]))
        return np.concatenate(out)

    def _numbers(self, logged: np.ndarray) -> np.ndarray:
        """Return the features of log expression where the model is, as functions are."""
        with torch.no_grad():
            return self.features(torch.from_numpy(logged).to(self.model.denoiser.device)).cpu().numpy()

    # ---- real cells ----------------------------------------------------------------------------------------------

    @cached_property
    def here(self) -> np.ndarray:
        """Mask of the reference cells of this context."""
        mask = self.model.reference.where(self.condition.to_dict())
        if not mask.any():
            raise InputError(f"the model has no cells of {self._where}; choose a context that was in training")
        return mask

    @property
    def _where(self) -> str:
        said = ", ".join(f"{name}={value}" for name, value in self.condition.items() if not pd.isna(value))
        return said or "this model"

    @cached_property
    def _contexts(self) -> np.ndarray:
        """Context of every reference cell: its values of the context attributes, shape (n_cells,)."""
        table = self.model.reference.conditions[list(self.model.schema.context)]
        return table.astype(str).agg("|".join, axis=1).to_numpy() if table.shape[1] else np.full(len(table), "")

    @cached_property
    def _real_denoised(self) -> np.ndarray:
        return self.denoised(self.model.reference.x, self.model.reference.conditions)

    @cached_property
    def _real_observed(self) -> np.ndarray:
        return self.observed(self.model.reference.x)

    def _on_scale(self, rows: np.ndarray) -> np.ndarray:
        """Means over reference cells of every wish's feature, on the wish's scale, shape (n_wishes,)."""
        return np.where(
            self.of_denoised, self._real_denoised[rows].mean(axis=0), self._real_observed[rows].mean(axis=0)
        )

    @cached_property
    def typical(self) -> np.ndarray:
        """Level of the cells of this context, shape (n_wishes,)."""
        return self._on_scale(self.here)

    @cached_property
    def wanted(self) -> np.ndarray:
        """Level asked for, shape (n_wishes,)."""
        own = np.sort(self._real_denoised[self.here], axis=0)
        tenth = max(1, round(0.1 * len(own)))
        extreme = {"top": own[-tenth:].mean(axis=0), "bottom": own[:tenth].mean(axis=0)}
        out = np.empty(len(self.phenotype.wishes))
        for j, wish in enumerate(self.phenotype.wishes):
            if wish.level in extreme:
                out[j] = self.typical[j] + wish.value * (extreme[wish.level][j] - self.typical[j])
            elif wish.level == "shift":
                out[j] = self.typical[j] + wish.value
            else:
                out[j] = wish.value
        return out

    @cached_property
    def sides(self) -> np.ndarray:
        """1 for wishes that ask for at least their level, -1 for at most, 0 for this level, shape (n_wishes,)."""
        return np.array([{"above": 1, "below": -1}.get(wish.level, 0) for wish in self.phenotype.wishes])

    def asked(self, levels: np.ndarray) -> np.ndarray:
        """Return the levels that features with these shall have: their own, where that is more than enough."""
        return np.where(self.sides * (levels - self.wanted) > 0, levels, self.wanted)

    @cached_property
    def shares(self) -> np.ndarray:
        """How much of each wish the reference cells have, 0 typical of this context, 1 wanted, (n_cells, n_wishes)."""
        typical = self._real_denoised[self.here].mean(axis=0)
        level = np.where(self.of_denoised, typical, self.typical)
        way = self.asked(level) - level
        far = np.abs(way) > 1e-3
        return np.where(far, (self._real_denoised - typical) / np.where(far, way, 1), 1.0)

    @cached_property
    def has(self) -> np.ndarray:
        """How much of the phenotype each reference cell has, shape (n_cells,)."""
        far = ~(self.shares == 1).all(axis=0)
        return np.clip(self.shares[:, far], -1, 2).mean(axis=1) if far.any() else np.ones(len(self.shares))

    def best(self, where: np.ndarray) -> np.ndarray:
        """Return positions of the cells in the mask that have most of the phenotype."""
        rows = np.flatnonzero(where)
        k = min(len(rows), max(MIN_BEST, round(BEST_SHARE * len(rows))))
        return rows[np.argsort(-self.has[rows], kind="stable")[:k]]

    def _reached(self, where: np.ndarray) -> bool:
        """Whether cells in the mask have the phenotype."""
        if where.sum() < MIN_BEST:
            return False
        best, way = self.best(where), self.asked(self.typical) - self.typical
        come = (self._on_scale(best) - self.typical) * np.sign(way)
        # each of them has it: not some one wish twice and others another
        together = np.clip(self.shares[best], -1, 1).mean() >= SEEN * min(self.has[best].mean(), 1)
        return bool((come >= SEEN * np.abs(way) - MIN_WAY).all() and together)

    @cached_property
    def in_parts(self) -> bool:
        """Whether cells of this context have every wish, though not all of them together."""
        if len(self.phenotype.wishes) < 2 or self._reached(self.here):
            return False
        levels = np.where(self.of_denoised, self._real_denoised, self._real_observed)[self.here]
        k = max(MIN_BEST, round(BEST_SHARE * len(levels)))
        if len(levels) < k:
            return False
        way = self.asked(self.typical) - self.typical
        # of the cells that have most of one wish, denoised: the mean on the scale of the wish
        towards = np.argsort(-self._real_denoised[self.here] * np.sign(way), axis=0, kind="stable")[:k]
        come = (np.take_along_axis(levels, towards, axis=0).mean(axis=0) - self.typical) * np.sign(way)
        return bool((come >= SEEN * np.abs(way) - MIN_WAY).all())

    @cached_property
    def verdict(self) -> str:
        """Whether real cells have the phenotype, and which."""
        if not self.phenotype.wishes or self._reached(self.here) or self.in_parts:
            return SEEN_HERE
        elsewhere = any(self._reached(self._contexts == name) for name in np.unique(self._contexts[~self.here]))
        return SEEN_ELSEWHERE if elsewhere else NOT_SEEN

    @cached_property
    def seen_in(self) -> pd.DataFrame:
        """Which real cells have the phenotype: one row per condition that was not asked for, most of all first.

        Of the context, or of other contexts where only those have it; else no rows. ``cells``: how many the model
        keeps; ``share``: how many of these have it.
        """
        rows = {SEEN_HERE: self.here, SEEN_ELSEWHERE: ~self.here}.get(self.verdict, np.zeros(len(self.here), bool))
        table = self.model.reference.conditions[rows].drop(
            columns=["batch", *self.model.schema.modules], errors="ignore"
        )
        names = [name for name in table if self.verdict == SEEN_ELSEWHERE or pd.isna(self.condition[name])]
        if not (self.phenotype.wishes and rows.any() and names):
            return pd.DataFrame({"cells": [], "share": []}, dtype=float)
        table = table[names].astype(object).where(table[names].notna(), "unknown").astype(str)
        groups = table.assign(has=self.has[rows] > HALF).groupby(names, sort=False)["has"]
        shares = groups.agg(cells="size", share="mean").reset_index()
        return shares.sort_values("share", ascending=False, ignore_index=True)

    # ---- sampling ------------------------------------------------------------------------------------------------

    def table(self, n: int) -> pd.DataFrame:
        """Return the canonical conditions of ``n`` designed cells; what was not asked for is not known."""
        return pd.DataFrame({name: [value] * n for name, value in self.condition.items()}, range(n), dtype=object)

    def _conditions(self, n: int, *, stream: int) -> Conditions:
        table = self.table(n)
        if self.depth is not None:
            return self.model.encoded(table, depth=np.resize(self.depth, n))
        rng = np.random.default_rng([self.seed, stream])
        return self.model.encoded(table, depth=self.model.population.draw_depth(table, rng=rng))

    def draw(
        self,
        n: int,
        strength: np.ndarray,
        *,
        stream: int = 0,
        on_cells: Callable[[int, int], None] | None = None,
    ) -> sparse.csr_matrix:
        """Return counts of cells drawn with a strength of steering; the same ``stream`` has the same randomness."""
        model = self.model
        cond = self._conditions(n, stream=stream)
        start = None if self.start is None else self.start[np.arange(n) % self.start.shape[0]]
        offset, first = self._clamped(cond, start)
        chunks: list[sparse.csr_matrix] = []

        def collect(x: torch.Tensor) -> None:
            made = sparse.csr_matrix(x.numpy())
            chunks.append(self._exact(made, row_sums(made)))
            if on_cells is not None:
                on_cells(sum(chunk.shape[0] for chunk in chunks), n)

        device = model.denoiser.device
        steered = partial(
            Steered,
            process=model.denoiser.process,
            features=self.features,
            strength=torch.as_tensor(strength, dtype=torch.float32, device=device),
            offset=None if offset is None else offset.to(device),
        )
        chosen = Chosen(self.particles) if self.particles > 1 and strength.any() else None
        randomness = int(np.random.SeedSequence([self.seed, stream, 1]).generate_state(1)[0])
        sample(
            model.denoiser,
            cond,
            n_steps=self.n_steps,
            guided=ClassifierFree(model.denoiser, self.guidance),
            gain=model.settings["gain"],
            solver=chosen,
            steered=steered,
            start=first,
            generator=torch.Generator(device).manual_seed(randomness),
            on_cells=collect,
        )
        self.ess[:] = chosen.ess if chosen else []
        return sparse.vstack(chunks, format="csr")

    def sampled(
        self,
        n: int,
        *,
        carried: bool,
        on_cells: Callable[[int, int], None] | None = None,
    ) -> sparse.csr_matrix:
        """Return counts of ``n`` designed cells; those that lack what is asked of every cell are drawn again."""
        strength = np.zeros(len(self.phenotype.wishes)) if carried else self.steering.strength
        counts: sparse.csr_matrix | None = None
        lacks: np.ndarray = np.ones(n, dtype=bool)
        for stream in range(4, 4 + ROUNDS):
            fresh = self.draw(n, strength, stream=stream, on_cells=on_cells)
            if carried:
                fresh = self.changed(fresh, self.carried, base=self.usual)
            counts = fresh if counts is None else sparse.vstack([counts, fresh], format="csr")[np.arange(n) + n * lacks]
            lacks, on_cells = np.asarray(~self.meets(counts).all(axis=1)), None
            if not lacks.any():
                break
        assert counts is not None
        return counts

    def _clamped(
        self, cond: Conditions, start: sparse.csr_matrix | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return what keeps clamped genes from being drawn, and the molecules that cells begin with."""
        first = None if start is None else torch.from_numpy(start.toarray()).float()
        if not self.phenotype.clamp:
            return None, first
        assert cond.depth is not None
        molecules = torch.from_numpy(self._molecules(cond.depth.numpy()))
        offset = torch.zeros(len(self.model.genes))
        offset[self._clamped_genes] = NEVER
        if first is None:
            first = torch.zeros(len(cond), len(self.model.genes))
        first[:, self._clamped_genes] = molecules.float()
        return offset, first

    @cached_property
    def _clamped_genes(self) -> np.ndarray:
        return pd.Index(self.model.genes).get_indexer(list(self.phenotype.clamp))

    def _molecules(self, depth: np.ndarray) -> np.ndarray:
        """Return the molecules of clamped genes in cells of these depths, shape (n_cells, n_clamped)."""
        return np.rint(np.outer(depth, np.expm1(list(self.phenotype.clamp.values())) / PER))

    def _exact(self, counts: sparse.csr_matrix, depth: np.ndarray | None = None) -> sparse.csr_matrix:
        """Return cells whose clamped genes have their level, to a molecule; ``depth``: by default as others ask for."""
        if not self.phenotype.clamp:
            return counts
        out = counts.tolil()
        out[:, self._clamped_genes] = 0
        if depth is None:
            depth = row_sums(out.tocsr()) / (1 - np.expm1(list(self.phenotype.clamp.values())).sum() / PER)
        out[:, self._clamped_genes] = self._molecules(depth)
        return out.tocsr()

    def means(self, counts: sparse.csr_matrix) -> np.ndarray:
        """Return what calibration compares with what is wanted: means, or what nearly every cell reaches."""
        observed, denoised = self.observed(counts), None
        if self.of_denoised.any():
            denoised = self.denoised(counts, self.table(counts.shape[0]))
        out = observed.mean(axis=0)
        for j, wish in enumerate(self.phenotype.wishes):
            if denoised is not None and self.of_denoised[j]:
                quantile = {"above": 1 - MEET, "below": MEET}.get(wish.level)
                of_cells = denoised[:, j]
                out[j] = of_cells.mean() if quantile is None else np.quantile(of_cells, quantile)
        return out

    @cached_property
    def steering(self) -> Calibration:
        """The strength at which drawn cells have the levels wanted."""
        if not self.sides.any():
            return self.steered_to(self.wanted)
        return self.steered_to(self.asked(self.means(self.draw(TRIAL, np.zeros(len(self.wanted)), stream=1))))

    def steered_to(self, levels: np.ndarray) -> Calibration:
        """Return the strength at which drawn cells have these levels, shape (n_wishes,)."""
        if not self.phenotype.wishes:
            return Calibration(np.zeros(0), np.zeros(0), np.zeros((1, 0)))
        return calibrated(lambda strength: self.means(self.draw(TRIAL, strength, stream=1)), levels)

    @cached_property
    def carried(self) -> Effect:
        """What cells of other contexts that have the phenotype have beside it, carried to this context.

        Cells that have it count as perturbed, the others of their context as controls; the closed form for
        perturbations does the rest. The steered features are set to what is wanted.
        """
        reference = self.model.reference
        perturbed = np.zeros(len(reference), dtype=bool)
        perturbed[self.best(~self.here)] = True
        for name in np.unique(self._contexts[~self.here]):
            rows = self._contexts == name
            usual = np.quantile(self.has[rows], 0.25)
            perturbed |= rows & ~self.here & (self.has > (1 + usual) / 2)
        groups = reference.conditions[list(self.model.schema.context)].reset_index(drop=True)
        groups["perturbation"] = [("phenotype",) if has else () for has in perturbed]
        logged = log1p_cp10k(reference.x)
        model = EffectModel.fit(GroupStats.of(logged, groups, depth=row_sums(reference.x)))
        own = {name: value for name, value in self.condition.items() if not pd.isna(value)}
        context = {name: value for name, value in own.items() if name in self.model.schema.context}
        effect = model.predict(context, ("phenotype",), control_mean=self.usual)
        effect = replace(effect, mean=self._completed(effect.mean, self.typical))
        trial = self.draw(TRIAL, np.zeros(len(self.wanted)), stream=1)
        for _ in range(CORRECTIONS if self.of_denoised.any() else 0):
            reached = self.means(self.changed(trial, effect, base=self.usual))
            missing = self.asked(reached) - reached
            effect = replace(effect, mean=effect.mean + self._least(missing))
        return effect

    @cached_property
    def usual(self) -> np.ndarray:
        """Mean log1p(CP10k) of real cells of this context, shape (n_genes,)."""
        return np.asarray(log1p_cp10k(self.model.reference.x[self.here]).mean(axis=0)).ravel()

    def _completed(self, effect: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Return the effect, changed least, that takes observed features from these levels to the ones wanted."""
        missing = self.wanted - levels - effect @ self.weights
        return effect + self._least(np.where(self.of_denoised, 0, missing))

    def _least(self, missing: np.ndarray) -> np.ndarray:
        """Return the least change of genes that moves features by ``missing``, shape (n_genes,)."""
        weights = self.weights
        return weights @ np.linalg.lstsq(weights.T @ weights, missing, rcond=None)[0]

    def change(self, counts: sparse.csr_matrix) -> Effect:
        """Return what brings these cells to the phenotype: cells steered to it minus cells steered to what they are."""
        own = self.means(counts)
        both = self.steered_to(self.asked(own)) if self.sides.any() else self.steering, self.steered_to(own)
        there, here = (self.draw(2 * TRIAL, found.strength, stream=2) for found in both)
        mean = np.asarray(log1p_cp10k(there).mean(axis=0) - log1p_cp10k(here).mean(axis=0)).ravel()
        ratio = np.log(row_sums(there).mean() / row_sums(here).mean())
        return Effect(self._completed(mean, own), np.zeros_like(mean), float(ratio), "context")

    def changed(
        self, counts: sparse.csr_matrix, effect: Effect, *, base: np.ndarray | None = None
    ) -> sparse.csr_matrix:
        """Return cells moved by an effect on ``base``, by default their own means of log1p(CP10k), shape (n_genes,).

        Each cell keeps its molecules, less those of genes that go down.
        """
        n = counts.shape[0]
        if base is None:
            base = np.asarray(log1p_cp10k(counts).mean(axis=0)).ravel()
        ratio = float(np.exp(effect.log_depth_ratio))
        cond = self.model.encoded(self.table(n), depth=row_sums(counts) * ratio)
        dealer = Gain(on_host(self.model.posterior.expected, self.model.posterior.device), CARRIED_GAIN)
        target = np.maximum(base + effect.mean, 0)
        for gene, level in self.phenotype.clamp.items():
            target[self.model.genes.index(gene)] = level
        cond = cond.to(self.model.posterior.device)
        return self._exact(counterfactual(dealer, counts, target, cond, depth_ratio=ratio, seed=self.seed)[0])

    def meets(self, counts: sparse.csr_matrix) -> np.ndarray:
        """Mask of the cells that have the level each wish asks of every cell, shape (n_cells, n_wishes)."""
        if not self.sides.any():
            return np.ones((counts.shape[0], len(self.sides)), dtype=bool)
        return (self.denoised(counts, self.table(counts.shape[0])) - self.wanted) * self.sides >= 0

    def weighted(self) -> dict[str, float]:
        """Return how many particles each cell was drawn from, and how many of them carried the weight, at worst."""
        return {"particles": self.particles, "ess": float(np.mean(self.ess))} if self.ess else {}

    # ---- the answer ----------------------------------------------------------------------------------------------

    @cached_property
    def _have(self) -> np.ndarray:
        """Mask of the reference cells that designed ones should be like; none where the context has none."""
        return self.here & (self.has > HALF) & (self.verdict == SEEN_HERE)

    def judged(self, counts: sparse.csr_matrix) -> tuple[pd.DataFrame, dict[str, float]]:
        """Return the levels attained, one row per wish, and how real the cells are."""
        have = self._have
        like = np.flatnonzero(have if have.any() else self.here)
        columns = {
            "wanted": self.wanted,
            "designed": self.means(counts),
            "typical real cells": self.typical,
            "best real cells here": self._on_scale(self.best(self.here)),
            "best real cells anywhere": self._on_scale(self.best(np.ones(len(self.here), bool))),
        }
        names = [wish.name for wish in self.phenotype.wishes]
        scale = ["denoised" if flag else "observed" for flag in self.of_denoised]
        levels = pd.DataFrame(columns, index=pd.Index(names, name="wish"))
        levels = levels.assign(scale=scale, basis=[_basis(wish) for wish in self.phenotype.wishes])
        logged = log1p_cp10k(self.model.reference.x)
        how_real = realism(log1p_cp10k(counts), logged, like, seed=self.seed)
        # without real cells that have the phenotype there are none that the designed ones could be taken for
        return levels, how_real if have.any() else how_real | {"auc": float("nan")}

    def overshot(self, counts: sparse.csr_matrix, levels: np.ndarray) -> pd.DataFrame:
        """Return the genes nobody asked for that go too far, by twofold or more, with their levels; furthest first.

        ``real``: where real cells that have the phenotype would have them, if they had these ``levels`` of the wishes.
        """
        columns = ["gene", "designed", "real"]
        if self.in_parts or not self.phenotype.wishes or self._have.sum() < MIN_BEST:
            return pd.DataFrame({name: [] for name in columns})
        mean, error = _mean_and_error(log1p_cp10k(counts))
        real, real_error = _mean_and_error(log1p_cp10k(self.model.reference.x[self._have]))
        come, way = self._on_scale(self._have) - self.typical, levels - self.typical
        further = max(1.0, float(way @ come / max(come @ come, 1e-12)))
        real = self.usual + further * (real - self.usual)
        gap, sure = np.abs(mean - real), SURELY * np.hypot(error, further * real_error)
        beyond = (gap > np.maximum(TWOFOLD, sure)) & (np.abs(mean - self.usual) > np.abs(real - self.usual))
        beyond &= ~np.isin(self.model.genes, self.phenotype.genes)
        order = np.flatnonzero(beyond)[np.argsort(-gap[beyond])]
        return pd.DataFrame(
            dict(zip(columns, (np.array(self.model.genes)[order], mean[order], real[order]), strict=True))
        )

    def sentences(
        self, levels: pd.DataFrame, how_real: dict[str, float], overshot: pd.DataFrame, meets: np.ndarray
    ) -> list[str]:
        """Return what the user should know, the verdict first, then what went wrong."""
        said = {
            SEEN_HERE: f"{self._where}: real cells of this context have the phenotype{_most(self.seen_in)}",
            SEEN_ELSEWHERE: f"{self._where}: no real cell of this context has the phenotype, but cells of others have"
            f"{_most(self.seen_in)}; what else is different in them was carried over",
            NOT_SEEN: f"{self._where}: no real cell that the model knows has the phenotype; what the other genes of "
            "the designed cells do is a guess",
        }
        out = [said[self.verdict]]
        if self.in_parts:
            out[0] = f"{self._where}: real cells of this context have every part of the phenotype, hardly all together"
        way = levels["wanted"] - levels["typical real cells"]
        gap = (self.asked(levels["designed"].to_numpy()) - levels["designed"]).abs()
        short = gap > np.maximum(0.25 * way.abs(), 0.1)
        if short.any():
            name = (gap * short).idxmax()
            out.append(
                f"{name}: {levels.loc[name, 'designed']:.2f} was reached, {levels.loc[name, 'wanted']:.2f} was wanted"
            )
        for wish, lack in zip(self.phenotype.wishes, (~meets).sum(axis=0), strict=True):
            if lack:
                share = f"{lack} of {len(meets)} cells"
                out.append(f"{wish.name}: {share} are not {wish.level} {wish.value:g}, as every cell shall be")
        if len(overshot):
            most = ", ".join(f"{row.gene} {row.designed:.2f} ({row.real:.2f})" for row in overshot[:3].itertuples())
            more = f" and {len(overshot) - 3} more" if len(overshot) > 3 else ""
            remedy = "particles=8 stays nearer to these, and takes longer" if self.particles == 1 else "ask for less"
            out.append(
                "not asked for, and further than in real cells with the phenotype (in brackets): "
                f"{most}{more}; {remedy}"
            )
        if how_real["distance"] > FAR:
            out.append(
                f"the cells lie {how_real['distance']:.1f} times as far from real cells as these from each other: "
                "they left what the model knows"
            )
        return out


def _basis(wish: Wish) -> str:
    """Return where the level wanted comes from."""
    if wish.level in ("top", "bottom"):
        tenth = f"the {'highest' if wish.level == 'top' else 'lowest'} tenth of real cells here"
        return tenth if wish.value == 1 else f"{wish.value:g} of the way to {tenth}"
    return {"mean": "as asked, on average", "shift": "along the signature"}.get(wish.level, "as asked, in every cell")


def _most(seen_in: pd.DataFrame) -> str:
    """Return in words under which conditions cells have a phenotype most often."""
    named = [
        f"{row.pop('share'):.0%} of those with " + ", ".join(f"{name}={row[name]}" for name in row if name != "cells")
        for row in seen_in[:3].to_dict("records")
    ]
    return f" ({'; '.join(named)})" if named else ""


def _mean_and_error(x: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of columns and their standard errors."""
    mean, square = (np.asarray(values.mean(axis=0)).ravel() for values in (x, x.multiply(x)))
    return mean, np.sqrt(np.maximum(square - mean**2, 0) / x.shape[0])


def _at_activity(model: TrainedModel, phenotype: Phenotype, condition: pd.Series) -> Phenotype:
    """Return the phenotype with the modules of the condition: what goes with the other wishes must not undo them."""
    for name, weights in model.settings.get("modules", {}).items():
        if not pd.isna(condition[name]):
            phenotype = phenotype.also(Wish(name, "mean", float(condition[name]), weights))
    return phenotype


def _shared(model: TrainedModel, cells: AnnData) -> dict[str, Any]:
    """Return the context that all these cells have."""
    table = model.labels_of(cells, use=True)
    known = [name for name in model.schema.context if name in table and table[name].notna().all()]
    return {name: table[name].iloc[0] for name in known if table[name].nunique() == 1}


def _thinned(counts: sparse.csr_matrix, keep: float, *, seed: int) -> sparse.csr_matrix:
    """Return cells in which every molecule is kept with this probability."""
    kept = sparse.csr_matrix(counts, copy=True)
    kept.data = np.random.default_rng([seed, 3]).binomial(kept.data.astype(int), keep).astype(np.float32)
    kept.eliminate_zeros()
    return kept
