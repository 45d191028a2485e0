"""``ScIDiff.denoise``: every scale is what it says, draws keep what was seen, labels and genes count as they should."""

from __future__ import annotations

import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import scidiff as sd
from scidiff.tasks.denoise import SIGMAS

SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context="cell_type")
N_GENES = 30


def composition(obs: pd.DataFrame) -> np.ndarray:
    """T and B cells, with or without a drug: each raises five genes sixfold."""
    rho = np.ones((len(obs), N_GENES))
    for genes, column, value in ((slice(0, 5), "cell_type", "T"), (slice(5, 10), "cell_type", "B")):
        rho[(obs[column] == value).to_numpy(), genes] *= 6
    rho[(obs["drug"] == "A").to_numpy(), 10:15] *= 6
    return rho / rho.sum(1, keepdims=True)


def cells(n: int = 600, seed: int = 0) -> ad.AnnData:
    """Return cells of 20 to 80 molecules."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {"drug": rng.choice(["DMSO", "A"], n), "cell_type": rng.choice(["T", "B"], n)},
        index=[f"cell{seed}-{i}" for i in range(n)],
    )
    x = np.stack([rng.multinomial(rng.integers(20, 80), rho) for rho in composition(obs)])
    genes = pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)])
    return ad.AnnData(sparse.csr_matrix(x, dtype=np.float32), obs=obs, var=genes)


def fit(adata: ad.AnnData, schema: sd.Schema | None = SCHEMA, *, steps: int = 60, **options: object) -> sd.ScIDiff:
    config = sd.TrainConfig(steps=steps, batch_size=64, learning_rate=5e-3)
    return sd.ScIDiff.fit(adata, schema, width=16, n_blocks=1, config=config, **options)


@pytest.fixture(scope="module")
def model() -> sd.ScIDiff:
    return fit(cells(), denoise_only=True)


@pytest.fixture(scope="module")
def unlabelled() -> sd.ScIDiff:
    return fit(cells(), schema=None, steps=150, denoise_only=True)


@pytest.fixture(scope="module")
def gaussian() -> sd.ScIDiff:
    return fit(cells(), schema=None, noise="gaussian", steps=150)


def log_expression() -> ad.AnnData:
    adata = cells(200)
    rng = np.random.default_rng(1)
    adata.X = (np.log2(adata.X.toarray() + 4) + 0.1 * rng.random(adata.shape)).astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def logged() -> sd.ScIDiff:
    return fit(log_expression(), steps=5)


def depth_of(adata: ad.AnnData) -> np.ndarray:
    return np.asarray(adata.X.sum(axis=1)).ravel()


# ---- what it says of cells ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["unlabelled", "gaussian"])
def test_cells_are_nearer_to_their_truth_than_counts_or_the_average(which, request):
    """New cells, and models that were never told of types or drugs: all they have is the molecules."""
    new = cells(300, seed=1)
    truth, x = composition(new.obs), new.X.toarray()
    denoised = request.getfixturevalue(which).denoise(new, scales=["rate"]).layers["rate"] / 1e4
    raw, average = x / x.sum(1, keepdims=True), np.broadcast_to(x.sum(0) / x.sum(), x.shape)
    error = {name: np.square(p - truth).sum() for name, p in (("raw", raw), ("average", average), ("model", denoised))}
    assert error["model"] < 0.5 * error["average"] < 0.5 * error["raw"]


def test_scales_are_what_they_say(model):
    adata = cells(40, seed=1)
    made = model.denoise(adata, scales=["log1p", "rate", "expected_counts", "expected_log"])
    n = depth_of(adata)
    rate = made.layers["rate"]
    np.testing.assert_allclose(rate.sum(1), 1e4, rtol=1e-5)
    np.testing.assert_allclose(made.layers["denoised"], np.log1p(rate), rtol=1e-5)
    np.testing.assert_allclose(made.layers["expected_counts"], rate / 1e4 * n[:, None], rtol=1e-5)
    k = np.arange(81)[:, None, None]  # no cell has more molecules
    chance = stats.binom.pmf(k, n[:, None], rate.astype(float) / 1e4)
    np.testing.assert_allclose(
        made.layers["expected_log"], (chance * np.log1p(1e4 * k / n[:, None])).sum(0), rtol=1e-3, atol=1e-3
    )
    assert set(made.uns["scidiff"]["scales"]) == {"X", *made.layers}


def test_observed_cells_come_back_beside_the_result_and_the_input_is_untouched(model):
    adata = cells(40, seed=1)
    before = adata.copy()
    made = model.denoise(adata, draws=1)
    assert (adata.X != before.X).nnz == 0
    assert list(adata.layers) == []
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (made.layers["counts"] != adata.X).nnz == 0
    np.testing.assert_allclose(
        made.X.toarray(), np.log1p(adata.X.toarray() / depth_of(adata)[:, None] * 1e4), rtol=1e-5
    )
    pd.testing.assert_frame_equal(made.obs, adata.obs)


def test_depth_sets_expected_scales_and_leaves_rates_alone(model):
    adata = cells(40, seed=1)
    depth = np.linspace(50, 500, 40).round()
    made = model.denoise(adata, scales=["rate", "expected_counts"], depth=depth)
    np.testing.assert_array_equal(made.layers["rate"], model.denoise(adata, scales=["rate"]).layers["rate"])
    np.testing.assert_allclose(made.layers["expected_counts"].sum(1), depth, rtol=1e-5)


def test_a_cell_does_not_depend_on_the_cells_beside_it(model):
    adata = cells(40, seed=1)
    together = model.denoise(adata).layers["denoised"]
    for i in (0, 17):
        np.testing.assert_allclose(model.denoise(adata[[i]]).layers["denoised"][0], together[i], atol=1e-5)


def test_a_loaded_model_denoises_the_same(model, tmp_path):
    adata = cells(20, seed=1)
    again = sd.ScIDiff.load(model.save(tmp_path / "model")).denoise(adata, draws=1)
    made = model.denoise(adata, draws=1)
    np.testing.assert_array_equal(made.layers["denoised"], again.layers["denoised"])
    assert (made.layers["draw_1"] != again.layers["draw_1"]).nnz == 0


# ---- draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [None, 150.0])
def test_draws_keep_every_molecule_and_reach_their_depth(model, depth):
    adata = cells(40, seed=1)
    made = model.denoise(adata, scales=(), draws=3, depth=depth)
    goal = 2 * depth_of(adata) if depth is None else np.full(40, depth)
    for i in (1, 2, 3):
        drawn = made.layers[f"draw_{i}"].toarray()
        np.testing.assert_array_equal(drawn, np.rint(drawn))
        assert (drawn >= adata.X.toarray()).all()
        np.testing.assert_array_equal(drawn.sum(1), goal)
    assert (made.layers["draw_1"] != made.layers["draw_2"]).nnz > 0


def test_draws_have_the_mean_that_is_stated(unlabelled):
    """Molecules that are drawn to join a cell follow its posterior mean rate, cell by cell."""
    adata = cells(60, seed=1)
    made = unlabelled.denoise(adata, scales=["rate"], draws=40)
    joined = sum(made.layers[f"draw_{i}"] - adata.X for i in range(1, 41)).toarray()
    mean, rate = joined / joined.sum(1, keepdims=True), made.layers["rate"] / 1e4
    average = np.broadcast_to(joined.sum(0) / joined.sum(), rate.shape)
    assert np.square(mean - rate).sum() < 0.25 * np.square(mean - average).sum()


def test_draws_depend_on_the_seed_alone(model):
    """Not on how many there are, nor on cells of other blocks."""
    adata = cells(300, seed=1)
    one, more = (model.denoise(adata, scales=(), draws=n, seed=3) for n in (1, 2))
    fewer = model.denoise(adata[:256], scales=(), draws=1, seed=3)
    other = model.denoise(adata, scales=(), draws=1, seed=4)
    assert (one.layers["draw_1"] != more.layers["draw_1"]).nnz == 0
    assert (one.layers["draw_1"][:256] != fewer.layers["draw_1"]).nnz == 0
    assert (one.layers["draw_1"] != other.layers["draw_1"]).nnz > 0
    added = (one.layers["draw_1"] - adata.X).toarray()  # blocks do not repeat each other's noise
    assert not np.array_equal(added[:44], added[256:])


# ---- labels ---------------------------------------------------------------------------------------------------------


def test_labels_matter_and_can_be_left_aside(model):
    adata = cells(40, seed=1)
    with_labels = model.denoise(adata).layers["denoised"]
    without = model.denoise(adata, labels=False).layers["denoised"]
    bare = ad.AnnData(adata.X, obs=pd.DataFrame(index=adata.obs_names), var=adata.var)
    np.testing.assert_array_equal(model.denoise(bare).layers["denoised"], without)
    assert np.abs(with_labels - without).max() > 0.1


def test_unknown_labels_count_as_missing_and_are_named(model):
    adata = cells(40, seed=1)
    told, missing = adata.copy(), adata.copy()
    told.obs["cell_type"] = ["NK"] * 3 + list(adata.obs["cell_type"][3:])
    missing.obs["cell_type"] = [None] * 3 + list(adata.obs["cell_type"][3:])
    with pytest.warns(sd.DataWarning, match=r"not known to the model: cell_type 'NK' \(3 cells\); taken as unlabelled"):
        made = model.denoise(told)
    np.testing.assert_array_equal(made.layers["denoised"], model.denoise(missing).layers["denoised"])
    np.testing.assert_array_equal(made.layers["denoised"][3:], model.denoise(adata).layers["denoised"][3:])
    assert list(made.obs["cell_type"][:3]) == ["NK"] * 3


def test_an_unknown_combination_is_taken_as_unlabelled_as_a_whole(model):
    adata = cells(10, seed=1)
    told, missing = adata.copy(), adata.copy()
    told.obs["drug"] = "A+X"
    missing.obs["drug"] = None
    with pytest.warns(sd.DataWarning, match="perturbation 'A\\+X'"):
        made = model.denoise(told)
    np.testing.assert_array_equal(made.layers["denoised"], model.denoise(missing).layers["denoised"])


def test_a_lost_column_is_named(model):
    adata = cells(10, seed=1)
    del adata.obs["drug"]
    with pytest.warns(sd.DataWarning, match=r"obs column 'drug' \(absent\)"):
        model.denoise(adata)


# ---- genes ----------------------------------------------------------------------------------------------------------


def test_genes_choose_columns_and_change_nothing_else(model):
    adata = cells(40, seed=1)
    whole, some = model.denoise(adata, draws=1), model.denoise(adata, draws=1, genes=["g7", "g2"])
    assert list(some.var_names) == ["g7", "g2"]
    np.testing.assert_array_equal(some.layers["denoised"], whole[:, ["g7", "g2"]].layers["denoised"])
    for layer in ("counts", "draw_1"):
        assert (some.layers[layer] != whole[:, ["g7", "g2"]].layers[layer]).nnz == 0
    assert (some.X != whole[:, ["g7", "g2"]].X).nnz == 0  # per 10,000 of all genes


@pytest.mark.parametrize("place", ["X", "raw", "file"])
def test_what_the_file_says_of_genes_comes_back(model, tmp_path, place):
    """Also where the counts are in raw, of more genes; what is not there is unknown, and can be written."""
    adata = cells(20)[:, 1:].copy()
    adata.var["gene_id"] = [f"ENS{name}" for name in adata.var_names]
    adata.var["often"] = np.ravel(adata.X.mean(axis=0)) > 1
    adata.var["mean"] = np.ravel(adata.X.mean(axis=0))
    known = adata.var
    if place == "raw":
        adata.raw = adata.copy()
        adata = adata[:, :5].copy()
        adata.X = adata.X.toarray() - 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.DataWarning)  # one of 30 genes is not there
        if place == "file":
            adata.write_h5ad(tmp_path / "a.h5ad")
            made = model.denoise_file(tmp_path / "a.h5ad", tmp_path / "b.h5ad")
        else:
            made = model.denoise(adata)
            made.write_h5ad(tmp_path / "b.h5ad")
    read = ad.read_h5ad(tmp_path / "b.h5ad").var
    assert read.index.tolist() == made.var_names.tolist() == model.genes
    assert read["gene_id"].tolist()[1:] == known["gene_id"].tolist()
    assert pd.isna(read["gene_id"].iloc[0])
    np.testing.assert_array_equal(read["mean"].to_numpy()[1:], known["mean"])
    assert np.isnan(read["mean"].iloc[0])
    np.testing.assert_array_equal(read["often"].to_numpy()[1:].astype(bool), known["often"])


def test_genes_are_aligned_by_name(model):
    adata = cells(40, seed=1)
    order = np.random.default_rng(0).permutation(N_GENES)
    np.testing.assert_array_equal(
        model.denoise(adata[:, order].copy()).layers["denoised"], model.denoise(adata).layers["denoised"]
    )


def test_missing_genes_count_as_zero(model):
    adata = cells(40, seed=1)
    zero = adata.copy()
    zero.X = adata.X.multiply(np.arange(N_GENES) != 29).tocsr()
    with pytest.warns(sd.DataWarning, match="1 of 30 genes are not in the data: 'g29'"):
        made = model.denoise(adata[:, :29].copy())
    np.testing.assert_array_equal(made.layers["denoised"], model.denoise(zero).layers["denoised"])


# ---- other models ---------------------------------------------------------------------------------------------------


def test_gaussian_noise_on_counts_gives_rates(gaussian):
    adata = cells(20, seed=1)
    made = gaussian.denoise(adata, scales=["rate", "log1p", "expected_counts"])
    np.testing.assert_allclose(made.layers["rate"].sum(1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(made.layers["denoised"], np.log1p(made.layers["rate"]), rtol=1e-4)
    np.testing.assert_allclose(made.layers["expected_counts"].sum(1), depth_of(adata), rtol=1e-4)


def test_gaussian_noise_is_matched_to_the_cells(gaussian):
    """The level is found on training cells; new cells, whose truth is known, are denoised best near it."""
    new = cells(300, seed=1)
    truth, found, at = composition(new.obs), gaussian.settings["sigma"], SIGMAS.index(gaussian.settings["sigma"])
    error = {}
    for sigma in (SIGMAS[at - 3], found, SIGMAS[at + 3]):
        trial = replace(gaussian, settings=gaussian.settings | {"sigma": sigma})
        error[sigma] = np.square(trial.denoise(new, scales=["rate"]).layers["rate"] / 1e4 - truth).sum()
    assert min(error, key=error.get) == found


def test_a_model_of_log_expression_answers_on_its_own_scale(logged):
    adata = log_expression()
    made = logged.denoise(adata)
    np.testing.assert_array_equal(made.X, adata.X)
    assert set(made.layers) == {"denoised"}
    assert made.uns["scidiff"]["scales"] == {
        "X": "observed, training scale",
        "denoised": "posterior mean, training scale",
    }
    assert np.abs(made.layers["denoised"] - adata.X).max() < 4  # log2, not expm1 of it
    assert made.layers["denoised"].var(axis=0).sum() < adata.X.var(axis=0).sum()


# ---- requests that cannot be met ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ["log"]}, "unknown scale 'log'; nearest: 'log1p'"),
        ({"scales": "logs"}, "unknown scale 'logs'"),
        ({"draws": -1}, "draws=-1"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"seed": -1}, "seed=-1"),
        ({"genes": ["g1", "G2"]}, "gene 'G2' is not one of the model; nearest: 'g2'"),
        ({"genes": []}, "at least one gene"),
        ({"genes": ["g1", "g1"]}, "each only once"),
        ({"depth": [10.0, 20.0]}, "one for each of the 10 cells"),
        ({"depth": 0}, "depth must be one number from 1"),
        ({"layer": "countz"}, "no layer 'countz'"),
    ],
)
def test_impossible_requests_are_named(model, options, message):
    with pytest.raises(sd.InputError) as caught:
        model.denoise(cells(10), **options)
    assert message in str(caught.value)


def test_cells_without_molecules_of_the_models_genes_are_named(model):
    adata = cells(10)
    x = sparse.hstack([adata.X, np.ones((10, 1))]).tolil()
    x[[2, 5], :N_GENES] = 0
    wide = ad.AnnData(x.tocsr(), obs=adata.obs, var=pd.DataFrame(index=[*adata.var_names, "other"]))
    message = "2 cells have only zeros in the model's genes: 'cell0-2', 'cell0-5'; leave them out"
    with pytest.raises(sd.InputError, match=message):
        model.denoise(wide)


def test_scales_must_fit_between_model_and_cells(model, logged, gaussian):
    with pytest.raises(sd.InputError, match="the model was trained on counts, but the cells hold log1p"):
        model.denoise(log_expression())
    with pytest.raises(sd.InputError, match="the model was trained on log1p, but the cells hold counts"):
        logged.denoise(cells(10))
    with pytest.raises(sd.InputError, match=r"scale 'rate' needs a model trained on counts"):
        logged.denoise(log_expression(), scales=["log1p", "rate"])
    with pytest.raises(sd.InputError, match="depth= needs a model trained on counts"):
        logged.denoise(log_expression(), depth=100)
    with pytest.raises(sd.InputError, match="draws= needs a model trained with thinning"):
        gaussian.denoise(cells(10), draws=1)
