"""Canonical conditions: one table from many spellings."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scidiff.data.conditions import parse_condition
from scidiff.data.quantities import to_numbers
from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError

SCHEMA = Schema(perturbation="drug", control="DMSO", context="cell_type", dose="dose", time="time", batch="plate")


def cells(**columns) -> ad.AnnData:
    n = len(next(iter(columns.values())))
    return ad.AnnData(obs=pd.DataFrame(columns, index=[f"cell{i}" for i in range(n)]))


@pytest.fixture
def screen() -> ad.AnnData:
    return cells(
        drug=["DMSO", "B+A", "A + DMSO", "DMSO+DMSO", "A+B"],
        cell_type=pd.Categorical(["T", "T", "B", "B", "T"]),
        dose=["0", "1 uM+500nM", "100 nM", "3uM", "2 uM"],
        time=["24h", "3 d", "90 min", "1 day", "24 hours"],
        plate=[1.0, 2.0, 1.0, 2.0, 1.0],
    )


def test_table_is_canonical(screen):
    table = SCHEMA.table(screen)
    assert list(table.columns) == ["perturbation", "cell_type", "dose", "time", "batch"]
    assert list(table.index) == list(screen.obs_names)
    assert table["perturbation"].tolist() == ["DMSO", "A+B", "A", "DMSO", "A+B"]
    assert table["dose"].tolist() == [0.0, "0.5+1", 0.1, 0.0, "2+2"]  # B had 1 uM, A 500 nM
    assert table["time"].tolist() == [24.0, 72.0, 1.5, 24.0, 24.0]
    assert table["batch"].tolist() == ["1", "2", "1", "2", "1"]
    assert table.attrs["units"] == {"dose": "uM", "time": "h"}


def test_table_leaves_the_data_alone_and_follows_the_rows(screen):
    before = screen.obs.copy(deep=True)
    table = SCHEMA.table(screen)
    order = [4, 0, 3]
    pd.testing.assert_frame_equal(SCHEMA.table(screen[order]), table.iloc[order])
    pd.testing.assert_frame_equal(screen.obs, before)


def test_table_of_nothing():
    empty = cells(drug=[], cell_type=[], dose=[], time=[], plate=[])
    assert SCHEMA.table(empty).shape == (0, 5)
    assert Schema().table(cells(x=[1, 2])).shape == (2, 0)


@given(st.permutations(["A", "B", "C"]), st.lists(st.sampled_from([0.1, 1.0, 2.5, 1e16]), min_size=3, max_size=3))
def test_combination_does_not_depend_on_order(order, doses):
    of = dict(zip("ABC", doses, strict=True))
    asked = {"perturbation": "+".join(order), "dose": "+".join(repr(of[part]) for part in order)}
    row = SCHEMA.conditions(asked).iloc[0]
    assert row["perturbation"] == "A+B+C"
    assert SCHEMA.parts("+".join(order)) == ("A", "B", "C")
    assert SCHEMA.dose_parts(row["dose"]) == tuple(doses)
    again = SCHEMA.conditions({"perturbation": row["perturbation"], "dose": row["dose"]}).iloc[0]
    assert again["dose"] == row["dose"]  # canonical stays canonical


@pytest.mark.parametrize(("text", "parts"), [("DMSO", ()), (None, ()), ("A", ("A",)), ("B+DMSO+A", ("A", "B"))])
def test_parts(text, parts):
    assert SCHEMA.parts(text) == parts


def test_separator_can_be_switched_off():
    schema = Schema(perturbation="drug", control="DMSO", combination_sep=None)
    assert schema.parts("CD4+CD8") == ("CD4+CD8",)
    assert Schema(perturbation="drug", combination_sep="_").parts("B_A") == ("A", "B")


@given(st.decimals(min_value="1e-6", max_value="1e6", places=6))
def test_units_agree_exactly(amount):
    spelled = [f"{amount * 1000} nM", f"{amount} µM", f"{amount / 1000}mM"]
    numbers, unit = to_numbers(spelled, "dose")
    assert unit == "uM"
    assert numbers.tolist() == [float(amount)] * 3


@pytest.mark.parametrize(
    ("values", "role", "message"),
    [
        (["10 uM", "high"], "dose", "'high' cannot be read"),
        (["10 uM", "3"], "dose", "'10 uM' and '3'"),
        (["10 uM", "5 ng/ml"], "dose", "no common unit"),
        ([-1.0], "dose", "negative"),
        ([np.inf], "dose", "not finite"),
        (["5 parsec"], "time", "'5 parsec' cannot be read"),
        (["10 uM"], "time", "cannot be read"),
    ],
)
def test_unreadable_quantities(values, role, message):
    with pytest.raises(InputError, match=message):
        to_numbers(values, role)


def test_zero_needs_no_unit():
    numbers, unit = to_numbers([0, "0", "1 nM", None], "dose")
    assert unit == "uM"
    np.testing.assert_array_equal(numbers, [0, 0, 0.001, np.nan])


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"control": "DMSO"}, "needs perturbation="),
        ({"perturbation": "x", "batch": "x"}, "'x' has two roles"),
        ({"context": ["a", "a"]}, "'a' has two roles"),
        ({"context": "dose"}, "name of a role"),
        ({"combination_sep": ""}, "empty"),
    ],
)
def test_impossible_schemas(roles, message):
    with pytest.raises(InputError, match=message):
        Schema(**roles)


def test_missing_column_and_control_name_the_nearest(screen):
    with pytest.raises(InputError, match="no obs column 'celltype' for celltype; nearest: 'cell_type'"):
        Schema(context="celltype").table(screen)
    wrong = Schema(perturbation="drug", control="dmso")
    wrong.table(screen)  # held-out cells have no control, so a table does not ask for one
    with pytest.raises(InputError, match="control 'dmso' is not in obs column 'drug'; nearest: 'DMSO'"):
        wrong.validate(screen)


def test_missing_values_are_unknown_not_control():
    data = cells(drug=["DMSO", None, "A"], dose=[np.nan, 1.0, np.nan])
    schema = Schema(perturbation="drug", control="DMSO", dose="dose")
    table = schema.table(data)
    assert table["perturbation"].tolist() == ["DMSO", None, "A"]
    np.testing.assert_array_equal(table["dose"].to_numpy(), [0.0, 1.0, np.nan])
    assert schema.is_control(table).tolist() == [True, False, False]
    with pytest.warns(DataWarning) as caught:
        schema.validate(data)
    assert [str(one.message).split(" have")[0] for one in caught] == ["1 of 3 cells", "1 of 3 cells"]


@pytest.mark.parametrize(
    ("row", "message"),
    [({"drug": "A+", "dose": 1}, "empty part"), ({"drug": "A+B", "dose": "1+2+3"}, "has 3 parts for 2")],
)
def test_broken_combinations(row, message):
    with pytest.raises(InputError, match=message):
        Schema(perturbation="drug", dose="dose").conditions(row)


# ---- requests -------------------------------------------------------------------------------------------------------


def test_conditions_from_dict_list_and_frame(screen):
    known = SCHEMA.table(screen)
    one = SCHEMA.conditions({"drug": "B+A", "cell_type": "T"}, known)
    assert one.iloc[0][["perturbation", "cell_type"]].tolist() == ["A+B", "T"]
    assert one.iloc[0][["dose", "time", "batch"]].isna().all()
    rows = [{"perturbation": "A", "dose": "100 nM", "batch": 1}, {"perturbation": "DMSO"}, {}]
    many = SCHEMA.conditions(rows, known)
    assert many["dose"].tolist()[:2] == [0.1, 0.0]
    assert many["batch"].tolist() == ["1", None, None]
    pd.testing.assert_frame_equal(SCHEMA.conditions(pd.DataFrame(rows), known), many)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"celltype": "T"}, "unknown attribute 'celltype'; nearest: 'cell_type'"),
        ({"cell_type": "NK"}, "unknown cell_type 'NK'"),
        ({"drug": "A+C"}, "unknown perturbation 'C'"),
        ({"drug": "A", "perturbation": "B"}, "one attribute"),
        ({"drug": ["A", "B"]}, "list of dicts"),
        ({"time": "5 parsec"}, "cannot be read"),
        ({"drug": "A", "dose": "5 ng/ml"}, "in ng/ml, but the data give it in uM"),
    ],
)
def test_conditions_refuse(screen, request_, message):
    with pytest.raises(InputError, match=message) as caught:
        SCHEMA.conditions(request_, SCHEMA.table(screen))
    assert "\n" not in str(caught.value)


def test_a_role_name_wins_over_an_obs_column():
    data = cells(condition=["control", "X"], perturbation=["p", "q"])
    schema = Schema(perturbation="condition", control="control")
    assert schema.select(data, {"perturbation": "X"}).tolist() == [False, True]
    with pytest.raises(InputError, match="'q'"):
        schema.select(data, {"perturbation": "q"})


def test_select_matches_all_named_values(screen):
    assert SCHEMA.select(screen, {"drug": "B+A"}).tolist() == [False, True, False, False, True]
    assert SCHEMA.select(screen, {"drug": "B+A", "dose": "1uM + 0.5uM"}).tolist() == [False, True, False, False, False]
    assert SCHEMA.select(screen, {"time": "1 d", "cell_type": ["T", "B"]}).tolist() == [True, False, False, True, True]
    assert SCHEMA.select(screen, {}).all()
    table = SCHEMA.table(screen)
    np.testing.assert_array_equal(SCHEMA.select(table, {"plate": 2}), SCHEMA.select(screen, {"batch": "2"}))


def test_select_takes_any_obs_column(screen):
    screen.obs["donor"] = [7, 8, 7, 8, 7]
    assert SCHEMA.select(screen, {"donor": "8", "drug": "DMSO"}).tolist() == [False, False, False, True, False]
    with pytest.raises(InputError, match="no cell has donor='9'"):
        SCHEMA.select(screen, {"donor": 9})


def test_schema_round_trip_is_json():
    import json

    assert Schema.from_dict(json.loads(json.dumps(SCHEMA.to_dict()))) == SCHEMA
    with pytest.raises(InputError, match="'contxt'; nearest: 'context'"):
        Schema.from_dict({"contxt": "a"})


def test_by_role_gathers_contexts():
    condition = {"cell_type": "T", "drug": "A", "time": 3}
    assert SCHEMA.by_role(condition) == {"context": {"cell_type": "T"}, "perturbation": "A", "time": 3}
    assert SCHEMA.by_role({"combination": "A+B"}) == {"combination": "A+B"}


# ---- grammar --------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(
        st.text("abc_XYZ09.", min_size=1),
        st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1),
        min_size=1,
    )
)
def test_grammar_reads_what_is_quoted(condition):
    def quoted(value: str) -> str:
        return '"' + value.replace('"', '""') + '"'

    text = ",".join(f"{name}={quoted(value)}" for name, value in condition.items())
    assert parse_condition(text) == condition
    assert parse_condition([f"{name}={quoted(value)}" for name, value in condition.items()]) == condition


def test_grammar_of_the_manual():
    assert parse_condition('cell_type="CD4 T",perturbation=IFN-beta') == {
        "cell_type": "CD4 T",
        "perturbation": "IFN-beta",
    }
    assert parse_condition("cell_type=CD4 T , perturbation=A+B") == {"cell_type": "CD4 T", "perturbation": "A+B"}
    assert parse_condition(None) == {}


@pytest.mark.parametrize("text", ["cell_type", "a=b=c", "=x", "a=", 'a="x', "a=b,,c=d", 'a=x"y'])
def test_grammar_refuses(text):
    with pytest.raises(InputError, match="cannot read condition"):
        parse_condition(text)


def test_grammar_refuses_two_values_and_two_meanings():
    with pytest.raises(InputError, match="two values, 'b' and 'c'"):
        parse_condition(["a=b", "a=c"])
    schema = Schema(perturbation="condition")
    with pytest.raises(InputError, match="write condition="):
        parse_condition("perturbation=A", schema=schema, columns=["condition", "perturbation"])
    assert parse_condition("perturbation=A", schema=schema, columns=["condition"]) == {"perturbation": "A"}
    assert parse_condition("dose=1", schema=schema, columns=["condition", "dose"]) == {"dose": "1"}


# ---- modules ---------------------------------------------------------------------------------------------------------


def test_modules_are_asked_for_but_make_no_groups():
    schema = Schema(context="cell_type", modules="IFN")
    adata = cells(cell_type=["B", "T"], IFN=[0.5, None])
    assert list(schema.table(adata).columns) == ["cell_type"]
    scores = schema.module_scores(adata)
    assert scores["IFN"].iloc[0] == 0.5
    assert np.isnan(scores["IFN"].iloc[1])
    table = schema.conditions([{"cell_type": "B", "IFN": "1.5"}, {"cell_type": "T"}])
    assert list(table.columns) == ["cell_type", "IFN"]
    np.testing.assert_array_equal(table["IFN"], [1.5, np.nan])
    assert Schema.from_dict(schema.to_dict()) == schema
    assert "modules" not in Schema(context="cell_type").to_dict()  # settings of before there were modules stay the same


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"modules": ["IFN", "IFN"]}, "'IFN' has two roles"),
        ({"context": "IFN", "modules": "IFN"}, "'IFN' has two roles"),
        ({"modules": ["time"]}, "module 'time' has the name of a role"),
    ],
)
def test_modules_that_clash(asked, message):
    with pytest.raises(InputError, match=message):
        Schema(**asked)
