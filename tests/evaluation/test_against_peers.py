"""Scores against those of cell-eval and pertpy, where these are installed; where definitions differ, by how much.

The same cells go to both: fresh cells of planted populations as the prediction, from control cells of their own.
"""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist

from scidiff.data.schema import Schema
from scidiff.evaluation import metrics
from scidiff.evaluation.effects import evaluate_effects

GENES = [f"G{i}" for i in range(60)]
TREATED = ["G0", "G1", "G2", "G3", "G4", "G5", "G6", "G7"]  # perturbations are named after the genes they target
SCHEMA = Schema(perturbation="condition", control="control")


def draw(names: list[str], seed: int, *, n: int = 40, effect: float = 1.0, on_target: float = 0.0) -> ad.AnnData:
    """Return ``n`` cells of log expression for each perturbation: all alike, so ranks vary."""
    truth, rng = np.random.default_rng(0), np.random.default_rng(seed)
    base, shared = truth.uniform(1, 4, len(GENES)), truth.normal(size=len(GENES))
    own = {name: shared + 0.25 * truth.normal(size=len(GENES)) for name in TREATED} | {"control": 0 * shared}
    for i, name in enumerate(TREATED):
        own[name][i] += on_target
    mean = np.repeat([base + 0.3 * effect * own[name] for name in names], n, axis=0)
    x = np.clip(mean + rng.normal(scale=0.8, size=mean.shape), 0.001, 9)  # never whole numbers: no counts
    obs = pd.DataFrame({"condition": np.repeat(names, n)}, index=[f"{seed}-{i}" for i in range(len(x))])
    return ad.AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def cells() -> dict[str, ad.AnnData]:
    """Predictions that are attenuated and miss the target genes, which only a score that leaves them out forgives."""
    control = ["control"]
    return {
        "predicted": draw(TREATED, 1, effect=0.7),
        "source": draw(control, 2, n=50),
        "real": draw(TREATED, 3, on_target=-2),
        "control": draw(control, 4, n=60),
        "reference": draw(control, 5, n=80),
    }


@pytest.fixture(scope="module")
def scores(cells) -> pd.DataFrame:
    """Ours: a row per perturbation, a column per metric."""
    sets = {name: cells[name] for name in ("source", "control", "reference")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = evaluate_effects(cells["predicted"], cells["real"], schema=SCHEMA, genes=GENES, limits=False, **sets)
    return table.pivot(index="condition", columns="metric", values="value").loc[TREATED]


@pytest.fixture(scope="module")
def pair(cells):
    """The cells as cell-eval takes them: prediction and truth, each with its own control cells."""
    pytest.importorskip("cell_eval", reason="cell-eval is not installed")
    from cell_eval._types import PerturbationAnndataPair

    real, predicted = ad.concat([cells["real"], cells["control"]]), ad.concat([cells["predicted"], cells["source"]])
    return PerturbationAnndataPair(real=real, pred=predicted, pert_col="condition", control_pert="control")


@pytest.fixture(scope="module")
def strengths(cells) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true effects, (n_perturbations, n_genes) both."""

    def effects(treated: ad.AnnData, control: ad.AnnData) -> np.ndarray:
        return np.array([metrics.effect(treated[treated.obs["condition"] == name].X, control.X) for name in TREATED])

    return effects(cells["predicted"], cells["source"]), effects(cells["real"], cells["control"])


# --- cell-eval: from cells to scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pearson_delta", "mse_delta"])
def test_scores_of_effects_are_those_of_cell_eval(name, scores, pair):
    import cell_eval.metrics._anndata as theirs

    expected = getattr(theirs, name)(pair)
    np.testing.assert_allclose(scores[name], [expected[one] for one in TREATED], rtol=1e-4)
    assert scores[name].std() > 0


def test_discrimination_is_that_of_cell_eval(scores, pair):
    """Ranked by L1, the target gene left out, 1 - rank / P; the planted effects are near each other: ranks differ."""
    from cell_eval.metrics._anndata import discrimination_score

    expected = discrimination_score(pair)
    assert scores["pds"].tolist() == pytest.approx([expected[one] for one in TREATED])
    assert scores["pds"].nunique() > 2


def test_ties_are_halves_here_and_the_order_of_rows_in_cell_eval(cells, pair):
    """Two perturbations of the same true effect: cell-eval gives the whole rank to one of the two."""
    from cell_eval._types import PerturbationAnndataPair
    from cell_eval.metrics._anndata import discrimination_score

    def twice(adata: ad.AnnData, control: ad.AnnData) -> ad.AnnData:
        one = adata[adata.obs["condition"] == "G0"].copy()
        one.var_names = [f"gene {i}" for i in range(one.n_vars)]  # no perturbation's target
        other = one.copy()
        other.obs["condition"] = "G1"
        control = control.copy()
        control.var_names = one.var_names
        return ad.concat([one, other, control], index_unique="-")

    real, predicted = twice(cells["real"], cells["control"]), twice(cells["predicted"], cells["source"])
    tied = PerturbationAnndataPair(real=real, pred=predicted, pert_col="condition", control_pert="control")
    theirs = discrimination_score(tied)
    effects = [metrics.effect(adata.X[:40], adata.X[80:]) for adata in (predicted, real)]
    ours = metrics.pds(*(np.array([one, one]) for one in effects))
    assert sorted(theirs.values()) == [0.5, 1]
    assert ours.tolist() == [0.75, 0.75]
    assert ours.mean() == np.mean(list(theirs.values()))


def test_overlap_and_direction_of_changed_genes_are_those_of_cell_eval(strengths):
    """cell-eval takes significant genes, by fold change, and at most as many as are significant; here all count."""
    pytest.importorskip("cell_eval", reason="cell-eval is not installed")
    import polars as pl
    from cell_eval._types import DESortBy, initialize_de_comparison
    from cell_eval.metrics._de import DEDirectionMatch, de_overlap_metric

    def table(effects: np.ndarray) -> pl.DataFrame:
        columns = {"target": np.repeat(TREATED, len(GENES)), "feature": np.tile(GENES, len(TREATED))}
        return pl.DataFrame(columns | {"log2_fold_change": effects.ravel(), "p_value": 0.0, "fdr": 0.0})

    d_pred, d_true = strengths
    compared = initialize_de_comparison(real=table(d_true), pred=table(d_pred))
    overlap = de_overlap_metric(compared, k=10, sort_by=DESortBy.ABS_LOG2_FOLD_CHANGE)
    direction = DEDirectionMatch()(compared)
    ours = [metrics.de_overlap(np.abs(p), np.abs(t), k=10) for p, t in zip(d_pred, d_true, strict=True)]
    assert ours == pytest.approx([overlap[one] for one in TREATED])
    agreed = [metrics.direction_agreement(p, t) for p, t in zip(d_pred, d_true, strict=True)]
    assert agreed == pytest.approx([direction[one] for one in TREATED])
    assert 0 < min(ours) < max(ours) < 1
    assert min(agreed) < 1


# --- pertpy: distances between populations ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def points() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(35, 5)), rng.normal(loc=0.4, scale=1.3, size=(50, 5))


def distance(metric: str):
    pertpy = pytest.importorskip("pertpy", reason="pertpy is not installed")
    return pertpy.tl.Distance(metric=metric)


def test_energy_is_pertpys_less_the_pairs_of_a_cell_with_itself(points):
    """pertpy takes means over n * n pairs, here over the n * (n - 1) distinct ones: its distances are never below 0."""
    x, y = points
    theirs = distance("edistance")(x, y)
    itself = sum(pdist(one).mean() / len(one) for one in points)
    assert metrics.energy(x, y) == pytest.approx(theirs - itself)
    assert itself > 0.05 * theirs


def test_mmd_is_pertpys_over_three_widths_less_the_pairs_of_a_cell_with_itself(points):
    """pertpy's kernel has the width it is told and its default is linear; here widths follow from the real cells."""
    x, y = points
    median = np.median(pdist(y, "sqeuclidean"))
    expected = 0.0
    for b in (0.5, 1, 2):
        expected += distance("mmd")(x, y, kernel="rbf", gamma=1 / (b * median))
        for one in points:
            expected -= (1 - np.exp(-pdist(one, "sqeuclidean") / (b * median)).mean()) / len(one)
    assert metrics.mmd(x, y) == pytest.approx(expected)


def test_distances_of_two_samples_of_one_population_are_0_here_and_above_in_pertpy():
    rng = np.random.default_rng(1)
    samples = [(rng.normal(size=(12, 3)), rng.normal(size=(12, 3))) for _ in range(60)]
    ours = np.array([metrics.energy(*one) for one in samples])
    theirs = np.array([distance("edistance")(*one) for one in samples])
    assert abs(ours.mean()) < 3 * ours.std() / np.sqrt(len(ours))
    assert theirs.min() > 0
