"""The denoising benchmark: numbers are those of the rooms, the verdict is right on planted truth, the page says so."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.benchmarking import denoise as task
from scidiff.benchmarking.denoise import Diffusion, benchmark_denoising, contrasts, gain, gene_sets
from scidiff.benchmarking.denoise_report import coverage_table, score_table, verdict
from scidiff.cli import main
from scidiff.data.molecules import split_molecules
from scidiff.evaluation.denoisers import SQRT, GlobalMean, Neighbours
from scidiff.evaluation.denoising import Denoised, cross_validate
from scidiff.training import TrainConfig

SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context="kind")
N_CELLS, N_GENES = 240, 60


def cells(*, differ: bool, seed: int = 0) -> AnnData:
    """Return cells of two kinds, half of each under a drug, that differ in composition or in nothing."""
    rng = np.random.default_rng(seed)
    rate = np.tile(np.exp(rng.normal(size=N_GENES)), (N_CELLS, 1))
    obs = pd.DataFrame(
        {"drug": np.resize(["DMSO", "A"], N_CELLS), "kind": rng.choice(["T", "B"], N_CELLS)},
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    if differ:
        rate[obs["kind"] == "T", :15] *= 6
        rate[obs["drug"] == "A", 15:25] *= 6
    depth = rng.integers(80, 200, N_CELLS)
    counts = np.array([rng.multinomial(n, r / r.sum()) for n, r in zip(depth, rate, strict=True)])
    counts[0] = 0
    counts[0, 0] = 1  # a cell whose only molecule is kept or held out
    genes = pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)])
    return AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=genes)


def fit_small(adata, schema, config, advance) -> sd.ScIDiff:
    """As the benchmark trains, with a network for 60 genes."""
    small = replace(config, steps=min(config.steps, 100), batch_size=32, learning_rate=5e-3)
    return sd.ScIDiff.fit(adata, schema, width=32, n_blocks=1, denoise_only=True, config=small)


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "fit", fit_small)
        patch.setattr(task, "N_PREDICTIVE", 5)
        yield


def benchmark(adata: AnnData, schema: sd.Schema | None, out, **options):
    others = [GlobalMean(), Neighbours(SQRT)]
    return benchmark_denoising(
        adata, schema, out=out, dataset="planted", splits=1, fast=True, denoisers=others, **options
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run on cells that differ, scored against two baselines."""
    return benchmark(cells(differ=True), SCHEMA, tmp_path_factory.mktemp("runs") / "out")


def value(results, method: str, metric: str) -> float:
    [one] = results.table.query("method == @method and metric == @metric")["value"]
    return one


def test_scores_are_those_of_cross_validation(run):
    x = cells(differ=True).X
    expected = cross_validate(x, [GlobalMean(), Neighbours(SQRT)], seeds=[0])
    for row in expected.itertuples():
        assert value(run, row.method, row.metric) == pytest.approx(row.value, rel=1e-4)


def test_gain_is_the_difference_of_the_scores(run):
    for method in ("scIDiff", "kNN, sqrt"):
        difference = value(run, "global mean", "nll_molecule") - value(run, method, "nll_molecule")
        assert value(run, method, "gain") == pytest.approx(difference, rel=1e-4)
        assert value(run, method, "gain") > 2 * value(run, method, "gain_se") > 0


def test_standard_error_of_the_gain_is_that_of_fresh_cells():
    """The spread of the gain over simulated data sets, against the error stated for each."""
    rng = np.random.default_rng(0)
    stated, found = [], []
    for _ in range(200):
        kind = rng.integers(2, size=80)
        p = np.array([[0.5, 0.3, 0.2], [0.3, 0.3, 0.4]])[kind]
        counts = [rng.multinomial(n, q) for n, q in zip(rng.integers(5, 40, 80), p, strict=True)]
        held = sparse.csr_matrix(np.array(counts))
        one = gain(p, sparse.csr_matrix(np.tile([40, 30, 30], (80, 1))), held)
        found.append(one["gain"])
        stated.append(one["gain_se"])
    assert np.mean(stated) == pytest.approx(np.std(found), rel=0.2)


def test_the_verdict_is_yes_where_cells_differ(run):
    written = json.loads((run.folder / "verdict.json").read_text())
    assert written["denoise"] is True
    assert set(written["by"]) == {"scIDiff", "kNN, sqrt"}
    assert written["text"][0].startswith("Denoise.")


def test_the_verdict_is_no_where_cells_are_all_alike(tmp_path):
    """Neither a network nor neighbours find anything: there is nothing."""
    results = benchmark(cells(differ=False), None, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert written["denoise"] is False
    assert not any(one["better"] for one in written["by"].values())
    assert "Do not denoise" in (tmp_path / "out" / "report.html").read_text()
    # no schema, no groups: correlations only
    assert not results.rows("invention")["metric"].str.startswith("false").any()


def test_two_standard_errors_over_splits():
    def table(*gains: float) -> pd.DataFrame:
        rows = [("molecules", "m", metric, v) for g in gains for metric, v in (("gain", g), ("gain_se", 0.1))]
        return pd.DataFrame(rows, columns=["part", "method", "metric", "value"])

    assert verdict(table(0.25, 0.17))["denoise"]  # .21 against .2
    assert not verdict(table(0.25, 0.13))["denoise"]
    assert verdict(table(0.25, 0.17).iloc[:0]) == {"denoise": False, "by": {}}


def test_every_part_is_there_and_the_page_shows_it(run):
    parts = run.table.groupby("part")["method"].agg(set)
    assert parts["invention"] == {"observed", "scIDiff, draws", "scIDiff, mean", "kNN, sqrt"}
    assert parts["random label"] == {"observed", "scIDiff, draws", "scIDiff, mean"}
    assert {"false positives, A v. DMSO", "false positives, T v. B"} & set(run.table["metric"])
    covered = coverage_table(run.table).set_index("of")
    assert list(covered.columns) == [50, 80, 95]
    assert covered.loc["highest genes", 80] == pytest.approx(80, abs=8)
    page = (run.folder / "report.html").read_text()
    for text in ("Shall planted be denoised?", "Held-out molecules", "invent biology", "uncertainty true"):
        assert text in page
    assert page.count('class="best"') >= 3


def test_the_best_of_each_score_is_marked(run):
    table = score_table(run.table)
    numbers = [float(one.text) for one in table["nats per held-out molecule"]]
    assert [one.best for one in table["nats per held-out molecule"]] == [n == min(numbers) for n in numbers]


def test_a_run_goes_on_without_training(run, monkeypatch):
    monkeypatch.setattr(task, "fit", lambda *args: pytest.fail("trained again"))
    before = run.table.copy()
    again = benchmark(cells(differ=True), SCHEMA, run.folder, resume=True)
    pd.testing.assert_frame_equal(again.table, before, rtol=1e-4, check_dtype=False)


def test_scidiff_is_a_denoiser_and_leaves_empty_cells_to_the_average():
    kept, held = split_molecules(cells(differ=True).X, held_out=0.5, seed=3)
    kept = sparse.csr_matrix(kept.multiply(np.arange(N_CELLS)[:, None] > 4), dtype=np.float32)
    method = Diffusion(TrainConfig(steps=3), lambda *args: None)
    denoised = method.fit_predict(kept, held_depth=np.asarray(held.sum(axis=1)).ravel(), seed=0)
    assert isinstance(denoised, Denoised)
    average = GlobalMean().fit_predict(kept, held_depth=np.ones(N_CELLS), seed=0).composition
    assert denoised.composition[:5] == pytest.approx(average[:5])
    assert method.model.schema == sd.Schema()  # no label helps it
    with pytest.raises(sd.InputError, match="denoise only"):
        method.model.generate(3)


def test_groups_are_the_frequent_ones_and_small_ones_are_left_out():
    adata = cells(differ=True)
    table, depth = SCHEMA.table(adata), np.asarray(adata.X.sum(axis=1)).ravel()
    found = contrasts(table, SCHEMA, depth, seed=0)
    assert set(found) == {"A v. DMSO", f"{' v. '.join(adata.obs['kind'].value_counts().index)}"}
    first, second = found["A v. DMSO"][0]
    assert set(adata.obs["drug"].iloc[first]) == {"DMSO"}
    assert set(adata.obs["drug"].iloc[second]) == {"A"}
    assert contrasts(table[:50], SCHEMA, depth[:50], seed=0) == {}
    assert contrasts(table, sd.Schema(), depth, seed=0) == {}


def test_gene_sets_are_the_planted_ones():
    sets = gene_sets(cells(differ=True).X, seed=0)
    assert np.array_equal(np.sort(np.concatenate(sets)), np.arange(N_GENES))
    of_gene = np.empty(N_GENES, int)
    for i, genes in enumerate(sets):
        of_gene[genes] = i
    planted = np.repeat([0, 1, 2], [15, 10, 35])
    shared = sum(len(set(of_gene[planted == a]) & set(of_gene[planted == b])) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert shared <= 3


def test_log_expression_cannot_be_judged(tmp_path):
    adata = cells(differ=True)
    adata.X = adata.X.log1p()
    with pytest.raises(sd.InputError, match="raw counts"):
        benchmark_denoising(adata, out=tmp_path / "out")


def test_the_command(tmp_path, capsys, monkeypatch):
    cells(differ=True).write_h5ad(tmp_path / "planted.h5ad")
    monkeypatch.setattr(task, "_quick", lambda: [GlobalMean()])
    words = ["benchmark", tmp_path / "planted.h5ad", "--task", "denoise", "--out", tmp_path / "out", "--fast", "--json"]
    words += ["--perturbation", "drug", "--control", "DMSO"]
    assert main([str(word) for word in words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"]["denoise"] is True
    assert told["report"].endswith("report.html")
    assert {row["dataset"] for row in told["table"]} == {"planted"}
    assert main([str(word) for word in words]) == 1
    assert "--resume" in capsys.readouterr().err
    assert main(["benchmark", str(tmp_path / "planted.h5ad"), "--task", "denois", "--out", "x"]) == 1
    assert "nearest: 'denoise'" in capsys.readouterr().err
