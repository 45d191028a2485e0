"""Signatures: every format gives the numbers that were written; of a GCTX only what was asked for is read."""

from __future__ import annotations

import tracemalloc

import h5py
import numpy as np
import pandas as pd
import pytest

from scidiff.errors import InputError
from scidiff.integration import signatures as module
from scidiff.integration.signatures import Signatures, read_gene_sets, read_signatures


def write_gctx(path, values: np.ndarray, ids: list, genes: list) -> None:
    with h5py.File(path, "w") as file:
        file["0/DATA/0/matrix"] = values
        file["0/META/COL/id"] = np.array(ids, dtype=object)
        file["0/META/ROW/id"] = genes


@pytest.fixture
def gctx(tmp_path):
    """Five signatures of four genes, value 10 * signature + gene; two probes are of one gene."""
    values = 10.0 * np.arange(5)[:, None] + np.arange(4)
    write_gctx(tmp_path / "level5.gctx", values.astype(np.float32), [f"s{i}" for i in range(5)], [11, 12, 13, 14])
    (tmp_path / "siginfo.txt").write_text(
        "sig_id\tcmap_name\tpert_idose\ttas\ns3\tvorinostat\t10 uM\t.5\nunknown\tx\t1 uM\t.1\ns1\tDMSO\t-666\t.2\n"
    )
    (tmp_path / "geneinfo.txt").write_text("gene_id\tgene_symbol\n13\tB\n11\tA\n14\tB\n")
    return tmp_path


def test_gctx(gctx):
    found = read_signatures(gctx / "level5.gctx")
    np.testing.assert_array_equal(found.values, 10.0 * np.arange(5)[:, None] + np.arange(4))
    assert list(found.genes) == ["11", "12", "13", "14"]
    found = read_signatures(gctx / "level5.gctx", table=gctx / "siginfo.txt", gene_table=gctx / "geneinfo.txt")
    assert list(found.table.index) == ["s3", "s1"]  # in the order of the table
    assert list(found.table["name"]) == ["vorinostat", "DMSO"]
    assert list(found.table["dose"]) == ["10 uM", "-666"]
    assert found.values[:, found.genes.get_loc("A")].tolist() == [30.0, 10.0]
    assert found.values[:, found.genes.get_loc("B")].tolist() == [32.5, 12.5]  # the mean of its two probes
    rows = pd.read_csv(gctx / "siginfo.txt", sep="\t").query("tas > .3")
    assert list(read_signatures(gctx / "level5.gctx", table=rows).table["name"]) == ["vorinostat"]


def test_a_gctx_larger_than_memory_is_read_by_signatures(tmp_path, monkeypatch):
    n, n_genes = 200_000, 12_328  # 9.9 GB, of which only the chunks of two neighbourhoods were ever written
    with h5py.File(tmp_path / "big.gctx", "w") as file:
        matrix = file.create_dataset("0/DATA/0/matrix", (n, n_genes), np.float32, chunks=(1, n_genes), fillvalue=0)
        wanted = [7, 8, 9, 150_000, 150_002]
        for row in wanted:
            matrix[row] = np.arange(n_genes) + row
        file["0/META/COL/id"] = np.arange(n).astype("S8")
        file["0/META/ROW/id"] = np.arange(n_genes)
    read = []
    getitem = h5py.Dataset.__getitem__

    def counting(self, key):
        found = getitem(self, key)
        if self.ndim == 2:
            read.append(len(found))
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)
    table = pd.DataFrame({"name": "x"}, index=[str(row) for row in wanted[::-1]])
    genes = pd.DataFrame(index=pd.Index(["5", "12000"], name="gene_id"))
    tracemalloc.start()
    found = read_signatures(tmp_path / "big.gctx", table=table, gene_table=genes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found.values, np.array(wanted[::-1])[:, None] + np.array([5.0, 12000.0]))
    assert sorted(read) == [1, 1, 3]  # neighbours in one go, nothing else
    assert peak < 100e6


def test_runs_cover_every_position_once():
    at = np.unique(np.random.default_rng(0).integers(0, 5000, 3000))
    runs = module._runs(at)
    assert [i for run in runs for i in range(run.start, run.stop)] == list(range(len(at)))
    assert all(at[run.stop - 1] - at[run.start] == run.stop - 1 - run.start < module.BLOCK for run in runs)


def test_gctx_refuses(gctx):
    with pytest.raises(InputError, match="none of the 1 signatures asked for"):
        read_signatures(gctx / "level5.gctx", table=pd.DataFrame({"name": ["x"]}, index=["nowhere"]))
    write_gctx(gctx / "missing.gctx", np.full((2, 2), -666.0), ["a", "b"], [1, 2])
    with pytest.raises(InputError, match="2 signatures have missing values"):
        read_signatures(gctx / "missing.gctx")
    write_gctx(gctx / "turned.gctx", np.zeros((3, 2)), ["a", "b"], [1, 2, 3])
    with pytest.raises(InputError, match=r"expected 2 signatures x 3 genes; found \(3, 2\)"):
        read_signatures(gctx / "turned.gctx")
    with h5py.File(gctx / "other.gctx", "w") as file:
        file["X"] = np.zeros(2)
    with pytest.raises(InputError, match="expected /0/DATA/0/matrix"):
        read_signatures(gctx / "other.gctx")


def test_gct(tmp_path):
    old = "#1.2\n2\t2\nNAME\tDescription\ts1\ts2\nA\tna\t1\t2\nB\tna\t3\t4\n"
    (tmp_path / "old.gct").write_text(old)
    found = read_signatures(tmp_path / "old.gct")
    assert (found.values.tolist(), list(found.genes)) == ([[1.0, 3.0], [2.0, 4.0]], ["A", "B"])
    new = (
        "#1.3\n2\t2\t1\t2\nid\tpr_gene_symbol\ts1\ts2\npert_iname\tna\tvorinostat\tDMSO\npert_dose\tna\t10\t0\n"
        "g1\tA\t1\t2\ng2\tB\t3\t4\n"
    )
    (tmp_path / "new.gct").write_text(new)
    found = read_signatures(tmp_path / "new.gct")
    assert (found.values.tolist(), list(found.genes)) == ([[1.0, 3.0], [2.0, 4.0]], ["A", "B"])
    assert (list(found.table["name"]), list(found.table["dose"])) == (["vorinostat", "DMSO"], ["10", "0"])
    (tmp_path / "cut.gct").write_text(old.replace("2\t2\n", "3\t2\n", 1))
    with pytest.raises(InputError, match="expected 3 genes x 2 signatures"):
        read_signatures(tmp_path / "cut.gct")


@pytest.mark.parametrize(
    "text",
    [
        "trichostatin a Up\t\tA,1.0\tB,1.0\ntrichostatin a Down\t\tC,1.0\n",
        "trichostatin a-up\tna\tA\tB\ntrichostatin a-dn\tna\tC\n",
        "trichostatin a\tup\tA\tB\ntrichostatin a\tdown\tC\n",
    ],
)
def test_gmt_pairs(tmp_path, text):
    (tmp_path / "x.gmt").write_text(text)
    found = read_signatures(tmp_path / "x.gmt")
    assert list(found.table["name"]) == ["trichostatin a"]  # names may hold blanks
    assert dict(zip(found.genes, found.values[0], strict=True)) == {"A": 1.0, "B": 1.0, "C": -1.0}
    assert found.are_sets


def test_gene_sets(tmp_path):
    (tmp_path / "h.gmt").write_text("HALLMARK_X\thttp://x\tA\tB\tA\t\n\nY\tup\tC\nY\tdown\tD\n")
    assert read_gene_sets(tmp_path / "h.gmt") == {"HALLMARK_X": ["A", "B"], "Y": ["C", "D"]}


def test_tables(tmp_path):
    (tmp_path / "long.tsv").write_text("drug\ttarget\tweight\tn\nx\tA\t2\t3\nx\tB\t-1\t3\ny\tA\t.5\t3\n")
    found = read_signatures(tmp_path / "long.tsv")
    assert (found.values.tolist(), list(found.table["name"])) == ([[2.0, -1.0], [0.5, 0.0]], ["x", "y"])
    (tmp_path / "wide.csv").write_text("gene,x,y\nA,2,.5\nB,-1,0\n")
    wide = read_signatures(tmp_path / "wide.csv")
    np.testing.assert_array_equal(wide.values, found.values)
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="expected columns drug, target, weight"):
        read_signatures(tmp_path / "odd.csv")


def test_signatures_check_themselves():
    table = pd.DataFrame({"name": ["x"]})
    with pytest.raises(InputError, match="1 rows of the table x 3 genes"):
        Signatures(np.zeros((1, 2)), pd.Index(list("ABC")), table)
    with pytest.raises(InputError, match="'A' occurs more than once"):
        Signatures(np.zeros((1, 2)), pd.Index(["A", "A"]), table)
    with pytest.raises(InputError, match="no finite numbers"):
        Signatures(np.full((1, 1), np.nan), pd.Index(["A"]), table)
    with pytest.raises(InputError, match="no column 'name'"):
        Signatures(np.zeros((1, 1)), pd.Index(["A"]), pd.DataFrame({"drug": ["x"]}))
