"""Networks: every format gives the edges that were written, and what is no network is named in one line."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem

from scidiff.errors import InputError
from scidiff.integration.networks import read_network


def edges(network: pd.DataFrame) -> dict[tuple[str, str], float]:
    assert list(network) == ["source", "target", "weight"]
    assert not network.duplicated(["source", "target"]).any()
    return {(source, target): weight for source, target, weight in network.itertuples(index=False)}


def write(path, text: str):
    path.write_text(text)
    return path


def test_table(tmp_path):
    text = "source\ttarget\tweight\nABL1\tBAX\t1\nABL1\tBCL2\t-1\nABL1\tBAX\t1\n"
    assert edges(read_network(write(tmp_path / "net.tsv", text))) == {("ABL1", "BAX"): 1.0, ("ABL1", "BCL2"): -1.0}
    with gzip.open(tmp_path / "net.csv.gz", "wt") as file:
        file.write('"","source","confidence","target","mor"\n"1","AHR","C","ARID5B",-1\n')
    assert edges(read_network(tmp_path / "net.csv.gz")) == {("AHR", "ARID5B"): -1.0}
    assert edges(read_network(write(tmp_path / "adj.csv", "TF,target,importance\nA,b,2.5\n"))) == {("A", "b"): 2.5}
    assert edges(read_network(write(tmp_path / "bare.csv", "tf,gene\nA,b\n"))) == {("A", "b"): 1.0}


@pytest.mark.parametrize("header", ["", "source\ttarget\tmode\tpmid\n"])
def test_trrust_goes_by_the_majority(tmp_path, header):
    rows = "A\tx\tActivation\t1\nA\tx\tActivation\t2\nA\tx\tRepression\t3\nA\ty\tUnknown\t4\nA\tz\tRepression\t5\n"
    even = "B\tx\tActivation\t1\nB\tx\tRepression\t2\n"
    assert edges(read_network(write(tmp_path / "t.tsv", header + rows + even))) == {("A", "x"): 1.0, ("A", "z"): -1.0}


NEW = "Region\tGene\trho_R2G\tTF\tis_extended\teRegulon_name\tGene_signature_name\tregulation\trho_TF2G\n"
NEW_ROWS = (
    "chr1:1-5\tG1\t.2\tTBX5\tFalse\tTBX5_direct_+/+\tTBX5_direct_+/+_(2g)\t1\t.5\n"
    "chr1:9-12\tG1\t.4\tTBX5\tFalse\tTBX5_direct_+/+\tTBX5_direct_+/+_(2g)\t1\t.5\n"
    "chr2:1-5\tG2\t-.4\tTBX5\tFalse\tTBX5_direct_-/+\tTBX5_direct_-/+_(1g)\t-1\t-.25\n"
)
OLD = "TF\tGene\tRegion\tGene_signature_name\tR2G_rho\tTF2G_rho\tTF2G_regulation\n"
OLD_ROWS = "TBX5\tG1\tchr1:1-5\tTBX5_+_+_(1g)\t.3\t.5\t1\nTBX5\tG2\tchr1:1-5\tTBX5_-_+_(1g)\t.3\t-.25\t-1\n"
TBX5 = {("TBX5", "G1"): 0.5, ("TBX5", "G2"): -0.25}


@pytest.mark.parametrize("text", [NEW + NEW_ROWS, OLD + OLD_ROWS, NEW.replace("\trho_TF2G", "\tTF2G_rho") + NEW_ROWS])
def test_scenicplus_tables(tmp_path, text):
    assert edges(read_network(write(tmp_path / "eRegulons_direct.tsv", text))) == TBX5


def test_scenicplus_mudata(tmp_path):
    direct = pd.DataFrame(
        {"TF": ["TBX5", "TBX5"], "Gene": ["G1", "G2"], "eRegulon_name": ["TBX5_direct_+/+", "TBX5_direct_-/+"]}
        | {"rho_TF2G": [0.5, -0.25]}
    )
    extended = pd.DataFrame({"TF": ["TBX5", "Y"], "Gene": ["G1", "G3"], "rho_TF2G": [0.9, 0.1]})
    extended["eRegulon_name"] = ["TBX5_extended_+/+", "Y_extended_+/-"]
    with h5py.File(tmp_path / "scplus.h5mu", "w") as file:
        write_elem(file, "uns/direct_e_regulon_metadata", direct)
        write_elem(file, "uns/extended_e_regulon_metadata", extended)
    # an edge that is direct keeps its direct weight; the sign is the TF's on the gene, not the region's
    assert edges(read_network(tmp_path / "scplus.h5mu")) == TBX5 | {("Y", "G3"): 0.1}


def test_pyscenic_motifs(tmp_path):
    context = "\"frozenset({'SIGN', 'weight>75.0%'})\""
    row = 'TF,M1,.2,3.2,0,1,x,CONTEXT,"TARGETS",9\n'.replace("CONTEXT", context)
    text = (
        ",,Enrichment,Enrichment,Enrichment,Enrichment,Enrichment,Enrichment,Enrichment,Enrichment\n"
        ",,AUC,NES,MotifSimilarityQvalue,OrthologousIdentity,Annotation,Context,TargetGenes,RankAtMax\n"
        "TF,MotifID,,,,,,,,\n"
        + row.replace("SIGN", "activating").replace("TARGETS", "[('G1', 0.8), ('G2', 0.4)]")
        + row.replace("SIGN", "activating").replace("TARGETS", "[('G1', np.float64(1.5))]")
        + row.replace("SIGN", "repressing").replace("TARGETS", "[('G3', 1e-1)]")
    )
    found = edges(read_network(write(tmp_path / "reg.csv", text)))
    assert found == {("TF", "G1"): 1.5, ("TF", "G2"): 0.4, ("TF", "G3"): -0.1}


def test_nothing_in_a_file_is_run(tmp_path):
    bad = ",,Enrichment,Enrichment\n,,Context,TargetGenes\nTF,M,activating,\"__import__('os').mkdir('ran')\"\n"
    with pytest.raises(InputError, match="cannot be read as a pyscenic network"):
        read_network(write(tmp_path / "reg.csv", bad))
    with pytest.raises(InputError, match="yaml network"):
        read_network(write(tmp_path / "reg.yaml", "- !!python/object/apply:os.mkdir ['ran']\n"))
    with pytest.raises(InputError, match="pickle, which can run any code"):
        read_network(write(tmp_path / "reg.pkl", "x"))


def test_pyscenic_regulons(tmp_path):
    gmt = "STAT1(+)\tlink\tIRF1\tGBP1\nREST(-)\tx\tSYP\nFOXA2_direct_+/-_(1g)\tx\tALB\n"
    expected = {("STAT1", "IRF1"): 1.0, ("STAT1", "GBP1"): 1.0, ("REST", "SYP"): -1.0, ("FOXA2", "ALB"): 1.0}
    assert edges(read_network(write(tmp_path / "reg.gmt", gmt))) == expected
    yaml = (
        "- !Regulon\n  name: STAT1(+)\n  genes: [IRF1, GBP1]\n  weights: [2.0, 0.5]\n  transcription_factor: STAT1\n"
        "- !Regulon\n  name: REST(-)\n  gene2weight: {SYP: 3.0}\n  transcription_factor: REST\n"
    )
    found = edges(read_network(write(tmp_path / "reg.yaml", yaml)))
    assert found == {("STAT1", "IRF1"): 2.0, ("STAT1", "GBP1"): 0.5, ("REST", "SYP"): -3.0}
    regulons = np.array([(1, 0), (1, 0), (0, 1)], dtype=[("STAT1(+)", "i8"), ("REST_(-)", "i8")])
    with h5py.File(tmp_path / "scenic.loom", "w") as file:
        file["row_attrs/Gene"] = np.array(["IRF1", "GBP1", "SYP"], dtype=object)
        file["row_attrs/Regulons"] = regulons
    found = edges(read_network(tmp_path / "scenic.loom"))
    assert found == {("STAT1", "IRF1"): 1.0, ("STAT1", "GBP1"): 1.0, ("REST", "SYP"): -1.0}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "one\ttwo\nx\ty\n", "expected columns source, target, weight.*found columns 'one', 'two'"),
        ("a.tsv", "", "is empty"),
        ("a.tsv", "source\ttarget\tweight\nA\tB\tmany\n", "weight of A -> B is no finite number"),
        ("a.tsv", "source\ttarget\tweight\n", "holds no edge"),
        ("a.tsv", "TF\tGene\teRegulon_name\nA\tB\tA_direct\n", "expected a name such as"),
        ("a.gmt", "STAT1 IRF1 GBP1\n", "line 1: expected name, description, genes"),
        ("a.loom", "no HDF5", "cannot be read as a loom network"),
        (
            "a.yaml",
            "- name: A\n  genes: [B]\n  transcription_factor: [A]\n",
            "name of a source must be text",
        ),
    ],
)
def test_wrong_files(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message) as error:
        read_network(write(tmp_path / name, text))
    assert "\n" not in str(error.value)


def test_names_that_are_no_text(tmp_path):
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["row_attrs/Gene"] = np.array([["IRF1", "GBP1"]], dtype=object)
        file["row_attrs/Regulons"] = np.array([(1,)], dtype=[("STAT1(+)", "i8")])
    with pytest.raises(InputError, match="loom network: the name of a target must be text"):
        read_network(tmp_path / "a.loom")
    table = pd.DataFrame({"TF": ["A"], "Gene": ["B"], "eRegulon_name": ["A_direct_+/+"]})
    with h5py.File(tmp_path / "a.h5mu", "w") as file:
        write_elem(file, "uns/direct_e_regulon_metadata", table)
        del file["uns/direct_e_regulon_metadata/Gene"]
        odd = file.create_dataset("uns/direct_e_regulon_metadata/Gene", data=np.array([("x", 1)], dtype="S1,i8"))
        odd.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with pytest.raises(InputError, match="h5mu network"):
        read_network(tmp_path / "a.h5mu")


def test_names_may_be_categories(tmp_path):
    names = {"TF": ["A", "C"], "Gene": ["B", "D"], "eRegulon_name": ["A_direct_+/+", "C_direct_-/+"]}
    with h5py.File(tmp_path / "a.h5mu", "w") as file:
        write_elem(file, "uns/direct_e_regulon_metadata", pd.DataFrame(names, dtype="category"))
    assert edges(read_network(tmp_path / "a.h5mu")) == {("A", "B"): 1.0, ("C", "D"): -1.0}


def test_missing_file_and_kind(tmp_path):
    write(tmp_path / "network.tsv", "source\ttarget\nA\tB\n")
    with pytest.raises(InputError, match=r"no file .*netwrok.tsv; nearest: 'network.tsv'"):
        read_network(tmp_path / "netwrok.tsv")
    with pytest.raises(InputError, match="nearest: 'table'"):
        read_network(tmp_path / "network.tsv", kind="tabel")
