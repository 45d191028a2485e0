"""Which drug is which: rows of tables that go by several names, joined by identifier, not by luck of spelling.

A row names its drug by identifiers (of LINCS, DrugBank, ChEMBL) and by a name. Rows of one table that share either,
also by way of other rows, are one drug: the connected components of rows and what they are called. Between tables an
identifier goes before a name, and a vocabulary (DrugBank's) says which names are synonyms.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from scidiff.integration.reading import plain

IDENTIFIERS = ("identifier", "pert_id", "drugbank_id", "chembl_id", "inchi_key")  # columns that name a drug for good
UNKNOWN = {"", "nan", "none", "na", "<na>", "-", "-666", "-666.0"}  # what files write for no identifier


def join_key(name: str) -> str:
    """Return a drug's name or identifier in small letters without signs: ``PD-0325901`` and ``pd0325901`` are one."""
    return plain(name)


def one_drug(table: pd.DataFrame, drug_names: pd.Series | None = None) -> tuple[np.ndarray, pd.Index]:
    """Return the drug of every row, (n_rows,), and the names of the drugs, those of one drug together: ``A / B``.

    Drugs stand in the order in which they appear.

    Parameters
    ----------
    table
        A column ``name`` or ``drug``, and any of :data:`IDENTIFIERS`.
    drug_names
        From :func:`~scidiff.integration.drug_targets.read_drug_names`: synonyms are one drug too.
    """
    names = _names(table)
    known = {} if drug_names is None else drug_names.to_dict()
    called: list[list[Hashable]] = [[("name", name)] for name in names]
    for row, name in zip(called, names, strict=True):
        if (identifier := known.get(join_key(name))) is not None:
            row.append(("vocabulary", identifier))
    for column in IDENTIFIERS:
        if column in table:
            for row, value in zip(called, table[column].astype(str), strict=True):
                if value.strip().lower() not in UNKNOWN:
                    row.append((column, join_key(value)))
    codes = pd.factorize(_components(called))[0]
    spelt: dict[int, dict[str, str]] = {}
    for code, name in zip(codes, names, strict=True):
        spelt.setdefault(code, {}).setdefault(join_key(name), name)
    return codes, pd.Index([" / ".join(spelt[code].values()) for code in range(len(spelt))])


def _components(called: list[list[Hashable]]) -> np.ndarray:
    """Return a label for every row; rows that are called alike have the same."""
    columns = pd.factorize(pd.Index([name for row in called for name in row], tupleize_cols=False))[0]
    rows = np.repeat(np.arange(len(called)), [len(row) for row in called])
    links = sparse.coo_matrix((np.ones(len(rows)), (rows, len(called) + columns)), shape=[len(called) + len(rows)] * 2)
    return connected_components(links, directed=False)[1][: len(called)]


def matching(
    table: pd.DataFrame, codes: np.ndarray, other: pd.DataFrame, other_codes: np.ndarray, drug_names: pd.Series | None
) -> np.ndarray:
    """Return for every drug of a table the drug of another table that it is, -1 where there is none, (n_drugs,).

    ``codes`` and ``other_codes`` are those of :func:`one_drug` for the two tables.
    """
    known = {} if drug_names is None else drug_names.map(join_key).to_dict()
    found: dict[str, int] = {}
    for said, code in zip(_said(other), other_codes, strict=True):
        for key in _keys(said, known):
            found.setdefault(key, code)
    match = np.full(codes.max(initial=-1) + 1, -1)
    for said, code in zip(_said(table), codes, strict=True):
        if match[code] < 0:
            match[code] = next((found[key] for key in _keys(said, known) if key in found), -1)
    return match


def _said(table: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    """Return what every row says, identifiers before the name."""
    columns = [column for column in IDENTIFIERS if column in table]
    return zip(*(table[column].astype(str) for column in columns), _names(table), strict=True)


def _names(table: pd.DataFrame) -> np.ndarray:
    return table["drug" if "drug" in table else "name"].astype(str).to_numpy()


def _keys(said: Iterable[str], known: dict[str, str]) -> list[str]:
    """Return what a drug goes by, what the vocabulary knows first."""
    own = [join_key(one) for one in said if one.strip().lower() not in UNKNOWN]
    return [key for key in dict.fromkeys([known.get(one, "") for one in own] + own) if key]
