"""From canonical tables to codes: which words a model knows, and what dropping one means."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from scidiff.conditioning import Conditions, Vocabulary
from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError

SCHEMA = Schema(
    perturbation="drug", control="DMSO", context=["cell_type", "donor"], dose="dose", time="hours", batch="plate"
)
TRAINING = pd.DataFrame(
    {
        "drug": ["DMSO", "A", "B", "A+B", "A", None],
        "cell_type": ["T", "B cell", "T", "T", None, "B cell"],
        "donor": ["d1", "d1", "d2", "d2", "d1", "d2"],
        "dose": [0.0, 1.0, 10.0, "1+4", 3.0, None],
        "hours": [6, 6, 24, 24, None, 48],
        "plate": ["p1", "p1", "p2", "p1", "p2", "p1"],
    }
)


class Obs:
    """The part of an AnnData that a schema reads."""

    def __init__(self, obs: pd.DataFrame) -> None:
        self.obs = obs


@pytest.fixture
def table() -> pd.DataFrame:
    return SCHEMA.table(Obs(TRAINING))


@pytest.fixture
def vocabulary(table) -> Vocabulary:
    return Vocabulary.learn(table, SCHEMA, depth=np.array([100, 200, 300, 400, 500, 600]), extra_parts=("C",))


def encode(vocabulary: Vocabulary, *requests: dict, depth: float | None = None) -> Conditions:
    table = SCHEMA.conditions(list(requests), known=vocabulary.known)
    return vocabulary.encode(table, depth=None if depth is None else np.full(len(requests), depth))


def same(a: Conditions, b: Conditions) -> bool:
    tensors = [(a.codes[name], b.codes[name]) for name in a.codes]
    tensors += [(a.parts, b.parts), (a.doses, b.doses), (a.time, b.time), (a.depth, b.depth)]
    return all(torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) for x, y in tensors)


def test_what_is_learned(vocabulary):
    assert vocabulary.categories == {"cell_type": ("B cell", "T"), "donor": ("d1", "d2"), "batch": ("p1", "p2")}
    assert vocabulary.perturbations == ("A", "A+B", "B", "DMSO")
    assert vocabulary.parts == ("A", "B", "C")
    assert vocabulary.doses == (1.0, 7.0, 3.0)  # medians of A: 1, 3, 1; of B: 10, 4; of the unseen: of all
    assert vocabulary.dose_range == (1.0, 10.0)
    assert vocabulary.time_range == (6.0, 48.0)
    assert vocabulary.n_times == 3
    assert vocabulary.depth[0] == pytest.approx(np.log([100, 200, 300, 400, 500, 600]).mean())


def test_codes(vocabulary):
    cond = encode(
        vocabulary,
        {"drug": "DMSO", "cell_type": "T"},
        {"drug": "B+A", "dose": "4+1", "time": 12},
        {"cell_type": "B cell", "plate": "p2"},
        {"drug": "C+A"},
        depth=123_456_789,
    )
    assert cond.codes["perturbation"].tolist() == [4, 2, 0, 5]  # 0 unknown, 5 = a combination not in training
    assert cond.codes["cell_type"].tolist() == [2, 0, 1, 0]
    assert cond.codes["batch"].tolist() == [0, 0, 2, 0]
    assert cond.parts.tolist() == [[0, 0], [1, 2], [0, 0], [1, 3]]
    assert cond.doses[1].tolist() == [1.0, 4.0]  # each dose stays with its part when the parts are sorted
    assert cond.doses[[0, 2, 3]].isnan().all()
    assert cond.time.nan_to_num(-1).tolist() == [-1, 12, -1, -1]
    assert cond.depth.tolist() == [123_456_792.0] * 4  # single precision


def test_depth_is_exact_up_to_sixteen_million_molecules(vocabulary):
    cond = encode(vocabulary, {}, depth=1_234_567)
    assert cond.depth.tolist() == [1_234_567.0]


def test_encoding_does_not_depend_on_the_other_cells(vocabulary, table):
    """The table is encoded once per distinct condition; every cell must get its own row back."""
    order = np.random.default_rng(0).integers(0, len(table), 40)
    many = vocabulary.encode(table.iloc[order])
    for place, row in enumerate(order):
        one = vocabulary.encode(table.iloc[[row]])
        width = one.parts.shape[1]
        assert many.codes["perturbation"][place] == one.codes["perturbation"][0]
        assert many.codes["donor"][place] == one.codes["donor"][0]
        assert torch.equal(many.parts[place, :width], one.parts[0])
        assert torch.equal(many.doses[place, :width].nan_to_num(-1), one.doses[0].nan_to_num(-1))
        assert not many.parts[place, width:].any()


@pytest.mark.parametrize(
    ("request_", "plain"),
    [
        ({"drug": "A", "dose": 0}, {"drug": "DMSO"}),
        ({"drug": "A+B", "dose": "2+0"}, {"drug": "A", "dose": 2}),
        ({"drug": "A+B", "dose": "0+0"}, {"drug": "DMSO"}),
    ],
)
def test_dose_zero_is_not_there(vocabulary, request_, plain):
    both = encode(vocabulary, request_, plain)
    assert same(both[:1], both[1:])


def test_drop_and_keep(vocabulary):
    cond = encode(
        vocabulary, {"drug": "A", "cell_type": "T", "dose": 2, "time": 6, "plate": "p1"}, {"drug": "B"}, depth=9
    )
    without = cond.drop("perturbation", cells=torch.tensor([True, False]))
    assert without.codes["perturbation"].tolist() == [0, 3]
    assert without.parts[0].tolist() == [0]
    assert without.doses[0].isnan()  # a dose of nothing is no dose
    assert torch.equal(without.codes["cell_type"], cond.codes["cell_type"])
    assert cond.codes["perturbation"].tolist() == [1, 3]  # the original is as it was
    assert torch.equal(cond.drop("dose").parts, cond.parts)
    assert cond.drop("dose").doses.isnan().all()
    assert cond.drop("time").time.isnan().all()
    assert same(cond.keep(*cond.attributes), cond)
    assert same(cond.keep("cell_type"), cond.drop("perturbation", "donor", "batch", "dose", "time"))
    nothing = cond.keep()
    assert same(nothing[:1], nothing[1:])
    assert nothing.depth.tolist() == [9, 9]
    with pytest.raises(InputError, match=r"no attribute 'celltype'.*'cell_type'"):
        cond.drop("celltype")
    with pytest.raises(InputError, match="no attribute 'drug'"):
        cond.keep("drug")


def test_indexing(vocabulary, table):
    cond = vocabulary.encode(table)
    assert len(cond) == len(table)
    for rows in (slice(1, 3), torch.tensor([4, 0]), torch.tensor([True, False, True, False, False, True])):
        picked = cond[rows]
        assert torch.equal(picked.parts, cond.parts[rows])
        assert torch.equal(picked.codes["donor"], cond.codes["donor"][rows])
        assert len(picked) == len(cond.depth[rows])


def test_unknown_values_name_the_nearest(vocabulary, table):
    with pytest.raises(InputError, match="unknown cell_type 'Bcell'; nearest: 'B cell'"):
        encode(vocabulary, {"cell_type": "Bcell"})
    with pytest.raises(InputError, match="unknown perturbation 'D'"):
        encode(vocabulary, {"drug": "A+D"})
    foreign = table.assign(donor="d3")  # a table that did not pass Schema.conditions
    with pytest.raises(InputError, match="donor 'd3' was not in training; nearest: "):
        vocabulary.encode(foreign)
    with pytest.raises(InputError, match="perturbation 'Z' was not in training and has no features"):
        vocabulary.encode(table.assign(perturbation="A+Z", dose=1.0))


def test_extrapolation_is_said(vocabulary):
    with pytest.warns(DataWarning, match="time 72 is outside the 6 to 48 of the training cells"):
        encode(vocabulary, {"time": 72})
    with pytest.warns(DataWarning, match="dose 100 is outside the 1 to 10"):
        encode(vocabulary, {"drug": "A", "dose": 100})


def test_units_of_the_training_cells_hold():
    obs = TRAINING.assign(dose=["0 nM", "1000 nM", "10 uM", "1 uM", "3 uM", None])
    vocabulary = Vocabulary.learn(SCHEMA.table(Obs(obs)), SCHEMA)
    assert encode(vocabulary, {"drug": "A", "dose": "2000 nM"}).doses.tolist() == [[2.0]]
    with pytest.raises(InputError, match="dose is asked for in ng/ml, but the data give it in uM"):
        encode(vocabulary, {"drug": "A", "dose": "5 ng/ml"})


def test_json_round_trip(vocabulary, table):
    again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again == vocabulary
    assert same(again.encode(table), vocabulary.encode(table))


def test_an_atlas_without_conditions():
    schema = Schema()
    table = schema.table(Obs(pd.DataFrame(index=["c1", "c2", "c3"])))
    vocabulary = Vocabulary.learn(table, schema)
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    cond = vocabulary.encode(table)
    assert len(cond) == 3
    assert cond.codes == {}
    assert same(cond.keep(), cond)


def test_a_plus_in_a_name_is_no_combination_where_there_are_none():
    schema = Schema(perturbation="gene", combination_sep=None)
    table = schema.table(Obs(pd.DataFrame({"gene": ["CD4+", "CD8+CD3+"]})))
    vocabulary = Vocabulary.learn(table, schema)
    assert vocabulary.parts == ("CD4+", "CD8+CD3+")
    assert vocabulary.encode(table).parts.tolist() == [[1], [2]]


# ---- modules ---------------------------------------------------------------------------------------------------------


def with_modules(scores: np.ndarray) -> Vocabulary:
    schema = Schema(context="cell_type", modules=["IFN"])
    table = pd.DataFrame({"cell_type": "B"}, index=range(len(scores)))
    return Vocabulary.learn(table, schema, modules=pd.DataFrame({"IFN": scores}))


def test_modules_are_scalars_with_a_null():
    vocabulary = with_modules(np.r_[np.linspace(0, 2, 201), 50, np.nan])
    low, high = vocabulary.modules["IFN"]
    assert low == pytest.approx(0.01, abs=0.01)
    assert high == pytest.approx(2, abs=0.05)  # one cell far out makes no range
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    ask = partial(vocabulary.schema.conditions, known=vocabulary.known)
    cond = vocabulary.encode(ask([{"cell_type": "B", "IFN": 1.5}, {"cell_type": "B"}]))
    assert cond.attributes == ("cell_type", "dose", "time", "IFN")
    assert cond.modules["IFN"][0] == 1.5
    assert cond.modules["IFN"].isnan().tolist() == [False, True]
    assert cond[[1, 0]].modules["IFN"].isnan().tolist() == [True, False]
    assert cond.drop("IFN").modules["IFN"].isnan().all()
    assert cond.drop("cell_type").modules["IFN"][0] == 1.5
    assert cond.keep("cell_type").modules["IFN"].isnan().all()
    with pytest.warns(DataWarning, match="module IFN 3 is outside the"):
        vocabulary.encode(ask({"IFN": 3}))


@pytest.mark.parametrize("scores", [np.ones(5), np.full(5, np.nan)])
def test_modules_that_do_not_differ_are_refused(scores):
    with pytest.raises(InputError, match="module IFN does not differ between cells"):
        with_modules(scores)
