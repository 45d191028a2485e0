"""Which drugs would cause, or undo, a change of expression.

The effect (designed, predicted or observed) is compared with every drug's signatures by several scores of
:mod:`~scidiff.integration.connectivity`; the first decides, the others stand beside it, so that disagreement shows.
Beside them stands what else is known: how the drug's targets change (:mod:`~scidiff.integration.target_sets`), and the
chance that a model gives the drug where it was in training. Signatures of several doses are also compared dose by dose.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from scidiff.errors import DataWarning, InputError, closest
from scidiff.integration import connectivity
from scidiff.integration.connectivity import WhitenedSpearman, centred_ranks, group_means
from scidiff.integration.doses import Doses
from scidiff.integration.drug_identity import matching, one_drug
from scidiff.integration.ranking import DIRECTIONS, consensus_rank, one_sided
from scidiff.integration.regulators import Matrix, rank_regulators
from scidiff.integration.signatures import Signatures
from scidiff.integration.target_sets import rank_target_sets, targets_of

MIN_OVERLAP = 10  # with fewer genes in common a score says nothing
N_LEADING = 10

#: scores of a query with the mean signature of every drug, beside the whitened one
SCORES = {
    "spearman": connectivity.spearman,
    "cosine": connectivity.cosine,
    "weighted_connectivity": connectivity.weighted_connectivity,
    "xsum": connectivity.xsum,
    "zhang": connectivity.zhang,
}
OF_VALUES = ("whitened_spearman", "spearman", "weighted_connectivity", "zhang")
OF_SETS = ("cosine", "enrichment")
METHODS = ("whitened_spearman", *SCORES, "enrichment")


def up_down(up: Iterable[str], down: Iterable[str] = ()) -> pd.Series:
    """Return an effect that only says which genes go up (1) and down (-1).

    Raises
    ------
    InputError
        A gene is in both, or there is none.
    """
    up, down = list(dict.fromkeys(up)), list(dict.fromkeys(down))
    both = set(up) & set(down)
    if both:
        raise InputError(f"gene {sorted(both)[0]!r} is to go up and down")
    if not up and not down:
        raise InputError("name at least one gene to go up or down")
    return pd.Series([1.0] * len(up) + [-1.0] * len(down), index=[*up, *down])


def rank_drugs(
    effect: pd.Series | pd.DataFrame,
    signatures: Signatures,
    *,
    direction: str = "mimic",
    methods: Sequence[str] | None = None,
    same_units: bool = False,
    each_dose: bool = False,
    leave_out: Iterable[str] = (),
    min_overlap: int = MIN_OVERLAP,
    targets: pd.DataFrame | None = None,
    drug_names: pd.Series | None = None,
    posterior: pd.Series | None = None,
    cells: tuple[Matrix, Matrix] | None = None,
) -> pd.DataFrame:
    """Return the drugs of a library, the best first, one row each.

    Columns: ``kind`` ("drug"); ``name``; ``rank`` by the first method; one column per method, positive where the drug
    mimics the effect, whatever was asked for; ``consensus_rank`` over them (:mod:`~scidiff.integration.ranking`);
    ``direction`` as it was asked for; ``p_value`` of the first method, that a query of noise alone scores as much in
    that direction (NaN where that is not known: for weighted_connectivity, xsum, zhang and enrichment, and in a library
    of three signatures or one drug); ``fdr`` (Benjamini & Hochberg 1995); ``leading_genes``, which
    change most and alike in both (to reverse: most and oppositely); ``n_signatures``; ``source``.

    Where doses are known: ``dose``, the one with the best cosine in that direction, and ``dose_trend``, the rank
    correlation of at least three doses with their cosines, positive where more of the drug mimics the effect more.
    Where targets are given: ``known_targets``, and ``target_set``, how they change
    (:func:`~scidiff.integration.target_sets.rank_target_sets`). Where a posterior is given: ``posterior``. These stand
    beside; they have no part in rank and consensus.

    Parameters
    ----------
    effect
        Change of every gene, or of replicates (genes x replicates), or an :func:`up_down`. Genes are its index.
    signatures
        The library; rows with a name or an identifier in common are one drug, its names stand together (``A / B``).
    direction
        "mimic": drugs that would cause the effect; "reverse": that would undo it.
    methods
        Of :data:`METHODS`. None: for signatures with sizes :data:`OF_VALUES`; for gene sets :data:`OF_SETS`, the cosine
        of the centred effect with the sets' +1 and -1, and the enrichment of a drug's sets in the effect.
    same_units
        Whether the effect was measured like the library, in its units, so that what all its signatures have in common
        is taken off the effect too.
    each_dose
        Rank every dose of a drug on its own, named ``A @ 10``.
    leave_out
        Genes not to be compared, such as those that were steered.
    min_overlap
        Genes that effect and signature must share. Gene sets with fewer are left out, with a warning; if nothing
        remains, that is an error.
    targets
        From :func:`~scidiff.integration.drug_targets.read_drug_targets`; joined by identifier, else by name.
    drug_names
        From :func:`~scidiff.integration.drug_targets.read_drug_names`: which names are of one drug, so that Dactolisib
        is BEZ-235.
    posterior
        Of drugs that a model was trained on, by name: the chance that it is the one behind the effect.
    cells
        Treated and control cells that the effect is the mean difference of, log1p(CP10k), each (n_cells, n_genes) with
        the genes of ``effect`` in its order. With them, p-values of cosines with gene sets rest on how the cells vary
        (:mod:`~scidiff.integration.regulators`); without them they take genes as independent, and are too small.

    Raises
    ------
    InputError
        A method or direction is not known, values are not finite, too few genes are shared, or there are no doses to
        rank.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"direction={direction!r}{closest(direction, DIRECTIONS)}")
    for method in methods or ():
        if method not in METHODS:
            raise InputError(f"there is no connectivity score {method!r}{closest(method, METHODS)}")
    if each_dose and "dose" not in signatures.table:
        raise InputError(f"{signatures.source or 'the library'} has no column dose; leave out each_dose=")
    query, signatures = _aligned(effect, signatures, set(leave_out), min_overlap)
    sign, methods = DIRECTIONS[direction], tuple(methods or (OF_SETS if signatures.are_sets else OF_VALUES))
    drug, names = one_drug(signatures.table, drug_names)
    library = Library.of(query, signatures, drug, same_units=same_units)
    doses = Doses.of(signatures.table["dose"], drug, names) if "dose" in signatures.table else None
    row, of_row = drug, np.arange(len(names))  # the row of every signature, and the drug of every row
    if each_dose and doses is not None:
        row, of_row, names = doses.code, doses.drug, doses.names

    scores = pd.DataFrame({method: library.score(method, row) for method in methods})
    first = sign * scores[methods[0]]
    table = pd.DataFrame({"kind": "drug", "name": names, "rank": (-first).rank(method="first").astype(int)})
    table = table.assign(**scores, consensus_rank=consensus_rank(sign * scores), direction=direction)
    if cells is not None and signatures.are_sets and methods[0] == "cosine":
        table["p_value"] = _p_by_cells(effect, library.means(row), signatures.genes, cells, sign)
    else:
        table["p_value"] = _upper_tail(first / library.null_spread(methods[0], row))
    table["fdr"] = _fdr(table["p_value"].to_numpy())
    table["leading_genes"] = _leading(sign * library.mean, library.means(row), signatures.genes)
    table["n_signatures"] = np.bincount(row)
    if each_dose and doses is not None:
        table["dose"] = doses.dose
    elif doses is not None:
        each = library.score("cosine", doses.code)  # whitening takes for noise what doses of a drug differ by
        table["dose"], table["dose_trend"] = doses.best(sign * each), doses.trend(each)
    if targets is not None:
        known = _by_targets(effect, signatures.table, drug, targets, drug_names, leave_out)
        table = table.join(known.iloc[of_row].reset_index(drop=True))
    if posterior is not None:
        table["posterior"] = _in_training(signatures.table, drug, posterior, drug_names)[of_row]
    table["source"] = signatures.source
    return table.sort_values("rank", ignore_index=True)


@dataclass(frozen=True, eq=False)
class Library:
    """A query and the signatures it is compared with, over the same genes. Made by :meth:`of`.

    What is compared are means of signatures: of a drug, or of a dose of it. Which belong together is said by codes,
    0 to n_groups - 1, for every signature.

    Parameters
    ----------
    query
        Replicates as they came, (n, n_genes).
    values
        Signatures as they came, (n_signatures, n_genes).
    drug
        Code of the drug of every signature, for how much signatures of one drug differ.
    mean
        Mean query, (n_genes,), less what the library has in common if that was asked for; of gene sets, less its mean
        over genes.
    centre
        What the drugs have in common, (n_genes,); of gene sets, nothing.
    same_units
        See :func:`rank_drugs`.
    """

    query: np.ndarray
    values: np.ndarray
    drug: np.ndarray
    mean: np.ndarray
    centre: np.ndarray
    same_units: bool

    @classmethod
    def of(cls, query: np.ndarray, signatures: Signatures, drug: np.ndarray, *, same_units: bool) -> Library:
        """Return the library of a query, (n, n_genes), over the genes of the signatures."""
        values, mean = signatures.values.astype(float), query.mean(axis=0)
        if signatures.are_sets:
            return cls(query, values, drug, mean - mean.mean(), np.zeros(len(mean)), same_units)
        centre = group_means(values, drug).mean(axis=0)
        return cls(query, values, drug, mean - centre * same_units, centre, same_units)

    @cached_property
    def whitened(self) -> WhitenedSpearman:
        return WhitenedSpearman.fit(self.values, self.drug)

    def means(self, codes: np.ndarray) -> np.ndarray:
        """Return the mean signature of every group, less what the drugs have in common, (n_groups, n_genes)."""
        return group_means(self.values, codes) - self.centre

    def score(self, method: str, codes: np.ndarray) -> np.ndarray:
        """Return the score of every group, (n_groups,)."""
        if method == "whitened_spearman":
            query = self.whitened.profile(self.query, same_units=self.same_units)
            return connectivity.cosine(query, self.whitened.profiles(self.values, codes))
        if method == "enrichment":
            return connectivity.set_connectivity(self.mean, self.means(codes))
        return SCORES[method](self.mean, self.means(codes))

    def null_spread(self, method: str, codes: np.ndarray) -> float:
        """Return the standard deviation of a score where the query is noise; NaN where it is not known."""
        if method == "whitened_spearman":
            return connectivity.null_spread(self.values, self.drug, codes)
        # of genes that are independent: of those that are not, it is more
        return 1 / np.sqrt(self.values.shape[1] - 1) if method in ("spearman", "cosine") else np.nan


def _aligned(
    effect: pd.Series | pd.DataFrame, signatures: Signatures, leave_out: set[str], min_overlap: int
) -> tuple[np.ndarray, Signatures]:
    """Return the query's replicates, (n, n_genes), and the signatures with enough genes of it, over the same genes."""
    table = effect.to_frame() if isinstance(effect, pd.Series) else effect
    table = table[~table.index.isin(leave_out)].astype(float)
    if not table.index.is_unique:
        raise InputError(f"gene {table.index[table.index.duplicated()][0]!r} occurs more than once in the effect")
    if not np.isfinite(table.to_numpy()).all():
        raise InputError("the effect has values that are no finite numbers")
    shared = signatures.genes.isin(table.index)
    if shared.sum() < min_overlap:
        raise InputError(
            f"the effect shares {shared.sum()} genes with {signatures.source or 'the signatures'}, at least "
            f"{min_overlap} are needed; are both named alike (symbols or Ensembl ids)?"
        )
    # an effect that only names genes says of all others that they do not change
    kept = ~signatures.genes.isin(leave_out) if _only_signs(table) else shared
    cut = Signatures(signatures.values[:, kept], signatures.genes[kept], signatures.table, signatures.source)
    if cut.are_sets:
        cut = _large_enough(cut, min_overlap)
    return table.reindex(cut.genes, fill_value=0.0).to_numpy().T, cut


def _mean(effect: pd.Series | pd.DataFrame) -> pd.Series:
    return effect if isinstance(effect, pd.Series) else effect.mean(axis=1)


def _only_signs(effect: pd.Series | pd.DataFrame) -> bool:
    """Return whether an effect only names genes that go up and down."""
    return bool(np.isin(effect.to_numpy(), (-1.0, 1.0)).all())


def _large_enough(sets: Signatures, min_overlap: int) -> Signatures:
    """Return the sets with enough genes that were measured; InputError if there are none, a warning if not all are."""
    overlap = (sets.values != 0).sum(axis=1)
    few = overlap < min_overlap
    if few.all():
        raise InputError(
            f"no set of {sets.source or 'the signatures'} shares {min_overlap} genes with the effect (the most: "
            f"{overlap.max()}); so few genes cannot tell drugs apart"
        )
    if few.any():
        first = int(np.argmax(few))
        warnings.warn(
            f"{few.sum()} of {len(few)} gene sets are left out, which share fewer than {min_overlap} genes with the "
            f"effect (first: {sets.table['name'].iloc[first]!r}, {overlap[first]})",
            DataWarning,
            stacklevel=4,
        )
    return sets.take(np.flatnonzero(~few))


def _upper_tail(z: np.ndarray) -> np.ndarray:
    """Return the chance of a standard normal value above ``z``."""
    from scipy.stats import norm

    return norm.sf(z)


def _p_by_cells(
    effect: pd.Series | pd.DataFrame, sets: np.ndarray, genes: pd.Index, cells: tuple[Matrix, Matrix], sign: float
) -> np.ndarray:
    """Return the p-values of the cosines with gene sets, (n_sets, n_genes): those of a regression on the sets.

    The slope of the regression and the cosine of the centred effect have the same numerator.
    """
    row, gene = np.nonzero(sets)
    edges = pd.DataFrame({"source": row, "target": genes[gene], "weight": sets[row, gene]})
    at = effect.index.get_indexer(genes)
    table = rank_regulators(
        _mean(effect).iloc[at],
        edges,
        cells=(cells[0][:, at], cells[1][:, at]),
        min_targets=1,
        min_detected=0.0,
        multivariate=False,
        per_cell=False,
    ).set_index("name")
    table = table.reindex(range(len(sets)))
    return one_sided(table["p_value"], sign * table["ulm"])


def _fdr(p_value: np.ndarray) -> np.ndarray:
    from scipy.stats import false_discovery_control

    return p_value if np.isnan(p_value).any() else false_discovery_control(p_value)


def _leading(query: np.ndarray, drugs: np.ndarray, genes: pd.Index) -> list[str]:
    """Return the genes whose ranks in query and drug contribute most, the first ten that contribute at all."""
    q = centred_ranks(query)
    leading = []
    for drug in drugs:
        share = np.where((query != 0) & (drug != 0), q * centred_ranks(drug), 0.0)
        best = np.argsort(-share, kind="stable")[:N_LEADING]
        leading.append(",".join(genes[best[share[best] > 0]]))
    return leading


def _by_targets(
    effect: pd.Series | pd.DataFrame,
    table: pd.DataFrame,
    drug: np.ndarray,
    targets: pd.DataFrame,
    drug_names: pd.Series | None,
    leave_out: Iterable[str],
) -> pd.DataFrame:
    """Return the targets of every drug of a table and the score by these, NaN where they are too few."""
    mean = _mean(effect)
    if _only_signs(mean):
        mean = mean.reindex(mean.index.union(targets["target"].unique()), fill_value=0.0)
    listed = targets_of(targets, drug_names)
    at = matching(table, drug, targets, one_drug(targets, drug_names)[0], drug_names)
    columns = pd.DataFrame({"known_targets": np.where(at >= 0, listed.to_numpy()[at], "")})
    try:
        scored = rank_target_sets(mean, targets, leave_out=leave_out, drug_names=drug_names)
    except InputError as error:  # what is known of targets is shown all the same
        warnings.warn(str(error), DataWarning, stacklevel=3)
        return columns
    score = scored.set_index("name")["target_set"].reindex(listed.index).to_numpy()
    return columns.assign(target_set=np.where(at >= 0, score[at], np.nan))


def _in_training(
    table: pd.DataFrame, drug: np.ndarray, posterior: pd.Series, drug_names: pd.Series | None
) -> np.ndarray:
    """Return the posterior of every drug of a table; NaN for those that were not in training."""
    trained = pd.DataFrame({"name": posterior.index.astype(str)})
    at = matching(table, drug, trained, np.arange(len(trained)), drug_names)
    return np.where(at >= 0, posterior.to_numpy(dtype=float)[at], np.nan)
