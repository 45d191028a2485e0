"""AUCell: the recovery curve drawn step by step, numbers of decoupler, ties broken in all ways, signs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scidiff.errors import InputError
from scidiff.integration import regulator_activity

GENES = pd.Index([f"G{i}" for i in range(60)])


@pytest.fixture(scope="module")
def network() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [(f"TF{t}", gene, 1.0) for t in range(6) for gene in rng.choice(GENES, 5 + 3 * t, replace=False)]
    return pd.DataFrame(rows, columns=["source", "target", "weight"])


def area(order: np.ndarray, targets: set[str], top: float) -> float:
    """The area under the recovery curve over the first genes, one step after the other, over the largest possible."""
    first = int(np.ceil(top * len(order)))
    found = [sum(gene in targets for gene in order[:place]) for place in range(1, first)]
    best = [min(place, len(targets)) for place in range(1, first)]
    return sum(found) / sum(best)


@pytest.mark.parametrize("top", [0.1, 0.5, 1.0])
def test_it_is_the_area_under_the_recovery_curve(network, top):
    x = np.random.default_rng(1).random((4, 60))
    found = regulator_activity(x, GENES, network, top=top)
    for cell in range(4):
        order = GENES[np.argsort(-x[cell])]
        for tf, edges in network.groupby("source"):
            assert found.loc[cell, tf] == pytest.approx(area(order, set(edges["target"]), top))


def test_numbers_of_decoupler():
    """decoupler 2.2.0, mt.aucell, 400 genes of which 20 count; by default_rng(0), as here."""
    rng = np.random.default_rng(0)
    genes = pd.Index([f"G{i}" for i in range(400)])
    x = rng.random((20, 400))
    rows = [(f"TF{t}", genes[g], 1.0) for t in range(12) for g in rng.choice(400, 5 + 7 * t, replace=False)]
    found = regulator_activity(x, genes, pd.DataFrame(rows, columns=["source", "target", "weight"]))
    expected = [
        [0.0, 0.104938, 0.136842, 0.163158],
        [0.0, 0.0, 0.089474, 0.242105],
        [0.0, 0.080247, 0.278947, 0.136842],
    ]
    np.testing.assert_allclose(found.loc[:2, ["TF0", "TF1", "TF10", "TF11"]], expected, atol=1e-6)


def test_ties_have_the_mean_over_all_ways_of_breaking_them(network):
    rng = np.random.default_rng(2)
    x = rng.poisson(0.7, 60).astype(float)
    found = regulator_activity(x[None], GENES, network, top=0.4).iloc[0]
    broken = regulator_activity(x + 1e-3 * rng.random((1500, 60)), GENES, network, top=0.4)
    error = broken.std() / np.sqrt(len(broken))
    assert (abs(found - broken.mean()) < 4 * error + 1e-9).all()


def test_what_a_target_is_lowered_by_counts_against_it():
    x = np.arange(60.0, 0, -1)[None]
    up, down = [("A", g, 1.0) for g in GENES[:5]], [("B", g, -2.0) for g in GENES[:5]]
    both = [("C", g, w) for g, w in zip(GENES[[0, 1, 2, 57, 58, 59]], [1, 1, 1, -1, -1, -1], strict=True)]
    network = pd.DataFrame([*up, *down, *both], columns=["source", "target", "weight"])
    found = regulator_activity(x, GENES, network, top=0.2).iloc[0]
    assert found["A"] == 1
    assert found["B"] == -1
    assert found["C"] == pytest.approx(0.5)  # half of its targets are as high as can be, the others as low


def test_sparse_or_dense_stored_zeros_or_not(network):
    x = np.random.default_rng(3).poisson(0.5, (5, 60)).astype(float)
    x[4] = 0  # a cell of which nothing was seen has the mean of all orders
    stored = sparse.csr_matrix(np.ones_like(x))
    stored.data = x.ravel().copy()
    plain = regulator_activity(x, GENES, network, top=0.5)
    np.testing.assert_allclose(plain, regulator_activity(stored, GENES, network, top=0.5))
    np.testing.assert_allclose(plain, regulator_activity(np.log1p(7 * x), GENES, network, top=0.5))  # ranks only
    k = network["source"].value_counts().sort_index()
    largest = k.map(lambda k: sum(min(place, k) for place in range(1, 30)))
    np.testing.assert_allclose(plain.loc[4], k / 60 * sum(range(1, 30)) / largest)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((2, 3)), {}, "cells have 3 genes, 60 are named"),
        (-np.ones((2, 60)), {}, r"negative \(lowest -1\)"),
        (np.ones((2, 60)), {"top": 0}, "top=0"),
        (np.ones((2, 60)), {"min_targets": 50}, "no regulator has 50 targets"),
    ],
)
def test_what_cannot_be_scored(network, x, options, message):
    with pytest.raises(InputError, match=message):
        regulator_activity(x, GENES, network, **options)
