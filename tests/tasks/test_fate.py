"""``ScIDiff.velocity`` and ``ScIDiff.fate``: what they return is what other tools read, and what was planted."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scidiff as sd
from scidiff.data import simulate
from scidiff.evaluation.metrics import cross_boundary_direction
from scidiff.integration.velocity import nearest, read_velocity
from scidiff.tasks.fate import _found, _push
from scidiff.tasks.predict import perturbations
from scidiff.tasks.velocity import _by_some, placed, placed_by_halves

SCHEMA = sd.Schema(perturbation="perturbation", control="control", context=["cell_type"], dose="dose", time="time")


@pytest.fixture(scope="module")
def simulation():
    size = {"n_cells": 700, "n_genes": 150, "n_tfs": 20, "n_states": 4, "n_batches": 1, "control_share": 0.7}
    few = {"n_perturbations": 12, "n_null": 2, "n_duplicates": 1, "n_combinations": 0}
    return simulate(**size, **few, depth=3000, times=(72.0,), seed=0)


@pytest.fixture(scope="module")
def model(simulation):
    config = sd.TrainConfig(steps=160, batch_size=64, learning_rate=3e-3)
    return sd.ScIDiff.fit(simulation.adata, SCHEMA, denoise_only=True, width=32, n_blocks=1, config=config)


@pytest.fixture(scope="module")
def controls(simulation):
    return simulation.adata[simulation.adata.obs["perturbation"] == "control"].copy()


@pytest.fixture(scope="module")
def moving(model, controls):
    return model.velocity(controls, layer="counts")


@pytest.fixture(scope="module")
def ends(simulation):
    return {"cell_type": simulation.lab.terminal_states}


def test_velocity_points_out_of_the_stem(moving, simulation):
    branches = [("stem", end) for end in simulation.lab.terminal_states]
    points, v = moving.obsm["X_pca"], moving.obsm["velocity_pca"]
    found = cross_boundary_direction(points, v, moving.obs["cell_type"], branches, neighbors=nearest(points, 15))
    assert np.mean(list(found.values())) > 0


def test_velocity_is_in_the_form_that_others_read(moving, model, controls, tmp_path):
    assert moving.layers["velocity"].shape == moving.shape
    assert np.isfinite(moving.layers["velocity"]).all()
    np.testing.assert_allclose(moving.obsp["T_fwd"].sum(axis=1), 1)
    assert moving.obsp["T_fwd"].min() >= 0
    np.testing.assert_allclose(moving.layers["velocity"] @ moving.varm["PCs"], moving.obsm["velocity_pca"], atol=1e-4)
    pd.testing.assert_frame_equal(moving.var, controls.var.loc[model.genes])
    moving.write_h5ad(tmp_path / "moving.h5ad")
    again = ad.read_h5ad(tmp_path / "moving.h5ad")
    assert again.uns["scidiff"]["source"] == "spliced and unspliced"
    assert again.uns["scidiff"]["scales"]["velocity"].startswith("change of denoised")


def test_without_strength_nothing_moves(model, controls):
    still = model.velocity(controls[:60], strength=0, n_neighbors=10, layer="counts")
    np.testing.assert_allclose(still.layers["velocity"], 0, atol=1e-5)


def test_cells_flow_where_their_velocity_leads(model, controls):
    """What cells win beside those that flow against it is their velocity; what both do is the network's diffusion."""
    cells = controls.copy()
    cells.obs["young"] = ((cells.obs["cell_type"] != "stem") & (cells.obs["pseudotime"] < 0.7)).map(str)
    ask = {"velocity": 2, "where": {"young": "True"}, "steps": 4, "layer": "counts"}
    made = model.trajectory(cells, **ask)
    frame = [made[made.obs["frame"] == k] for k in range(5)]
    start = cells[cells.obs["young"] == "True"]
    pd.testing.assert_frame_equal(made.var, cells.var.loc[model.genes])
    assert frame[0].obs["cell"].tolist() == frame[0].obs["near"].tolist() == start.obs_names.tolist()
    assert (frame[0].layers["counts"] != start.layers["counts"]).nnz == 0
    depth = [np.asarray(some.layers["counts"].sum(axis=1)).ravel() for some in frame]
    np.testing.assert_array_equal(depth[4], depth[0])
    assert made.obs["position"].unique().tolist() == [0, 0.5, 1, 1.5, 2]
    assert (model.trajectory(cells, **ask).layers["counts"] != made.layers["counts"]).nnz == 0

    found = read_velocity(cells)
    cells.layers.update(Ms=found.s, velocity=-found.v)
    cells.var["velocity_genes"] = found.known
    against = model.trajectory(cells, **ask)
    forth, back = (way[way.obs["frame"] == 4].layers["counts"].mean(axis=0) for way in (made, against))
    won = np.asarray(forth - back).ravel()
    young = (cells.obs["young"] == "True").to_numpy()
    assert np.corrcoef(won, found.v[young].mean(axis=0))[0, 1] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"velocity": 0}, "velocity=0"),
        ({"velocity": 5, "along": {"time": (0, 72)}}, "leave out to=, along="),
        ({"velocity": 5, "where": {"cell_type": "nobody"}}, "nobody"),
    ],
)
def test_flows_that_cannot_be(model, controls, options, message):
    with pytest.raises(sd.InputError, match=message):
        model.trajectory(controls, layer="counts", **options)


def test_cellrank_reads_it(moving):
    cellrank = pytest.importorskip("cellrank")
    import scanpy

    cells = moving.copy()
    scanpy.pp.neighbors(cells, use_rep="X_pca", n_neighbors=15)
    own = cellrank.kernels.PrecomputedKernel("T_fwd", cells)
    np.testing.assert_allclose(own.transition_matrix.sum(axis=1), 1)
    theirs = cellrank.kernels.VelocityKernel(cells, xkey="denoised", vkey="velocity")
    theirs.compute_transition_matrix(show_progress_bar=False)
    np.testing.assert_allclose(theirs.transition_matrix.sum(axis=1), 1, rtol=1e-5)


def test_fate_is_that_of_the_simulator(model, controls, simulation, ends):
    found = model.fate(controls, ends, n_rounds=4, n_neighbors=15, layer="counts")
    table = found.uns["scidiff"]["fate"]
    stem = table[table["group"] == "stem"].set_index("end")
    truth = simulation.lab.fate()
    assert (stem["probability"] - truth).abs().max() < 0.1
    assert (stem["low"] <= stem["high"]).all()
    np.testing.assert_allclose(found.obsm["fate"].sum(axis=1), 1, rtol=1e-5)
    arrived = found.obs["cell_type"] == ends["cell_type"][0]
    assert (found.obsm["fate"].loc[arrived, ends["cell_type"][0]] == 1).all()
    again = model.fate(controls, ends, n_rounds=4, n_neighbors=15, layer="counts")
    np.testing.assert_array_equal(found.obsm["fate"], again.obsm["fate"])


def test_a_cell_is_not_told_more_than_its_group_where_genes_disagree(model, controls, simulation, ends):
    """Clones of the stem differ little: taking all of its cells to be alike errs less than believing each."""
    truth = simulation.lab.truth(controls).obsm["fate"]
    stem = (controls.obs["cell_type"] == "stem").to_numpy()
    made = [model.fate(controls, ends, n_rounds=n, n_neighbors=15, layer="counts") for n in (3, 8)]
    error = [np.abs(found.obsm["fate"] - truth)[stem].to_numpy().mean() for found in made]
    few, many = (found.uns["scidiff"]["fate"].set_index("group").loc["stem", "reliable"] for found in made)
    assert (few == 1).all()
    assert (many < 0.5).all()
    alike = np.abs(truth - truth[stem].mean())[stem].to_numpy().mean()
    assert error[1] < alike + 0.02 < error[0]


def test_halves_of_the_genes(model, controls):
    """A cell's place by half of its genes does not know the others."""
    seen = np.arange(len(model.genes)) % 2 == 0
    share = np.full(len(seen), 1 / len(seen))
    x = np.random.default_rng(0).poisson(3, (5, len(seen))).astype(np.float32)
    other = np.where(seen, x, 0)
    shown = _by_some(x, seen=seen, share=share)
    np.testing.assert_array_equal(shown, _by_some(other, seen=seen, share=share))
    np.testing.assert_array_equal(shown[:, seen], x[:, seen])
    np.testing.assert_allclose(shown.sum(axis=1), 2 * x[:, seen].sum(axis=1), rtol=1e-5)  # they are half of the share
    assert np.isfinite(_by_some(0 * x, seen=seen, share=share)).all()

    cells = placed(model, controls, layer="counts")
    made = [next(iter(placed_by_halves(model, controls, cells, seed=seed))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(made[0][1].points, made[1][1].points)
    assert (made[0][0] != made[2][0]).any()
    pair = placed_by_halves(model, controls, cells)
    np.testing.assert_array_equal(next(pair)[0], ~next(pair)[0])


@pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
@pytest.mark.parametrize("more", [{}, {"time": 30.0}, {"dose": 0.5, "time": 72.0}])
def test_a_push_is_the_effect_that_predict_tells(model, simulation, controls, more):
    drug = simulation.lab.perturbations.query("type == 'drug'").index[0]
    asked = {"perturbation": drug, **more}
    push = _push(model, controls, placed(model, controls, layer="counts"), perturbations(model, asked).iloc[0].dropna())
    told = model.predict(controls, asked, network=False, layer="counts").uns["scidiff"]["effects"]
    for kind in controls.obs["cell_type"].unique():
        rows = (controls.obs["cell_type"] == kind).to_numpy()
        own = told[told["condition"].str.startswith(f"cell_type={kind} ")]
        assert own["gene"].tolist() == model.genes
        np.testing.assert_array_equal(push[rows], np.tile(own["effect"].to_numpy(np.float32), (rows.sum(), 1)))
    assert np.abs(push).max() > 0.1


@pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
def test_fate_under_a_perturbation(model, simulation, ends, tmp_path):
    null = simulation.lab.perturbations.query("is_null and type != 'drug'").index[0]
    asked = {"perturbation": null, "dose": 1.0, "time": 72.0}
    found = model.fate(simulation.adata, ends, to=asked, n_rounds=3, n_neighbors=15, layer="counts")
    assert (found.obs["perturbation"] == "control").all()
    pd.testing.assert_frame_equal(found.var, simulation.adata.var.loc[model.genes])
    table = found.uns["scidiff"]["fate"]
    np.testing.assert_allclose(table["perturbed"] - table["probability"], table["change"], atol=1e-6)
    assert {"perturbed_low", "perturbed_high", "change_low", "change_high"} <= set(table)
    np.testing.assert_allclose(found.obsm["fate_perturbed"].sum(axis=1), 1, rtol=1e-5)
    found.write_h5ad(tmp_path / "fate.h5ad")


@pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
def test_fate_is_told_by_cells_that_had_the_perturbation(model, simulation, controls, ends):
    """Fresh cells of a knock-out tell where it leads, whatever its push; those of another perturbation do not."""
    driver = simulation.lab.drivers["B1"] + "_ko"
    ask = {"to": {"perturbation": driver, "time": 72.0}, "n_rounds": 2, "n_neighbors": 15, "layer": "counts"}
    fresh = simulation.lab.run(driver, time=72.0, n=300)
    seen = []
    found = model.fate(
        ad.concat([controls, fresh]), ends, on_cells=lambda done, total: seen.append((done, total)), **ask
    )
    table = found.uns["scidiff"]["fate"].query("group == 'stem'").set_index("end")
    assert (table["perturbed"] - simulation.lab.fate(driver)).abs().max() < 0.1
    assert found.n_obs == controls.n_obs
    arrived = fresh.obs["cell_type"].isin(ends["cell_type"]).sum()
    assert found.uns["scidiff"]["arrived_under_it"] == arrived > 100
    # once for velocity, twice two rounds, of the controls alone
    assert [total for _, total in seen] == [5 * controls.n_obs] * len(seen)
    assert np.all(np.diff([done for done, _ in seen]) > 0)
    assert seen[-1][0] == seen[-1][1]

    fresh.obs["time"] = 24.0  # not what is asked
    alone = model.fate(ad.concat([controls, fresh]), ends, **ask)
    assert alone.uns["scidiff"]["arrived_under_it"] == 0
    assert np.abs(alone.obsm["fate_perturbed"] - found.obsm["fate_perturbed"]).to_numpy().max() > 0.05


def test_cells_stand_for_those_of_their_group():
    """Later cells are fewer among those that a knock-out keeps from getting there."""
    group = np.array(["stem"] * 4 + ["late"] * 2 + ["A", "B"])
    arrived, over = _found(np.array(["stem"] * 6 + ["late", "A", "B", "B", "unheard of"]), ["A", "B"], group)
    assert sorted(arrived) == [0, 1, 1]
    np.testing.assert_allclose(over, [1.5] * 4 + [0.5] * 2 + [0, 0])
    _, alike = _found(np.array(["A"]), ["A", "B"], group)
    np.testing.assert_array_equal(alike, [1] * 6 + [0, 0])


@pytest.mark.parametrize(
    ("ends", "options", "message"),
    [
        ({"cell_type": ["A1", "B2x"]}, {}, "no cell has cell_type 'B2x'"),
        ({"cell_typ": ["A1", "B1"]}, {}, "no column 'cell_typ'"),
        ({"cell_type": ["A1"]}, {}, "two ends"),
        ({"cell_type": ["A1", "B1"]}, {"n_neighbors": 0}, "n_neighbors=0"),
        ({"cell_type": ["A1", "B1"]}, {"to": {"perturbation": "nobody"}, "use_velocity": False}, "nobody"),
        ({"cell_type": ["A1", "B1"]}, {"to": {"time": 72.0}}, "name the perturbation to predict"),
        ({"cell_type": ["A1", "B1"]}, {"to": {"cell_type": "A1"}}, "cell_type belongs to the cells"),
    ],
)
def test_bad_requests(model, controls, ends, options, message):
    with pytest.raises(sd.InputError, match=message):
        model.fate(controls[:200], ends, layer="counts", **{"n_rounds": 2} | options)


def test_velocity_needs_its_layers(model, controls):
    bare = ad.AnnData(controls.X, obs=controls.obs, var=controls.var)
    with pytest.raises(sd.InputError, match="no velocity in these cells"):
        model.velocity(bare)


def test_influence_is_one_molecule_more(model, controls):
    import torch

    one = controls[:1]
    table = model.influence(one, ["TF003", "G0007"], layer="counts")
    x = torch.from_numpy(one.layers["counts"].toarray())
    cond = model.vocabulary.encode(model.labels_of(one, use=True))
    more = x.clone()
    more[0, model.genes.index("TF003")] += 1
    with torch.no_grad():
        logs = [torch.log_softmax(model.posterior.expected(y, x.sum(dim=1), cond), 1) for y in (more, x)]
    np.testing.assert_allclose(table.loc["TF003"], (logs[0] - logs[1])[0], atol=1e-6)
    assert list(table.columns) == model.genes
    with pytest.raises(sd.InputError, match="'TF03' is not one of the model's genes"):
        model.influence(one, ["TF03"], layer="counts")
