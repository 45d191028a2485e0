"""Which drugs would cause, or undo, a change of expression: signatures of drugs ranked by how they connect with it.

The effect (designed, predicted or observed) is compared with every drug's signatures by several scores of
:mod:`~scidiff.integration.connectivity`; the first decides, the others stand beside it, so that disagreement shows.
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
from scidiff.integration.drug_targets import join_key
from scidiff.integration.ranking import consensus_rank
from scidiff.integration.signatures import Signatures

MIN_OVERLAP = 10  # with fewer genes in common a score says nothing
N_LEADING = 10
DIRECTIONS = {"mimic": 1.0, "reverse": -1.0}

IDENTIFIERS = ("identifier", "pert_id", "drugbank_id", "chembl_id", "inchi_key")  # columns that name a drug for good

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
    leave_out: Iterable[str] = (),
    min_overlap: int = MIN_OVERLAP,
    targets: pd.DataFrame | None = None,
    drug_names: pd.Series | None = None,
) -> pd.DataFrame:
    """Return the drugs of a library, the best first, one row each.

    Columns: ``kind`` ("drug"); ``name``; ``rank`` by the first method; one column per method, positive where the drug
    mimics the effect, whatever was asked for; ``consensus_rank`` over them (:mod:`~scidiff.integration.ranking`);
    ``direction`` as it was asked for; ``p_value`` of the first method, that a query of noise alone scores as much in
    that direction (NaN where that is not known: for weighted_connectivity, xsum, zhang and enrichment, and in a library
    of three signatures or one drug); ``fdr`` (Benjamini & Hochberg 1995); ``leading_genes``, which
    change most and alike in both (to reverse: most and oppositely); ``n_signatures``; ``dose`` of the signature most
    like the effect, where doses are known; ``known_targets``, where targets are given; ``source``.

    Parameters
    ----------
    effect
        Change of every gene, or of replicates (genes x replicates), or an :func:`up_down`. Genes are its index.
    signatures
        The library; rows of one ``name`` are one drug.
    direction
        "mimic": drugs that would cause the effect; "reverse": that would undo it.
    methods
        Of :data:`METHODS`. None: for signatures with sizes :data:`OF_VALUES`; for gene sets :data:`OF_SETS`, the cosine
        of the centred effect with the sets' +1 and -1, and the enrichment of a drug's sets in the effect.
    same_units
        Whether the effect was measured like the library, in its units, so that what all its signatures have in common
        is taken off the effect too.
    leave_out
        Genes not to be compared, such as those that were steered.
    min_overlap
        Genes that effect and signature must share. Gene sets with fewer are left out, with a warning; if nothing
        remains, that is an error.
    targets
        From :func:`~scidiff.integration.drug_targets.read_drug_targets`; joined by identifier, else by name.
    drug_names
        From :func:`~scidiff.integration.drug_targets.read_drug_names`: names of one drug, so that targets of
        Dactolisib are those of BEZ-235.

    Raises
    ------
    InputError
        A method or direction is not known, values are not finite, or too few genes are shared.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"direction={direction!r}{closest(direction, DIRECTIONS)}")
    for method in methods or ():
        if method not in METHODS:
            raise InputError(f"there is no connectivity score {method!r}{closest(method, METHODS)}")
    query, signatures = _aligned(effect, signatures, set(leave_out), min_overlap)
    sign, methods = DIRECTIONS[direction], tuple(methods or (OF_SETS if signatures.are_sets else OF_VALUES))
    library = Library.of(query, signatures, same_units=same_units)

    scores = {method: library.score(method) for method in methods}
    ranks = pd.DataFrame({method: pd.Series(-sign * score).rank(method="first") for method, score in scores.items()})
    table = pd.DataFrame({"kind": "drug", "name": library.names, "rank": ranks[methods[0]].astype(int), **scores})
    table["consensus_rank"] = consensus_rank(sign * pd.DataFrame(scores))
    table["direction"] = direction
    table["p_value"] = _upper_tail(sign * scores[methods[0]] / library.null_spread(methods[0]))
    table["fdr"] = _fdr(table["p_value"].to_numpy())
    table["leading_genes"] = _leading(sign * library.mean, library.drugs, signatures.genes)
    table["n_signatures"] = np.bincount(library.codes)
    if "dose" in signatures.table:
        best = pd.Series(sign * library.score_each()).groupby(library.codes).idxmax()
        table["dose"] = list(signatures.table["dose"].iloc[best])
    if targets is not None:
        table["known_targets"] = _targets_of(signatures.table, library.names, targets, drug_names)
    table["source"] = signatures.source
    return table.sort_values("rank", ignore_index=True)


@dataclass(frozen=True, eq=False)
class Library:
    """A query and the drugs it is compared with, over the same genes. Made by :meth:`of`.

    Parameters
    ----------
    query
        Replicates as they came, (n, n_genes).
    values
        Signatures as they came, (n_signatures, n_genes).
    codes, names
        The drug of every signature, and the names of the drugs.
    mean, drugs
        Mean query, (n_genes,), and mean signature of every drug, (n_drugs, n_genes), less what the library has in
        common; of gene sets, the query less its mean over genes.
    same_units
        See :func:`rank_drugs`.
    """

    query: np.ndarray
    values: np.ndarray
    codes: np.ndarray
    names: pd.Index
    mean: np.ndarray
    drugs: np.ndarray
    same_units: bool

    @classmethod
    def of(cls, query: np.ndarray, signatures: Signatures, *, same_units: bool) -> Library:
        """Return the library of a query, (n, n_genes), over the genes of the signatures."""
        values = signatures.values.astype(float)
        codes, names = pd.factorize(signatures.table["name"].astype(str))
        drugs, mean = group_means(values, codes), query.mean(axis=0)
        if signatures.are_sets:
            return cls(query, values, codes, names, mean - mean.mean(), drugs, same_units)
        centre = drugs.mean(axis=0)
        return cls(query, values, codes, names, mean - centre * same_units, drugs - centre, same_units)

    @cached_property
    def whitened(self) -> WhitenedSpearman:
        return WhitenedSpearman.fit(self.values, self.codes)

    def score(self, method: str) -> np.ndarray:
        """Return the score of every drug, (n_drugs,)."""
        if method == "whitened_spearman":
            return self.whitened(self.query, same_units=self.same_units)
        if method == "enrichment":
            return connectivity.set_connectivity(self.mean, self.drugs)
        return SCORES[method](self.mean, self.drugs)

    def score_each(self) -> np.ndarray:
        """Return the cosine of the mean query with every single signature, (n_signatures,)."""
        return connectivity.cosine(self.mean, self.values - (group_means(self.values, self.codes) - self.drugs)[0])

    def null_spread(self, method: str) -> float:
        """Return the standard deviation of a score where the query is noise; NaN where it is not known."""
        if method == "whitened_spearman":
            return connectivity.null_spread(self.values, self.codes)
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
    only_signs = bool(np.isin(table.to_numpy(), (-1.0, 1.0)).all())
    kept = ~signatures.genes.isin(leave_out) if only_signs else shared
    cut = Signatures(signatures.values[:, kept], signatures.genes[kept], signatures.table, signatures.source)
    if cut.are_sets:
        cut = _large_enough(cut, min_overlap)
    return table.reindex(cut.genes, fill_value=0.0).to_numpy().T, cut


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


def _targets_of(table: pd.DataFrame, names: pd.Index, targets: pd.DataFrame, drug_names: pd.Series | None) -> list[str]:
    """Return the target genes of every drug, joined by any identifier that both tables have, else by name."""
    known = {} if drug_names is None else drug_names.map(join_key).to_dict()

    def keys(*said: object) -> list[str]:
        """Return what a drug goes by, identifiers before names."""
        plain = [join_key(str(one)) for one in said]
        return [key for key in dict.fromkeys([known.get(one, "") for one in plain] + plain) if key]

    genes: dict[str, dict[str, None]] = {}
    for row in targets.itertuples():
        for key in keys(row.identifier, row.drug):
            genes.setdefault(key, {})[row.target] = None
    identifiers = [column for column in IDENTIFIERS if column in table]
    first = table.drop_duplicates("name")
    first = first.set_index(first["name"].astype(str))
    joined = []
    for name in names:
        own = keys(*(first.at[name, column] for column in identifiers), name)
        joined.append(",".join(next((genes[key] for key in own if key in genes), {})))
    return joined
