"""Figures show the numbers they are given, and leave matplotlib as it was."""

from __future__ import annotations

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.figure import Figure

from scidiff import plotting

matplotlib.use("Agg")


def cells(n, seed, g=40):
    rng = np.random.default_rng(seed)
    groups = rng.choice(["a", "b"], n)
    rates = np.exp(np.random.default_rng(9).normal(size=(2, g)))[(groups == "b").astype(int)]
    genes = pd.DataFrame(index=[f"G{i}" for i in range(g)])
    obs = pd.DataFrame({"kind": groups}, index=[f"cell{i}" for i in range(n)])
    return ad.AnnData(sp.csr_matrix(rng.poisson(2 * rates), dtype=np.float32), obs=obs, var=genes)


@pytest.fixture
def axes():
    """Function that makes Axes outside pyplot."""
    return lambda: Figure().subplots()


@pytest.fixture(autouse=True)
def settings_untouched():
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    plt.close("all")


def test_history_draws_both_losses_and_marks_the_lowest_held_out(axes):
    records = pd.DataFrame({"step": [0, 10, 20, 30], "loss": [4.0, 3, 2, 1], "heldout": [4.5, np.nan, 2.5, 3.5]})
    ax = plotting.history(records, ax=axes())
    training, held_out, best = ax.lines
    assert training.get_ydata().tolist() == [4, 3, 2, 1]
    assert held_out.get_xdata().tolist() == [0, 20, 30]
    assert best.get_xdata().tolist() == [20]
    assert len(plotting.history(records.drop(columns="heldout"), ax=axes()).lines) == 1


@pytest.mark.parametrize(("statistic", "value"), [("mean", np.mean), ("variance", lambda x, axis: x.var(axis, ddof=1))])
def test_gene_scatter_has_one_point_per_gene_in_log_expression(axes, statistic, value):
    real, generated = cells(60, 1), cells(50, 2)[:, ::-1].copy()
    points = plotting.gene_scatter(real, generated, statistic=statistic, ax=axes()).collections[0].get_offsets()
    logs = [np.log1p(1e4 * x / x.sum(axis=1, keepdims=True)) for x in (real.X.toarray(), generated.X.toarray())]
    np.testing.assert_allclose(points[:, 0], value(logs[0], axis=0)[::-1], rtol=1e-3)
    np.testing.assert_allclose(points[:, 1], value(logs[1], axis=0), rtol=1e-3)


def test_gene_scatter_of_one_population_lies_on_the_identity(axes):
    ax = plotting.gene_scatter(cells(60, 1), cells(60, 1), ax=axes())
    assert ax.texts[0].get_text() == "R² = 1.000"


def test_zero_fraction_states_the_share_of_zeros(axes):
    real, generated = cells(60, 1), cells(60, 2)
    generated.X = generated.X.multiply(np.arange(40) >= 20).tocsr()
    ax = plotting.zero_fraction(real, generated, ax=axes())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"{(generated.X.toarray() == 0).mean():.1%}" in labels[1]
    assert (ax.collections[1].get_offsets()[:20, 1] == 1).all()


def test_few_cells_are_drawn_in_components_and_groups_come_apart(axes):
    real, generated = cells(60, 1), cells(50, 2)
    left, right = plotting.embedding(real, generated, color="kind", ax=(axes(), axes()))
    assert left.get_xlabel() == "PC 1"
    behind, points = (right.collections[i].get_offsets() for i in (0, 1))
    assert (len(behind), len(points)) == (60, 50)
    first = points[:, 0]
    is_a = (generated.obs["kind"] == "a").to_numpy()
    gap = abs(first[is_a].mean() - first[~is_a].mean())
    assert gap > 3 * (first[is_a].std() + first[~is_a].std()) / 2
    assert {text.get_text() for text in right.get_legend().get_texts()} == {"a", "b"}


def test_categories_beyond_the_palette_are_counted(axes):
    real = cells(60, 1)
    real.obs["kind"] = [f"type {i % 11}" for i in range(60)]
    left, _ = plotting.embedding(real, real, color="kind", ax=(axes(), axes()))
    assert left.get_legend().get_texts()[-1].get_text() == "3 others"


@pytest.mark.slow
def test_umap_keeps_the_neighbourhoods_of_both_populations():
    real, generated = cells(150, 1), cells(120, 2)
    points_real, points_generated, name = plotting.common_embedding(real, generated)
    assert name == "UMAP"
    distance = np.linalg.norm(points_generated[:, None] - points_real[None], axis=2)
    nearest = real.obs["kind"].to_numpy()[distance.argmin(axis=1)]
    assert (nearest == generated.obs["kind"].to_numpy()).mean() > 0.95


def test_score_table_prints_every_number():
    scores = pd.DataFrame({"metric": ["auc", "energy"], "value": [0.538, 0.021], "ceiling": [0.519, np.nan]})
    texts = [text.get_text() for text in plotting.score_table(scores).texts]
    assert {"auc", "energy", "0.538", "0.0210", "0.519", "–"} <= set(texts)


def test_without_axes_a_figure_is_made():
    ax = plotting.history(pd.DataFrame({"step": [0, 1], "loss": [2.0, 1.0]}))
    assert ax.figure.get_size_inches()[0] > 3


def test_streamlines_follow_the_steps(axes):
    rng = np.random.default_rng(0)
    adata = cells(300, seed=0)
    adata.obsm["X_pca"] = points = rng.uniform(0, 1, (300, 2))
    ahead = (points[None, :, 0] > points[:, None, 0]) & (np.linalg.norm(points[None] - points[:, None], axis=2) < 0.3)
    steps = sp.csr_matrix(ahead + 0.1 * (np.linalg.norm(points[None] - points[:, None], axis=2) < 0.3))
    adata.obsp["T_fwd"] = sp.diags(1 / np.asarray(steps.sum(axis=1)).ravel()) @ steps
    ax = plotting.streamlines(adata, color="kind", ax=axes())
    lines = ax.collections[1].get_segments()
    dx = np.array([line[1, 0] - line[0, 0] for line in lines])
    assert np.mean(dx[dx != 0] > 0) > 0.9
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"a", "b"}


def test_gene_paths_have_bands(axes):
    paths = pd.DataFrame({"gene": list("aabb"), "at": [1, 0, 0, 1], "mean": [2.0, 1, 3, 4]})
    ax = plotting.gene_paths(paths.assign(low=paths["mean"] - 1, high=paths["mean"] + 1), ax=axes())
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, 2])
    assert len(ax.collections) == 2


def test_fate_bars(axes):
    table = pd.DataFrame({"group": ["x", "x", "y"], "end": ["A", "B", "A"], "probability": [0.3, 0.7, 1.0]})
    table[["low", "high"]] = [[0.2, 0.4], [0.6, 0.8], [1, 1]]
    ax = plotting.fate_bars(table, group="x", ax=axes())
    assert [bar.get_height() for bar in ax.patches] == [0.3, 0.7]
    table[["perturbed", "perturbed_low", "perturbed_high"]] = [[0.1, 0.1, 0.2], [0.9, 0.8, 0.9], [1, 1, 1]]
    ax = plotting.fate_bars(table, group="x", ax=axes())
    assert [bar.get_height() for bar in ax.patches] == [0.3, 0.7, 0.1, 0.9]
    with pytest.raises(ValueError, match="no group 'z'; there are x, y"):
        plotting.fate_bars(table, group="z", ax=axes())
