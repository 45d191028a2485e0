"""One drug under several names: joined by what identifies it, through any chain of rows, and by nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scidiff.integration.drug_identity import matching, one_drug


def together(table: pd.DataFrame) -> np.ndarray:
    """Return who is one drug with whom, by spreading labels until nothing changes: the slow way."""
    labels = np.arange(len(table))
    for _ in range(len(table)):
        for column in table:
            for value in set(table[column]) - {"-666", ""}:
                rows = (table[column] == value).to_numpy()
                labels[rows] = labels[rows].min()
    return labels[:, None] == labels


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_share_a_name_or_an_identifier_are_one_drug(seed):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "name": [f"drug {i}" for i in rng.integers(12, size=20)],
            "pert_id": [f"BRD-{i}" if i else "-666" for i in rng.integers(12, size=20)],
            "chembl_id": [f"CHEMBL{i}" if i < 9 else "" for i in rng.integers(12, size=20)],
        }
    )
    codes, names = one_drug(table)
    np.testing.assert_array_equal(codes[:, None] == codes, together(table))
    assert pd.unique(codes).tolist() == list(range(len(names)))
    for code, name in enumerate(names):
        assert name.split(" / ") == list(pd.unique(table["name"][codes == code]))


def test_names_are_joined_by_a_vocabulary_only():
    table = pd.DataFrame({"name": ["BEZ-235", "Dactolisib", "bez235", "A@1.0", "A@10"]})
    assert one_drug(table)[0].tolist() == [0, 1, 2, 3, 4]  # what is written alike without signs need not be one
    codes, names = one_drug(table, pd.Series({"bez235": "DB11651", "dactolisib": "DB11651"}))
    assert codes.tolist() == [0, 0, 0, 1, 2]
    assert names[0] == "BEZ-235 / Dactolisib"  # a spelling is shown once


def test_between_tables_an_identifier_goes_before_a_name():
    mine = pd.DataFrame({"name": ["a", "b", "c", "d"], "pert_id": ["BRD-1", "-666", "BRD-3", "nan"]})
    theirs = pd.DataFrame({"drug": ["c", "B", "a", "x"], "identifier": ["BRD-9", "", "BRD-7", "brd1"]})
    match = matching(mine, one_drug(mine)[0], theirs, one_drug(theirs)[0], None)
    assert match.tolist() == [3, 1, 0, -1]
