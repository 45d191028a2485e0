"""Scores of predicted effects against scipy and numpy, planted truth, and the traps of measuring effects."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError
from scidiff.evaluation.effects import BETTER, DRAW, METRICS, evaluate_effects

GENES = ["A", "B", "C", *(f"G{i}" for i in range(117))]
SCHEMA = Schema(perturbation="condition", control="control", context="line", batch="plate")
CHANGED = 40
PERTURBATIONS = ("A", "B", "A+C")


def draw(condition: str, n: int, seed: int, *, line: str = "K", strength: float = 1.0) -> ad.AnnData:
    """Return cells of log expression, half of the entries zero, with planted effects of each part of ``condition``."""
    base = np.random.default_rng(1).uniform(1, 4, len(GENES))
    for part in condition.split("+"):
        if part != "control":
            planted = np.random.default_rng(ord(part))
            base[planted.choice(len(GENES), CHANGED, replace=False)] *= np.exp(strength * planted.normal(size=CHANGED))
    rng = np.random.default_rng([seed, *condition.encode()])
    x = rng.gamma(4, base / 4, (n, len(GENES))) * (rng.random((n, len(GENES))) < 0.5)
    names = [f"{condition}-{line}-{seed}-{i}" for i in range(n)]
    obs = pd.DataFrame({"condition": condition, "line": line, "plate": "1"}, index=names)
    return ad.AnnData(np.minimum(x, 19).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


def screen(n: int, seed: int, **more) -> ad.AnnData:
    return ad.concat([draw(p, n, seed, **more) for p in PERTURBATIONS])


def of(adata: ad.AnnData, condition: str) -> np.ndarray:
    return adata.X[(adata.obs["condition"] == condition).to_numpy()].astype(float)


def scores_of(predicted, real, source, control, **more) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        table = evaluate_effects(predicted, real, source=source, control=control, schema=SCHEMA, **more)
    return table.set_index(["condition", "metric"])


@pytest.fixture(scope="module")
def cells():
    return {
        "real": screen(80, 1),
        "source": draw("control", 60, 2),
        "control": draw("control", 70, 3),
        "reference": ad.concat([draw("control", 60, 2), draw("B", 60, 5), draw("C", 60, 5)]),
        "good": screen(60, 6),  # fresh cells of the true populations
    }


@pytest.fixture(scope="module")
def good(cells):
    sets = {name: cells[name] for name in ("real", "source", "control", "reference")}
    return scores_of(cells["good"], **sets)


def test_one_row_per_condition_and_metric(good):
    assert good.index.is_unique
    assert set(good.index.get_level_values("condition")) == {"A, K", "B, K", "A+C, K"}
    assert list(good.loc["A, K"].index) == list(METRICS)
    assert good.columns.tolist() == [
        *("value", "ceiling", "floor", "better", "loss", "n_predicted", "n_real", "n_control", "note")
    ]
    assert good[["n_predicted", "n_real", "n_control"]].drop_duplicates().to_numpy().tolist() == [[60, 80, 70]]


def test_values_are_those_of_scipy_and_numpy(cells, good):
    source, control = cells["source"].X.astype(float), cells["control"].X.astype(float)
    truth, guess = {}, {}
    for p in PERTURBATIONS:
        predicted, real = of(cells["good"], p), of(cells["real"], p)
        d_pred, d_true = predicted.mean(0) - source.mean(0), real.mean(0) - control.mean(0)
        truth[p], guess[p] = d_true, d_pred
        line = stats.linregress(d_true, d_pred)
        t_true, t_pred = (
            abs(stats.ttest_ind(a, b, equal_var=False).statistic) for a, b in ((real, control), (predicted, source))
        )
        top = np.argsort(-t_true)[:100]
        centroid = (of(cells["reference"], "B").mean(0) + of(cells["reference"], "C").mean(0)) / 2
        pairs = np.triu_indices(50, 1)
        responding = [np.corrcoef(x[:, np.argsort(-t_true)[:50]].T)[pairs] for x in (predicted, real)]
        expected = {
            "pearson_delta": line.rvalue,
            "slope": line.slope,
            "mse_delta": np.mean((d_pred - d_true) ** 2),
            "r2_delta": 1 - np.sum((d_pred - d_true) ** 2) / np.sum((d_true - d_true.mean()) ** 2),
            "pearson_delta_systema": stats.pearsonr(predicted.mean(0) - centroid, real.mean(0) - centroid)[0],
            "r2_de100": stats.pearsonr(predicted.mean(0)[top], real.mean(0)[top])[0] ** 2,
            "de_overlap": len(set(top) & set(np.argsort(-t_pred)[:100])) / 100,
            "direction_agreement": np.mean(np.sign(d_pred[top]) == np.sign(d_true[top])),
            "r2_var": stats.pearsonr(predicted.var(0, ddof=1), real.var(0, ddof=1))[0] ** 2,
            "corr_responding": stats.pearsonr(*responding)[0],
        }
        found = good.loc[f"{p}, K", "value"]
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-5), (p, name)
    for p in PERTURBATIONS:  # brute force, without the target genes
        kept = [i for i, gene in enumerate(GENES) if gene not in p.split("+")]
        distance = {q: sum(abs(guess[p][i] - truth[q][i]) for i in kept) for q in PERTURBATIONS}
        nearer = sum(distance[q] < distance[p] for q in PERTURBATIONS)
        assert good.loc[(f"{p}, K", "pds"), "value"] == pytest.approx(1 - nearer / 3)


def test_cells_of_the_true_population_reach_the_ceiling_and_the_floor_is_far_below(good):
    for condition in ("A, K", "B, K", "A+C, K"):
        table = good.loc[condition]
        for name in ("pearson_delta", "pearson_delta_systema", "slope", "r2_de100", "mse_delta", "energy", "mmd"):
            assert table["note"][name].startswith(("as close as", "60 predicted")), (condition, name)
        assert table["value"]["pearson_delta"] > table["ceiling"]["pearson_delta"] - 0.05
        assert table["ceiling"]["pearson_delta"] > 0.7 > 0.3 > abs(table["floor"]["pearson_delta"])
        assert abs(table["value"]["energy"]) < 0.1 * table["floor"]["energy"]
        assert table["floor"]["slope"] == pytest.approx(0, abs=0.2)


def test_a_perfect_prediction_is_perfect(cells):
    predicted, source = cells["real"].copy(), cells["control"].copy()
    for copied in (predicted, source):
        copied.obs_names = "copy of " + copied.obs_names
    sets = predicted, cells["real"], source, cells["control"]
    table = scores_of(*sets, reference=cells["reference"])["value"].unstack()
    exactly_one = [name for name in METRICS if BETTER[name] in ("up", "1")]
    np.testing.assert_allclose(table[exactly_one], 1, atol=1e-6)
    np.testing.assert_allclose(table["mse_delta"], 0, atol=1e-12)
    assert (table["energy"] <= 0).all()


def test_no_change_has_no_effect_to_score_and_ranks_last(cells, good):
    unchanged = ad.concat([cells["source"]] * 3, index_unique="-")
    unchanged.obs["condition"] = np.repeat(PERTURBATIONS, 60)
    wrong = cells["good"].copy()  # the prediction of another perturbation
    wrong.obs["condition"] = wrong.obs["condition"].map({"A": "B", "B": "A+C", "A+C": "A"})
    sets = {name: cells[name] for name in ("real", "source", "control", "reference")}
    nothing, bad = scores_of(unchanged, **sets), scores_of(wrong, **sets)
    for name in ("pearson_delta", "de_overlap"):
        here = nothing.xs(name, level="metric")
        assert here["value"].isna().all()
        assert np.isinf(here["loss"]).all()
    assert nothing.xs("pearson_delta", level="metric")["note"].str.startswith("undefined for the predicted cells").all()
    assert (nothing.xs("slope", level="metric")["value"] == 0).all()
    losses = [table.xs("pearson_delta", level="metric")["loss"].mean() for table in (good, bad, nothing)]
    assert losses == sorted(losses)
    assert bad.xs("pds", level="metric")["value"].max() < 0.7 <= good.xs("pds", level="metric")["value"].min()


def test_what_a_method_leaves_out_is_a_row_that_ranks_last(cells):
    some = cells["good"][(cells["good"].obs["condition"] != "B").to_numpy()].copy()
    table = scores_of(some, cells["real"], cells["source"], cells["control"])
    assert (table.loc["B, K", "note"] == "not predicted").all()
    assert np.isinf(table.loc["B, K", "loss"]).all()
    assert np.isfinite(table.loc["A, K", "loss"]).all()


def test_shared_control_cells_are_refused_and_inflate(cells):
    """Nothing changes in truth; predictions that keep the control's noise look good once control cells are shared."""
    control, more = draw("control", 60, 3), draw("control", 60, 4)
    null, fresh = draw("A", 60, 7, strength=0.0), draw("A", 60, 8, strength=0.0)
    with pytest.raises(InputError, match=r"share 60 cells \(first: 'control-K-3-0'\).*shared_control=True"):
        scores_of(fresh, null, control, control)
    shared = scores_of(fresh, null, control, control, shared_control=True).loc["A, K"]
    disjoint = scores_of(fresh, null, more, control).loc["A, K"]
    assert shared["value"]["pearson_delta"] > 0.35 > abs(disjoint["value"]["pearson_delta"])
    for name in ("pearson_delta", "r2_delta", "mse_delta", "slope", "r2_de100", "energy", "mmd"):
        assert disjoint["note"][name].startswith("cannot tell anything on this data: half of the real cells"), name


def test_order_of_genes_and_of_cells_does_not_matter(cells, good):
    rng = np.random.default_rng(0)
    moved = {name: a[:, rng.permutation(a.n_vars)].copy() for name, a in cells.items()}
    sets = {name: moved[name] for name in ("source", "control", "reference")}
    real = moved["real"][rng.permutation(moved["real"].n_obs)].copy()
    table = scores_of(moved["good"], real, **sets)
    close = np.abs(table["value"][good.index] - good["value"])
    by_place = close.index.get_level_values("metric") == "knn_auc"  # its folds are drawn by the places of cells
    assert (close[~by_place] < 1e-4 + 1e-3 * np.abs(good["value"][~by_place])).all()
    assert (close[by_place] < 0.15).all()


def test_draws_of_one_cell_are_told_apart(cells, good):
    """Each cell three times: distances are those of one draw; not told so, copies pass for cells that lie together."""
    thrice = ad.concat([cells["good"]] * 3, keys=["a", "b", "c"], label=DRAW, index_unique="-")
    sets = [cells[name] for name in ("real", "source", "control")]
    table = scores_of(thrice, *sets, reference=cells["reference"])
    means = ["pearson_delta", "r2_var", "corr_r2_hvg", "corr_responding", "energy", "mmd"]
    rows = good.index[good.index.get_level_values(1).isin(means)]
    np.testing.assert_allclose(table["value"][rows], good["value"][rows], rtol=1e-4)
    del thrice.obs[DRAW]
    copied = scores_of(thrice, *sets, reference=cells["reference"])["value"]
    distances = rows[rows.get_level_values(1).isin(["energy", "mmd"])]
    assert (copied[distances] > table["value"][distances] + 0.01).all()


def test_every_gene_twice_changes_no_score_of_means(cells):
    def twice(adata):
        other = adata.copy()
        other.var_names = [f"{gene} again" for gene in adata.var_names]
        return ad.concat([adata, other], axis=1, merge="first")

    sets = [cells[name] for name in ("good", "real", "source", "control")]
    once, doubled = scores_of(*sets), scores_of(*map(twice, sets))
    for name in ("pearson_delta", "r2_delta", "mse_delta", "slope", "r2_var"):
        expected = once.xs(name, level="metric")["value"]
        np.testing.assert_allclose(doubled.xs(name, level="metric")["value"], expected, rtol=1e-5)


def test_scored_genes_can_be_named(cells):
    sets = [cells[name] for name in ("good", "real", "source", "control")]
    some = scores_of(*sets, genes=GENES[10:50])
    cut = scores_of(*(a[:, GENES[10:50]].copy() for a in sets))
    pd.testing.assert_frame_equal(some, cut)
    with pytest.raises(InputError, match="gene 'G118' is not in all sets of cells; nearest: 'G1"):
        scores_of(*sets, genes=["A", "G118"])


def test_components_are_of_cells_that_are_not_compared(cells, good):
    """Source cells among the training cells change nothing: predicted cells come from them."""
    sets = {name: cells[name] for name in ("real", "source", "control")}
    fresh_controls = draw("control", 60, 9)
    with_source = ad.concat([cells["reference"], fresh_controls])
    without = with_source[~with_source.obs_names.isin(cells["source"].obs_names)].copy()
    one, other = (scores_of(cells["good"], reference=a, genes=GENES, **sets) for a in (with_source, without))
    pd.testing.assert_frame_equal(one, other)
    assert not np.allclose(one["value"].unstack()["energy"], good["value"].unstack()["energy"])


def test_without_reference_a_third_of_the_real_cells_is_left_out(cells):
    table = scores_of(cells["good"], cells["real"], cells["source"], cells["control"])
    assert set(table["n_real"]) <= {53, 54}
    assert "pearson_delta_systema" not in table.index.get_level_values("metric")
    assert table.loc[("A, K", "note")].notna().all()


def test_a_single_row_is_a_mean_without_cells(cells, good):
    means = ad.concat([draw(p, 1, 10) for p in PERTURBATIONS])
    means.X = np.array([of(cells["good"], p).mean(0) for p in PERTURBATIONS])
    table = scores_of(means, cells["real"], cells["source"], cells["control"], reference=cells["reference"])
    of_means = ["pearson_delta", "pearson_delta_systema", "slope", "mse_delta", "r2_delta", "r2_de100", "pds"]
    value, expected = table["value"].unstack(), good["value"].unstack()
    np.testing.assert_allclose(value[of_means], expected[of_means], rtol=1e-4, atol=1e-5)
    assert value[["energy", "mmd", "r2_var", "corr_responding", "de_overlap"]].isna().all().all()


def test_every_context_has_its_own_controls(cells):
    """Line L differs from K in base expression; its controls must not be mixed with K's."""

    def both(name, k, seed):
        of_l = draw(name, 60, seed, line="L")
        of_l.X[:, ::2] *= 0.6
        return ad.concat([k, of_l])

    in_k = draw("B", 60, 6), draw("B", 80, 1), cells["source"], cells["control"]
    alone = scores_of(*in_k, reference=cells["reference"])
    sets = [both(*each) for each in zip(["B", "B", "control", "control"], in_k, range(11, 15), strict=True)]
    table = scores_of(*sets, reference=cells["reference"])
    names = ["pearson_delta", "slope", "de_overlap", "r2_var"]
    np.testing.assert_allclose(table.loc["B, K", "value"][names], alone.loc["B, K", "value"][names], rtol=1e-5)
    assert table.loc[("B, L", "value")]["pearson_delta"] > 0.7
    assert "pds" not in table.index.get_level_values("metric")
    with pytest.raises(InputError, match="control has no control cells of the context of 'B, L'"):
        scores_of(*sets[:3], cells["control"])


def test_columns_may_be_named_by_their_roles(cells, good):
    predicted = cells["good"].copy()
    predicted.obs = predicted.obs.rename(columns={"condition": "perturbation"}).drop(columns="plate")
    sets = {name: cells[name] for name in ("real", "source", "control", "reference")}
    pd.testing.assert_frame_equal(scores_of(predicted, **sets), good)


def test_few_cells_have_no_ceiling_and_say_so(cells):
    real = draw("A", 11, 1)
    table = scores_of(draw("A", 60, 6), real, cells["source"], cells["control"], reference=cells["reference"])
    assert table["ceiling"].isna().all()
    assert (table["note"] == "11 real cells: without 12 there is no telling what the score means").all()
    assert table.loc[("A, K", "pearson_delta"), "value"] > 0.5


def test_scores_without_limits_are_the_same(cells, good):
    sets = {name: cells[name] for name in ("real", "source", "control", "reference")}
    alone = scores_of(cells["good"], limits=False, **sets)
    pd.testing.assert_frame_equal(alone[["value", "better", "loss"]], good[["value", "better", "loss"]])
    assert alone[["ceiling", "floor"]].isna().all().all()


def test_genes_that_no_cell_has_are_not_among_the_changed_ones(cells):
    """They tie at no change: counted, they would be found by every prediction."""
    sets = [cells[name].copy() for name in ("good", "real", "source", "control")]
    for adata in sets:
        adata.X[:, 60:] = 0
    table = scores_of(*sets)
    assert table.loc[("A, K", "de_overlap"), "value"] == 1  # 60 genes are left, all of them among the 60
    nothing = ad.concat([sets[2]] * 3, index_unique="-")
    nothing.obs["condition"] = np.repeat(PERTURBATIONS, 60)
    assert scores_of(nothing, *sets[1:]).xs("de_overlap", level="metric")["value"].isna().all()


def test_wrong_input_is_named(cells):
    sets = {name: cells[name] for name in ("source", "control")}
    with pytest.raises(InputError, match="no treated condition of the real cells is predicted, such as 'A, K'"):
        scores_of(draw("C", 30, 1), cells["real"], **sets)
    other = cells["good"].copy()
    other.var_names = [f"ENSG{i}" for i in range(other.n_vars)]
    with pytest.raises(InputError, match=r"120 of 120 predicted genes .*'ENSG0'.*named alike"):
        scores_of(other, cells["real"], **sets)
    leaky = ad.concat([cells["reference"], cells["real"]])
    with pytest.warns(DataWarning, match="240 real cells are among the reference cells"):
        evaluate_effects(cells["good"], cells["real"], **sets, schema=SCHEMA, reference=leaky)
    with pytest.raises(InputError, match="needs control cells"):
        evaluate_effects(cells["good"], cells["real"], **sets, schema=Schema(perturbation="condition"))
