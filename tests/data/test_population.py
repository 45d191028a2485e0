"""What is drawn is what was there: frequencies and depths of the training conditions."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scidiff.data.population import Population
from scidiff.data.schema import Schema

SCHEMA = Schema(perturbation="drug", control="ctrl", context=["type"], dose="dose", time="time")


def table(n: int = 4000) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    drug = rng.choice(["ctrl", "A", "A+B"], n, p=[0.5, 0.3, 0.2])
    out = pd.DataFrame(
        {
            "perturbation": drug,
            "type": np.where(drug == "A", "T", rng.choice(["T", "B"], n)).astype(object),
            "dose": pd.Series([{"ctrl": 0.0, "A": 3.0, "A+B": "1+2"}[d] for d in drug], dtype=object),
            "time": rng.choice([6.0, 24.0], n),
        }
    )
    out.loc[:9, "type"] = None
    out.loc[5:19, "time"] = np.nan
    return out, np.exp(rng.normal(np.where(drug == "A", 8, 6), 0.3)).round()


def asked(n: int, **request) -> pd.DataFrame:
    return SCHEMA.conditions([request] * n)


def test_nothing_asked_is_drawn_as_in_training():
    cells, depth = table()
    drawn = Population.of(cells, depth).complete(asked(4000), rng=np.random.default_rng(1))
    for name in ("perturbation", "type"):
        both = pd.crosstab(
            pd.concat([cells[name], drawn[name]]).fillna("?").to_numpy(), np.repeat(["real", "drawn"], [4000, 4000])
        )
        assert stats.chi2_contingency(both).pvalue > 1e-3
    assert set(map(str, drawn.loc[drawn["perturbation"] == "A+B", "dose"])) == {"1+2"}  # rows stay together
    assert (drawn.loc[drawn["perturbation"] == "A", "type"].dropna() == "T").all()


def test_what_is_asked_stays_and_the_rest_agrees():
    cells, depth = table()
    drawn = Population.of(cells, depth).complete(asked(500, drug="ctrl", time=24), rng=np.random.default_rng(1))
    assert (drawn["perturbation"] == "ctrl").all()
    assert (drawn["time"] == 24).all()
    assert (drawn["dose"] == 0).all()
    assert set(drawn["type"].dropna()) == {"T", "B"}


def test_what_never_was_stays_open():
    cells, depth = table()
    request = asked(5, drug="A", type="B")
    drawn = Population.of(cells, depth).complete(request, rng=np.random.default_rng(1))
    assert drawn["dose"].isna().all()
    assert drawn["time"].isna().all()
    assert request["time"].isna().all()  # the request is not written to


@pytest.mark.parametrize(("request_", "log_depth"), [({"drug": "A"}, 8.0), ({"drug": "ctrl"}, 6.0)])
def test_depths_are_those_of_the_condition(request_, log_depth):
    cells, depth = table()
    drawn = Population.of(cells, depth).draw_depth(asked(3000, **request_), rng=np.random.default_rng(1))
    real = depth[cells["perturbation"] == request_["drug"]]
    assert stats.ks_2samp(drawn, real).pvalue > 1e-3
    assert np.log(drawn).mean() == pytest.approx(log_depth, abs=0.05)
    assert (drawn == drawn.round()).all()


def test_depth_of_a_condition_never_seen_is_that_of_its_context():
    cells, depth = table()
    drawn = Population.of(cells, depth).draw_depth(asked(3000, drug="B", type="B"), rng=np.random.default_rng(1))
    assert stats.ks_2samp(drawn, depth[cells["type"] == "B"]).pvalue > 1e-3


def test_each_row_keeps_its_place():
    cells, depth = table()
    request = SCHEMA.conditions([{"drug": d} for d in ["A", "ctrl", "A", "A+B"]])
    population = Population.of(cells, depth)
    drawn = population.complete(request, rng=np.random.default_rng(0))
    assert drawn["perturbation"].tolist() == ["A", "ctrl", "A", "A+B"]
    depths = population.draw_depth(drawn, rng=np.random.default_rng(0))
    assert min(depths[0], depths[2]) > 1200 > max(depths[1], depths[3])


def test_json_round_trip():
    cells, depth = table()
    one = Population.of(cells, depth)
    again = Population.from_dict(json.loads(json.dumps(one.to_dict())), SCHEMA, one.log_depth)
    drawn = [p.complete(asked(300), rng=np.random.default_rng(1)) for p in (one, again)]
    pd.testing.assert_frame_equal(drawn[0].fillna("?"), drawn[1].fillna("?"), check_dtype=False)
    depths = [p.draw_depth(drawn[0], rng=np.random.default_rng(1)) for p in (one, again)]
    np.testing.assert_array_equal(*depths)


def test_no_conditions_and_one_cell():
    population = Population.of(pd.DataFrame(index=range(1)), np.array([700.0]))
    again = Population.from_dict(json.loads(json.dumps(population.to_dict())), Schema(), population.log_depth)
    for p in (population, again):
        request = Schema().conditions([{}] * 4)
        drawn = p.complete(request, rng=np.random.default_rng(0))
        assert drawn.shape == (4, 0)
        assert p.draw_depth(drawn, rng=np.random.default_rng(0)).tolist() == [700] * 4


def test_without_counts_there_are_no_depths():
    cells, _ = table()
    assert Population.of(cells).log_depth is None
