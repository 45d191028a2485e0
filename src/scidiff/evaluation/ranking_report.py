"""One self-contained HTML page of a ranking: what would cause a phenotype, to be searched, sorted and looked at.

Every kind of candidate has a plot, a table and, for regulators, the genes that speak for the first of them. Plots are
drawn here as SVG, so that the page says everything without its script; the script sorts, searches and selects. Names
come from files of anybody: all text is escaped by the template, and the page lets nothing be loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scidiff.errors import InputError
from scidiff.evaluation.report import facts, write_page

#: columns that are no scores of methods
DESCRIBING = (
    "kind", "name", "rank", "consensus_rank", "direction", "se", "p_value", "fdr", "n_targets", "n_signatures", "dose",
    "dose_trend", "cells",
)  # fmt: skip
#: columns that say the same of all candidates as a rule, and then stand beneath the table
SAID_ONCE = ("direction", "source")
HEADINGS = {"perturbation": "Perturbations", "tf": "Regulators", "drug": "Drugs"}
MEANING = {
    "posterior": "chance among the perturbations of training",
    "lda": "log likelihood, empirical-Bayes discriminant analysis",
    "cosine": "cosine of effects",
    "genes": "score of the names of genes",
    "gain": "predicted mean change of the wishes' features",
    "rewired": "effect on the targets against rewired networks, in standard deviations",
    "ulm": "t-value of the regression on the targets of one regulator",
    "mlm": "t-value of the regression on all regulators at once",
    "aucell": "Welch's t of the activity in single cells",
    "in_silico": "what the other genes do in the model when the targets are moved, cosine with the effect",
    "whitened_spearman": "whitened rank correlation with the drug's signature",
    "spearman": "rank correlation with the drug's signature",
    "weighted_connectivity": "weighted connectivity score",
    "zhang": "correlation of signed ranks",
    "enrichment": "enrichment of the drug's gene sets",
    "target_set": "t-value: is what the drug inhibits down, and what it raises up?",
    "dose": "the dose most like the change asked about",
    "dose_trend": "rank correlation of dose and likeness",
    "n_signatures": "signatures of the drug",
    "n_targets": "targets that were measured",
    "consensus_rank": "order over several scores of the kind together",
    "mimic": "mimic: would cause the phenotype",
    "reverse": "reverse: would undo it",
    "se": "standard error of the gain",
    "p_value": "that noise alone has a first score as high (regulators: `ulm`)",
    "fdr": "false discovery rate, Benjamini and Hochberg",
    "known_targets": "what the drug is known to bind",
    "leading_genes": "genes that speak most for the candidate",
}
#: candidates with a name in the plot; bars of a waterfall; regulators and genes of each in the network
N_NAMED, N_BARS, N_REGULATORS, N_GENES = 8, 40, 6, 8
WIDTH, HEIGHT, MARGIN = 640.0, 340.0, 46.0
LONGEST, LETTER = 20, 10.0  # letters of a name in a plot, and the width of one on a small screen


def write_ranking(
    path: str | Path,
    table: pd.DataFrame,
    *,
    title: str = "What would cause this phenotype?",
    about: Mapping[str, Any] | None = None,
    network: pd.DataFrame | None = None,
    warnings: Sequence[str] = (),
) -> Path:
    """Write the page of a ranking to ``path`` and return it. The file appears whole or not at all.

    Parameters
    ----------
    table
        From :meth:`scidiff.ScIDiff.attribute`, :func:`scidiff.integration.rank_regulators` or
        :func:`scidiff.integration.rank_drugs`: columns ``kind``, ``name``, ``rank``, scores, and what else is known.
    title, about
        Heading of the page, and facts on the question, name to value.
    network
        The network that regulators were ranked with, for the signs of its edges.
    warnings
        Sentences that stand before the ranking.

    Raises
    ------
    InputError
        The table is no ranking, or the folder of ``path`` does not exist.
    """
    if lost := [column for column in ("kind", "name", "rank") if column not in table]:
        raise InputError(f"this is no ranking: it has no column {lost[0]!r}")
    signs = {}
    if network is not None:
        signs = dict(zip(zip(network["source"], network["target"], strict=True), network["weight"], strict=True))
    kinds = [_kind(str(kind), rows, signs) for kind, rows in table.groupby("kind", sort=False)]
    return write_page(
        path,
        "ranking.html.jinja",
        title=title,
        summary=[f"{one['heading']}: {', '.join(one['first'])}." for one in kinds],
        about=facts(about or {}),
        warnings=list(warnings),
        kinds=kinds,
    )


# ---- one kind --------------------------------------------------------------------------------------------------------


def _kind(kind: str, rows: pd.DataFrame, signs: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    """Return what the template shows of the candidates of one kind."""
    rows = _ordered(rows.dropna(axis=1, how="all").sort_values("rank", ignore_index=True))
    same = [name for name in SAID_ONCE if name in rows and len(rows) > 1 and rows[name].nunique(dropna=False) == 1]
    said = {name: MEANING.get(str(rows[name].iloc[0]), str(rows[name].iloc[0])) for name in same}
    rows = rows.drop(columns=same)
    return {
        "id": "".join(letter for letter in kind if letter.isalnum()) or "kind",
        "heading": HEADINGS.get(kind, kind),
        "first": [str(name) for name in rows["name"].head(5)],
        "columns": [_column(name, rows[name]) for name in rows if name != "kind"],
        "same": [(name, text) for name, text in said.items() if text],
        "rows": [[_cell(value) for value in row] for row in rows.drop(columns="kind").itertuples(index=False)],
        "plot": _plot(rows),
        "network": _network(rows, signs) if kind == "tf" and "leading_genes" in rows else None,
    }


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns in the order of reading: who, where, by which scores, how surely, why."""
    ends = [c for c in ("p_value", "fdr", "known_targets", "leading_genes", "source") if c in rows]
    begins = [c for c in ("kind", "name", "rank", "consensus_rank") if c in rows]
    counts = [c for c in DESCRIBING if c in rows and c not in begins and c not in ends]
    return rows[[*begins, *(c for c in rows if c not in (*begins, *counts, *ends)), *counts, *ends]]


def _column(name: str, values: pd.Series) -> dict[str, Any]:
    return {"name": name, "meaning": MEANING.get(name, ""), "number": pd.api.types.is_numeric_dtype(values)}


def _cell(value: Any) -> dict[str, Any]:
    """Return the text of a cell, and for a number what it is sorted by."""
    if isinstance(value, str):
        return {"text": value.replace(",", ", "), "value": None}
    if value is None or not np.isfinite(value):
        return {"text": "", "value": None}
    if float(value).is_integer() and abs(value) < 1e6:
        return {"text": f"{int(value)}", "value": float(value)}
    return {"text": f"{value:.3g}", "value": float(value)}


# ---- pictures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A linear scale: values from ``low`` to ``high`` are drawn from ``start`` to ``stop``."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Return places and texts of about five round numbers."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step = next(step * k for k in (1, 2, 5, 10) if (self.high - self.low) / (step * k) <= 6)
        first = math.ceil(self.low / step)
        return [(self(i * step), f"{i * step:.4g}") for i in range(first, math.floor(self.high / step) + 1)]


def score_of(rows: pd.DataFrame) -> str | None:
    """Return the first column that holds a method's scores."""
    return next((c for c in rows.select_dtypes("number") if c not in DESCRIBING and rows[c].notna().any()), None)


def _plot(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Return a volcano of score and p-value, where there are p-values, else a waterfall of the scores."""
    score = score_of(rows)
    if score is None:
        return None
    rows = rows[rows[score].notna()]
    if "p_value" in rows and rows["p_value"].notna().sum() > 2:
        return _volcano(rows[rows["p_value"].notna()], score)
    return _waterfall(rows.head(N_BARS), score)


def _volcano(rows: pd.DataFrame, score: str) -> dict[str, Any]:
    said = score.replace("_", " ")
    strength = -np.log10(np.maximum(rows["p_value"].to_numpy(float), 1e-300))
    values = rows[score].to_numpy(float)
    named = [_short(str(name)) for name in rows["name"].head(N_NAMED)]
    # room for names, on the outer side of their points
    left, right = (max([0.04, *(n * LETTER / WIDTH for n in map(len, some))]) for some in _by_side(named, values))
    wide = max(np.ptp([*values, 0.0]), 1e-9) / (1 - left - right)
    across = Axis(min(values.min(), 0) - left * wide, max(values.max(), 0) + right * wide, MARGIN, WIDTH - 14)
    up = Axis(0, max(strength.max(), 1) * 1.08, HEIGHT - MARGIN, 12)
    sure = rows["fdr"].to_numpy(float) < 0.05 if "fdr" in rows else strength > -math.log10(0.05)
    points = [
        {
            "x": across(x),
            "y": up(y),
            "name": str(name),
            "side": "up" if x > 0 else "down",
            "sure": bool(flag),
            "told": f"{name}: {score} {x:.3g}, p {p:.2g}",
        }
        for x, y, name, flag, p in zip(values, strength, rows["name"], sure, rows["p_value"], strict=True)
    ]
    return {
        "kind": "volcano",
        "points": points,
        "labels": _labels(points[:N_NAMED]),
        "x": across,
        "y": up,
        "x_name": said,
        "y_name": "−log10 p",
        "text": f"Every point is a candidate: {said} across, −log10 p up. Coloured: false discovery rate below 5 %.",
    }


def _labels(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return names on the outer side of their points, where a volcano is empty, the first points first.

    A name is moved a little from another one; where that is not enough, it is left out.
    """
    placed: list[dict[str, Any]] = []
    for point in points:
        outer = 9 if point["side"] == "up" else -9
        label = {"x": point["x"] + outer, "y": point["y"] + 4, "name": _short(point["name"]), "left": outer < 0}
        for moved in (0, 6, -6, 12, -12):
            here = label | {"y": label["y"] + moved}
            if not any(_meet(here, other) for other in placed):
                placed.append(here)
                break
    return placed


def _meet(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two names on the same side of a plot are written over one another."""
    first = other if (one["x"] > other["x"]) != one["left"] else one  # whose letters run towards the other's
    apart = abs(one["x"] - other["x"])
    return one["left"] == other["left"] and abs(one["y"] - other["y"]) < 15 and apart < len(first["name"]) * LETTER


def _by_side(names: Sequence[str], values: np.ndarray) -> tuple[list[str], list[str]]:
    """Return the names that stand left and right of their points."""
    up = values[: len(names)] > 0
    return [one for one, is_up in zip(names, up, strict=True) if not is_up], list(np.array(names)[up])


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[:4]}…{name[5 - LONGEST :]}"  # what differs is mostly at the end


def _waterfall(rows: pd.DataFrame, score: str) -> dict[str, Any]:
    values, said = rows[score].to_numpy(float), score.replace("_", " ")
    room = 0.04 * max(np.ptp(values), 1e-9)
    y = Axis(min(values.min(), 0) - room * (values.min() < 0), max(values.max(), 0) + room, HEIGHT - MARGIN, 12)
    wide = (WIDTH - 14 - MARGIN) / len(values)
    bars = [
        {
            "x": MARGIN + i * wide + 0.1 * wide,
            "width": 0.8 * wide,
            "y": min(y(value), y(0)),
            "height": max(abs(y(value) - y(0)), 0.5),
            "name": str(name),
            "side": "up" if value > 0 else "down",
            "told": f"{name}: {score} {value:.3g}",
        }
        for i, (value, name) in enumerate(zip(values, rows["name"], strict=True))
    ]
    return {
        "kind": "waterfall",
        "bars": bars,
        "y": y,
        "y_name": said,
        "text": f"The first {len(values)} candidates in the order of the table: {said}.",
    }


def _network(rows: pd.DataFrame, signs: Mapping[tuple[str, str], float]) -> dict[str, Any] | None:
    """Return the first regulators by consensus, the genes that speak for them, and the edges between them."""
    order = "consensus_rank" if "consensus_rank" in rows else "rank"
    chosen = rows.sort_values(order).head(N_REGULATORS)
    genes = {
        str(row.name_): _listed(row.leading_genes) for row in chosen.rename(columns={"name": "name_"}).itertuples()
    }
    genes = {name: some for name, some in genes.items() if some}
    if not genes:
        return None
    at = {name: i / max(len(genes) - 1, 1) for i, name in enumerate(genes)}
    places: dict[str, list[float]] = {}
    for name, some in genes.items():
        for gene in some:
            places.setdefault(gene, []).append(at[name])
    ordered = sorted(places, key=lambda gene: float(np.mean(places[gene])))  # few lines cross
    height = 22.0 * max(len(ordered), len(genes)) + 16
    lower = {gene: 19 + 22.0 * i + (height - 16 - 22.0 * len(ordered)) / 2 for i, gene in enumerate(ordered)}
    upper = {name: height * (i + 0.5) / len(genes) for i, name in enumerate(genes)}
    edges = []
    for name, some in genes.items():
        for gene in some:
            sign = signs.get((name, gene), 0.0)
            verb = "raises" if sign > 0 else "lowers" if sign < 0 else "acts on"
            side = "up" if sign > 0 else "down" if sign < 0 else ""
            edges.append(
                {"source": name, "y1": upper[name], "y2": lower[gene], "side": side, "told": f"{name} {verb} {gene}"}
            )
    return {"height": height, "regulators": upper, "genes": lower, "edges": edges, "signed": bool(signs)}


def _listed(genes: Any) -> list[str]:
    return [gene for gene in genes.split(",") if gene][:N_GENES] if isinstance(genes, str) else []
