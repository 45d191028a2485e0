"""Known answers on real cells and plates: interferon's and panobinostat's regulators and drugs."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scidiff as sd
from scidiff.data import log1p_cp10k
from scidiff.errors import DataWarning, InputError
from scidiff.integration.connectivity import WhitenedSpearman
from scidiff.integration.drugs import rank_drugs, up_down
from scidiff.integration.networks import read_network
from scidiff.integration.regulators import rank_regulators
from scidiff.integration.signatures import Signatures, read_signatures

pytestmark = pytest.mark.real
MAPK = {"PD-184352", "PLX-4720", "AZD-8330", "PD-0325901", "trametinib"}  # BRAF and MEK inhibitors beside vemurafenib
HDAC = ("inostat", "AR-42", "M344")


@pytest.fixture(scope="module")
def collectri(real_data) -> pd.DataFrame:
    return read_network(real_data / "collectri_human.tsv.gz")


def effect_of(adata: ad.AnnData, treated: np.ndarray, control: np.ndarray):
    """Return the effect, and the treated and control cells."""
    x = log1p_cp10k(adata.X)
    cells = x[np.flatnonzero(treated)], x[np.flatnonzero(control)]
    means = [np.asarray(group.mean(axis=0)).ravel() for group in cells]
    return pd.Series(means[0] - means[1], index=adata.var_names), cells


def test_networks(real_data, collectri):
    assert (len(collectri), collectri["source"].nunique()) == (43178, 1186)
    dorothea = read_network(real_data / "dorothea_hs_ABC.tsv.gz")
    assert (len(dorothea), dorothea["source"].nunique()) == (13223, 271)
    trrust = read_network(real_data / "trrust_v2_human.tsv.gz")
    assert set(trrust["weight"]) == {-1.0, 1.0}
    assert 4000 < len(trrust) < 9396  # those with a sign


@pytest.mark.parametrize("cell_type", ["CD4 T", "B", "CD14 Mono", "NK"])
def test_interferon_works_through_stat1_irf9_stat2(real_data, collectri, cell_type):
    adata = ad.read_h5ad(real_data / "kang2018_pbmc_ifnb_2k.h5ad")
    adata = adata[adata.obs["cell_type"] == cell_type]
    control = (adata.obs["condition"] == "control").to_numpy()
    effect, cells = effect_of(adata, ~control, control)
    table = rank_regulators(effect, collectri, cells=cells).set_index("name")
    assert table["rank"][["STAT1", "IRF9"]].max() <= 3
    assert table["rank"]["STAT2"] <= 7
    assert (table["ulm"][["STAT1", "IRF9", "STAT2"]] > 0).all()
    assert table["fdr"][["STAT1", "IRF9", "STAT2"]].max() < 1e-6
    assert table["consensus_rank"][["STAT1", "IRF9"]].max() <= 3
    assert table["consensus_rank"]["STAT2"] <= 7
    assert (-table["aucell"]).rank()[["STAT1", "IRF9", "STAT2"]].max() <= 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
def test_cells_designed_from_four_genes_name_the_regulators_of_interferon(real_data, collectri):
    """A model that was never told who is stimulated; the four genes, targets themselves, are no evidence."""
    adata = ad.read_h5ad(real_data / "kang2018_pbmc_ifnb_2k.h5ad")
    adata = adata[adata.obs["cell_type"].isin(["CD4 T", "B", "CD14 Mono", "NK"])].copy()
    genes = adata.var_names[np.ravel((adata.X > 0).mean(axis=0)) >= 0.05]
    config = sd.TrainConfig(steps=400, seed=0)
    model = sd.ScIDiff.fit(adata, sd.Schema(context="cell_type"), genes=genes, width=64, n_blocks=1, config=config)
    treated = (adata.obs["condition"] != "control").to_numpy()
    for kind in ("CD4 T", "B", "CD14 Mono", "NK"):
        own = (adata.obs["cell_type"] == kind).to_numpy()
        level = pd.Series(np.ravel(log1p_cp10k(adata[own & treated, genes].X).mean(axis=0)), genes)
        wish = sd.Phenotype(up=[f"{gene}={level[gene]:.3f}" for gene in ("ISG15", "IFI6", "IFIT3", "MX1")])
        designed = model.design(wish, 150, {"cell_type": kind}, seed=0, n_steps=8)
        rank = model.attribute(designed, reference=adata[~treated], network=collectri).set_index("name")["rank"]
        assert rank[["STAT1", "IRF9"]].max() <= 3, kind
        assert rank["STAT2"] <= 7, kind


@pytest.mark.parametrize("knockout", ["IFNGR1", "IFNGR2", "JAK2", "STAT1"])
def test_knockouts_of_the_interferon_path_lower_stat1(real_data, collectri, knockout):
    adata = ad.read_h5ad(real_data / "papalexi2021_thp1_crispr_20k.h5ad")
    label = adata.obs["perturbation"].astype(str).to_numpy()
    effect, cells = effect_of(adata, label == knockout, label == "control")
    table = rank_regulators(effect, collectri, cells=cells, leave_out=[knockout])
    for score in ("rewired", "ulm"):
        assert table.loc[table[score].idxmin(), "name"] == "STAT1"


def test_most_regulators_do_not_tell_two_types_of_cells_apart(real_data, collectri):
    """Scores of the many spread by 1 against rewired networks; genes that are listed often spread t-values by more."""
    adata = ad.read_h5ad(real_data / "kang2018_pbmc_ifnb_2k.h5ad")
    adata = adata[adata.obs["condition"] == "control"]
    spread = []
    for kind in ("CD4 T", "B", "CD14 Mono", "NK"):
        own = (adata.obs["cell_type"] == kind).to_numpy()
        effect, cells = effect_of(adata, own, ~own)
        table = rank_regulators(effect, collectri, cells=cells, multivariate=False, per_cell=False)
        spread.append(table[["rewired", "ulm"]].quantile(0.75) - table[["rewired", "ulm"]].quantile(0.25))
    rewired, ulm = np.mean(spread, axis=0) / 1.349
    assert rewired == pytest.approx(1, abs=0.15)
    assert ulm > 1.3


def test_control_against_control(real_data, collectri):
    adata = ad.read_h5ad(real_data / "kang2018_pbmc_ifnb_2k.h5ad")
    adata = adata[(adata.obs["cell_type"] == "CD14 Mono") & (adata.obs["condition"] == "control")]
    x = log1p_cp10k(adata.X)
    seen = np.flatnonzero(x.getnnz(axis=0) >= 0.05 * len(adata))
    x, genes = x[:, seen], adata.var_names[seen]
    rng = np.random.default_rng(0)
    small, found = {True: [], False: []}, []
    for _ in range(200):
        half = rng.permutation(len(adata)) < len(adata) // 2
        cells = x[half], x[~half]
        effect = pd.Series(np.asarray(cells[0].mean(axis=0) - cells[1].mean(axis=0)).ravel(), index=genes)
        for known, given in ((True, cells), (False, None)):
            table = rank_regulators(effect, collectri, cells=given, multivariate=False, per_cell=False, min_detected=0)
            small[known].append((table.set_index("name")["p_value"] < 0.05).sort_index())
            if known:
                found.append((table["fdr"] < 0.05).any())
    share = {known: np.mean(rows, axis=0) for known, rows in small.items()}  # of the splits, per TF
    assert 0.04 <= np.median(share[True]) <= 0.06
    assert 0.04 <= np.mean(share[True]) <= 0.06
    assert np.mean(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)  # splits in which any TF is called
    assert np.median(share[False]) > 0.07  # what taking genes as independent does


def test_metallothioneins_and_small_overlaps(real_data):
    adata = ad.read_h5ad(real_data / "zhao2021_gbm_panobinostat_5k.h5ad")
    control = (adata.obs["condition"] == "ctrl").to_numpy()
    effect, _ = effect_of(adata, ~control, control)
    assert {"MT1X", "MT2A"} <= set(effect.nlargest(5).index)
    sets = read_signatures(real_data / "sigrecon_sc_drug_signatures_up.gmt.gz")
    with pytest.warns(DataWarning, match="of 818 gene sets are left out, which share fewer than 10 genes"):
        table = rank_drugs(effect, sets)
    overlap = (sets.values[:, sets.genes.isin(effect.index)] > 0).sum(axis=1)
    assert set(table["name"]) == set(sets.table["name"][overlap >= 10])
    few = sets.take(np.flatnonzero(overlap < 10))
    with pytest.raises(InputError, match="shares 10 genes with the effect"):
        rank_drugs(effect, few)


@pytest.mark.parametrize("line", ["sciplex.a549", "sciplex.mcf7", "sciplex.k562"])
def test_panobinostat_is_like_hdac_inhibitors_of_other_lines(real_data, line):
    sets = read_signatures(real_data / "sigrecon_sc_drug_signatures_up.gmt.gz")
    here = sets.table["name"].str.startswith(line).to_numpy()
    own = np.flatnonzero(here & sets.table["name"].str.contains("Panobinostat"))[0]
    others = sets.take(np.flatnonzero(~here))
    nearest = rank_drugs(up_down(sets.genes[sets.values[own] > 0]), others, min_overlap=5)["name"].head(5)
    assert all(any(part in name for part in HDAC) for name in nearest), list(nearest)


@pytest.fixture(scope="module")
def plate(real_data):
    """Return the plate's wells as differences to DMSO, and the drug in each."""
    adata = ad.read_h5ad(real_data / "lincs_l1000_ljp_a375_24h.h5ad")
    drug = adata.obs["pert_iname"].astype(str).to_numpy()
    values = adata.X - adata.X[drug == "DMSO"].mean(axis=0)
    table = pd.DataFrame({"name": drug, "dose": adata.obs["pert_dose"].to_numpy()}, index=adata.obs_names)
    return Signatures(values, adata.var_names, table, "LJP005")


def test_vemurafenib_is_like_braf_and_mek_inhibitors(plate):
    name = plate.table["name"]
    effect = pd.Series(plate.values[name == "vemurafenib"].mean(axis=0), index=plate.genes)
    library = plate.take(np.flatnonzero(~name.isin(["vemurafenib", "DMSO"])))
    table = rank_drugs(effect, library)
    assert set(table["name"].head(4)) <= MAPK
    assert table["fdr"].iloc[0] < 0.05
    assert {"DUSP6", "FOSL1"} <= set(table["leading_genes"].iloc[0].split(","))
    assert set(rank_drugs(effect, library, methods=["spearman"])["name"].head(4)) <= MAPK | {"BRD-K24496482"}


def test_doses_of_braf_and_mek_inhibitors_come_before_other_drugs(plate):
    name = plate.table["name"]
    effect = pd.Series(plate.values[name == "vemurafenib"].mean(axis=0), index=plate.genes)
    library = plate.take(np.flatnonzero(~name.isin(["vemurafenib", "DMSO"])))
    each = rank_drugs(effect, library, each_dose=True)
    assert {one.split(" @ ")[0] for one in each["name"].head(12)} <= MAPK
    assert len(each) > 5 * library.table["name"].nunique()
    drugs = rank_drugs(effect, library).set_index("name")
    assert drugs.loc[["PLX-4720", "trametinib", "PD-184352", "AZD-8330"], "dose_trend"].min() > 0


def test_sets_of_drugs_in_control_against_control(real_data):
    adata = ad.read_h5ad(real_data / "kang2018_pbmc_ifnb_2k.h5ad")
    adata = adata[(adata.obs["cell_type"] == "CD14 Mono") & (adata.obs["condition"] == "control")]
    x = log1p_cp10k(adata.X)
    seen = np.flatnonzero(x.getnnz(axis=0) >= 0.05 * len(adata))
    x, genes = x[:, seen], adata.var_names[seen]
    sets = read_signatures(real_data / "sigrecon_sc_drug_signatures_up.gmt.gz")
    kept = (sets.values[:, sets.genes.isin(genes)] > 0).sum(axis=1) >= 10
    sets = sets.take(np.flatnonzero(kept)[::8])
    rng = np.random.default_rng(0)
    small, found = [], []
    for _ in range(60):
        half = rng.permutation(len(adata)) < len(adata) // 2
        cells = x[half], x[~half]
        effect = pd.Series(np.asarray(cells[0].mean(axis=0) - cells[1].mean(axis=0)).ravel(), index=genes)
        table = rank_drugs(effect, sets, methods=["cosine"], cells=cells)
        small.append(table.set_index("name")["p_value"].sort_index() < 0.05)
        found.append((table["fdr"] < 0.05).any())
    assert 0.035 <= np.mean(small) <= 0.065
    assert np.mean(small, axis=0).max() <= 0.2
    assert np.mean(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_drugs_are_recovered_from_the_other_half_of_their_wells(plate):
    name = plate.table["name"].to_numpy()
    drugs = [drug for drug in np.unique(name) if drug != "DMSO" and (name == drug).sum() >= 4]
    rng = np.random.default_rng(0)
    found, reciprocal = [], []
    for _ in range(5):
        wells = [rng.permutation(np.flatnonzero(name == drug)) for drug in drugs]
        library = [one[: len(one) // 2] for one in wells]
        codes = np.repeat(np.arange(len(drugs)), [len(one) for one in library])
        score = WhitenedSpearman.fit(plate.values[np.concatenate(library)], codes)
        scores = np.array([score(plate.values[one[len(one) // 2 :]]) for one in wells])
        rank = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
        found.append((rank == 1).mean())
        reciprocal.append((1 / rank).mean())
    assert np.mean(found) >= 0.68
    assert np.mean(reciprocal) >= 0.78
