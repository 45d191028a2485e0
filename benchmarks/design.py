"""Interferon response designed from four genes, without its label (Kang et al. 2018); the other genes are the judge.

    python benchmarks/design.py --seeds 3

ISG15, IFI6, IFIT3 and MX1 at the level of stimulated cells, in CD4 T, CD14 Mono and B cells; see
`scidiff.benchmarking.design` for settings and scores. Goes on where it stopped; writes
benchmarks/results/design.csv and design.md.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import pandas as pd
import torch
from kang_generate import markdown

import scidiff as sd
from scidiff.benchmarking.design import benchmark_design, summary

LEFT_OUT = ("Mk", "Megakaryocytes", "Eryth")
METRICS = ("pearson_other", "slope_other", "auc", "reached", "distance")


def main() -> None:
    """Run what has not been run, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("design_run"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    adata = sd.data.load("kang18")
    adata = adata[~adata.obs["cell_type"].isin(LEFT_OUT)].copy()
    results = benchmark_design(
        adata,
        sd.Schema(perturbation="condition", control="control", context=["cell_type"]),
        out=args.out,
        dataset="kang18",
        contexts=["CD4 T", "CD14 Mono", "B"],
        targets=["ISG15", "IFI6", "IFIT3", "MX1"],
        seeds=args.seeds,
        resume=True,
    )
    results.table.to_csv(args.results / "design.csv", index=False, float_format="%.5g")
    text = [f"Made by `python benchmarks/design.py --seeds {args.seeds}`: means over seeds.\n"]
    for metric in METRICS:
        text.append(f"\n## {metric}\n\n{markdown(summary(results.table, metric))}")
    (args.results / "design.md").write_text("".join(text))
    print(pd.DataFrame(summary(results.table, "pearson_other")).round(3).to_string())


if __name__ == "__main__":
    main()
