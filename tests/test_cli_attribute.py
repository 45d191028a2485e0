"""scidiff attribute: table, page and cells say the same, and public files come only when they are allowed to."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scidiff as sd
from scidiff.cli import main
from scidiff.integration import read_network

resources = import_module("scidiff.integration.download")
GENES = [f"G{i}" for i in range(40)]


def screen(seed: int = 0) -> ad.AnnData:
    """Cells under two drugs, of which A raises the first ten genes and B the next ten."""
    rng = np.random.default_rng(seed)
    drug = np.resize(["DMSO", "A", "B"], 150)
    rate = np.full((150, 40), 4.0)
    rate[drug == "A", :10] *= 3
    rate[drug == "B", 10:20] *= 3
    obs = pd.DataFrame({"drug": drug, "cell_type": "T"}, index=[f"c{seed}-{i}" for i in range(150)])
    return ad.AnnData(sparse.csr_matrix(rng.poisson(rate), dtype=np.float32), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("box")
    schema = sd.Schema(perturbation="drug", control="DMSO", context="cell_type")
    config = sd.TrainConfig(steps=3, batch_size=32)
    sd.ScIDiff.fit(screen(), schema, width=8, n_blocks=1, config=config, seed=0).save(out / "model")
    asked = screen(1)
    asked[asked.obs["drug"] == "A"].copy().write_h5ad(out / "asked.h5ad")
    edges = [("TFA", gene, 1) for gene in GENES[:10]] + [("TFB", gene, 1) for gene in GENES[10:20]]
    pd.DataFrame(edges, columns=["source", "target", "weight"]).to_csv(out / "net.csv", index=False)
    rng = np.random.default_rng(5)
    drugs = pd.DataFrame(rng.normal(0, 0.1, (40, 6)), GENES, list("ABCDEF")).rename_axis("gene")
    for i in range(4):
        drugs.iloc[10 * i : 10 * i + 10, i] += 2.0
    drugs.to_csv(out / "drugs.csv")
    (out / "targets.csv").write_text("drug,identifier,target,action\nAgent A,DB1,G0|G1|G2,agonist\n")
    (out / "names.csv").write_text("DrugBank ID,Common name,Synonyms\nDB1,Agent A,A | Aone\n")
    return out


def run(*words: object) -> int:
    return main(["attribute", *map(str, words)])


def test_table_page_and_cells_agree(folder, tmp_path, capsys):
    out, page, cells = tmp_path / "r.csv", tmp_path / "r.html", tmp_path / "r.h5ad"
    files = ["--network", folder / "net.csv", "--signatures", folder / "drugs.csv", "--targets", folder / "targets.csv"]
    files += ["--drug-names", folder / "names.csv"]
    words = [folder / "model", folder / "asked.h5ad", "--out", out, *files, "--report", page, "--cells-out", cells]
    assert run(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["table"], told["report"], told["cells"]) == (str(out), str(page), str(cells))
    table = pd.read_csv(out)
    assert table.groupby("kind")["name"].first().to_dict() == {"drug": "A", "perturbation": "A", "tf": "TFA"}
    assert table.columns[:4].tolist() == ["kind", "name", "rank", "consensus_rank"]
    assert table.loc[table["kind"] == "drug", "known_targets"].iloc[0] == "G0,G1,G2"
    assert table.loc[table["kind"] == "drug", ["target_set", "posterior"]].iloc[0].gt([3, 0.5]).all()
    text = page.read_text()
    assert all(f">{name}<" in text for name in table["name"])
    again = ad.read_h5ad(cells)
    pd.testing.assert_series_equal(
        again.uns["scidiff_ranking"]["name"].reset_index(drop=True).astype(object), table["name"].astype(object)
    )
    assert again.obsm["tf_activity"]["TFA"].mean() > again.obsm["tf_activity"]["TFB"].mean()
    assert (again.X != ad.read_h5ad(folder / "asked.h5ad").X).nnz == 0


def test_drugs_by_targets_alone_and_dose_by_dose(folder, tmp_path, capsys):
    out = tmp_path / "r.csv"
    asked = [folder / "model", folder / "asked.h5ad", "--out", out, "--seed", 3]
    assert run(*asked, "--targets", folder / "targets.csv") == 0
    table = pd.read_csv(out).set_index("kind").loc["drug"]
    assert (table["name"], table["n_targets"]) == ("Agent A", 3)
    capsys.readouterr()
    assert run(*asked, "--signatures", folder / "drugs.csv", "--each-dose") == 1
    assert "drugs.csv has no column dose; leave out each_dose=" in capsys.readouterr().err


def test_from_a_phenotype_over_cells_to_causes_and_real_cells_beside(folder, tmp_path, capsys):
    (tmp_path / "wish.yaml").write_text("up: [G0, G1]\n")
    out, page, cells = tmp_path / "r.csv", tmp_path / "r.html", tmp_path / "r.h5ad"
    asked = ["--design", tmp_path / "wish.yaml", "--condition", "cell_type=T", "--n", 40, "--seed", 1]
    files = ["--network", folder / "net.csv", "--signatures", folder / "drugs.csv"]
    words = [folder / "model", *asked, *files, "--real", folder / "asked.h5ad", "--out", out]
    assert run(*words, "--report", page, "--cells-out", cells, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    designed, table = ad.read_h5ad(cells), pd.read_csv(out)
    assert designed.n_obs == 40
    assert set(designed.uns["scidiff"]["genes"]) == {"G0", "G1"}
    assert not table.loc[table["kind"] == "tf", "leading_genes"].str.contains(r"\bG[01]\b").any()  # they were steered
    assert [row["kind"] for row in told["agreement"]] == ["perturbation", "tf", "drug"]
    assert all(-1 <= row["correlation"] <= 1 and row["shared"] <= row["n"] for row in told["agreement"])
    assert "as in real cells (drug)" in page.read_text()
    again = tmp_path / "again.csv"
    assert run(*words[:-1], again, "--quiet") == 0
    assert again.read_text() == out.read_text()
    assert run(folder / "model", folder / "asked.h5ad", *asked, "--out", out) == 1
    assert "leave out CELLS" in capsys.readouterr().err


def test_signatures_with_tables_of_what_they_are(folder, tmp_path, capsys):
    drugs = pd.read_csv(folder / "drugs.csv").rename(columns={"gene": "Name"})
    drugs.insert(1, "Description", "")
    (tmp_path / "long.gct").write_text(f"#1.2\n40\t6\n{drugs.to_csv(sep=chr(9), index=False)}")
    said = [("A", "drug a", 1), ("B", "drug a", 10), ("C", "drug C", 1), ("D", "drug D", 1), ("E", "drug E", 1)]
    rows = "".join(f"{one}\t{drug}\t{dose} uM\n" for one, drug, dose in said)
    (tmp_path / "siginfo.txt").write_text("sig_id\tcmap_name\tpert_idose\n" + rows)
    out = tmp_path / "r.csv"
    asked = [folder / "model", folder / "asked.h5ad", "--out", out, "--signatures", tmp_path / "long.gct"]
    assert run(*asked, "--signature-table", tmp_path / "siginfo.txt", "--each-dose", "--quiet") == 0
    table = pd.read_csv(out).set_index("kind").loc["drug"]
    assert table["name"].iloc[0] == "drug a @ 1 uM"
    assert set(table["name"]) == {"drug a @ 1 uM", "drug a @ 10 uM", "drug C @ 1 uM", "drug D @ 1 uM", "drug E @ 1 uM"}
    assert run(folder / "model", folder / "asked.h5ad", "--gene-table", tmp_path / "siginfo.txt") == 1
    assert "give these too" in capsys.readouterr().err


def test_treatments_for_a_phenotype(folder, tmp_path, capsys):
    (tmp_path / "wish.yaml").write_text("up: [G0, G1]\ndown: [G15]\n")
    asked = ["--phenotype", tmp_path / "wish.yaml", "--condition", "cell_type=T"]
    out, page = tmp_path / "r.csv", tmp_path / "r.html"
    assert run(folder / "model", *asked, "--out", out, "--report", page, "--json") == 0
    first = json.loads(capsys.readouterr().out)["best"][0]
    assert (first["name"], first["rank"], first["consensus_rank"], first["direction"]) == ("A", 1, 1, "mimic")
    assert first["gain"] > 5 * first["se"] > 0
    assert pd.read_csv(out)["name"].tolist() == ["A", "B"]
    assert "wish.yaml" in page.read_text()
    assert "cell_type=T" in page.read_text()
    assert run(folder / "model", *asked, "--reverse", "--out", out) == 0
    assert "perturbation: B, A" in capsys.readouterr().out
    refused = {
        "cannot read the phenotype": [folder / "model", "--phenotype", tmp_path / "wishes.yaml"],
        "condition= belongs to phenotype=": [folder / "model", "--up", "G0", "--condition", "cell_type=T"],
        "takes one of": [folder / "model", *asked, "--up", "G0"],
        "as up= and down=": [folder / "model", *asked, "--network", folder / "net.csv"],
        "unknown cell_type 'B'": [folder / "model", *asked[:2], "--condition", "cell_type=B"],
    }
    for message, words in refused.items():
        assert run(*words, "--out", out) == 1
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1


def test_a_public_file_comes_only_when_allowed(folder, tmp_path, monkeypatch, capsys):
    fetched = []

    def pretend(url, known, *, fname, path, downloader):
        fetched.append(url)
        place = Path(path, fname)
        place.write_text((folder / "net.csv").read_text())
        return str(place)

    one = replace(resources.RESOURCES["collectri"], reader=read_network)
    monkeypatch.setattr(resources, "RESOURCES", {"collectri": one})
    monkeypatch.setattr(resources, "_quietly", pretend)
    monkeypatch.setattr(resources, "_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    words = [folder / "model", folder / "asked.h5ad", "--out", tmp_path / "r.csv", "--network", "collectri"]
    assert run(*words) == 1
    assert "'collectri' is not here" in capsys.readouterr().err
    assert not fetched
    assert run(*words, "--download", "--quiet") == 0
    assert fetched == [one.url]
    assert run(*words, "--quiet") == 0  # it is there
    assert len(fetched) == 1
    assert "TFA" in set(pd.read_csv(tmp_path / "r.csv")["name"])
