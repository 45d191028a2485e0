"""Ranking drugs: the planted drug comes first, in both directions; the columns say what they should."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scidiff.errors import DataWarning, InputError
from scidiff.integration import connectivity
from scidiff.integration.drugs import METHODS, rank_drugs, up_down
from scidiff.integration.signatures import Signatures
from scidiff.integration.target_sets import rank_target_sets

GENES = pd.Index([f"G{i}" for i in range(200)])
NAMES = [f"drug {i}" for i in range(12)]


@pytest.fixture(scope="module")
def programmes() -> np.ndarray:
    programmes = np.random.default_rng(0).normal(size=(12, 200))
    programmes[11] = -programmes[10]
    return programmes


@pytest.fixture(scope="module")
def library(programmes) -> Signatures:
    """Each drug at doses 1 and 10, the higher with the stronger change, three signatures each."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame(
        [(name, dose) for name in NAMES for dose in (1, 10) for _ in range(3)], columns=["name", "dose"]
    )
    strength = np.where(table["dose"] == 10, 2.0, 0.3)[:, None]
    drug = table["name"].map(NAMES.index).to_numpy()
    table.index = [f"s{i}" for i in range(len(table))]
    return Signatures(strength * programmes[drug] + rng.normal(size=(72, 200)), GENES, table, "made.gct")


@pytest.fixture
def effect(programmes) -> pd.Series:
    return pd.Series(programmes[10] + np.random.default_rng(2).normal(size=200), index=GENES)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "enrichment"])
def test_the_drug_is_found_by_every_score(library, effect, method):
    table = rank_drugs(effect, library, methods=[method])
    assert table["name"].iloc[0] == "drug 10"
    assert table["name"].iloc[-1] == "drug 11"  # which does the opposite
    assert (table["rank"] == np.arange(1, 13)).all()
    reverse = rank_drugs(effect, library, methods=[method], direction="reverse")
    assert reverse["name"].iloc[0] == "drug 11"
    np.testing.assert_allclose(reverse.set_index("name")[method], table.set_index("name")[method][reverse["name"]])


TARGETS = pd.DataFrame(
    [(name, f"DB{i}", gene) for i, name in enumerate(NAMES[:11]) for gene in GENES[4 * i : 4 * i + 4]]
    + [("DRUG-11", "DB11", "G0")],
    columns=["drug", "identifier", "target"],
)


def test_columns(library, effect, programmes):
    with pytest.warns(DataWarning, match="1 of 12 drugs are not scored by their targets"):
        table = rank_drugs(effect, library, targets=TARGETS, posterior=pd.Series({"DRUG 10": 0.75, "other": 0.25}))
    assert list(table) == [
        "kind", "name", "rank", "whitened_spearman", "spearman", "weighted_connectivity", "zhang", "consensus_rank",
        "direction", "p_value", "fdr", "leading_genes", "n_signatures", "dose", "dose_trend", "known_targets",
        "target_set", "posterior", "source",
    ]  # fmt: skip
    best = table.iloc[0]
    told = best[["kind", "direction", "n_signatures", "dose", "known_targets", "posterior", "source"]]
    assert told.tolist() == ["drug", "mimic", 6, 10, "G40,G41,G42,G43", 0.75, "made.gct"]
    assert best["p_value"] < 1e-4
    assert best["fdr"] == pytest.approx(min(1, 12 * best["p_value"]), rel=0.01)
    leading = best["leading_genes"].split(",")
    assert all(np.sign(effect[gene]) == np.sign(programmes[10, GENES.get_loc(gene)]) for gene in leading)
    assert sorted(table["consensus_rank"]) == list(range(1, 13))
    rows = table.set_index("name")
    assert rows["posterior"].notna().sum() == 1
    assert rows["target_set"].isna().tolist() == (rows.index == "drug 11").tolist()
    alone = rank_target_sets(effect, TARGETS[:-1]).set_index("name")["target_set"]
    np.testing.assert_allclose(rows.loc[alone.index, "target_set"], alone)


def test_targets_are_joined_by_identifiers_and_by_all_names_of_a_drug(library, effect):
    targets = pd.DataFrame(
        {"drug": ["Dactolisib", "drug 9", "ignored"], "identifier": ["DB11651", "DB9", "BRD-1"], "target": list("XYZ")}
    )
    names = pd.Series({"dactolisib": "DB11651", "drug10": "DB11651", "drug11": "DB0"})

    def known(signatures: Signatures, **names: pd.Series) -> pd.Series:
        with pytest.warns(DataWarning, match="no drug can be scored by its targets: .* .the most: 0"):
            return rank_drugs(effect, signatures, targets=targets, **names).set_index("name")["known_targets"]

    assert known(library)[["drug 10", "drug 9"]].tolist() == ["", "Y"]
    assert known(library, drug_names=names)[["drug 10", "drug 9", "drug 11"]].tolist() == ["X", "Y", ""]
    table = library.table.assign(pert_id=np.where(library.table["name"] == "drug 9", "BRD-1", "-666"))
    assert known(Signatures(library.values, GENES, table))["drug 9"] == "Z"  # an identifier goes before a name


def test_one_drug_under_two_names(library, effect):
    """The library writes drug 10 in two ways; by its identifier it is the same, and has all its signatures."""
    of_10 = library.table["name"] == "drug 10"
    table = library.table.assign(pert_id=np.where(of_10, "BRD-10", "-666"))
    table.loc[of_10 & (table["dose"] == 1), "name"] = "compound X"
    together = rank_drugs(effect, Signatures(library.values, GENES, table, "made.gct"))
    assert together["name"].iloc[0] == "compound X / drug 10"
    pd.testing.assert_frame_equal(
        together.drop(columns="name"), rank_drugs(effect, library).drop(columns="name"), check_exact=False
    )
    apart = rank_drugs(effect, Signatures(library.values, GENES, table.drop(columns="pert_id")))
    assert len(apart) == len(together) + 1
    assert apart["name"].iloc[0] == "drug 10"


@pytest.fixture(scope="module")
def dosed(programmes) -> Signatures:
    """Four drugs at five doses; of the first, 1 uM does most; of the second, more does more; two do something else."""
    rng = np.random.default_rng(7)
    strength = {"A": [0, 1, 3, 1, 0], "B": [0, 0.3, 0.6, 0.9, 1.2], "C": [1] * 5, "D": [1] * 5}
    doses = ["10 nM", "100 nM", "1 uM", "10 uM", "100 uM"]
    rows = [(drug, dose, size) for drug in strength for dose, size in zip(doses, strength[drug], strict=True)] * 2
    table = pd.DataFrame(rows, columns=["name", "dose", "size"])
    what = {"A": 1, "B": 1, "C": 2, "D": 3}
    values = table["size"].to_numpy()[:, None] * programmes[table["name"].map(what)]
    return Signatures(values + 0.3 * rng.normal(size=values.shape), GENES, table.drop(columns="size"))


@pytest.mark.parametrize("direction", ["mimic", "reverse"])
def test_each_dose_has_its_rank_and_a_drug_its_best_dose(dosed, programmes, direction):
    sign = 1 if direction == "mimic" else -1
    effect = pd.Series(sign * programmes[1] + 0.3 * np.random.default_rng(8).normal(size=200), GENES)
    drugs = rank_drugs(effect, dosed, direction=direction).set_index("name")
    each = rank_drugs(effect, dosed, methods=["cosine", "whitened_spearman"], direction=direction, each_dose=True)
    assert each["name"].iloc[0] == "A @ 1 uM"
    assert (len(each), each["n_signatures"].tolist()) == (20, [2] * 20)
    assert each["p_value"].iloc[0] < 1e-3
    assert each["p_value"].iloc[-1] > 0.2
    scores = each.set_index(["dose", "name"])["cosine"]
    for drug in "ABCD":
        own = scores[[(dose, f"{drug} @ {dose}") for dose in ("10 nM", "100 nM", "1 uM", "10 uM", "100 uM")]]
        assert drugs.loc[drug, "dose_trend"] == pytest.approx(stats.spearmanr(range(5), own).statistic)
        assert drugs.loc[drug, "dose"] == (sign * own).idxmax()[0]
    assert drugs.loc["A", "dose"] == "1 uM"
    assert sign * drugs.loc["B", "dose_trend"] > 0.85
    code = pd.factorize(dosed.table["name"] + dosed.table["dose"])[0]
    drug = pd.factorize(dosed.table["name"])[0]
    whitened = connectivity.WhitenedSpearman.fit(dosed.values, drug)
    expected = connectivity.cosine(
        whitened.profile(effect.to_numpy(), same_units=False), whitened.profiles(dosed.values, code)
    )
    np.testing.assert_allclose(np.sort(each["whitened_spearman"]), np.sort(expected))


def test_doses_that_are_no_numbers(dosed, programmes):
    effect = pd.Series(programmes[1], GENES)
    some = dosed.table.assign(dose=np.resize(["-666", "low", "high", "10 ng/ml", "1 uM"], len(dosed)))
    table = rank_drugs(effect, Signatures(dosed.values, GENES, some))
    assert table["dose_trend"].isna().all()  # two numbers each
    assert set(table["dose"]) <= set(some["dose"])
    each = rank_drugs(effect, Signatures(dosed.values, GENES, some), each_dose=True)["name"]
    assert {"A", "A @ low", "A @ 10 ng/ml"} <= set(each)
    with pytest.raises(InputError, match="has no column dose"):
        rank_drugs(effect, Signatures(dosed.values, GENES, some.drop(columns="dose")), each_dose=True)


def test_scores_are_the_pure_functions(library, effect):
    table = (
        rank_drugs(effect, library, methods=["whitened_spearman", "cosine"], same_units=True)
        .set_index("name")
        .loc[NAMES]
    )
    codes = library.table["name"].map(NAMES.index).to_numpy()
    drugs = connectivity.group_means(library.values.astype(float), codes)
    centre = drugs.mean(axis=0)
    np.testing.assert_allclose(table["cosine"], connectivity.cosine(effect.to_numpy() - centre, drugs - centre))
    score = connectivity.WhitenedSpearman.fit(library.values, codes)
    np.testing.assert_allclose(table["whitened_spearman"], score(effect.to_numpy()))
    z = table["whitened_spearman"] / connectivity.null_spread(library.values.astype(float), codes)
    np.testing.assert_allclose(table["p_value"], stats.norm.sf(z))


def test_genes_are_joined_by_name(library, effect):
    shuffled = effect.sample(frac=1, random_state=0).iloc[:150]
    foreign = pd.Series(100.0, index=["not measured"])
    found = rank_drugs(pd.concat([foreign, shuffled]), library)
    pd.testing.assert_frame_equal(found, rank_drugs(effect[effect.index.isin(shuffled.index)], library))
    left_out = rank_drugs(effect, library, leave_out=GENES[:50])
    pd.testing.assert_frame_equal(left_out, rank_drugs(effect.iloc[50:], library))


def test_the_smallest_libraries(programmes):
    """Of three signatures none can be left out, so nobody knows what noise scores; two say nothing of their genes."""
    rng = np.random.default_rng(4)

    def made(drugs: list[int]) -> Signatures:
        table = pd.DataFrame({"name": [NAMES[drug] for drug in drugs]})
        return Signatures(programmes[drugs] + 0.1 * rng.normal(size=(len(drugs), 200)), GENES, table)

    effect = pd.Series(programmes[4], index=GENES)
    three, four = rank_drugs(effect, made([3, 4, 5])), rank_drugs(effect, made([3, 4, 5, 6]))
    assert three["name"].iloc[0] == four["name"].iloc[0] == NAMES[4]
    assert three[["p_value", "fdr"]].isna().all(axis=None)
    assert four["p_value"].iloc[0] < 0.2
    assert rank_drugs(effect, made([4, 4, 4, 4]))["p_value"].isna().all()  # a single drug
    with pytest.raises(InputError, match="the library has 2: read more, or name other methods="):
        rank_drugs(effect, made([3, 4]))


def test_replicates_are_one_query(library, programmes):
    rng = np.random.default_rng(3)
    replicates = pd.DataFrame(programmes[[10] * 4].T * [3, 1, 1, 1] + rng.normal(size=(200, 4)), index=GENES)
    assert rank_drugs(replicates, library)["name"].iloc[0] == "drug 10"


def test_up_and_down_genes(library, programmes):
    order = np.argsort(programmes[10])
    table = rank_drugs(up_down(GENES[order[-15:]], GENES[order[:15]]), library)
    assert table["name"].iloc[0] == "drug 10"
    with pytest.raises(InputError, match="'A' is to go up and down"):
        up_down(["A"], ["A"])
    with pytest.raises(InputError, match="at least one gene"):
        up_down([])


@pytest.fixture(scope="module")
def sets(programmes) -> Signatures:
    values = np.zeros((12, 200))
    for row, programme in zip(values, programmes, strict=True):
        row[np.argsort(-programme)[:20]] = 1
        row[np.argsort(programme)[:20]] = -1
    return Signatures(values, GENES, pd.DataFrame({"name": NAMES}), "made.gmt")


def test_gene_sets(sets, effect):
    table = rank_drugs(effect, sets)
    assert {"cosine", "enrichment"} <= set(table)
    assert table["name"].iloc[[0, -1]].tolist() == ["drug 10", "drug 11"]
    assert rank_drugs(effect, sets, methods=["enrichment"])["name"].iloc[0] == "drug 10"


def test_p_values_of_sets_whose_genes_go_together():
    """Control against control: cells know that neighbouring genes, of which half of the sets are, go together."""
    rng = np.random.default_rng(6)
    values = np.zeros((20, 200))
    for i, row in enumerate(values):
        row[np.arange(10) + 10 * (i // 2) if i % 2 == 0 else rng.choice(200, 10, replace=False)] = 1
    sets = Signatures(values, GENES, pd.DataFrame({"name": [f"set {i}" for i in range(20)]}))
    small = {"cells": [], "genes": []}
    for i in range(60):
        programmes = np.repeat(rng.normal(size=(100, 20)), 10, axis=1)
        cells = np.maximum(3 + 0.7 * programmes + rng.normal(size=(100, 200)), 0)
        treated, control = cells[:40], cells[40:]
        effect = pd.Series(treated.mean(axis=0) - control.mean(axis=0), GENES)
        for kind, given in (("cells", (treated, control)), ("genes", None)):
            table = rank_drugs(effect, sets, methods=["cosine"], cells=given, direction=["mimic", "reverse"][i % 2])
            small[kind].append(table.set_index("name")["p_value"].sort_index() < 0.05)
    assert np.mean(small["cells"]) == pytest.approx(0.05, abs=0.02)
    assert np.mean(small["cells"], axis=0).max() < 0.17
    assert np.mean(small["genes"], axis=0).max() > 0.2


def test_small_overlaps_are_refused(sets, library, effect):
    with pytest.raises(InputError, match=r"shares 9 genes with made.gct, at least 10"):
        rank_drugs(effect.iloc[:9], library)
    with pytest.raises(InputError, match=r"no set of made.gmt shares 10 genes with the effect"):
        rank_drugs(effect.iloc[:20], sets)
    with pytest.warns(DataWarning, match=r"\d+ of 12 gene sets are left out, which share fewer than 10 genes"):
        table = rank_drugs(effect.iloc[:50], sets)
    enough = (sets.values[:, :50] != 0).sum(axis=1) >= 10
    assert sorted(table["name"]) == sorted(np.array(NAMES)[enough])


def test_bad_requests(library, effect):
    with pytest.raises(InputError, match="direction='mimick'; nearest: 'mimic'"):
        rank_drugs(effect, library, direction="mimick")
    with pytest.raises(InputError, match="'cosin'; nearest: 'cosine'"):
        rank_drugs(effect, library, methods=["cosin"])
    with pytest.raises(InputError, match="no finite numbers"):
        rank_drugs(effect.where(effect > 0), library)
    with pytest.raises(InputError, match="'G0' occurs more than once"):
        rank_drugs(pd.concat([effect, effect.iloc[:1]]), library)
