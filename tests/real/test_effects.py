"""Effects on published measurements: a baseline that must win, and a screen in which nothing reproduces."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scidiff.data.catalog import load, schema_of
from scidiff.data.splits import holdout
from scidiff.evaluation import metrics
from scidiff.evaluation.effects import evaluate_effects
from scidiff.evaluation.evaluate import log_expression
from scidiff.evaluation.shifts import Additive, MeanShift, PerturbedMean, SimilarityShift

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def folder(real_data, monkeypatch):
    monkeypatch.setenv("SCIDIFF_DATA", str(real_data))


@pytest.fixture
def crispr():
    """Both screens of the file, on the published log expression: 500 genes are too few to normalise by."""
    adata = load("norman19")
    adata.X = adata.layers.pop("lognorm")
    return adata, schema_of("norman19")


def scores_of_mean_of_others(line: ad.AnnData, schema, *, shared: bool):
    """Return the pearson_delta rows of every perturbation predicted by the mean of the others in its line."""
    split = holdout(line, schema, perturbation="PLK4", seed=0)
    halves = line[split.source].copy(), line[split.control].copy()
    source, control = (ad.concat(halves), ad.concat(halves)) if shared else halves
    treated = line[(line.obs["condition"] != "control").to_numpy()]
    predicted = []
    for perturbation in treated.obs["condition"].unique():
        others = treated[(treated.obs["condition"] != perturbation).to_numpy()]
        method = PerturbedMean.fit(ad.concat([source, others]), schema)
        predicted.append(method.predict(source, {"perturbation": perturbation}))
    scores = evaluate_effects(
        ad.concat(predicted, index_unique="-"),
        treated.copy(),
        source=source,
        control=control,
        schema=schema,
        shared_control=shared,
    )
    return scores[scores["metric"] == "pearson_delta"]


@pytest.mark.parametrize("line", ["A172", "T98G", "U87MG"])
def test_shared_controls_make_skill_out_of_nothing_in_a_screen_that_does_not_reproduce(crispr, line):
    adata, schema = crispr
    cells = adata[(adata.obs["cell_type"] == line).to_numpy()].copy()
    disjoint, shared = (scores_of_mean_of_others(cells, schema, shared=shared) for shared in (False, True))
    assert len(disjoint) == len(shared) == 9
    assert shared["value"].mean() > 0.5
    assert disjoint["value"].mean() < 0.2
    assert disjoint["ceiling"].mean() < 0.2 < shared["ceiling"].mean()
    useless = [table["note"].str.startswith("cannot tell anything on this data").mean() for table in (disjoint, shared)]
    assert useless[0] > 0.75 > useless[1]


@pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
def test_norman_doubles_of_two_seen_singles_add_up(crispr):
    adata, schema = crispr
    adata = adata[(adata.obs["cell_type"] == "k562").to_numpy()].copy()
    singles = {name for name in adata.obs["condition"].unique() if "+" not in name}
    doubles = [n for n in adata.obs["condition"].unique() if "+" in n and set(n.split("+")) <= singles]
    assert len(doubles) == 5
    scores = {Additive: [], PerturbedMean: []}
    for double in doubles:
        split = holdout(adata, schema, combination=double, seed=0)
        source, control, real = adata[split.source], adata[split.control], adata[split.test]
        true = metrics.effect(real.X, control.X)
        for method, found in scores.items():
            predicted = method.fit(adata[split.train], schema).predict(source, {"perturbation": double})
            found.append(metrics.pearson_delta(metrics.effect(predicted.X, source.X), true))
    assert np.mean(scores[Additive]) > 0.6
    assert np.mean(scores[PerturbedMean]) < 0.4


def test_kang_similar_cell_types_predict_better_than_all():
    adata, schema = load("kang18"), schema_of("kang18")
    adata = adata[~adata.obs["cell_type"].isin(["Mk", "Eryth"]).to_numpy()].copy()
    better = 0
    for cell_type in adata.obs["cell_type"].unique():
        split = holdout(adata, schema, context=str(cell_type), perturbation="IFN-beta", seed=0)
        source = log_expression(adata[split.source])
        true = metrics.effect(log_expression(adata[split.test]), log_expression(adata[split.control]))
        found = []
        for method in (MeanShift, SimilarityShift):
            fitted = method.fit(adata[split.train], schema)
            predicted = fitted.predict(adata[split.source], {"perturbation": "IFN-beta"})
            found.append(metrics.pearson_delta(metrics.effect(predicted.X, source), true))
        assert found[0] > 0.5
        better += found[1] > found[0]
    assert better >= 6
