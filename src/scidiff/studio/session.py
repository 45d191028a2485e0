"""What the studio knows and can be asked: a model, real cells beside it, files of regulators and of drugs.

Everything here is plain: requests are texts and numbers as a form has them, answers are tables, words and coordinates.
No browser is needed to test it, and nothing is remembered between two requests.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.data.cells import read_cells
from scidiff.data.scaling import log1p_cp10k, row_sums
from scidiff.errors import DataWarning, InputError, closest
from scidiff.estimator import ScIDiff
from scidiff.evaluation.ranking_report import HEADINGS, MEANING, write_ranking
from scidiff.evaluation.realism import realism
from scidiff.evaluation.report import facts, write_report
from scidiff.integration.signatures import Signatures
from scidiff.phenotype import Phenotype
from scidiff.tasks.design import FAR

if TYPE_CHECKING:
    from anndata import AnnData

#: more are made by the command line: a browser is no place to wait for them
MOST_CELLS = 5000
#: real cells in the map: enough to see the shape, few enough to lay out in seconds
MOST_REAL = 2000
#: contexts that get their name in the map
MOST_NAMED = 14
N_OFFERED, N_BEST = 12, 10
TF = "TF:"

#: highest AUC at which a classifier does so
TOLD_APART = ((0.6, "hardly"), (0.8, "partly"), (1.0, "easily"))

_ENTRY = re.compile(r"^(?P<name>[^=<>]+)(?P<level>[=<>][^=<>]+)?$")

#: number -> what it is, what real cells have
MEASURES = {
    "distance": ("distance to the nearest real cell, in distances of real cells", "1"),
    "novelty": ("share of cells that are far from every real cell", "5 %"),
    "diversity": ("spread among themselves, in spreads of the real cells most like them", "1"),
    "auc": ("how surely a classifier tells them from these real cells (AUC)", "0.5"),
}


@dataclass(frozen=True)
class Attribute:
    """Something that cells can be asked to be: one of ``values``, or a number where there are none.

    ``separator``: between values that can be combined; None where they cannot.
    """

    name: str
    label: str
    values: tuple[str, ...] = ()
    hint: str = ""
    separator: str | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """Cells that were made, and what is to be said of them.

    ``verdict``: sentences, what matters first. ``levels``: a row for each wish, None for cells of a condition.
    ``measures``: name, value and what real cells have, in words.
    """

    title: str
    cells: AnnData
    verdict: tuple[str, ...]
    levels: pd.DataFrame | None
    measures: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, eq=False)
class Map:
    """Real and new cells in one embedding: coordinates (n_cells, 2), the name of the axes.

    ``names``: where the names of contexts go, the commonest first.
    """

    real: np.ndarray
    made: np.ndarray
    axes: str
    names: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Session:
    """A model with what stands beside it.

    Parameters
    ----------
    model
        Trained.
    name
        What the page calls it.
    data
        Real cells to show and to compare with; None: those that the model keeps.
    network
        Regulators and targets, from :func:`scidiff.integration.read_network`.
    signatures
        Signatures of drugs, from :func:`scidiff.integration.read_signatures`.

    Raises
    ------
    InputError
        The cells cannot be used with this model.
    """

    model: ScIDiff
    name: str
    data: AnnData | None = None
    network: pd.DataFrame | None = None
    signatures: Signatures | None = None

    def __post_init__(self) -> None:
        if not len(self.real):
            raise InputError("there are no cells to compare with: the model keeps none; give a data file")

    # ---- what there is -------------------------------------------------------------------------------------------

    @cached_property
    def real(self) -> AnnData:
        """Real cells on the model's genes, with their conditions: counts in ``layers["counts"]``, log1p in ``X``."""
        from anndata import AnnData

        model = self.model
        if self.data is None:
            x, table = model.reference.x, model.reference.conditions
        else:
            cells, table = read_cells(self.data, genes=model.genes), model.conditions_of(self.data)
            model.refuse_cells(cells.scale, self.data.obs_names[row_sums(abs(sparse.csr_matrix(cells.x))) == 0])
            x = sparse.csr_matrix(cells.x)
        obs = table.rename(columns=model.schema.columns).reset_index(drop=True)
        obs = obs.astype(object).where(obs.notna(), "unknown").astype(str)
        obs.index = [f"cell{i}" for i in range(len(obs))]
        var = pd.DataFrame(index=pd.Index(model.genes))
        if not model.counted:
            return AnnData(x, obs=obs, var=var)
        return AnnData(log1p_cp10k(x), obs=obs, var=var, layers={"counts": x})

    def about(self) -> list[tuple[str, str]]:
        """Return facts on the model and the cells beside it, as names and texts."""
        model, settings = self.model, self.model.settings
        found: dict[str, Any] = {
            "trained on": f"{settings['n_cells']:,} cells, {len(model.genes):,} genes, {model.scale}",
            "noise": settings["noise"],
            "conditions": ", ".join(model.schema.columns.values()) or "none",
        }
        beside = "given" if self.data is not None else "kept in the model"
        found["real cells here"] = f"{self.real.n_obs:,}, {beside}"
        if model.counted:
            depth = row_sums(self.real.layers["counts"])
            found["median depth"] = f"{np.median(depth):,.0f} molecules"
        found["regulators from"] = self._size(self.network, "source")
        found["drugs from"] = "no file given" if self.signatures is None else f"{self.n_drugs:,} signatures"
        return facts(found)

    @staticmethod
    def _size(table: pd.DataFrame | None, column: str) -> str:
        return "no file given" if table is None else f"a network of {table[column].nunique():,}"

    @property
    def n_drugs(self) -> int:
        return 0 if self.signatures is None else len(self.signatures)

    def groups(self) -> pd.DataFrame:
        """Return the conditions of the real cells and how many cells each has, the commonest first."""
        columns = [name for name in self.model.schema.columns.values() if name in self.real.obs]
        if not columns:
            return pd.DataFrame({"cells": [self.real.n_obs]})
        counted = self.real.obs.groupby(columns, observed=True).size().rename("cells").reset_index()
        return counted.sort_values("cells", ascending=False, ignore_index=True)

    def training(self) -> dict[str, pd.DataFrame]:
        """Return the course of training for each stage: step, loss, heldout."""
        names = {"sample": "to make cells", "denoise": "to denoise", "predict": "to say effects"}
        stages = self.model.history.groupby("stage", sort=False)
        return {names.get(stage, stage): rows[["step", "loss", "heldout"]] for stage, rows in stages}

    # ---- what can be asked ---------------------------------------------------------------------------------------

    def attributes(self, *, context_only: bool = False) -> list[Attribute]:
        """Return what a condition may say; of designed cells only what they are, not what was done to them."""
        vocabulary, schema = self.model.vocabulary, self.model.schema
        out = []
        for name, column in schema.columns.items():
            if context_only and name not in schema.context:
                continue
            if name == "perturbation":
                values = dict.fromkeys((*vocabulary.perturbations, *vocabulary.parts))
                plus = schema.combination_sep
                hint = "" if plus is None else f"any, if left open; A{plus}B: both"
                out.append(Attribute(name, column, tuple(values), hint, plus))
            elif name in vocabulary.categories:
                out.append(Attribute(name, column, vocabulary.categories[name]))
            else:
                ends = vocabulary.dose_range if name == "dose" else vocabulary.time_range
                unit = vocabulary.units.get(name) or ""
                hint = "" if ends is None else f"{ends[0]:g} to {ends[1]:g} {unit}".strip()
                out.append(Attribute(name, column, (), hint))
        if not context_only:
            modules = vocabulary.modules.items()
            out += [Attribute(name, name, (), f"{low:.2g} to {high:.2g}") for name, (low, high) in modules]
        return out

    @cached_property
    def _names(self) -> dict[str, str]:
        """Genes, and regulators as ``TF:NAME``, by their names in small letters."""
        regulators = [] if self.network is None else sorted(set(self.network["source"]))
        return {name.lower(): name for name in (*self.model.genes, *(f"{TF}{name}" for name in regulators))}

    def offers(self, text: str) -> list[str]:
        """Return names that begin with ``text``, the shortest first, then names that contain it; at most twelve."""
        wanted = text.strip().lower()
        if not wanted:
            return []
        found = [name for small, name in self._names.items() if wanted in small]
        return sorted(found, key=lambda name: (not name.lower().startswith(wanted), len(name), name))[:N_OFFERED]

    def entries(self, text: str) -> tuple[list[str], str]:
        """Return the wishes in what was typed, ``isg15, IL2RA=2.5``, as a phenotype takes them, and what is wrong.

        What can be read is returned; what is wrong is one line on the first entry that cannot, else empty.
        """
        known, wrong = [], []
        for entry in filter(None, re.split(r"[,;\s]+", re.sub(r"\s*([=<>])\s*", r"\1", text))):
            match = _ENTRY.match(entry)
            name = match["name"] if match else entry
            if match is None:
                wrong.append(f"cannot read {entry!r}: write GENE, GENE=2.5 or GENE>2.5")
            elif name.lower() in self._names:
                known.append(self._names[name.lower()] + (match["level"] or ""))
            else:
                kind = "regulator of the network" if name.startswith(TF) else "gene of the model"
                wrong.append(f"{name!r} is no {kind}{closest(name, self._names.values())}")
        return known, wrong[0] if wrong else ""

    # ---- answers -------------------------------------------------------------------------------------------------

    def design(
        self,
        up: Sequence[str],
        down: Sequence[str],
        n: int,
        condition: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        on_cells: Callable[[int, int], None] | None = None,
    ) -> Result:
        """Return cells that have a phenotype. Raises :class:`InputError` for what cannot be asked."""
        self._check(n)
        if not (up or down):
            raise InputError("name at least one gene that shall be up or down")
        wanted = Phenotype(up=list(up), down=list(down), network=self.network)
        condition = _said(condition)
        with _noticed() as noticed:
            cells = self.model.design(wanted, n, condition, seed=seed, on_cells=on_cells)
        told = cells.uns["scidiff"]
        parts = [f"{', '.join(names)} {way}" for names, way in ((up, "up"), (down, "down")) if names]
        title = ", ".join((*parts, *(f"{name} {value}" for name, value in condition.items())))
        verdict = tuple(dict.fromkeys([*told["text"], *noticed, *_real_words(told["realism"])]))
        return Result(title, cells, verdict, told["levels"].reset_index(), _measured(told["realism"]))

    def generate(
        self,
        condition: Mapping[str, Any] | None,
        n: int,
        *,
        seed: int = 0,
        on_cells: Callable[[int, int], None] | None = None,
    ) -> Result:
        """Return cells of a condition. Raises :class:`InputError` for what cannot be asked."""
        self._check(n)
        condition = _said(condition)
        with _noticed() as noticed:
            cells = self.model.generate(n, condition, seed=seed, on_cells=on_cells)
        asked = self.model.schema.conditions(condition, known=self.model.vocabulary.known).iloc[0].dropna()
        logged = self.model.reference.x
        logged = log1p_cp10k(logged) if self.model.counted else logged
        like = self.model.reference.where(asked.to_dict())
        told = ", ".join(f"{name} {value}" for name, value in condition.items()) or "conditions as in training"
        how_real = realism(cells.X, logged, np.flatnonzero(like if like.any() else ~like), seed=seed)
        verdict = [f"{told}: {'real cells of it were in training' if like.any() else 'no such cell was in training'}"]
        if how_real["distance"] > FAR:
            verdict.append("the cells lie apart from real cells: they left what the model knows")
        verdict += dict.fromkeys([*noticed, *_real_words(how_real)])
        return Result(told, cells, tuple(verdict), None, _measured(how_real))

    def map(self, result: Result | None = None, *, seed: int = 0) -> Map:
        """Return the cells of a result among real ones, laid out together; without a result, real cells alone."""
        from scidiff.plotting import common_embedding

        real = self.real
        if real.n_obs > MOST_REAL:
            real = real[np.sort(np.random.default_rng(seed).choice(real.n_obs, MOST_REAL, replace=False))]
        # an embedding is of two populations: for real cells alone, one of them stands for the second
        points, made, axes = common_embedding(real, real[:1] if result is None else result.cells, seed=seed)
        made = made[:0] if result is None else made
        names: dict[str, tuple[float, float]] = {}
        columns = [self.model.schema.columns[name] for name in self.model.schema.context]
        if columns and 1 < real.obs[columns[0]].nunique() <= MOST_NAMED:
            labels = real.obs[columns[0]].to_numpy()
            for name in real.obs[columns[0]].value_counts().index:
                own = points[labels == name]  # a name stands on a cell of its own, not between two clouds of them
                x, y = own[np.square(own - np.median(own, axis=0)).sum(axis=1).argmin()]
                names[name] = float(x), float(y)
        return Map(points, made, axes, names)

    def nothing_to_rank(self) -> str:
        """Return why no cause can be ranked, empty if some can."""
        if self.model.library is not None or self.network is not None or self.signatures is not None:
            return ""
        return (
            "This model knows fewer than two perturbations. Start the studio with --network FILE to rank regulators, "
            "with --signatures FILE to rank drugs."
        )

    def rank(self, result: Result, *, undo: bool = False) -> pd.DataFrame:
        """Return what would cause (or undo) these cells, as :meth:`scidiff.ScIDiff.attribute` ranks it."""
        with _noticed():
            return self.model.attribute(
                result.cells,
                network=self.network,
                signatures=self.signatures,
                direction="reverse" if undo else "mimic",
            )

    # ---- files ---------------------------------------------------------------------------------------------------

    def write_cells(self, result: Result, path: Path) -> Path:
        """Write the cells as h5ad and return the path."""
        result.cells.write_h5ad(path, compression="gzip")
        return path

    def write_ranking(self, result: Result, ranking: pd.DataFrame, path: Path) -> Path:
        """Write the page of all candidates with their evidence, and return its path."""
        about = {"cells": result.title, "model": self.name}
        return write_ranking(path, ranking, about=about, network=self.network)

    def write_report(self, result: Result, ranking: pd.DataFrame | None, path: Path) -> Path:
        """Write one HTML page of what was asked, what came out and what would cause it, and return its path."""
        sections: list[tuple[str, Any]] = []
        if result.levels is not None:
            sections.append(("Levels of the phenotype", result.levels.round(3)))
        measures = pd.DataFrame(result.measures, columns=["measure", "these cells", "real cells"])
        sections.append(("How real the cells are", measures))
        for heading, rows in [] if ranking is None else best(ranking):
            sections.append((f"What would cause it: {heading}", rows))
        return write_report(
            path,
            title=result.title,
            about=dict(self.about()),
            summary=[f"{sentence}." for sentence in result.verdict[:1]],
            warnings=list(result.verdict[1:]),
            history=self.model.history,
            real=self.real,
            generated=result.cells,
            extra_sections=sections,
        )

    def _check(self, n: int) -> None:
        if not isinstance(n, int) or not 1 <= n <= MOST_CELLS:
            raise InputError(f"ask for 1 to {MOST_CELLS:,} cells here; the command line makes more")


def best(ranking: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the first candidates of every kind: heading, and a table of name, scores and leading genes."""
    out = []
    for kind, rows in ranking.groupby("kind", sort=False):
        rows = rows.sort_values("rank").head(N_BEST)
        scores = [name for name in MEANING if name in rows and pd.api.types.is_numeric_dtype(rows[name])]
        scores = [name for name in scores if name != "consensus_rank" and rows[name].notna().any()]
        shown = [name for name in scores if name not in ("p_value", "fdr")][:2] + (["fdr"] if "fdr" in scores else [])
        genes = rows["leading_genes"].fillna("").astype(str).str.split(",").str[:5].str.join(", ")
        table = rows[["rank", "name", *shown]].assign(**{"genes that say so": genes})
        out.append((HEADINGS.get(str(kind), str(kind)), table.rename(columns=lambda name: name.replace("_", " "))))
    return out


def meanings(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what the columns of a table of :func:`best` mean, those of which that is known."""
    told = {name.replace("_", " "): meaning for name, meaning in MEANING.items()}
    return [(column, told[column]) for column in rows if column in told and column != "leading genes"]


def _measured(numbers: Mapping[str, float]) -> tuple[tuple[str, str, str], ...]:
    """Return the numbers of :func:`scidiff.evaluation.realism.realism` in words, those that could be computed."""
    out = []
    for name, (meaning, ideal) in MEASURES.items():
        if np.isfinite(value := numbers[name]):
            out.append((meaning, f"{100 * value:.0f} %" if name == "novelty" else f"{value:.2f}", ideal))
    return tuple(out)


def _real_words(numbers: Mapping[str, float]) -> list[str]:
    """Return how far single cells can be taken for real ones, in a sentence; none where nobody is like them."""
    if not np.isfinite(auc := numbers["auc"]):
        return []
    surely = next(word for limit, word in TOLD_APART if auc <= limit)
    return [f"a classifier {surely} tells them from the real cells most like them (AUC {auc:.2f}; 0.5: not at all)"]


def _said(condition: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a form says, without what was left open."""
    return {name: value for name, value in (condition or {}).items() if value not in (None, "")}


@contextmanager
def _noticed() -> Iterator[list[str]]:
    """Collect what would be warned of, each sentence once; other warnings are for programmers."""
    out: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", DataWarning)
        yield out
    out += dict.fromkeys(" ".join(str(one.message).split()) for one in caught)
