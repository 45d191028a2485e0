"""The prediction benchmark: numbers are those of the rooms, limits and oracle are in their place, files take part."""

from __future__ import annotations

import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scidiff as sd
from scidiff.benchmarking import benchmark_prediction, export_splits
from scidiff.benchmarking import predict as task
from scidiff.benchmarking.predict_report import (
    ALONE,
    CEILING,
    CLOSED,
    FLOOR,
    IN_COUNTS,
    LARGE,
    ORACLE,
    OURS,
    cases,
    gain,
    means,
    method_table,
    useless,
    verdict,
)
from scidiff.cli import main
from scidiff.data.splits import holdout
from scidiff.evaluation import effects
from scidiff.evaluation.effects import METRICS, evaluate_effects
from scidiff.evaluation.shifts import MeanShift, NoChange
from scidiff.training import TrainConfig

SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context="kind", batch="donor")
KINDS, DRUGS, GENES = ("B", "T"), ("DMSO", "X", "Y"), [f"G{i}" for i in range(60)]


def screen(seed: int = 0, n: int = 40) -> ad.AnnData:
    """Return cells of three kinds under two drugs, each of which changes other genes, a bit more in T; counts."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(7)
    base = {kind: np.exp(truth.normal(size=60)) for kind in KINDS}
    drugs = {drug: np.zeros(60) for drug in DRUGS}
    drugs["X"][:15], drugs["Y"][10:25] = truth.normal(size=(2, 15))
    obs = pd.DataFrame(
        [(kind, drug, f"d{i % 2}") for kind in KINDS for drug in DRUGS for i in range(n)],
        columns=["kind", "drug", "donor"],
    )
    obs.index = [f"cell{seed}-{i}" for i in range(len(obs))]
    groups = zip(obs["kind"], obs["drug"], strict=True)
    rate = np.array([base[kind] * np.exp(drugs[drug] * (1.2 if kind == "T" else 1)) for kind, drug in groups])
    depth = rng.integers(150, 400, len(obs))[:, None]
    counts = rng.poisson(rate / rate.sum(axis=1, keepdims=True) * depth)
    return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=pd.DataFrame(index=GENES))


def fit_small(cells, schema, config, features, advance) -> sd.ScIDiff:
    """As the benchmark trains, with a network for 60 genes."""
    config = TrainConfig(steps=min(config.steps or 20, 20), batch_size=32, learning_rate=5e-3, seed=config.seed)
    return sd.ScIDiff.fit(cells, schema, features=features, width=16, n_blocks=1, denoise_only=True, config=config)


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "fit", fit_small)
        patch.setattr(effects, "N_HALVINGS", 2)  # most of the work
        yield


@pytest.fixture
def no_page(monkeypatch):
    """For tests of tables: pictures take longer than scores of so few cells."""
    monkeypatch.setattr(task, "write_page", lambda *args, **about: None)


METHODS = {"mean shift": MeanShift, "no change": NoChange}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Each kind held out in turn."""
    out = tmp_path_factory.mktemp("runs") / "out"
    return benchmark_prediction(screen(), SCHEMA, out=out, dataset="planted", methods=METHODS, genes=50)


def test_every_unit_every_method_every_condition(run):
    by_method = run.table.groupby("method")["part"].agg(set)
    more = {f"{OURS}, {ORACLE}", f"{CLOSED}, {ORACLE}", f"{CLOSED}, {LARGE}", IN_COUNTS}
    names = {OURS, CLOSED, *more, CEILING, FLOOR, *METHODS}
    assert set(by_method.index) == names | {ALONE}
    assert "too short" in run.table.query("method == @ALONE")["note"].iloc[0]
    assert all(units == set(KINDS) for units in by_method)
    assert set(run.table["condition"].dropna()) == {f"{drug}, {kind}" for drug in "XY" for kind in KINDS}
    assert set(run.table["metric"]) - {"not run"} == set(METRICS) - {
        "pearson_delta_systema"
    }  # no drug was seen in a held-out kind
    assert len(cases(run.table)) == len(names) * 4  # what was not run has none


def test_the_network_alone_is_asked_for_controls_and_the_same_treated(monkeypatch):
    said, asked_for = np.linspace(-1, 1, 60), []
    monkeypatch.setattr(task, "generated_effect", lambda *tables, **more: asked_for.append((*tables[1:], more)) or said)
    unit = task.Screen.of(screen(), SCHEMA, split="kind=T", genes=None, layer=None).unit("kind=T", seed=3)
    model = fit_small(unit.train, SCHEMA, TrainConfig(seed=0), None, None)
    with pytest.raises(sd.InputError, match="no network learned effects alone"):
        task.network_means(model, unit)
    means = task.network_means(replace(model, effect_network=model.denoiser), unit)
    effect, log_ratio = means(SCHEMA.conditions({"kind": "T", "perturbation": "X"}).iloc[0], np.zeros(60))
    assert effect is said
    assert log_ratio is None
    [(before, after, more)] = asked_for
    for table, drug in ((before, "DMSO"), (after, "X")):
        assert set(table["perturbation"]) == {drug}
        assert set(table["kind"]) == {"T"}
        assert len(table) == len(more["depth"])
    assert more["seed"] == 3
    assert set(more["depth"]) <= set(np.asarray(unit.source.X.sum(axis=1)).ravel())


def test_effects_that_are_to_be_told_apart_are_as_large_as_they_will_look():
    unit = task.Screen.of(screen(), SCHEMA, split="kind=T", genes=None, layer=None).unit("kind=T", seed=3)
    model = fit_small(unit.train, SCHEMA, TrainConfig(seed=0), None, None)
    asked = SCHEMA.conditions({"kind": "T", "perturbation": "X"}).iloc[0]
    effect, log_ratio = task.observed_means(model, unit)(asked, np.zeros(60))
    assert log_ratio is None
    told = model.predict(unit.source, {"perturbation": "X"}, network=False).uns["scidiff"]["effects"]
    np.testing.assert_array_equal(effect, told["as_observed"])
    assert np.abs(effect).sum() > 1.1 * np.abs(told["effect"]).sum()


def test_scores_are_those_of_the_evaluator_on_that_split(run):
    adata = screen()
    split = holdout(adata, SCHEMA, context={"kind": "B"}, seed=0)
    genes = task.usual_genes(task.read_cells(adata[split.train]), 50)
    adata = adata[:, [gene for gene in GENES if gene in set(genes)]].copy()
    train, source = adata[split.train].copy(), adata[split.source].copy()
    fitted = MeanShift.fit(train, SCHEMA)
    cells = ad.concat([fitted.predict(source, {"perturbation": drug}) for drug in "XY"], index_unique="-")
    scores = evaluate_effects(
        cells, adata[split.test], source=source, control=adata[split.control], schema=SCHEMA, reference=train
    ).set_index(["condition", "metric"])
    found = run.rows("B").query("method == 'mean shift'").set_index(["condition", "metric"])["value"]
    limits = run.rows("B").query("method == @CEILING").set_index(["condition", "metric"])["value"]
    for metric in ("pearson_delta", "r2_de100", "pds", "r2_var", "slope"):
        for drug in "XY":
            assert found[f"{drug}, B", metric] == pytest.approx(scores["value"][f"{drug}, B", metric], rel=1e-4), metric
            assert limits[f"{drug}, B", metric] == pytest.approx(scores["ceiling"][f"{drug}, B", metric], rel=1e-4)


def test_the_limits_are_limits_and_the_true_mean_beats_the_guessed_one(run):
    mean = means(run.table)
    assert mean.loc[CEILING, "pearson_delta"] > 0.5 > 0.2 > abs(mean.loc[FLOOR, "pearson_delta"])
    assert mean.loc["no change", "slope"] == 0
    for ours in (OURS, CLOSED):
        assert mean.loc[f"{ours}, {ORACLE}", "mse_delta"] < mean.loc[ours, "mse_delta"]
        assert mean.loc[f"{ours}, {ORACLE}", "energy"] < mean.loc[ours, "energy"]
        assert mean.loc[f"{ours}, {ORACLE}", "r2_de100"] > 0.97  # means are met in counts


def test_a_baseline_in_counts_has_its_means(run):
    """Where both are cut at 0 they differ a little; with means and molecules as asked for, effects are the same."""
    both = cases(run.table)["pearson_delta"].unstack("method")
    assert (both[IN_COUNTS] - both["mean shift"]).abs().max() < 0.06


def test_a_run_goes_on_without_training(run, monkeypatch, no_page):
    options = {"out": run.folder, "dataset": "planted", "methods": METHODS, "genes": 50, "resume": True}
    monkeypatch.setattr(task, "fit", lambda *args: pytest.fail("trained again"))
    again = benchmark_prediction(screen(), SCHEMA, **options)
    pd.testing.assert_frame_equal(again.table, run.table, rtol=1e-4, check_dtype=False)
    with pytest.raises(sd.InputError, match="other split"):
        benchmark_prediction(screen(), SCHEMA, split="kind=B", **options)
    with pytest.raises(sd.InputError, match="other data"):
        benchmark_prediction(screen(seed=1), SCHEMA, **options)


def test_the_page_says_it(run):
    written = json.loads((run.folder / "verdict.json").read_text())
    assert written["method"] == OURS
    assert set(written["by"]) == set(cases(run.table).columns)
    page = (run.folder / "report.html").read_text()
    for text in ("Who predicts planted best?", "All methods", "Error of the mean, error of shape", "one by one"):
        assert text in page
    assert page.count("data:image/svg+xml") == 2


# ---- what rows say ---------------------------------------------------------------------------------------------------


def rows(values: dict[str, list[float]], metric: str = "pearson_delta", *, note: str = "", split=0) -> pd.DataFrame:
    """Rows of one metric: a value per unit for each method; ``note`` is that of the ceiling."""
    made = [
        {"part": f"u{i}", "split": split, "method": name, "metric": metric, "value": v, "condition": "A"}
        | {"seconds": 1.0, "note": note if name == CEILING else ""}
        for name, some in values.items()
        for i, v in enumerate(some)
    ]
    return pd.DataFrame(made)


LIMITS = {CEILING: [0.9] * 3, FLOOR: [0.0] * 3}


def test_gain_is_paired_over_cases():
    table = rows({OURS: [0.9, 0.5, 0.1], "rival": [0.8, 0.38, 0.0]} | LIMITS)
    found = gain(table, "pearson_delta", OURS, "rival")
    assert found["gain"] == pytest.approx((0.1 + 0.12 + 0.1) / 3)
    assert found["se"] == pytest.approx(np.std([0.1, 0.12, 0.1], ddof=1) / np.sqrt(3))
    assert verdict(table)["by"]["pearson_delta"]["best other"]["better"] is True
    energy = rows({OURS: [0.2, 0.3, 0.4], "rival": [-0.1, 0.1, 0.2]} | LIMITS, "energy")
    assert gain(energy, "energy", OURS, "rival")["gain"] == pytest.approx(-(0.1 + 0.2 + 0.2) / 3)  # 0 is best
    assert verdict(energy)["by"]["energy"]["best other"]["worse"] is True


def test_seeds_are_averaged_before_cases_are_compared():
    both = [
        rows({OURS: [0.5, 0.6], "rival": [0.4, 0.5]}, split=0),
        rows({OURS: [0.3, 0.8], "rival": [0.4, 0.3]}, split=1),
    ]
    found = gain(pd.concat(both), "pearson_delta", OURS, "rival")
    assert [found[name] for name in ("gain", "se", "n", "own", "others")] == pytest.approx([0.15, 0.15, 2, 0.55, 0.4])
    one = pd.concat(both).query("part == 'u0'")
    assert gain(one, "pearson_delta", OURS, "rival")["se"] == pytest.approx(0.1)  # of two seeds: nothing else to go by


def test_a_method_cannot_win_by_saying_nothing():
    table = rows({OURS: [0.5, 0.5, 0.5], "rival": [0.4, 0.4, 0.4], "shy": [0.99, np.nan, np.nan]} | LIMITS)
    assert verdict(table)["by"]["pearson_delta"]["best other"]["method"] == "rival"
    shown = method_table(table, ["pearson_delta"]).set_index("method")
    assert [name for name, score in shown["pearson_delta"].items() if score.best] == [OURS]
    assert shown["cases"][[OURS, "rival", "shy"]].tolist() == [3, 3, 1]


def test_a_score_that_cannot_tell_anything_is_not_counted():
    """Noisy cases can tell together what none can alone; a ceiling near no change never can."""
    ours = {OURS: [0.5] * 4, "rival": [0.4] * 4}
    told = "cannot tell anything on this data: as the evaluator writes of each case"
    noisy = rows(ours | {CEILING: [0.9, 0.5, 0.7, 0.4], FLOOR: [0.0, 0.1, 0.3, 0.2]}, note=told)
    assert useless(noisy) == {}
    by_chance = rows(ours | {CEILING: [0.9, 0.0, 0.1, 0.1], FLOOR: [0.0, 0.1, 0.1, 0.2]}, note=told)
    close = rows(ours | {CEILING: [0.61, 0.6, 0.62, 0.6], FLOOR: [0.6, 0.59, 0.61, 0.59]})
    alone = rows({OURS: [0.5], "rival": [0.4], CEILING: [0.9], FLOOR: [0.0]}, note=told)
    for table in (by_chance, close, alone):
        assert useless(table)["pearson_delta"].startswith("cannot tell anything on this data: half of the real cells")
        assert verdict(table)["text"][0].startswith("Of 0 scores that can tell")


# ---- splits, states, other tools -------------------------------------------------------------------------------------


def test_donors_are_held_out_with_all_drugs_and_told_apart(tmp_path, no_page):
    results = benchmark_prediction(
        screen(n=60), SCHEMA, out=tmp_path / "out", split="batch=each", methods={"mean shift": MeanShift}, fast=True
    )
    assert set(results.table["part"]) == {"d0", "d1"}
    assert OURS not in set(results.table["method"])
    pds = cases(results.table)["pds"].unstack("method")
    assert pds["mean shift"].mean() == 1  # both drugs, in both donors and all kinds
    assert verdict(results.table)["method"] == CLOSED


def test_doses_and_times_are_held_out_and_the_true_means_are_theirs(tmp_path, no_page):
    adata = screen(n=90)
    adata.obs["um"] = np.where(adata.obs["drug"] == "DMSO", 0, np.tile([1, 3, 10], adata.n_obs // 3))
    adata.obs["hours"] = np.repeat(np.tile([6, 24], adata.n_obs // 6), 3)
    schema = sd.Schema(perturbation="drug", control="DMSO", context="kind", dose="um", time="hours")
    results = benchmark_prediction(
        adata, schema, out=tmp_path / "out", split="dose=3,time=24,kind=B", methods={"mean shift": MeanShift}, fast=True
    )
    assert set(results.table["condition"]) == {"X, B, 3.0, 24.0", "Y, B, 3.0, 24.0"}
    mean = means(results.table)
    assert mean.loc[f"{CLOSED}, {ORACLE}", "r2_de100"] > 0.97 > mean.loc[CLOSED, "r2_de100"]


def test_states_are_a_context_of_methods_and_not_of_scores(tmp_path, no_page):
    adata = screen()
    schema = sd.Schema(perturbation="drug", control="DMSO", context="donor")  # kinds are to be found
    options = {"split": "donor=d0", "methods": {"mean shift": MeanShift}, "fast": True}
    results = benchmark_prediction(adata, schema, out=tmp_path / "a", states=4, **options)
    assert {"mean shift, by state", CLOSED} <= set(results.table["method"])
    assert set(results.table["condition"].dropna()) == {"X, d0", "Y, d0"}
    unable = results.table[results.table["metric"] == "not run"]
    assert set(unable["method"]) == {f"{CLOSED}, {ORACLE}"}


def test_what_is_too_small_is_named(tmp_path):
    few = screen()
    few = few[~((few.obs["kind"] == "T") & (few.obs["drug"] != "DMSO") & ~few.obs_names.str.endswith("0"))].copy()
    results = benchmark_prediction(few, SCHEMA, out=tmp_path / "out", methods={}, fast=True)
    assert set(results.table["part"]) == {"B"}
    assert "T is not judged: 8 test cells, at least 12" in (tmp_path / "out" / "report.html").read_text()


def predictions(folder, places) -> ad.AnnData:
    """Predict as another tool would, from what was exported and nothing else: a mean shift."""
    made = []
    for place in places:
        train, source = (ad.read_h5ad(place / f"{name}.h5ad") for name in ("train", "source"))
        schema = sd.Schema.from_dict(json.loads((place / "schema.json").read_text()))
        for i, asked in enumerate(pd.read_csv(place / "asked.csv").to_dict("records")):
            cells = MeanShift.fit(train, schema).predict(source, asked)
            cells.obs_names = f"{place.name}-{i}-" + cells.obs_names
            made.append(cells)
    return ad.concat(made, join="outer", fill_value=0)  # every unit has its own genes


def test_cells_predicted_elsewhere_get_the_scores_of_the_method_that_made_them(tmp_path, run, no_page):
    places = export_splits(screen(), SCHEMA, folder=tmp_path / "export", genes=50)
    assert len(places) == 2
    exported = ad.read_h5ad(places[0] / "train.h5ad")
    split = holdout(screen(), SCHEMA, context={"kind": "B"}, seed=0)
    assert list(exported.obs_names) == list(screen().obs_names[split.train])  # nothing held out is in it
    cells = predictions(tmp_path, places)
    results = benchmark_prediction(
        screen(), SCHEMA, out=tmp_path / "out", methods={}, predicted={"other tool": cells}, genes=50, fast=True
    )
    ours = means(run.table).loc["mean shift"]
    np.testing.assert_allclose(means(results.table).loc["other tool"], ours, rtol=1e-4, atol=1e-5)
    del cells.obs["held_out"]
    with pytest.raises(sd.InputError, match="no obs column 'held_out'"):
        benchmark_prediction(screen(), SCHEMA, out=tmp_path / "no", predicted={"other tool": cells}, fast=True)
    with pytest.raises(sd.InputError, match="exists"):
        export_splits(screen(), SCHEMA, folder=tmp_path / "export")


def test_the_command(tmp_path, capsys, monkeypatch, no_page):
    monkeypatch.chdir(tmp_path)
    screen().write_h5ad("cells.h5ad")
    words = ["benchmark", "cells.h5ad", "--task", "predict", "--perturbation", "drug", "--control", "DMSO"]
    words += ["--context", "kind", "--split", "kind=B"]
    assert main([*words, "--export", "export", "--json"]) == 0
    [place] = json.loads(capsys.readouterr().out)["folders"]
    assert (tmp_path / place / "source.h5ad").is_file()
    predictions(None, [tmp_path / place]).write_h5ad("other.h5ad")
    monkeypatch.setattr(task, "SHIFTS", {"no change": NoChange})
    assert main([*words, "--out", "out", "--fast", "--predicted", "other tool=other.h5ad", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"]["method"] == CLOSED
    assert {row["method"] for row in told["table"]} >= {"other tool", CLOSED, CEILING}
    for wrong, message in (
        (["--out", "b", "--splits", "2"], "--splits belongs to --task denoise"),
        ([], "--out"),
        (["--out", "b", "--predicted", "other.h5ad"], "NAME=FILE"),
        (["--out", "b", "--split", "kind=each,drug=each"], "each for one attribute"),
    ):
        assert main([*words, *wrong]) == 1
        assert message in capsys.readouterr().err
