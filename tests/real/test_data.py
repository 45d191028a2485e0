"""The data room on published measurements."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scidiff.data.catalog import CATALOG, load, schema_of
from scidiff.data.cells import choose_genes, read_cells, usual_genes
from scidiff.data.checking import check
from scidiff.data.conditions import parse_condition
from scidiff.data.scaling import highly_variable_genes, log1p_cp10k
from scidiff.data.splits import holdout, random_split
from scidiff.errors import InputError

pytestmark = pytest.mark.real

EXCERPTS = [name for name, entry in CATALOG.items() if entry.excerpt]


@pytest.fixture
def folder(real_data, monkeypatch):
    monkeypatch.setenv("SCIDIFF_DATA", str(real_data))
    return real_data


@pytest.mark.parametrize("name", EXCERPTS)
def test_every_excerpt_is_what_the_catalog_says(folder, name):
    adata = load(name)  # a wrong checksum or a missing column would warn, and warnings are errors here
    table = schema_of(name).validate(adata)
    assert not table.isna().any().any()
    found = check(adata, schema_of(name))
    assert found.ok
    assert found.scale == ("log1p" if name == "lincs_a375" else "counts")
    cells = read_cells(adata, schema_of(name))
    assert sparse.issparse(cells.x) == (found.scale == "counts")
    np.testing.assert_array_equal(np.asarray(cells.x.sum(axis=1)).ravel(), np.asarray(adata.X.sum(axis=1)).ravel())


@pytest.mark.parametrize("name", EXCERPTS)
def test_backed_file_gives_the_same_cells(folder, name):
    path = folder / CATALOG[name].excerpt
    memory = read_cells(ad.read_h5ad(path), schema_of(name))
    backed = read_cells(ad.read_h5ad(path, backed="r")[::7], schema_of(name))
    assert abs(backed.x - memory.x[::7]).max() == 0
    assert backed.conditions.equals(memory.conditions.iloc[::7])


@pytest.mark.parametrize("name", EXCERPTS)
def test_the_guessed_schema_finds_the_main_roles(folder, name):
    guess, known = check(load(name)).schema, schema_of(name)
    assert (guess.perturbation is None) == (known.perturbation is None)
    assert guess.control == known.control
    assert (guess.dose, guess.time) == (known.dose, known.time)
    # patients are a context by choice, which no name can tell
    assert guess.context == known.context or guess.batch in known.context


def test_kang_held_out_context(folder):
    adata, schema = load("kang18"), schema_of("kang18")
    condition = parse_condition('cell_type="CD4 T",perturbation=IFN-beta', schema=schema, columns=adata.obs.columns)
    split = holdout(adata, schema, **schema.by_role(condition), seed=0)
    obs = adata.obs
    here = obs["cell_type"] == "CD4 T"
    assert len(split.test) == (here & (obs["condition"] == "IFN-beta")).sum() == 405
    assert len(split.source) == len(split.control) == (here & (obs["condition"] == "control")).sum() / 2
    assert not here.iloc[np.setdiff1d(split.train, split.source)].any()
    assert split == holdout(adata, schema, context="CD4 T", perturbation="IFN-beta", seed=0)


def test_norman_combinations(folder):
    adata, schema = load("norman19"), schema_of("norman19")
    split = holdout(adata, schema, combination="KLF1+SET", seed=0)  # the file writes SET+KLF1
    assert set(adata.obs["condition"].iloc[split.test].astype(str)) == {"SET+KLF1"}
    assert len(split.test) == 100
    single = holdout(adata, schema, perturbation="KLF1", seed=0)
    assert not adata.obs["condition"].iloc[single.train].astype(str).str.contains("KLF1").any()
    with pytest.raises(InputError, match="write condition="):
        parse_condition("perturbation=KLF1", schema=schema, columns=adata.obs.columns)


def test_papalexi_held_out_replicate_and_lincs_dose(folder):
    adata = load("papalexi21")
    split = holdout(adata, schema_of("papalexi21"), batch="rep_3", seed=0)
    assert set(adata.obs["replicate"].iloc[np.r_[split.test, split.source, split.control]]) == {"rep_3"}
    wells = load("lincs_a375")
    split = holdout(wells, schema_of("lincs_a375"), dose=10.0, seed=0)
    assert len(split.test) == 58
    assert len(split.source) + len(split.control) == 26


def test_one_third_of_kang_is_one_third_of_each_condition(folder):
    adata, schema = load("kang18"), schema_of("kang18")
    split = random_split(adata, schema, fraction=1 / 3, seed=0)
    assert abs(len(split.test) / adata.n_obs - 1 / 3) < 0.003


def test_kang_variable_genes_are_those_of_the_usual_pipeline(folder):
    import scanpy as sc

    adata = load("kang18")
    genes = highly_variable_genes(log1p_cp10k(read_cells(adata).x), 2000)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=2000, flavor="seurat")
    usual = np.flatnonzero(adata.var["highly_variable"])
    assert len(genes) == 2000
    assert len(np.intersect1d(genes, usual)) >= 1998  # rounding and ties at the border


def test_a_number_of_genes_keeps_the_response_and_the_markers(folder):
    cells = read_cells(load("kang18"))
    lost = {"IFI6", "IFIT1", "MX1", "CD3D"}
    for chosen, kept, share in ((choose_genes(cells, 2000).genes, lost, 0.75), (usual_genes(cells, 2000), set(), 0.35)):
        molecules = cells.x[:, pd.Index(cells.genes).get_indexer(chosen)].sum() / cells.x.sum()
        assert lost & set(chosen) == kept
        assert molecules == pytest.approx(share, abs=0.01)


def test_human_and_mouse_genes_are_not_mixed_up(folder):
    with pytest.raises(InputError, match="same species"):
        read_cells(load("pancreas"), genes=[name.upper() for name in load("pancreas").var_names])


def test_an_excerpt_keeps_the_names_of_its_clusters(real_data, monkeypatch):
    """The pancreas has numbers in ``clusters``, which the original calls its cell types by, and names beside them."""
    monkeypatch.setenv("SCIDIFF_DATA", str(real_data))
    assert {"Ductal", "Pre-endocrine", "Epsilon"} <= set(load("pancreas").obs["cell_type"])
