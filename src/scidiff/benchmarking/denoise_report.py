"""What the rows of the denoising benchmark say: the verdict, the tables, and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scidiff.benchmarking.results import Results
from scidiff.evaluation.report import Score, new_axes, write_report

OURS, OBSERVED = "scIDiff", "observed"
DRAWS, MEAN = f"{OURS}, draws", f"{OURS}, mean"
HONEST = 0.07  # false positives at a level of .05 that pass as honest

SCORES = {
    "nll_molecule": "nats per held-out molecule",
    "poisson_deviance": "Poisson deviance",
    "mse_log": "MSE of log1p",
}


def verdict(table: pd.DataFrame) -> dict[str, Any]:
    """Return whether to denoise, by any method; and what is gained by scIDiff and by the best other one. JSON values.

    Yes, where held-out molecules are predicted better than by the composition of all cells: the mean over cells of
    the difference in nats per molecule, cell by cell, is above twice its standard error. Splits share their cells, so
    the standard error is the mean of theirs.

    Parameters
    ----------
    table
        Rows of a benchmark, see :class:`scidiff.benchmarking.Results`.
    """
    rows = table[(table["part"] == "molecules") & table["metric"].isin(["gain", "gain_se"])]
    means = rows.groupby(["method", "metric"], sort=False)["value"].mean().unstack()
    if means.empty:
        return {"denoise": False, "by": {}}
    found = {
        str(method): {"gain": float(row["gain"]), "se": float(row["gain_se"]), "better": _better(row)}
        for method, row in means.sort_values("gain", ascending=False).iterrows()
    }
    best = next(iter(found))
    other = next((name for name in found if name != OURS), None)
    chosen = {name: found[name] for name in (OURS, other) if name in found}
    return {"denoise": any(one["better"] for one in found.values()), "best": best, "by": chosen}


def _better(row: pd.Series) -> bool:
    return bool(row["gain"] > 2 * row["gain_se"])


def write_page(results: Results, *, about: Mapping[str, Any]) -> None:
    """Write report.html into the folder of the results.

    Parameters
    ----------
    about
        Facts on the data, name to value.
    """
    table = results.table
    sections: list[tuple[str, Any]] = [
        ("Held-out molecules", [MOLECULES, score_table(table)]),
        ("Does denoising invent biology?", [INVENTION, invention_table(table)]),
    ]
    covered = coverage_table(table)
    if len(covered):
        from scidiff import plotting

        picture = plotting.coverage(covered, ax=new_axes(4.6, 4.2))
        named = covered.rename(columns=lambda level: f"{level} % interval" if level != "of" else level)
        sections.append(("Is the stated uncertainty true?", [CALIBRATION, named, picture]))
    failed = table[table["value"].isna()].drop_duplicates("method")
    write_report(
        results.folder / "report.html",
        title=f"Shall {results.dataset} be denoised?",
        about=about,
        summary=sentences(verdict(table)),
        warnings=[f"{row.method}: {row.note}" for row in failed.itertuples()],
        extra_sections=sections,
    )


MOLECULES = (
    "Half of the molecules of every cell are held out at random. What is kept is a shallower run of the same cell, so "
    "a good denoiser predicts what was held out, and no ground truth is needed. Every method chooses its settings on a "
    "tenth of the kept molecules; less is better everywhere. Mean over splits and, where there are several, the "
    "standard error between them."
)
INVENTION = (
    "The counts of some genes were dealt anew among cells of the same depth before anything was trained: they cannot "
    "differ between groups. The share of them that a t test still calls different at p < .05, between groups that do "
    "differ otherwise and are matched for depth, shall be 5 %; so shall that of all genes between two values of a "
    "random label that was given to training as a condition.\n\n"
    "Correlations are mean absolute values over pairs of genes, in cells that did not choose the pairs: strong pairs "
    "should gain, pairs with a gene without signal should stay at what chance gives the observed cells. Posterior "
    "draws are counts and can be tested; means are smooth, and tests of them are not valid."
)
CALIBRATION = (
    "Held-out counts against posterior draws of them: how many lie within the central intervals, for the most abundant "
    "genes and for sums over sets of genes that move together (randomised PIT, exact for integers)."
)


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Return a verdict in words."""
    if not found["by"]:
        return ["No method could be judged."]
    told = [
        f"{name}: {one['gain']:+.3f} ± {one['se']:.3f} nats per held-out molecule against the composition of all cells"
        f" ({'better' if one['better'] else 'not better'} by twice the standard error)."
        for name, one in found["by"].items()
    ]
    if found["denoise"]:
        return ["Denoise. The cells say more of each other than their average does.", *told]
    return ["Do not denoise. No method predicts molecules of a cell better than the average of all cells does.", *told]


def score_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method: each score as mean and standard error over splits, the best marked, and seconds."""
    rows = table[(table["part"] == "molecules") & table["value"].notna()]
    by_method = rows.groupby(["method", "metric"], sort=False)["value"]
    mean, error = by_method.mean().unstack(), by_method.sem().unstack()
    out = pd.DataFrame({"method": mean.index})
    for metric, title in SCORES.items():
        if metric in mean:
            best = mean[metric].min()
            numbers = zip(mean[metric], error[metric], strict=True)
            out[title] = [Score(_with_error(value, se), best=value == best) for value, se in numbers]
    out["seconds"] = [round(one, 1) for one in rows.groupby("method", sort=False)["seconds"].mean()]
    out["settings (last split)"] = list(rows.groupby("method", sort=False)["note"].last())
    return out


def invention_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method: false positives in percent and correlations; shares of at most 7 % are marked."""
    rows = table[table["part"].isin(["invention", "random label"]) & table["value"].notna()]
    wide = rows.pivot_table(index="method", columns="metric", values="value", sort=False)
    first = [name for name in (OBSERVED, DRAWS, MEAN) if name in wide.index]
    wide = wide.loc[[*first, *wide.index.difference(first, sort=False)]]
    out = pd.DataFrame({"method": wide.index})
    for metric in wide:
        share = metric.startswith("false positives")
        out[metric] = [_share(value) if share else Score(_number(value)) for value in wide[metric]]
    return out


def coverage_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return what is judged, ``of``, and the share of values, in percent, inside the interval of each level."""
    rows = table[(table["part"] == "molecules") & table["metric"].str.startswith("coverage_")]
    if rows.empty:
        return pd.DataFrame()
    level = rows["metric"].str.extract(r"coverage_(\d+), (.*)")
    means = rows.assign(level=level[0].astype(int), of=level[1]).groupby(["of", "level"], sort=False)["value"].mean()
    return (100 * means).round(1).unstack().reset_index().rename_axis(columns=None)


def _with_error(value: float, error: float) -> str:
    return _number(value, digits=4) + ("" if np.isnan(error) else f" ± {error:.4f}")


def _share(value: float) -> Score:
    return Score("–") if np.isnan(value) else Score(f"{value:.1%}", best=value <= HONEST)


def _number(value: float, *, digits: int = 3) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"
