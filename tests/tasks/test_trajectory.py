"""ScIDiff.trajectory: where paths begin, lead and end, planted curves and branches, and what may be asked."""

from __future__ import annotations

from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.data.scaling import log1p_cp10k

N_GENES = 60
TINY = {"width": 8, "n_blocks": 1, "config": sd.TrainConfig(steps=4, batch_size=64)}
SCREEN = sd.Schema(perturbation="drug", control="DMSO", context=["cell_type"], dose="dose", time="hours")
COURSE = sd.Schema(context=["cell_type"], time="day")
rng = np.random.default_rng(1)
BASE = {kind: np.exp(rng.normal(size=N_GENES)) for kind in ("B", "NK")}
EFFECT = rng.normal(0, 1.0, N_GENES) * (rng.random(N_GENES) < 0.5)


def counts(share: np.ndarray, n: int, seed: list[int]) -> sparse.csr_matrix:
    own = np.random.default_rng(seed)
    depth = 900 * np.exp(0.2 * own.standard_normal(n))
    return sparse.csr_matrix(own.poisson(depth[:, None] * share / share.sum()), dtype=np.float32)


def adata(x: sparse.csr_matrix, prefix: str, **obs: object) -> AnnData:
    table = pd.DataFrame(obs, index=[f"{prefix}{i}" for i in range(x.shape[0])])
    return AnnData(x, obs=table, var=pd.DataFrame(index=[f"G{g}" for g in range(N_GENES)]))


def size(dose: float, hours: float) -> float:
    """Planted: Hill in dose, first-order kinetics in time."""
    return dose / (dose + 1) * -np.expm1(-hours / 12)


def treated(kind: str, dose: float, hours: float, n: int = 120, seed: int = 0) -> AnnData:
    share = BASE[kind] * np.exp(EFFECT * size(dose, hours))
    x = counts(share, n, [seed, len(kind), int(10 * dose), int(hours)])
    what = {"drug": "A" if dose else "DMSO", "dose": dose, "hours": hours, "cell_type": kind, "well": "w1"}
    return adata(x, f"{kind}-{dose}-{hours}-{seed}-", **what)


@pytest.fixture(scope="module")
def screened() -> sd.ScIDiff:
    made = [treated(kind, 0, 0, 300) for kind in BASE]
    made += [treated(kind, dose, 24) for kind in BASE for dose in (0.3, 1, 3, 10)]
    made += [treated(kind, 10, 6) for kind in BASE]
    return sd.ScIDiff.fit(ad.concat(made), SCREEN, **TINY)


@pytest.fixture(scope="module")
def controls() -> AnnData:
    """Control cells that the model has not seen, of two types, mixed."""
    both = ad.concat([treated(kind, 0, 0, 150, seed=5) for kind in BASE])
    return both[np.random.default_rng(0).permutation(300)].copy()


def frame(made: AnnData, k: int) -> AnnData:
    return made[made.obs["frame"] == k]


def effect(cells: AnnData, source: AnnData, kind: str) -> np.ndarray:
    means = [log1p_cp10k(a[a.obs["cell_type"] == kind].X).mean(axis=0) for a in (source,)]
    own = cells[cells.obs["cell_type"] == kind].X.mean(axis=0)
    return np.asarray(own - means[0]).ravel()


def truth(kind: str, dose: float, hours: float) -> np.ndarray:
    big = [treated(kind, d, h, 6000, seed=9) for d, h in ((dose, hours), (0, 0))]
    return np.asarray(log1p_cp10k(big[0].X).mean(axis=0) - log1p_cp10k(big[1].X).mean(axis=0)).ravel()


# ---- under a perturbation --------------------------------------------------------------------------------------------


def test_a_dose_path_begins_with_the_cells_passes_predictions_and_ends_with_one(screened, controls):
    controls = controls.copy()
    controls.var["symbol"] = controls.var_names.str.lower()
    before = controls.copy()
    made = screened.trajectory(controls, {"drug": "A", "hours": 24}, along={"dose": (0, 10)}, steps=10)
    pd.testing.assert_frame_equal(made.var, controls.var)
    assert made.n_obs == 11 * 300
    first = frame(made, 0)
    assert first.obs["cell"].tolist() == controls.obs_names.tolist()
    assert (first.layers["counts"] != controls.X).nnz == 0
    for k, dose in ((1, 1), (3, 3), (10, 10)):  # measured doses
        with pytest.warns(sd.DataWarning, match="measured in training"):
            there = screened.predict(controls, {"drug": "A", "hours": 24, "dose": dose})
        assert (frame(made, k).layers["counts"] != there.layers["counts"]).nnz == 0
    np.testing.assert_allclose(made.X.toarray(), log1p_cp10k(made.layers["counts"]).toarray(), rtol=1e-5)
    assert made.obs["position"].tolist() == np.repeat(np.linspace(0, 10, 11), 300).tolist()
    assert (made.obs["dose"] == made.obs["position"]).all()
    assert (made.obs["drug"] == "A").all()
    assert (made.obs["well"] == "w1").all()
    assert made.obs_names.is_unique
    told = made.uns["scidiff"]
    assert told["verb"] == "trajectory"
    assert told["stops"] == [0, 0.3, 1, 3, 10]
    pd.testing.assert_frame_equal(controls.obs, before.obs)
    assert (controls.X != before.X).nnz == 0


@pytest.mark.parametrize(
    ("to", "along", "steps", "asked"),
    [
        ({"drug": "A", "hours": 24}, {"dose": (0, 10)}, 5, {2: (4, 24), 3: (6, 24), 5: (10, 24)}),
        ({"drug": "A", "dose": 10}, {"hours": (0, 24)}, 4, {1: (10, 6), 2: (10, 12), 3: (10, 18), 4: (10, 24)}),
    ],
)
def test_planted_dose_and_time_curves(screened, controls, to, along, steps, asked):
    made = screened.trajectory(controls, to, along=along, steps=steps, network=False)
    for kind in BASE:
        for k, (dose, hours) in asked.items():
            true, found = truth(kind, dose, hours), effect(frame(made, k), controls, kind)
            assert found @ true / (true @ true) == pytest.approx(1, abs=0.1)
            assert np.corrcoef(found, true)[0, 1] > 0.95


def test_cells_keep_their_molecules_from_frame_to_frame(screened, controls):
    made = screened.trajectory(controls, {"drug": "A", "dose": 10, "hours": 24}, steps=20)
    x = [frame(made, k).layers["counts"] for k in range(21)]
    steps = np.array([abs(b - a).sum() for a, b in pairwise(x)])
    whole = abs(x[-1] - x[0]).sum()
    assert steps.sum() == whole  # nothing comes and goes
    assert steps.max() < 0.15 * whole  # nor jumps
    assert (made.obs["position"].iloc[-1], made.uns["scidiff"]["along"]) == (1, "share of the effect")
    half = effect(frame(made, 10), controls, "B")
    full = effect(frame(made, 20), controls, "B")
    assert half @ full / (full @ full) == pytest.approx(0.5, abs=0.05)


def test_a_path_may_lead_back(screened, controls):
    made = screened.trajectory(controls, {"drug": "A", "hours": 24}, along={"dose": (3, 0)}, steps=2)
    assert made.obs["dose"].unique().tolist() == [3, 1.5, 0]
    assert (frame(made, 2).layers["counts"] != controls.X).nnz == 0


# ---- between populations ---------------------------------------------------------------------------------------------

EARLY = {"left": np.r_[np.full(20, 6.0), np.ones(40)], "right": np.r_[np.ones(40), np.full(20, 6.0)]}
CHANGE = np.r_[np.ones(20), np.full(10, 8.0), np.ones(30)]


def day(when: float, n: int = 150, seed: int = 0) -> AnnData:
    """Two branches, each with its own genes; ten genes that all cells switch on by day 4."""
    made = []
    for i, (kind, share) in enumerate(EARLY.items()):
        x = counts(share * CHANGE ** (when / 4), n, [seed, i, int(10 * when)])
        made.append(adata(x, f"{kind}-{when}-{seed}-", cell_type=f"{kind} {when:g}", day=when))
    return ad.concat(made)


@pytest.fixture(scope="module")
def course() -> tuple[sd.ScIDiff, AnnData]:
    cells = ad.concat([day(0), day(4)])
    return sd.ScIDiff.fit(cells, COURSE, **TINY), cells


def branch(names: pd.Series) -> np.ndarray:
    return names.astype(str).str.split("-").str[0].to_numpy()


def test_cells_go_to_cells_of_their_branch(course):
    model, cells = course
    made = model.trajectory(cells, along={"day": (0, 4)}, steps=4, network=False)
    first, last = frame(made, 0), frame(made, 4)
    assert (first.layers["counts"] != cells[:300].X).nnz == 0
    assert first.obs["cell"].tolist() == cells.obs_names[:300].tolist()
    assert (branch(last.obs["cell"]) == branch(last.obs["toward"])).mean() > 0.98
    assert (last.layers["counts"] != cells[last.obs["toward"].astype(str)].X).nnz == 0
    assert set(last.obs["cell_type"]) == {"left 4", "right 4"}
    assert (last.obs["day"] == 4).all()
    middle = frame(made, 2)
    assert middle.obs["cell_type"].str.endswith("4").mean() == pytest.approx(0.5, abs=0.1)


def test_cells_that_multiply_arrive_early_and_all_ends_are_reached(course):
    model, cells = course
    made = model.trajectory(cells, along={"time": (0, 4)}, steps=2, growth=16, n_paths=600, network=False)
    arrived = frame(made, 1).obs["cell_type"].str.endswith("4").mean()
    assert arrived == pytest.approx(16 / 17, abs=0.03)
    ends = frame(made, 2).obs["toward"].value_counts()
    assert len(ends) == 300
    assert set(ends) == {2}


def test_new_cells_at_the_end_are_like_the_partners_but_not_them(course):
    model, cells = course
    made = model.trajectory(cells, along={"day": (0, 4)}, steps=1)
    last = frame(made, 1)
    partners = cells[last.obs["toward"].astype(str)].X
    own, shared = last.layers["counts"], last.layers["counts"].minimum(partners)
    np.testing.assert_array_equal(own.sum(axis=1), partners.sum(axis=1))
    assert 0.5 < shared.sum() / partners.sum() < 0.95


def test_measured_times_on_the_way_are_stops(course):
    model, cells = course
    more = ad.concat([cells, day(2, n=60)])
    made = model.trajectory(more, along={"day": (0, 4)}, steps=4, network=False)
    assert made.uns["scidiff"]["stops"] == [0, 2, 4]
    middle = frame(made, 2)
    assert set(middle.obs["cell_type"]) == {"left 2", "right 2"}
    assert (middle.layers["counts"] != more[frame(made, 1).obs["toward"].astype(str)].X).nnz == 0


def test_the_model_keeps_cells_to_go_to(course, tmp_path):
    model, cells = course
    alone = cells[cells.obs["day"] == 0][:20].copy()
    made = model.trajectory(alone, along={"day": (0, 4)}, steps=1, network=False)
    assert made.n_obs == 40
    assert set(frame(made, 1).obs["cell_type"]) <= {"left 4", "right 4"}
    made.write_h5ad(tmp_path / "path.h5ad")
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "path.h5ad").obs, made.obs, check_categorical=False)
    to = model.trajectory(alone, {"cell_type": "right 4"}, steps=1, network=False)
    assert set(frame(to, 1).obs["cell_type"]) == {"right 4"}


def test_a_seed_makes_paths_reproducible(course):
    model, cells = course
    ask = {"along": {"day": (0, 4)}, "where": {"cell_type": "left 0"}, "steps": 2}
    a, b, c = (model.trajectory(cells, seed=seed, **ask) for seed in (1, 1, 2))
    assert a.n_obs == 3 * 150
    assert (a.X != b.X).nnz == 0
    assert (a.X != c.X).nnz > 0


# ---- log expression --------------------------------------------------------------------------------------------------


def test_models_of_log_expression_move_in_straight_lines():
    cells = ad.concat([day(0, n=60), day(4, n=60)])
    cells.X = log1p_cp10k(cells.X)
    model = sd.ScIDiff.fit(cells, COURSE, **TINY)
    made = model.trajectory(cells, along={"day": (0, 4)}, steps=2)
    assert "counts" not in made.layers
    np.testing.assert_allclose(frame(made, 0).X, cells[:120].X.toarray(), rtol=1e-5)
    np.testing.assert_allclose(frame(made, 2).X, cells[frame(made, 2).obs["toward"].astype(str)].X.toarray(), rtol=1e-5)


# ---- what cannot be asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "how", "message"),
    [
        (None, {}, "say where to"),
        (None, {"along": {"days": (0, 4)}}, "unknown attribute 'days'; nearest: 'day'"),
        (None, {"along": {"cell_type": (0, 4)}}, "cell_type is no number"),
        (None, {"along": {"day": (4, 4)}}, "goes nowhere"),
        (None, {"along": {"day": 4}}, "needs where it begins and ends"),
        (None, {"along": {"day": "04"}}, "needs where it begins and ends"),
        (None, {"along": {"day": ("early", 4)}}, "early"),
        (None, {"along": {"day": (0, 4), "time": (0, 4)}}, "one attribute"),
        (None, {"along": {"day": (1, 4)}}, "no cell to start from: none is of time 1, only of 0, 4"),
        (None, {"along": {"day": (0, 7)}}, "no cell to go to.*none is of time 7, only of 0, 4"),
        (None, {"along": {"day": (0, 4)}, "where": {"cell_type": "left 4"}}, "no cell to start from"),
        (None, {"along": {"day": (0, 4)}, "where": {"cell_type": "up"}}, "no cell has cell_type='up'"),
        (None, {"along": {"day": (0, 4)}, "steps": 0}, "steps=0"),
        (None, {"along": {"day": (0, 4)}, "n_paths": 0}, "n_paths=0"),
        (None, {"along": {"day": (0, 4)}, "growth": 0}, "growth=0"),
        ({"cell_type": "up"}, {}, "unknown cell_type 'up'"),
        ({"day": 4}, {"along": {"day": (0, 4)}}, "given by to= and by along="),
    ],
)
def test_what_populations_refuse(course, to, how, message):
    model, cells = course
    with pytest.raises(sd.InputError, match=message):
        model.trajectory(cells, to, **how)


@pytest.mark.parametrize(
    ("to", "how", "message"),
    [
        ({"drug": "Z"}, {}, "'Z' was never measured"),
        ({"drug": "A"}, {"growth": 2}, "growth= and n_paths= are for populations"),
        ({"drug": "A"}, {"where": {"drug": "A"}}, "no cell has perturbation='A'"),
        ({"drug": "A", "cell_type": "B"}, {}, "cell_type belongs to the cells"),
        (None, {"along": {"dose": (0, 10)}}, "whose dose"),
    ],
)
def test_what_perturbations_refuse(screened, controls, to, how, message):
    with pytest.raises(sd.InputError, match=message):
        screened.trajectory(controls, to, **how)
