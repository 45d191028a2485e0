"""Baselines: closed forms and independent loops, settings that are found again, and what they must beat."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from scidiff.data.molecules import split_molecules
from scidiff.data.scaling import log1p_cp10k
from scidiff.evaluation.denoisers import (
    ALRA,
    FLOORS,
    LOG,
    LOG_CP10K,
    MAGIC,
    SCVI,
    SQRT,
    TRANSFORMS,
    Baseline,
    GlobalMean,
    Neighbours,
    PrincipalComponents,
    Raw,
    baseline_denoisers,
    grid,
    pooled,
    restore_zeros,
    to_composition,
)
from scidiff.evaluation.denoising import Denoised, cross_validate, score_denoised

N_CELLS, N_GENES = 300, 60


def types(seed: int = 0, *, sd: float = 1.0) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Counts, true compositions and types of cells of three types, whose log rates differ by ``sd``."""
    rng = np.random.default_rng(seed)
    log_rate = rng.normal(0, 1, N_GENES) + sd * rng.normal(size=(3, N_GENES))
    kind = rng.integers(0, 3, N_CELLS)
    p = np.exp(log_rate)[kind]
    p /= p.sum(axis=1, keepdims=True)
    depth = rng.integers(60, 400, N_CELLS)
    counts = np.array([rng.multinomial(n, q) for n, q in zip(depth, p, strict=True)], dtype=np.float32)
    return sparse.csr_matrix(counts), p, kind


def nats(denoised: Denoised, held: sparse.csr_matrix) -> float:
    return score_denoised(denoised, held)["nll_molecule"]


def totals(counts) -> np.ndarray:
    return np.asarray(counts.sum(axis=0)).ravel()


INSTALLED = [method for method in baseline_denoisers() if not isinstance(method, MAGIC | SCVI)]


# --- every baseline ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [m for m in INSTALLED if not isinstance(m, GlobalMean)], ids=lambda m: m.name)
def test_it_finds_planted_types(method):
    """Better than knowing nothing, worse than the truth; those that share between cells close most of the gap."""
    counts, p, _ = types()
    kept, held = split_molecules(counts, held_out=0.5, seed=1)
    depth = np.asarray(held.sum(axis=1)).ravel()
    found = method.fit_predict(kept, held_depth=depth, seed=1)
    nothing = nats(GlobalMean().fit_predict(kept, held_depth=depth, seed=1), held)
    closed = (nothing - nats(found, held)) / (nothing - nats(Denoised(p), held))
    assert (0.5 if isinstance(method, Raw) else 0.8) < closed < 1
    assert "floor" in found.note
    again = method.fit_predict(kept, held_depth=depth, seed=1)
    np.testing.assert_array_equal(found.composition, again.composition)


@pytest.mark.parametrize("method", INSTALLED, ids=lambda m: m.name)
def test_it_invents_nothing_where_cells_are_alike(method):
    """Cells of one composition: the floor, chosen on kept molecules, brings every method to that of all cells."""
    counts, p, _ = types(sd=0.0)
    kept, held = split_molecules(counts, held_out=0.5, seed=1)
    found = method.fit_predict(kept, held_depth=np.asarray(held.sum(axis=1)).ravel(), seed=1)
    assert nats(found, held) - nats(Denoised(p), held) < 0.02


def test_empty_cells_and_genes_are_no_trouble():
    counts = types()[0].tolil()
    counts[[3, 40]] = 0
    counts[:, 7] = 0
    counts = sparse.csr_matrix(counts)
    for method in INSTALLED:
        p = method.fit_predict(counts, held_depth=np.ones(N_CELLS), seed=0).composition  # refuses what is not finite
        assert (p > 0).all()  # no molecule is impossible
        if isinstance(method, Raw | GlobalMean):
            np.testing.assert_allclose(p[[3, 40]], np.tile(pooled(counts), (2, 1)), rtol=1e-4)


def test_all_are_there_and_the_absent_say_why(monkeypatch):
    """Packages hidden: MAGIC and scVI are rows with a reason, and nothing else is missing."""
    monkeypatch.setitem(sys.modules, "magic", None)
    monkeypatch.setitem(sys.modules, "scvi", None)
    table = cross_validate(types()[0], baseline_denoisers(), seeds=(0,))
    reasons = table[table["value"].isna()].groupby("method")["note"].first()
    assert set(reasons.index) == {"scVI", *(f"MAGIC, {scale.name}" for scale in TRANSFORMS)}
    assert "pip install scvi-tools" in reasons["scVI"]
    assert "pip install magic-impute" in reasons["MAGIC, log"]
    assert table["method"].nunique() == 3 + 4 * len(TRANSFORMS)


# --- what they share --------------------------------------------------------------------------------------------------


class Candidates(Baseline):
    """Rates given by name; those of the truth must be found among them."""

    name = "candidates"
    settings = grid(which=("noise", "truth", "other truth"))

    def __init__(self, **rates: np.ndarray):
        self.given, self.shown = rates, []

    def rates(self, counts, settings, *, seed):
        self.shown.append((counts, list(settings)))
        for setting in settings:
            yield self.given[setting["which"]]


def test_the_setting_is_chosen_by_kept_molecules_and_refitted():
    counts, p, _ = types()
    rng = np.random.default_rng(0)
    method = Candidates(**{"noise": rng.random(p.shape), "truth": p, "other truth": p[::-1]})
    found = method.fit_predict(counts, held_depth=np.ones(N_CELLS), seed=0)
    assert found.note.startswith("which truth, floor ")
    (inner, tried), (last, refitted) = method.shown
    assert tried == list(Candidates.settings)
    assert refitted == [{"which": "truth"}]
    assert (last != counts).nnz == 0
    assert inner.sum() / counts.sum() == pytest.approx(0.9, abs=0.01)
    assert (inner > counts).nnz == 0


def test_the_floor_is_the_share_that_was_planted():
    """Cells are nine parts of their type, one part of all: given the types, the floor must be near 1/10."""
    _, p, _ = types()
    rng = np.random.default_rng(2)
    mixed = 0.9 * p + 0.1 * p.mean(axis=0)
    counts = sparse.csr_matrix(rng.poisson(3000 * mixed).astype(np.float32))
    method = Candidates(**{"noise": p[::-1], "truth": p, "other truth": p[::-1]})
    note = method.fit_predict(counts, held_depth=np.ones(N_CELLS), seed=0).note
    assert float(note.split()[-1]) in (0.05, 0.1, 0.2)
    assert max(FLOORS) < 1


def test_compositions_keep_the_totals_of_genes():
    counts, p, _ = types()
    distorted = p**1.5 * np.linspace(0.2, 4, N_GENES)  # as roots and logarithms distort
    q = to_composition(distorted, counts)
    depth = np.asarray(counts.sum(axis=1)).ravel()
    np.testing.assert_allclose(q.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(depth @ q, totals(counts), rtol=0.01)
    # rates that are right up to their total stay as they are
    alike = sparse.csr_matrix(np.rint(1e6 * p).astype(np.float32))
    np.testing.assert_allclose(to_composition(7 * p, alike), p, atol=1e-5)


def test_cells_and_genes_without_rates():
    counts = sparse.csr_matrix(np.array([[2.0, 2, 0], [0, 4, 0], [1, 1, 0]], dtype=np.float32))
    q = to_composition(np.array([[1.0, 1, 0], [0, 0, 0], [0, 0, 5]]), counts)  # the last one: on a gene nobody has
    np.testing.assert_allclose(q.sum(axis=1), 1, rtol=1e-6)
    assert np.isfinite(q).all()
    background = pooled(counts)
    np.testing.assert_allclose(background, np.array([3.5, 7.5, 0.5]) / 11.5, rtol=1e-6)
    np.testing.assert_allclose(q[2], background, rtol=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.name)
def test_transforms_lead_back_to_the_composition(transform):
    counts, _, _ = types()
    back = transform.backward(transform.forward(counts).toarray())
    observed = counts.toarray() / np.asarray(counts.sum(axis=1))
    np.testing.assert_allclose(back / back.sum(axis=1, keepdims=True), observed, atol=1e-5)
    assert (transform.backward(np.array([[-1.0, 0, 2]])) >= 0).all()


def test_transforms_are_what_they_say():
    counts, _, _ = types()
    dense = counts.toarray()
    depth = dense.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(LOG_CP10K.forward(counts).toarray(), np.log1p(1e4 * dense / depth), rtol=1e-5)
    np.testing.assert_allclose(LOG.forward(counts).toarray(), np.log1p(np.median(depth) * dense / depth), rtol=1e-5)
    np.testing.assert_allclose(SQRT.forward(counts).toarray(), np.sqrt(dense), rtol=1e-6)


def test_grid():
    assert grid(a=(1, 2), b="xy") == ({"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"})


# --- one by one -------------------------------------------------------------------------------------------------------


def test_pca_rebuilds_the_cells_at_full_rank_and_finds_the_rank():
    counts, _, _ = types()
    method = PrincipalComponents(SQRT)
    [full] = method.rates(counts, [{"rank": N_GENES - 1}], seed=0)
    root = counts.sqrt().toarray()
    centred = root - root.mean(axis=0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    for rank, rates in zip((1, 4), method.rates(counts, grid(rank=(1, 4)), seed=0), strict=True):
        expected = (u[:, :rank] * s[:rank]) @ vt[:rank] + root.mean(axis=0)
        np.testing.assert_allclose(rates, np.maximum(expected, 0) ** 2, atol=1e-3)
    assert np.abs(full - counts.toarray()).max() < np.abs(rates - counts.toarray()).max()
    # three types span two dimensions, unequal depth a third
    assert method.fit_predict(counts, held_depth=np.ones(N_CELLS), seed=0).note.split(",")[0] in ("rank 2", "rank 3")


def test_neighbours_are_those_of_brute_force():
    counts, _, kind = types()
    method = Neighbours(LOG)
    x = LOG.forward(counts).toarray().astype(np.float64)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    nearest = np.argsort(cdist(u[:, :5] * s[:5], u[:, :5] * s[:5]), axis=1)
    settings = grid(rank=(5,), k=(1, 7))
    for setting, rates in zip(settings, method.rates(counts, settings, seed=0), strict=True):
        expected = np.array([totals(counts[row[: setting["k"]]]) for row in nearest])
        assert np.mean(np.all(rates == expected, axis=1)) > 0.99  # but for ties of distance
    sizes = np.bincount(kind)
    note = method.fit_predict(counts, held_depth=np.ones(N_CELLS), seed=0).note
    assert 32 <= int(note.split(", k ")[1].split(",")[0]) <= 128 < 2 * sizes.min()  # about a type, never two


def test_alra_equals_a_loop_over_genes():
    """Written from the paper's description, gene by gene, with the quantile of numpy."""
    counts, _, _ = types()
    x = log1p_cp10k(counts)
    dense = x.toarray().astype(np.float64)
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    low = (u[:, :3] * s[:3]) @ vt[:3]
    found = restore_zeros(low, x)
    for g in range(N_GENES):
        values, seen = low[:, g].copy(), dense[:, g] > 0
        values[values <= abs(np.quantile(values, 0.001, method="nearest"))] = 0
        positive = values > 0
        if positive.sum() > 1 and seen.sum() > 1:
            a, b = values[positive], dense[seen, g]
            values[positive] = np.maximum((a - a.mean()) / a.std(ddof=1) * b.std(ddof=1) + b.mean(), 0)
        values[(values == 0) & seen] = dense[(values == 0) & seen, g]
        np.testing.assert_allclose(found[:, g], values, atol=1e-3)


def test_alra_keeps_biological_zeros():
    """Genes that a type never has stay zero in it, where plain low rank scatters around zero."""
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1], 150)
    rate = np.full((2, 40), 4.0)
    rate[0, :10] = 0
    counts = sparse.csr_matrix(rng.poisson(rate[kind]).astype(np.float32))
    [rates] = ALRA(LOG_CP10K).rates(counts, [{"rank": 2}], seed=0)
    assert (rates[kind == 0, :10] == 0).mean() > 0.9
    assert (rates[kind == 1, :10] == 0).mean() < 0.02
    u, s, vt = np.linalg.svd(log1p_cp10k(counts).toarray(), full_matrices=False)
    assert (((u[:, :2] * s[:2]) @ vt[:2])[kind == 0, :10] > 0).mean() > 0.2


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.name)
def test_magic_finds_planted_types(transform):
    pytest.importorskip("magic", reason="magic-impute is not installed")
    test_it_finds_planted_types(MAGIC(transform))


def test_scvi_rates():
    pytest.importorskip("scvi", reason="scvi-tools is not installed", exc_type=ImportError)
    counts = types()[0].tolil()
    counts[3] = 0
    counts = sparse.csr_matrix(counts)
    [rates] = SCVI().rates(counts, [{"likelihood": "poisson", "epochs": 30}], seed=0)
    np.testing.assert_allclose(np.delete(rates, 3, axis=0).sum(axis=1), 1, atol=1e-3)
    assert not rates[3].any()
    found, nothing = (
        Denoised(to_composition(rates, counts)),
        GlobalMean().fit_predict(counts, held_depth=np.ones(N_CELLS), seed=0),
    )
    assert nats(found, counts) < nats(nothing, counts)
