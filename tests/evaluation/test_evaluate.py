"""The evaluator: real cells must pass it, wrong cells must not, and its own traps must be closed."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scidiff.data.scaling import log1p_cp10k
from scidiff.errors import DataWarning, InputError
from scidiff.evaluation import evaluate, metrics
from scidiff.evaluation.evaluate import BETTER, Population, at_most, loss, matched, split_evenly


def by_metric(scores):
    assert scores.columns.tolist() == ["metric", "value", "ceiling", "better", "note"]
    return scores.set_index("metric")


@pytest.fixture
def no_auc(monkeypatch):
    """For tests about other scores: the classifier is nearly all of the time."""
    monkeypatch.setattr(metrics, "auc", lambda *_, **__: 0.5)


@pytest.fixture(scope="module")
def real_v_real(cells, schema):
    """Fresh cells of the true population in the place of generated ones."""
    return by_metric(evaluate(cells(400, 1), cells(600, 2), schema=schema, reference=cells(600, 3)))


def test_real_cells_pass(real_v_real):
    value, ceiling = real_v_real["value"], real_v_real["ceiling"]
    assert 0.4 < ceiling["auc"] < 0.6
    assert 0.4 < value["auc"] < 0.6
    assert abs(value["energy"]) < 0.05
    assert abs(ceiling["energy"]) < 0.05
    assert abs(value["zero_gap"]) < 0.01
    assert value["r2_mean"] > 0.99
    assert value["r2_var"] > 0.95
    assert not real_v_real["note"].str.contains("cannot tell").any()


def test_wrong_cells_fail(cells, schema, real_v_real):
    """All genes shuffled over cells: right moments per gene, no cell is real."""
    generated = cells(400, 1)
    shuffled = np.random.default_rng(0).permuted(generated.X.toarray(), axis=0)
    generated.X = sp.csr_matrix(shuffled)
    scores = by_metric(evaluate(generated, cells(600, 2), schema=schema, reference=cells(600, 3)))
    assert scores["value"]["auc"] > 0.8
    assert scores["value"]["energy"] > 0.08 > 3 * abs(real_v_real["value"]["energy"])
    assert scores["value"]["corr_r2_hvg"] < real_v_real["value"]["corr_r2_hvg"] - 0.3
    # the ceiling is about the real cells only
    assert scores["ceiling"]["energy"] == pytest.approx(real_v_real["ceiling"]["energy"])


def test_without_reference_or_schema_real_cells_pass_too(cells):
    scores = by_metric(evaluate(cells(400, 1), cells(900, 2)))
    assert 0.4 < scores["ceiling"]["auc"] < 0.6
    assert abs(scores["value"]["energy"]) < 0.1


def test_same_seed_same_table(cells, schema, no_auc):
    first, again, other = (
        evaluate(cells(400, 1), cells(600, 2), schema=schema, reference=cells(600, 3), seed=seed) for seed in (0, 0, 1)
    )
    assert again.equals(first)
    assert not other.equals(first)


def test_order_of_genes_and_scale_of_counts_storage_do_not_matter(cells, schema, real_v_real, no_auc):
    """Genes aligned by name; counts in a layer beat X; log1p(CP10k) without counts gives the same."""
    generated = cells(400, 1)
    generated.layers["counts"] = generated.X.copy()
    generated.X = log1p_cp10k(generated.X)
    real = cells(600, 2)
    real = real[:, np.random.default_rng(0).permutation(real.n_vars)].copy()
    layered = by_metric(evaluate(generated, real, schema=schema, reference=cells(600, 3)))
    del generated.layers["counts"]
    logged = by_metric(evaluate(generated, real, schema=schema, reference=cells(600, 3)))
    for scores in (layered, logged):
        moments = ["r2_mean", "r2_var", "zero_gap", "corr_r2_hvg"]
        np.testing.assert_allclose(scores["value"][moments], real_v_real["value"][moments], rtol=1e-4)


def test_prediction_with_the_true_effect_scores_near_the_ceiling(cells):
    source, control = cells(500, 1, "control"), cells(500, 2, "control")
    real, predicted = cells(500, 3, "drug"), cells(500, 4, "drug")
    scores = by_metric(evaluate(predicted, real, source=source, control=control))
    assert scores["value"]["pearson_delta"] > 0.95
    assert scores["ceiling"]["pearson_delta"] > 0.9
    assert scores["value"]["slope"] == pytest.approx(1, abs=0.1)
    assert scores["value"]["de_overlap"] > 0.7
    assert scores["value"]["direction_agreement"] > 0.8
    assert 0.35 < scores["value"]["auc"] < 0.65


def test_predicting_no_change_earns_nothing_but_the_saturated_score(cells):
    source, control, real = cells(500, 1, "control"), cells(500, 2, "control"), cells(500, 3, "drug")
    scores = by_metric(evaluate(cells(500, 4, "control"), real, source=source, control=control))["value"]
    assert abs(scores["pearson_delta"]) < 0.4
    assert scores["slope"] < 0.2
    assert scores["auc"] > 0.9
    assert scores["r2_mean"] > 0.5


def test_shared_control_cells_reward_noise_and_are_refused(cells, no_auc):
    """Nothing changes in truth; a method that keeps the control's noise looks good once control cells are shared."""
    source = cells(400, 1, "control")
    null_real, null_predicted = cells(400, 2, "control"), cells(400, 3, "control")
    with pytest.raises(InputError, match=r"share 400 cells.*'cell1-0'.*shared_control=True"):
        evaluate(null_predicted, null_real, source=source, control=source)
    shared = by_metric(evaluate(null_predicted, null_real, source=source, control=source, shared_control=True))
    disjoint = by_metric(evaluate(null_predicted, null_real, source=source, control=cells(400, 5, "control")))
    assert shared["value"]["pearson_delta"] > 0.35
    assert abs(disjoint["value"]["pearson_delta"]) < 0.3
    assert "cannot tell anything on this data" in disjoint["note"]["pearson_delta"]


def test_reference_of_another_batch_is_called_useless(cells, schema):
    """Ceiling cells that differ from the real ones make every distance meaningless, and the table says so."""
    reference = cells(600, 3)
    reference.X[:, :20] = reference.X[:, :20] * 4
    scores = by_metric(evaluate(cells(400, 1), cells(600, 2), schema=schema, reference=reference))
    for metric in ("auc", "energy", "mmd"):
        assert "cannot tell anything on this data: real v. real" in scores["note"][metric]


def test_conditions_are_matched_when_the_schema_is_known(cells, schema, no_auc):
    """Right cells in wrong proportions: no fault where conditions are known, a fault where they are not."""
    real = cells(900, 2)
    rare = cells(2000, 1)
    rare = rare[(rare.obs["cell_type"] == "B") | (np.arange(2000) % 5 == 0)].copy()
    matched_scores = by_metric(evaluate(rare, real, schema=schema, reference=cells(900, 3)))
    plain = by_metric(evaluate(rare, real, reference=cells(900, 3)))
    assert abs(matched_scores["value"]["energy"]) < 0.1
    assert plain["value"]["energy"] > 0.3


def test_generated_cells_with_canonical_columns_are_matched(cells, schema, real_v_real, no_auc):
    generated = cells(400, 1)
    generated.obs = generated.obs.rename(columns={"condition": "perturbation"})
    scores = by_metric(evaluate(generated, cells(600, 2), schema=schema, reference=cells(600, 3)))
    assert scores["value"]["energy"] == pytest.approx(real_v_real["value"]["energy"])


def test_warnings_name_what_is_wrong(cells, schema, no_auc):
    real = cells(300, 2)
    with pytest.warns(DataWarning, match="50 generated cells: scores of means need at least 400"):
        evaluate(cells(50, 1), real)
    with pytest.warns(DataWarning, match=r"300 real cells are among the reference cells \(first: 'cell2-0'\)"):
        evaluate(cells(400, 1), real, reference=real)
    only_t = cells(900, 1)
    only_t = only_t[only_t.obs["cell_type"] == "T"].copy()
    with pytest.warns(DataWarning, match="no generated cells of condition 'control, B'"):
        evaluate(only_t, real, schema=schema)
    fewer_genes = real[:, :70].copy()
    with pytest.warns(DataWarning, match="10 generated genes are not in the real cells and not scored.*'G70'"):
        evaluate(cells(400, 1), fewer_genes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"generated": c(1, 1)}, "1 generated cells: at least 2"),
        (lambda c: {"real": c(5, 2)}, "5 real cells: at least 12"),
        (lambda c: {"source": c(30, 3)}, "control is missing"),
        (lambda c: {"control": c(30, 3)}, "source is missing"),
        (lambda c: {"real": renamed(c(400, 2))}, r"real lacks 80 of the 80 generated genes \(first: 'G0'\)"),
    ],
)
def test_bad_input_is_one_clear_line(cells, change, message):
    given = {"generated": cells(400, 1), "real": cells(400, 2)} | change(cells)
    generated, real = given.pop("generated"), given.pop("real")
    with pytest.raises(InputError, match=message) as caught:
        evaluate(generated, real, **given)
    assert "\n" not in str(caught.value)


def renamed(adata):
    adata.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]
    return adata


# --- sets of cells --------------------------------------------------------------------------------------------------


def population(labels):
    labels = np.asarray(labels, dtype=str)
    return Population(sp.csr_matrix(np.arange(len(labels))[:, None]), labels)


def rows(of):
    return of.x.toarray().ravel().tolist()


@pytest.mark.parametrize("n_parts", [2, 3])
def test_parts_share_no_cell_and_have_the_same_conditions(n_parts):
    whole = population(["a"] * 31 + ["b"] * 10 + ["c"] * 3)
    parts = split_evenly(whole, n_parts, np.random.default_rng(0))
    assert sorted(row for part in parts for row in rows(part)) == list(range(44))
    for label, total in (("a", 31), ("b", 10), ("c", 3)):
        numbers = [int((part.labels == label).sum()) for part in parts]
        assert sum(numbers) == total
        assert max(numbers) - min(numbers) <= 1


def test_matching_takes_each_cell_once_and_says_when_it_cannot():
    rng = np.random.default_rng(0)
    have = population(["a"] * 20 + ["b"] * 2)
    chosen = matched(have, np.array(["a"] * 5 + ["b"] * 4), rng)
    assert sorted(chosen.labels) == ["a"] * 5 + ["b"] * 2
    assert len(set(rows(chosen))) == 7
    assert matched(have, np.array(["a", "z"]), rng) is None


def test_thinning_a_population_keeps_proportions():
    few = at_most(population(["a"] * 900 + ["b"] * 100), 100, np.random.default_rng(0))
    assert (few.labels == "b").sum() == 10
    assert len(set(rows(few))) == 100


def test_every_metric_has_a_best_value():
    assert all(loss(metric, 0.9) < loss(metric, 0.1) for metric, better in BETTER.items() if better in ("up", "1"))
    assert loss("auc", 0.45) == pytest.approx(loss("auc", 0.55))
    assert loss("energy", -0.1) > loss("energy", 0.01)
