"""Drug targets: every format gives the drugs and genes that were written; entities and pickles are refused."""

from __future__ import annotations

import pytest

from scidiff.errors import InputError
from scidiff.integration.drug_identity import join_key
from scidiff.integration.drug_targets import read_drug_names, read_drug_targets

DRUG = """<drug type="small molecule"><drugbank-id primary="true">{id}</drugbank-id><drugbank-id>OLD1</drugbank-id>
<name>{name}</name><pathways><pathway><drugs><drug><drugbank-id>DB9</drugbank-id><name>Other</name></drug></drugs>
</pathway></pathways><targets><target><id>BE1</id><name>Histone deacetylase 1</name>
<actions><action>inhibitor</action></actions><polypeptide><name>x</name><gene-name>HDAC1</gene-name></polypeptide>
</target></targets></drug>"""
XML = """<?xml version="1.0" encoding="UTF-8"?>
{doctype}<drugbank xmlns="http://www.drugbank.ca" version="5.1">{drugs}</drugbank>"""


def test_drugbank_xml_drug_by_drug(tmp_path):
    drugs = DRUG.format(id="DB06603", name="Panobinostat") + DRUG.format(id="DB02546", name="Vorinostat")
    (tmp_path / "full.xml").write_text(XML.format(doctype="", drugs=drugs))
    table = read_drug_targets(tmp_path / "full.xml")
    assert table.to_numpy().tolist() == [
        ["Panobinostat", "DB06603", "HDAC1", "inhibitor", "full.xml"],
        ["Vorinostat", "DB02546", "HDAC1", "inhibitor", "full.xml"],
    ]


def test_entities_are_refused(tmp_path):
    laughs = '<!DOCTYPE drugbank [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>\n'
    (tmp_path / "full.xml").write_text(XML.format(doctype=laughs, drugs=DRUG.format(id="1", name="&b;")))
    with pytest.raises(InputError, match="document type 'drugbank'"):
        read_drug_targets(tmp_path / "full.xml")


def test_drugbank_links(tmp_path):
    (tmp_path / "all.csv").write_text(
        "ID,Name,Gene Name,GenBank Protein ID,UniProt ID,Species,Drug IDs\n"
        'P35367,Histamine H1 receptor,HRH1,1,P35367,Humans,DB00321; DB00334\nP1,"Protein, nameless",,2,P1,Humans,DB1\n'
    )
    table = read_drug_targets(tmp_path / "all.csv")
    assert table[["drug", "target"]].to_numpy().tolist() == [["DB00321", "HRH1"], ["DB00334", "HRH1"]]


def test_json(tmp_path):
    (tmp_path / "a.json").write_text('{"L": {"CHEMBL98|VORINOSTAT": ["HDAC1", "HDAC2"]}, "CHEMBL1|ASPIRIN": ["PTGS2"]}')
    table = read_drug_targets(tmp_path / "a.json")
    assert table[["drug", "identifier", "target"]].to_numpy().tolist() == [
        ["VORINOSTAT", "CHEMBL98", "HDAC1"],
        ["VORINOSTAT", "CHEMBL98", "HDAC2"],
        ["ASPIRIN", "CHEMBL1", "PTGS2"],
    ]


def test_compoundinfo(tmp_path):
    (tmp_path / "c.txt").write_text("pert_id\tcmap_name\ttarget\tmoa\nBRD-K1\tvorinostat\tHDAC1\tHDAC inhibitor\n")
    assert read_drug_targets(tmp_path / "c.txt").iloc[0].tolist() == [
        "vorinostat", "BRD-K1", "HDAC1", "HDAC inhibitor", "c.txt",
    ]  # fmt: skip


def test_names_join_drugs(tmp_path):
    (tmp_path / "v.csv").write_text(
        "DrugBank ID,Accession Numbers,Common name,CAS,UNII,Synonyms,Standard InChI Key\n"
        "DB02546,EXPT,Vorinostat,1,2,SAHA | Suberanilohydroxamic acid,WAEXFXRVDQXREF-UHFFFAOYSA-N\n"
        "DB1,X,Saha,1,2,twice,K1\nDB2,X,Other,1,2,twice,K2\n"
    )
    names = read_drug_names(tmp_path / "v.csv")
    assert names[join_key("VORINOSTAT")] == "DB02546"
    assert names[join_key("suberanilohydroxamic-acid")] == "DB02546"
    assert names[join_key("SAHA")] == "DB1"  # a common name goes before a synonym
    assert join_key("twice") not in names  # two drugs claim it


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xml", "<mondo/>", "expected <drugbank"),
        ("a.xml", "no xml", "cannot be read as drug targets"),
        ("a.json", "[1, 2]", "expected drugs -> genes; found a list"),
        ("a.json", '{"x": "HDAC1"}', "expected a list of genes for 'x'"),
        ("a.csv", "one,two\n1,2\n", "expected columns drug and target"),
        ("a.csv", "drug,target\nx,\n", "names no drug with a target gene"),
    ],
)
def test_wrong_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_drug_targets(tmp_path / name)
    assert "\n" not in str(error.value)
