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


def test_columns(library, effect, programmes):
    targets = pd.DataFrame({"drug": ["DRUG-10", "x"], "identifier": ["DB1", "DB2"], "target": ["HDAC1", "Y"]})
    table = rank_drugs(effect, library, targets=targets)
    assert list(table) == [
        "kind", "name", "rank", "whitened_spearman", "spearman", "weighted_connectivity", "zhang", "consensus_rank",
        "direction", "p_value", "fdr", "leading_genes", "n_signatures", "dose", "known_targets", "source",
    ]  # fmt: skip
    best = table.iloc[0]
    told = best[["kind", "direction", "n_signatures", "dose", "known_targets", "source"]]
    assert told.tolist() == ["drug", "mimic", 6, 10, "HDAC1", "made.gct"]
    assert best["p_value"] < 1e-4
    assert best["fdr"] == pytest.approx(min(1, 12 * best["p_value"]), rel=0.01)
    leading = best["leading_genes"].split(",")
    assert all(np.sign(effect[gene]) == np.sign(programmes[10, GENES.get_loc(gene)]) for gene in leading)
    assert sorted(table["consensus_rank"]) == list(range(1, 13))


def test_targets_are_joined_by_identifiers_and_by_all_names_of_a_drug(library, effect):
    targets = pd.DataFrame(
        {"drug": ["Dactolisib", "drug 9", "ignored"], "identifier": ["DB11651", "DB9", "BRD-1"], "target": list("XYZ")}
    )
    names = pd.Series({"dactolisib": "DB11651", "drug10": "DB11651", "drug11": "DB0"})
    known = rank_drugs(effect, library, targets=targets).set_index("name")["known_targets"]
    assert (known["drug 10"], known["drug 9"]) == ("", "Y")
    known = rank_drugs(effect, library, targets=targets, drug_names=names).set_index("name")["known_targets"]
    assert (known["drug 10"], known["drug 9"], known["drug 11"]) == ("X", "Y", "")
    table = library.table.assign(pert_id=np.where(library.table["name"] == "drug 9", "BRD-1", "-666"))
    own = Signatures(library.values, GENES, table)
    known = rank_drugs(effect, own, targets=targets).set_index("name")["known_targets"]
    assert known["drug 9"] == "Z"  # an identifier goes before a name


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
