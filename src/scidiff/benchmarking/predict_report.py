"""What the rows of the prediction benchmark say: who is better by how much, the tables, and the page that shows them.

A *case* is one held-out condition of one unit, its scores averaged over seeds. Methods are compared case by case::

    gain = mean over cases of (loss of the other method - own loss)        its standard error: that of this mean

with the loss of :func:`scidiff.evaluation.evaluate.loss`, so that more is better for every metric. With a single case
the standard error is that over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scidiff.benchmarking.results import MISSING, REFUSED, Results
from scidiff.evaluation.effects import METRICS, MIN_RANGE
from scidiff.evaluation.evaluate import BETTER, loss
from scidiff.evaluation.report import Score, new_axes, write_report
from scidiff.plotting import ACCENT, CATEGORIES, GENERATED, MUTED, REAL, format_score

OURS, CLOSED, ORACLE = "scIDiff", "closed form", "true mean"
ALONE = "scIDiff, the network's mean"
LARGE = "as observed"
IN_COUNTS = "similarity-weighted shift, in counts"
CEILING, FLOOR = "half of the real cells", "no change, half v. half"
CASE = ["part", "condition"]
#: scores that come first, wide tables being hard to read; the others have a table of their own
FIRST = ("pearson_delta", "pearson_delta_systema", "slope", "r2_de100", "pds", "r2_var", "corr_r2_hvg", "energy", "mmd")
PLOTTED = ("pearson_delta", "energy")
MAX_DRAWN = 40  # cases of a figure; beyond, units


def cases(table: pd.DataFrame) -> pd.DataFrame:
    """Return scores averaged over seeds: index unit, condition and method; columns metrics, in the order of tables.

    Parameters
    ----------
    table
        Rows of a benchmark, see :func:`scidiff.benchmarking.benchmark_prediction`.
    """
    rows = table[table["metric"].isin(METRICS)]
    wide = rows.pivot_table(index=[*CASE, "method"], columns="metric", values="value", sort=False, dropna=False)
    wide = wide[wide.index.isin(pd.MultiIndex.from_frame(rows[[*CASE, "method"]]))]
    return wide[[name for name in METRICS if name in wide]]


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean scores over the cases that a method defines: a row per method, a column per metric."""
    return cases(table).groupby("method", sort=False).mean()


def gain(table: pd.DataFrame, metric: str, method: str, other: str) -> dict[str, float]:
    """Return ``gain`` of ``method`` over ``other`` and its standard error ``se``; the head of this module says how.

    Also the number ``n`` of cases that both define, and over those the mean scores ``own`` and ``others``.
    """
    rows = table[(table["metric"] == metric) & table["method"].isin([method, other])]
    each = rows.pivot_table(index=[*CASE, "split"], columns="method", values="value", sort=False)
    if not {method, other} <= set(each):
        return {"gain": np.nan, "se": np.nan, "n": 0, "own": np.nan, "others": np.nan}
    each = each.dropna()
    scores = each.groupby(level=CASE, sort=False).mean().mean()
    gains = loss(metric, each[other]) - loss(metric, each[method])
    by_case = gains.groupby(level=CASE, sort=False).mean()
    spread = by_case if len(by_case) > 1 else gains
    means = {"own": float(scores[method]), "others": float(scores[other])}
    return {"gain": float(by_case.mean()), "se": float(spread.sem()), "n": len(by_case)} | means


def useless(table: pd.DataFrame) -> dict[str, str]:
    """Return the metrics that tell nothing on these data, and why.

    Those in which half of the real cells are not better than no change by twice the standard error, or by less than a
    fifth of the way from there to a perfect score. Of a single case, what the evaluator notes of it.
    """
    out = {}
    for metric in (name for name in METRICS if name in cases(table)):
        one = gain(table, metric, CEILING, FLOOR)
        of_ceiling = table[(table["method"] == CEILING) & (table["metric"] == metric)]
        silent = bool((of_ceiling["note"] != "").any())
        if one["n"] > 1:
            perfect = loss(metric, 1.0 if BETTER[metric] == "up" else float(BETTER[metric]))
            silent = not one["gain"] > max(2 * one["se"], MIN_RANGE * (loss(metric, one["others"]) - perfect))
        if silent:
            scores = f"half of the real cells {_score(one['own'])}, no change {_score(one['others'])}"
            out[metric] = f"cannot tell anything on this data: {scores} (difference ± {_number(one['se'])})"
    return out


def rivals(table: pd.DataFrame) -> list[str]:
    """Return the methods that are neither ours nor limits."""
    names = table.loc[table["metric"].isin(METRICS), "method"].unique()
    return [n for n in names if n not in (OURS, ALONE, CLOSED, CEILING, FLOOR) and not n.endswith((ORACLE, LARGE))]


def verdict(table: pd.DataFrame) -> dict[str, Any]:
    """Return for every metric how scIDiff compares with its closed form and with the best other method. JSON values.

    ``method``: "scIDiff", or its closed form where no network was trained. ``better``: the gain is above twice its
    standard error; ``worse``: below minus that. The best other method is the one with the least mean loss among those
    that define every case.

    Parameters
    ----------
    table
        Rows of a benchmark.
    """
    wide = cases(table)
    names = wide.index.get_level_values("method").unique()
    ours = next((name for name in (OURS, CLOSED) if name in names), None)
    if ours is None:
        return {"method": None, "by": {}, "text": ["scIDiff could not predict anything that was held out."]}
    mean, silent, found = means(table), useless(table), {}
    for metric in wide:
        losses = {name: _mean_loss(wide, metric, name) for name in rivals(table)}
        best = min(losses, key=lambda name: losses[name], default=None)
        one: dict[str, Any] = {"value": mean.loc[ours, metric], "ceiling": mean.loc[CEILING, metric]}
        for role, other in (("best other", best), ("closed form", CLOSED if ours != CLOSED else None)):
            if other is not None and other in mean.index and np.isfinite(losses.get(other, 0)):
                paired = gain(table, metric, ours, other)
                sign = {"better": paired["gain"] > 2 * paired["se"], "worse": paired["gain"] < -2 * paired["se"]}
                one[role] = {"method": other} | paired | sign
        found[str(metric)] = one | ({"note": silent[metric]} if metric in silent else {})
    plain = _plain({"method": ours, "by": found})
    return plain | {"text": sentences(plain)}


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Return a verdict in words."""
    told = {metric: one for metric, one in found["by"].items() if "note" not in one and "best other" in one}
    better = [metric for metric, one in told.items() if one["best other"]["better"]]
    worse = [metric for metric, one in told.items() if one["best other"]["worse"]]
    ours = found["method"]
    out = [
        f"Of {len(told)} scores that can tell anything here, {ours} is better than the best other method in "
        f"{len(better)}, worse in {len(worse)} (by twice the standard error)."
    ]
    if told and all(one["best other"]["se"] is None for one in told.values()):
        out = ["One condition of one split: there is no telling which differences are more than chance. Ask for seeds."]
    for metric in ("pearson_delta", "energy", "pds"):
        if metric in told:
            one, other = told[metric], told[metric]["best other"]
            values = f"{ours} {_score(other['own'])}, {other['method']} {_score(other['others'])}"
            paired = f"gain {_number(other['gain'], '+.3f')} ± {_number(other['se'])}"
            out.append(f"{metric}: {values}, {paired}; half of the real cells {_score(one['ceiling'])}.")
    return out


# ---- the page --------------------------------------------------------------------------------------------------------


def write_page(results: Results, *, about: Mapping[str, Any], skipped: Mapping[str, str]) -> None:
    """Write report.html into the folder of the results.

    Parameters
    ----------
    about
        Facts on the data, name to value.
    skipped
        Units that were not judged, and why.
    """
    table = results.table
    found = verdict(table)
    silent = useless(table)
    sections: list[tuple[str, Any]] = [("All methods", [METHODS, method_table(table, FIRST)])]
    if silent:
        rows = pd.DataFrame({"score": list(silent), "why": list(silent.values())})
        sections.append(("Scores that cannot tell anything here", rows))
    if found["method"] is not None:
        sections.append((f"{found['method']} against each of them", [GAINS, gain_table(table, found["method"], FIRST)]))
        if any(name.endswith(ORACLE) for name in means(table).index):
            sections.append(("Error of the mean, error of shape", [SHAPE, shape_table(table, FIRST)]))
        for metric in PLOTTED:
            parts = [case_table(table, metric, found), case_plot(table, metric, found)]
            sections.append((f"{metric}, one by one", parts))
    sections.append(("All methods, further scores", method_table(table, [m for m in METRICS if m not in FIRST])))
    failed = table[table["metric"].isin([MISSING, REFUSED])].groupby("method", sort=False)
    write_report(
        results.folder / "report.html",
        title=f"Who predicts {results.dataset} best?",
        about=about,
        summary=found["text"],
        warnings=[
            *(f"{unit} is not judged: {why}" for unit, why in skipped.items()),
            *(f"{method}: {_refused(rows)}" for method, rows in failed),
        ],
        extra_sections=sections,
    )


METHODS = (
    "Means over what was held out. Control cells that predictions start from and those that real cells are compared "
    "with are different cells. The first two rows say what a score means: one half of the real cells in the place of a "
    "prediction (made of half the cells, so a score may pass it), and no change at all. Rows with the true mean are "
    "told the answer's mean and are no methods. The best method is marked, among those that predict every case; "
    "methods that are the same here share a row."
)
GAINS = (
    "Gain: by how much the loss is smaller (above 0: better), mean over cases and its standard error, case by case. "
    "Marked where it is above twice the standard error."
)
SHAPE = (
    "The same cells, told the true mean of every gene: what these rows lose is error of shape, how genes vary and vary "
    "together; what the others lose beyond it is error of the mean. It is the mean of the very cells they are compared "
    'with, noise included, so distances may fall below 0. "The network\'s mean": the closed form has no say.'
)


def method_table(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return a row per method: mean of each score, the best marked; how many cases it predicts, and seconds of each."""
    wide = cases(table)
    mean = means(table)[[name for name in metrics if name in wide]]
    n_cases = wide.groupby("method").size()
    complete = wide.notna().groupby("method").sum().eq(n_cases.max())
    own = [name for name in (OURS, CLOSED) if name in mean.index]
    judged = [*own, *rivals(table)]
    first = [name for name in (CEILING, FLOOR) if name in mean.index]
    shown = mean.loc[[*first, *(name for name in mean.index if name not in first)]]
    best = {}
    for metric in mean:
        losses = [_mean_loss(wide, metric, name) if complete.loc[name, metric] else np.inf for name in judged]
        best[metric] = {name for name, one in zip(judged, losses, strict=True) if one == min(losses) and one < np.inf}
    seconds = table[table["metric"].isin(METRICS)].groupby(["method", "part", "split"])["seconds"].first()
    rows = []
    for names in _same(shown):
        name = names[0]
        scores = {m: Score(format_score(shown.loc[name, m]), best=bool(best[m] & set(names))) for m in shown}
        known = name not in (CEILING, FLOOR)
        about = {
            "cases": int(wide.xs(name, level="method").notna().any(axis=1).sum()),
            "seconds": f"{seconds[name].mean():.1f}" if known else "",
        }
        rows.append({"method": _joined(names)} | scores | about)
    return pd.DataFrame(rows)


def gain_table(table: pd.DataFrame, ours: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Return a row per other method: gain over it and standard error for each score."""
    others = [name for name in (CLOSED, *rivals(table)) if name != ours and name in means(table).index]
    rows = []
    for names in _same(means(table).loc[others]):
        row: dict[str, Any] = {"method": _joined(names)}
        for metric in (name for name in metrics if name in means(table)):
            one = gain(table, metric, ours, names[0])
            text = f"{_number(one['gain'], '+.3f')} ± {_number(one['se'])}" if np.isfinite(one["gain"]) else "–"
            row[metric] = Score(text.replace("-", "−"), best=bool(one["gain"] > 2 * one["se"]))
        rows.append(row)
    return pd.DataFrame(rows)


def shape_table(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return the scores of cells of our own, with and without the true means, and of half of the real cells."""
    mean = means(table)
    rows = (OURS, f"{OURS}, {ORACLE}", CLOSED, f"{CLOSED}, {ORACLE}", ALONE, CEILING)
    names = [name for name in rows if name in mean.index]
    shown = mean.loc[names, [name for name in metrics if name in mean]].map(lambda value: Score(format_score(value)))
    shown.index = pd.Index([_joined([name]) for name in names], name="method")
    return shown.reset_index()


def case_table(table: pd.DataFrame, metric: str, found: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row per case, and their mean without the worst one: ours, closed form, best others, the limits."""
    values = _by_case(table, metric)[_compared(table, metric, found)]
    ours = found["method"]
    if len(values) > 2 and values[ours].notna().any():
        worst = loss(metric, values[ours]).idxmax()
        values.loc[f"mean without {worst}"] = values.drop(index=worst).mean()
    return values.map(lambda value: Score(format_score(value))).rename_axis("held out").reset_index()


def case_plot(table: pd.DataFrame, metric: str, found: Mapping[str, Any]):
    """Draw every case: a dot per method, and the ceiling as a line."""
    values = _by_case(table, metric)[_compared(table, metric, found)]
    ax = new_axes(7.2, 1.2 + 0.28 * len(values))
    at = np.arange(len(values))
    colours = {OURS: GENERATED, CLOSED: ACCENT, FLOOR: MUTED}
    others = iter(CATEGORIES[1:])
    for name in values:
        if name == CEILING:
            ax.plot(values[name], at, "|", color=REAL, markersize=13, markeredgewidth=2, label=name)
        else:
            colour = colours.get(name) or next(others)
            ax.plot(values[name], at, "x" if name == FLOOR else "o", color=colour, markersize=6, alpha=0.85, label=name)
    ax.set(yticks=at, yticklabels=values.index, xlabel=metric, ylim=(len(values) - 0.5, -0.5))
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return ax


# ---- parts -----------------------------------------------------------------------------------------------------------


def _compared(table: pd.DataFrame, metric: str, found: Mapping[str, Any], n: int = 2) -> list[str]:
    """The columns of a comparison: ours, the closed form, the ``n`` best others, the limits."""
    wide = cases(table)
    others = sorted(rivals(table), key=lambda name: _mean_loss(wide, metric, name))[:n]
    known = set(wide.index.get_level_values("method"))
    return [n for n in dict.fromkeys((found["method"], CLOSED, *others, CEILING, FLOOR)) if n in known]


def _by_case(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Scores of all methods, a row per case; per unit where there are too many cases to draw."""
    values = cases(table)[metric].unstack("method", sort=False)
    if len(values) > MAX_DRAWN:
        return values.groupby(level="part", sort=False).mean()
    alone = values.index.get_level_values("part").value_counts().eq(1)
    values.index = pd.Index([part if alone[part] else f"{part}: {condition}" for part, condition in values.index])
    return values


def _mean_loss(wide: pd.DataFrame, metric: str, method: str) -> float:
    """Mean loss over all cases, infinite where one is undefined: a method cannot win by saying nothing."""
    values = wide[metric].unstack("method", sort=False)
    if metric not in BETTER or method not in values:
        return np.inf
    return float(loss(metric, values[method]).mean(skipna=False)) if values[method].notna().all() else np.inf


def _same(rows: pd.DataFrame) -> list[list[str]]:
    """The methods in order, those with the same scores together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, row in rows.iterrows():
        groups.setdefault(tuple(f"{value:.5g}" for value in row), []).append(str(name))
    return list(groups.values())


def _refused(rows: pd.DataFrame) -> str:
    """Why a method predicted nothing, in the first unit, and how many more there were."""
    more = f" (and {len(rows) - 1} more of its kind)" if len(rows) > 1 else ""
    return f"{rows['part'].iloc[0]} is not predicted{more}: {rows['note'].iloc[0]}"


def _joined(names: Sequence[str]) -> str:
    """Names of methods for a narrow column, broken between them only."""
    return " = ".join(name.replace(" ", "\u00a0") for name in names)


def _number(value: float | None, style: str = ".3f") -> str:
    return "–" if value is None or np.isnan(value) else format(value, style)


def _score(value: float | None) -> str:
    return "–" if value is None else format_score(value)


def _plain(value: Any) -> Any:
    """JSON values; what is undefined as null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
