"""Modules as conditions: cells have the activity that was asked for, and what goes with it in real cells."""

from __future__ import annotations

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.cli import main
from scidiff.data.scaling import log1p_cp10k

N_GENES = 40
GENES = [f"G{g}" for g in range(N_GENES)]
INSIDE, WITH, AWAY = np.arange(6), np.arange(6, 12), np.arange(12, 16)  # the module, and what rises and falls with it
REST = np.arange(16, N_GENES)
BASE = {kind: np.exp(0.5 * np.random.default_rng(i).normal(size=N_GENES)) for i, kind in enumerate("BT")}
CHANGE = np.zeros(N_GENES)
CHANGE[INSIDE], CHANGE[WITH], CHANGE[AWAY] = 1.8, 1.0, -1.0
TINY = {"width": 32, "n_blocks": 1}


def cells(kind: str, n: int, *, seed: int = 0) -> AnnData:
    """Cells whose programme is on by a degree between 0 and 1, which ``wish`` in obs knows."""
    own = np.random.default_rng([seed, ord(kind)])
    degree = own.uniform(size=n)
    rate = BASE[kind] * np.exp(0.2 * own.normal(size=(n, N_GENES)) + np.outer(degree, CHANGE))
    depth = 400 * np.exp(0.2 * own.normal(size=n))
    counts = own.poisson(depth[:, None] * rate / rate.sum(axis=1, keepdims=True)).astype(np.float32)
    obs = pd.DataFrame({"cell_type": kind, "degree": degree}, index=[f"{kind}-{seed}-{i}" for i in range(n)])
    return AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))


def logged(made: AnnData) -> np.ndarray:
    return log1p_cp10k(made.layers.get("counts", made.X)).toarray()


@pytest.fixture(scope="module")
def model() -> sd.ScIDiff:
    return sd.ScIDiff.fit(
        ad.concat([cells("B", 120), cells("T", 120)]),
        sd.Schema(context="cell_type"),
        modules={"act": GENES[:6]},
        config=sd.TrainConfig(steps=150, batch_size=64, learning_rate=6e-3),
        **TINY,
    )


@pytest.mark.parametrize("kind", ["B", "T"])
def test_cells_have_the_activity_asked_for_and_what_goes_with_it(model, kind):
    """Slope of attained on asked; other genes as in real cells of that activity, also those of the cell type."""
    real = logged(cells(kind, 4000, seed=5))
    score = real[:, INSIDE].mean(axis=1)
    asked = np.quantile(score, [0.2, 0.5, 0.8])
    made = [logged(model.generate(100, {"cell_type": kind, "act": one}, n_steps=8)) for one in asked]
    attained = [one[:, INSIDE].mean() for one in made]
    assert np.polyfit(asked, attained, 1)[0] == pytest.approx(1, abs=0.3)
    np.testing.assert_allclose(attained, asked, atol=0.25)
    like = [real[np.abs(score - one) < 0.1].mean(axis=0) for one in asked]
    true, ours = like[2] - like[0], made[2].mean(axis=0) - made[0].mean(axis=0)
    for genes in (WITH, AWAY, REST):
        assert ours[genes].mean() == pytest.approx(true[genes].mean(), abs=0.3)
    assert np.corrcoef(made[1].mean(axis=0), like[1])[0, 1] > 0.97
    other = logged(cells("T" if kind == "B" else "B", 1000, seed=6)).mean(axis=0)
    assert np.corrcoef(made[1].mean(axis=0)[REST], other[REST])[0, 1] < 0.8


def test_without_a_request_activity_is_as_in_training(model):
    score = logged(model.generate(300, {"cell_type": "B"}, n_steps=8))[:, INSIDE].mean(axis=1)
    real = logged(cells("B", 1000, seed=7))[:, INSIDE].mean(axis=1)
    assert score.mean() == pytest.approx(real.mean(), abs=0.15)
    assert score.std() == pytest.approx(real.std(), rel=0.35)


def test_guidance_knows_modules(model):
    low, high = (
        logged(model.generate(100, {"cell_type": "B", "act": 6.5}, guidance={"act": w}, n_steps=8))[:, INSIDE].mean()
        for w in (0, 1)
    )
    assert high > low + 0.15


@pytest.mark.parametrize(("gene", "level", "activity"), [("G8", 5.25, 5.74), ("G8", 5.4, 6.42)])
def test_design_at_an_activity(model, monkeypatch, gene, level, activity):
    """Both are reached, also where the gene goes with another activity; what goes with the activity follows it."""
    monkeypatch.setattr("scidiff.tasks.design.TRIAL", 80)
    asked = sd.Phenotype(up=[f"{gene}={level}"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.DataWarning)
        made = model.design(asked, 60, {"cell_type": "B", "act": activity}, n_steps=5)
    assert logged(made)[:, INSIDE].mean() == pytest.approx(activity, abs=0.2)
    real = logged(cells("B", 4000, seed=5))
    like = real[np.abs(real[:, INSIDE].mean(axis=1) - activity) < 0.1].mean(axis=0)
    assert logged(made)[:, AWAY].mean() == pytest.approx(like[AWAY].mean(), abs=0.5)
    levels = made.uns["scidiff"]["levels"]
    np.testing.assert_allclose(levels["designed"], [level, activity], atol=0.35)
    assert levels.index.tolist() == [gene, "act"]
    assert (made.obs["act"] == activity).all()


def test_the_folder_keeps_modules(model, tmp_path):
    again = sd.ScIDiff.load(model.save(tmp_path / "model"))
    asked = pd.DataFrame({"cell_type": ["B", "T"], "act": [5.6, np.nan]})
    ours, theirs = (one.generate(5, asked, n_steps=3) for one in (model, again))
    np.testing.assert_array_equal(logged(ours), logged(theirs))
    np.testing.assert_array_equal(ours.obs["act"], [5.6] * 5 + [np.nan] * 5)
    assert again.settings["modules"] == {"act": {gene: pytest.approx(1 / 6) for gene in GENES[:6]}}
    assert again.schema.modules == ("act",)
    low, high = again.vocabulary.modules["act"]
    score = logged(ad.concat([cells("B", 120), cells("T", 120)]))[:, INSIDE].mean(axis=1)
    np.testing.assert_allclose([low, high], np.quantile(score, [0.005, 0.995]), rtol=1e-5)


def test_denoising_knows_no_modules(model):
    """Its score would tell of the molecules that a cell lost: no matter what obs says, and no word about it."""
    source = cells("B", 10, seed=3)
    plain = model.denoise(source).layers["denoised"]
    source.obs["act"] = 6.5
    np.testing.assert_array_equal(model.denoise(source).layers["denoised"], plain)


def test_far_requests_are_warned_of(model):
    with pytest.warns(sd.DataWarning, match="module act 9 is outside the 5.* of the training cells"):
        model.generate(2, {"cell_type": "B", "act": 9}, n_steps=2)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"act": "much"}, "module act: 'much' is no finite number"),
        ({"act": np.inf}, "module act: inf is no finite number"),
        ({"atc": 5}, "unknown attribute 'atc'; nearest: 'act'"),
    ],
)
def test_requests_that_cannot_be_met(model, request_, message):
    with pytest.raises(sd.InputError, match=message):
        model.generate(2, request_)


def fit(adata: AnnData | None = None, modules: dict | None = None, columns: tuple[str, ...] = (), **options):
    adata = cells("B", 60) if adata is None else adata
    few = sd.TrainConfig(steps=2, batch_size=32)
    return sd.ScIDiff.fit(adata, sd.Schema(modules=columns), modules=modules, config=few, **TINY | options)


def test_scores_may_be_in_obs_already():
    """Cells without one count as unknown; with Gaussian noise too."""
    adata = cells("B", 60)
    adata.obs.loc[adata.obs_names[::3], "degree"] = np.nan
    for noise in ("thinning", "gaussian"):
        model = fit(adata, {"act": {"G0": 2.0, "G1": -1.0}}, ("degree",), noise=noise)
        assert model.schema.modules == ("degree", "act")
        made = model.generate(4, {"degree": 0.5, "act": 2.0}, n_steps=2)
        assert made.obs["degree"].tolist() == [0.5] * 4
    assert model.settings["modules"]["act"] == {"G0": pytest.approx(2 / 3), "G1": pytest.approx(-1 / 3)}
    assert "act" not in adata.obs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": {"act": ["G0", "X1", "X2", "X3"]}}, "module act: only 1 of its 4 genes are in the model"),
        ({"modules": {"act": ["G400"]}}, "gene 'G400' is not one of the model; nearest"),
        ({"modules": {"act": "G0"}}, "the gene set act takes a list of genes, not 'G0'"),
        ({"modules": {"act": {"G0": 0}}}, "module act has no gene with a weight"),
        ({"modules": {"dose": ["G0"]}}, "module 'dose' has the name of a role"),
        ({"modules": ["G0"]}, "modules takes names and what each has"),
        ({"modules": {"degree": ["G0"]}, "columns": ("degree",)}, "'degree' has two roles"),
        ({"columns": ("degre",)}, "no obs column 'degre' for a module; nearest: 'degree'"),
        ({"columns": ("cell_type",)}, "module cell_type: 'B' is no finite number"),
        ({"columns": ("same",)}, "module same does not differ between cells"),
        ({"modules": {"act": ["G0"]}, "denoise_only": True}, "only denoises is told of no modules"),
    ],
)
def test_modules_that_cannot_be_used(options, message):
    adata = cells("B", 20)
    adata.obs["same"] = 1.0
    with pytest.raises(sd.InputError, match=message) as error:
        fit(adata, **options)
    assert "\n" not in str(error.value)


def test_predicted_cells_keep_their_modules(model):
    adata = ad.concat([cells("B", 30), cells("T", 30)])
    adata.obs["drug"] = np.repeat(["none", "A"], 30)
    schema = sd.Schema(perturbation="drug", control="none", modules=["degree"])
    told = sd.ScIDiff.fit(adata, schema, config=sd.TrainConfig(steps=2, batch_size=32), **TINY)
    with pytest.raises(sd.InputError, match="degree belongs to the cells and is not changed"):
        told.predict(adata, {"drug": "A", "degree": 0.3})


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    """A set of a GMT file, a TF of a network and an obs column; resumed runs must ask for the same."""
    monkeypatch.chdir(tmp_path)
    cells("B", 60).write_h5ad("cells.h5ad")
    (tmp_path / "sets.gmt").write_text("IFN\t\tG0\tG1\tG2\nOTHER\t\tG3\tG4\tG5\n")
    pd.DataFrame({"source": "TF1", "target": ["G6", "G7", "G12"], "weight": [1, 1, -1]}).to_csv("net.csv", index=False)
    words = ["train", "cells.h5ad", "--out", "m", "--steps", "2", "--quiet"]
    modules = ["--module", "IFN=sets.gmt", "--module", "TF1=net.csv", "--module", "degree"]
    assert main([*words, *modules]) == 0
    about = sd.ScIDiff.load("m")
    assert about.schema.modules == ("degree", "IFN", "TF1")
    assert about.settings["modules"]["TF1"] == {
        "G6": pytest.approx(1 / 3),
        "G7": pytest.approx(1 / 3),
        "G12": pytest.approx(-1 / 3),
    }
    asked = ["generate", "m", "--n", "3", "--condition", "IFN=6.1,degree=0.5", "--out", "made.h5ad"]
    assert main([*asked, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["condition"] == {"IFN": "6.1", "degree": "0.5"}
    assert ad.read_h5ad("made.h5ad").obs["IFN"].tolist() == [6.1] * 3
    assert main([*words[:3], "other", *words[4:], "--module", "INF=sets.gmt"]) == 1
    assert "sets.gmt has no gene set 'INF'; nearest: 'IFN'" in capsys.readouterr().err
