"""The baselines have the moments they claim and answer only what they were shown."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scidiff.data.scaling import log1p_cp10k
from scidiff.errors import InputError
from scidiff.evaluation import ConditionalMultinomial, GaussianPCA


@pytest.fixture(scope="module")
def training(cells):
    return cells(800, 11)


def test_multinomial_cells_have_the_composition_and_depths_of_their_condition(training, schema):
    generated = ConditionalMultinomial.fit(training, schema).generate(
        pd.DataFrame({"perturbation": ["drug"] * 3000, "cell_type": ["T"] * 3000}), seed=1
    )
    members = ((training.obs["condition"] == "drug") & (training.obs["cell_type"] == "T")).to_numpy()
    counts, known = generated.layers["counts"], training.X[members]
    assert counts.dtype == np.float32
    assert np.array_equal(counts.data, np.rint(counts.data))
    depths = np.asarray(counts.sum(axis=1)).ravel()
    assert set(depths) <= set(np.asarray(known.sum(axis=1)).ravel())
    p = np.asarray(known.sum(axis=0)).ravel() / known.sum()
    drawn = np.asarray(counts.sum(axis=0)).ravel()
    chi2 = np.sum((drawn - p * drawn.sum()) ** 2 / (p * drawn.sum()))
    assert chi2 < len(p) + 5 * np.sqrt(2 * len(p))
    # variance given depth is multinomial: no more than sampling noise
    residual = counts.toarray() - depths[:, None] * p
    expected = depths.mean() * p * (1 - p)
    np.testing.assert_allclose(residual.var(axis=0), expected, rtol=0.2)


def test_gaussian_has_the_mean_and_covariance_of_the_condition(training, schema):
    model = GaussianPCA.fit(training, schema, n_components=10)
    generated = model.generate({"perturbation": "control", "cell_type": "B"}, seed=0)
    assert generated.n_obs == 1
    table = pd.DataFrame({"perturbation": ["drug"] * 4000, "cell_type": ["B"] * 4000})
    generated = model.generate(table, seed=0)
    members = ((training.obs["condition"] == "drug") & (training.obs["cell_type"] == "B")).to_numpy()
    assert generated.X.min() >= 0
    expected = np.asarray(log1p_cp10k(training.X[members]).mean(axis=0)).ravel()
    high = expected > 3  # genes that the cut at zero does not touch
    projected = (expected - model.mean) @ model.components.T @ model.components + model.mean
    np.testing.assert_allclose(generated.X.mean(axis=0)[high], projected[high], rtol=0.03)
    scores = (generated.X - model.mean)[:, high] @ model.components[:, high].T
    decoded = model.scores[members] @ model.components[:, high] @ model.components[:, high].T
    np.testing.assert_allclose(np.cov(scores.T)[0, 0], np.cov(decoded.T)[0, 0], rtol=0.25)
    assert "counts" not in generated.layers


@pytest.mark.parametrize("baseline", [ConditionalMultinomial, GaussianPCA])
def test_conditions_come_back_in_order_and_seeds_repeat(baseline, training, schema):
    model = baseline.fit(training, schema)
    asked = pd.DataFrame({"condition": ["drug", "control", "drug"], "cell_type": ["B", "T", "T"]})
    first, again, other = model.generate(asked, seed=5), model.generate(asked, seed=5), model.generate(asked, seed=6)
    assert first.obs["perturbation"].tolist() == ["drug", "control", "drug"]
    assert first.obs["cell_type"].tolist() == ["B", "T", "T"]
    assert abs(first.X - again.X).max() == 0
    assert abs(first.X - other.X).max() > 0
    assert first.uns["scidiff"]["scales"]["X"] == "log1p(CP10k)"


@pytest.mark.parametrize("baseline", [ConditionalMultinomial, GaussianPCA])
def test_what_is_asked_is_what_changes(baseline, training, schema):
    """The planted response separates the two conditions in the right direction."""
    model = baseline.fit(training, schema)
    asked = pd.DataFrame({"perturbation": ["control", "drug"] * 400})
    x = model.generate(asked, seed=0).X
    x = x.toarray() if hasattr(x, "toarray") else x
    known = log1p_cp10k(training.X).toarray()
    treated = (training.obs["condition"] == "drug").to_numpy()
    truth = known[treated].mean(axis=0) - known[~treated].mean(axis=0)
    assert np.corrcoef(x[1::2].mean(axis=0) - x[::2].mean(axis=0), truth)[0, 1] > 0.9


def test_a_condition_never_seen_is_refused_by_name(training, schema):
    no_drug_in_b = training[~((training.obs["condition"] == "drug") & (training.obs["cell_type"] == "B"))].copy()
    model = ConditionalMultinomial.fit(no_drug_in_b, schema)
    with pytest.raises(InputError, match=r"no training cells of condition 'drug, B'; nearest: 'drug, T'"):
        model.generate({"perturbation": "drug", "cell_type": "B"})
    with pytest.raises(InputError, match=r"'drugg'.*'drug'"):
        model.generate({"perturbation": "drugg"})


def test_without_roles_all_cells_are_pooled(training):
    from scidiff.data.schema import Schema

    model = ConditionalMultinomial.fit(training, Schema())
    assert model.generate([{}] * 7, seed=0).n_obs == 7


def test_multinomial_needs_counts(training, schema):
    logged = training.copy()
    logged.X = log1p_cp10k(logged.X)
    with pytest.raises(InputError, match="needs counts, these cells are log1p"):
        ConditionalMultinomial.fit(logged, schema)
