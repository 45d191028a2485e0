"""ScIDiff as a user meets it: fit, generate, save, load, on a small screen with planted effects."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scidiff.data.schema import Schema
from scidiff.errors import InputError
from scidiff.estimator import ScIDiff
from scidiff.sampling import solvers
from scidiff.training import TrainConfig

SCHEMA = Schema(perturbation="drug", control="DMSO", context=["cell_type"], dose="dose", time="hours", batch="plate")
CONFIG = TrainConfig(steps=60, batch_size=64, evaluate_every=30, learning_rate=5e-3)
SMALL = {"width": 16, "n_blocks": 1, "config": CONFIG}
MARKERS = {"T": slice(0, 5), "B": slice(5, 10), "A": slice(10, 14), "C": slice(14, 18)}


def screen(n: int = 600, *, scale: str = "counts") -> ad.AnnData:
    """T and B cells; drug A raises genes 10-13, C genes 14-17, fourfold; depth 100 to 400."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "drug": rng.choice(["DMSO", "A", "C", "C+A"], n),
            "cell_type": rng.choice(["T", "B"], n),
            "hours": rng.choice([6.0, 24.0], n),
            "plate": rng.choice(["p1", "p2"], n),
        },
        index=[f"AAC{i}" for i in range(n)],
    )
    obs["dose"] = obs["drug"].map({"DMSO": "0", "A": "5", "C": "2", "C+A": "2+5"})
    rho = np.ones((n, 24))
    for name, genes in MARKERS.items():
        column = "cell_type" if name in "TB" else "drug"
        rho[obs[column].str.contains(name, regex=False).to_numpy() & (obs[column] != "DMSO").to_numpy(), genes] *= 4
    x = np.stack([rng.multinomial(rng.integers(100, 400), r / r.sum()) for r in rho]).astype(np.float32)
    if scale == "log2":  # as a microarray: no zeros, no counts
        x = np.log2(x + 8 + rng.random(x.shape)).astype(np.float32)
    obs["drug"] = obs["drug"].astype("category")
    return ad.AnnData(
        x if scale == "log2" else sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(24)])
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> ScIDiff:
    return ScIDiff.fit(screen(), SCHEMA, seed=0, **SMALL)


@pytest.fixture(scope="module")
def gaussian() -> ScIDiff:
    return ScIDiff.fit(screen(), SCHEMA, noise="gaussian", seed=0, **SMALL)


def test_a_model_says_in_three_lines_what_it_is(model):
    assert repr(model).splitlines() == [
        "ScIDiff of 24 genes, counts, thinning noise",
        f"    trained on {screen().n_obs} cells",
        "    conditions: perturbation (4 values), cell_type (2 values), batch (2 values), dose, time",
    ]


def share(cells: ad.AnnData, name: str) -> float:
    x = cells.layers["counts"]
    return float(x[:, MARKERS[name]].sum() / x.sum())


def equal(one: ad.AnnData, other: ad.AnnData) -> bool:
    same = (one.X != other.X).sum() == 0 and one.obs.equals(other.obs)
    return bool(same and list(one.var_names) == list(other.var_names))


class TestGenerate:
    """Thinning."""

    def test_integers_of_the_asked_depth(self, model):
        cells = model.generate(7, {"drug": "A"}, depth=123)
        x = cells.layers["counts"]
        assert x.format == "csr"
        assert (x.data == np.rint(x.data)).all()
        assert (x.data > 0).all()
        assert np.asarray(x.sum(axis=1)).ravel().tolist() == [123] * 7
        depths = np.arange(1, 8) * 1000.0
        cells = model.generate(7, depth=depths)
        np.testing.assert_array_equal(np.asarray(cells.layers["counts"].sum(axis=1)).ravel(), depths)

    def test_x_is_log1p_cp10k_of_the_counts(self, model):
        cells = model.generate(5, depth=200)
        np.testing.assert_allclose(
            cells.X.toarray(), np.log1p(cells.layers["counts"].toarray() * (10_000 / 200)), rtol=1e-5
        )

    def test_conditions_are_those_asked_for(self, model):
        cells = model.generate(4, pd.DataFrame({"drug": ["A", "A+C"], "cell_type": ["T", "B"]}))
        assert cells.obs["drug"].tolist() == ["A"] * 4 + ["A+C"] * 4
        assert cells.obs["cell_type"].tolist() == ["T"] * 4 + ["B"] * 4
        assert cells.obs["dose"].astype(str).tolist() == ["5.0"] * 4 + ["5+2"] * 4  # drawn with the rest of the row
        assert cells.n_obs == 8
        assert list(cells.var_names) == model.genes

    def test_open_conditions_are_drawn_as_in_training(self, model):
        cells = model.generate(800, {"cell_type": "T"}, n_steps=1)
        real = screen().obs.query("cell_type == 'T'")["drug"].map({"C+A": "A+C"}.get).fillna(screen().obs["drug"])
        expected = real.value_counts(normalize=True)
        drawn = cells.obs["drug"].value_counts(normalize=True)
        assert (drawn - expected).abs().max() < 4 * 0.5 / np.sqrt(800)
        assert set(cells.obs["hours"]) == {6.0, 24.0}
        assert cells.obs["hours"].dtype == float

    def test_depths_are_drawn_as_in_training(self, model):
        x = model.generate(500, n_steps=1).layers["counts"]
        depth = np.asarray(x.sum(axis=1)).ravel()
        assert depth.min() >= 100
        assert depth.max() < 400
        assert depth.mean() == pytest.approx(250, abs=20)

    def test_seeds(self, model):
        one, same, other = (model.generate(20, seed=seed) for seed in (3, 3, 4))
        assert equal(one, same)
        assert not equal(one, other)

    def test_the_condition_changes_the_cells_the_right_way(self, model):
        asked = [{"cell_type": t, "drug": d} for t in "TB" for d in ("DMSO", "A", "C", "A+C")]
        cells = {tuple(a.values()): model.generate(60, a, depth=300) for a in asked}
        for (kind, drug), made in cells.items():
            other = cells["B" if kind == "T" else "T", drug]
            assert share(made, kind) > 1.5 * share(other, kind)
            for part in "AC":
                ratio = share(made, part) / share(cells[kind, "DMSO"], part)
                assert (ratio > 1.5) == (part in drug.replace("DMSO", "")), (kind, drug, part)

    def test_dose_zero_is_the_control(self, model):
        """Anchor and network together: the same prediction, to the last bit."""
        asked = [{"cell_type": "T", "drug": drug, "dose": 0} for drug in ("A", "DMSO", "A+C")]
        cond = model.vocabulary.encode(model.schema.conditions(asked), depth=np.full(3, 200))
        x = torch.ones(1, 24).expand(3, -1)
        with torch.no_grad():
            zero, control, zeros = model.denoiser(x, x.sum(1), cond)
            cond = model.vocabulary.encode(model.schema.conditions([asked[0] | {"dose": 5}] * 3), depth=np.full(3, 200))
            treated = model.denoiser(x, x.sum(1), cond)
        assert torch.equal(zero, control)
        assert torch.equal(zeros, control)
        assert not torch.allclose(treated[0], control)

    @pytest.mark.parametrize("attribute", [None, "perturbation"])
    def test_guidance_strengthens(self, model, attribute):
        condition = {"cell_type": "T", "drug": "A", "dose": 5, "hours": 6, "plate": "p1"}
        weights = [w if attribute is None else {attribute: w} for w in (0.0, 1.0, 2.5)]
        made = [model.generate(80, condition, depth=300, guidance=w, n_steps=10) for w in weights]
        shares = [share(cells, "A") for cells in made]
        assert all(weak < 0.9 * strong for weak, strong in pairwise(shares))

    def test_what_is_written_can_be_read(self, model, tmp_path):
        cells = model.generate(6, {"drug": "A"}, guidance={"perturbation": 2.0}, seed=5)
        cells.write_h5ad(tmp_path / "cells.h5ad")
        again = ad.read_h5ad(tmp_path / "cells.h5ad")
        about = again.uns["scidiff"]
        assert about["verb"] == "generate"
        assert about["process"] == "thinning"
        assert about["seed"] == 5
        assert about["guidance"] == {"perturbation": 2.0}
        assert about["scales"]["X"] == "log1p(CP10k)"
        assert about["scales"]["counts"] == "counts"
        assert set(about["scales"]) == {"X", *again.layers}
        assert Schema.from_dict(json.loads(about["schema"])) == SCHEMA
        assert equal(again, cells)

    @pytest.mark.parametrize("condition", [None, {"drug": "A", "cell_type": "T"}, {"drug": "A+C", "dose": "1+1"}])
    @pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
    def test_any_condition_can_be_written(self, model, tmp_path, condition):
        """Doses of singles are numbers, of combinations text; what is unknown is said."""
        model.generate(12, condition, n_steps=2).write_h5ad(tmp_path / "cells.h5ad")
        obs = ad.read_h5ad(tmp_path / "cells.h5ad").obs
        assert list(obs.columns) == ["drug", "cell_type", "dose", "hours", "plate"]

    def test_progress(self, model):
        seen = []
        model.generate(300, n_steps=1, on_cells=lambda *at: seen.append(at))
        assert seen == [(256, 300), (300, 300)]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"condition": {"drug": "B"}}, "unknown perturbation 'B'"),
            ({"condition": {"celltype": "T"}}, "unknown attribute 'celltype'; nearest: 'cell_type'"),
            ({"condition": pd.DataFrame({"drug": []})}, "no rows"),
            ({"n": 0}, "n=0"),
            ({"n_steps": 0}, "n_steps=0"),
            ({"depth": 0}, "depth must be"),
            ({"depth": [100.0, 200.0, 300.0], "n": 2}, "one for each of the 2 cells"),
            ({"depth": float("nan")}, "depth must be"),
            ({"guidance": float("inf")}, "guidance weight"),
            ({"guidance": {"colour": 2.0}}, "guidance names 'colour'"),
        ],
    )
    def test_bad_requests(self, model, arguments, message):
        with pytest.raises(InputError, match=message):
            model.generate(**arguments)


class TestFit:
    """What goes in."""

    def test_the_callers_object_is_left_alone(self):
        adata = screen(80)
        before = adata.copy()
        ScIDiff.fit(adata, SCHEMA, **(SMALL | {"config": TrainConfig(steps=2)}))
        assert (adata.X != before.X).nnz == 0
        pd.testing.assert_frame_equal(adata.obs, before.obs)
        assert not adata.uns
        assert not adata.layers

    def test_the_seed_makes_the_model(self):
        short = SMALL | {"config": TrainConfig(steps=5)}
        states = [ScIDiff.fit(screen(80), SCHEMA, seed=seed, **short).denoiser.state_dict() for seed in (1, 1, 2)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])

    def test_a_plain_atlas(self, tmp_path):
        adata = screen(100)
        model = ScIDiff.fit(adata, **(SMALL | {"config": TrainConfig(steps=2)}))
        cells = ScIDiff.load(model.save(tmp_path / "m")).generate(5)
        assert cells.shape == (5, 24)
        assert cells.obs.shape == (5, 0)

    def test_one_cell(self):
        for noise in ("thinning", "gaussian"):
            model = ScIDiff.fit(screen(1)[:1], noise=noise, **(SMALL | {"config": TrainConfig(steps=2)}))
            assert model.generate(3).shape == (3, 24)

    def test_missing_values_in_obs(self):
        adata = screen(80)
        adata.obs["cell_type"] = adata.obs["cell_type"].where(np.arange(80) % 4 > 0)
        with pytest.warns(UserWarning, match="20 of 80 cells have no value in obs column 'cell_type'"):
            model = ScIDiff.fit(adata, SCHEMA, **(SMALL | {"config": TrainConfig(steps=2)}))
        cells = model.generate(100, n_steps=1)
        assert set(cells.obs["cell_type"].dropna()) == {"T", "B"}
        assert 5 < cells.obs["cell_type"].isna().sum() < 50  # missing as often as in training
        assert model.denoise(cells, labels=True).n_obs == 100  # what one verb writes, the others read

    def test_genes_can_be_chosen(self):
        short = SMALL | {"config": TrainConfig(steps=2)}
        assert ScIDiff.fit(screen(80), genes=["g3", "g1"], **short).generate(2).var_names.tolist() == ["g3", "g1"]
        assert ScIDiff.fit(screen(80), genes=6, **short).generate(2).n_vars == 6
        with pytest.raises(InputError, match="first 'gen1'"):
            ScIDiff.fit(screen(80), genes=["g1", "gen1"], **short)

    def test_features_allow_unseen_perturbations(self, tmp_path):
        features = pd.DataFrame({"kinase": [1.0, 0.0, 1.0], "gpcr": [0.0, 1.0, 0.0]}, index=["A", "C", "new"])
        model = ScIDiff.fit(screen(80), SCHEMA, features=features, **(SMALL | {"config": TrainConfig(steps=5)}))
        again = ScIDiff.load(model.save(tmp_path / "m"))
        condition = {"drug": "new", "cell_type": "T", "dose": 5, "hours": 6, "plate": "p1"}
        assert equal(model.generate(10, condition, depth=100), again.generate(10, condition, depth=100))
        with pytest.raises(InputError, match="features have no row for perturbation 'C'"):
            ScIDiff.fit(screen(80), SCHEMA, features=features.drop(index="C"), **SMALL)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"noise": "gausian"}, "unknown noise process 'gausian'; nearest: 'gaussian'"),
            ({"schema": Schema(context=["celltype"])}, "no obs column 'celltype'"),
            ({"schema": Schema(perturbation="drug", control="DMS0")}, "control 'DMS0' is not in obs column 'drug'"),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(InputError, match=message):
            ScIDiff.fit(screen(20), **arguments)

    def test_thinning_needs_counts(self):
        with pytest.raises(InputError, match="thinning needs raw counts"):
            ScIDiff.fit(screen(20, scale="log2"), noise="thinning")


class TestSaveAndLoad:
    """A loaded model is the model."""

    @pytest.mark.parametrize("which", ["model", "gaussian"])
    def test_same_cells(self, which, request, tmp_path):
        model = request.getfixturevalue(which)
        again = ScIDiff.load(model.save(tmp_path / "m"))
        for condition in (None, {"drug": "A+C"}, {"cell_type": "T"}):
            assert equal(model.generate(25, condition, seed=2), again.generate(25, condition, seed=2))
        assert again.genes == model.genes
        assert again.schema == model.schema
        assert again.settings == model.settings
        pd.testing.assert_frame_equal(again.history, model.history)

    def test_saved_twice_is_the_same(self, model, tmp_path):
        first = model.save(tmp_path / "one")
        second = ScIDiff.load(first).save(tmp_path / "two")
        for name in ("manifest.json", "weights.safetensors"):
            assert (first / name).read_bytes() == (second / name).read_bytes()


class TestGaussian:
    """Data with and without counts."""

    @pytest.mark.parametrize(
        "solver",
        [None, solvers.ddim, partial(solvers.ddim, eta=1.0), solvers.ddpm, solvers.euler_maruyama, solvers.heun],
    )
    def test_every_solver(self, gaussian, solver):
        cells = gaussian.generate(200, {"cell_type": "T", "drug": "DMSO"}, solver=solver, n_steps=15)
        assert np.isfinite(cells.X).all()
        assert (cells.X >= 0).all()
        assert cells.X[:, MARKERS["T"]].mean() > cells.X[:, MARKERS["B"]].mean() + 0.3
        assert "counts" not in cells.layers
        assert cells.uns["scidiff"]["scales"] == {"X": "log1p(CP10k)"}
        name = "default" if solver is None else getattr(solver, "func", solver).__name__
        assert cells.uns["scidiff"]["solver"] == name

    def test_guidance_strengthens(self, gaussian):
        condition = {"cell_type": "T", "drug": "A", "dose": 5, "hours": 6, "plate": "p1"}
        levels = [
            gaussian.generate(150, condition, guidance={"perturbation": w}).X[:, MARKERS["A"]].mean() for w in (0, 1, 2)
        ]
        assert levels[0] < levels[1] < levels[2]

    def test_data_that_never_were_counts(self, tmp_path):
        adata = screen(400, scale="log2")
        model = ScIDiff.fit(adata, SCHEMA, **SMALL)
        assert model.settings["noise"] == "gaussian"
        cells = ScIDiff.load(model.save(tmp_path / "m")).generate(300, n_steps=12)
        np.testing.assert_allclose(cells.X.mean(0), adata.X.mean(0), atol=0.25)
        np.testing.assert_allclose(cells.X.std(0), adata.X.std(0), rtol=0.5)  # 60 steps of training
        assert cells.uns["scidiff"]["scales"] == {"X": "training scale"}
        cells.write_h5ad(tmp_path / "cells.h5ad")
