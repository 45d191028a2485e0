"""TF activity: the regressions of scipy and least squares; p-values that are right where genes are correlated."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from scidiff.errors import InputError
from scidiff.integration.activity import regulator_activity
from scidiff.integration.ranking import consensus_rank
from scidiff.integration.regulators import rank_regulators

GENES = pd.Index([f"G{i}" for i in range(300)])


@pytest.fixture(scope="module")
def network() -> pd.DataFrame:
    """TF 0 to 19 with 15 targets each: those of the even ones are neighbours, which the cells below correlate."""
    rng = np.random.default_rng(0)
    rows = []
    for tf in range(20):
        targets = np.arange(15) + 15 * tf if tf % 2 == 0 else rng.choice(300, 15, replace=False)
        rows += [(f"TF{tf}", GENES[g], w) for g, w in zip(targets, rng.choice([1, 1, -1], 15), strict=True)]
    return pd.DataFrame(rows, columns=["source", "target", "weight"])


@pytest.fixture
def effect() -> pd.Series:
    return pd.Series(np.random.default_rng(1).normal(size=300), index=GENES)


def weights(network: pd.DataFrame) -> pd.DataFrame:
    return network.pivot_table(index="target", columns="source", values="weight", fill_value=0).reindex(
        GENES, fill_value=0
    )


def test_ulm_is_a_regression_per_tf(network, effect):
    table = rank_regulators(effect, network).set_index("name")
    for tf, w in weights(network).items():
        fit = stats.linregress(w, effect)
        assert table.loc[tf, "ulm"] == pytest.approx(fit.slope / fit.stderr)
        assert table.loc[tf, "p_value"] == pytest.approx(fit.pvalue)
    assert (table["source"] == "genes").all()
    np.testing.assert_allclose(table["fdr"], stats.false_discovery_control(table["p_value"]))


def test_rewired_is_the_score_against_networks_drawn_at_random(network, effect):
    rng = np.random.default_rng(5)
    often = network.assign(target=np.where(rng.random(len(network)) < 0.3, "G299", network["target"]))
    often = often.drop_duplicates(["source", "target"])
    effect["G299"] = 4.0  # the gene that most TFs list
    table = rank_regulators(effect, often)
    assert (table["rewired"].abs().diff().dropna() <= 0).all()
    assert (table["rank"] == np.arange(1, 21)).all()
    share = 1 + often["target"].value_counts().reindex(GENES, fill_value=0).to_numpy()
    for tf, edges in often.groupby("source"):
        w = edges["weight"].to_numpy()
        drawn = effect.to_numpy()[rng.choice(300, (20_000, len(w)), p=share / share.sum())] @ w
        score = (effect[edges["target"]].to_numpy() @ w - drawn.mean()) / drawn.std()
        assert table.set_index("name").loc[tf, "rewired"] == pytest.approx(score, abs=0.1)


def test_genes_that_many_list_speak_for_none_of_them():
    """What a treatment does to the genes that most TFs list makes many t-values large, of TFs that did nothing."""
    rng = np.random.default_rng(6)
    share = 1 / (5 + np.arange(1000))  # few genes are listed often
    rows = [
        (f"TF{tf}", f"G{gene}", 1.0)
        for tf in range(150)
        for gene in rng.choice(1000, rng.integers(8, 60), replace=False, p=share / share.sum())
    ]
    network = pd.DataFrame(rows, columns=["source", "target", "weight"])
    effect = pd.Series(rng.normal(size=1000) * 0.3, index=[f"G{gene}" for gene in range(1000)])
    effect.iloc[:40] += rng.normal(0.5, 1, 40)
    effect[network.loc[network["source"] == "TF3", "target"]] += 0.8
    table = rank_regulators(effect, network, multivariate=False)
    others = table[table["name"] != "TF3"]
    assert (others["ulm"].abs() > 1.96).mean() > 0.5
    assert (others["rewired"].abs() > 1.96).mean() < 0.08
    assert table["name"].iloc[0] == "TF3"
    assert rank_regulators(effect, network[network["source"] == "TF3"])["rewired"].iloc[0] > 3  # a network of one


def test_mlm_is_one_regression_on_all(network, effect):
    table = rank_regulators(effect, network).set_index("name")
    w = weights(network)
    x = np.column_stack([np.ones(300), w])
    beta, residual, *_ = np.linalg.lstsq(x, effect, rcond=None)
    error = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * residual / (300 - x.shape[1]))
    assert table.loc[w.columns, "mlm"].to_numpy() == pytest.approx((beta / error)[1:])
    assert "mlm" not in rank_regulators(effect, network, multivariate=False)


def test_mlm_with_twin_regulons(network, effect):
    twin = network[network["source"] == "TF0"].assign(source="TWIN")
    table = rank_regulators(effect, pd.concat([network, twin])).set_index("name")
    assert np.isfinite(table["mlm"]).all()
    assert table.loc["TWIN", "mlm"] == pytest.approx(table.loc["TF0", "mlm"])


def test_a_planted_tf_is_first_with_its_targets(network, effect):
    targets = network[network["source"] == "TF7"].set_index("target")["weight"]
    effect[targets.index] -= 3 * targets
    best = rank_regulators(effect, network).iloc[0]
    assert (best["name"], best["n_targets"], best["ulm"] < -5, best["rewired"] < -5) == ("TF7", 15, True, True)
    leading = best["leading_genes"].split(",")
    assert len(leading) == 10
    assert all(effect[gene] * targets[gene] < 0 for gene in leading)  # against the sign of the edge: lowered
    without = rank_regulators(effect, network, leave_out=leading).set_index("name").loc["TF7"]
    assert without["n_targets"] == 5
    assert not set(without["leading_genes"].split(",")) & set(leading)


def test_the_consensus_does_not_set_tfs_that_act_together_against_each_other(network, effect):
    """Three TFs with the same targets but two each, all of them raised: what one explains, another one can."""
    shared = [(name, gene, 1.0) for name in ("I", "J", "K") for gene in GENES[:20]]
    own = [(name, GENES[20 + 2 * i + j], 1.0) for i, name in enumerate("IJK") for j in range(2)]
    together = pd.concat([network, pd.DataFrame([*shared, *own], columns=network.columns)])
    effect[GENES[:20]] += 1.0
    table = rank_regulators(effect, together).set_index("name")
    assert sorted(table["consensus_rank"][["I", "J", "K"]]) == [1, 2, 3]
    assert (-table["mlm"].abs()).rank()[["I", "J", "K"]].max() > 3


def draw_cells(n: int, rng: np.random.Generator) -> np.ndarray:
    """Cells in which every fifteen neighbouring genes go together, and genes differ in level and noise."""
    programmes = np.repeat(rng.normal(size=(n, 20)), 15, axis=1)
    level = np.linspace(0.5, 2, 300)
    return np.maximum(level * (2 + 0.7 * programmes + rng.normal(size=(n, 300))), 0)


@pytest.mark.parametrize("true_effects", [False, True], ids=["control v. control", "effects that are no TF's"])
def test_p_values_of_correlated_genes(network, true_effects):
    rng = np.random.default_rng(2)
    small = {"cells": [], "genes": []}
    for _ in range(120):
        treated, control = draw_cells(60, rng), draw_cells(90, rng)
        effect = pd.Series(treated.mean(axis=0) - control.mean(axis=0), index=GENES)
        if true_effects:
            effect += rng.normal(size=300) * 0.3
        for kind, cells in (("cells", (sparse.csr_matrix(treated), control)), ("genes", None)):
            table = rank_regulators(effect, network, cells=cells, multivariate=False, per_cell=False).set_index("name")
            assert (table["source"] == kind).all()
            small[kind].append(table["p_value"].sort_index() < 0.05)
    share = {kind: np.mean(rows, axis=0) for kind, rows in small.items()}
    assert np.mean(share["cells"]) == pytest.approx(0.05, abs=0.02)
    assert share["cells"].max() < 0.14  # three standard errors of 120 draws
    if not true_effects:
        assert share["genes"].max() > 0.25  # of TFs whose targets go together


def test_genes_that_are_hardly_seen_are_no_evidence(network, effect):
    cells = np.abs(np.random.default_rng(3).normal(size=(100, 300))) + 0.1
    cells[4:, :30] = 0  # seen in 4 % of cells
    found = rank_regulators(effect, network, cells=(cells[:50], cells[50:]))
    expected = rank_regulators(effect.iloc[30:], network, cells=(cells[:50, 30:], cells[50:, 30:]))
    pd.testing.assert_frame_equal(found, expected)
    assert "TF0" not in set(found["name"])


def test_cells_that_do_not_differ(network):
    cells = np.ones((10, 300))
    table = rank_regulators(pd.Series(0.0, index=GENES), network, cells=(cells, cells))
    assert (table["p_value"] == 1).all()
    assert (table[["mlm", "rewired"]] == 0).all(axis=None)


def test_a_network_without_weights_has_equal_ones(network, effect):
    plain = rank_regulators(effect, network.drop(columns="weight"))
    pd.testing.assert_frame_equal(plain, rank_regulators(effect, network.assign(weight=1.0)))
    with pytest.raises(InputError, match="no column 'target'"):
        rank_regulators(effect, network.rename(columns={"target": "gene"}))


def test_large_networks_are_fast():
    rng = np.random.default_rng(4)
    n_genes, n_edges = 6000, 43_000
    network = pd.DataFrame({"source": rng.integers(0, 1186, n_edges), "target": rng.integers(0, n_genes, n_edges)})
    network = network.drop_duplicates().astype(str).assign(weight=1.0)
    cells = sparse.random(5000, n_genes, density=0.1, format="csr", rng=rng)
    effect = pd.Series(rng.normal(size=n_genes), index=[str(i) for i in range(n_genes)])
    started = time.process_time()
    table = rank_regulators(effect, network, cells=(cells[:2500], cells[2500:]))
    assert len(table) == 1186
    assert time.process_time() - started < 60


def test_bad_input(network, effect):
    with pytest.raises(InputError, match="no regulator has 5 targets among the 300 genes"):
        rank_regulators(effect, network.assign(target="ENSG" + network["target"]))
    with pytest.raises(InputError, match="'G0' occurs more than once"):
        rank_regulators(pd.concat([effect, effect.iloc[:1]]), network)
    with pytest.raises(InputError, match="no finite numbers"):
        rank_regulators(effect.where(effect > 0), network)
    with pytest.raises(InputError, match=r"cells have shape \(4, 299\); at least 2 cells x 300 genes"):
        rank_regulators(effect, network, cells=(np.ones((4, 299)), np.ones((4, 299))))


def test_aucell_is_welch_on_the_activity_of_cells(network):
    rng = np.random.default_rng(4)
    treated, control = draw_cells(30, rng), draw_cells(40, rng)
    planted = network[(network["source"] == "TF18") & (network["weight"] > 0)]["target"]
    treated[:, GENES.get_indexer(planted)] += 4
    effect = pd.Series(treated.mean(axis=0) - control.mean(axis=0), index=GENES)
    table = rank_regulators(effect, network, cells=(treated, control)).set_index("name")
    activity = regulator_activity(np.vstack([treated, control]), GENES, network)
    expected = np.nan_to_num(stats.ttest_ind(activity[:30], activity[30:], equal_var=False).statistic)
    assert table.loc[activity.columns, "aucell"].to_numpy() == pytest.approx(expected)
    assert table["aucell"].idxmax() == "TF18"
    assert table.loc["TF18", "consensus_rank"] == 1
    agreeing = table[["rewired", "aucell"]].mul(np.sign(table["rewired"]), axis=0)
    assert (table["consensus_rank"] == consensus_rank(agreeing)).all()
    assert "aucell" not in rank_regulators(effect, network)
    assert "aucell" not in rank_regulators(effect, network, cells=(treated, control), per_cell=False)
