"""Attribution against closed forms, dense algebra and planted causes."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.special import softmax
from scipy.stats import multivariate_normal

from scidiff.errors import InputError
from scidiff.integration import attribution
from scidiff.integration.attribution import Library, Query, cosine, empirical_bayes_lda, from_genes

N_GENES = 12
GENES = [f"g{i}" for i in range(N_GENES)]
LDA = empirical_bayes_lda


def library_of(effects: np.ndarray, covariance: np.ndarray, n: float) -> Library:
    """A library of exactly known means and covariance, one batch, control at 1."""
    values, vectors = np.linalg.eigh(covariance)
    means = 1 + np.vstack([np.zeros(len(covariance)), effects])
    names = tuple(f"p{i}" for i in range(len(effects)))
    return Library(
        tuple(f"g{i}" for i in range(len(covariance))),
        names,
        means,
        np.full(len(means), float(n)),
        vectors[:, ::-1].T,
        values[::-1],
        np.diag(covariance),
    )


def correlated(rng: np.random.Generator, n_genes: int) -> np.ndarray:
    root = rng.normal(size=(n_genes, n_genes)) / np.sqrt(n_genes)
    return root @ root.T + 0.3 * np.eye(n_genes)


def screen(rng, *, n_conditions=6, n=60, batches=1, shift=0.0, effect=0.5, n_genes=N_GENES, names=None):
    """Cells of planted conditions: x, groups, batch, true effects."""
    root = np.linalg.cholesky(correlated(rng, n_genes))
    effects = np.vstack([np.zeros(n_genes), effect * rng.normal(size=(n_conditions, n_genes))])
    shifts = shift * rng.normal(size=(batches, n_genes))
    row = np.repeat(np.arange(n_conditions + 1), n)
    batch = rng.integers(0, batches, len(row))
    x = 2 + effects[row] + shifts[batch] + rng.normal(size=(len(row), n_genes)) @ root.T
    names = np.array(["control", *(names or [f"p{i}" for i in range(n_conditions)])])
    return x, names[row], batch, effects[1:]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- closed forms ----


def test_posterior_is_the_bayes_posterior_when_the_covariance_is_known(rng):
    """q and the library's means are both measured: their difference is N(0, Sigma (1/n_q + 1/n_lib))."""
    library = library_of(rng.normal(size=(5, 8)), 0.7 * np.eye(8), n=1e7)  # isotropic: K = Sigma whatever the mix
    library = replace(library, n=np.full(6, 40.0))
    library.__dict__["shrunk"] = library.profiles[1:] - 1  # a flat prior
    query = Query(library.profiles[2] + 0.2 * rng.normal(size=8), 20)
    found = LDA(library, query).set_index("name")["posterior"]
    noise = 0.7 * (1 / 20 + 1 / 40) * np.eye(8)
    logs = [multivariate_normal.logpdf(query.mean, mean, noise) for mean in library.profiles[1:]]
    np.testing.assert_allclose(found[list(library.names)], softmax(logs), atol=1e-10)


def test_score_equals_that_of_the_dense_inverse(rng):
    covariance = correlated(rng, 10)
    library = library_of(rng.normal(size=(4, 10)), covariance, n=1e9)
    k = 0.2 * covariance + 0.8 * np.trace(covariance) / 10 * np.eye(10)
    query = Query(1 + rng.normal(size=10), 50)
    gap = query.mean - library.profiles[1:]
    expected = -0.5 * np.einsum("pg,gh,ph->p", gap, np.linalg.inv(k), gap)
    np.testing.assert_allclose(LDA(library, query).set_index("name")["score"][list(library.names)], expected, 1e-6)


def test_fewer_axes_than_genes_still_invert_exactly(rng):
    covariance = correlated(rng, 10)
    library = library_of(rng.normal(size=(4, 10)), covariance, n=1e9)
    library = replace(library, axes=library.axes[:3], axis_variance=library.axis_variance[:3])
    kept = library.axes.T * library.axis_variance @ library.axes
    k = 0.2 * kept + library.floor * np.eye(10)
    x = rng.normal(size=(2, 10))
    np.testing.assert_allclose(library.whiten(x) @ library.whiten(x).T, x @ np.linalg.inv(k) @ x.T, atol=1e-10)


@pytest.mark.parametrize("most", [70, 2000])
@pytest.mark.parametrize("as_matrix", [np.asarray, sparse.csr_matrix])
def test_axes_are_those_of_the_covariance_within_groups(rng, monkeypatch, most, as_matrix):
    """Both ways to find them: from genes x genes, and, with more genes than that, from cells x cells."""
    monkeypatch.setattr(attribution, "MAX_CELLS", most)
    x, groups, *_ = screen(rng, n_conditions=2, n=20, n_genes=90)
    library = Library.of(as_matrix(x), groups, control="control", genes=[f"g{i}" for i in range(90)])
    residual = x.copy()
    halves = attribution._halves(pd.Categorical(groups).codes.astype(int), np.random.default_rng(0))
    for _, cells in pd.DataFrame({"g": groups, "h": halves}).groupby(["g", "h"]).groups.items():
        residual[cells] -= x[cells].mean(axis=0)
    expected = residual.T @ residual / (60 - 6)
    np.testing.assert_allclose(library.axes.T * library.axis_variance @ library.axes, expected, atol=1e-6)
    np.testing.assert_allclose(library.variance, np.diag(expected), atol=1e-8)


def test_pairs_are_scored_as_the_sum_of_their_effects(rng):
    library = library_of(rng.normal(size=(4, 6)), correlated(rng, 6), n=1e9)
    pairs = LDA(library, Query(library.control + rng.normal(size=6), 30), pairs=True).set_index("name")["score"]
    cos = cosine(library, Query(library.control + library.shrunk[1] + library.shrunk[3], 30), pairs=True)
    assert len(pairs) == 6
    assert cos["name"][0] == "p1+p3"
    assert cos["score"][0] == pytest.approx(1)
    query = Query(library.control + library.shrunk[0] + library.shrunk[2], 30)
    best = LDA(library, query, pairs=True)
    assert best["name"][0] == "p0+p2"
    assert best["score"][0] == pytest.approx(0, abs=1e-9)
    gap = library.whiten((query.mean - library.control - library.shrunk[1] - library.shrunk[3])[None])
    assert best.set_index("name")["score"]["p1+p3"] == pytest.approx(-0.5 * np.sum(gap**2))


# ---- what is estimated ----


def test_batches_are_removed_as_least_squares_on_cells_does(rng):
    x, groups, batch, _ = screen(rng, batches=3, shift=2.0)
    keep = ~((batch == 2) & (groups == "p1")) & ~((batch == 0) & (rng.random(len(batch)) < 0.7))  # an uneven design
    x, groups, batch = x[keep], groups[keep], batch[keep]
    library = Library.of(x, groups, control="control", genes=GENES, batch=batch)
    design = np.hstack([pd.get_dummies(groups).to_numpy(float), pd.get_dummies(batch).to_numpy(float)[:, 1:]])
    fitted = np.linalg.lstsq(design, x, rcond=None)[0]
    effects = fitted[1:7] - fitted[0]  # 'control' sorts before 'p0'
    np.testing.assert_allclose(library.profiles[1:] - library.control, effects, atol=1e-8)


def test_control_shift_is_nothing_on_one_batch_and_nearly_all_of_a_large_one(rng):
    library = library_of(rng.normal(size=(4, 60)), correlated(rng, 60), n=200)
    root = np.linalg.cholesky(library.axes.T * library.axis_variance @ library.axes)
    moved = []
    for _ in range(40):
        control = library.control + root @ rng.normal(size=60) * np.sqrt(1 / 200 + 1 / 100)
        moved.append(np.abs(library.shift(Query(control, 10, control, 100))).max() > 1e-9)
    assert np.mean(moved) < 0.3  # any of four blocks, each 2 standard deviations above its noise
    shift = rng.normal(size=60)
    control = library.control + shift + root @ rng.normal(size=60) * np.sqrt(1 / 200 + 1 / 100)
    assert np.linalg.norm(library.shift(Query(control, 10, control, 100)) - shift) < 0.25 * np.linalg.norm(shift)
    assert not library.shift(Query(control, 10)).any()


def test_shrunk_effects_are_nearer_to_the_truth_than_measured_ones(rng):
    x, groups, _, effects = screen(rng, n_conditions=30, n=20, effect=0.15)
    library = Library.of(x, groups, control="control", genes=GENES)
    measured = library.profiles[1:] - library.control
    order = [library.names.index(f"p{i}") for i in range(30)]
    raw, shrunk = (np.mean((values[order] - effects) ** 2) for values in (measured, library.shrunk))
    assert shrunk < 0.7 * raw


def test_the_gene_a_condition_is_named_after_keeps_its_change(rng):
    """Each condition lowers its own gene only: hardly any condition changes the gene, all namesakes do."""
    x, groups, *_ = screen(rng, n_conditions=12, n=40, effect=0.0, names=GENES)
    for i, gene in enumerate(GENES):
        x[groups == gene, i] -= 1.0
    named = Library.of(x, groups, control="control", genes=GENES)
    unnamed = Library.of(x, groups, control="control", genes=[f"other {gene}" for gene in GENES])
    place = [named.names.index(gene) for gene in GENES]
    own, lost = (library.shrunk[place, np.arange(12)].mean() for library in (named, unnamed))
    assert own == pytest.approx(-1.0, abs=0.12)
    assert lost > own + 0.03


def test_posterior_is_calibrated_on_fresh_queries():
    """Over libraries: the temperature of one is chosen on as few queries as it has conditions."""
    certain, right = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x, groups, _, effects = screen(rng, n_conditions=12, effect=0.12)
        library = Library.of(x, groups, control="control", genes=GENES)
        root = np.linalg.cholesky(correlated(np.random.default_rng(seed), N_GENES))
        for i in range(12):
            for _ in range(3):
                cells = 2 + effects[i] + rng.normal(size=(30, N_GENES)) @ root.T
                best = LDA(library, Query.of(cells)).iloc[0]
                certain.append(best["posterior"])
                right.append(best["name"] == f"p{i}")
    assert 0.2 < np.mean(right) < 0.9  # a task neither trivial nor hopeless
    assert abs(np.mean(certain) - np.mean(right)) < 0.07


def test_order_of_cells_and_genes_does_not_matter(rng):
    x, groups, batch, _ = screen(rng, batches=2, shift=0.5)
    query = Query.of(x[groups == "p1"][:20] + 0.3, x[groups == "control"][:20] + 0.3)
    first = LDA(Library.of(x, groups, control="control", genes=GENES, batch=batch), query)
    cells, genes = rng.permutation(len(x)), rng.permutation(N_GENES)
    names = [GENES[i] for i in genes]
    library = Library.of(x[cells][:, genes], groups[cells], control="control", genes=names, batch=batch[cells])
    second = LDA(library, Query(query.mean[genes], query.n, query.control[genes], query.control_n))
    pd.testing.assert_frame_equal(first, second, rtol=1e-6)


# ---- planted causes ----


def test_a_planted_cause_is_found_across_batches_where_cosine_is_misled(rng):
    """The query comes from a batch of its own that is far away, with few controls; effects share a large part."""
    hits = {LDA: 0, cosine: 0}
    x, groups, batch, effects = screen(rng, n_conditions=10, n=200, batches=2, shift=1.0, effect=0.25, n_genes=40)
    common = 2.0 * rng.normal(size=40)
    x[groups != "control"] += common
    library = Library.of(x, groups, control="control", genes=[f"g{i}" for i in range(40)], batch=batch)
    for i in range(10):
        shift = rng.normal(size=40)
        cells = 2 + effects[i] + common + shift + rng.normal(size=(60, 40))
        query = Query.of(cells, 2 + shift + rng.normal(size=(400, 40)))
        for method in hits:
            hits[method] += method(library, query)["name"][0] == f"p{i}"
    assert hits[LDA] >= 8
    assert hits[LDA] >= hits[cosine]


def test_an_effect_is_a_query(rng):
    library = library_of(rng.normal(size=(5, 8)), correlated(rng, 8), n=1e9)
    table = LDA(library, Query.of_effect(library.profiles[4] - 1, library))
    assert table["name"][0] == "p3"
    assert list(table.columns) == ["name", "score", "posterior"]
    assert table["score"].is_monotonic_decreasing
    assert table["posterior"].sum() == pytest.approx(1)


def test_gene_names_alone_find_a_planted_cause(rng):
    x, groups, *_ = screen(rng, n_conditions=5, n=100, effect=0.0)
    for i in range(5):
        x[groups == f"p{i}", 2 * i] += 1.0
        x[groups == f"p{i}", 2 * i + 1] -= 1.0
        x[groups == f"p{i}", 10] += 3.0  # what all do answers nothing
    library = Library.of(x, groups, control="control", genes=GENES)
    for i in range(5):
        table = from_genes(library, up=[f"g{2 * i}", "g10"], down=[f"g{2 * i + 1}"])
        assert table["name"][0] == f"p{i}"
    assert from_genes(library, up="g4")["name"][0] == "p2"


def test_what_has_no_score_is_last_and_has_no_posterior(rng):
    effects = rng.normal(size=(3, 6))
    effects[1] = 0  # the cosine with no effect is undefined
    library = library_of(effects, correlated(rng, 6), n=100)
    table = cosine(library, Query(library.control - effects[0], 10))
    assert table["name"].iloc[-1] == "p1"
    assert np.isnan(table["score"].iloc[-1])
    assert table["posterior"].iloc[-1] == 0
    nothing = cosine(library, Query(library.control, 10))  # no effect asked for: no cause is likelier than another
    assert nothing["score"].isna().all()
    np.testing.assert_allclose(nothing["posterior"], 1 / 3)


# ---- files and bad input ----


def test_a_library_survives_the_file(rng, tmp_path):
    from safetensors.numpy import load_file, save_file

    x, groups, batch, _ = screen(rng, batches=2)
    library = Library.of(x, groups, control="control", genes=GENES, batch=batch)
    arrays, about = library.to_arrays()
    save_file(arrays, tmp_path / "library.safetensors")
    again = Library.from_arrays(load_file(tmp_path / "library.safetensors"), about)
    query = Query.of(x[groups == "p2"], x[groups == "control"])
    pd.testing.assert_frame_equal(LDA(library, query), LDA(again, query), rtol=1e-3)


def test_leaving_out_a_batch_is_as_if_it_had_not_been_measured(rng):
    """Temperatures come from libraries of the other batches, made from sums; p3 was measured in batch 1 alone."""
    x, groups, batch, _ = screen(rng, batches=4, shift=1.0)
    keep = (groups != "p3") | (batch == 1)
    x, groups, batch = x[keep], groups[keep], batch[keep]
    names = sorted(set(groups))  # control first
    cells = attribution._Cells(x, batch, np.searchsorted(names, groups), True)
    sums, *_ = attribution._moments(cells, rng)
    for fold in range(4):
        others = batch != fold
        library = Library.of(x[others], groups[others], control="control", genes=GENES, batch=batch[others])
        assert ("p3" in library.names) == (fold != 1)
        found = sums.without(fold, *cells.sums(fold)).profiles()
        np.testing.assert_allclose(found, library.profiles, atol=1e-10)


def test_memory_holds_no_mean_of_every_batch_and_condition(rng):
    n_genes, row, batch = 300, np.tile(np.arange(40), 120), np.repeat(np.arange(60), 80)
    x = sparse.random(len(row), n_genes, density=0.05, format="csr", random_state=0)
    groups = np.where(row == 0, "control", np.char.add("p", row.astype(str)))
    tracemalloc.start()
    Library.of(x, groups, control="control", genes=[f"g{i}" for i in range(n_genes)], batch=batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * 40 * n_genes * 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"control": "ctrl"}, "no cell is 'ctrl'.*; "),
        ({"genes": GENES[:-1]}, "11 genes for .* one name for each gene"),
        ({"groups": ["control"] * 5}, "5 groups"),
        ({"batch": ["a"]}, "one group .and batch. for each cell"),
        ({"x": np.nan}, "not finite"),
        ({"groups": None}, "at least two"),
    ],
)
def test_cells_that_make_no_library(rng, change, words):
    x, groups, *_ = screen(rng, n=5)
    given = {"x": x, "groups": groups, "control": "control", "genes": GENES}
    if "x" in change:
        change = {"x": np.where(np.arange(len(x))[:, None] == 3, np.nan, x)}
    if change.get("groups", "") is None:
        change = {"groups": np.where(groups == "control", "control", "p0")}
    given |= change
    with pytest.raises(InputError, match=words):
        Library.of(given.pop("x"), given.pop("groups"), **given)


def test_one_cell_per_condition_is_no_library(rng):
    with pytest.raises(InputError, match="several"):
        Library.of(rng.normal(size=(3, 4)), ["control", "a", "b"], control="control", genes=list("wxyz"))


def test_bad_queries(rng):
    library = library_of(rng.normal(size=(3, 6)), correlated(rng, 6), n=100)
    for call, words in [
        (lambda: LDA(library, Query(np.zeros(5), 10)), "the query has shape .5,.; the library has 6 genes"),
        (lambda: LDA(library, Query(np.zeros(6), 10, np.zeros(5), 10)), "control of the query"),
        (lambda: Query.of_effect(np.zeros(5), library), "an effect has shape"),
        (lambda: Query(np.full(6, np.nan), 10), "not finite"),
        (lambda: Query(np.zeros(6), 0), "at least one cell"),
        (lambda: Query.of(np.zeros((0, 6))), "at least one cell"),
        (lambda: from_genes(library, up=["gg5"]), "'gg5' is not in the library; nearest: 'g5'"),
        (lambda: from_genes(library, up=["g1"], down=["g1"]), "both up and down"),
        (lambda: from_genes(library), "no gene is asked for"),
        (lambda: LDA(replace(library, names=("a+b", "c+d", "e")), Query(np.zeros(6), 9), pairs=True), "at least two"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
