"""What the session answers, as HTML and SVG that follow the reader's light or dark mode.

Pictures are drawn with classes instead of colours, and all points of a population are one path: thousands of cells are
a few tens of kilobytes. Names come from files of anybody: the templates escape everything.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scidiff.plotting import format_score
from scidiff.studio.session import Map

if TYPE_CHECKING:
    from jinja2 import Environment

WIDTH, HEIGHT, MARGIN = 480.0, 400.0, 16.0
#: numbers below are written with an exponent
SMALL = 1e-3
#: the course of training: width, height, room for the numbers at the left and below
PLOT = (480.0, 210.0, 46.0, 26.0)


def style() -> str:
    """Return the style sheet of the page: that of the reports, and what controls need."""
    own = Path(__file__).with_name("studio.css").read_text()
    return files("scidiff.evaluation").joinpath("page.css").read_text() + own


def html(view: str, **content: Any) -> str:
    """Return a view of ``views.html.jinja``, filled with ``content``; all text is escaped."""
    return str(getattr(_templates().get_template("views.html.jinja").module, view)(**content))


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)


def table(rows: pd.DataFrame, *, label: str) -> str:
    """Return a table that can be scrolled by keyboard; numbers to the right."""
    numeric = [pd.api.types.is_numeric_dtype(column) for _, column in rows.items()]
    cells = [[_text(value) for value in row] for row in rows.itertuples(index=False)]
    return html("table", columns=list(rows.columns), numeric=numeric, rows=cells, label=label)


def _text(value: Any) -> str:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, float | np.floating):
        return str(value)
    number = float(value)
    return f"{number:.0e}" if 0 < abs(number) < SMALL else format_score(number)


def levels(rows: pd.DataFrame) -> str:
    """Return the table of what was wished for and what was reached, and where the levels wanted come from."""
    named = {"designed": "reached", "typical real cells": "typical here", "best real cells here": "best here"}
    shown = rows.rename(columns=named)[["wish", "wanted", *named.values()]]
    wanted = [(f"{', '.join(some['wish'])} wanted", basis) for basis, some in rows.groupby("basis", sort=False)]
    label = "Levels of the phenotype, log1p of counts per 10,000"
    return table(shown.round(2), label=label) + html("meanings", rows=wanted)


def cell_map(places: Map) -> str:
    """Return the picture of real cells, grey, and new ones, blue, with the names of contexts where these lie."""
    both = np.concatenate([places.real, places.made])
    low, high = both.min(axis=0), both.max(axis=0)
    scale = (np.array([WIDTH, HEIGHT]) - 2 * MARGIN) / np.maximum(high - low, 1e-9)

    def at(points: Any) -> np.ndarray:
        out = MARGIN + (np.asarray(points, float).reshape(-1, 2) - low) * scale
        return np.column_stack([out[:, 0], HEIGHT - out[:, 1]])

    names: list[tuple[str, float, float]] = []
    for name, place in places.names.items():
        x, y = np.clip(at(place)[0], (50, 18), (WIDTH - 50, HEIGHT - 10)).tolist()
        if all(abs(x - other[1]) > 70 or abs(y - other[2]) > 16 for other in names):  # one on another can't be read
            names.append((name, x, y))
    return html(
        "cell_map",
        real=_dots(at(places.real)),
        made=_dots(at(places.made)),
        n_real=len(places.real),
        n_made=len(places.made),
        axes=places.axes,
        names=names,
        width=WIDTH,
        height=HEIGHT,
    )


def course(stage: str, rows: pd.DataFrame) -> str:
    """Return the picture of losses over steps, and the lowest held-out loss in words."""
    width, height, left, below = PLOT
    values = rows[["loss", "heldout"]].to_numpy(float)
    low, high = np.nanmin(values), np.nanmax(values)
    steps = rows["step"].to_numpy(float)

    def x(step: Any) -> Any:
        return left + (np.asarray(step) - steps.min()) / max(np.ptp(steps), 1) * (width - left - 12)

    def y(value: Any) -> Any:
        return 12 + (high - np.asarray(value)) / max(high - low, 1e-9) * (height - below - 24)

    def line(column: str) -> str:
        known = rows[["step", column]].dropna()
        points = zip(x(known["step"]), y(known[column]), strict=True)
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points) if len(known) else ""

    best = rows.loc[rows["heldout"].idxmin()] if rows["heldout"].notna().any() else None
    return html(
        "course",
        stage=stage,
        lines={"training": line("loss"), "held out": line("heldout")},
        best=None if best is None else (float(x(best["step"])), float(y(best["heldout"]))),
        told="" if best is None else f"lowest held-out loss {best['heldout']:.4g} at step {int(best['step']):,}",
        ticks=[(float(y(value)), f"{value:.3g}") for value in (low, (low + high) / 2, high)],
        steps=[(float(x(step)), f"{int(step):,}") for step in (steps.min(), steps.max())],
        width=width,
        height=height,
    )


def _dots(points: np.ndarray) -> str:
    """Return a path of dots: lines of no length with round ends."""
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
