"""What drugs bind, from files: whatever the format, one table ``drug, identifier, target, action, source``.

=========================  =====================================================  ===================================
file                       told by                                                identifier
=========================  =====================================================  ===================================
DrugBank, full XML         ``.xml``; read as a stream, never whole                DrugBank id
DrugBank, target links     columns Gene Name and Drug IDs                         DrugBank id
ChEMBL, drug2cell          ``.json``, drugs (or groups of them) -> genes          ``CHEMBL411`` of ``CHEMBL411|NAME``
LINCS compoundinfo         columns cmap_name and target                           pert_id
any table                  columns drug (or name) and target (or gene)            column id, if there
=========================  =====================================================  ===================================

Formats: Knox et al. 2024 (DrugBank), Kanemaru et al. 2023 (drug2cell). Drugs of several files are joined by
:mod:`~scidiff.integration.drug_identity`, not by luck of spelling.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import pandas as pd

from scidiff.errors import InputError
from scidiff.integration.drug_identity import join_key
from scidiff.integration.reading import check_file, found, head, naming, open_text, pick, read_columns, suffix_of

COLUMNS = ["drug", "identifier", "target", "action", "source"]
NAMESPACE = "{http://www.drugbank.ca}"


def read_drug_targets(path: str | Path) -> pd.DataFrame:
    """Return the targets of drugs, one row per drug and target gene, columns of :data:`COLUMNS`.

    ``drug`` is the name (the identifier where the file has no names), ``target`` a gene symbol, ``action`` what the
    drug does to it ("inhibitor", several joined by "|"; empty where the file does not say), ``source`` the file.

    Raises
    ------
    InputError
        There is no such file, it is of no kind that is known, is damaged, defines XML entities, or has no target.
    """
    path = check_file(path)
    kind = suffix_of(path)
    with naming(path, "drug targets"):
        if kind == ".xml":
            rows = list(_drugbank_xml(path))
        elif kind == ".json":
            rows = list(_json(path))
        else:
            rows = list(_table(path))
    table = pd.DataFrame(rows, columns=COLUMNS[:-1]).drop_duplicates(["drug", "identifier", "target"])
    table = table[(table["target"] != "") & (table["drug"] != "")]
    if table.empty:
        raise InputError(f"{path} names no drug with a target gene")
    return table.assign(source=path.name).reset_index(drop=True)


def read_drug_names(path: str | Path) -> pd.Series:
    """Return DrugBank's open vocabulary: every name and synonym -> DrugBank id.

    Names stand as :func:`~scidiff.integration.drug_identity.join_key` writes them. A name that several drugs claim is
    theirs who have it as their common name, else nobody's.

    Raises
    ------
    InputError
        The file has no columns ``DrugBank ID`` and ``Common name``.
    """
    table = read_columns(check_file(path))
    identifier, common = pick(list(table), "DrugBank ID"), pick(list(table), "Common name")
    synonyms, inchi = pick(list(table), "Synonyms"), pick(list(table), "Standard InChI Key")
    if identifier is None or common is None:
        raise InputError(f"{path}: expected columns 'DrugBank ID' and 'Common name'; {found(list(table))}")
    names: dict[str, str] = {}
    claimed: dict[str, set[str]] = {}
    for _, row in table.iterrows():
        names[join_key(row[common])] = row[identifier]
        others = row[synonyms].split(" | ") if synonyms else []
        for name in [row[identifier], *others, *([row[inchi]] if inchi else [])]:
            claimed.setdefault(join_key(name), set()).add(row[identifier])
    alone = {name: next(iter(drugs)) for name, drugs in claimed.items() if name and len(drugs) == 1}
    return pd.Series(alone | names, name="identifier")


# --- the formats ------------------------------------------------------------------------------------------------------


def _drugbank_xml(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield (drug, identifier, target, action) drug by drug; a drug that has been read is forgotten."""
    _refuse_doctype(path)
    with open_text(path) as text:
        events = ElementTree.iterparse(text, events=("start", "end"))
        _, root = next(events)
        if root.tag != f"{NAMESPACE}drugbank":
            raise InputError(f"{path}: expected <drugbank xmlns='http://www.drugbank.ca'>; found <{root.tag}>")
        depth = 1
        for event, element in events:
            depth += 1 if event == "start" else -1
            if event == "end" and depth == 1 and element.tag == f"{NAMESPACE}drug":  # products hold drugs of their own
                yield from _drug(element)
                root.clear()


def _refuse_doctype(path: Path) -> None:
    """Refuse a document type, which can define entities, by which a small file grows without end; DrugBank has none."""

    def doctype(name: str, *_) -> None:
        raise InputError(f"{path} has a document type {name!r}, which can define entities; files of DrugBank have none")

    opened = []
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = doctype  # it can only stand before the first element
    parser.StartElementHandler = lambda name, attributes: opened.append(name)
    with open_text(path) as text:
        while not opened and (chunk := text.read(65536)):
            parser.Parse(chunk.encode())


def _drug(element: ElementTree.Element) -> Iterator[tuple[str, str, str, str]]:
    ns = NAMESPACE
    name = (element.findtext(f"{ns}name") or "").strip()
    ids = element.findall(f"{ns}drugbank-id")
    primary = [one for one in ids if one.get("primary") == "true"] or ids
    identifier = (primary[0].text or "").strip() if primary else ""
    for target in element.iterfind(f"{ns}targets/{ns}target"):
        actions = "|".join(one.text or "" for one in target.iterfind(f"{ns}actions/{ns}action"))
        for gene in target.iterfind(f"{ns}polypeptide/{ns}gene-name"):
            yield name or identifier, identifier, (gene.text or "").strip(), actions


def _json(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield the drugs of ``{"CHEMBL411|NAME": [genes]}``, also within groups: ``{"ATC letter": {drug: [genes]}}``."""
    with open_text(path) as text:
        content = json.load(text)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected drugs -> genes; found a {type(content).__name__}")
    for key, genes in content.items():
        if isinstance(genes, dict) and not {"targets", "genes"} & set(genes):
            yield from (row for drug, members in genes.items() for row in _json_drug(drug, members, path))
        else:
            yield from _json_drug(key, genes, path)


def _json_drug(drug: str, genes: object, path: Path) -> Iterator[tuple[str, str, str, str]]:
    members = genes.get("targets", genes.get("genes")) if isinstance(genes, dict) else genes
    if not isinstance(members, list) or not all(isinstance(gene, str) for gene in members):
        raise InputError(f"{path}: expected a list of genes for {drug!r}; found {str(members)[:40]!r}")
    identifier, _, name = drug.rpartition("|") if "|" in drug else ("", "", drug)
    for gene in members:
        yield name, identifier, gene, ""


def _table(path: Path) -> Iterator[tuple[str, str, str, str]]:
    columns = list(read_columns(path, nrows=0))
    linked, gene_name = pick(columns, "Drug IDs"), pick(columns, "Gene Name")
    if linked and gene_name:
        for _, row in read_columns(path).iterrows():
            yield from ((drug.strip(), drug.strip(), row[gene_name], "") for drug in row[linked].split(";"))
        return
    name = pick(columns, "drug", "drug_name", "cmap_name", "pert_iname", "name")
    target = pick(columns, "target", "targets", "gene", "gene_symbol")
    if name is None or target is None:
        first = head(path)[0][:60]
        raise InputError(
            f"{path}: expected columns drug and target, or DrugBank's Gene Name and Drug IDs; first line {first!r}"
        )
    identifier = pick(columns, "identifier", "drugbank_id", "chembl_id", "pert_id", "id")
    action = pick(columns, "action", "actions", "moa")
    for _, row in read_columns(path).iterrows():
        for gene in row[target].replace("|", ";").split(";"):
            yield row[name], row[identifier] if identifier else "", gene.strip(), row[action] if action else ""
