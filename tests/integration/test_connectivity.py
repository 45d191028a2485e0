"""Connectivity scores against values worked out by hand, slow definitions, and planted truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scidiff.errors import InputError
from scidiff.integration import connectivity
from scidiff.integration.connectivity import (
    WhitenedSpearman,
    cosine,
    enrichment,
    extremes,
    normalized,
    null_spread,
    set_connectivity,
    spearman,
    tau,
    weighted_connectivity,
    xsum,
    zhang,
)


def test_cosine_and_spearman():
    rng = np.random.default_rng(0)
    q, s = rng.normal(size=30), rng.normal(size=(4, 30)).round(1)
    assert cosine(np.array([3.0, 4.0]), np.array([[3.0, 4.0], [4.0, -3.0], [0.0, 0.0]])) == pytest.approx([1, 0, 0])
    assert spearman(q, s) == pytest.approx([stats.spearmanr(q, row).statistic for row in s])  # with ties


def slow_enrichment(genes: list[int], signature: np.ndarray) -> float:
    """Down the list, as Subramanian et al. 2005 describe it."""
    order = sorted(range(len(signature)), key=lambda g: -signature[g])
    total, best, running = sum(abs(signature[g]) for g in genes), 0.0, 0.0
    for gene in order:
        running += abs(signature[gene]) / total if gene in genes else -1 / (len(signature) - len(genes))
        best = running if abs(running) > abs(best) else best
    return best


def test_enrichment_by_hand():
    signature = np.array([[4.0, 3.0, 2.0, 1.0, -1.0, -2.0]])
    # genes 0 and 2: 4/6, then down by 1/4, up 2/6 = .75, then down to 0
    assert enrichment(np.array([0, 2]), signature) == pytest.approx([0.75])
    # the lowest two: down to -1 before the first hit
    assert enrichment(np.array([4, 5]), signature) == pytest.approx([-1.0])
    assert enrichment(np.array([], dtype=int), signature) == [0.0]
    assert enrichment(np.arange(6), signature) == [0.0]


def test_enrichment_is_the_slow_one():
    rng = np.random.default_rng(1)
    signatures = rng.normal(size=(20, 40))
    genes = rng.choice(40, 7, replace=False)
    assert enrichment(genes, signatures) == pytest.approx([slow_enrichment(list(genes), one) for one in signatures])


def test_weighted_connectivity():
    rng = np.random.default_rng(2)
    q, s = rng.normal(size=40), rng.normal(size=(30, 40))
    up, down = extremes(q, n=10)
    assert list(up) == list(np.argsort(-q)[:5])
    assert list(down) == list(np.argsort(q)[:5])
    pairs = [(slow_enrichment(list(up), one), slow_enrichment(list(down), one)) for one in s]
    expected = [(a - b) / 2 if a * b < 0 else 0.0 for a, b in pairs]
    found = weighted_connectivity(q, s, n=10)
    assert found == pytest.approx(expected)
    assert 0 < (found == 0).mean() < 1
    assert weighted_connectivity(q, np.array([q, -q]), n=10) == pytest.approx([1, -1])
    # the signature's sets in the query are the query's sets in the signature, with the roles changed
    sets = np.zeros((1, 40))
    sets[0, up], sets[0, down] = 1, -1
    assert set_connectivity(s[0], sets)[0] == pytest.approx(found[0])


def test_xsum_by_hand():
    q = np.array([5.0, 4.0, 0.0, -1.0, -4.0, -5.0])
    s = np.array([[3.0, 0.5, 2.0, 0.0, -0.5, -2.0]])
    # up genes of q: 0, 1; down: 5, 4. Extremes of s: up 0, 2; down 5, 4
    assert xsum(q, s, n=4) == pytest.approx([3.0 - (-2.0 - 0.5)])


def test_zhang_by_hand():
    # signed ranks of the query: 3, -2, 0, 1 (a gene at zero has none); of the signature: 1, 3, 2, -4
    q, s = np.array([9.0, -5.0, 0.0, 2.0]), np.array([[1.0, 3.0, 2.0, -4.0]])
    assert zhang(q, s) == pytest.approx([(3 * 1 - 2 * 3 + 0 - 4) / (3 * 4 + 2 * 3 + 1 * 2)])
    assert zhang(s[0], np.array([s[0], -s[0]])) == pytest.approx([1, -1])


def test_normalized_and_tau():
    scores, groups = np.array([1.0, 3.0, -2.0, -4.0, 5.0]), np.array(["a", "a", "a", "a", "b"])
    assert normalized(scores, groups) == pytest.approx([0.5, 1.5, -2 / 3, -4 / 3, 1.0])
    assert tau(np.array([0.5, -0.5, 0.0]), np.array([0.1, -0.2, 0.6, 0.9])) == pytest.approx([50, -50, 0])
    assert tau(np.array([0.5, -0.5]), np.array([[0.1, 0.2], [0.6, -0.7]])) == pytest.approx([100, 0])


@pytest.fixture(scope="module")
def library():
    """Twenty drugs, five signatures each: a programme of its own in noise along six strong common directions."""
    rng = np.random.default_rng(3)
    n_drugs, n_genes = 20, 300
    programmes, nuisance = rng.normal(size=(n_drugs, n_genes)) * 0.5, rng.normal(size=(6, n_genes)) * 3

    def draw(drug: np.ndarray) -> np.ndarray:
        noise = rng.normal(size=(len(drug), 6)) @ nuisance + rng.normal(size=(len(drug), n_genes))
        return 7 + programmes[drug] + noise

    drug = np.repeat(np.arange(n_drugs), 5)
    return draw, drug, draw(drug)


def dense(values: np.ndarray, groups: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The whitened Spearman score with full matrices, as its docstring defines it."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    kinds = np.unique(groups)
    mean_of = lambda x: np.array([x[groups == kind].mean(axis=0) for kind in kinds])  # noqa: E731
    freedom = len(values) - len(kinds)
    centre = mean_of(values).mean(axis=0)
    scale = np.sqrt(((values - mean_of(values)[groups]) ** 2).sum(axis=0) / freedom)
    ranks = lambda x: stats.rankdata((x - centre) / scale, axis=1)  # noqa: E731
    p = ranks(values)
    r = p - mean_of(p)[groups]
    r /= np.sqrt((r**2).sum(axis=0) / freedom)
    unit = np.sqrt(((p - mean_of(p)[groups]) ** 2).sum(axis=0) / freedom)
    a = ledoit_wolf_shrinkage(r, assume_centered=True)
    w, v = np.linalg.eigh((1 - a) * r.T @ r / freedom + a * np.eye(p.shape[1]))
    white = v / np.sqrt(w) @ v.T
    drugs = (mean_of(p) - mean_of(p).mean(axis=0)) / unit @ white
    q = (ranks(np.atleast_2d(query)).mean(axis=0) - mean_of(p).mean(axis=0)) / unit @ white
    return np.array([stats.spearmanr(q, one).statistic for one in drugs])


def test_whitened_spearman_is_its_definition(library):
    draw, drug, values = library
    score = WhitenedSpearman.fit(values, drug)
    for query in (draw(np.array([4]))[0], draw(np.array([4, 4, 4]))):
        assert score(query) == pytest.approx(dense(values, drug, query), abs=1e-6)


def test_whitened_spearman_sees_through_common_noise(library):
    draw, drug, values = library
    score = WhitenedSpearman.fit(values, drug)
    queries = draw(np.arange(20))
    drugs = connectivity.group_means(values, drug)
    centre = drugs.mean(axis=0)
    own = [np.argmax(score(query)) == i for i, query in enumerate(queries)]
    plain = [np.argmax(cosine(query - centre, drugs - centre)) == i for i, query in enumerate(queries)]
    assert np.mean(own) > 0.7
    assert np.mean(plain) < 0.4


def test_units_of_genes_do_not_matter(library):
    _, drug, values = library
    unit = np.random.default_rng(4).uniform(0.1, 10, values.shape[1])
    scores = [WhitenedSpearman.fit(values * u, drug)(values[3] * u) for u in (1.0, unit)]
    assert scores[0] == pytest.approx(scores[1])


def test_another_platform_has_another_centre(library):
    draw, drug, values = library
    score = WhitenedSpearman.fit(values, drug)
    change = draw(np.array([2]))[0] - 7.0  # a difference to control, not a level
    assert np.argmax(score(change, same_units=False)) == 2
    assert score(change + score.centre) == pytest.approx(score(change, same_units=False))


def test_a_library_without_replicates(library):
    draw, _, _ = library
    values = draw(np.arange(20))
    score = WhitenedSpearman.fit(values, np.arange(20))
    assert np.isfinite(score(draw(np.array([4]))[0])).all()
    assert null_spread(values, np.arange(20)) > 0


def test_null_spread_is_that_of_noise(library):
    draw, drug, values = library
    spread = null_spread(values, drug)
    score = WhitenedSpearman.fit(values, drug)
    same = np.zeros(400, dtype=int)
    noise = draw(same) - draw(same)  # two signatures of one drug
    z = np.array([score(one, same_units=False) for one in noise]) / spread
    assert 0.01 < (z > stats.norm.ppf(0.95)).mean() < 0.055  # a smaller library whitens less: rather too wide
    assert spread > 1.1 / np.sqrt(values.shape[1] - 1)  # genes are not independent
    halves = 2 * drug + np.arange(len(drug)) % 2
    assert null_spread(values, drug, drug) == spread
    profiles = score.profiles(values, halves)
    z = np.array([cosine(score.profile(one, same_units=False), profiles) for one in noise])
    assert 0.01 < (z / null_spread(values, drug, halves) > stats.norm.ppf(0.95)).mean() < 0.055


def test_too_small_libraries():
    with pytest.raises(InputError, match="at least 3 signatures"):
        WhitenedSpearman.fit(np.eye(2), np.arange(2))
    with pytest.raises(InputError, match="do not differ"):
        WhitenedSpearman.fit(np.ones((4, 5)), np.array([0, 0, 1, 1]))
