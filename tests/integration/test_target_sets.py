"""Drugs by their targets: a regression on signs, the drug that does it first, and none on one gene alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scidiff.errors import DataWarning, InputError
from scidiff.integration.target_sets import action_sign, rank_target_sets, target_features

GENES = pd.Index([f"G{i}" for i in range(300)])


@pytest.mark.parametrize(
    ("action", "sign"),
    [
        ("inhibitor", -1), ("HDAC inhibitor", -1), ("antagonist|inverse agonist", -1), ("negative modulator", -1),
        ("agonist", 1), ("partial agonist", 1), ("Activator; inducer", 1), ("potentiator|binder", 1),
        ("", -1), ("binder", 0), ("modulator", 0), ("dopamine agonist|serotonin antagonist", 0),
    ],
)  # fmt: skip
def test_what_an_action_does(action, sign):
    assert action_sign(action) == sign


def listed(rows: dict[str, tuple[str, list[int]]]) -> pd.DataFrame:
    """Return a table of targets from drug -> action, targets."""
    made = [(drug, f"G{i}", action, "t.csv") for drug, (action, targets) in rows.items() for i in targets]
    return pd.DataFrame(made, columns=["drug", "target", "action", "source"])


@pytest.fixture
def effect() -> pd.Series:
    values = np.random.default_rng(0).normal(size=300)
    values[:5] -= 3
    values[5:10] += 3
    return pd.Series(values, GENES)


def test_a_drug_that_lowers_what_is_low_mimics_and_one_that_raises_it_reverses(effect):
    drugs = {
        "lowers the low": ("inhibitor", range(5)),
        "raises the high": ("agonist", range(5, 10)),
        "raises the low": ("agonist", range(5)),
        "other": ("inhibitor", range(20, 40)),
    }
    targets = listed(drugs)
    table = rank_target_sets(effect, targets)
    assert set(table["name"][:2]) == {"lowers the low", "raises the high"}
    assert table["name"].iloc[-1] == "raises the low"
    assert table["p_value"].iloc[0] < 1e-3
    assert table["p_value"].iloc[-1] > 0.999
    reverse = rank_target_sets(effect, targets, direction="reverse")
    assert reverse["name"].iloc[0] == "raises the low"
    score = table.set_index("name")["target_set"]
    np.testing.assert_allclose(score, reverse.set_index("name")["target_set"][score.index])
    for drug, (action, genes) in drugs.items():
        signs = np.zeros(300)
        signs[list(genes)] = action_sign(action)
        line = stats.linregress(signs, effect)
        assert score[drug] == pytest.approx(line.slope / line.stderr)
    first = table.iloc[0]
    assert (first["n_targets"], first["direction"], first["source"]) == (5, "mimic", "t.csv")
    assert set(first["leading_genes"].split(",")) <= set(first["known_targets"].split(","))


def test_sets_too_small_are_refused_with_the_reason(effect):
    targets = listed({"A": ("inhibitor", [0, 1, 2]), "B": ("inhibitor", [3, 4]), "C": ("binder", range(9))})
    with pytest.warns(DataWarning, match=r"2 of 3 drugs are not scored .* \(first: 'B', 2\)"):
        assert rank_target_sets(effect, targets)["name"].tolist() == ["A"]
    with pytest.raises(InputError, match="each has fewer than 3 targets that are measured and known to be raised or"):
        rank_target_sets(effect, targets, leave_out=["G0"])
    with pytest.raises(InputError, match="direction='up'"):
        rank_target_sets(effect, targets, direction="up")


def test_targets_as_features():
    targets = listed(
        {"A": ("inhibitor", [0, 1]), "B": ("agonist", [1, 2]), "C": ("antagonist", [2, 3]), "D": ("", [9])}
    )
    features = target_features(targets, ["b", "A", "C"])
    expected = pd.DataFrame({"G1": [1.0, -1, 0], "G2": [1.0, 0, -1]}, index=["b", "A", "C"])
    pd.testing.assert_frame_equal(features, expected)
    synonym = pd.Series({"alpha": "DB1", "a": "DB1"})
    assert target_features(targets, ["alpha", "B"], synonym).loc["alpha"].tolist() == [-1]
    with pytest.raises(InputError, match="'E' is not in the table of targets"):
        target_features(targets, ["A", "E"])
    with pytest.raises(InputError, match="no two of these drugs share a target"):
        target_features(targets, ["A", "D"])


def test_sources_that_disagree_about_a_target_do_not_count(effect):
    targets = listed({"A": ("inhibitor", [0, 1, 2, 3])})
    more = pd.concat([targets, listed({"A": ("agonist", [3])})])
    pd.testing.assert_series_equal(
        rank_target_sets(effect, more)["target_set"], rank_target_sets(effect, targets[:3])["target_set"]
    )
