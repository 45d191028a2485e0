"""Denoising judged on real cells: five data sets, all baselines, three splits of the molecules.

    python benchmarks/denoise.py                      # all of it, hours with scVI; goes on where it stopped
    python benchmarks/denoise.py --data kang18 --splits 1

Each data set has a folder under --out with its table, verdict and page. What all folders hold is gathered into
benchmarks/results/denoise.csv (a row per number) and denoise.md (means over splits). The 2,000 most variable genes of
each; of the pancreas the spliced counts. MAGIC and scVI need `pip install scidiff-tools[denoisers]`.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import pandas as pd
import torch

import scidiff as sd
from scidiff.benchmarking import benchmark_denoising
from scidiff.benchmarking.denoise_report import verdict
from scidiff.data.catalog import CATALOG

LAYERS = {"pancreas": "spliced"}
DATA = ("kang18", "papalexi21", "zhao21", "weinreb20", "pancreas")
RESULTS = Path(__file__).parent / "results"


def gather(folders: Path) -> pd.DataFrame:
    """Return the rows of all data sets that have been run, and write them with a summary."""
    table = pd.concat([pd.read_csv(path) for path in sorted(folders.glob("*/results.csv"))], ignore_index=True)
    table.to_csv(RESULTS / "denoise.csv", index=False, float_format="%.6g")
    text = ["Made by `python benchmarks/denoise.py`: means over the splits that have been run.\n"]
    for name, rows in table.groupby("dataset", sort=False):
        found = verdict(rows)
        best = max((one["gain"], method) for method, one in found["by"].items()) if found["by"] else (0, "")
        text.append(f"\n## {name}\n\n{'Denoise' if found['denoise'] else 'Do not denoise'}; best: {best[1]}.\n")
        for part, of_part in rows[rows["value"].notna()].groupby("part", sort=False):
            mean = of_part.pivot_table(index="method", columns="metric", values="value", sort=False)
            mean = mean.loc[:, ~mean.columns.str.endswith("_se")]
            text.append(f"\n{markdown(mean.rename_axis(index=part))}")
    (RESULTS / "denoise.md").write_text("".join(text))
    return table


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    head = "| " + " | ".join([table.index.name, *table.columns]) + " |\n" + "|---" * (table.shape[1] + 1) + "|\n"
    cells = [["" if pd.isna(value) else f"{value:.4g}" for value in row] for row in table.to_numpy()]
    return head + "".join(f"| {' | '.join([name, *row])} |\n" for name, row in zip(table.index, cells, strict=True))


def main() -> None:
    """Run what is asked for and has not been run, then gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("denoise_runs"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    args.out.mkdir(exist_ok=True)
    for name in args.data:
        print(name, flush=True)
        results = benchmark_denoising(
            sd.data.load(name),
            CATALOG[name].schema,
            out=args.out / name,
            dataset=name,
            genes=args.genes,
            layer=LAYERS.get(name),
            splits=args.splits,
            resume=True,
        )
        chosen = results.table[results.table["metric"].isin(["nll_molecule", "poisson_deviance", "mse_log"])]
        print(chosen.pivot_table(index="method", columns="metric", values="value", sort=False).round(4), flush=True)
        gather(args.out)


if __name__ == "__main__":
    main()
