"""One function per figure: data in, Axes out.

Every function draws into ``ax`` if given and makes its own figure otherwise. Colours are told apart by readers with
colour vision deficiency and in grey print (Okabe & Ito, 2008); real cells are grey and generated ones blue throughout.
Nothing here changes matplotlib's global settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

INK, MUTED, RULE = "#1a1a1a", "#595959", "#d4d4d4"
REAL, GENERATED, ACCENT, BEHIND = "#767676", "#0072b2", "#d55e00", "#e6e6e6"
CATEGORIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7b5e2a", "#4b2e83")

MIN_UMAP_CELLS = 100  # fewer cells have no neighbourhoods worth drawing: principal components instead
MAX_DRAWN_CELLS = 3000  # a side: enough to see the shape, few enough to lay out in seconds


def history(records: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw training and held-out loss over steps; where there are several stages, the last solid, others dashed.

    ``records``: one row per record, columns ``step``, ``loss`` and, if there are, ``heldout`` and ``stage``; NaN is
    skipped.
    """
    ax = _axes(ax)
    stages = list(records.groupby("stage", sort=False)) if "stage" in records else [("", records)]
    for i, (stage, rows) in enumerate(stages, start=1):
        to_stage = f" to {stage}" if len(stages) > 1 else ""
        style = "-" if i == len(stages) else "--"
        for column, label, colour, width in (("loss", "training", REAL, 1.0), ("heldout", "held out", GENERATED, 2.0)):
            if column in rows and rows[column].notna().any():
                line = rows[["step", column]].dropna()
                ax.plot(line["step"], line[column], style, color=colour, linewidth=width, label=label + to_stage)
        if "heldout" in rows and rows["heldout"].notna().any():
            best = rows.loc[rows["heldout"].idxmin()]
            label = f"lowest, step {int(best['step']):,}"
            ax.plot(best["step"], best["heldout"], "o", color=ACCENT, markersize=6, zorder=3, label=label)
    ax.set(xlabel="step", ylabel="loss")
    _legend(ax)
    return ax


def embedding(
    real: AnnData, generated: AnnData, *, color: str | None = None, seed: int = 0, ax: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw real cells (left) and generated ones (right) in the embedding of :func:`common_embedding`.

    Each panel shows the other population in pale grey behind its own. ``color`` names an obs column of both, whose
    eight most frequent values get a colour. ``ax``: a pair of Axes, of one figure or of two.
    """
    rng = np.random.default_rng(seed)
    real, generated = (_at_most(adata, MAX_DRAWN_CELLS, rng) for adata in (real, generated))
    points_real, points_generated, name = common_embedding(real, generated, seed=seed)
    values = [] if color is None else real.obs[color].astype(str).value_counts().index
    palette = dict(zip(values, CATEGORIES, strict=False))
    axes = _axes(None, n=2) if ax is None else ax
    panels = (
        (axes[0], "real", real, points_real, points_generated, REAL),
        (axes[1], "generated", generated, points_generated, points_real, GENERATED),
    )
    for panel, title, adata, points, behind, plain in panels:
        _axes(panel)
        colours = plain if color is None else [palette.get(v, INK) for v in adata.obs[color].astype(str)]
        panel.scatter(behind[:, 0], behind[:, 1], s=5, color=BEHIND, linewidths=0, rasterized=True)
        panel.scatter(points[:, 0], points[:, 1], s=7, c=colours, linewidths=0, alpha=0.8, rasterized=True)
        panel.set_title(f"{title} ({len(points):,} cells)", color=INK, size=10)
        panel.set(xlabel=f"{name} 1", ylabel=f"{name} 2", xticks=[], yticks=[])
        for value, colour in palette.items():
            panel.scatter([], [], s=22, color=colour, linewidths=0, label=value)
    if palette:
        for panel in axes:
            if others := len(values) - len(palette):
                panel.scatter([], [], s=22, color=INK, linewidths=0, label=f"{others} others")
            _legend(panel, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3, columnspacing=1.2)
    return axes


def common_embedding(
    real: AnnData, generated: AnnData, *, n_genes: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return coordinates of the real and of the generated cells, (n_cells, 2) each, and the name of the axes.

    Components are fitted on the real cells (log1p(CP10k), highly variable genes) and both populations are laid out
    together by UMAP, as scanpy does it; below 100 real cells the first two components are returned.
    """
    from scidiff.data.scaling import fit_pca, highly_variable_genes

    x_real, x_generated = _log_expressions(real, generated)
    hvg = highly_variable_genes(x_real, n_genes)
    pca = fit_pca(x_real[:, hvg], min(50, real.n_obs - 1, len(hvg) - 1), seed=seed)
    points, name = np.concatenate([pca.transform(x[:, hvg]) for x in (x_real, x_generated)]), "PC"
    if real.n_obs >= MIN_UMAP_CELLS:
        points, name = _umap(points, seed), "UMAP"
    return points[: real.n_obs, :2], points[real.n_obs :, :2], name


def gene_scatter(
    real: AnnData, generated: AnnData, *, statistic: Literal["mean", "variance"] = "mean", ax: Axes | None = None
) -> Axes:
    """Draw the mean or variance of every gene in log1p(CP10k), generated against real, with identity line and R2."""
    from scidiff.evaluation import metrics

    value = {"mean": metrics.gene_means, "variance": metrics.gene_variances}[statistic]
    x_real, x_generated = _log_expressions(real, generated)
    x, y = value(x_real), value(x_generated)
    ax = _axes(ax)
    top = 1.05 * max(x.max(), y.max())
    ax.plot([0, top], [0, top], color=INK, linewidth=0.8, zorder=1)
    ax.scatter(x, y, s=7, color=GENERATED, linewidths=0, alpha=0.45, rasterized=True, zorder=2)
    ax.text(0.05, 0.95, f"R² = {metrics.pearson(x, y) ** 2:.3f}", transform=ax.transAxes, va="top", color=INK)
    limits = (-0.02 * top, top)
    ax.set(xlabel=f"{statistic} in real cells", ylabel=f"{statistic} in generated cells", xlim=limits, ylim=limits)
    ax.set_aspect("equal")
    return ax


def zero_fraction(real: AnnData, generated: AnnData, *, ax: Axes | None = None) -> Axes:
    """Draw the share of cells with zero against the mean in log1p(CP10k): a point per gene and population."""
    from scidiff.evaluation import metrics

    ax = _axes(ax)
    sets = (("real", REAL, 18), ("generated", GENERATED, 4))  # small on large: both stay visible where they agree
    for (name, colour, size), x in zip(sets, _log_expressions(real, generated), strict=True):
        zeros = 1 - np.asarray((x != 0).mean(axis=0)).ravel()
        label = f"{name}, {metrics.zero_fraction(x):.1%} zeros in all"
        ax.scatter(
            metrics.gene_means(x), zeros, s=size, color=colour, linewidths=0, alpha=0.6, rasterized=True, label=label
        )
    ax.set(xlabel="mean expression of the gene", ylabel="cells with zero", ylim=(-0.03, 1.03))
    _legend(ax, markerscale=1.5)
    return ax


def coverage(covered: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the share of values inside predictive intervals against the level of the intervals; the line is the ideal.

    ``covered``: a row for each kind of value, its name in column ``of``, the other columns are levels; all in percent.
    """
    ax = _axes(ax)
    levels = np.array([column for column in covered if column != "of"], dtype=float)
    whole = np.array([0.0, 100.0])
    ax.fill_between(whole, whole - 3, whole + 3, color=BEHIND, linewidth=0, label="within 3 points")
    ax.plot(whole, whole, color=INK, linewidth=0.8)
    for (_, row), colour, marker in zip(covered.iterrows(), CATEGORIES, "osD^vPX*", strict=False):
        ax.plot(levels, row.drop("of").to_numpy(float), marker, color=colour, markersize=7, label=row["of"])
    ax.set(xlabel="level of the interval (%)", ylabel="values inside (%)", xlim=(30, 102), ylim=(30, 102))
    ax.set_aspect("equal")
    _legend(ax, loc="lower right")
    return ax


def score_table(scores: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw a table of scores: one row per metric, one column per numeric column of ``scores`` (value, ceiling, ...)."""
    columns = list(scores.select_dtypes("number").columns)
    if ax is None:
        ax = _axes(None, size=(2.2 + 1.1 * len(columns), 0.6 + 0.3 * len(scores)))
    ax.set_axis_off()
    ax.set(xlim=(0, 2 + len(columns)), ylim=(len(scores) + 0.5, -1))
    for j, column in enumerate(columns):
        ax.text(2.9 + j, -0.4, column, ha="right", va="center", color=MUTED, fontsize=9)
    for i, row in enumerate(scores.itertuples(index=False)):
        ax.text(0, i + 0.2, row.metric, va="center", color=INK, fontsize=9)
        for j, column in enumerate(columns):
            text = format_score(getattr(row, column))
            ax.text(2.9 + j, i + 0.2, text, ha="right", va="center", color=INK, fontsize=9, family="monospace")
    for y, width in ((-0.8, 1.2), (-0.1, 0.6), (len(scores), 1.2)):
        ax.axhline(y, color=INK, linewidth=width)
    return ax


def streamlines(adata: AnnData, *, basis: str = "X_pca", color: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw where cells go: the mean step of ``obsp["T_fwd"]``, as lines over the first two dimensions of ``basis``.

    ``adata``: what :meth:`scidiff.ScIDiff.velocity` returns; further embeddings of the cells may be added to ``obsm``.
    ``color`` names an obs column, whose eight most frequent values get a colour.
    """
    from scipy.ndimage import gaussian_filter

    points = np.asarray(adata.obsm[basis], dtype=float)[:, :2]
    steps = adata.obsp["T_fwd"]
    even = steps.astype(bool).astype(float)  # towards where there simply are more cells
    mean = steps @ points - np.asarray(even @ points) / np.asarray(even.sum(axis=1)).reshape(-1, 1)
    n = 40
    x, y = points.T
    edges = [np.linspace(values.min(), values.max(), n + 1) for values in (x, y)]
    number, *sums = (
        gaussian_filter(np.histogram2d(x, y, bins=edges, weights=weight)[0].T, 1)
        for weight in (None, mean[:, 0], mean[:, 1])
    )
    few = number < 0.1  # of a cell
    flow = [np.ma.masked_where(few, value / np.maximum(number, 1e-12)) for value in sums]
    ax = _axes(ax)
    values = [] if color is None else adata.obs[color].astype(str).value_counts().index
    palette = dict(zip(values, CATEGORIES, strict=False))
    colours = BEHIND if color is None else [palette.get(v, MUTED) for v in adata.obs[color].astype(str)]
    ax.scatter(x, y, s=6, c=colours, linewidths=0, alpha=0.6, rasterized=True)
    across, up = ((edge[1:] + edge[:-1]) / 2 for edge in edges)
    ax.streamplot(across, up, flow[0], flow[1], color=INK, linewidth=0.8, arrowsize=0.9, density=1.2)
    name = basis.removeprefix("X_").upper()
    ax.set(xlabel=f"{name} 1", ylabel=f"{name} 2", xticks=[], yticks=[])
    for value, colour in palette.items():
        ax.scatter([], [], s=22, color=colour, linewidths=0, label=value)
    _legend(ax, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3, columnspacing=1.2)
    return ax


def gene_paths(paths: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw genes along a path, with bands: ``paths`` has columns gene, at, mean, low and high, at most eight genes."""
    ax = _axes(ax)
    for (gene, rows), colour in zip(paths.groupby("gene", sort=False), CATEGORIES, strict=False):
        rows = rows.sort_values("at")
        ax.fill_between(rows["at"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
        ax.plot(rows["at"], rows["mean"], color=colour, linewidth=2, label=str(gene))
    ax.set(xlabel="along the path", ylabel="log1p(CP10k)")
    _legend(ax)
    return ax


def fate_bars(table: pd.DataFrame, *, group: str, ax: Axes | None = None) -> Axes:
    """Draw the probabilities of the ends of one group of cells with intervals, beside them those when perturbed.

    ``table``: ``uns["scidiff"]["fate"]`` of :meth:`scidiff.ScIDiff.fate`.
    """
    rows = table[table["group"] == group]
    if rows.empty:
        raise ValueError(f"no group {group!r}; there are {', '.join(map(str, table['group'].unique()))}")
    ax = _axes(ax)
    kinds = [("as they are", REAL, ("probability", "low", "high"))]
    if "perturbed" in rows:
        kinds.append(("perturbed", GENERATED, ("perturbed", "perturbed_low", "perturbed_high")))
    width, at = 0.8 / len(kinds), np.arange(len(rows))
    for i, (label, colour, columns) in enumerate(kinds):
        value, low, high = (rows[column].to_numpy(float) for column in columns)
        error = np.maximum([value - low, high - value], 0)
        place = at + (i - (len(kinds) - 1) / 2) * width
        ax.bar(place, value, 0.9 * width, color=colour, label=label, yerr=error, ecolor=INK, capsize=3)
    ax.set(xticks=at, xticklabels=rows["end"], ylabel=f"probability, {group}", ylim=(0, 1.02))
    _legend(ax)
    return ax


def format_score(value: float) -> str:
    """Return ``value`` with three decimals, four if it is small, and a dash for a score that is not defined."""
    if not np.isfinite(value):
        return "–"
    return (f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}").replace("-", "−")


# --- shared ---------------------------------------------------------------------------------------------------------


def _axes(ax: Axes | None, *, n: int = 1, size: tuple[float, float] | None = None):
    """Return ``ax``, or the Axes of a new figure, in the house style."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(ncols=n, figsize=size or (4.4 * n, 3.8), layout="constrained")
    for axis in np.atleast_1d(np.asarray(ax, dtype=object)):
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(MUTED)
        axis.tick_params(colors=MUTED, labelsize=9, length=3)
        axis.xaxis.label.set(color=INK, size=10)
        axis.yaxis.label.set(color=INK, size=10)
    return ax


def _legend(ax: Axes, **options) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, labels, frameon=False, fontsize=9, labelcolor=INK, handletextpad=0.4, **options)


def _log_expressions(real: AnnData, generated: AnnData):
    from scidiff.evaluation.evaluate import log_expression

    genes = [gene for gene in generated.var_names if gene in real.var_names]
    return log_expression(real, genes), log_expression(generated, genes)


def _at_most(adata: AnnData, n_cells: int, rng: np.random.Generator) -> AnnData:
    return adata if adata.n_obs <= n_cells else adata[np.sort(rng.choice(adata.n_obs, n_cells, replace=False))]


def _umap(points: np.ndarray, seed: int) -> np.ndarray:
    import warnings

    import anndata as ad
    import scanpy as sc

    layout = ad.AnnData(points.astype(np.float32))
    with warnings.catch_warnings():  # about threads and a fixed seed: a fixed seed is what is wanted
        warnings.simplefilter("ignore")
        sc.pp.neighbors(layout, use_rep="X", random_state=seed)
        sc.tl.umap(layout, random_state=seed)
    return np.asarray(layout.obsm["X_umap"])
