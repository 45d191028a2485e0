"""Closed-form predictions against the same sums written out by hand, and against planted effects."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from scidiff.data.schema import Schema
from scidiff.errors import InputError
from scidiff.evaluation import shifts

GENES = ["A", "B", "C", *(f"G{i}" for i in range(27))]
SCHEMA = Schema(perturbation="condition", control="control", context="line")


def cells_of(conditions: dict[tuple[str, str], np.ndarray], n: int = 12, seed: int = 0) -> ad.AnnData:
    """Return ``n`` cells of log expression around each condition's mean, keyed by (line, perturbation)."""
    rng = np.random.default_rng(seed)
    x = [np.maximum(mean + 0.1 * rng.normal(size=(n, len(GENES))), 0) for mean in conditions.values()]
    obs = pd.DataFrame([key for key in conditions for _ in range(n)], columns=["line", "condition"])
    obs.index = [f"cell{seed}-{i}" for i in range(len(obs))]
    return ad.AnnData(np.concatenate(x).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def truth():
    """Base expression of three lines and effects of single perturbations; high enough that nothing is cut at 0."""
    rng = np.random.default_rng(3)
    lines = {line: 6 + 0.3 * rng.normal(size=len(GENES)) for line in ("K", "L", "M")}
    return lines, {name: rng.normal(size=len(GENES)) for name in ("A", "B", "C")}


@pytest.fixture(scope="module")
def screen(truth):
    """Line K: A, B, C and A+C; line L: A, B; line M: control only."""
    lines, effects = truth
    means = {(line, "control"): base for line, base in lines.items()}
    means |= {("K", p): lines["K"] + effects[p] for p in "ABC"} | {("L", p): lines["L"] + effects[p] for p in "AB"}
    return cells_of(means | {("K", "A+C"): lines["K"] + effects["A"] + effects["C"]})


def mean_of(adata, line, condition):
    return adata.X[((adata.obs["line"] == line) & (adata.obs["condition"] == condition)).to_numpy()].mean(axis=0)


def effect_of(adata, line, condition):
    return mean_of(adata, line, condition) - mean_of(adata, line, "control")


def controls(adata, line):
    return adata[((adata.obs["line"] == line) & (adata.obs["condition"] == "control")).to_numpy()].copy()


def predicted_effect(method, adata, line, perturbation):
    source = controls(adata, line)
    predicted = method.fit(adata, SCHEMA).predict(source, {"perturbation": perturbation})
    return predicted.X.mean(axis=0) - source.X.mean(axis=0)


def test_effects_are_differences_to_the_control_of_the_same_context(screen):
    table = shifts.Responses.of(screen, SCHEMA)
    for row, effect, n in zip(table.conditions.itertuples(), table.effects, table.n_cells, strict=True):
        np.testing.assert_allclose(effect, effect_of(screen, row.line, row.perturbation), atol=1e-5)
        assert n == 12
    assert table.treated.sum() == 6


def by_hand(screen) -> dict:
    def of(line, p):
        return effect_of(screen, line, p)

    everything = [of("K", p) for p in ("A", "B", "C", "A+C")] + [of("L", p) for p in "AB"]
    in_k, in_l = np.mean(everything[:4], axis=0), np.mean(everything[4:], axis=0)
    return {
        ("NoChange", "M", "A"): 0 * of("K", "A"),
        ("MeanShift", "M", "A"): (of("K", "A") + of("L", "A")) / 2,
        ("MeanShift", "M", "A+C"): of("K", "A+C"),
        ("PerturbedMean", "K", "A+B"): in_k,
        ("PerturbedMean", "M", "A"): np.mean(everything, axis=0),  # nothing treated there: all lines
        ("MatchingMean", "K", "A+B"): (of("K", "A") + of("K", "B")) / 2,
        ("Additive", "K", "A+B"): of("K", "A") + of("K", "B"),  # of its own line, not of L
        ("Additive", "M", "A+B"): (of("K", "A") + of("L", "A") + of("K", "B") + of("L", "B")) / 2,
        ("Additive", "L", "A+C"): of("L", "A") + of("K", "C"),  # C was seen in K only
        ("Additive", "L", "A+unseen"): of("L", "A") + in_l,
        ("Additive", "K", "C"): of("K", "C"),
    }


def test_every_method_is_its_sum_by_hand(screen):
    for (name, line, perturbation), expected in by_hand(screen).items():
        found = predicted_effect(getattr(shifts, name), screen, line, perturbation)
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"{name} {line} {perturbation}")


def test_order_and_copies_of_cells_do_not_matter(screen):
    shuffled = screen[np.random.default_rng(1).permutation(screen.n_obs)].copy()
    doubled = ad.concat([screen, screen], index_unique="-")
    for other in (shuffled, doubled):
        for method in (shifts.MeanShift, shifts.SimilarityShift, shifts.Additive):
            expected = predicted_effect(method, screen, "M", "A")
            np.testing.assert_allclose(predicted_effect(method, other, "M", "A"), expected, atol=2e-5)


def test_cells_are_source_plus_effect_cut_at_zero_and_labelled(screen):
    source = controls(screen, "M")
    source.X[:, 0] = np.linspace(0, 1, source.n_obs)  # so low that a fall of gene A is cut
    before = source.copy()
    method = shifts.MeanShift.fit(screen, SCHEMA)
    predicted = method.predict(source, {"condition": "A"})
    asked = SCHEMA.conditions({"perturbation": "A", "line": "M"}).iloc[0]
    expected = np.maximum(source.X + method.effect(asked, source.X.mean(axis=0)), 0)
    np.testing.assert_allclose(predicted.X, expected, atol=1e-5)
    assert predicted.X.min() == 0 or method.effect(asked, source.X.mean(axis=0))[0] > 0
    assert set(predicted.obs["condition"]) == {"A"}
    assert set(predicted.obs["line"]) == {"M"}
    assert predicted.obs_names.equals(source.obs_names)
    assert predicted.uns["scidiff"]["scales"] == {"X": "log1p(CP10k)"}
    np.testing.assert_array_equal(source.X, before.X)
    assert source.obs.equals(before.obs)


def test_each_context_of_the_source_gets_its_own_effect(screen):
    both = ad.concat([controls(screen, "K"), controls(screen, "L")])
    mixed = both[np.random.default_rng(0).permutation(both.n_obs)].copy()
    predicted = shifts.Additive.fit(screen, SCHEMA).predict(mixed, {"perturbation": "A"})
    for line in "KL":
        alone = shifts.Additive.fit(screen, SCHEMA).predict(controls(screen, line), {"perturbation": "A"})
        np.testing.assert_allclose(predicted[alone.obs_names].X, alone.X, atol=1e-6)


def test_asking_for_control_changes_nothing_and_no_change_keeps_counts(screen):
    source = controls(screen, "M")
    same = shifts.Additive.fit(screen, SCHEMA).predict(source, {"perturbation": "control"})
    np.testing.assert_array_equal(same.X, source.X)
    counts = screen.copy()
    counts.X = np.rint(counts.X * 3)
    kept = shifts.NoChange.fit(counts, SCHEMA).predict(controls(counts, "M"), {"perturbation": "A"})
    np.testing.assert_array_equal(kept.layers["counts"].toarray(), controls(counts, "M").X)
    moved = shifts.MeanShift.fit(counts, SCHEMA).predict(controls(counts, "M"), {"perturbation": "A"})
    assert "counts" not in moved.layers


# --- similarity -----------------------------------------------------------------------------------------------------


def along_a_line(effect_at, positions, seed=0):
    """Lines whose control expression moves along one direction, and the effect of A at each position."""
    direction = np.random.default_rng(5).normal(size=len(GENES)) / 2
    means = {}
    for i, at in enumerate(positions):
        base = 5 + at * direction
        means |= {(f"line{i}", "control"): base, (f"line{i}", "A"): base + effect_at(at)}
    return cells_of(means, seed=seed)


def test_similar_contexts_count_more_where_effects_follow_similarity():
    one, other = np.random.default_rng(6).normal(size=(2, len(GENES)))
    cells = along_a_line(lambda at: (1 - at) * one + at * other, [0, 0.15, 0.3, 0.7, 0.85, 1])
    held = ((cells.obs["line"] == "line1") & (cells.obs["condition"] == "A")).to_numpy()
    train, true = cells[~held].copy(), effect_of(cells, "line1", "A")
    similar = predicted_effect(shifts.SimilarityShift, train, "line1", "A")
    plain = predicted_effect(shifts.MeanShift, train, "line1", "A")
    assert np.sum((similar - true) ** 2) < 0.2 * np.sum((plain - true) ** 2)


def test_weights_are_the_softmax_of_the_distance():
    cells = along_a_line(lambda at: np.full(len(GENES), at), [0, 0.2, 0.5, 1])
    method = shifts.SimilarityShift.fit(cells, SCHEMA)
    assert np.isfinite(method.width)
    source = controls(cells, "line2")
    z = source.X.mean(axis=0)
    far = np.array([np.sum((mean_of(cells, f"line{i}", "control") - z) ** 2) for i in range(4)])
    weights = np.exp(-far / method.width) / np.exp(-far / method.width).sum()
    expected = weights @ [effect_of(cells, f"line{i}", "A") for i in range(4)]
    np.testing.assert_allclose(predicted_effect(shifts.SimilarityShift, cells, "line2", "A"), expected, atol=1e-4)


def test_width_is_the_best_of_leaving_contexts_out():
    cells = along_a_line(lambda at: np.random.default_rng(int(100 * at)).normal(size=len(GENES)), [0, 0.2, 0.5, 0.6, 1])
    z = np.array([mean_of(cells, f"line{i}", "control") for i in range(5)], dtype=float)
    d = np.array([effect_of(cells, f"line{i}", "A") for i in range(5)], dtype=float)
    gap = ((z[:, None] - z) ** 2).sum(axis=2)
    median = np.median(gap[np.triu_indices(5, 1)])
    relative = []
    for k in range(5):
        rest = [i for i in range(5) if i != k]
        errors = []
        for b in shifts.BANDWIDTHS:
            weights = np.exp(-gap[k, rest] / (b * median))
            errors.append(np.sum((weights @ d[rest] / weights.sum() - d[k]) ** 2))
        relative.append(np.array(errors) / errors[0])
    best = shifts.BANDWIDTHS[int(np.mean(relative, axis=0).argmin())]
    assert shifts.SimilarityShift.fit(cells, SCHEMA).width == pytest.approx(best * median, rel=1e-4)


def test_two_contexts_leave_nothing_to_weigh(screen):
    assert shifts.SimilarityShift.fit(screen, SCHEMA).width == np.inf
    similar = predicted_effect(shifts.SimilarityShift, screen, "M", "A")
    np.testing.assert_allclose(similar, predicted_effect(shifts.MeanShift, screen, "M", "A"), atol=1e-6)


def test_the_nearest_context_is_the_one_with_the_most_similar_controls():
    cells = along_a_line(lambda at: np.full(len(GENES), 1 + at), [0, 0.2, 0.5, 1])
    held = ((cells.obs["line"] == "line1") & (cells.obs["condition"] == "A")).to_numpy()
    found = predicted_effect(shifts.NearestContext, cells[~held].copy(), "line1", "A")
    np.testing.assert_allclose(found, effect_of(cells, "line0", "A"), atol=1e-4)


def test_effects_linear_in_control_expression_are_foretold_beyond_those_seen():
    one, slope = np.random.default_rng(6).normal(size=(2, len(GENES)))
    cells = along_a_line(lambda at: one + at * slope, [0, 0.2, 0.4, 0.6, 1])
    held = ((cells.obs["line"] == "line4") & (cells.obs["condition"] == "A")).to_numpy()
    train, true = cells[~held].copy(), effect_of(cells, "line4", "A")
    ridge = predicted_effect(shifts.ContextRidge, train, "line4", "A")
    nearest = predicted_effect(shifts.NearestContext, train, "line4", "A")
    assert np.sum((ridge - true) ** 2) < 0.2 * np.sum((nearest - true) ** 2)
    assert shifts.ContextRidge.fit(train, SCHEMA).penalty == min(shifts.PENALTIES)


def test_context_ridge_is_that_of_scikit_learn_and_the_mean_at_infinity():
    rng = np.random.default_rng(2)
    z, d, at = rng.normal(size=(5, 7)), rng.normal(size=(5, 3)), rng.normal(size=7)
    weight = 0.3 * np.mean(np.sum((z - z.mean(axis=0)) ** 2, axis=1))
    np.testing.assert_allclose(shifts._ridge(z, d, at, 0.3), Ridge(weight).fit(z, d).predict(at[None])[0])
    np.testing.assert_allclose(shifts._ridge(z, d, at, np.inf), d.mean(axis=0))


def test_where_effects_follow_nothing_no_context_weighs_more():
    cells = along_a_line(lambda at: np.random.default_rng(int(100 * at)).normal(size=len(GENES)), [0, 0.3, 0.5, 0.7, 1])
    assert shifts.ContextRidge.fit(cells, SCHEMA).penalty == np.inf


# --- linear ---------------------------------------------------------------------------------------------------------


def test_linear_ridge_is_the_published_formula(screen):
    """Literally, with inverses and scikit-learn's components, in line K: A and B known, C asked for."""
    in_k = screen[((screen.obs["line"] == "K") & ~screen.obs["condition"].isin(["C", "A+C"])).to_numpy()].copy()
    y = np.array([effect_of(in_k, "K", p) for p in "AB"]).T
    profiles = np.array([mean_of(in_k, "K", p) for p in "AB"]).T
    g = PCA(2).fit_transform(profiles)
    q = np.array([g[GENES.index(p)] for p in "AB"])  # (n_perturbations, 2)
    eye = 0.1 * np.eye(2)
    k = np.linalg.inv(g.T @ g + eye) @ g.T @ (y - y.mean(axis=1, keepdims=True)) @ q @ np.linalg.inv(q.T @ q + eye)
    expected = g @ k @ g[GENES.index("C")] + y.mean(axis=1)
    np.testing.assert_allclose(predicted_effect(shifts.LinearRidge, in_k, "K", "C"), expected, atol=1e-4)


# --- dose, time, errors ---------------------------------------------------------------------------------------------


def test_dose_and_time_count_where_training_cells_have_them():
    schema = Schema(perturbation="drug", control="none", dose="dose", time="day")
    obs = pd.DataFrame(
        {"drug": ["none", "none", "X", "X", "X"], "dose": [0.0, 0, 1, 10, 10], "day": [1.0, 2, 1, 1, 2]},
        index=list("abcde"),
    )
    level = np.array([1.25, 2.25, 1.75, 4.5, 7.75])
    cells = ad.AnnData(np.tile(level[:, None], (1, 3)).astype(np.float32), obs=obs)
    method = shifts.MeanShift.fit(cells, schema)

    def shift(source, **asked):
        predicted = method.predict(cells[[source]].copy(), {"drug": "X", **asked})
        assert predicted.obs["dose"].tolist() == [asked["dose"]]
        return float(predicted.X[0, 0] - cells[source].X[0, 0])

    assert shift("a", dose=1, time=1) == pytest.approx(0.5)
    assert shift("a", dose=10, time=1) == pytest.approx(3.25)
    assert shift("b", dose=10, time=2) == pytest.approx(5.5)  # against the control of its own day
    assert shift("a", dose=5, time=1) == pytest.approx((0.5 + 3.25) / 2)  # never measured: the mean of those that were


def test_what_cannot_be_answered_is_refused_in_one_line(screen):
    mean, source = shifts.MeanShift.fit(screen, SCHEMA), controls(screen, "M")
    with pytest.raises(InputError, match=r"no training cells of perturbation 'D'; known: .*'A'"):
        mean.predict(source, {"perturbation": "D"})
    with pytest.raises(InputError, match="line='K' is asked for, but source cells are 'M'"):
        mean.predict(source, {"perturbation": "A", "line": "K"})
    with pytest.raises(InputError, match="names no perturbation"):
        mean.predict(source, {"line": "M"})
    with pytest.raises(InputError, match="names no gene of the data"):
        shifts.LinearRidge.fit(screen, SCHEMA).predict(source, {"perturbation": "drug"})
    with pytest.raises(InputError, match="nothing to average"):
        shifts.PerturbedMean.fit(source, SCHEMA).predict(source, {"perturbation": "A"})
    with pytest.raises(InputError, match="needs control cells"):
        shifts.MeanShift.fit(screen, Schema(perturbation="condition"))


def test_every_named_method_predicts_cells(screen):
    for name, method in shifts.SHIFTS.items():
        predicted = method.fit(screen, SCHEMA).predict(controls(screen, "K"), {"perturbation": "B"})
        assert predicted.shape == (12, len(GENES)), name
        assert np.isfinite(predicted.X).all()
        assert predicted.X.min() >= 0
