"""Generated cells against held-out ones on real PBMC (Kang et al. 2018): quality, steps, training time, speed.

    python benchmarks/kang_generate.py --seeds 3

A random third of the cells is held out; one model of all genes is trained on the rest; one cell is generated for each
held-out cell, in its condition (cell type x stimulation), with depths drawn as in training. Scores are on the 2,000
most variable genes of the training cells, log1p(CP10k), 50 components fitted on one half of the held-out cells and
scored on the other (`scidiff.evaluation.evaluate`), averaged over five such halvings. "real" are training cells,
resampled to the same conditions. Types with fewer than 20 cells are left out.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import scidiff as sd
from scidiff.evaluation.baselines import ConditionalMultinomial, GaussianPCA

SCHEMA = sd.Schema(perturbation="condition", control="control", context=["cell_type"])
LEFT_OUT = ("Mk", "Megakaryocytes", "Eryth")
HALVINGS = 5


def score(generated, real, reference) -> pd.DataFrame:
    """Return metric x (value, ceiling), the mean of five halvings of the real cells."""
    tables = [
        sd.evaluation.evaluate(generated, real, reference=reference, schema=SCHEMA, seed=seed).set_index("metric")
        for seed in range(HALVINGS)
    ]
    return pd.concat([t[["value", "ceiling"]] for t in tables]).groupby(level=0, sort=False).mean()


def exact_auc(generated, real, genes: list[str], seed: int) -> float:
    """Return the two-sample AUC with scikit-learn's exact gradient boosting, components from half of the real cells."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    from scidiff.data import log1p_cp10k

    places = real.var_names.get_indexer(genes)
    dense = [log1p_cp10k(a.layers.get("counts", a.X))[:, places].toarray() for a in (generated, real)]
    order = np.random.default_rng(seed).permutation(real.n_obs)
    fit, scored = np.array_split(order, 2)
    pcs = PCA(50, random_state=0).fit(dense[1][fit])
    x = np.concatenate([pcs.transform(part[scored]) for part in dense])
    y = np.repeat([0, 1], len(scored))
    folds = StratifiedKFold(4, shuffle=True, random_state=seed)
    chance = cross_val_predict(GradientBoostingClassifier(random_state=seed), x, y, cv=folds, method="predict_proba")
    return roc_auc_score(y, chance[:, 1])


def figure(real, generated, path: Path) -> None:
    """Draw real beside generated cells in a common embedding, and their gene variances."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    sd.plotting.embedding(real, generated, color="cell_type", ax=(axes[0], axes[1]))
    sd.plotting.gene_scatter(real, generated, statistic="variance", ax=axes[2])
    fig.savefig(path, dpi=110)
    plt.close(fig)


def one_seed(adata, seed: int, steps: list[int], out: Path) -> list[dict]:
    """Return rows of scores of every method for one split; draw the figure for the first."""
    split = sd.data.random_split(adata, SCHEMA, fraction=1 / 3, seed=seed)
    train, real = adata[split.train].copy(), adata[split.test].copy()
    conditions = SCHEMA.table(real).reset_index(drop=True)
    rows: list[dict] = []

    started = time.perf_counter()
    model = sd.ScIDiff.fit(train, SCHEMA, seed=seed)
    seconds = time.perf_counter() - started
    last = model.history.iloc[-1]
    print(f"seed {seed}: trained in {seconds:.0f} s, {last.step:.0f} steps", flush=True)
    methods = {f"thinning, {n} steps": (lambda n=n: model.generate(1, conditions, n_steps=n, seed=seed)) for n in steps}
    methods["multinomial per condition"] = lambda: ConditionalMultinomial.fit(train, SCHEMA).generate(conditions, seed)
    methods["Gaussian in 50 PCs"] = lambda: GaussianPCA.fit(train, SCHEMA).generate(conditions, seed)
    from scidiff.data.scaling import highly_variable_genes, log1p_cp10k

    genes = list(adata.var_names[highly_variable_genes(log1p_cp10k(train.X), 2000)])
    for i, (name, make) in enumerate(methods.items()):
        started = time.perf_counter()
        cells = make()
        rate = len(conditions) / (time.perf_counter() - started)
        table = score(cells, real, train)
        if i == 0:
            if seed == 0:
                figure(real, cells, Path(__file__).parents[1] / "docs" / "figures" / "kang_generate.png")
            rows.append({"method": "real (training cells)", "seed": seed, **table["ceiling"]})
        row = {"method": name, "seed": seed, **table["value"], "cells_per_s": rate}
        if "thinning" in name:
            row |= {"train_s": seconds, "auc_exact": np.mean([exact_auc(cells, real, genes, s) for s in range(3)])}
        rows.append(row)
        print(pd.Series(rows[-1]).to_string(), flush=True)
    return rows


def main() -> None:
    """Run and write benchmarks/results/kang_generate.csv (one row per method and seed) and .md (means)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    adata = sd.data.load("kang18")
    adata = adata[~adata.obs["cell_type"].isin(LEFT_OUT)].copy()
    rows = [row for seed in range(args.seeds) for row in one_seed(adata, seed, args.steps, args.out)]
    table = pd.DataFrame(rows)
    table.to_csv(args.out / "kang_generate.csv", index=False, float_format="%.5g")
    means = table.drop(columns="seed").groupby("method", sort=False).mean()
    command = f"python benchmarks/kang_generate.py --seeds {args.seeds} --steps {' '.join(map(str, args.steps))}"
    text = f"Made by `{command}` (mean of {args.seeds} seeds).\n\n"
    (args.out / "kang_generate.md").write_text(text + markdown(means))
    print(markdown(means))


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown, numbers with three digits."""
    head = "| " + " | ".join([table.index.name or "", *table.columns]) + " |\n" + "|---" * (table.shape[1] + 1) + "|\n"
    cell = lambda v: "" if pd.isna(v) else f"{v:.3f}" if abs(v) < 10 else f"{v:.0f}"  # noqa: E731
    return head + "".join(
        f"| {name} | " + " | ".join(map(cell, row)) + " |\n"
        for name, row in zip(table.index, table.to_numpy(), strict=True)
    )


if __name__ == "__main__":
    main()
