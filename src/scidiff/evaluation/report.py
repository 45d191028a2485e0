"""One self-contained HTML page that says what was done, how well it went, and what to be careful about.

The page loads nothing: style and pictures are inside it, so it opens without network and can be sent by mail. It leads
with the score a reader should trust most, always beside the score of real cells.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scidiff._version import __version__
from scidiff.errors import InputError
from scidiff.files import whole_file

if TYPE_CHECKING:
    from anndata import AnnData

MEANING = {
    "pearson_delta": "correlation of predicted and true effect over genes",
    "r2_delta": "share of the true effect's variance that is explained",
    "mse_delta": "mean squared error of the effect",
    "slope": "size of the effect: below 1 it is too weak",
    "r2_de100": "agreement of means, 100 most changed genes",
    "de_overlap": "share of the 100 most changed genes found",
    "direction_agreement": "share of changed genes that move the right way",
    "corr_responding": "gene-gene correlation among responding genes",
    "auc": "how well a classifier tells generated from real cells",
    "knn_auc": "how well nearest neighbours tell generated from real cells",
    "energy": "energy distance of the two populations",
    "mmd": "kernel distance (MMD) of the two populations",
    "r2_var": "agreement of gene variances",
    "corr_r2_hvg": "agreement of gene-gene correlations",
    "zero_gap": "fraction of zeros, generated less real",
    "r2_mean": "agreement of gene means",
}
BEST = {"up": "higher", "0": "0", ".5": "0.5", "1": "1"}


@dataclass(frozen=True)
class Picture:
    """A drawn figure: ``source`` is a data address, ``alt`` what a reader who cannot see it must know."""

    source: str
    alt: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Score:
    """A number in words, for a table; the best ones are marked."""

    text: str
    best: bool = False


def write_report(
    path: str | Path,
    *,
    title: str,
    about: Mapping[str, Any],
    summary: Sequence[str] = (),
    history: pd.DataFrame | None = None,
    real: AnnData | None = None,
    generated: AnnData | None = None,
    color: str | None = None,
    scores: pd.DataFrame | None = None,
    baselines: Mapping[str, pd.DataFrame] | None = None,
    warnings: Sequence[str] = (),
    extra_sections: Iterable[tuple[str, Any]] = (),
) -> Path:
    """Write the page to ``path`` and return it. Parts that are not given are left out.

    The file appears whole or not at all.

    Parameters
    ----------
    path, title
        Where to write, and the heading of the page.
    about
        Facts on the data, name to value.
    summary
        Sentences to lead with.
    history
        Training records, see :func:`scidiff.plotting.history`.
    real, generated
        Cells to draw, see :func:`scidiff.plotting.embedding`.
    color
        An obs column of both; by default the first that holds a handful of categories.
    scores, baselines
        A table of :func:`scidiff.evaluation.evaluate`, and more of them by name, as further columns.
    warnings
        Sentences.
    extra_sections
        (heading, content), content a text (blank lines part paragraphs), a DataFrame (in its cells, :class:`Score` can
        mark the best), Axes, or a list of at most one of each.

    Raises
    ------
    InputError
        The folder of ``path`` does not exist.
    """
    if color is None and real is not None and generated is not None:
        color = _common_category(real, generated)
    return write_page(
        path,
        "report.html.jinja",
        title=title,
        about=facts(about),
        summary=[*summary, *([] if scores is None else _summary(scores))],
        warnings=list(warnings),
        training=None if history is None else _training_picture(history),
        cells=_cell_pictures(real, generated, color),
        score_columns=[] if scores is None else ["generated", "real v. real", *(baselines or {})],
        score_rows=[] if scores is None else _score_rows(scores, baselines or {}),
        sections=[_section(heading, content) for heading, content in extra_sections],
        provenance=facts(_provenance(generated)),
    )


def write_page(path: str | Path, template: str, /, **content: Any) -> Path:
    """Write a template of this folder, filled with ``content``, and return the path.

    All text is escaped; the file appears whole or not at all. Raises InputError where its folder does not exist.
    """
    from jinja2 import Environment, FileSystemLoader

    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    page = environment.get_template(template).render(content)
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


# --- words and numbers ----------------------------------------------------------------------------------------------


SUMMARY = {
    "pearson_delta": "The predicted effect correlates with the true one at {value:.2f} over genes; half of the real "
    "cells reach {ceiling:.2f} against the other half.",
    "auc": "A classifier tells generated from real cells with an area under the curve (AUC) of {value:.2f}; real cells "
    "from other real cells with {ceiling:.2f}. 0.5 is chance, 1 is certainty.",
}


def _summary(scores: pd.DataFrame) -> list[str]:
    """Return the one or two sentences a reader should take away."""
    rows = scores.set_index("metric")[["value", "ceiling"]].to_dict("index")
    return [sentence.format(**rows[metric]) for metric, sentence in SUMMARY.items() if metric in rows]


def _score_rows(scores: pd.DataFrame, baselines: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return one entry per metric: name, meaning, cells of text (the best method's marked), best value, note."""
    from scidiff.evaluation.evaluate import loss
    from scidiff.plotting import format_score

    others = {name: table.set_index("metric")["value"] for name, table in baselines.items()}
    rows = []
    for row in scores.itertuples(index=False):
        methods = [row.value, *(float(other.get(row.metric, np.nan)) for other in others.values())]
        losses = [loss(row.metric, value) if np.isfinite(value) else np.inf for value in methods]
        best = int(np.argmin(losses)) if len(methods) > 1 and np.isfinite(min(losses)) else None
        cells = [{"text": format_score(value), "best": i == best} for i, value in enumerate(methods)]
        cells.insert(1, {"text": format_score(row.ceiling), "best": False})
        rows.append(
            {
                "metric": row.metric,
                "meaning": MEANING.get(row.metric, ""),
                "cells": cells,
                "better": BEST[row.better],
                "note": row.note,
            }
        )
    return rows


def facts(mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values in words."""
    return [(str(name).replace("_", " "), _text(value)) for name, value in mapping.items()]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(part)}" for name, part in value.items())
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple | set):
        return ", ".join(_text(part) for part in value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def _provenance(generated: AnnData | None) -> dict[str, Any]:
    """Return what made this page: the record the cells carry, and the versions in this process."""
    import datetime
    import platform
    from importlib import metadata

    recorded = {} if generated is None else generated.uns.get("scidiff", {})
    if isinstance(recorded, str):
        recorded = json.loads(recorded)
    recorded = {k: v for k, v in recorded.items() if not isinstance(v, pd.DataFrame | np.ndarray)}
    versions = {name: metadata.version(name) for name in ("anndata", "scanpy", "scikit-learn", "torch")}
    versions = {"scidiff": __version__, **versions}
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return recorded | {"written": now, "versions": versions, "python": platform.python_version()}


def _common_category(real: AnnData, generated: AnnData) -> str | None:
    """Return the first obs column of both that holds 2 to 12 categories, if there is one."""
    for column in generated.obs:
        named = column in real.obs and not pd.api.types.is_numeric_dtype(real.obs[column])
        if named and 2 <= real.obs[column].nunique() <= 12:
            return column
    return None


def _section(heading: str, content: Any) -> dict[str, Any]:
    """Return a further section: paragraphs, a table, or a picture, by the type of ``content``, or several of them."""
    if isinstance(content, list):
        return {key: value for part in content for key, value in _section(heading, part).items()}
    if isinstance(content, pd.DataFrame):
        cells = [[v if isinstance(v, Score) else Score(_text(v)) for v in row] for row in content.to_numpy(object)]
        numeric = [
            pd.api.types.is_numeric_dtype(column) or column.map(lambda v: isinstance(v, Score)).all()
            for _, column in content.items()
        ]
        return {"heading": heading, "columns": list(content.columns), "rows": cells, "numeric": numeric}
    if isinstance(content, str):
        return {"heading": heading, "paragraphs": [part.strip() for part in content.split("\n\n") if part.strip()]}
    return {"heading": heading, "picture": Picture(_svg(content.figure), heading, "")}


# --- pictures -------------------------------------------------------------------------------------------------------


def _training_picture(history: pd.DataFrame) -> Picture:
    from scidiff import plotting

    ax = plotting.history(history, ax=new_axes(5.2, 3.2))
    if "stage" in history:
        history = history[history["stage"] == history["stage"].iloc[-1]]
    first, last = history["loss"].dropna().iloc[[0, -1]]
    steps = int(history["step"].max())
    alt = f"Training loss over {steps:,} steps, from {first:.3g} to {last:.3g}"
    if "heldout" in history and history["heldout"].notna().any():
        best = history.loc[history["heldout"].idxmin()]
        alt += f"; the held-out loss is lowest, {best['heldout']:.4g}, at step {int(best['step']):,}"
    return Picture(_svg(ax.figure), alt + ".", alt + ".")


def _cell_pictures(real: AnnData | None, generated: AnnData | None, color: str | None) -> dict[str, list[Picture]]:
    """Return the pictures of real beside generated cells and genes, empty without both."""
    if real is None or generated is None:
        return {}
    from scidiff import plotting

    pair = plotting.embedding(real, generated, color=color, ax=(new_axes(4.6, 4.9), new_axes(4.6, 4.9)))
    coloured = f", coloured by {color}" if color else ""
    populations = [
        Picture(_svg(ax.figure), f"Scatter plot of the {name} cells in the common embedding{coloured}.", "")
        for ax, name in zip(pair, ("real", "generated"), strict=True)
    ]
    genes = []
    for statistic in ("mean", "variance"):
        ax = plotting.gene_scatter(real, generated, statistic=statistic, ax=new_axes(4.4, 4.2))
        caption = f"The {statistic} of every gene, generated against real ({ax.texts[0].get_text()})."
        genes.append(Picture(_svg(ax.figure), caption, caption))
    ax = plotting.zero_fraction(real, generated, ax=new_axes(4.4, 4.2))
    shares = " and ".join(ax.get_legend_handles_labels()[1])
    caption = f"Cells in which a gene is zero against the gene's mean: {shares}."
    genes.append(Picture(_svg(ax.figure), caption, caption))
    return {"populations": populations, "genes": genes}


def new_axes(width: float, height: float):
    """Return the Axes of a new figure, in inches, that no window system and no pyplot state knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").subplots()


def _svg(figure) -> str:
    """Return ``figure`` as a data address of an SVG image (dense point clouds inside it as pixels)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=160, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
