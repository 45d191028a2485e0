"""Perturbed cells where nobody measured them, on four real data sets: scIDiff, closed forms, and what they can tell.

    python benchmarks/predict.py                              # all of it, hours; goes on where it stopped
    python benchmarks/predict.py --data kang18 --seeds 1
    python benchmarks/predict.py --fast                       # closed forms only, minutes

| data       | held out in turn            |                                                                |
|------------|-----------------------------|----------------------------------------------------------------|
| kang18     | each of 7 cell types        | interferon beta; half of its control cells to predict from     |
| norman19   | each of 15 double CRISPRa   | both parts seen alone (5), one (3), none (7); the molecules of |
|            |                             | all genes not in the file are one more gene                    |
| zhao21     | each of 5 patients          | panobinostat; cell states are found in the training cells      |
| papalexi21 | each of 3 replicates        | 25 knockouts at once: which is which (pds)?                    |

Each data set has a folder under --out with its table, verdict and page. Tables go to
benchmarks/results/predict_<data>.csv (scores of what is held out at once are averaged), means and paired differences to
predict_<data>.md. Other tools take part through files: --export writes what is held out of what, --predicted
kang18:scGen=scgen.h5ad scores their cells in the same table (benchmarks/peers).
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import scidiff as sd
from scidiff.benchmarking import benchmark_prediction, export_splits
from scidiff.benchmarking.predict_report import CEILING, CLOSED, OURS, gain, means, rivals, useless, verdict

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Task:
    """What is held out of a data set; ``keep`` and ``drop``: values of cell_type."""

    split: str
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def cells(self, name: str) -> anndata.AnnData:
        """Return the cells of the data set that take part."""
        adata = sd.data.load(name)
        if "ncounts" in adata.obs:  # few of the genes are here, but all molecules were counted: the others are one more
            adata = with_other_genes(adata)
        if self.keep:
            adata = adata[adata.obs["cell_type"].isin(self.keep)]
        return adata[~adata.obs["cell_type"].isin(self.drop)].copy() if self.drop else adata.copy()


def with_other_genes(adata: anndata.AnnData) -> anndata.AnnData:
    """Return the cells with one more gene, the molecules of all that are missing, so that CP10k means what it says."""
    counts = sparse.csr_matrix(adata.X)
    other = np.maximum(adata.obs["ncounts"].to_numpy() - np.asarray(counts.sum(axis=1)).ravel(), 0)
    x = sparse.hstack([counts, sparse.csr_matrix(other[:, None])], format="csr")
    var = pd.DataFrame(index=[*adata.var_names, "(all other genes)"])
    return anndata.AnnData(x, obs=adata.obs, var=var)


TASKS = {
    "kang18": Task("context=each", drop=("Mk", "Megakaryocytes", "Eryth")),
    "norman19": Task("combination=each", keep=("k562",)),
    "zhao21": Task("context=each", options={"states": 6}),
    "papalexi21": Task("batch=each"),
}


def write_tables(name: str, table: pd.DataFrame, *, command: str, held_out: str) -> None:
    """Write the rows, and in Markdown the means, paired differences, and what cannot tell anything."""
    keys = ["dataset", "part", "split", "method", "metric"]
    each = table.groupby(keys, sort=False).agg({"value": "mean", "seconds": "first", "note": "first"})
    each.to_csv(RESULTS / f"predict_{name}.csv", float_format="%.6g")
    mean = means(table)
    ours = OURS if OURS in mean.index else CLOSED
    text = [f"Made by `{command}`: {held_out}, mean over what was held out and seeds.\n\n"]
    text += [markdown(mean.rename_axis("method")), "\n", *(f"{one}\n" for one in verdict(table)["text"]), "\n"]
    text += [f"`{metric}` {why}.\n\n" for metric, why in useless(table).items()]
    text.append(
        f"{ours} against each: gain in the loss and its paired standard error, over (n) cases that both predict.\n\n"
    )
    rows = {
        other: {metric: "{gain:+.3f} ± {se:.3f} ({n})".format(**gain(table, metric, ours, other)) for metric in mean}
        for other in (CLOSED, *rivals(table))
        if other != ours and other in mean.index
    }
    text.append(markdown(pd.DataFrame(rows).T.rename_axis("method")))
    each = table[table["metric"].isin(["pearson_delta", "pds" if "pds" in mean else "energy"])]
    wide = each.pivot_table(index=["part", "metric"], columns="method", values="value", sort=False)
    shown = [method for method in (ours, CLOSED, *rivals(table), CEILING) if method in wide]
    wide = wide[list(dict.fromkeys(shown))]
    wide.index = pd.Index([f"{part}, {metric}" for part, metric in wide.index], name="held out")
    text += ["\nOne by one:\n\n", markdown(wide)]
    (RESULTS / f"predict_{name}.md").write_text("".join(text))


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    head = "| " + " | ".join([table.index.name, *table.columns]) + " |\n" + "|---" * (table.shape[1] + 1) + "|\n"
    cells = [[v if isinstance(v, str) else "" if pd.isna(v) else f"{v:.3f}" for v in row] for row in table.to_numpy()]
    return head + "".join(f"| {' | '.join([name, *row])} |\n" for name, row in zip(table.index, cells, strict=True))


def main() -> None:
    """Run what is asked for and has not been run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--split", help="instead of the table's, as in cell_type=B")
    parser.add_argument("--fast", action="store_true", help="no network")
    parser.add_argument("--export", type=Path, help="write what is held out, a folder per data set, and stop")
    parser.add_argument("--predicted", nargs="+", default=[], metavar="DATA:NAME=FILE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("predict_runs"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    args.out.mkdir(exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    for name in args.data:
        task, schema = TASKS[name], sd.data.schema_of(name)
        shared = {"split": args.split or task.split, "seeds": args.seeds, "genes": args.genes}
        if args.export is not None:
            args.export.mkdir(exist_ok=True)
            places = export_splits(task.cells(name), schema, folder=args.export / name, **shared)
            print(*places, sep="\n")
            continue
        files = dict(one.partition(":")[2].split("=", 1) for one in args.predicted if one.startswith(f"{name}:"))
        results = benchmark_prediction(
            task.cells(name),
            schema,
            out=args.out / (f"{name}_fast" if args.fast else name),
            dataset=name,
            predicted={tool: anndata.read_h5ad(path) for tool, path in files.items()},
            fast=args.fast,
            resume=True,
            **shared,
            **task.options,
        )
        print(name, means(results.table).round(3).to_string(), *verdict(results.table)["text"], sep="\n", flush=True)
        if args.split is None:
            command = f"python benchmarks/predict.py --data {name} --seeds {args.seeds}{' --fast' if args.fast else ''}"
            write_tables(results.folder.name, results.table, command=command, held_out=task.split)


if __name__ == "__main__":
    main()
