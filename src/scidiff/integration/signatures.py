"""Signatures of drugs and other perturbations: a matrix (n_signatures, n_genes) of changes, and a table of names.

A signature is what one treatment did to each gene, in any unit (z-scores, log fold changes, or +1 and -1 for the genes
of an up and a down set, 0 elsewhere). Several signatures of one drug, at several doses or in several wells, are several
rows; the column ``name`` of the table says which belong together.

=============================  ==========================================================================
file                           told by
=============================  ==========================================================================
GCTX (LINCS L1000)             ``.gctx``; HDF5, of which only the signatures asked for are read
GCT 1.2 and 1.3                first line ``#1.2`` or ``#1.3``
GMT, up and down sets          ``.gmt``; two sets whose names differ in ``up`` and ``down`` are one signature
long table                     columns drug (or name, signature), target (or gene), weight
wide table                     first column genes, one column per signature
=============================  ==========================================================================

Formats: Subramanian et al. 2017 (L1000, GCT(X)); Chen et al. 2013 (Enrichr GMT).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from scidiff.errors import InputError
from scidiff.files import open_hdf5
from scidiff.integration.reading import (
    check_file,
    found,
    head,
    naming,
    open_text,
    pick,
    plain,
    read_columns,
    separator,
    suffix_of,
)

BLOCK = 1000  # signatures of a GCTX read at once: 12,328 genes of them are 50 MB
MISSING = -666.0  # what LINCS writes for "not known"


@dataclass(frozen=True, eq=False)
class Signatures:
    """Signatures in the order of ``table``.

    Parameters
    ----------
    values
        What each did to each gene, float32, shape (n_signatures, n_genes); finite.
    genes
        Names of the genes, each once.
    table
        One row per signature, indexed by its id; column ``name`` (the drug), and whatever else is known, such as
        ``dose``.
    source
        Where they are from, for the tables made with them.
    """

    values: np.ndarray = field(repr=False)
    genes: pd.Index = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    source: str = ""

    def __post_init__(self) -> None:
        genes = pd.Index(self.genes).astype(str)
        values = np.asarray(self.values, dtype=np.float32)
        object.__setattr__(self, "genes", genes)
        object.__setattr__(self, "values", values)
        if values.shape != (len(self.table), len(genes)):
            raise InputError(
                f"signatures have shape {values.shape}; {len(self.table)} rows of the table x {len(genes)} genes needed"
            )
        if "name" not in self.table:
            raise InputError(f"the table of signatures has no column 'name'; {found(list(self.table))}")
        if not genes.is_unique:
            raise InputError(f"gene {genes[genes.duplicated()][0]!r} occurs more than once in the signatures")
        if not np.isfinite(values).all():
            raise InputError("signatures have values that are no finite numbers")

    def __len__(self) -> int:
        return len(self.table)

    @property
    def are_sets(self) -> bool:
        """Whether they only say which genes go up and down, not how much."""
        return bool(np.isin(self.values, (-1.0, 0.0, 1.0)).all())

    def take(self, rows: np.ndarray | Sequence[int] | slice) -> Signatures:
        """Return the signatures at these positions, or where a mask is true."""
        return Signatures(self.values[rows], self.genes, self.table.iloc[rows], self.source)


def read_gene_sets(path: str | Path) -> dict[str, list[str]]:
    """Return the gene sets of a GMT file (MSigDB, Enrichr), name -> genes in the file's order, none twice.

    The second column, a description, is left out; so are weights after a comma (``GENE,1.0``). Sets of one name are
    joined.

    Raises
    ------
    InputError
        There is no such file, it is no GMT, or has no set.
    """
    sets: dict[str, dict[str, None]] = {}
    for (name, _), genes in _gene_sets(check_file(path)).items():
        sets.setdefault(name, {}).update(dict.fromkeys(genes))
    return {name: list(genes) for name, genes in sets.items()}


def _gene_sets(path: Path) -> dict[tuple[str, str], list[str]]:
    """Return (name, direction in the second column) -> genes."""
    sets: dict[tuple[str, str], dict[str, None]] = {}
    with naming(path, "a GMT"), open_text(path) as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            parts = line.rstrip("\r\n").split("\t")
            if len(parts) < 3:
                raise InputError(
                    f"{path}, line {number}: expected name, description, genes, separated by tabs; found {line[:40]!r}"
                )
            direction = parts[1].strip().lower()
            key = (parts[0].strip(), direction if direction in UP | DOWN else "")
            genes = (part.split(",")[0].strip() for part in parts[2:])
            sets.setdefault(key, {}).update(dict.fromkeys(gene for gene in genes if gene))
    if not sets:
        raise InputError(f"{path} holds no gene set")
    return {key: list(genes) for key, genes in sets.items()}


def read_signatures(
    path: str | Path,
    *,
    table: str | Path | pd.DataFrame | None = None,
    gene_table: str | Path | pd.DataFrame | None = None,
) -> Signatures:
    """Return the signatures of a file (see the head of this module).

    Parameters
    ----------
    path
        The file; all but GCTX may be gzipped.
    table
        What is known of the signatures, a tab-separated file (LINCS ``siginfo_beta.txt``, GEO ``sig_info``) or its
        rows, filtered as you like: **only its signatures are read**, in its order. The first of the columns ``sig_id``
        (or ``id``, ``distil_id``), else the index, says which; ``name`` is taken from ``cmap_name`` or ``pert_iname``,
        ``dose`` from ``pert_dose`` or ``pert_idose``.
    gene_table
        What is known of the genes (``geneinfo_beta.txt``, ``gene_info``): ids become symbols, and **only its genes are
        read**. Genes of one symbol are averaged.

    Raises
    ------
    InputError
        There is no such file, it is of no kind that is known or is damaged, or has none of the signatures or genes of
        the tables.
    """
    path = check_file(path)
    suffix = suffix_of(path)
    if suffix == ".gctx":
        return _gctx(path, table, gene_table)
    if suffix == ".gmt":
        signatures = _gmt(path)
    elif head(path)[0].startswith("#1."):
        signatures = _gct(path)
    else:
        signatures = _table(path)
    return _chosen(signatures, table, gene_table)


# --- what is known of signatures and genes ----------------------------------------------------------------------------


def _known(table: str | Path | pd.DataFrame | None, ids: tuple[str, ...]) -> pd.DataFrame | None:
    """Return a table indexed by id, from a file or from rows."""
    if table is None:
        return None
    rows = table if isinstance(table, pd.DataFrame) else read_columns(check_file(table))
    column = pick(list(rows), *ids)
    if column is None and not isinstance(table, pd.DataFrame):
        raise InputError(f"{table}: expected a column {ids[0]}; {found(list(rows))}")
    rows = rows if column is None else rows.set_index(column)
    rows.index = rows.index.astype(str)
    return rows[~rows.index.duplicated()]


def _described(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the columns ``name`` and, where it is known, ``dose``."""
    name = pick(list(rows), "name", "cmap_name", "pert_iname", "drug", "pert_id")
    rows = rows.assign(name=rows.index if name is None else rows[name].astype(str))
    dose = pick(list(rows), "dose", "pert_dose", "pert_idose")
    return rows if dose is None else rows.assign(dose=rows[dose])


def _positions(wanted: pd.Index, have: pd.Index, what: str, path: object) -> np.ndarray:
    """Return where those of ``wanted`` that are there are, in their order; InputError if none is."""
    at = have.get_indexer(wanted)
    if not (at >= 0).any():
        raise InputError(f"{path}: none of the {len(wanted)} {what} asked for is in it, such as {str(wanted[0])!r}")
    return at


def _gene_groups(ids: pd.Index, gene_table: pd.DataFrame | None, path: object) -> tuple[np.ndarray, pd.Index]:
    """Return the positions of the genes to read, and the name of each."""
    if gene_table is None:
        return np.arange(len(ids)), ids
    at = ids.get_indexer(gene_table.index)
    symbol = pick(list(gene_table), "gene_symbol", "pr_gene_symbol", "symbol")
    names = pd.Index(gene_table.index if symbol is None else gene_table[symbol].astype(str))
    _positions(gene_table.index, ids, "genes", path)
    order = np.argsort(at[at >= 0], kind="stable")
    return at[at >= 0][order], names[at >= 0][order]


def _averaged(values: np.ndarray, names: pd.Index) -> tuple[np.ndarray, pd.Index]:
    """Return one column per gene name, the mean of those that have it."""
    if names.is_unique:
        return values, names
    codes, unique = pd.factorize(names)
    total = np.zeros((len(values), len(unique)))
    np.add.at(total.T, codes, values.T)
    return (total / np.bincount(codes)).astype(np.float32), pd.Index(unique)


GENE_IDS = ("gene_id", "pr_gene_id", "id")
SIGNATURE_IDS = ("sig_id", "id", "distil_id", "inst_id")


def _chosen(signatures: Signatures, table, gene_table) -> Signatures:
    """Return the signatures and genes that the tables name, all without them."""
    rows, genes = _known(table, SIGNATURE_IDS), _known(gene_table, GENE_IDS)
    columns, names = _gene_groups(signatures.genes, genes, signatures.source)
    values, names = _averaged(signatures.values[:, columns], names)
    if rows is None:
        return Signatures(values, names, signatures.table, signatures.source)
    at = _positions(rows.index, signatures.table.index, "signatures", signatures.source)
    return Signatures(values[at[at >= 0]], names, _described(rows[at >= 0]), signatures.source)


# --- GCTX and GCT -----------------------------------------------------------------------------------------------------


def _gctx(path: Path, table, gene_table) -> Signatures:
    """Return the signatures asked for: HDF5 rows are signatures, of which neighbours are read together."""
    with naming(path, "a GCTX"), open_hdf5(path) as file:
        try:
            matrix, meta = file["0/DATA/0/matrix"], file["0/META"]
            ids, genes = _ids(meta["COL/id"]), _ids(meta["ROW/id"])
        except KeyError:
            raise InputError(f"{path}: expected /0/DATA/0/matrix and /0/META; found {sorted(file)[:6]}") from None
        if matrix.shape != (len(ids), len(genes)):
            raise InputError(f"{path}: expected {len(ids)} signatures x {len(genes)} genes; found {matrix.shape}")
        rows = _known(table, SIGNATURE_IDS)
        if rows is None:
            known = {name: _texts(meta["COL"][name][:]) for name in meta["COL"] if name != "id"}
            rows = pd.DataFrame(known, index=ids)
        at = _positions(rows.index, ids, "signatures", path)
        rows, at = rows[at >= 0], at[at >= 0]
        columns, names = _gene_groups(genes, _known(gene_table, GENE_IDS), path)
        values = np.empty((len(at), len(columns)), dtype=np.float32)
        order = np.argsort(at, kind="stable")
        for run in _runs(at[order]):
            block = matrix[at[order[run.start]] : at[order[run.stop - 1]] + 1]
            values[order[run]] = block[at[order[run]] - at[order[run.start]]][:, columns]
    values[values == MISSING] = np.nan
    if np.isnan(values).any():
        where = rows.index[np.isnan(values).any(axis=1)]
        raise InputError(f"{path}: {len(where)} signatures have missing values, such as {where[0]!r}; leave them out")
    return Signatures(*_averaged(values, names), _described(rows), path.name)


def _runs(at: np.ndarray) -> list[slice]:
    """Return slices of a sorted array of positions: neighbours that are read in one go, at most a block of them."""
    if not len(at):
        return []
    cuts = [0]
    for i in range(1, len(at)):
        if at[i] - at[i - 1] > 1 or at[i] - at[cuts[-1]] >= BLOCK:
            cuts.append(i)
    return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], len(at)], strict=True)]


def _ids(dataset) -> pd.Index:
    """Return ids as text; old files pad them with blanks, or write numbers."""
    return pd.Index([text.strip() for text in _texts(dataset[:])])


def _texts(values: np.ndarray) -> list:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]


def _gct(path: Path) -> Signatures:
    """Return the signatures of a GCT: version, sizes, a table with the annotation of genes left, of columns on top."""
    version, sizes = [*head(path, 2), ""][:2]
    with naming(path, "a GCT"), open_text(path) as text:
        n_genes, n_signatures, n_left, n_top = ([int(size) for size in sizes.split("\t")] + [1, 0])[:4]
        n_left = 1 if version.startswith("#1.2") else n_left  # 1.2 has a description and no counts of annotation
        table = pd.read_csv(text, sep="\t", skiprows=2, dtype=str, keep_default_na=False)
        values = table.iloc[n_top:, 1 + n_left :]
        if values.shape != (n_genes, n_signatures):
            raise InputError(f"{path}: expected {n_genes} genes x {n_signatures} signatures; found {values.shape}")
        known = table.iloc[:n_top, 1 + n_left :].T.set_axis(list(table.iloc[:n_top, 0]), axis=1)
        genes = table.iloc[n_top:, : 1 + n_left]
        symbol = pick(list(genes), "gene_symbol", "pr_gene_symbol", "symbol")
        names = pd.Index(genes.iloc[:, 0] if symbol is None else genes[symbol])
        numbers = values.to_numpy(dtype=np.float32).T
    return Signatures(*_averaged(numbers, names), _described(known), path.name)


# --- sets and tables --------------------------------------------------------------------------------------------------

UP = {"up", "+"}
DOWN = {"down", "dn", "-"}


def _gmt(path: Path) -> Signatures:
    """Return +1 for the genes of up sets and -1 for those of down sets; a set that does not say is an up set."""
    members: dict[str, dict[str, float]] = {}
    for (name, direction), genes in _gene_sets(path).items():
        match = re.match(r"(.+)[ _\-.](up|down|dn)$", name, flags=re.IGNORECASE)
        if match and not direction:
            name, direction = match[1], match[2].lower()
        values = members.setdefault(name, {})
        for gene in genes:
            values[gene] = values.get(gene, 0.0) + (-1.0 if direction in DOWN else 1.0)
    genes = pd.Index(dict.fromkeys(gene for values in members.values() for gene in values))
    matrix = np.zeros((len(members), len(genes)), dtype=np.float32)
    for row, values in zip(matrix, members.values(), strict=True):
        row[genes.get_indexer(list(values))] = list(values.values())
    table = pd.DataFrame({"name": list(members)}, index=pd.Index(members))
    return Signatures(np.sign(matrix), genes, table, path.name)


def _table(path: Path) -> Signatures:
    columns = head(path)[0].split(separator(head(path)[0]))
    name = pick(columns, "signature", "sig_id", "drug", "name", "perturbation")
    gene, weight = pick(columns, "target", "gene", "gene_symbol"), pick(columns, "weight", "value", "score", "logFC")
    if name and gene and weight:
        return _long(path, name, gene, weight)
    wide = read_columns(path)
    with naming(path, "a table of genes x signatures"):
        if wide.shape[1] < 2 or plain(wide.columns[0]) not in ("", "gene", "genes", "symbol", "genesymbol", "unnamed0"):
            raise InputError(
                f"{path}: expected columns drug, target, weight, or genes in the first column (named 'gene') and one "
                f"column per signature; {found(list(wide))}"
            )
        values = wide.iloc[:, 1:].to_numpy(dtype=np.float32).T
        table = pd.DataFrame({"name": wide.columns[1:]}, index=pd.Index(wide.columns[1:]))
        return Signatures(*_averaged(values, pd.Index(wide.iloc[:, 0])), table, path.name)


def _long(path: Path, name: str, gene: str, weight: str) -> Signatures:
    rows = read_columns(path)
    with naming(path, "a table of drug, target, weight"):
        values = rows.assign(**{weight: rows[weight].astype(np.float32)}).pivot_table(
            index=name, columns=gene, values=weight, aggfunc="mean", fill_value=0.0, sort=False
        )
        # a table of signatures leaves out what it does not call changed
        table = pd.DataFrame({"name": values.index}, index=values.index)
        return Signatures(values.to_numpy(), pd.Index(values.columns), table, path.name)
