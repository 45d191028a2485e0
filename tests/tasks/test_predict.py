"""ScIDiff.predict: what may be asked, what comes back, and whether planted effects and their intervals are right."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.data.scaling import log1p_cp10k
from scidiff.model import untrained
from scidiff.models.thinning import Thinning
from scidiff.tasks.predict import ENLARGED, generated_effect, seed_of, sized

N_GENES = 50
SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context=["cell_type"], dose="dose")
TINY = {"width": 8, "n_blocks": 1, "config": sd.TrainConfig(steps=5, batch_size=64)}
TYPES = ("B", "CD4 T", "CD8 T", "NK")
rng = np.random.default_rng(1)
BASE = {kind: np.exp(rng.normal(size=N_GENES)) for kind in TYPES}
EFFECT = {name: rng.normal(0, 0.7, N_GENES) * (rng.random(N_GENES) < 0.4) for name in "ABCDEF"}


def cells(kind: str, drug: str, n: int, *, dose: float = 1.0, seed: int = 0) -> AnnData:
    """Cells of a type under a drug or a pair of them; log rates move by the sum of their effects times the dose."""
    own = np.random.default_rng([seed, TYPES.index(kind), *map(ord, drug)])
    parts = [part for part in drug.split("+") if part != "DMSO"]
    share = BASE[kind] * np.exp(dose * sum((EFFECT[part] for part in parts), np.zeros(N_GENES)))
    depth = 800 * np.exp(0.3 * own.standard_normal(n))
    counts = own.poisson(depth[:, None] * share / share.sum()).astype(np.float32)
    obs = pd.DataFrame({"drug": drug, "cell_type": kind, "dose": dose if parts else 0.0, "well": "w1"}, index=range(n))
    obs.index = [f"{kind}-{drug}-{dose}-{seed}-{i}" for i in range(n)]
    return AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{g}" for g in range(N_GENES)]))


def screen() -> AnnData:
    """Three types under DMSO, A to E and A+B; CD8 T without A; NK not at all."""
    made = [cells(kind, drug, 60) for kind in TYPES[:3] for drug in ("DMSO", "A", "B", "C", "D", "E")]
    made = [some for some in made if tuple(some.obs[["cell_type", "drug"]].iloc[0]) != ("CD8 T", "A")]
    return ad.concat([*made, cells("B", "A+C", 60)])


@pytest.fixture(scope="module")
def model() -> sd.ScIDiff:
    return sd.ScIDiff.fit(screen(), SCHEMA, **TINY)


@pytest.fixture(scope="module")
def source() -> AnnData:
    """Control cells the model has not seen."""
    return cells("CD8 T", "DMSO", 200, seed=7)


def effect_of(made: AnnData, control: AnnData) -> np.ndarray:
    return np.asarray(made.X.mean(axis=0)).ravel() - np.asarray(log1p_cp10k(control.X).mean(axis=0)).ravel()


# ---- what comes back -------------------------------------------------------------------------------------------------


def test_cells_come_back_one_for_one_with_counts_and_provenance(model, source):
    before = source.copy()
    made = model.predict(source, {"drug": "A", "dose": 1})
    assert list(made.obs_names) == list(source.obs_names)
    assert list(made.var_names) == model.genes
    counts = made.layers["counts"]
    assert sparse.issparse(counts)
    assert (counts.data == np.rint(counts.data)).all()
    assert counts.data.min() >= 0
    np.testing.assert_allclose(made.X.toarray(), log1p_cp10k(counts).toarray(), rtol=1e-5)
    assert (made.obs["drug"] == "A").all()
    assert (made.obs["dose"] == 1).all()
    assert (made.obs["well"] == "w1").all()
    assert made.obs["ood_score"].between(0, 1).all()
    told = made.uns["scidiff"]
    assert told["verb"] == "predict"
    assert json.loads(told["condition"])[0]["perturbation"] == "A"
    assert told["scales"] == {"X": "log1p(CP10k)", "counts": "counts"}
    effects = told["effects"]
    assert list(effects.columns) == ["condition", "gene", "effect", "low", "high", "as_observed", "n"]
    assert effects["condition"].unique().tolist() == ["cell_type=CD8 T perturbation=A dose=1.0"]
    assert (effects["low"] < effects["effect"]).all()
    assert (effects["as_observed"].abs() > effects["effect"].abs() - 1e-9).all()  # noise enlarges
    assert (effects["effect"] < effects["high"]).all()
    np.testing.assert_allclose(effect_of(made, source), effects["effect"], atol=0.08)
    pd.testing.assert_frame_equal(source.obs, before.obs)
    assert (source.X != before.X).nnz == 0


def test_a_context_never_treated_so_is_predicted_from_the_others(model, source):
    true = effect_of(log(cells("CD8 T", "A", 400, seed=8)), cells("CD8 T", "DMSO", 400, seed=9))
    for network in (True, False):
        made = model.predict(source, {"drug": "A", "dose": 1}, network=network)
        assert np.corrcoef(effect_of(made, source), true)[0, 1] > 0.9


def log(adata: AnnData) -> AnnData:
    return AnnData(log1p_cp10k(adata.X), obs=adata.obs, var=adata.var)


def test_cells_stay_themselves(model, source):
    """A cell is most like itself of all predicted cells."""
    made = model.predict(source, {"drug": "A", "dose": 1})
    x, y = (np.log1p(part.toarray()) for part in (source.X, made.layers["counts"]))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    likeness = np.corrcoef(x, y)[: len(x), len(x) :]
    assert (likeness.argmax(axis=1) == np.arange(len(x))).mean() > 0.8


def test_several_conditions_and_contexts_in_the_order_of_the_cells(model):
    mixed = ad.concat([cells("B", "DMSO", 60, seed=5), cells("CD8 T", "DMSO", 70, seed=5), cells("B", "A", 9, seed=5)])
    mixed = mixed[np.random.default_rng(0).permutation(mixed.n_obs)].copy()
    done = []
    asked = [{"drug": "A", "dose": 1}, {"drug": "B+C", "dose": 1}]
    with pytest.warns(sd.DataWarning):
        made = model.predict(mixed, asked, on_cells=lambda *at: done.append(at))
    control = mixed[mixed.obs["drug"] == "DMSO"]
    assert done == [(n, 260) for n in (60, 130, 190, 260)]
    assert made.obs["cell_type"].tolist() == 2 * control.obs["cell_type"].tolist()
    assert made.obs["drug"].tolist() == 130 * ["A"] + 130 * ["B+C"]
    assert list(made.obs_names[:130]) == list(control.obs_names)
    assert made.obs_names.is_unique
    assert made.uns["scidiff"]["effects"]["condition"].nunique() == 4


def test_a_cell_is_predicted_the_same_alone_as_among_other_contexts_and_conditions(model):
    """As processes that share contexts out among them need it; another seed makes other cells."""
    mixed = ad.concat([cells(kind, "DMSO", 60, seed=5) for kind in ("B", "CD8 T")])
    few = mixed[mixed.obs["cell_type"] == "CD8 T"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.DataWarning)
        among = model.predict(mixed, [{"drug": "B", "dose": 1}, {"drug": "A", "dose": 1}])[-60:]
        alone, other = (model.predict(few, {"drug": "A", "dose": 1}, seed=seed) for seed in (0, 1))
    assert (among.layers["counts"] != alone.layers["counts"]).nnz == 0
    assert (other.layers["counts"] != alone.layers["counts"]).nnz > 100
    assert seed_of(0, "B") != seed_of(0, "CD8 T")  # or like cells of two types would share their noise


def test_a_file_holds_it_all(model, source, tmp_path):
    with pytest.warns(sd.DataWarning):
        made = model.predict(source, [{"drug": "A", "dose": 1}, {"drug": "A+B", "dose": "1+0.5"}, {"drug": "B"}])
    made.write_h5ad(tmp_path / "made.h5ad")
    again = ad.read_h5ad(tmp_path / "made.h5ad")
    assert again.obs["dose"].astype(object).unique().tolist()[:2] == ["1.0", "1+0.5"]
    assert again.obs["dose"].isna().sum() == source.n_obs  # what is not said is not known
    assert model.schema.table(again)["dose"].isna().sum() == source.n_obs
    pd.testing.assert_frame_equal(
        again.uns["scidiff"]["effects"].reset_index(drop=True), made.uns["scidiff"]["effects"], check_dtype=False
    )


def test_seeds_and_files_make_the_same_cells(model, source, tmp_path):
    asked = {"drug": "A", "dose": 1}
    loaded = sd.ScIDiff.load(model.save(tmp_path / "model"))
    first, again = (one.predict(source, asked) for one in (model, loaded))
    other = model.predict(source, asked, seed=1)
    assert (first.layers["counts"] != again.layers["counts"]).nnz == 0
    assert (first.layers["counts"] != other.layers["counts"]).nnz > 0
    pd.testing.assert_frame_equal(first.uns["scidiff"]["effects"], again.uns["scidiff"]["effects"])


# ---- what may be asked -----------------------------------------------------------------------------------------------


def test_parts_of_a_combination_have_no_order(model, source):
    asked = [{"drug": "A+B", "dose": "1+0.5"}, {"drug": "B+A", "dose": "0.5+1"}]
    with pytest.warns(sd.DataWarning, match="extrapolation: 'B'"):
        one, other = (model.predict(source, some) for some in asked)
    assert (one.layers["counts"] != other.layers["counts"]).nnz == 0
    true = effect_of(log(cells("CD8 T", "A+B", 400, seed=8)), cells("CD8 T", "DMSO", 400, seed=9))
    made = model.predict(source, {"drug": "A+B", "dose": 1})
    assert np.corrcoef(effect_of(made, source), true)[0, 1] > 0.85


@pytest.mark.parametrize("asked", [{"drug": "A", "dose": 0}, {"drug": "DMSO"}])
@pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
def test_no_treatment_changes_no_molecule(model, source, asked):
    made = model.predict(source, asked)
    assert (made.layers["counts"] != source.X).nnz == 0
    assert (made.uns["scidiff"]["effects"]["effect"] == 0).all()


def test_a_new_cell_type_is_known_by_its_control_cells(model):
    source = cells("NK", "DMSO", 200)
    made = model.predict(source, {"drug": "A", "dose": 1})
    true = effect_of(log(cells("NK", "A", 400, seed=8)), cells("NK", "DMSO", 400, seed=9))
    assert np.corrcoef(effect_of(made, source), true)[0, 1] > 0.85


def test_columns_may_be_missing(model, source):
    plain = AnnData(source.X, var=source.var, obs=pd.DataFrame(index=source.obs_names))
    made = model.predict(plain, {"drug": "A", "dose": 1})
    assert list(made.obs.columns) == ["drug", "dose", "ood_score"]
    assert made.n_obs == source.n_obs


def test_a_dozen_cells_have_the_mean_themselves(model, source):
    made = model.predict(source[:12], {"drug": "A", "dose": 1})
    off = effect_of(made, source[:12]) - made.uns["scidiff"]["effects"]["effect"]
    assert off.std() < 0.08


def test_stacked_estimates_are_part_of_the_effect_where_it_was_right_before():
    """Effects multiply, and types express genes at very different levels: five were treated, the sixth is asked for."""
    kinds = dict(zip([*TYPES, "DC", "Mono"], np.random.default_rng(3).normal(0, 1.5, (6, N_GENES)), strict=True))
    change = np.random.default_rng(4).normal(0, 1.2, N_GENES)
    own = np.random.default_rng(5)
    made = []
    for kind, log_rate in kinds.items():
        for drug, dose in (("DMSO", 0.0), ("A", 1.0)):
            share = np.exp(log_rate + change * dose)
            counts = own.poisson(1000 * share / share.sum(), (80, N_GENES)).astype(np.float32)
            obs = pd.DataFrame({"drug": drug, "cell_type": kind, "dose": dose}, index=range(80))
            made.append(
                AnnData(sparse.csr_matrix(counts), obs=obs.set_index(f"{kind}-{drug}-" + obs.index.astype(str)))
            )
    true = effect_of(AnnData(log1p_cp10k(made[-1].X)), made[-2])
    trained = sd.ScIDiff.fit(ad.concat(made[:-1]), SCHEMA, **TINY)
    said = trained.predict(made[-2], {"drug": "A", "dose": 1}, network=False).uns["scidiff"]["effects"]["effect"]
    assert trained.predictor is not None
    alone = trained.predictor.effects.predict(
        {"cell_type": "Mono"}, ("A",), control_mean=np.asarray(log1p_cp10k(made[-2].X).mean(axis=0)).ravel(), dose=1
    )
    assert ((said - true) ** 2).mean() < 0.8 * ((alone.mean - true) ** 2).mean()


def test_a_network_says_what_it_believes_of_an_effect(model, source):
    """A network that is its conditions' composition: the effect is that of drawing molecules from it."""
    assert model.effect_network is None  # after five steps it would have none
    believes = untrained(Thinning(), model.denoiser.anchor, model.vocabulary, None, seed=0, width=8, n_blocks=1)
    sure = replace(model, effect_network=believes)
    before = SCHEMA.table(source)
    after = before.assign(perturbation="A", dose=1.0)
    depth = np.full(source.n_obs, 800.0)
    said = generated_effect(sure, before, after, depth=depth, seed=0)
    own = np.random.default_rng(0)
    shares = [torch.softmax(believes.anchor(model.encoded(t[:1], depth=depth[:1])), dim=1)[0] for t in (before, after)]
    drawn = [log1p_cp10k(own.multinomial(800, s.double().numpy() / s.double().sum().item(), 4000)) for s in shares]
    expected = drawn[1].mean(axis=0) - drawn[0].mean(axis=0)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(said, expected, atol=0.25)
    assert np.corrcoef(said, expected)[0, 1] > 0.99
    nobody = after.assign(cell_type="Mast")
    assert generated_effect(sure, before.assign(cell_type="Mast"), nobody, depth=depth, seed=0) is None


def test_the_network_says_which_genes_move_and_not_how_far():
    rng = np.random.default_rng(0)
    closed, apart = np.linalg.qr(rng.normal(size=(50, 2)))[0].T
    for seen in (0.6 * closed + 0.2 * apart, 3 * closed - apart):  # too little, too much
        np.testing.assert_allclose(sized(seen, closed) @ closed, 1)
        np.testing.assert_allclose(np.outer(sized(seen, closed), seen), np.outer(seen, sized(seen, closed)))
    hardly = 0.1 * closed + apart
    np.testing.assert_allclose(sized(hardly, closed), ENLARGED * hardly)
    np.testing.assert_array_equal(sized(-closed, closed), -closed)
    np.testing.assert_array_equal(sized(closed, np.zeros(50)), closed)  # nothing to measure it by


def test_one_cell_is_predicted_among_its_like(model, source):
    known, new = model.predict(source[:1], {"drug": "A", "dose": 1}), model.predict(source, {"drug": "A", "dose": 1})
    assert known.n_obs == 1
    own = source[:1].X.toarray()
    change = known.layers["counts"].toarray() - own
    assert 0 < np.abs(change).sum() < own.sum()
    up = effect_of(new, source) > 0.6
    assert (change[:, up] >= 0).all()


def test_the_user_is_told_what_is_known(model, source):
    with pytest.warns(sd.DataWarning, match="A in cell_type=B: measured in training"):
        model.predict(cells("B", "DMSO", 60), {"drug": "A", "dose": 1})
    with pytest.warns(sd.DataWarning, match="A in cell_type=CD8 T: extrapolation: 'A' was measured at 1 to 1"):
        model.predict(source, {"drug": "A", "dose": 5})


def test_features_tell_about_perturbations_never_measured(source):
    features = pd.DataFrame(np.eye(6)[[0, 1, 2, 3, 4, 0]] + 0.01, index=list("ABCDEF"))
    model = sd.ScIDiff.fit(screen(), SCHEMA, features=features, **TINY)
    made = model.predict(source, {"drug": "F", "dose": 1})
    unknown = model.predict(source, {"drug": "A", "dose": 1})
    assert made.obs["ood_score"].iloc[0] >= unknown.obs["ood_score"].iloc[0]
    assert made.n_obs == source.n_obs


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"drug": "Z"}, "perturbation 'Z' was never measured; known: 'A', .*; train with features="),
        ({"drug": "A", "cell_type": "B"}, "cell_type belongs to the cells and is not changed"),
        ({"dose": 3}, "name the perturbation to predict"),
        ([], "name the perturbation to predict"),
        ({"drug": "A", "dose": -1}, "dose -1"),
        ({"drug": "A", "doze": 1}, "unknown attribute 'doze'; nearest: 'dose'"),
    ],
)
def test_what_cannot_be_asked(model, source, asked, message):
    with pytest.raises(sd.InputError, match=message):
        model.predict(source, asked)


def test_cells_that_cannot_be_started_from(model, source):
    with pytest.raises(sd.InputError, match="none of the 9 cells is a control"):
        model.predict(cells("B", "A", 9), {"drug": "A"})
    empty = source.copy()
    empty.X = sparse.csr_matrix(empty.X.toarray() * (np.arange(200) != 3)[:, None])
    with pytest.raises(sd.InputError, match="1 of 200 cells have only zeros"):
        model.predict(empty, {"drug": "A"})
    with pytest.raises(sd.InputError, match="trained on counts, but the cells hold log1p"):
        model.predict(log(source), {"drug": "A"})
    with pytest.raises(sd.InputError, match="seed=-1"):
        model.predict(source, {"drug": "A"}, seed=-1)
    atlas = sd.ScIDiff.fit(source, sd.Schema(context="cell_type"), **TINY)
    with pytest.raises(sd.InputError, match="knows no perturbation"):
        atlas.predict(source, {"cell_type": "B"})


# ---- log expression --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [True, False])
def test_gaussian_models_move_expression_to_the_same_means(source, network):
    model = sd.ScIDiff.fit(log(screen()), SCHEMA, **TINY)
    assert model.scale == "log1p"
    start = log(source)
    made = model.predict(start, {"drug": "A", "dose": 1}, network=network)
    assert made.X.min() >= 0
    assert "counts" not in made.layers
    effects = made.uns["scidiff"]["effects"]
    reached = np.asarray(made.X.mean(axis=0)).ravel() - np.asarray(start.X.mean(axis=0)).ravel()
    np.testing.assert_allclose(reached, effects["effect"], atol=1e-3)
    true = effect_of(log(cells("CD8 T", "A", 400, seed=8)), cells("CD8 T", "DMSO", 400, seed=9))
    assert np.corrcoef(reached, true)[0, 1] > 0.9


def test_a_model_keeps_its_effect_network(tmp_path):
    """Trained where a drug was not seen in every type, and where training is long enough for it to learn anything."""
    longer = TINY | {"config": sd.TrainConfig(steps=300, batch_size=32)}
    model = sd.ScIDiff.fit(screen(), SCHEMA, denoise_only=True, **longer)
    assert model.effect_network is not None  # CD8 T cells were not seen under A
    assert model.history["stage"].drop_duplicates().tolist() == ["predict", "denoise"]
    again = sd.ScIDiff.load(model.save(tmp_path / "model"))
    asked = {"drug": "A", "dose": 1}
    source = cells("CD8 T", "DMSO", 60, seed=7)
    effects = [one.predict(source, asked).uns["scidiff"]["effects"]["effect"] for one in (model, again)]
    np.testing.assert_array_equal(*effects)
    plain = replace(model, effect_network=None).predict(source, asked).uns["scidiff"]["effects"]["effect"]
    assert np.abs(effects[0] - plain).max() > 1e-3
