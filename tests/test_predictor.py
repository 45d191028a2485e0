"""Intervals that hold as often as they say, a score of how little is known, and reference cells."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scidiff as sd
from scidiff.data.cells import read_cells
from scidiff.data.scaling import log1p_cp10k
from scidiff.models.effects import Effect
from scidiff.predictor import NORMAL_90, REFERENCE_CELLS, Predictor, _share, _widened, conditions_of_groups

SCHEMA = sd.Schema(perturbation="perturbation", control="control", context=["cell_type"], dose="dose", time="time")
SCREEN = {
    "n_cells": 6000,
    "n_genes": 300,
    "n_tfs": 60,
    "n_states": 3,
    "n_batches": 1,
    "n_perturbations": 24,
    "n_null": 4,
    "n_duplicates": 2,
    "n_combinations": 9,
    "n_clones": 10,
    "doses": (1.0, 10.0),
    "times": (24.0,),
    "control_share": 0.2,
    "depth": 3000,
}
N_HELD_OUT = 60


@pytest.fixture(scope="module")
def screen():
    """Log expression, canonical conditions, masks of training and other control cells, and held-out conditions."""
    cells = read_cells(sd.data.simulate(**SCREEN, seed=0).adata, SCHEMA)
    table = cells.conditions
    rng = np.random.default_rng(0)
    control = SCHEMA.is_control(table)
    name = table.astype(str).agg("|".join, axis=1)
    sizes = name[~control].value_counts()
    held = rng.choice(sorted(sizes.index[sizes >= 12]), N_HELD_OUT, replace=False)
    aside = control & (rng.random(len(table)) < 0.5)
    train = ~aside & ~name.isin(held).to_numpy()
    tests = {held_out: (name == held_out).to_numpy() for held_out in held}
    return cells.x, table, train, aside, tests


@pytest.fixture(scope="module")
def predictor(screen) -> Predictor:
    x, table, train, *_ = screen
    made = Predictor.fit(x[train], table[train], SCHEMA, counts=True, features=None, seed=0)
    assert made is not None
    return made


def moments(x) -> tuple[np.ndarray, np.ndarray]:
    dense = x.toarray()
    return dense.mean(axis=0), dense.var(axis=0)


@pytest.fixture(scope="module")
def judged(screen, predictor) -> pd.DataFrame:
    """One row per held-out condition: kind, coverage of the 90 % intervals of the observed effect, ood, error."""
    x, table, _, aside, tests = screen
    logged = log1p_cp10k(x)
    rows = []
    for test in tests.values():
        asked = table[test].iloc[0]
        others = aside & (table["cell_type"] == asked["cell_type"]).to_numpy()
        (mean, _), (base, spread) = moments(logged[test]), moments(logged[others])
        try:
            effect = predictor.effects.predict(
                {"cell_type": asked["cell_type"]},
                SCHEMA.parts(asked["perturbation"]),
                dose=SCHEMA.dose_parts(asked["dose"]) or None,
                time=asked["time"],
            )
        except sd.InputError:  # all its conditions were held out
            continue
        low, high = predictor.interval(effect, spread * (1 / test.sum() + 1 / others.sum()))
        true, seen = mean - base, base > 0.05
        covered = ((low <= true) & (true <= high))[seen].mean()
        error = ((true - effect.mean)[seen] ** 2).mean() / (true[seen] ** 2).mean()
        rows.append((effect.kind, covered, predictor.ood(effect), error, len(rows)))
    return pd.DataFrame(rows, columns=["kind", "covered", "ood", "error", "row"])


def test_intervals_hold_nine_of_ten_effects_of_conditions_never_seen(judged):
    assert len(judged) >= 40
    assert 0.87 <= judged["covered"].mean() <= 0.93
    by_kind = judged.groupby("kind")["covered"].agg(["mean", "size"])
    assert set(by_kind.index) >= {"context", "combination"}
    assert by_kind["mean"].between(0.80, 0.97).all()


def test_intervals_widen_with_the_spread_of_few_cells(predictor):
    effect = Effect(np.ones(300), np.full(300, 0.01), 0.0, "context")
    few, many = (predictor.interval(effect, np.full(300, 0.5 / n)) for n in (10, 1000))
    assert (few[1] - few[0] > many[1] - many[0]).all()
    w = predictor.widen["context"]
    np.testing.assert_allclose(many[1] - 1, NORMAL_90 * np.sqrt(w**2 * 0.01 + 0.0005))
    unheard = Effect(effect.mean, effect.variance, 0.0, "features")
    assert (predictor.interval(unheard, np.zeros(300))[1] >= predictor.interval(effect, np.zeros(300))[1]).all()


@pytest.mark.parametrize("w", [0.5, 1.0, 2.0])
def test_the_factor_is_found_again(w):
    rng = np.random.default_rng(0)
    variance, noise = rng.gamma(2, 0.01, 20_000), rng.gamma(2, 0.01, 20_000)
    squares = (w**2 * variance + noise) * rng.standard_normal(20_000) ** 2
    assert _widened(squares, variance, noise) == pytest.approx(w, rel=0.1)


@pytest.mark.parametrize("true", [0.0, 0.4, 1.0])
def test_the_share_of_depth_ratios_that_comes_true_is_found_again(true):
    rng = np.random.default_rng(0)
    guesses = 0.3 * rng.standard_normal(400)
    truths = true * guesses + 0.05 * rng.standard_normal(400)
    assert _share(guesses, truths) == pytest.approx(true, abs=0.03)
    assert _share(guesses[:1], truths[:1] * 0) > 0.2 > _share(guesses, truths * 0)  # one condition says little
    assert _share(guesses, -guesses) == 0
    assert _share(guesses, 3 * guesses) == 1


def test_depth_ratios_are_taken_by_their_share(predictor):
    effect = Effect(np.zeros(300), np.zeros(300), 0.5, "context")
    assert 0 < predictor.depth_share["context"] <= 1
    assert predictor.depth_ratio(effect) == pytest.approx(np.exp(0.5 * predictor.depth_share["context"]))
    assert predictor.depth_ratio(replace(effect, kind="seen")) == pytest.approx(np.exp(0.5))


def test_less_is_known_of_what_is_further_from_training(judged, predictor, screen):
    _, table, train, *_ = screen
    single = SCHEMA.parts(table["perturbation"][train & (table["perturbation"] != "control").to_numpy()].iloc[0])[:1]
    types = sorted(table["cell_type"].unique())
    seen = predictor.ood(predictor.effects.predict({"cell_type": types[0]}, single))
    strange = np.random.default_rng(0).gamma(1, 1, 300)
    new = predictor.ood(predictor.effects.predict({"cell_type": "new"}, single, control_mean=strange))
    pair = (single[0], "nothing known")
    unknown = predictor.ood(predictor.effects.predict({"cell_type": "new"}, pair, control_mean=strange))
    assert 0 < seen < new < unknown < 1
    assert predictor.ood(predictor.effects.predict({"cell_type": types[0]}, ())) == 0
    assert judged["ood"].between(0, 1).all()


def test_reference_cells_are_controls_of_the_context(predictor, screen):
    x, table, train, *_ = screen
    for kind in table["cell_type"].unique():
        own = (train & (table["cell_type"] == kind) & (table["perturbation"] == "control")).to_numpy()
        kept = predictor.like({"cell_type": kind})
        assert kept.shape[0] == min(own.sum(), REFERENCE_CELLS)
        among = {row.tobytes() for row in x[own].toarray()}
        assert all(row.tobytes() in among for row in kept.toarray())
    assert predictor.like({"cell_type": "new"}).shape[0] == 0
    assert predictor.like({"cell_type": None}).shape[0] == predictor.reference.shape[0]


def test_files_keep_everything(predictor):
    arrays, about = predictor.to_arrays()
    again = Predictor.from_arrays(arrays, json.loads(json.dumps(about)), n_genes=300)
    assert again.widen == predictor.widen
    assert again.stacking == predictor.stacking
    assert (again.reference != predictor.reference).nnz == 0
    pd.testing.assert_frame_equal(again.reference_contexts, predictor.reference_contexts, check_dtype=False)
    parts = predictor.effects.process.measured.parts[:1]
    one, other = (p.effects.predict({"cell_type": "stem"}, parts) for p in (predictor, again))
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.variance, other.variance)


def test_nothing_to_learn_is_no_predictor():
    x = sparse.csr_matrix(np.random.default_rng(0).poisson(3, (20, 5)), dtype=np.float32)
    schema = sd.Schema(perturbation="p", control="c")
    for values in (["c"] * 20, ["A"] * 20):
        table = pd.DataFrame({"perturbation": values})
        assert Predictor.fit(x, table, schema, counts=True, features=None, seed=0) is None
    nothing = Predictor.fit(x, pd.DataFrame(index=range(20)), sd.Schema(), counts=True, features=None, seed=0)
    assert nothing is None


def test_conditions_become_parts_doses_and_times():
    schema = sd.Schema(perturbation="p", control="c", context="t", dose="d", time="h")
    table = schema.conditions(
        [
            {"p": "B+A", "d": "1+2", "t": "x", "h": 6},
            {"p": "c", "t": "x"},
            {"p": "A", "t": "x"},
            {"t": "x", "d": 3},
        ]
    )
    groups = conditions_of_groups(table, schema)
    assert groups["perturbation"].tolist() == [("A", "B"), (), ("A",), None]
    assert groups["dose"].iloc[0] == (2.0, 1.0)
    assert groups["dose"].iloc[3] is None
    assert groups["time"].iloc[0] == 6
    assert np.isnan(groups["time"].iloc[1])
