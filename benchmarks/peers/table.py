"""What other tools score beside scIDiff where both predicted, and what that cost them.

    python benchmarks/peers/table.py predict_runs/kang18 scGen=scgen.h5ad CellFlow=cellflow.h5ad

The folder is one of `benchmarks/predict.py --predicted ...`; the files are the predicted cells, their costs beside
them. Goes to benchmarks/results: all rows to peers_<data>.csv, to peers_<data>.md means, each tool over the units that
it predicted, and the gain of scIDiff with its paired standard error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from scidiff.benchmarking.predict_report import CEILING, CLOSED, FLOOR, IN_COUNTS, OURS, gain, means

RESULTS = Path(__file__).parents[1] / "results"
SHIFTS = ("mean shift", "similarity-weighted shift", IN_COUNTS)  # where contexts are held out
SUMS = ("perturbed mean", "matching mean", "additive")  # where combinations are


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown, figures with three decimals."""
    rows = [[table.index.name, *table.columns], ["---"] * (table.shape[1] + 1)]
    for name, *values in table.itertuples():
        rows.append([name, *("" if pd.isna(value) else f"{value:.3f}" for value in values)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cost(path: Path) -> str:
    """Return what the predicted cells cost, as a sentence."""
    rows = pd.read_csv(path.with_suffix(".costs.csv"))
    spent = f"{rows['cpu_s'].median():.0f} CPU-s a unit ({rows['cpu_s'].min():.0f} to {rows['cpu_s'].max():.0f})"
    if "train_cpu_s" in rows:
        rate = (rows["cells"] / (rows["cpu_s"] - rows["train_cpu_s"])).median()
        spent += f", {rows['train_cpu_s'].median():.0f} of them training; {rate:.0f} cells predicted per CPU-s"
    return f"{rows['tool'].iloc[0]}, {rows['settings'].iloc[0]}: {spent}, {rows['peak_mb'].max()} MB at most."


def compared(table: pd.DataFrame, tool: str) -> tuple[pd.DataFrame, str]:
    """Return mean scores over the units that both the tool and scIDiff predicted, and the gains there as one line."""
    unit = table["part"] + ", seed " + table["split"].astype(str)
    by = {name: unit[(table["method"] == name) & table["value"].notna()] for name in (tool, OURS)}
    alone = table["part"][unit.isin(by[tool]) & ~unit.isin(by[OURS])].unique()
    here = table[unit.isin(by[tool]) & unit.isin(by[OURS])]
    mean = means(here)
    gains = {metric: gain(here, metric, OURS, tool) for metric in mean}
    n = len(here[["part", "split"]].drop_duplicates())
    over = f"{n} units ({', '.join(here['part'].unique())}; {here['split'].nunique()} seeds)"
    over += f"; {', '.join(alone)} too, of which scIDiff says nothing" if len(alone) else ""
    better = [metric for metric, one in gains.items() if one["gain"] > 2 * one["se"]]
    worse = [metric for metric, one in gains.items() if one["gain"] < -2 * one["se"]]
    said = f"By twice the standard error scIDiff is better in {listed(better)}; {tool} is better in {listed(worse)}"
    line = ", ".join(f"{metric} {one['gain']:+.3f} ± {one['se']:.3f}" for metric, one in gains.items())
    simple = SHIFTS if SHIFTS[0] in mean.index else SUMS
    shown = mean.loc[[CEILING, FLOOR, *simple, CLOSED, OURS, tool]]
    return shown.rename_axis("method"), f"{over}. {said}. Gain of scIDiff in loss: {line}"


def listed(names: list[str]) -> str:
    """Return names as text."""
    return ", ".join(names) or "none"


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of benchmarks/predict.py, with results.csv")
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    args = parser.parse_args()
    table = pd.read_csv(args.folder / "results.csv", keep_default_na=False, na_values={"value": "", "seconds": ""})
    files = dict(one.split("=", 1) for one in args.files)
    table = table[table["method"].isin([CEILING, FLOOR, *SHIFTS, *SUMS, CLOSED, OURS, *files])]
    asked = table["split"][table["method"].isin(files) & table["value"].notna()].unique()
    table = table[table["split"].isin(asked)]  # other seeds are of scIDiff alone
    name = table["dataset"].iloc[0]
    table.to_csv(RESULTS / f"peers_{name}.csv", index=False, float_format="%.6g")
    text = [f"Made by `python {' '.join(['benchmarks/peers/table.py', *sys.argv[1:]])}`.\n"]
    for tool, file in files.items():
        rows, line = compared(table, tool)
        text.append(f"\n## {tool}\n\n{cost(Path(file))} Over {line}.\n\n{markdown(rows)}")
    (RESULTS / f"peers_{name}.md").write_text("".join(text))


if __name__ == "__main__":
    main()
