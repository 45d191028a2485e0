"""What a prediction of perturbed cells must beat: shifts of the cells one starts from, in closed form.

One idea: a condition is summarised by its mean log1p(CP10k) over cells, an effect is ``d = mean(treated) - mean(control
of the same context)``, and every method here is a different weighted sum of the training effects::

    NoChange         0
    MeanShift        mean over contexts k of d_k
    NearestContext   d_k of the context k with the smallest |z_k - z|^2,  z the mean of control cells
    SimilarityShift  sum over k of w_k d_k,  w = softmax_k(-|z_k - z|^2 / (b m))
    ContextRidge     mean of d_k + linear in z - mean of z_k, by ridge regression
    PerturbedMean    mean of d over all treated training conditions
    MatchingMean     mean over parts p of the combination of d_p
    Additive         sum over parts p of d_p
    LinearRidge      G K q + mean of d,  G genes, q the target gene, K by ridge regression

An effect becomes cells by adding it to the log expression of every source cell and cutting at 0. There are no counts in
that, genes that rise lose their zeros, and where much is cut genes fall by less than the effect: log expression in
``X`` is all there is. Only :class:`NoChange` has counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scidiff.errors import InputError, closest
from scidiff.evaluation.evaluate import log_expression
from scidiff.evaluation.metrics import gene_means

if TYPE_CHECKING:
    from anndata import AnnData

    from scidiff.data.schema import Schema

#: kernel widths tried, in median squared distances between contexts; at infinity all contexts weigh the same
BANDWIDTHS = (np.inf, 2.0, 1.0, 0.5, 0.25, 0.125)
#: ridge penalties tried, in mean squared distances of contexts from their mean; at infinity the mean shift
PENALTIES = (np.inf, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)


@dataclass(frozen=True, eq=False)
class Responses:
    """Mean expression and effect of every condition in some cells, batches pooled.

    conditions : canonical table, one row per condition; means, effects : (n_conditions, n_genes), log1p(CP10k), the
    effect NaN where there is no control of the same context; n_cells : (n_conditions,); genes : names of the columns.
    """

    schema: Schema
    genes: list[str] = field(repr=False)
    conditions: pd.DataFrame = field(repr=False)
    means: np.ndarray = field(repr=False)
    effects: np.ndarray = field(repr=False)
    n_cells: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, adata: AnnData, schema: Schema) -> Responses:
        """Return the responses in ``adata``; InputError where the schema names no control."""
        if schema.control is None:
            raise InputError("an effect needs control cells: name perturbation= and control= in the schema")
        table = schema.table(adata).drop(columns="batch", errors="ignore")
        group = table.groupby(list(table.columns), dropna=False, sort=False).ngroup().to_numpy()
        conditions = table[~pd.Series(group).duplicated().to_numpy()].reset_index(drop=True)
        n_cells = np.bincount(group)
        weights = sp.csr_matrix((1 / n_cells[group], (group, np.arange(len(group)))))
        means = (weights @ log_expression(adata).astype(np.float64)).toarray()
        control = [
            np.average(means[rows], axis=0, weights=n_cells[rows]) if rows.any() else np.full(means.shape[1], np.nan)
            for rows in (controls_of(conditions, row, schema) for _, row in conditions.iterrows())
        ]
        return cls(schema, list(adata.var_names), conditions, means, means - np.array(control), n_cells)

    @property
    def treated(self) -> np.ndarray:
        """Mask of the conditions that have an effect: treated, with control cells of the same context."""
        named = self.conditions["perturbation"].notna().to_numpy() & ~self.schema.is_control(self.conditions)
        return named & np.isfinite(self.effects).all(axis=1)

    def rows(self, perturbation: str, asked: pd.Series, prefer: Iterable[str]) -> np.ndarray:
        """Return a mask of the treated conditions of ``perturbation``.

        Of the attributes in ``prefer``, those of ``asked`` count where any such condition has them.
        """
        rows = self.treated & (self.conditions["perturbation"] == perturbation).to_numpy()
        return _narrowed(rows, self.conditions, asked, prefer)

    def by_context(self, perturbation: str, asked: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """Return mean control expression and effect of ``perturbation`` in every context, (n_contexts, n_genes) both.

        At the dose and time of ``asked`` where they were measured, else the mean over those that were. InputError for
        a perturbation that was not seen.
        """
        rows = self.rows(perturbation, asked, ("dose", "time"))
        if not rows.any():
            seen = self.conditions["perturbation"][self.treated].unique()
            raise InputError(f"no training cells of perturbation {perturbation!r}{closest(perturbation, seen)}")
        context = _labels(self.conditions[list(self.schema.context)])
        contexts = [rows & (context == name) for name in dict.fromkeys(context[rows])]
        effects = np.array([self.effects[same].mean(axis=0) for same in contexts])
        means = np.array([self.means[same].mean(axis=0) for same in contexts])
        return means - effects, effects

    def perturbed_mean(self, asked: pd.Series) -> np.ndarray:
        """Return the mean effect, (n_genes,), of the treated conditions in the context of ``asked``, or of all."""
        rows = _narrowed(self.treated, self.conditions, asked, self.schema.context)
        if not rows.any():
            raise InputError("no treated training cells with control cells of the same context; nothing to average")
        return self.effects[rows].mean(axis=0)

    def parts(self, asked: pd.Series) -> np.ndarray:
        """Return the effect of each part of the combination ``asked``, (n_parts, n_genes).

        In the context of ``asked`` where it was measured there, else the mean over contexts; a part that was never
        measured alone gets the perturbed mean.
        """
        seen = [
            self.rows(part, asked, (*self.schema.context, "dose", "time"))
            for part in self.schema.parts(asked["perturbation"])
        ]
        return np.array([self.effects[r].mean(axis=0) if r.any() else self.perturbed_mean(asked) for r in seen])


def controls_of(table: pd.DataFrame, asked: pd.Series, schema: Schema) -> np.ndarray:
    """Return a mask of the control rows of a canonical table with the contexts of ``asked``, and its time if any."""
    rows = schema.is_control(table)
    for name in schema.context:
        rows = rows & (table[name] == asked[name]).to_numpy(dtype=bool)
    return _narrowed(rows, table, asked, ("time",))


# --- methods --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shift(ABC):
    """A closed-form prediction: fitted once, then asked for one condition at a time."""

    training: Responses

    @classmethod
    def fit(cls, train: AnnData, schema: Schema) -> Shift:
        """Return the method fitted to the training cells, on counts or log1p(CP10k)."""
        return cls(Responses.of(train, schema))

    @abstractmethod
    def effect(self, asked: pd.Series, control: np.ndarray) -> np.ndarray:
        """Return the effect, (n_genes,), of the canonical condition ``asked`` on cells of mean ``control``."""

    def predict(self, source: AnnData, condition: Mapping[str, Any]) -> AnnData:
        """Return the cells of ``source`` as they would be under ``condition``: log1p(CP10k) in ``X``, dense.

        ``condition`` names the perturbation, and dose and time where there are any; contexts are those of the source
        cells, and every context gets its own effect. InputError for what the method cannot answer.
        """
        import anndata as ad

        schema, genes = self.training.schema, self.training.genes
        asked = schema.conditions(condition).iloc[0]
        if pd.isna(asked["perturbation"]):
            raise InputError(f"condition {dict(condition)} names no perturbation; give perturbation=")
        x = log_expression(source, genes)
        contexts = schema.table(source)[list(schema.context)]
        predicted = np.empty(x.shape, dtype=np.float32)
        label = _labels(contexts)
        for name in dict.fromkeys(label):
            cells = np.flatnonzero(label == name)
            own = contexts.iloc[cells[0]]
            if clash := [c for c in schema.context if pd.notna(asked[c]) and asked[c] != own[c]]:
                raise InputError(
                    f"{clash[0]}={asked[clash[0]]!r} is asked for, but source cells are {own[clash[0]]!r}; "
                    "give source cells of that context"
                )
            here, control = asked.copy(), gene_means(x[cells])
            here[list(schema.context)] = own
            unchanged = asked["perturbation"] == schema.control
            effect = np.zeros(len(genes)) if unchanged else self.effect(here, control)
            predicted[cells] = np.maximum(x[cells].toarray() + effect, 0)

        obs = source.obs.copy()
        for role in ("perturbation", "dose", "time"):
            if role in schema.columns and (role != "time" or pd.notna(asked[role])):
                obs[schema.columns[role]] = asked[role]
        out = ad.AnnData(predicted, obs=obs, var=pd.DataFrame(index=genes))
        told = {str(name): str(value) for name, value in condition.items()}
        out.uns["scidiff"] = {"baseline": type(self).__name__, "condition": told, "scales": {"X": "log1p(CP10k)"}}
        return out


class NoChange(Shift):
    """The source cells as they are, with their counts where they have any."""

    def effect(self, asked: pd.Series, control: np.ndarray) -> np.ndarray:
        return np.zeros_like(control)

    def predict(self, source: AnnData, condition: Mapping[str, Any]) -> AnnData:
        from scidiff.data.cells import read_cells

        out = super().predict(source, condition)
        cells = read_cells(source, genes=self.training.genes)
        if cells.scale == "counts":
            out.layers["counts"] = cells.x
            out.uns["scidiff"]["scales"]["counts"] = "counts"
        return out


class MeanShift(Shift):
    """The mean effect over the training contexts, each counted once, whatever its number of cells."""

    def effect(self, asked: pd.Series, control: np.ndarray) -> np.ndarray:
        return self.training.by_context(asked["perturbation"], asked)[1].mean(axis=0)


@dataclass(frozen=True, eq=False)
class SimilarityShift(Shift):
    """The mean effect over the training contexts, weighted by how alike their control cells are: the hardest to beat.

    ``width`` is b m of the kernel: m the median squared distance between the contexts' control means over all genes,
    b of :data:`BANDWIDTHS` the one that predicts training effects best when each context is left out in turn (mean over
    those of the squared error relative to equal weights).
    """

    width: float = np.inf

    @classmethod
    def fit(cls, train: AnnData, schema: Schema) -> SimilarityShift:
        training = Responses.of(train, schema)
        seen = _treatments(training)
        pairs = np.concatenate([((z[:, None] - z) ** 2).sum(axis=2)[np.triu_indices(len(z), 1)] for z, _ in seen])
        median = np.median(pairs) if len(pairs) else 0.0
        return cls(training, _left_out_best(seen, [b * median for b in BANDWIDTHS], _similar) if median > 0 else np.inf)

    def effect(self, asked: pd.Series, control: np.ndarray) -> np.ndarray:
        return _similar(*self.training.by_context(asked["perturbation"], asked), control, self.width)


class NearestContext(Shift):
    """The effect in the training context with the most similar control cells."""

    def effect(self, asked: pd.Series, control: np.ndarray) -> np.ndarray:
        means, effects = self.training.by_context(asked["perturbation"], asked)
        return effects[((means - control) ** 2).sum(axis=1).argmin()]


@dataclass(frozen=True, eq=False)
class ContextRidge(Shift):
    """Effects linear in the mean expression of control cells: the pseudobulk regression that wins contests.

    ``penalty``, in mean squared distances of contexts from their mean, is the one of :data:`PENALTIES` that predicts
    training effects best when each context is left out in turn, as in :class:`SimilarityShift`.
    """

    penalty: float = np.inf

    @classmethod
    def fit(cls, train: AnnData, schema: Schema) -> ContextRidge:
        training = Responses.of(train, schema)
        return cls(training, _left_out_best(_treatments(training), PENALTIES, _ridge))

    def effect(self, asked: pd.Series, control: np.ndarray) -> np.ndarray:
        return _ridge(*self.training.by_context(asked["perturbation"], asked), control, self.penalty)


class PerturbedMean(Shift):
    """The mean effect of all treated conditions of the source's own context, or of all where it has none."""

    def effect(self, asked: pd.Series, control: np.ndarray) -> np.ndarray:
        return self.training.perturbed_mean(asked)


class MatchingMean(Shift):
    """The mean of the effects of a combination's parts, the perturbed mean for unseen ones: Systema (2025)."""

    def effect(self, asked: pd.Series, control: np.ndarray) -> np.ndarray:
        return self.training.parts(asked).mean(axis=0)


class Additive(Shift):
    """The sum of the effects of a combination's parts, the perturbed mean for unseen ones."""

    def effect(self, asked: pd.Series, control: np.ndarray) -> np.ndarray:
        return self.training.parts(asked).sum(axis=0)


class LinearRidge(Shift):
    """Effects linear in an embedding of genes and of target genes, for perturbations that were never seen.

    d = G K q + mean of Y with K = (G'G + .1)^-1 G'Y Q (Q'Q + .1)^-1. G (n_genes, 10): principal components of the genes
    over the training conditions; q, and a row of Q (n_perturbations, 10) for each training perturbation: the row of G
    of its target gene, summed over the parts of a combination; Y (n_genes, n_perturbations): effects less their mean.
    Perturbations must be named as genes. Ahlmann-Eltze, Huber & Anders (2025).
    """

    N_COMPONENTS = 10
    RIDGE = 0.1

    def effect(self, asked: pd.Series, control: np.ndarray) -> np.ndarray:
        training = self.training
        here = _narrowed(training.treated, training.conditions, asked, training.schema.context)
        targets = [self._targets(name) for name in training.conditions["perturbation"]]
        used, wanted = here & np.array([at is not None for at in targets]), self._targets(asked["perturbation"])
        if wanted is None or not used.any():
            raise InputError(
                f"{asked['perturbation']!r}, or every training perturbation, names no gene of the data: "
                "the linear model needs target genes"
            )
        profiles = training.means[used].T
        u, s, _ = np.linalg.svd(profiles - profiles.mean(axis=0), full_matrices=False)
        g = (u * s)[:, : self.N_COMPONENTS]
        q = np.array([g[targets[i]].sum(axis=0) for i in np.flatnonzero(used)])
        y = training.effects[used].T
        mean = y.mean(axis=1)
        ridge = self.RIDGE * np.eye(g.shape[1])
        of_genes = np.linalg.solve(g.T @ g + ridge, g.T @ (y - mean[:, None]) @ q)
        return g @ of_genes @ np.linalg.solve(q.T @ q + ridge, g[wanted].sum(axis=0)) + mean

    def _targets(self, perturbation: str) -> np.ndarray | None:
        """Positions of the target genes; None where one of them is not in the data."""
        at = pd.Index(self.training.genes).get_indexer(self.training.schema.parts(perturbation))
        return at if len(at) and (at >= 0).all() else None


#: the methods by the names that tables print
SHIFTS: dict[str, type[Shift]] = {
    "no change": NoChange,
    "mean shift": MeanShift,
    "nearest context": NearestContext,
    "similarity-weighted shift": SimilarityShift,
    "context ridge": ContextRidge,
    "perturbed mean": PerturbedMean,
    "matching mean": MatchingMean,
    "additive": Additive,
    "linear ridge": LinearRidge,
}


# --- parts ----------------------------------------------------------------------------------------------------------


def _treatments(training: Responses) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for every treatment, the mean control expression and effect in each context it was measured in."""
    treated = training.conditions[training.treated].drop(columns=list(training.schema.context)).drop_duplicates()
    return [training.by_context(row["perturbation"], row) for _, row in treated.iterrows()]


def _left_out_best(
    seen: list[tuple[np.ndarray, np.ndarray]],
    settings: Iterable[float],
    predicted: Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray],
) -> float:
    """Return the setting that predicts the effect in each context best from the others, relative to the first one.

    The first of the settings where no treatment was seen in three contexts: one other leaves nothing to choose by.
    """
    settings = list(settings)
    errors = [
        [
            np.sum((predicted(np.delete(z, k, axis=0), np.delete(d, k, axis=0), z[k], one) - d[k]) ** 2)
            for one in settings
        ]
        for z, d in seen
        for k in (range(len(d)) if len(d) > 2 else ())
    ]
    if not errors:
        return float(settings[0])
    relative = np.array([error / np.maximum(error[0], 1e-12) for error in np.array(errors)])
    return float(settings[relative.mean(axis=0).argmin()])


def _similar(means: np.ndarray, effects: np.ndarray, control: np.ndarray, width: float) -> np.ndarray:
    """Return the mean of ``effects`` (n_contexts, n_genes) with weights softmax(-|means - control|^2 / width)."""
    square_distance = ((means - control) ** 2).sum(axis=1)
    weights = np.exp(-(square_distance - square_distance.min()) / width)
    return weights @ effects / weights.sum()


def _ridge(means: np.ndarray, effects: np.ndarray, control: np.ndarray, penalty: float) -> np.ndarray:
    """Return d + k' (K + penalty m)^-1 (D - d): d the mean effect, K products of centred means, m their mean square."""
    centre, mean = means.mean(axis=0), effects.mean(axis=0)
    z = means - centre
    gram = z @ z.T
    if not np.isfinite(penalty) or not gram.trace() > 0:
        return mean
    ridge = penalty * gram.trace() / len(gram) * np.eye(len(gram))
    return mean + ((control - centre) @ z.T) @ np.linalg.solve(gram + ridge, effects - mean)


def _narrowed(rows: np.ndarray, table: pd.DataFrame, asked: pd.Series, names: Iterable[str]) -> np.ndarray:
    """Return the mask ``rows`` cut to those that agree with ``asked`` in each attribute in which any does."""
    for name in names:
        if name in table and (agree := rows & (table[name] == asked[name]).to_numpy(dtype=bool)).any():
            rows = agree
    return rows


def _labels(table: pd.DataFrame) -> np.ndarray:
    """Return one name per row of a canonical table, (n_rows,); one and the same where it has no columns."""
    if not table.shape[1]:
        return np.full(len(table), "any")
    return np.array([", ".join(map(str, row)) for row in table.itertuples(index=False)], dtype=str)
