"""Splits: nothing leaks, nothing is lost, and the same cells always fall the same way."""

from __future__ import annotations

import json
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scidiff.data.schema import Schema
from scidiff.data.splits import Split, each_holdout, holdout, random_split
from scidiff.errors import DataWarning, InputError

SCHEMA = Schema(
    perturbation="drug", control="DMSO", context=["cell_type", "patient"], dose="dose", time="time", batch="plate"
)


def screen(n: int = 600, seed: int = 0) -> ad.AnnData:
    generator = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "drug": generator.choice(["DMSO", "DMSO", "A", "B", "C", "A+B", "B+C", "C+B+A"], n),
            "cell_type": generator.choice(["T", "B", "NK"], n),
            "patient": generator.choice(["p1", "p2"], n),
            "dose": generator.choice([1.0, 10.0], n),
            "time": generator.choice(["6h", "24h"], n),
            "plate": generator.choice([1, 2, 3], n),
        },
        index=[f"cell{i}" for i in generator.permutation(n)],
    )
    return ad.AnnData(obs=obs)


DATA = screen()
TABLE = SCHEMA.table(DATA)
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "context": st.sampled_from(
            [{"cell_type": "T"}, {"cell_type": ["B", "NK"]}, {"cell_type": "T", "patient": "p1"}]
        ),
        "perturbation": st.sampled_from(["A", "B", ["A", "C"], "A+B"]),
        "dose": st.sampled_from([1, 10.0]),
        "time": st.sampled_from(["24h", "6h"]),
        "batch": st.sampled_from(["1", 2]),
    },
).filter(bool)


@settings(max_examples=30, deadline=None)
@given(ASKED, st.integers(0, 5), st.booleans())
def test_holdout_never_leaks(asked, seed, keep):
    where = {name: value for name, value in asked.items() if name != "context"} | asked.get("context", {})
    if asked.get("perturbation") == "A+B" and "dose" in asked:
        where["dose"] = f"{asked['dose']:g}+{asked['dose']:g}"  # each part has it
        asked = asked | {"dose": where["dose"]}
    matching = SCHEMA.is_control(TABLE) < SCHEMA.select(TABLE, where)
    assume(matching.any())
    split = holdout(DATA, SCHEMA, **asked, keep_combinations=keep, seed=seed)
    sets = {role: set(getattr(split, role)) for role in ("train", "test", "source", "control")}
    assert not sets["train"] & sets["test"]
    assert not sets["train"] & sets["control"]
    assert not sets["test"] & sets["control"]
    assert sets["source"] <= sets["train"]
    # exactly the treated cells that match are held out, and none of them is seen in training
    assert sets["test"] == set(np.flatnonzero(matching))
    # what is in no set is only what a held-out perturbation would leak into
    none = set(range(DATA.n_obs)) - sets["train"] - sets["test"] - sets["control"]
    assert len(none) == split.description.get("left_out", 0)
    held = [asked["perturbation"]] if isinstance(asked.get("perturbation"), str) else asked.get("perturbation", [])
    for cell in none:
        parts = set(SCHEMA.parts(TABLE["perturbation"].iloc[cell]))
        assert any(set(SCHEMA.parts(one)) < parts for one in held)
    if keep:
        assert not none
    # control cells: all of those held out and predicted from match the context, and are halves of it
    pool = SCHEMA.is_control(TABLE)
    for name in ("batch", "time"):
        if name in asked:
            pool &= SCHEMA.select(TABLE, {name: asked[name]})
    pool &= SCHEMA.select(TABLE, asked.get("context", {}))
    assert sets["source"] | sets["control"] == set(np.flatnonzero(pool))
    n_strata = len(TABLE[pool].astype(str).drop_duplicates())
    assert abs(len(sets["source"]) - len(sets["control"])) <= n_strata


def test_combinations_with_a_held_out_part_go():
    treated = TABLE["perturbation"].to_numpy()
    split = holdout(DATA, SCHEMA, perturbation="A")
    assert set(treated[split.test]) == {"A"}
    assert set(treated[split.train]) == {"DMSO", "B", "C", "B+C"}
    kept = holdout(DATA, SCHEMA, perturbation="A", keep_combinations=True)
    assert set(treated[kept.train]) == {"DMSO", "B", "C", "A+B", "B+C", "A+B+C"}
    # in another context A itself is seen, so its combinations may be
    here = holdout(DATA, SCHEMA, perturbation="A", context={"cell_type": "T"})
    left = np.setdiff1d(np.arange(DATA.n_obs), np.concatenate([here.train, here.test, here.control]))
    assert set(TABLE["cell_type"].iloc[left]) == {"T"}
    assert set(treated[left]) == {"A+B", "A+B+C"}


def test_a_held_out_combination_keeps_its_parts():
    treated = TABLE["perturbation"].to_numpy()
    split = holdout(DATA, SCHEMA, combination="B+A")
    assert set(treated[split.test]) == {"A+B"}
    assert set(treated[split.train]) == {"DMSO", "A", "B", "C", "B+C", "A+B+C"}
    assert len(split.train) + len(split.test) + len(split.control) == DATA.n_obs


def test_control_itself_can_be_held_out():
    split = holdout(DATA, SCHEMA, perturbation="DMSO", context={"cell_type": "T"})
    assert set(TABLE["perturbation"].iloc[split.test]) == {"DMSO"}
    assert not len(split.source)
    assert not len(split.control)


def test_controls_of_another_time_serve_where_there_are_none():
    data = ad.AnnData(
        obs=pd.DataFrame(
            {"drug": ["DMSO"] * 10 + ["A"] * 10, "time": [0] * 10 + [6, 24] * 5}, index=map(str, range(20))
        )
    )
    split = holdout(data, Schema(perturbation="drug", control="DMSO", time="time"), time=24)
    assert (len(split.source), len(split.control), len(split.test), len(split.train)) == (5, 5, 5, 10)


def test_too_few_controls_warn():
    data = ad.AnnData(obs=pd.DataFrame({"drug": ["DMSO", "A", "A", "B"], "c": list("xxyy")}, index=list("abcd")))
    schema = Schema(perturbation="drug", control="DMSO", context="c")
    with pytest.warns(DataWarning, match="0 control cells match"):
        holdout(data, schema, context="y", perturbation="A")
    with pytest.warns(DataWarning, match="1 control cells match"):
        holdout(data, schema, context="x", perturbation="A")


def test_split_without_controls():
    schema = Schema(context="cell_type")
    split = holdout(DATA, schema, context="T")
    assert set(DATA.obs["cell_type"].iloc[split.test]) == {"T"}
    assert len(split.test) + len(split.train) == DATA.n_obs


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(seed, random):
    order = list(range(DATA.n_obs))
    random.shuffle(order)
    shuffled = DATA[order]
    for make in (
        lambda adata: holdout(adata, SCHEMA, context={"cell_type": "T"}, perturbation="A", seed=seed),
        lambda adata: random_split(adata, SCHEMA, fraction=0.3, seed=seed),
    ):
        one, other = make(DATA), make(shuffled)
        assert one.hash == other.hash
        for role in ("train", "test", "source", "control"):
            assert set(DATA.obs_names[getattr(one, role)]) == set(shuffled.obs_names[getattr(other, role)])


def test_hash_tells_assignments_apart_and_ignores_how_they_were_asked():
    one = holdout(DATA, SCHEMA, context={"cell_type": "T", "patient": "p1"}, seed=1)
    assert one.hash == holdout(DATA, SCHEMA, context={"patient": "p1", "cell_type": "T"}, seed=1).hash
    assert one.hash != holdout(DATA, SCHEMA, context={"cell_type": "T", "patient": "p1"}, seed=2).hash
    renamed = DATA.copy()
    renamed.obs_names = [f"x{name}" for name in DATA.obs_names]
    assert one.hash != holdout(renamed, SCHEMA, context={"cell_type": "T", "patient": "p1"}, seed=1).hash
    swapped = Split(train=one.train, test=one.control, source=one.source, control=one.test, description=one.description)
    with pytest.raises(InputError, match="other cells"):
        swapped.verify(DATA)


def test_verify_knows_its_cells():
    split = random_split(DATA, SCHEMA, fraction=0.2)
    split.verify(DATA)
    for other in (DATA[::-1], DATA[:-1], screen(10)):
        with pytest.raises(InputError, match="other cells or another order"):
            split.verify(other)


@given(st.floats(0.05, 0.9), st.integers(0, 10))
@settings(max_examples=15, deadline=None)
def test_random_split_is_stratified(fraction, seed):
    split = random_split(DATA, Schema(perturbation="drug", context="cell_type"), fraction=fraction, seed=seed)
    assert len(split.train) + len(split.test) == DATA.n_obs
    groups = DATA.obs[["drug", "cell_type"]].astype(str)
    n, n_test = groups.value_counts(), groups.iloc[split.test].value_counts()
    assert ((n_test.reindex(n.index, fill_value=0) - fraction * n).abs() <= 0.5 + 1e-9).all()


def test_every_condition_keeps_a_training_cell():
    data = ad.AnnData(obs=pd.DataFrame({"c": list("aaabbc")}, index=list("123456")))
    split = random_split(data, Schema(context="c"), fraction=0.9)
    assert set(data.obs["c"].iloc[split.train]) == {"a", "b", "c"}
    assert random_split(DATA, Schema(), fraction=0.25).test.size == 150


def test_split_survives_json():
    split = holdout(DATA, SCHEMA, context={"cell_type": np.str_("T")}, dose=np.float64(10), batch=["1", "2"], seed=3)
    again = Split.from_json(split.to_json())
    assert again == split
    again.verify(DATA)
    assert json.loads(split.to_json())["description"]["dose"] == 10.0


def test_split_reads_well_and_cannot_be_changed():
    split = holdout(DATA, SCHEMA, perturbation="A", seed=4)
    assert repr(split).startswith("Split(kind='holdout', perturbation='A', left_out=")
    assert f"train {len(split.train)}" in repr(split)
    with pytest.raises(ValueError, match="read-only"):
        split.train[0] = 1
    with pytest.raises(AttributeError):
        split.train = split.test


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (([0, 1], [1], [], []), "1 cells are in both train and test"),
        (([0], [1], [], [0]), "both train and control"),
        (([0], [1], [], [1]), "both test and control"),
        (([0], [1], [2], []), "1 source cells are not in train"),
        (([0, 0], [1], [], []), "distinct positions"),
        (([-1], [1], [], []), "distinct positions"),
    ],
)
def test_impossible_splits(sets, message):
    with pytest.raises(InputError, match=message):
        Split(*map(np.array, sets))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "nothing to hold out"),
        ({"context": {"cell_type": "CD4"}}, "no cell has cell_type='CD4'"),
        ({"context": {"celltype": "T"}}, "'celltype' is no context column of the schema; nearest: 'cell_type'"),
        ({"context": "T"}, "needs its column"),
        ({"perturbation": "AA"}, "no cell has perturbation='AA'"),
        ({"perturbation": "A", "combination": "A+B"}, "not both"),
        ({"combination": "A"}, "has no two parts"),
        ({"combination": "A+C"}, "no cell has perturbation='A+C'"),
        ({"dose": 3}, "no cell has dose=3"),
        ({"dose": 0}, "no treated cell has dose=0"),
        (
            {"context": {"cell_type": ["T", "B", "NK"]}, "perturbation": ["DMSO", *"ABC", "A+B", "B+C", "A+B+C"]},
            "every",
        ),
    ],
)
def test_holdout_refuses(asked, message):
    with pytest.raises(InputError, match=re.escape(message)):
        holdout(DATA, SCHEMA, **asked)


def test_random_split_refuses():
    with pytest.raises(InputError, match="not between 0 and 1"):
        random_split(DATA, SCHEMA, fraction=1.0)
    with pytest.raises(InputError, match="holds out no cell"):
        random_split(DATA[:3], Schema(), fraction=0.01)
    double = DATA[:3].copy()
    double.obs_names = ["a", "a", "b"]
    with pytest.raises(InputError, match="more than once"):
        random_split(double, SCHEMA, fraction=0.5)


# ---- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("context=each", [f"{kind}, {patient}" for kind in ("B", "NK", "T") for patient in ("p1", "p2")]),
        ("cell_type=each", ["B", "NK", "T"]),
        ("perturbation=each", ["A", "B", "C"]),
        ("combination=each", ["A+B", "A+B+C", "B+C"]),
        ("batch=each", ["1", "2", "3"]),
        ("plate=each", ["1", "2", "3"]),
        ("time=each", ["6", "24"]),
        ("cell_type=each,drug=A", ["B", "NK", "T"]),
        ("cell_type=T,patient=p1", ["cell_type=T,patient=p1"]),
    ],
)
def test_a_rule_holds_out_each_value_once(rule, names):
    found = each_holdout(DATA, SCHEMA, rule)
    assert list(found) == names
    splits = [holdout(DATA, SCHEMA, **arguments, seed=0) for arguments in found.values()]
    tested = [set(split.test) for split in splits]
    assert all(tested)
    assert sum(map(len, tested)) == len(set.union(*tested))  # no cell twice
    treated = ~SCHEMA.is_control(TABLE)
    if rule in ("context=each", "cell_type=each", "batch=each", "time=each"):
        assert set.union(*tested) == set(np.flatnonzero(treated))


def test_a_rule_is_the_holdout_it_names():
    found = each_holdout(DATA, SCHEMA, "cell_type=each,perturbation=A")
    assert found["NK"] == {"perturbation": "A", "context": {"cell_type": "NK"}}
    same = holdout(DATA, SCHEMA, context={"cell_type": "NK"}, perturbation="A", seed=3)
    assert holdout(DATA, SCHEMA, **found["NK"], seed=3) == same


def test_values_without_treated_cells_are_not_held_out():
    some = DATA[~((DATA.obs["cell_type"] == "NK") & (DATA.obs["drug"] != "DMSO"))].copy()
    assert list(each_holdout(some, SCHEMA, "cell_type=each")) == ["B", "T"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("", "each for one attribute"),
        ("cell_type=each,drug=each", "each for one attribute"),
        ("celltype=each", "unknown attribute 'celltype'; nearest: 'cell_type'"),
        ("cell_type=each,drug=D", "no cell has perturbation='D'"),
        ("cell_type", "cannot read condition"),
    ],
)
def test_a_rule_that_says_nothing_is_refused(rule, message):
    with pytest.raises(InputError, match=message):
        each_holdout(DATA, SCHEMA, rule)
    with pytest.raises(InputError, match="needs context columns"):
        each_holdout(DATA, Schema(perturbation="drug", control="DMSO"), "context=each")
