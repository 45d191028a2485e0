"""Attribution on published screens: causes are found from cells of another half or replicate, and from gene names."""

from __future__ import annotations

import numpy as np
import pytest

from scidiff.data import load
from scidiff.data.scaling import log1p_cp10k
from scidiff.integration.attribution import Library, Query, cosine, empirical_bayes_lda, from_genes

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def folder(real_data, monkeypatch):
    monkeypatch.setenv("SCIDIFF_DATA", str(real_data))


def names_found(library, x, groups, method) -> np.ndarray:
    """Whether each condition of the query cells comes first, with these cells' own controls."""
    control = x[groups == "control"]
    return np.array(
        [method(library, Query.of(x[groups == name], control))["name"][0] == name for name in library.names]
    )


@pytest.fixture
def k562():
    adata = load("norman19")
    adata = adata[(adata.obs["cell_type"] == "k562").to_numpy()]
    return adata.layers["lognorm"].toarray(), adata.obs["condition"].astype(str).to_numpy(), list(adata.var_names)


def test_half_of_the_cells_name_the_other_half_better_than_cosine(k562):
    x, groups, genes = k562
    lda, cos = [], []
    for seed in range(3):
        half = np.random.default_rng(seed).random(len(x)) < 0.5
        library = Library.of(x[half], groups[half], control="control", genes=genes)
        lda.append(names_found(library, x[~half], groups[~half], empirical_bayes_lda).mean())
        cos.append(names_found(library, x[~half], groups[~half], cosine).mean())
    assert np.mean(lda) > 0.6
    assert np.mean(lda) > np.mean(cos) + 0.1


def test_parts_of_held_out_doubles_are_among_the_best_pairs(k562):
    x, groups, genes = k562
    single = np.array(["+" not in name for name in groups])
    library = Library.of(x[single], groups[single], control="control", genes=genes)
    ranks = []
    for double in np.unique(groups[~single]):
        if set(double.split("+")) <= set(library.names):
            table = empirical_bayes_lda(library, Query.of(x[groups == double]), pairs=True)
            ranks.append(1 + list(table["name"]).index("+".join(sorted(double.split("+")))))
    assert len(ranks) == 5
    assert np.median(ranks) <= 3  # of 153
    assert max(ranks) <= 15


def test_a_replicate_never_seen_is_named_better_than_by_cosine_and_interferon_knockouts_by_gene_names():
    adata = load("papalexi21")
    x = log1p_cp10k(adata.X)
    groups, batch = (adata.obs[name].astype(str).to_numpy() for name in ("perturbation", "replicate"))
    lda, cos = [], []
    for left_out in np.unique(batch):
        known = batch != left_out
        library = Library.of(
            x[known], groups[known], control="control", genes=list(adata.var_names), batch=batch[known]
        )
        lda.append(names_found(library, x[~known], groups[~known], empirical_bayes_lda).mean())
        cos.append(names_found(library, x[~known], groups[~known], cosine).mean())
    assert np.mean(lda) > 0.5
    assert np.mean(lda) > np.mean(cos)
    # what interferon gamma induces goes down without its receptor, JAK2 or STAT1
    induced = [
        gene for gene in ("STAT1", "IRF1", "GBP1", "GBP2", "GBP4", "GBP5", "CXCL10", "WARS") if gene in library.genes
    ]
    best = from_genes(library, down=induced)["name"][:4]
    assert set(best) == {"IFNGR1", "IFNGR2", "JAK2", "STAT1"}
