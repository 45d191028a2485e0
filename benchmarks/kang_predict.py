"""Interferon in a cell type where it was never seen (Kang et al. 2018): cells, effects, and what the network adds.

    python benchmarks/kang_predict.py --seeds 3 [--types B NK]

Each of the seven cell types is held out in turn: its stimulated cells are the truth, half of its control cells are the
source of the prediction, the other half is what the truth is compared with. 2,000 genes, chosen on training cells. All
methods see the same cells and are scored by `scidiff.evaluation.evaluate_effects`; distances are in 50 components of
training cells. "closed form" is scIDiff without its network. Rows are kept as they are made: a second run goes on.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from kang_generate import markdown

import scidiff as sd
from scidiff.data.scaling import highly_variable_genes, log1p_cp10k
from scidiff.evaluation.effects import evaluate_effects
from scidiff.evaluation.shifts import SHIFTS

SCHEMA = sd.Schema(perturbation="condition", control="control", context=["cell_type"])
LEFT_OUT = ("Mk", "Megakaryocytes", "Eryth")
ASKED = {"perturbation": "IFN-beta"}
SHOWN = ["pearson_delta", "r2_de100", "r2_var", "corr_responding", "corr_r2_hvg", "energy", "mmd", "slope"]


def one_type(adata, cell_type: str, seed: int) -> list[pd.DataFrame]:
    """Return the scores of all methods for one held-out cell type and one halving of its control cells."""
    split = sd.data.holdout(adata, SCHEMA, context={"cell_type": cell_type}, perturbation="IFN-beta", seed=seed)
    chosen = highly_variable_genes(log1p_cp10k(adata[split.train].X), 2000)
    adata = adata[:, chosen].copy()
    train, source = adata[split.train].copy(), adata[split.source].copy()
    started = time.process_time()
    model = sd.ScIDiff.fit(train, SCHEMA, denoise_only=True, seed=seed)  # the part of the model that predicts
    train_s = time.process_time() - started
    methods = {
        "scIDiff": lambda: model.predict(source, ASKED, seed=seed),
        "closed form": lambda: model.predict(source, ASKED, network=False, seed=seed),
    }
    for name, shift in SHIFTS.items():
        methods[name] = lambda shift=shift: shift.fit(train, SCHEMA).predict(source, ASKED)
    tables = []
    for name, make in methods.items():
        try:
            cells = make()
        except sd.InputError as error:
            print(f"{name}: {error}")
            continue
        table = evaluate_effects(
            cells,
            adata[split.test],
            source=source,
            control=adata[split.control],
            schema=SCHEMA,
            reference=train,
            seed=seed,
        )
        table = table.assign(
            method=name, cell_type=cell_type, seed=seed, train_cpu_s=train_s if name == "scIDiff" else None
        )
        tables.append(table)
    return tables


def main() -> None:
    """Run and write benchmarks/results/kang_predict.csv (all rows) and .md (means over types and seeds)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--types", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "kang_predict.csv"
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["cell_type", "seed"])
    adata = sd.data.load("kang18")
    adata = adata[~adata.obs["cell_type"].isin(LEFT_OUT)].copy()
    for seed in range(args.seeds):
        for cell_type in args.types or sorted(adata.obs["cell_type"].unique()):
            if ((done["cell_type"] == cell_type) & (done["seed"] == seed)).any():
                continue
            done = pd.concat([done, *one_type(adata, cell_type, seed)], ignore_index=True)
            done.to_csv(path, index=False, float_format="%.5g")
            now = done[(done["cell_type"] == cell_type) & (done["seed"] == seed)]
            print(f"{cell_type}, seed {seed}\n{means(now).to_string()}", flush=True)
    text = f"Made by `python benchmarks/kang_predict.py --seeds {args.seeds}`: means over cell types and seeds.\n\n"
    (args.out / "kang_predict.md").write_text(text + markdown(means(done).rename_axis("method")))


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return method x metric, with the ceiling as a row of its own."""
    table = rows.pivot_table(index="method", columns="metric", values="value", aggfunc="mean", sort=False)
    ceiling = rows[rows["method"] == "scIDiff"].groupby("metric")["ceiling"].mean()
    return pd.concat([table, ceiling.to_frame("half against half").T])[[m for m in SHOWN if m in table]]


if __name__ == "__main__":
    main()
