"""ScIDiff.design: a planted population in which it is known who has the phenotype, and what goes with it."""

from __future__ import annotations

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.data.scaling import log1p_cp10k
from scidiff.tasks import design as design_task
from scidiff.tasks.design import NOT_SEEN, SEEN_ELSEWHERE, SEEN_HERE

N_GENES = 40
GENES = [f"G{g}" for g in range(N_GENES)]
MARKED = np.arange(4)  # up in cells of the state "on"
RISE, FALL = np.arange(8, 16), np.arange(16, 24)  # what else is different in them
OTHER = np.arange(4, 8)  # up in cells of the state "other", which are never "on"
TINY = {"width": 16, "n_blocks": 1, "config": sd.TrainConfig(steps=60, batch_size=64, learning_rate=6e-3)}
SHORT = TINY | {"config": sd.TrainConfig(steps=25, batch_size=64, learning_rate=6e-3)}
FAST = {"n": 80, "n_steps": 4}
rng = np.random.default_rng(0)
BASE = {kind: np.exp(0.7 * rng.normal(size=N_GENES)) for kind in ("B", "T", "NK")}
STATE = {state: np.zeros(N_GENES) for state in ("rest", "on", "other")}
STATE["on"][MARKED], STATE["on"][RISE], STATE["on"][FALL] = 2.0, 1.0, -1.2
STATE["other"][OTHER] = 2.0
for rates in BASE.values():
    rates[:8] = 0.5
ON = ["G0=6", "G1=6", "G2=6"]  # about what cells of the state have


def cells(kind: str, state: str, n: int, *, seed: int = 0) -> AnnData:
    """Cells of a type in a state."""
    own = np.random.default_rng([seed, *map(ord, kind + state)])
    rate = BASE[kind] * np.exp(STATE[state] + 0.2 * own.normal(size=(n, N_GENES)))
    depth = 300 * np.exp(0.2 * own.standard_normal(n))
    counts = own.poisson(depth[:, None] * rate / rate.sum(axis=1, keepdims=True)).astype(np.float32)
    obs = pd.DataFrame({"cell_type": kind, "drug": {"rest": "none"}.get(state, state), "well": "w1"}, index=range(n))
    return AnnData(
        sparse.csr_matrix(counts),
        obs=obs.set_index(f"{kind}-{state}-{seed}-" + obs.index.astype(str)),
        var=pd.DataFrame(index=GENES),
    )


def atlas() -> AnnData:
    """B cells in all states, T cells at rest and on, NK cells at rest only."""
    made = [("B", "rest", 40), ("B", "on", 24), ("B", "other", 16), ("T", "rest", 40), ("T", "on", 28)]
    return ad.concat([cells(*some) for some in [*made, ("NK", "rest", 48)]])


@pytest.fixture(scope="module", autouse=True)
def small_trials():
    """Strengths are found with fewer cells than outside of tests, and the classifier has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scidiff.tasks.design.TRIAL", 60)
        patch.setattr("scidiff.evaluation.realism.auc", lambda a, b, *, seed: float(a.mean() - b.mean()))
        yield


@pytest.fixture(scope="module")
def model() -> sd.ScIDiff:
    """Knows types; of states it was told nothing."""
    return sd.ScIDiff.fit(atlas(), sd.Schema(context="cell_type"), **TINY)


def quiet(model: sd.ScIDiff, asked: sd.Phenotype, kind: str | None = "B", **options) -> AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.DataWarning)
        return model.design(asked, **FAST | {"condition": kind and {"cell_type": kind}} | options)


@pytest.fixture(scope="module")
def here(model) -> AnnData:
    return quiet(model, sd.Phenotype(up=ON))


@pytest.fixture(scope="module")
def elsewhere(model) -> AnnData:
    return quiet(model, sd.Phenotype(up=ON, clamp={"G30": 0, "G31": 5.0}), "NK")


@pytest.fixture(scope="module")
def changed(model) -> AnnData:
    return quiet(model, sd.Phenotype(up=ON, clamp={"G30": 0}), None, cells=cells("B", "rest", 60, seed=5))


def mean(made: AnnData) -> np.ndarray:
    return np.asarray(made.X.mean(axis=0)).ravel()


def change(made: AnnData, kind: str) -> np.ndarray:
    return mean(made) - np.asarray(log1p_cp10k(cells(kind, "rest", 300, seed=9).X).mean(axis=0)).ravel()


# ---- who has the phenotype -------------------------------------------------------------------------------------------


def test_cells_of_the_context_have_it(here):
    """Levels are reached, and the genes that go with them in real cells go with them here."""
    told = here.uns["scidiff"]
    assert told["verdict"] == SEEN_HERE
    np.testing.assert_allclose(told["levels"]["designed"], 6, atol=0.25)
    np.testing.assert_allclose(mean(here)[:3], told["levels"]["designed"], rtol=1e-4)
    others = np.arange(3, N_GENES)
    true = change(AnnData(log1p_cp10k(cells("B", "on", 300, seed=8).X)), "B")
    assert np.corrcoef(change(here, "B")[others], true[others])[0, 1] > 0.8
    assert change(here, "B")[RISE].mean() > 0.3
    assert change(here, "B")[FALL].mean() < -0.4
    assert told["realism"]["distance"] < 1.5
    assert told["realism"]["diversity"] > 0.6


def test_only_cells_of_other_contexts_have_it(model, elsewhere):
    """What else is different in those is carried over, on top of the composition of the context."""
    told = elsewhere.uns["scidiff"]
    assert told["verdict"] == SEEN_ELSEWHERE
    assert told["strength"] == {}
    np.testing.assert_allclose(told["levels"]["designed"], 6, atol=0.25)
    assert np.isnan(told["realism"]["auc"])
    assert change(elsewhere, "NK")[RISE].mean() > 0.5
    assert change(elsewhere, "NK")[FALL].mean() < -0.7
    true = change(log(cells("NK", "on", 300, seed=8)), "NK")  # NK cells that were never seen
    others = np.r_[4:30, 32:40]
    assert np.corrcoef(change(elsewhere, "NK")[others], true[others])[0, 1] > 0.9
    with pytest.warns(sd.DataWarning) as said:
        model.design(sd.Phenotype(up=ON), condition={"cell_type": "NK"}, **FAST)
    assert "cell_type=NK: no real cell of this context has the phenotype, but" in str(said[0].message)


def test_who_has_it_is_said():
    """Cells of the state have it, whatever their type; which state it is stands in another column."""
    told = sd.ScIDiff.fit(atlas(), sd.Schema(perturbation="drug", control="none", context="cell_type"), **SHORT)
    seen = quiet(told, sd.Phenotype(up=ON)).uns["scidiff"]
    assert seen["seen_in"]["perturbation"].tolist()[0] == "on"
    assert seen["seen_in"].set_index("perturbation")["cells"].to_dict() == {"on": 24, "none": 40, "other": 16}
    shares = seen["seen_in"].set_index("perturbation")["share"]
    assert shares["on"] > 0.8
    assert shares["none"] < 0.2
    assert f"({shares['on']:.0%} of those with perturbation=on; " in seen["text"][0]
    elsewhere = quiet(told, sd.Phenotype(up=ON), "NK").uns["scidiff"]["seen_in"]
    assert elsewhere.iloc[:2]["perturbation"].tolist() == ["on", "on"]
    assert set(elsewhere["cell_type"]) == {"B", "T"}


def test_where_the_levels_wanted_come_from(model):
    wish = sd.Phenotype(up=["G0", "G24=4"], down={"G16": 0.5}, signature={"G20": 1.0})
    levels = quiet(model, wish, n=20).uns["scidiff"]["levels"]
    assert levels["basis"].to_dict() == {
        "G0": "the highest tenth of real cells here",
        "G24": "as asked, on average",
        "G16": "0.5 of the way to the lowest tenth of real cells here",
        "signature": "along the signature",
    }


def test_genes_that_go_further_than_in_real_cells_are_named(model, here, monkeypatch):
    assert here.uns["scidiff"]["overshot"].empty  # the genes that go with the state go as far as in it
    drawn = design_task.Question.sampled

    def too_far(question, *some, **options):
        counts = drawn(question, *some, **options).tolil()
        counts[:, 30] = 200
        counts[:, 31] = 0
        return counts.tocsr()

    monkeypatch.setattr(design_task.Question, "sampled", too_far)
    told = quiet(model, sd.Phenotype(up=ON)).uns["scidiff"]
    hint = "not asked for, and further than in real cells .*: G3[01] .*, G3[01] .*; particles=8"
    assert any(re.match(hint, said) for said in told["text"])
    over = told["overshot"].set_index("gene")
    assert set(over.index) == {"G30", "G31"}
    assert over.loc["G30", "designed"] > over.loc["G30", "real"] + 1
    assert over.loc["G31", "designed"] == 0


def test_nobody_has_it(model):
    with pytest.warns(sd.DataWarning) as said:
        made = model.design(sd.Phenotype(up=["G24=8.5"]), condition={"cell_type": "B"}, **FAST)
    assert made.uns["scidiff"]["verdict"] == NOT_SEEN
    assert "cell_type=B: no real cell that the model knows has the phenotype" in str(said[0].message)
    assert [str(one.message) for one in said] == made.uns["scidiff"]["text"]
    assert np.isnan(made.uns["scidiff"]["realism"]["auc"])


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_every_part_but_not_together(model, strength):
    """Also where a cell has one part twice over: that makes up for no other."""
    made = quiet(model, sd.Phenotype(up={"G0": strength, "G1": strength, "G4": strength, "G5": strength}))
    assert "every part of the phenotype, hardly all together" in made.uns["scidiff"]["text"][0]


def test_the_best_tenth_is_what_a_bare_name_asks_for(model):
    made = quiet(model, sd.Phenotype(up=["G0"], down=["G16"]))
    levels = made.uns["scidiff"]["levels"]
    assert levels["scale"].tolist() == ["denoised", "denoised"]
    np.testing.assert_allclose(levels["wanted"], levels["best real cells here"], atol=0.5)
    np.testing.assert_allclose(levels["designed"], levels["wanted"], atol=0.3)
    assert change(made, "B")[1] > 0.8  # marked as G0 is


# ---- what is asked of every cell -------------------------------------------------------------------------------------


def clamped(made: AnnData, gene: str, level: float) -> np.ndarray:
    """Molecules that the gene has beyond those of the level."""
    counts = made.layers["counts"].toarray()
    return counts[:, GENES.index(gene)] - np.expm1(level) / 1e4 * counts.sum(axis=1)


def test_clamped_genes_have_their_level_in_every_cell(model, elsewhere, changed):
    both = quiet(model, sd.Phenotype(up=["G0"], clamp={"G39": 0, "G31": 5.0}))
    again = quiet(model, sd.Phenotype(up=["G0"], clamp={"G39": 0}), None, cells=cells("B", "on", 20), keep=1.0)
    assert (clamped(both, "G39", 0) == 0).all()
    assert (clamped(again, "G39", 0) == 0).all()
    assert (clamped(elsewhere, "G30", 0) == 0).all()
    assert (clamped(changed, "G30", 0) == 0).all()
    for made in (both, elsewhere):
        assert (np.abs(clamped(made, "G31", 5.0)) <= 0.6).all()


def test_clamping_alone_is_a_phenotype(model, tmp_path):
    asked = sd.Phenotype(clamp={"G3": 0})
    made = quiet(model, asked)
    assert made.uns["scidiff"]["verdict"] == SEEN_HERE
    assert (clamped(made, "G3", 0) == 0).all()
    made.write_h5ad(tmp_path / "made.h5ad")
    source = cells("B", "on", 30)
    silenced = quiet(model, asked, None, cells=source)
    assert (clamped(silenced, "G3", 0) == 0).all()
    others = np.arange(N_GENES) != 3
    np.testing.assert_allclose(mean(silenced)[others], mean(log(source))[others], atol=0.35)


def log(adata: AnnData) -> AnnData:
    return AnnData(log1p_cp10k(adata.X), obs=adata.obs, var=adata.var)


@pytest.mark.parametrize("asked", ["G0>5.5", "G0<5"])
def test_a_level_of_every_cell_is_met_by_every_cell_or_it_is_said(model, asked):
    made = quiet(model, sd.Phenotype(up=[asked]))
    again = AnnData(made.layers["counts"], obs=made.obs[["cell_type"]], var=made.var)
    level = model.denoise(again).layers["denoised"][:, 0]
    fine = level > 5.5 if ">" in asked else level < 5
    assert fine.mean() > 0.9
    said = [text for text in made.uns["scidiff"]["text"] if "cells are not" in text]
    assert len(said) == (not fine.all())
    assert said == [] or said[0].startswith(f"G0: {(~fine).sum()} of 80 cells")


def test_a_level_that_every_cell_has_already_changes_nothing(model):
    asked = sd.Phenotype(up=["G0>2"], down=["G1<9"])
    made = quiet(model, asked)
    assert made.uns["scidiff"]["verdict"] == SEEN_HERE
    assert set(made.uns["scidiff"]["strength"].values()) == {0}
    assert len(made.uns["scidiff"]["text"]) == 1
    source = cells("B", "rest", 20)
    same = quiet(model, asked, None, cells=source)
    np.testing.assert_allclose(mean(same), mean(log(source)), atol=0.02)


def test_a_level_that_cells_cannot_have_is_said(model):
    made = quiet(model, sd.Phenotype(up=["G30>9"]))
    assert "G30: 80 of 80 cells are not above 9, as every cell shall be" in made.uns["scidiff"]["text"]


# ---- from given cells ------------------------------------------------------------------------------------------------


def test_given_cells_are_changed_and_stay_themselves(changed):
    """One for one; the levels are reached, and of genes that do not fall nearly every molecule stays."""
    source = cells("B", "rest", 60, seed=5)
    pd.testing.assert_frame_equal(changed.obs, source.obs)
    assert changed.uns["scidiff"]["verdict"] == SEEN_HERE
    assert changed.uns["scidiff"]["text"][0].startswith("cell_type=B: ")  # read from the cells
    np.testing.assert_allclose(changed.uns["scidiff"]["levels"]["designed"], 6, atol=0.3)
    before, after = source.X.toarray(), changed.layers["counts"].toarray()
    rising = np.r_[MARKED, RISE]
    assert np.minimum(before, after)[:, rising].sum() > 0.97 * before[:, rising].sum()
    assert (mean(changed) - mean(log(source)))[FALL].mean() < -0.4


def test_what_the_file_says_of_genes_comes_back(model):
    given = cells("B", "rest", 12, seed=5)[:, GENES[::-1]].copy()
    given.var["gene_id"] = [f"ENS{name}" for name in given.var_names]
    made = quiet(model, sd.Phenotype(up=["G0=5"]), None, cells=given)
    assert made.var["gene_id"].tolist() == [f"ENS{name}" for name in GENES]


def test_one_cell_can_be_changed(model):
    source = cells("B", "rest", 1, seed=6)
    made = quiet(model, sd.Phenotype(up=ON), None, cells=source)
    assert made.n_obs == 1
    np.testing.assert_allclose(mean(made)[:3], 6, atol=0.6)
    kept = np.minimum(source.X.toarray(), made.layers["counts"].toarray()).sum()
    assert kept > 0.6 * source.X.sum()


def test_some_molecules_are_kept_and_the_others_sampled(model):
    source = cells("B", "rest", 60, seed=5)
    half, none = (quiet(model, sd.Phenotype(up=ON), None, cells=source, keep=keep) for keep in (0.5, 0.0))
    before = source.X.toarray()
    common = [np.minimum(before, made.layers["counts"].toarray()).sum() / before.sum() for made in (half, none)]
    assert common[0] > common[1] + 0.05
    for made in (half, none):
        np.testing.assert_array_equal(made.layers["counts"].sum(axis=1), source.X.sum(axis=1))
    np.testing.assert_allclose(mean(none)[:3], 6, atol=0.3)
    whole = quiet(model, sd.Phenotype(up=ON), None, cells=source, keep=1.0)
    np.testing.assert_array_equal(whole.layers["counts"].toarray(), before)
    assert "was wanted" in " ".join(whole.uns["scidiff"]["text"])


# ---- what comes back -------------------------------------------------------------------------------------------------


def test_cells_come_back_as_counts_with_provenance(model, here, tmp_path):
    counts = here.layers["counts"]
    assert sparse.issparse(counts)
    assert (counts.data == np.rint(counts.data)).all()
    np.testing.assert_allclose(here.X.toarray(), log1p_cp10k(counts).toarray(), rtol=1e-5)
    assert here.shape == (80, N_GENES)
    assert (here.obs["cell_type"] == "B").all()
    told = here.uns["scidiff"]
    assert told["verb"] == "design"
    assert told["genes"] == ["G0", "G1", "G2"]
    assert list(told["levels"].index) == ON_NAMES
    assert set(told["strength"]) == set(ON_NAMES)
    here.write_h5ad(tmp_path / "made.h5ad")
    again = ad.read_h5ad(tmp_path / "made.h5ad").uns["scidiff"]
    assert again["strength"] == pytest.approx(told["strength"])
    pd.testing.assert_frame_equal(again["levels"], told["levels"], check_dtype=False)
    assert again["realism"] == pytest.approx(told["realism"])
    assert list(again["text"]) == told["text"]


ON_NAMES = ["G0", "G1", "G2"]


def test_seeds_and_files_make_the_same_cells(model, here, tmp_path):
    loaded = sd.ScIDiff.load(model.save(tmp_path / "model"))
    again, other = (quiet(loaded, sd.Phenotype(up=ON), seed=seed) for seed in (0, 1))
    assert (again.layers["counts"] != here.layers["counts"]).nnz == 0
    assert (other.layers["counts"] != here.layers["counts"]).nnz > 0
    pd.testing.assert_frame_equal(again.uns["scidiff"]["levels"], here.uns["scidiff"]["levels"])
    assert again.uns["scidiff"]["realism"] == here.uns["scidiff"]["realism"]


def test_what_the_caller_gave_is_as_it_was(model):
    source, condition = cells("B", "rest", 12), {"cell_type": "B"}
    before, told = source.copy(), []
    options = {"condition": condition, "cells": source, "keep": 0.2, "on_cells": lambda *at: told.append(at)}
    made = quiet(model, sd.Phenotype(up=["G0=5"]), **options)
    made.obs["well"] = "changed"
    assert made.n_obs == 12
    assert told == [(12, 12)]
    assert condition == {"cell_type": "B"}
    pd.testing.assert_frame_equal(source.obs, before.obs)
    assert (source.X != before.X).nnz == 0
    assert not source.uns
    assert not source.layers


def test_the_depth_is_as_asked(model):
    depth = np.arange(201, 281)
    for asked in (depth, 300):
        made = quiet(model, sd.Phenotype(up=["G0=5.5"], clamp={"G1": 4}), depth=asked)
        np.testing.assert_array_equal(np.asarray(made.layers["counts"].sum(axis=1)).ravel(), asked)


# ---- functions and signatures ----------------------------------------------------------------------------------------


def test_a_classifier_with_weights_of_its_own(model):
    """Its probability of the state, by cells of known state; the genes it reads go with what it does not read."""
    torch.manual_seed(0)
    train = torch.from_numpy(log(ad.concat([cells("B", "rest", 80), cells("B", "on", 80)])).X.toarray())
    layer = torch.nn.Linear(N_GENES, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.zeros(1, N_GENES))
        layer.weight[0, :4] = 0.5
        layer.bias.copy_(-(layer(train) - layer.bias).mean())

    def is_on(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(layer(x))[:, 0]

    made = quiet(model, sd.Phenotype(function=is_on, value=0.8))
    assert made.uns["scidiff"]["levels"].loc["is_on", "designed"] == pytest.approx(0.8, abs=0.06)
    assert change(made, "B")[FALL].mean() < -0.3


def test_a_signature_moves_cells_along_it(model):
    delta = pd.Series(2.0, index=["G0", "G1", "G2"])
    made = quiet(model, sd.Phenotype(signature=delta))
    levels = made.uns["scidiff"]["levels"].loc["signature"]
    assert levels["wanted"] == pytest.approx(levels["typical real cells"] + 1)
    assert levels["designed"] == pytest.approx(levels["wanted"], abs=0.2)


def no_gradient(x):
    return x[:, 0].detach()


def as_numbers(x):
    return x.detach().numpy()[:, 0]


def per_gene(x):
    return x


def of_other_genes(x):
    return x @ torch.ones(7)


def not_finite(x):
    return (x[:, 0] - 100).log()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (per_gene, "the function per_gene must return one number per cell"),
        (as_numbers, "the function as_numbers must return one number per cell"),
        (of_other_genes, "the function of_other_genes fails for log1p.* of shape \\(2, 40\\): "),
        (no_gradient, "the function no_gradient has no gradient"),
        (not_finite, "the function not_finite is not finite for real cells"),
    ],
)
def test_functions_that_cells_cannot_be_steered_by(model, function, message):
    with pytest.raises(sd.InputError, match=message):
        quiet(model, sd.Phenotype(function=function, value=1) + sd.Phenotype(up=["G0"]))


# ---- other models ----------------------------------------------------------------------------------------------------


def test_a_model_that_knows_perturbations():
    """Without its name the state is found among all cells; with it, or its control, among those of that name."""
    schema = sd.Schema(perturbation="drug", control="none", context=["cell_type"])
    model = sd.ScIDiff.fit(atlas(), schema, **SHORT)
    asked = sd.Phenotype(up=["marked=6.6"], sets={"marked": ["G0", "G1", "G2", "G3"]})
    made = {
        drug: quiet(model, asked, None, condition={"cell_type": "B"} | ({"drug": drug} if drug else {}))
        for drug in (None, "on", "none")
    }
    verdicts = {drug: one.uns["scidiff"]["verdict"] for drug, one in made.items()}
    assert verdicts == {None: SEEN_HERE, "on": SEEN_HERE, "none": SEEN_ELSEWHERE}
    assert made.pop(None).obs["drug"].isna().all()
    assert {drug: one.obs["drug"].unique().tolist() for drug, one in made.items()} == {
        "on": ["on"],
        "none": ["none"],
    }
    for drug in ("on", "none"):
        assert mean(made[drug])[:4].mean() == pytest.approx(6.6, abs=0.3)
        assert change(made[drug], "B")[FALL].mean() < -0.5


def test_a_model_without_contexts(tmp_path):
    model = sd.ScIDiff.fit(atlas(), **SHORT)
    made = quiet(model, sd.Phenotype(up=["IFN/a, b"], sets={"IFN/a, b": ["G0", "G1", "G2"]}), None)
    made.write_h5ad(tmp_path / "made.h5ad")
    assert made.uns["scidiff"]["verdict"] == SEEN_HERE
    assert made.uns["scidiff"]["text"][0].startswith("this model: ")
    assert made.n_obs == 80
    assert quiet(model, sd.Phenotype(up=ON), None, cells=cells("B", "rest", 15)).n_obs == 15


def test_models_that_cannot_design():
    small = cells("B", "rest", 60)
    few = {"width": 8, "n_blocks": 1, "config": sd.TrainConfig(steps=2, batch_size=32)}
    only = sd.ScIDiff.fit(small, denoise_only=True, **few)
    with pytest.raises(sd.InputError, match="trained to denoise only"):
        only.design(sd.Phenotype(up=["G0"]))
    for source in (small, log(small)):
        gaussian = sd.ScIDiff.fit(source, noise="gaussian", **few)
        with pytest.raises(sd.InputError, match="design needs a model of counts"):
            gaussian.design(sd.Phenotype(up=["G0"]))


# ---- what cannot be asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 2.5}, "n=2.5"),
        ({"n": "5"}, "n='5'"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"particles": 0}, "particles=0"),
        ({"seed": -1}, "seed=-1"),
        ({"depth": 0}, "depth must be"),
        ({"depth": np.ones(3)}, "one for each of the 9 cells"),
        ({"keep": 0.5}, "of the cells given as cells="),
        ({"condition": "B"}, "name the attribute, such as {'cell_type': 'B'}"),
        ({"condition": {"cell_type": "Bee"}}, "unknown cell_type 'Bee'"),
        ({"condition": {"celltype": "B"}}, "unknown attribute 'celltype'; nearest: 'cell_type'"),
        ({"condition": {"cell_type": ["B", "T"]}}, "give one value each"),
        ({"condition": pd.DataFrame({"cell_type": ["B", "T"]})}, "design takes one condition, not 2"),
        ({"condition": [{"cell_type": "B"}, {"cell_type": "T"}]}, "design takes one condition, not 2"),
        ({"phenotype": ["G0"]}, r"design takes a Phenotype, such as .*, not \['G0'\]"),
        ({"phenotype": sd.Phenotype(up=["G400"])}, "gene 'G400' is not one of the model; nearest"),
        ({"phenotype": sd.Phenotype(clamp={"X": 0})}, "gene 'X' is not one of the model"),
        ({"phenotype": sd.Phenotype(clamp=dict.fromkeys(GENES, 0))}, "every gene of the model is clamped"),
        ({"guidance": {"celltype": 2}}, "celltype"),
        ({"guidance": float("nan")}, "guidance weight nan must be finite"),
        ({"cells": cells("B", "rest", 5), "keep": 2}, "keep=2"),
        ({"cells": cells("B", "rest", 5), "depth": 100}, "depth= goes with keep="),
        ({"cells": cells("B", "rest", 5)[:0]}, "cells= holds no cells"),
        ({"cells": log(cells("B", "rest", 5))}, "trained on counts, but the cells hold log1p"),
        ({"cells": cells("B", "rest", 5)[:, :0]}, "gene"),
    ],
)
def test_what_cannot_be_asked(model, options, message):
    asked = {"phenotype": sd.Phenotype(up=["G0"]), "n": 9, "condition": {"cell_type": "B"}} | options
    with pytest.raises(sd.InputError, match=message) as error:
        model.design(asked.pop("phenotype"), **asked)
    assert "\n" not in str(error.value)


def test_given_cells_without_molecules(model):
    source = cells("B", "rest", 5)
    source.X = sparse.csr_matrix(source.X.toarray() * (np.arange(5) != 3)[:, None])
    with pytest.raises(sd.InputError, match="1 of 5 cells have only zeros"):
        model.design(sd.Phenotype(up=["G0"]), cells=source)


def test_particles_reach_the_levels_too(model):
    """Drawn by weight from four: the strength is one that weights obey, and how many carried weight is told."""
    made = quiet(model, sd.Phenotype(up=ON), particles=4, n=40)
    told = made.uns["scidiff"]
    np.testing.assert_allclose(told["levels"]["designed"], 6, atol=0.3)
    assert told["particles"] == 4
    assert 1 <= told["ess"] <= 4
    assert change(made, "B")[RISE].mean() > 0.3
    assert "ess" not in quiet(model, sd.Phenotype(clamp={"G3": 0}), particles=4).uns["scidiff"]  # nothing is steered
