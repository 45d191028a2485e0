"""The simulator against its own claims: kinetics, counting, network, dose, time, fate, and how hard the screen is."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import poisson

from scidiff.data.biology import History
from scidiff.data.lab import _expected_log
from scidiff.data.scaling import log1p_cp10k
from scidiff.data.simulator import simulate
from scidiff.errors import InputError

SMALL = {
    "n_cells": 3000,
    "n_genes": 500,
    "n_tfs": 60,
    "n_clones": 20,
    "n_perturbations": 30,
    "n_null": 7,
    "n_duplicates": 5,
    "n_combinations": 6,
}


@pytest.fixture(scope="module")
def sim():
    return simulate(**SMALL)


@pytest.fixture(scope="module")
def lab(sim):
    return sim.lab


@pytest.fixture(scope="module")
def acting(lab):
    table = lab.perturbations
    return list(table.index[~table["is_null"] & table["duplicate_of"].eq("")])


@pytest.fixture(scope="module")
def effects(lab, acting):
    """Noise-free effects, genes x (perturbation, cell type)."""
    control = {c: np.log1p(lab.mean("control", cell_type=c)) for c in lab.states}
    return pd.DataFrame({(p, c): np.log1p(lab.mean(p, cell_type=c)) - control[c] for p in acting for c in lab.states})


def untreated(lab, n, **changes):
    """Histories of n cells of the first clone and branch, at age 0, untouched, except for the changes."""
    n_tfs = len(lab.tfs)
    values = {
        "branch": np.zeros(n, int),
        "age": np.zeros(n),
        "clone": np.zeros(n, int),
        "time": np.zeros(n),
        "arm": np.zeros(n, int),
        "keep": np.ones((1, n_tfs)),
        "push": np.zeros((1, n_tfs)),
    }
    return History(**(values | changes))


# --- kinetics -------------------------------------------------------------------------------------------------------


def test_rates_solve_the_kinetic_equations(lab):
    """An independent integrator agrees, through two changes of state and an intervention between them."""
    bio, age, time = lab.biology, 60.0, 30.0
    keep = np.ones((1, len(lab.tfs)))
    keep[0, bio.drivers[0]] = 0.1
    history = untreated(lab, 1, age=np.array([age]), time=np.array([time]), keep=keep)

    def alpha(clock):
        state = bio.state(history.branch, np.array([clock]))
        return bio.synthesis(state, bio.activity(state, history, np.array([clock - (age - time)])))[0].astype(float)

    def flow(clock, y):
        u, s = np.split(y, 2)
        return np.concatenate([alpha(clock) - bio.splicing * u, bio.splicing * u - bio.decay * s])

    start = np.concatenate([alpha(0.0) / bio.splicing, alpha(0.0) / bio.decay])
    expected = solve_ivp(flow, (0, age), start, rtol=1e-6, max_step=0.5).y[:, -1]
    np.testing.assert_allclose(np.concatenate(bio.rates(history), axis=1)[0], expected, rtol=5e-3)


def test_genes_respond_early_or_late_by_their_own_rates(lab):
    """The share of a step response reached after t hours, 1 - (beta e^-gamma t - gamma e^-beta t) / (beta - gamma)."""
    bio, time = lab.biology, 3.0
    keep = np.ones((1, len(lab.tfs)))
    keep[0, bio.drivers[0]] = 0.0
    history = untreated(lab, 1, age=np.array([10.0]), time=np.array([time]), keep=keep)
    before, after = (
        bio.synthesis(np.array([0]), bio.activity(np.array([0]), history, np.array([elapsed])))[0] / bio.decay
        for elapsed in (-1.0, time)
    )
    direct = np.abs(after / before - 1) > 0.05
    reached = (bio.rates(history)[1][0] - before)[direct] / (after - before)[direct]
    beta, gamma = bio.splicing[direct], bio.decay[direct]
    expected = 1 - (beta * np.exp(-gamma * time) - gamma * np.exp(-beta * time)) / (beta - gamma)
    np.testing.assert_allclose(reached, expected, atol=1e-3)
    assert direct.sum() > 20
    assert np.ptp(reached) > 0.2


def test_untreated_cells_have_the_planted_program(lab):
    bio = replace(lab.biology, clones=np.zeros_like(lab.biology.clones))
    states = np.arange(len(lab.states))
    activity = bio.activity(states, untreated(lab, states.size), np.full(states.size, -1.0))
    np.testing.assert_allclose(activity, bio.programs, rtol=1e-6)


def test_steady_state_ratio_of_unspliced_to_spliced(sim, lab):
    stem = sim.adata[(sim.adata.obs["perturbation"] == "control") & (sim.adata.obs["cell_type"] == "stem")]
    ratio = (sim.adata.var["decay_rate"] / sim.adata.var["splicing_rate"]).to_numpy()
    truth = lab.truth(stem).layers
    np.testing.assert_allclose(truth["unspliced"] / truth["spliced"], np.tile(ratio, (stem.n_obs, 1)), rtol=1e-4)
    unspliced, spliced = (np.asarray(stem.layers[key].sum(0)).ravel() for key in ("unspliced", "spliced"))
    total, share = unspliced + spliced, ratio / (1 + ratio)
    z = (unspliced - total * share)[total > 20] / np.sqrt(total * share * (1 - share))[total > 20]
    assert z.size > 50
    assert 0.8 < np.mean(z**2) < 1.25  # the split is binomial with exactly that share


def test_velocity_points_to_the_future(lab):
    cells = lab.run("control", n=300)
    history, bio = lab._recall(cells.obs), lab.biology
    now, truth = bio.rates(history)[1], lab.truth(cells)
    # abundances are relative: bring the velocity of counts back to their scale
    velocity = truth.layers["velocity"] * now / truth.layers["spliced"]
    for hours, tolerance in ((0.05, 0.05), (3.0, None)):
        safe = (history.age % bio.state_hours < bio.state_hours - hours) & (history.age > bio.state_hours)
        change = (bio.rates(replace(history, age=history.age + hours))[1] - now)[safe]
        if tolerance is not None:
            assert np.linalg.norm(change / hours - velocity[safe]) < tolerance * np.linalg.norm(velocity[safe])
        moving = np.abs(change) > 0.05 * hours * now[safe]
        assert moving.sum() > 1000
        assert np.mean(np.sign(change[moving]) == np.sign(velocity[safe][moving])) > 0.97


# --- counting -------------------------------------------------------------------------------------------------------


def test_layers_add_up_to_integer_counts(sim):
    adata = sim.adata
    assert adata.shape == (SMALL["n_cells"], SMALL["n_genes"])
    assert adata.X.dtype == np.float32
    assert adata.X.format == "csr"
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert abs(adata.X - adata.layers["counts"]).nnz == 0
    assert abs(adata.X - adata.layers["spliced"] - adata.layers["unspliced"]).nnz == 0
    assert not np.shares_memory(adata.X.data, adata.layers["counts"].data)


def test_default_screen_looks_like_cells():
    adata = simulate(n_cells=400).adata
    depth = np.asarray(adata.X.sum(1)).ravel()
    assert 1350 < np.median(depth) < 1650
    assert 0.82 < 1 - adata.X.nnz / np.prod(adata.shape) < 0.92
    share = np.sort(np.asarray(adata.X.sum(0)).ravel() / depth.sum())[::-1]
    assert 0.01 < share[0] < 0.2
    assert share[:100].sum() > 0.5


def test_counts_are_negative_binomial_around_the_truth(sim, lab):
    cells = sim.adata[:1500]
    mean, phi = lab.truth(cells).X.astype(float), cells.var["dispersion"].to_numpy()
    counts, variance = cells.X.toarray(), mean + phi * mean**2
    z = (counts.sum(0) - mean.sum(0)) / np.sqrt(variance.sum(0))
    assert 0.8 < np.mean(z**2) < 1.25
    level = pd.qcut(mean.mean(0), 5, labels=False)
    for group in range(5):  # the same law at every expression level
        genes = level == group
        assert np.sum((counts - mean)[:, genes] ** 2) / variance[:, genes].sum() == pytest.approx(1, abs=0.12)


def test_batch_effect_is_the_same_under_every_perturbation(sim, lab):
    """In controls and in treated cells alike, counts need the planted factors, and nothing else, to be explained."""
    adata, phi = sim.adata, sim.adata.var["dispersion"].to_numpy()
    bare = replace(lab, batches=np.ones_like(lab.batches))
    for arm in (adata.obs["perturbation"] == "control", adata.obs["perturbation"] != "control"):
        cells = adata[arm & (adata.obs["batch"] == "batch_2")]
        with_batch, without = (each.truth(cells).X.astype(float) for each in (lab, bare))
        ratio = np.log(with_batch.sum(0) / without.sum(0))
        assert np.corrcoef(ratio, np.log(lab.batches[1]))[0, 1] > 0.995
        surprise = [
            np.mean((np.asarray(cells.X.sum(0)).ravel() - mean.sum(0)) ** 2 / (mean + phi * mean**2).sum(0))
            for mean in (with_batch, without)
        ]
        assert 0.75 < surprise[0] < 1.3 < surprise[1]


def test_fresh_cells_have_the_noise_free_mean(lab, acting):
    name, bare = acting[0], replace(lab, batches=np.ones_like(lab.batches))
    cells = bare.run(name, cell_type="A1", time=24, n=3000)
    expected = bare.mean(name, cell_type="A1", time=24).to_numpy()
    assert expected.sum() == pytest.approx(1e4)
    share = bare.truth(cells).X / cells.obs["expected_depth"].to_numpy()[:, None]
    assert np.linalg.norm(1e4 * share.mean(0) - expected) < 0.02 * np.linalg.norm(expected)
    counted = 1e4 * np.asarray(cells.X.sum(0)).ravel() / cells.X.sum()
    assert np.corrcoef(np.log1p(counted), np.log1p(expected))[0, 1] > 0.995


def test_cells_are_made_in_chunks():
    lab = simulate(**SMALL | {"n_cells": 1, "depth": 30}).lab
    peaks = []
    for n in (6_000, 12_000):
        tracemalloc.start()
        lab.run("control", n=n)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # what a further cell costs is far less than a dense row of float64
    assert (peaks[1] - peaks[0]) / 6_000 < 8 * SMALL["n_genes"] / 3


def test_expected_log_expression_is_what_counted_cells_tend_to(lab, acting):
    asked = {"cell_type": "A1", "time": 24}
    n = 3000
    treated, control = (log1p_cp10k(lab.run(name, **asked, n=n).X).toarray() for name in (acting[0], "control"))
    expected = lab.log_mean(acting[0], **asked)
    seen = expected > 0.02
    assert np.abs(treated.mean(0) - expected)[seen].mean() < 0.02
    assert np.linalg.norm(treated.mean(0) - expected) < 0.02 * np.linalg.norm(expected)
    error = np.sqrt((treated.var(0) + control.var(0)) / n)
    z = (treated.mean(0) - control.mean(0) - lab.effect(acting[0], **asked, counted=True)) / (error + 1e-9)
    assert 0.85 < np.mean(z[seen] ** 2) < 1.2
    # of the mean before the logarithm it is another quantity
    assert (expected < 0.9 * np.log1p(lab.mean(acting[0], **asked)))[seen].mean() > 0.5


@pytest.mark.parametrize(("mean", "factor"), [(0.003, 7.0), (0.8, 6.0), (40.0, 2.5), (500.0, 1.3)])
def test_expectation_over_poisson_counts(mean, factor):
    n = np.arange(2000)
    exact = np.log1p(factor * n) @ poisson.pmf(n, mean)
    found = _expected_log(np.array([[mean, mean], [mean, mean]]), np.array([factor, 1.1 * factor]))
    assert found[0, 0] == pytest.approx(exact, rel=2e-3)


# --- biology --------------------------------------------------------------------------------------------------------


def test_a_knock_out_matters_only_where_its_factor_is_active(sim, lab, effects):
    """Genes that it activates fall, in states where it is active and their chromatin open, and nowhere else."""
    bio, found = lab.biology, {True: [], False: []}
    knocked = lab.perturbations.loc[effects.columns.levels[0]].query("type == 'crispr_ko'")
    for name, tf in knocked["target"].items():
        row = lab.tfs.index(tf)
        activated = sim.network.query("source == @tf and weight > 0.7")["target"]
        activated = [gene for gene in activated if gene not in lab.tfs]
        columns = [lab.genes.index(gene) for gene in activated]
        for terminal in lab.terminal_states:
            # long after the knock-out, in states that cells do not leave: no memory of earlier states
            state = lab.states.index(terminal)
            activity = bio.programs[state, row]
            if 0.2 < activity < 0.7:
                continue
            effect = lab.effect(name, cell_type=terminal, time=1000)[activated]
            seen = (bio.access[state, columns] == 1) & (lab.mean("control", cell_type=terminal)[activated] > 2)
            found[activity >= 0.7].extend(effect[seen])
    active, inactive = map(np.array, (found[True], found[False]))
    assert min(active.size, inactive.size) > 30
    assert np.mean(active < 0) > 0.85
    assert active.mean() < -0.3
    assert abs(inactive.mean()) < abs(active.mean()) / 3


def test_dose_follows_the_hill_curve(lab):
    drugs = lab.perturbations.query("type == 'drug' and not is_null")
    for name, drug in drugs.iterrows():
        target = drug["target"].split(";")[0]
        if lab.tfs.index(target) >= 0.2 * len(lab.tfs):
            continue  # below the first layer other targets of the drug may act on it too
        at = {dose: lab.activity(name, cell_type="stem", dose=dose)[target] for dose in (0, drug["ec50"], 1e12)}
        low, half, full = at.values()
        assert half - low == pytest.approx((full - low) / 2, rel=1e-3)
        assert low == pytest.approx(lab.activity(cell_type="stem")[target])
    name = drugs.index[0]
    cell_type = max(lab.states, key=lambda state: np.linalg.norm(lab.effect(name, cell_type=state)))
    full = lab.effect(name, cell_type=cell_type, dose=1e12)
    along = [lab.effect(name, cell_type=cell_type, dose=d) @ full / (full @ full) for d in (0, 0.1, 0.5, 2, 10, 1e9)]
    assert along[0] == 0
    assert (np.diff(along) > 0).all()
    assert along[-1] == pytest.approx(1, abs=1e-3)


def test_null_perturbations_do_nothing(lab):
    null = lab.perturbations.query("is_null")
    assert len(null) == SMALL["n_null"]
    for name in null.index:
        assert (lab.effect(name, cell_type="A1") == 0).all()
        assert lab.fate(name).equals(lab.fate().rename(name))


def test_duplicates_nearly_repeat_their_originals(lab, effects):
    twins = lab.perturbations.query("duplicate_of != ''")
    assert len(twins) == SMALL["n_duplicates"]
    for name, original in twins["duplicate_of"].items():
        cell_type = np.linalg.norm(effects[original], axis=0).argmax()
        first = effects[original].iloc[:, cell_type]
        second = lab.effect(name, cell_type=lab.states[cell_type])
        assert 0 < np.linalg.norm(first - second) < 0.25 * np.linalg.norm(first)


def test_effects_settle_with_time(lab, effects):
    name = max(effects.columns.levels[0], key=lambda p: np.linalg.norm(effects[p, "C1"]))
    settled = lab.effect(name, cell_type="C1", time=1000)
    gap = [np.linalg.norm(lab.effect(name, cell_type="C1", time=time) - settled) for time in (0, 3, 12, 48, 150)]
    assert (lab.effect(name, cell_type="C1", time=0) == 0).all()
    assert (np.diff(gap) < 0).all()
    assert gap[-1] < 0.02 * gap[0]


def test_pairs_interact_as_planted(lab):
    excess = {"additive": [], "synergistic": [], "epistatic": []}
    for name, interaction in lab.combinations.itertuples(index=False):
        for cell_type in lab.states:
            both = lab.effect(name, cell_type=cell_type)
            total = sum(lab.effect(part, cell_type=cell_type) for part in name.split("+"))
            excess[interaction].append((both @ total) / (total @ total) - 1)
    additive, synergistic, epistatic = map(np.mean, excess.values())
    assert abs(additive) < 0.05
    assert synergistic > 0.1
    assert epistatic < -0.1


def test_combinations_have_no_order(lab, acting):
    a, b = acting[:2]
    pd.testing.assert_series_equal(lab.effect(f"{a}+{b}", cell_type="B1"), lab.effect(f"{b}+{a}", cell_type="B1"))
    pd.testing.assert_series_equal(lab.effect(f"{a}+control", cell_type="B1"), lab.effect(a, cell_type="B1"))
    assert (lab.effect("control", cell_type="B1") == 0).all()


def test_drivers_decide_fate(lab):
    before = lab.fate()
    assert before.sum() == pytest.approx(1)
    for terminal, driver in lab.drivers.items():
        assert lab.fate(f"{driver}_ko")[terminal] < 0.5 * before[terminal]
        assert lab.fate(f"{driver}_a")[terminal] > 1.5 * before[terminal]
        assert lab.fate(cell_type=terminal)[terminal] == 1
    # the cells of an experiment that began before they could decide are made accordingly
    terminal, driver = next(iter(lab.drivers.items()))
    cells = lab.run(f"{driver}_ko", n=4000, time=200)
    branch = cells.obs["cell_type"].astype(str).str[0]
    expected = lab.fate(f"{driver}_ko")[terminal]
    assert np.mean(branch[branch != "s"] == terminal[0]) == pytest.approx(expected, abs=0.03)
    assert lab.truth(cells[branch == "s"]).obsm["fate"][terminal].mean() == pytest.approx(expected, abs=0.03)


def test_network_is_the_one_that_acts(sim, lab):
    between = sim.network[sim.network["target"].isin(lab.tfs) & (sim.network["source"] != sim.network["target"])]
    # no cycles: TFs are numbered along the cascade
    assert (between["source"] < between["target"]).all()
    # a planted activity comes back from the true network: what a TF's own targets say about its activation
    name = lab.perturbations.query("type == 'crispr_a' and not is_null").index[-1]
    tf = lab.perturbations.loc[name, "target"]
    state = min(lab.states, key=lambda s: lab.activity(cell_type=s)[tf])
    effect = lab.effect(name, cell_type=state)
    net = sim.network[~sim.network["target"].isin(lab.tfs)].pivot(index="target", columns="source", values="weight")
    score = net.fillna(0).corrwith(effect.reindex(net.index))
    assert score.idxmax() == tf


def test_features_are_right_except_for_the_planted_mistakes(sim, lab):
    table, features = lab.perturbations, sim.features
    crispr = table.query("type != 'drug' and not is_null")
    for name, target in crispr["target"].items():
        assert list(features.columns[features.loc[name] != 0]) == [target]
    drugs = table.query("type == 'drug' and not is_null")
    listed = [(name, tf) for name in drugs.index for tf in features.columns[features.loc[name] != 0]]
    right = [tf in drugs.loc[name, "target"].split(";") for name, tf in listed]
    assert len(listed) == sum(len(target.split(";")) for target in drugs["target"])
    assert right.count(False) == round(0.3 * len(listed))


# --- difficulty -----------------------------------------------------------------------------------------------------


def test_means_predict_badly(effects):
    """Neither the mean of the other perturbations nor the mean over the other contexts is a good answer."""
    others, contexts = [], []
    for name, cell_type in effects.columns:
        true = effects[name, cell_type]
        others.append(true.corr(effects.xs(cell_type, axis=1, level=1).drop(columns=name).mean(axis=1)))
        contexts.append(true.corr(effects[name].drop(columns=cell_type).mean(axis=1)))
    assert np.mean(others) < 0.4
    assert 0.5 < np.mean(contexts) < 0.9  # and yet contexts have something to say about each other


# --- seeds and errors -----------------------------------------------------------------------------------------------


def test_same_seed_same_screen():
    small = SMALL | {"n_cells": 200}
    first, again, other = simulate(**small), simulate(**small), simulate(**small, seed=1)
    assert abs(first.adata.X - again.adata.X).nnz == 0
    pd.testing.assert_frame_equal(first.adata.obs, again.adata.obs)
    pd.testing.assert_frame_equal(first.features, again.features)
    assert abs(first.adata.X - other.adata.X).nnz > 0
    assert not first.network.equals(other.network)


def test_runs_depend_on_request_and_seed_only(lab, acting):
    first = lab.run(acting[0], n=50)
    np.random.seed(0)  # noqa: NPY002
    lab.run(acting[1], n=10)
    assert abs(first.X - lab.run(acting[0], n=50).X).nnz == 0
    assert abs(first.X - lab.run(acting[0], n=50, seed=1).X).nnz > 0
    control = lab.run("control", n=50)
    assert not np.allclose(first.obs["expected_depth"], control.obs["expected_depth"])  # arms share no noise
    assert set(control.obs_names).isdisjoint(first.obs_names)


def test_runs_have_the_columns_of_the_screen(sim, lab, acting):
    cells = lab.run("+".join(acting[:2]), cell_type="A1", time=12, n=7)
    assert cells.n_obs == 7
    assert list(cells.obs) == list(sim.adata.obs)
    assert list(cells.var_names) == list(sim.adata.var_names)
    assert set(cells.layers) == set(sim.adata.layers)
    assert set(cells.obs["cell_type"]) == {"A1"}
    assert set(cells.obs["perturbation"]) == {"+".join(sorted(acting[:2]))}
    assert (cells.obs["time"] == 12).all()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"perturbation": "drug_1"}, r"no perturbation 'drug_1'; nearest: 'drug_"),
        ({"perturbation": "control+XXXX"}, r"no perturbation 'XXXX'"),
        ({"cell_type": "Stem"}, r"no cell type 'Stem'; nearest: 'stem'"),
        ({"dose": -1}, r"dose = -1"),
        ({"time": float("nan")}, r"time = nan"),
        ({"n": 0}, r"n = 0"),
    ],
)
def test_bad_requests_are_named(lab, request_, message):
    with pytest.raises(InputError, match=message):
        lab.run(**{"perturbation": "control", "n": 5} | request_)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_null": 26}, r"n_perturbations = 30 is too small"),
        ({"n_states": 2}, r"n_states = 2"),
        ({"n_genes": 60}, r"n_genes = 60"),
        ({"doses": ()}, r"number of doses = 0"),
        ({"wrong_targets": 2.0}, r"within \[0, 1\]"),
        ({"n_combinations": 200}, r"n_combinations = 200 is too large"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(InputError, match=message):
        simulate(**SMALL | change)


def test_pairs_are_made_of_perturbations_that_exist():
    few = {"n_perturbations": 12, "n_null": 1, "n_duplicates": 1, "n_combinations": 3}
    lab = simulate(**SMALL | few | {"n_cells": 100}).lab  # ten that act: four knock-outs, three activations
    assert {part for name in lab.combinations["name"] for part in name.split("+")} <= set(lab.perturbations.index)
