"""Attribute: which perturbation, regulator or drug would cause a phenotype.

One question, an effect on genes, is asked of up to three kinds of evidence: the perturbations that were in training (a
posterior over them), a network of regulators, and signatures of drugs. All answers stand in one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.data.cells import read_cells
from scidiff.data.scaling import log1p_cp10k, row_sums
from scidiff.errors import InputError, closest, expect
from scidiff.integration.attribution import Library, Query, cosine, empirical_bayes_lda, from_genes
from scidiff.integration.drugs import DIRECTIONS, rank_drugs, up_down
from scidiff.integration.ranking import consensus_rank
from scidiff.integration.regulators import rank_regulators
from scidiff.integration.regulons import weights_of
from scidiff.integration.signatures import Signatures
from scidiff.integration.target_sets import rank_target_sets
from scidiff.model import DOSE, TrainedModel, treatment_name
from scidiff.phenotype import Phenotype
from scidiff.predictor import context_keys
from scidiff.tasks.in_silico import in_silico

if TYPE_CHECKING:
    from anndata import AnnData

#: columns of every ranking, in this order; those of single methods come between
FIRST = ("kind", "name", "rank", "consensus_rank")
LAST = ("direction", "p_value", "fdr", "leading_genes", "source")
N_LEADING = 10
#: regulators, the first by regression, that are tried in silico
N_TRIED = 30


def attribute(
    model: TrainedModel,
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
    """Return the ranking; see :meth:`scidiff.ScIDiff.attribute`."""
    if direction not in DIRECTIONS:
        raise InputError(f"unknown direction {direction!r}{closest(direction, DIRECTIONS)}")
    given = [cells is not None, bool(up or down), effect is not None, phenotype is not None]
    if sum(given) != 1:
        raise InputError("attribute takes one of: cells, gene names as up= and down=, an effect=, or a phenotype=")
    if reference is not None and cells is None:
        raise InputError("reference= is what cells are compared with; give cells too")
    if signatures is not None:
        expect(signatures, Signatures, "signatures", "read a file with scidiff.integration.read_signatures")
    if targets is not None:
        expect(targets, pd.DataFrame, "a table of targets", "read a file with scidiff.integration.read_drug_targets")
    asks_drugs = signatures is not None or targets is not None
    if drug_names is not None and not asks_drugs:
        raise InputError("drug_names= say which drugs are one; give signatures= or targets= too")
    if each_dose and signatures is None:
        raise InputError("each_dose= ranks signatures; give signatures= too")
    if phenotype is not None:
        if pairs or network is not None or asks_drugs:
            raise InputError("for regulators, drugs and pairs name the genes of the phenotype as up= and down=")
        gains = by_gain(model, phenotype, condition, sign=DIRECTIONS[direction])
        return _as_one(gains.assign(consensus_rank=gains["rank"]), direction)
    if condition is not None:
        raise InputError("condition= belongs to phenotype=; cells know their own")
    if isinstance(up, str) or isinstance(down, str):
        raise InputError("up= and down= take lists of genes")
    if pairs and (up or down):
        raise InputError("pairs= needs cells or an effect=, not only names of genes")
    if model.library is None and network is None and not asks_drugs:
        raise InputError(
            "this model has nothing to name: it knows fewer than two perturbations with control cells, or was trained "
            "to denoise only; give network=, signatures= or targets="
        )
    question = _asked(model, cells, reference, up, down, effect, layer)
    tables = []
    if model.library is not None:
        tables.append(_perturbations(model.library, question, direction=direction, pairs=pairs))
    if network is not None:
        tables.append(_regulators(model, question, network, direction=direction))
    if signatures is not None:
        posterior = None if model.library is None else _of_drugs(tables[0], model.schema.combination_sep)
        tables.append(
            rank_drugs(
                question.effect,
                signatures,
                direction=direction,
                each_dose=each_dose,
                leave_out=question.steered,
                targets=targets,
                drug_names=drug_names,
                posterior=posterior,
                cells=question.cells,
            )
        )
    elif targets is not None:
        tables.append(
            rank_target_sets(
                question.on(model.genes),
                targets,
                direction=direction,
                cells=question.cells,
                leave_out=question.steered,
                drug_names=drug_names,
            )
        )
    table = pd.concat(tables, ignore_index=True)
    table["leading_genes"] = [",".join(genes) if isinstance(genes, list) else genes for genes in table["leading_genes"]]
    return _as_one(table, direction)


def _as_one(table: pd.DataFrame, direction: str) -> pd.DataFrame:
    """Return a ranking with its columns in order, saying what it was asked for: a row must be read without the call."""
    table = table.assign(direction=direction)
    return table[[*FIRST, *(name for name in table if name not in (*FIRST, *LAST)), *LAST]]


def by_gain(
    model: TrainedModel, phenotype: Phenotype, condition: Mapping[str, Any] | None = None, *, sign: float = 1.0
) -> pd.DataFrame:
    """Return the treatments of training by how far they are predicted to move cells of a context to a phenotype.

    ``gain``: the mean over wishes of the change of their features, in log1p(CP10k), those that shall fall counted
    negative (a wish for a number falls if control cells are above it), at the last time that was measured; ``se``: what
    the closed form believes of its error. Effects are shrunk: a treatment measured in few cells does not win by luck.
    """
    if model.predictor is None:
        raise InputError("this model knows no perturbation with control cells; train with perturbation= and control=")
    weights = phenotype.matrix(model.genes)
    if phenotype.clamp or not weights.any(axis=0).all() or not weights.size:
        raise InputError("treatments are ranked by genes, sets and signatures that shall be up or down, nothing else")
    asked = model.schema.conditions({} if condition is None else condition, known=model.vocabulary.known).iloc[0]
    context = {name: asked[name] for name in model.schema.context if name in asked and not pd.isna(asked[name])}
    if "perturbation" in asked and not pd.isna(asked["perturbation"]):
        raise InputError("condition= is the context to treat; which perturbation to use is the question")
    own = model.predictor.like(context)
    if not own.shape[0]:
        where = ", ".join(f"{name} {value!r}" for name, value in context.items())
        raise InputError(f"there are no control cells of {where} to treat; name a context that has some")
    level = np.asarray((log1p_cp10k(own) if model.counted else own).mean(axis=0)).ravel() @ weights
    falls = [wish.level in ("bottom", "below") for wish in phenotype.wishes]
    falls = np.array(falls) | [w.level == "mean" and w.value < x for w, x in zip(phenotype.wishes, level, strict=True)]
    wish = (weights * np.where(falls, -sign, sign)).mean(axis=1)
    wished = np.flatnonzero(wish)
    wish, genes = wish[wished], np.array(model.genes)[wished]
    effects = model.predictor.effects
    rows = effects.process.measured.rows
    time = None if rows["time"].isna().all() else float(rows["time"].max())
    treatments = dict.fromkeys(  # a dose that is not known is no number, and would not equal itself
        (tuple(parts), None if np.isnan(dose).any() else tuple(dose))
        for parts, dose in zip(rows["parts"], rows["dose"], strict=True)
    )
    out = []
    for parts, known in treatments:
        effect = effects.predict(context, parts, dose=known, time=time, genes=wished)
        leading = np.argsort(-wish * effect.mean)[:N_LEADING]
        out.append(
            {
                "kind": "perturbation",
                "name": treatment_name(parts, known, separator=model.schema.combination_sep),
                "gain": float(wish @ effect.mean),
                "se": float(np.sqrt(np.square(wish) @ effect.variance)),
                "leading_genes": ",".join(genes[g] for g in leading if wish[g] * effect.mean[g] > 0),
                "source": "training cells",
            }
        )
    table = pd.DataFrame(out).sort_values("gain", ascending=False, ignore_index=True)
    return table.assign(rank=np.arange(1, len(table) + 1), p_value=np.nan, fdr=np.nan)


@dataclass(frozen=True, eq=False)
class _Question:
    """An effect on the model's genes, where it comes from, and what is no evidence.

    ``effect``: change of mean log1p(CP10k), or signs. ``query``: for the library; None where only names were given.
    ``cells``: log1p(CP10k) of treated and control cells. ``controls``: counts of control cells, if they are
    counted, and their conditions.
    """

    effect: pd.Series
    query: Query | None
    controls: tuple[sparse.csr_matrix, pd.DataFrame] | None
    up: tuple[str, ...] = ()
    down: tuple[str, ...] = ()
    cells: tuple[sparse.csr_matrix, sparse.csr_matrix] | None = None
    steered: tuple[str, ...] = ()

    def on(self, genes: Sequence[str]) -> pd.Series:
        """Return the effect; of names only, on all genes of the model, those that were not named unchanged."""
        if not (self.up or self.down):
            return self.effect
        return self.effect.reindex(pd.Index(genes).union(self.effect.index, sort=False), fill_value=0.0)


def _asked(
    model: TrainedModel,
    cells: AnnData | None,
    reference: AnnData | None,
    up: Sequence[str],
    down: Sequence[str],
    effect: Mapping[str, float] | pd.Series | None,
    layer: str | None,
) -> _Question:
    genes = pd.Index(model.genes)
    if cells is not None:
        treated, (x, table, counted) = _logged(model, cells, layer), _controls(model, cells, reference, layer)
        control, controls = sparse.csr_matrix(log1p_cp10k(x) if counted else x), (x, table) if counted else None
        change = np.asarray(treated.mean(axis=0) - control.mean(axis=0)).ravel()
        told: Any = cells.uns.get("scidiff", {})
        steered = tuple(map(str, told.get("genes", ()))) if told.get("verb") == "design" else ()
        return _Question(
            pd.Series(change, genes), Query.of(treated, control), controls, cells=(treated, control), steered=steered
        )
    if effect is None:
        return _Question(up_down(up, down), None, _known_controls(model), tuple(up), tuple(down))
    said = pd.Series(effect, dtype=object)
    change = pd.to_numeric(said, errors="coerce").astype(float)
    for gene, value in said[change.isna()].dropna().items():
        raise InputError(f"effect of {gene!r}: {value!r} is no number")
    if not change.index.is_unique:
        raise InputError(f"gene {change.index[change.index.duplicated()][0]!r} occurs more than once in the effect")
    if not change.any():
        raise InputError("the effect changes nothing: all its values are 0")
    if not (known := change.index.isin(genes)).any():
        raise InputError(
            "none of the effect's genes is one of the model; are both named alike (symbols or Ensembl ids)?"
        )
    asked: Query | None = None
    if model.library is not None:
        asked = Query.of_effect(change[known].reindex(genes, fill_value=0.0).to_numpy(), model.library)
    return _Question(change, asked, _known_controls(model))


def _logged(model: TrainedModel, adata: AnnData, layer: str | None) -> sparse.csr_matrix:
    cells = read_cells(adata, genes=model.genes, layer=layer)
    return sparse.csr_matrix(log1p_cp10k(cells.x) if cells.scale == "counts" else cells.x)


def _known_controls(model: TrainedModel) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """Return the control cells that the model keeps, and their conditions."""
    table, x = model.reference.conditions, model.reference.x
    if model.predictor is not None:  # more of them: up to 200 of every context
        table, x = model.predictor.reference_contexts, model.predictor.reference
    rows = _are_control(model, table)
    return x[rows], table[rows]


def _are_control(model: TrainedModel, table: pd.DataFrame) -> np.ndarray:
    """Return which of the cells are controls: all, where nobody says what was done to them."""
    if "perturbation" in table and table["perturbation"].notna().any():
        return np.asarray(model.schema.is_control(table))
    return np.ones(len(table), dtype=bool)


def _controls(
    model: TrainedModel, cells: AnnData, reference: AnnData | None, layer: str | None
) -> tuple[sparse.csr_matrix, pd.DataFrame, bool]:
    """Return control cells of the same contexts, given or the model's own, their conditions, and if they are counts."""
    schema = model.schema
    if reference is None:
        (x, table), counted = _known_controls(model), model.counted
    else:
        given, table = read_cells(reference, genes=model.genes, layer=layer), model.conditions_of(reference)
        x, counted = sparse.csr_matrix(given.x), given.scale == "counts"
    rows = _are_control(model, table)
    own = model.conditions_of(cells)
    shared = [name for name in schema.context if own[name].notna().any() and table[name].notna().any()]
    if not shared:
        places = np.flatnonzero(rows)
    else:  # controls in the proportions of the cells: contexts differ by more than treatments do
        keys, wanted = (context_keys(one, shared) for one in (table, own))
        found = {key: np.flatnonzero(rows & (keys == key)) for key in np.unique(wanted)}
        if lost := [key for key, some in found.items() if not len(some)]:
            raise InputError(f"there are no control cells of {lost[0]} to compare with; give them as reference=")
        share = pd.Series(wanted).value_counts(normalize=True)
        most = min(len(some) / share[key] for key, some in found.items())  # cells in all that these proportions allow
        places = np.concatenate([some[: max(1, round(most * share[key]))] for key, some in found.items()])
    if len(places) < 2:
        raise InputError("there are no control cells of these contexts to compare with; give them as reference=")
    return x[places], table.iloc[places], counted


def _regulators(model: TrainedModel, question: _Question, network: pd.DataFrame, *, direction: str) -> pd.DataFrame:
    """Return the ranking of regulators; the first are also tried in silico."""
    effect = question.on(model.genes) * (1 if direction == "mimic" else -1)
    cells = question.cells if direction == "mimic" or question.cells is None else question.cells[::-1]
    table = rank_regulators(effect, network, cells=cells, leave_out=question.steered)
    if question.controls is None or not model.counted or model.standardizer is not None:
        return table
    genes = pd.Index(model.genes)
    names, weights = weights_of(network[network["source"].isin(table["name"][:N_TRIED])], genes, 1)
    asked = effect.reindex(genes).mask(genes.isin(list(question.steered))).to_numpy(dtype=float)
    x, conditions = question.controls
    labels = {*conditions, *model.vocabulary.known} - set(model.schema.context)  # not who was left untreated
    told = conditions.astype(object).assign(**dict.fromkeys(labels))
    scores = in_silico(model, asked, weights, x, model.encoded(told, depth=row_sums(x)))
    return table.assign(in_silico=table["name"].map(pd.Series(scores, names)))


def _perturbations(library: Library, question: _Question, *, direction: str, pairs: bool) -> pd.DataFrame:
    """Return the ranking of the conditions that were in training."""
    if direction != "mimic":
        if question.query is None:
            table = from_genes(library, up=question.down, down=question.up)
            return _as_ranking(library, table.rename(columns={"score": "genes"}), question, sign=-1.0)
        turned = Query(2 * library.control - _moved(library, question.query), question.query.n)
        question = replace(question, query=turned)
    if question.query is None:
        table = from_genes(library, up=question.up, down=question.down)
        return _as_ranking(library, table.rename(columns={"score": "genes"}), question, sign=1.0)
    table = empirical_bayes_lda(library, question.query, pairs=pairs).rename(columns={"score": "lda"})
    plain = cosine(library, question.query, pairs=pairs).set_index("name")["score"]
    table["cosine"] = table["name"].map(plain)
    return _as_ranking(library, table, question, sign=1.0 if direction == "mimic" else -1.0)


def _of_drugs(perturbations: pd.DataFrame, separator: str | None) -> pd.Series:
    """Return the posterior of every single perturbation by name, its doses together."""
    single = perturbations
    if separator is not None:
        single = single[~single["name"].str.contains(separator, regex=False)]
    return single["posterior"].groupby(single["name"].str.split(DOSE).str[0], sort=False).sum()


def _moved(library: Library, query: Query) -> np.ndarray:
    """Return the mean of a query as it would be in the library's batches, shape (n_genes,)."""
    return query.mean - library.shift(query)


def _as_ranking(library: Library, table: pd.DataFrame, question: _Question, *, sign: float) -> pd.DataFrame:
    effect = sign * question.effect.reindex(list(library.genes), fill_value=0.0).to_numpy()
    shrunk = dict(zip(library.names, library.shrunk, strict=True))
    genes = np.array(library.genes)
    leading = []
    for name in table["name"]:
        both = sum(shrunk[part] for part in ([name] if name in shrunk else library.parts(name))) * effect
        best = np.argsort(-both)[:N_LEADING]
        leading.append(list(genes[best[both[best] > 0]]))
    methods = table[[name for name in ("lda", "cosine", "genes") if name in table]]
    return table.assign(
        kind="perturbation",
        consensus_rank=consensus_rank(methods),
        rank=np.arange(1, len(table) + 1),
        p_value=np.nan,
        fdr=np.nan,
        leading_genes=leading,
        source="training cells",
    )
