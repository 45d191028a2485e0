"""The consensus of rankings, and cells that carry theirs through a file."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scidiff.errors import InputError
from scidiff.integration import agreement, annotated, consensus_rank


def test_one_method_is_its_own_consensus():
    assert consensus_rank(pd.DataFrame({"a": [0.1, 3, -2, 1]})).tolist() == [3, 1, 4, 2]


def test_it_is_the_product_of_ranks():
    scores = pd.DataFrame({"a": [4, 3, 2, 1.0], "b": [1, 4, 3, 2.0], "c": [10, 9, 8, 7.0]})
    # ranks 1 4 1, 2 1 2, 3 2 3, 4 3 4: products 4, 4, 18, 48; the first method decides between the first two
    assert consensus_rank(scores).tolist() == [1, 2, 3, 4]
    assert consensus_rank(scores[["b", "a", "c"]]).tolist() == [2, 1, 3, 4]


def test_units_do_not_matter_and_nobody_wins_by_having_no_score():
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(rng.normal(size=(50, 3)), columns=list("abc"))
    other = scores.assign(b=np.exp(9 * scores["b"]), c=1e-6 * scores["c"] - 5)
    assert (consensus_rank(scores) == consensus_rank(other)).all()
    assert sorted(consensus_rank(scores)) == list(range(1, 51))
    best = scores.sum(axis=1).idxmax()
    lost = scores.copy()
    lost.loc[best, "c"] = np.nan
    assert consensus_rank(lost)[best] >= consensus_rank(scores)[best]


def test_what_several_methods_find_comes_first():
    """A true cause that three noisy methods see, each missing it sometimes, is found more often by all together."""
    rng = np.random.default_rng(1)
    firsts = {"one": 0, "all": 0}
    for _ in range(80):
        scores = pd.DataFrame(rng.normal(size=(100, 3)))
        scores.loc[7] += 2.5
        firsts["one"] += scores[0].idxmax() == 7
        firsts["all"] += consensus_rank(scores)[7] == 1
    assert firsts["all"] > firsts["one"] + 15


def test_agreement_is_of_the_same_candidates():
    tf = pd.DataFrame({"kind": "tf", "name": list("ABCD"), "rank": [1, 2, 3, 4], "ulm": [4.0, 3.0, -2.0, 1.0]})
    drug = pd.DataFrame({"kind": "drug", "name": ["x", "y"], "rank": [1, 2], "cosine": [0.5, 0.1]})
    other = tf.iloc[[3, 2, 0]].assign(ulm=[2.0, -4.0, 8.0], rank=[3, 2, 1])
    table = agreement(pd.concat([tf, drug]), other, n_first=2).set_index("kind")
    assert table.index.tolist() == ["tf"]  # no drug in the other
    assert table.loc["tf"].tolist() == ["ulm", 3, pytest.approx(1.0), 1]  # A, of A and B, and A and C


def test_cells_keep_their_ranking_in_a_file(tmp_path):
    cells = ad.AnnData(np.eye(3, dtype=np.float32), uns={"mine": 1})
    table = pd.DataFrame(
        {"kind": ["tf", "drug"], "name": ["A", "B"], "ulm": [2.5, np.nan], "known_targets": [None, "X"]}
    )
    activity = pd.DataFrame({"A": [0.1, 0.2, 0.3]})
    annotated(cells, table, activity=activity).write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert read.uns["scidiff_ranking"]["name"].tolist() == ["A", "B"]
    assert read.uns["scidiff_ranking"]["known_targets"].tolist() == ["", "X"]
    assert read.obsm["tf_activity"]["A"].tolist() == [0.1, 0.2, 0.3]
    assert set(cells.uns) == {"mine"}
    with pytest.raises(InputError, match="2 rows; one for each of 3 cells"):
        annotated(cells, table, activity=activity.iloc[:2])
