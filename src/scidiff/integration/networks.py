"""Gene regulatory networks from files: whatever the format, one table of edges ``source, target, weight``.

A weight is signed, positive where the source raises the target. What the formats say about it:

============================  =============================================================  =======================
file                          told by                                                        weight
============================  =============================================================  =======================
CollecTRI, any table          columns source (or tf), target (or gene), weight (optional)    weight; 1 without one
DoRothEA                      columns source (or tf), target, mor                            mor
TRRUST                        mode Activation / Repression in the third column               majority of the signs
SCENIC+ eRegulons             columns TF, Gene, eRegulon_name or Gene_signature_name         correlation TF to gene
SCENIC+ MuData (.h5mu)        ``uns`` with eRegulon metadata, direct and extended            the same
pySCENIC reg.csv              two header lines, Enrichment and TargetGenes                   importance, signed
pySCENIC .gmt, .yaml, .loom   by their suffix; regulons named ``TF(+)`` or ``TF(-)``         importance or 1, signed
============================  =============================================================  =======================

Formats: Müller-Dott et al. 2023 (CollecTRI), Garcia-Alonso et al. 2019 (DoRothEA), Han et al. 2018 (TRRUST), Bravo
González-Blas et al. 2023 (SCENIC+), Van de Sande et al. 2020 (pySCENIC). Nothing in a file is ever run: no pickle, no
``eval``, YAML without objects.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from scidiff.errors import InputError, closest
from scidiff.files import open_hdf5
from scidiff.integration.reading import (
    check_file,
    found,
    head,
    naming,
    open_text,
    pick,
    read_columns,
    separator,
    suffix_of,
)
from scidiff.integration.signatures import read_gene_sets

Edges = list[tuple[str, str, float]]


def read_network(path: str | Path, *, kind: str | None = None) -> pd.DataFrame:
    """Return the edges of a network file, columns ``source``, ``target``, ``weight``, no edge twice.

    Parameters
    ----------
    path
        The file, plain or gzipped.
    kind
        One of :data:`READERS`; None: told by the file itself (see the head of this module).

    Edges that a file repeats are one edge with the mean weight; edges of unknown sign (TRRUST) or no weight are left
    out.

    Raises
    ------
    InputError
        There is no such file, it is of no kind that is known, is damaged, or has no edge.
    """
    path = check_file(path)
    kind = kind or _kind(path)
    if kind not in READERS:
        raise InputError(f"there is no kind of network {kind!r}{closest(kind, READERS)}")
    with naming(path, f"a {kind} network"):
        edges = pd.DataFrame(READERS[kind](path), columns=["source", "target", "weight"])
        edges = edges.astype({"source": object, "target": object, "weight": float})
    for end in ("source", "target"):
        if (held := pd.api.types.infer_dtype(edges[end])) not in ("string", "empty"):
            raise InputError(f"{path} cannot be read as a {kind} network: the name of a {end} must be text, not {held}")
    if not np.isfinite(edges["weight"]).all():
        where = edges[~np.isfinite(edges["weight"])].iloc[0]
        raise InputError(f"{path}: the weight of {where['source']} -> {where['target']} is no finite number")
    edges = edges.groupby(["source", "target"], sort=False, as_index=False)["weight"].mean()
    edges = edges[(edges["weight"] != 0) & (edges["source"] != "") & (edges["target"] != "")]
    if edges.empty:
        raise InputError(f"{path} holds no edge of a signed network")
    return edges.reset_index(drop=True)


def _kind(path: Path) -> str:
    """Return what kind of network a file is, by its suffix, else by its first lines."""
    by_suffix = {".gmt": "gmt", ".yaml": "yaml", ".yml": "yaml", ".loom": "loom", ".h5mu": "h5mu", ".h5ad": "h5mu"}
    if suffix_of(path) in by_suffix:
        return by_suffix[suffix_of(path)]
    lines = head(path)
    columns = lines[0].split(separator(lines[0]))
    if "Enrichment" in columns:
        return "pyscenic"
    if len(columns) > 2 and columns[2].strip() in {*MODES, "mode"}:
        return "trrust"
    if pick(columns, "eRegulon_name", "Gene_signature_name"):
        return "scenicplus"
    if pick(columns, *SOURCES) and pick(columns, *TARGETS):
        return "table"
    raise InputError(
        f"{path} is no network that is known: expected columns source, target, weight, or the output of SCENIC+, "
        f"pySCENIC or TRRUST; {found(columns)}"
    )


# --- tables -----------------------------------------------------------------------------------------------------------

SOURCES = ("source", "tf", "regulator", "TF_name")
TARGETS = ("target", "gene", "target_gene", "TargetGene")
MODES = {"Activation": 1.0, "Repression": -1.0, "Unknown": 0.0}


def _table(path: Path) -> pd.DataFrame:
    table = read_columns(path)
    names = [pick(list(table), *SOURCES), pick(list(table), *TARGETS)]
    if None in names:
        raise InputError(f"{path}: expected columns source and target; {found(list(table))}")
    weight = pick(list(table), "weight", "mor", "importance")
    edges = table[names].set_axis(["source", "target"], axis=1)
    return edges.assign(weight=1.0 if weight is None else pd.to_numeric(table[weight], errors="coerce"))


def _trrust(path: Path) -> pd.DataFrame:
    has_header = head(path)[0].split("\t")[2].strip() == "mode"
    table = read_columns(path, sep="\t", header=0 if has_header else None)
    table = table.iloc[:, :3].set_axis(["source", "target", "mode"], axis=1)
    unknown = set(table["mode"]) - set(MODES)
    if unknown:
        raise InputError(f"{path}: expected modes {', '.join(MODES)}; found {sorted(unknown)[0]!r}")
    # one row per publication: where they disagree the majority decides, where that is even nobody knows
    votes = table["mode"].map(MODES).groupby([table["source"], table["target"]], sort=False).sum()
    return np.sign(votes).rename("weight").reset_index()


def _scenicplus(path: Path) -> pd.DataFrame:
    return _eregulons(read_columns(path), path)


def _eregulons(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the edges of an eRegulon table: one row per TF, region and gene, of which an edge takes its first two."""
    columns = list(table)
    tf, gene = pick(columns, "TF"), pick(columns, "Gene")
    name = pick(columns, "eRegulon_name", "Gene_signature_name")
    if tf is None or gene is None or name is None:
        raise InputError(f"{path}: expected columns TF, Gene and eRegulon_name; {found(columns)}")
    sign = table[name].astype(object).map(_eregulon_sign)  # categories would stay categories
    rho = pick(columns, "rho_TF2G", "TF2G_rho")
    # the name is what SCENIC+ decided about the sign, the correlation how strongly
    size = 1.0 if rho is None else pd.to_numeric(table[rho], errors="coerce").abs()
    return pd.DataFrame({"source": table[tf], "target": table[gene], "weight": sign * size})


def _eregulon_sign(name: str) -> float:
    """Return the sign from TF to gene: ``TF_direct_+/+`` since 1.0, ``TF_+_+_(12g)`` before; the first of the two."""
    match = re.search(r"_([+-])[/_][+-](?:_\(\d+[gr]\))?$", str(name))
    if match is None:
        raise InputError(f"eRegulon {name!r}: expected a name such as 'TF_direct_+/+' or 'TF_+_+_(12g)'")
    return 1.0 if match[1] == "+" else -1.0


def _h5mu(path: Path) -> pd.DataFrame:
    from anndata.io import read_elem

    with open_hdf5(path) as file:
        uns = file.get("uns", {})
        names = [name for name in uns if name.endswith("e_regulon_metadata") or name == "eRegulon_metadata"]
        if not names:
            raise InputError(f"{path}: expected uns['direct_e_regulon_metadata']; found uns {sorted(uns)[:6]}")
        tables = [_eregulons(read_elem(uns[name]), path) for name in sorted(names)]
    return pd.concat(tables).drop_duplicates(["source", "target"])  # what is direct comes first, before extended


# --- pySCENIC ---------------------------------------------------------------------------------------------------------


def _pyscenic(path: Path) -> Edges:
    """Return the edges of a motif enrichment table; an edge that several motifs support has its largest importance."""
    best: dict[tuple[str, str], float] = {}
    with open_text(path) as text:
        rows = _long_rows(text, separator(head(path)[0]))
        next(rows)
        names = next(rows)
        if not {"Context", "TargetGenes"} <= set(names):
            raise InputError(f"{path}: expected Context and TargetGenes in the second line; found {names[:6]}")
        context, targets = names.index("Context"), names.index("TargetGenes")
        for row in rows:
            if row[:2] == ["TF", "MotifID"]:  # a third line names the index
                continue
            sign = -1.0 if "repressing" in row[context] else 1.0
            for target, importance in _pairs(row[targets]):
                edge = (row[0], str(target))
                best[edge] = max(best.get(edge, 0.0), sign * float(importance), key=abs)
    return [(source, target, weight) for (source, target), weight in best.items()]


def _long_rows(text: Iterable[str], sep: str):
    before = csv.field_size_limit(2**31 - 1)  # a cell holds a whole regulon
    try:
        yield from csv.reader(text, delimiter=sep)
    finally:
        csv.field_size_limit(before)


def _pairs(cell: str) -> list[tuple[str, float]]:
    """Return the (gene, importance) pairs that are written in a cell as a Python list; NumPy 2 names its numbers."""
    return ast.literal_eval(re.sub(r"np\.float\d+\(([^()]*)\)", r"\1", cell))


def _regulon(name: str) -> tuple[str, float]:
    """Return the TF and the sign in the name of a regulon: ``TF(+)``, ``TF_(-)``, ``TF(+) (12g)``, SCENIC+ names."""
    if match := re.match(r"(.+?)_(?:direct_|extended_)?([+-])[/_][+-](?:_\(\d+g\))?$", name):
        return match[1], 1.0 if match[2] == "+" else -1.0
    match = re.match(r"(.+?)[_ ]?\(([+-])\)", name)
    return (match[1], 1.0 if match[2] == "+" else -1.0) if match else (name, 1.0)


def _gmt(path: Path) -> Edges:
    edges = []
    for name, genes in read_gene_sets(path).items():
        source, sign = _regulon(name)
        edges += [(source, gene, sign) for gene in genes]
    return edges


def _yaml(path: Path) -> Edges:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values only; what pySCENIC tags as its own objects is read as the mapping it is."""

    for tag in ("!Regulon", "!GeneSignature"):
        Loader.add_constructor(tag, lambda loader, node: loader.construct_mapping(node, deep=True))
    with open_text(path) as text:
        regulons = yaml.load(text, Loader=Loader)  # a SafeLoader
    edges = []
    for regulon in regulons if isinstance(regulons, list) else []:
        source, sign = _regulon(regulon["name"])
        genes = regulon.get("gene2weight") or dict(
            zip(regulon["genes"], regulon.get("weights") or [1.0] * len(regulon["genes"]), strict=True)
        )
        edges += [(regulon.get("transcription_factor") or source, gene, sign * w) for gene, w in genes.items()]
    return edges


def _loom(path: Path) -> Edges:
    with open_hdf5(path) as file:
        rows = file.get("row_attrs", {})
        if "Regulons" not in rows or "Gene" not in rows:
            raise InputError(f"{path}: expected row_attrs Gene and Regulons, as pySCENIC writes; found {sorted(rows)}")
        genes, regulons = rows["Gene"].asstr()[:], rows["Regulons"][:]
    edges = []
    for name in regulons.dtype.names:
        source, sign = _regulon(name)
        edges += [(source, gene, sign) for gene in genes[regulons[name] != 0]]
    return edges


#: kind of network -> the function that reads it
READERS: dict[str, Callable[[Path], pd.DataFrame | Edges]] = {
    "table": _table,
    "trrust": _trrust,
    "scenicplus": _scenicplus,
    "h5mu": _h5mu,
    "pyscenic": _pyscenic,
    "gmt": _gmt,
    "yaml": _yaml,
    "loom": _loom,
}
