"""The table of a benchmark survives interruptions, and never mixes two requests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scidiff.benchmarking.results import COLUMNS, NotThere, Results
from scidiff.errors import InputError

ASKED = {"data": "abc", "splits": 3}


def rows(value: float = 1.0) -> pd.DataFrame:
    return pd.DataFrame({"metric": ["a", "b"], "value": [value, 2.5]})


def start(place, **options) -> Results:
    return Results.open(place / "out", dataset="cells", **{"asked": ASKED, **options})


def test_what_is_done_is_not_done_again(tmp_path):
    first = start(tmp_path)
    first.once("part", 0, "one", rows)
    first.once("part", 0, "one", lambda: pytest.fail("done before"))
    again = start(tmp_path, resume=True)
    again.once("part", 0, "one", lambda: pytest.fail("done before the interruption"))
    again.once("part", 1, "one", rows)
    again.once("other", 0, "one", rows)
    assert list(again.table.columns) == COLUMNS
    written = pd.read_csv(tmp_path / "out" / "results.csv").fillna({"note": ""})
    pd.testing.assert_frame_equal(written, again.table, rtol=1e-4)
    assert len(written) == 6


def test_an_interrupted_piece_leaves_nothing(tmp_path):
    results = start(tmp_path)
    results.once("part", 0, "one", rows)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.once("part", 1, "one", stop)
    assert len(start(tmp_path, resume=True).rows("part")) == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.csv", "request.json"}


def test_several_methods_of_one_piece(tmp_path):
    results = start(tmp_path)
    made = pd.concat([rows().assign(method="one"), rows(3).assign(method="two")])
    results.once("part", 0, ["one", "two"], lambda: made)
    results.once("part", 0, ["one", "two"], lambda: pytest.fail("done before"))
    assert results.rows("part", method="two")["value"].tolist() == [3, 2.5]


def test_further_columns_are_kept(tmp_path):
    results = start(tmp_path)
    results.once("part", 0, "one", lambda: rows().assign(condition=["A", "B"]))
    results.once("part", 0, "two", rows)
    again = start(tmp_path, resume=True).table
    assert list(again.columns) == [*COLUMNS, "condition"]
    assert again["condition"].tolist()[:2] == ["A", "B"]
    assert again["condition"][2:].isna().all()


@pytest.mark.parametrize("error", [ImportError, InputError])
def test_what_a_method_cannot_do_is_noted(tmp_path, error):
    results = start(tmp_path)

    def unable():
        raise error("no such package")

    results.once("part", 0, "one", unable)
    [row] = results.rows("part").to_dict("records")
    assert np.isnan(row["value"])
    assert row["note"] == "no such package"
    assert len(start(tmp_path, resume=True).rows("part", split=0, method="one")) == 1


def test_refusals(tmp_path):
    start(tmp_path)
    with pytest.raises(InputError, match="--resume"):
        start(tmp_path)
    with pytest.raises(InputError, match="other splits"):
        start(tmp_path, asked=ASKED | {"splits": 1}, resume=True)
    with pytest.raises(InputError, match="no folder"):
        Results.open(tmp_path / "no" / "out", dataset="cells", asked=ASKED)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="no benchmark"):
        Results.open(tmp_path / "full", dataset="cells", asked=ASKED, resume=True)
    (tmp_path / "out" / "request.json").write_text("{")
    with pytest.raises(InputError, match="no benchmark to resume"):
        start(tmp_path, resume=True)


def test_what_was_refused_is_not_tried_again(tmp_path):
    def refused():
        raise InputError("no features")

    start(tmp_path).once("part", 0, "one", refused)
    results = start(tmp_path, resume=True)
    results.once("part", 0, "one", lambda: pytest.fail("hours of training"))
    [row] = results.rows("part").to_dict("records")
    assert row["note"] == "no features"


@pytest.mark.parametrize("error", [ImportError, NotThere])
def test_what_something_was_missing_for_is_tried_again(tmp_path, error):
    def missing():
        raise error("no such package")

    start(tmp_path).once("part", 0, "one", missing)
    results = start(tmp_path, resume=True)
    results.once("part", 0, "one", rows)
    assert results.rows("part")["value"].notna().all()
    assert len(results.rows("part")) == len(rows())
