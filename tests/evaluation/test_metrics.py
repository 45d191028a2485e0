"""Scores against closed forms, independent implementations, and the axioms of distances."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist

from scidiff.evaluation import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def sparse_cells(rng, n=60, g=30, rate=0.7):
    return sp.csr_matrix(np.log1p(rng.poisson(rate * np.linspace(0.2, 3, g), (n, g))).astype(np.float32))


# --- moments ---------------------------------------------------------------------------------------------------------


def test_sparse_moments_equal_dense(rng):
    x = sparse_cells(rng)
    dense = x.toarray().astype(np.float64)
    np.testing.assert_allclose(metrics.gene_means(x), dense.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(metrics.gene_variances(x), dense.var(axis=0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(metrics.gene_variances(dense), dense.var(axis=0, ddof=1))
    assert metrics.zero_fraction(x) == pytest.approx((dense == 0).mean())


def test_explicit_zeros_are_zeros():
    x = sp.csr_matrix(np.array([[1.0, 2.0], [3.0, 4.0]]))
    x.data[0] = 0
    assert metrics.zero_fraction(x) == 0.25


def test_welch_t_is_scipys(rng):
    a, b = sparse_cells(rng), sparse_cells(rng, n=41, rate=1.1)
    expected = stats.ttest_ind(a.toarray().astype(float), b.toarray().astype(float), equal_var=False).statistic
    np.testing.assert_allclose(metrics.welch_t(a, b), expected, rtol=1e-5)


def test_welch_t_of_genes_never_seen_is_zero():
    assert metrics.welch_t(np.zeros((5, 2)), np.zeros((7, 2))).tolist() == [0, 0]


def test_gene_correlations_are_numpys_and_constant_genes_have_none(rng):
    x = sparse_cells(rng).toarray()
    expected = np.corrcoef(x.T)[np.triu_indices(x.shape[1], k=1)]
    np.testing.assert_allclose(metrics.gene_correlations(sp.csr_matrix(x)), expected, atol=1e-6)
    x[:, 0] = 1.7
    assert np.all(metrics.gene_correlations(x)[: x.shape[1] - 1] == 0)


def test_pearson_is_scipys_and_undefined_for_constants(rng):
    a, b = rng.normal(size=(2, 50))
    assert metrics.pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
    assert np.isnan(metrics.pearson(np.full(50, 0.1), b))
    assert np.isnan(metrics.pearson(np.where(np.arange(50) == 3, np.nan, a), b))


# --- agreement -------------------------------------------------------------------------------------------------------

AGREEMENT = [metrics.r2_mean, metrics.r2_var, metrics.corr_r2_hvg]


@pytest.mark.parametrize("score", AGREEMENT)
def test_a_population_agrees_with_itself_in_any_order(score, rng):
    x = sparse_cells(rng)
    shuffled = x[rng.permutation(x.shape[0])]
    assert score(x, x) == pytest.approx(1)
    assert score(shuffled, x) == pytest.approx(1)
    y = sparse_cells(rng, n=80, rate=0.4)
    assert 0 <= score(y, x) < 1


@pytest.mark.parametrize("score", AGREEMENT)
def test_agreement_sees_what_it_is_named_for(score, rng):
    """Shuffling each gene over cells destroys correlations and nothing else."""
    factor = rng.normal(size=(500, 1))
    x = np.maximum(rng.normal(size=(500, 20)) * np.linspace(0.5, 2, 20) + factor * rng.normal(size=20) + 3, 0)
    scrambled = rng.permuted(x, axis=0)
    if score is metrics.corr_r2_hvg:
        assert score(scrambled, x) < 0.2
    else:
        assert score(scrambled, x) == pytest.approx(1)


def test_most_expressed_genes_are_chosen_on_real_cells(rng):
    real = rng.normal(size=(300, 6)) + np.array([9, 8, 7, 0, 0, 0])
    real[:, 1] += real[:, 0]
    generated = real.copy()
    generated[:, 3:] = 100 + rng.normal(size=(300, 3))  # the least expressed genes are wrong, and highest
    assert metrics.corr_r2_hvg(generated, real, k=3) == pytest.approx(1)


def test_responding_genes_carry_the_correlation_score(rng):
    control = rng.normal(size=(400, 40))
    real = rng.normal(size=(400, 40))
    program = rng.normal(size=(400, 1))
    real[:, :10] += 3 + program * np.linspace(-1, 1, 10)
    generated = real.copy()
    generated[:, 10:] = rng.normal(size=(400, 30))
    assert metrics.corr_responding(generated, real, control, k=10) == pytest.approx(1)
    assert metrics.r2_de100(generated, real, control, k=10) == pytest.approx(1)
    assert abs(metrics.corr_responding(rng.permuted(real, axis=0), real, control, k=10)) < 0.5


def test_zero_gap_has_a_sign():
    full, half = np.ones((4, 4)), np.kron(np.eye(2), np.ones((2, 2)))
    assert metrics.zero_gap(full, half) == -0.5
    assert metrics.zero_gap(half, full) == 0.5


# --- effects ---------------------------------------------------------------------------------------------------------


def test_effect_scores_on_a_known_line():
    d_true = np.array([-2.0, -1, 0, 1, 2])
    d_pred = 0.5 * d_true + 0.7
    assert metrics.pearson_delta(d_pred, d_true) == pytest.approx(1)
    assert metrics.slope(d_pred, d_true) == pytest.approx(0.5)
    assert metrics.mse_delta(d_pred, d_true) == pytest.approx(np.mean((0.7 - 0.5 * d_true) ** 2))
    assert metrics.direction_agreement(d_pred, d_true) == pytest.approx(0.75)
    assert metrics.direction_agreement(np.zeros(5), d_true) == 0


def test_slope_and_r2_are_those_of_scipy_and_sklearn(rng):
    from sklearn.metrics import r2_score

    d_true, noise = rng.normal(size=(2, 100))
    d_pred = 0.7 * d_true + 0.3 * noise
    assert metrics.slope(d_pred, d_true) == pytest.approx(stats.linregress(d_true, d_pred).slope)
    assert metrics.r2_delta(d_pred, d_true) == pytest.approx(r2_score(d_true, d_pred))


def test_de_overlap_counts_the_shared_top():
    true = np.array([9, 8, 7, 1, 0, 0.0])
    assert metrics.de_overlap(true, true, k=3) == 1
    assert metrics.de_overlap(np.array([9, 0, 0, 8, 7, 0.0]), true, k=3) == pytest.approx(1 / 3)
    assert metrics.de_overlap(np.full(6, np.nan), np.array([0, 0, 0, 1, 2, 3.0]), k=3) == 0


# --- distances -------------------------------------------------------------------------------------------------------

DISTANCES = [metrics.energy, metrics.mmd]


def test_energy_is_scipys_in_one_dimension(rng):
    """scipy gives sqrt of the V-statistic of half the distance; put the diagonal back to compare."""
    x, y = rng.normal(size=80), rng.normal(0.7, 2, size=120)
    n, m = len(x), len(y)
    within_x, within_y = np.abs(x[:, None] - x).sum(), np.abs(y[:, None] - y).sum()
    diagonal = within_x / (n * (n - 1)) - within_x / n**2 + within_y / (m * (m - 1)) - within_y / m**2
    expected = stats.energy_distance(x, y) ** 2 - diagonal
    assert metrics.energy(x[:, None], y[:, None]) == pytest.approx(expected)


def test_energy_is_brute_force_across_blocks(rng, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 7)
    x, y = rng.normal(size=(31, 5)), rng.normal(0.5, 1, size=(22, 5))
    off = ~np.eye(31, dtype=bool), ~np.eye(22, dtype=bool)
    expected = 2 * cdist(x, y).mean() - cdist(x, x)[off[0]].mean() - cdist(y, y)[off[1]].mean()
    assert metrics.energy(x, y) == pytest.approx(expected)


def test_mmd_is_sklearns_kernels(rng):
    from sklearn.metrics.pairwise import rbf_kernel

    x, y = rng.normal(size=(40, 4)), rng.normal(0.5, 1, size=(30, 4))
    median = np.median(cdist(y, y, "sqeuclidean")[np.triu_indices(30, k=1)])
    expected = 0.0
    for b in (0.5, 1, 2):
        kxx, kyy, kxy = (rbf_kernel(p, q, gamma=1 / (b * median)) for p, q in ((x, x), (y, y), (x, y)))
        expected += (kxx.sum() - 40) / (40 * 39) + (kyy.sum() - 30) / (30 * 29) - 2 * kxy.mean()
    assert metrics.mmd(x, y) == pytest.approx(expected)


def test_energy_is_the_optimal_transport_bound(rng):
    """2 E|x-y| - E|x-x'| - E|y-y'| <= 2 W1 (POT), by the triangle inequality, for V-statistics."""
    ot = pytest.importorskip("ot")
    x, y = rng.normal(size=(60, 3)), rng.normal(0.4, 1, size=(60, 3))
    v_statistic = 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()
    correction = (cdist(x, x).sum() + cdist(y, y).sum()) * (1 / (60 * 59) - 1 / 60**2)
    assert metrics.energy(x, y) == pytest.approx(v_statistic - correction)
    assert 0 <= v_statistic <= 2 * ot.emd2([], [], cdist(x, y))


@pytest.mark.parametrize("distance", DISTANCES)
def test_distance_is_zero_on_average_for_one_population_and_grows_with_a_shift(distance):
    rng = np.random.default_rng(1)
    null = [distance(rng.normal(size=(60, 4)), rng.normal(size=(50, 4))) for _ in range(200)]
    assert abs(np.mean(null)) < 4 * np.std(null) / np.sqrt(200)
    assert min(null) < 0  # unbiased: not clipped
    x = rng.normal(size=(200, 4))
    shifted = [distance(x + shift, x[::-1]) for shift in (0.5, 1, 2)]
    assert shifted == sorted(shifted)
    assert shifted[0] > 5 * np.std(null)


@pytest.mark.parametrize("distance", DISTANCES)
def test_matched_strata_are_unbiased_only_when_told(distance):
    """Two samples of one mixture with the same numbers of each part: the plain U-statistic is negative."""
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    centres = np.array([[0, 0], [6, 0], [0, 9]])[labels]
    draws = [(centres + rng.normal(size=(60, 2)), centres + rng.normal(size=(60, 2))) for _ in range(100)]
    plain = np.array([distance(x, y) for x, y in draws])
    told = np.array([distance(x, y, strata=(labels, labels)) for x, y in draws])
    error = told.std() / 10
    assert abs(told.mean()) < 4 * error
    assert plain.mean() < -10 * error


@pytest.mark.parametrize("distance", DISTANCES)
def test_one_stratum_changes_nothing(distance, rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(20, 3))
    assert distance(x, y, strata=(np.zeros(30), np.zeros(20))) == pytest.approx(distance(x, y))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), n=st.integers(3, 20), m=st.integers(3, 20))
def test_distances_do_not_depend_on_order_position_or_rotation(seed, scale, n, m):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), 1 + rng.normal(size=(m, 3))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    moved = [scale * (z[rng.permutation(len(z))] @ rotation + 5) for z in (x, y)]
    assert metrics.energy(*moved) == pytest.approx(scale * metrics.energy(x, y), abs=1e-8)
    assert metrics.mmd(*moved) == pytest.approx(metrics.mmd(x, y), abs=1e-8)  # its bandwidth follows the scale
    assert metrics.energy(x, y) == pytest.approx(metrics.energy(y, x))


def test_too_few_cells_are_undefined():
    one, some = np.zeros((1, 3)), np.arange(12.0).reshape(4, 3)
    assert np.isnan([metrics.energy(one, some), metrics.mmd(one, some), metrics.auc(one, some)]).all()


def test_auc_is_a_half_for_one_population_and_one_for_two():
    rng = np.random.default_rng(3)
    null = [metrics.auc(rng.normal(size=(200, 5)), rng.normal(size=(200, 5)), seed=i) for i in range(4)]
    assert 0.45 < np.mean(null) < 0.55
    assert metrics.auc(rng.normal(size=(200, 5)), rng.normal(size=(200, 5)) + 4) > 0.99


@pytest.mark.parametrize(("apart", "least", "most"), [(0.0, 0.45, 0.55), (4.0, 0.99, 1.0)])
def test_knn_auc_is_a_half_for_one_population_and_one_for_two(apart, least, most):
    rng = np.random.default_rng(0)
    scores = [
        metrics.knn_auc(rng.normal(size=(150, 5)), rng.normal(size=(200, 5)) + apart, seed=seed) for seed in range(4)
    ]
    assert least < np.mean(scores) <= most
    assert np.isnan(metrics.knn_auc(rng.normal(size=(7, 5)), rng.normal(size=(200, 5))))


def test_auc_sees_a_difference_of_shape_only(rng):
    """Same mean and covariance, other distribution: two clumps against one."""
    clumps = rng.choice([-1, 1], size=(300, 1)) * np.ones((300, 1)) + 0.1 * rng.normal(size=(300, 1))
    assert metrics.auc(clumps, clumps.std() * rng.normal(size=(300, 1))) > 0.8


def test_auc_of_unequal_sets_does_not_reward_guessing_the_larger(rng):
    assert 0.4 < metrics.auc(rng.normal(size=(150, 4)), rng.normal(size=(1500, 4))) < 0.6


def test_auc_agrees_with_exact_boosting(rng):
    """Histogram boosting is the fast form of the field's GradientBoostingClassifier: same answer on a weak signal."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    x, y = rng.normal(size=(250, 6)), rng.normal(size=(250, 6)) + 0.35
    cells, label = np.concatenate([x, y]), np.repeat([1, 0], 250)
    folds = StratifiedKFold(4, shuffle=True, random_state=0)
    exact = GradientBoostingClassifier(n_estimators=50, random_state=0)
    probability = cross_val_predict(exact, cells, label, cv=folds, method="predict_proba")[:, 1]
    assert metrics.auc(x, y) == pytest.approx(roc_auc_score(label, probability), abs=0.05)


# --- held-out molecules ----------------------------------------------------------------------------------------------


def test_likelihoods_are_those_of_scipy(rng):
    composition = rng.dirichlet(np.ones(8), size=5)
    held_out = np.stack([rng.multinomial(40, p) for p in composition])
    mu = composition * held_out.sum(axis=1, keepdims=True)
    # the multinomial coefficient does not depend on p: add it to compare with scipy
    coefficient = sum(
        stats.multinomial.logpmf(x, 40, p) - x @ np.log(p) for x, p in zip(held_out, composition, strict=True)
    )
    logpmf = sum(stats.multinomial.logpmf(x, 40, p) for x, p in zip(held_out, composition, strict=True))
    assert metrics.nll_molecule(sp.csr_matrix(held_out), composition) == pytest.approx(-(logpmf - coefficient) / 200)
    saturated = stats.poisson.logpmf(held_out, held_out)
    expected = np.mean(2 * (saturated - stats.poisson.logpmf(held_out, mu)))
    assert metrics.poisson_deviance(sp.csr_matrix(held_out), composition) == pytest.approx(expected)
    assert metrics.poisson_deviance(held_out, composition) == pytest.approx(expected)


def test_poisson_deviance_is_sklearns(rng):
    from sklearn.metrics import mean_poisson_deviance

    composition = rng.dirichlet(np.ones(6), size=4)
    held_out = rng.poisson(30 * composition) + 1
    mu = composition * held_out.sum(axis=1, keepdims=True)
    expected = mean_poisson_deviance(held_out.ravel(), mu.ravel())
    assert metrics.poisson_deviance(held_out, composition) == pytest.approx(expected)


def test_the_truth_has_the_best_likelihood(rng):
    composition = rng.dirichlet(np.ones(10), size=200)
    held_out = np.stack([rng.multinomial(50, p) for p in composition])
    pooled = np.tile(composition.mean(axis=0), (200, 1))
    for score in (metrics.nll_molecule, metrics.poisson_deviance):
        assert score(held_out, composition) < score(held_out, pooled)
    impossible = composition.copy()
    impossible[:, 0] = 0
    assert metrics.nll_molecule(held_out, impossible) == np.inf


def test_mse_log_is_least_at_the_mean_of_logs_not_the_log_of_means(rng):
    composition = np.full((400, 20), 1 / 20)
    held_out = np.stack([rng.multinomial(10, p) for p in composition])
    logs = np.log1p(1e4 * held_out / held_out.sum(axis=1, keepdims=True))
    assert metrics.mse_log(sp.csr_matrix(held_out), logs) == pytest.approx(0, abs=1e-8)
    at_mean = metrics.mse_log(held_out, np.full_like(logs, logs.mean()))
    assert at_mean == pytest.approx(logs.var(), rel=1e-5)
    assert at_mean < metrics.mse_log(held_out, np.full_like(logs, np.log1p(1e4 / 20)))


# --- rankings --------------------------------------------------------------------------------------------------------


def test_pds_of_perfect_constant_and_missing_predictions(rng):
    d_true = rng.normal(size=(10, 30))
    assert np.all(metrics.pds(d_true, d_true) == 1)
    assert metrics.pds(np.zeros((10, 30)), d_true).mean() == pytest.approx(0.55)  # ranks 0..9 once each
    missing = d_true.copy()
    missing[3] = np.nan
    assert metrics.pds(missing, d_true)[3] == pytest.approx(0.1)


def test_pds_counts_a_tie_half():
    d_true = np.array([[1.0, 0], [1, 0], [0, 5]])
    assert metrics.pds(d_true, d_true).tolist() == pytest.approx([1 - 0.5 / 3, 1 - 0.5 / 3, 1])


def test_pds_leaves_the_target_gene_out():
    d_true = np.array([[5.0, 1.0], [0.0, 2.0]])
    d_pred = np.array([[5.0, 2.0], [0.0, 2.0]])  # right only in the gene that was knocked out
    assert metrics.pds(d_pred, d_true)[0] == 1
    assert metrics.pds(d_pred, d_true, targets=[0, None])[0] == 0.5


def test_rankings_on_a_known_table():
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    assert metrics.true_ranks(scores, [0, 1, 2]).tolist() == [1, 2, 3]
    assert metrics.recall_at_k(scores, [0, 1, 2], 2) == pytest.approx(2 / 3)
    assert metrics.mrr(scores, [0, 1, 2]) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_nothing_said_wins_nothing():
    for nothing in (np.nan, 0.0, -np.inf):
        assert metrics.true_ranks(np.full((2, 5), nothing), [0, 4]).tolist() == [5, 5]
    one_missing = np.array([[np.nan, 0.1, 0.2]])
    assert metrics.true_ranks(one_missing, [0]).tolist() == [3]
    assert metrics.true_ranks(one_missing, [2]).tolist() == [1]
    assert metrics.mrr(np.array([[np.inf, 0.0]]), [0]) == 1


def test_ndcg_is_that_of_sklearn(rng):
    from sklearn.metrics import ndcg_score

    scores, truth = rng.normal(size=(40, 12)), rng.integers(12, size=40)
    relevant = np.eye(12)[truth]
    assert metrics.ndcg(scores, truth) == pytest.approx(ndcg_score(relevant, scores))
    assert metrics.ndcg(np.array([[3.0, 2, 1]]), [0]) == 1
    assert metrics.ndcg(np.zeros((1, 3)), [0]) == pytest.approx(0.5)  # all even: the last of three
    assert metrics.discounted([1, 3]).tolist() == [1, 0.5]


def test_ece_in_closed_form(rng):
    assert metrics.ece([1, 1, 0, 0], [1, 1, 0, 0]) == 0
    assert metrics.ece([0.95, 0.95], [0, 0]) == pytest.approx(0.95)
    # two bins: (.75, .5 right of 2) and (.15, 0 of 2)
    assert metrics.ece([0.75, 0.75, 0.15, 0.15], [1, 0, 0, 0]) == pytest.approx((2 * 0.25 + 2 * 0.15) / 4)
    confidence = rng.random(200_000)
    assert metrics.ece(confidence, rng.random(200_000) < confidence) < 0.01
    assert metrics.ece(confidence, rng.random(200_000) < confidence**2) == pytest.approx(1 / 2 - 1 / 3, abs=0.01)
