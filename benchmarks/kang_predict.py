"""Interferon in a cell type where it was never seen (Kang et al. 2018): cells, effects, and what each part adds.

    python benchmarks/kang_predict.py --seeds 3 [--types B NK]
    python benchmarks/kang_predict.py --gains

Each of the seven cell types is held out in turn: its stimulated cells are the truth, half of its control cells are the
source of the prediction, the other half is what the truth is compared with. 2,000 genes, chosen on training cells. All
methods see the same cells and are scored by `scidiff.evaluation.evaluate_effects`; distances are in 50 components of
training cells; `knn_auc` is how well 10 nearest neighbours there tell predicted from real cells (best .5). Rows are
kept as they are made: a second run goes on. What is taken away from the model:

    closed form          the network: new molecules are dealt by depth alone
    Gaussian process     also the second opinion
    process, network     the second opinion, not the network
    told the mean        nothing; the true mean is the target, so that only the shape of the population can be wrong

`--gains` shows how cells spread that the network deals molecules to with more and less trust in what it sees of them:
training cells of the four largest types, predicted from their controls, told their true means.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from kang_generate import markdown
from scipy import sparse

import scidiff as sd
from scidiff.data.scaling import fit_pca, highly_variable_genes, log1p_cp10k
from scidiff.evaluation import metrics
from scidiff.evaluation.effects import evaluate_effects
from scidiff.evaluation.shifts import SHIFTS
from scidiff.evaluation.spread import Spread
from scidiff.models.opinion import Opinion
from scidiff.tasks import predict as task

SCHEMA = sd.Schema(perturbation="condition", control="control", context=["cell_type"])
LEFT_OUT = ("Mk", "Megakaryocytes", "Eryth")
ASKED = {"perturbation": "IFN-beta"}
SHOWN = ["pearson_delta", "r2_de100", "r2_var", "corr_responding", "corr_r2_hvg", "energy", "mmd", "knn_auc", "slope"]
GAINS = (1.0, 1.25, 1.5, 1.75, 2.0)


def kang() -> AnnData:
    """Return the cells of the seven types."""
    adata = sd.data.load("kang18")
    return adata[~adata.obs["cell_type"].isin(LEFT_OUT)].copy()


def one_type(adata: AnnData, cell_type: str, seed: int) -> list[pd.DataFrame]:
    """Return the scores of all methods for one held-out cell type and one halving of its control cells."""
    split = sd.data.holdout(adata, SCHEMA, context={"cell_type": cell_type}, perturbation="IFN-beta", seed=seed)
    chosen = highly_variable_genes(log1p_cp10k(adata[split.train].X), 2000)
    adata = adata[:, chosen].copy()
    train, source, test = (adata[cells].copy() for cells in (split.train, split.source, split.test))
    started = time.process_time()
    model = sd.ScIDiff.fit(train, SCHEMA, denoise_only=True, seed=seed)  # the part of the model that predicts
    train_s = time.process_time() - started
    methods = {
        "scIDiff": lambda: model.predict(source, ASKED, seed=seed),
        "closed form": lambda: model.predict(source, ASKED, network=False, seed=seed),
        "Gaussian process": lambda: one_opinion(model, source, network=False, seed=seed),
        "process, network": lambda: one_opinion(model, source, seed=seed),
        "told the mean": lambda: told_the_mean(model, source, test, seed=seed),
        "told the mean, closed form": lambda: told_the_mean(model, source, test, network=False, seed=seed),
    }
    for name, shift in SHIFTS.items():
        methods[name] = lambda shift=shift: shift.fit(train, SCHEMA).predict(source, ASKED)
    others = train[~train.obs_names.isin(source.obs_names)]
    pca = fit_pca(log1p_cp10k(others.X), 50, seed=seed)
    tables = []
    for name, make in methods.items():
        try:
            cells = make()
        except sd.InputError as error:
            print(f"{name}: {error}")
            continue
        table = evaluate_effects(
            cells, test, source=source, control=adata[split.control], schema=SCHEMA, reference=train, seed=seed
        )
        auc = knn_auc(pca.transform(cells.X), pca.transform(log1p_cp10k(test.X)), seed=seed)
        row = table.iloc[:1].assign(
            metric="knn_auc", value=auc, ceiling=0.5, floor=np.nan, better="0.5", loss=auc - 0.5
        )
        table = pd.concat([table, row.assign(note="")], ignore_index=True)
        table = table.assign(
            method=name, cell_type=cell_type, seed=seed, train_cpu_s=train_s if name == "scIDiff" else None
        )
        tables.append(table)
    return tables


def one_opinion(model: sd.ScIDiff, source: AnnData, **how) -> AnnData:
    """Return cells predicted by the Gaussian process without a second opinion."""
    with patch.object(task, "second_opinion", lambda effects: Opinion()):
        return model.predict(source, ASKED, **how)


def told_the_mean(model: sd.ScIDiff, source: AnnData, real: AnnData, *, network: bool = True, seed: int = 0) -> AnnData:
    """Return cells as the model would predict them if it knew the mean and the depth of the real ones."""
    x, true = sparse.csr_matrix(source.X), sparse.csr_matrix(real.X)
    effect = metrics.effect(log1p_cp10k(true), log1p_cp10k(x))
    ratio = (true.sum() / true.shape[0]) / (x.sum() / x.shape[0])
    after = SCHEMA.table(source).assign(**ASKED)
    counts = task.counts_under(model, x, after, effect, depth_ratio=ratio, network=network, seed=seed)
    obs = source.obs.assign(condition=ASKED["perturbation"])
    return AnnData(log1p_cp10k(counts), obs=obs, var=source.var[[]], layers={"counts": counts})


def knn_auc(predicted: np.ndarray, real: np.ndarray, *, seed: int) -> float:
    """Return how well the 10 nearest neighbours tell predicted from real cells; .5: not at all."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    n, rng = min(len(predicted), len(real)), np.random.default_rng(seed)
    cells = np.concatenate([rng.permutation(predicted)[:n], rng.permutation(real)[:n]])
    folds = StratifiedKFold(4, shuffle=True, random_state=seed)
    return float(
        cross_val_score(KNeighborsClassifier(10), cells, np.repeat([0, 1], n), cv=folds, scoring="roc_auc").mean()
    )


def spread_by_gain(adata: AnnData, *, seed: int = 0) -> pd.DataFrame:
    """Return, by the gain of dealing, how cells told their means compare with the training cells that they stand for.

    ``spread / real``; ``corr_responding``, how genes go together, mean over types; energy distance of each type.
    """
    adata = adata[:, highly_variable_genes(log1p_cp10k(adata.X), 2000)].copy()
    model = sd.ScIDiff.fit(adata, SCHEMA, denoise_only=True, seed=seed)
    pca = fit_pca(log1p_cp10k(adata.X), 50, seed=seed)
    treated = (adata.obs["condition"] == ASKED["perturbation"]).to_numpy()
    kinds = adata.obs["cell_type"].to_numpy().astype(str)
    largest = adata.obs["cell_type"].value_counts().index[:4]
    pairs = [(kind, adata[(kinds == kind) & ~treated], adata[(kinds == kind) & treated]) for kind in largest]
    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(treated & np.isin(kinds, largest)))
    real = Spread.of(sparse.csr_matrix(adata.X[shuffled]), kinds[shuffled])
    rows = []
    for gain in GAINS:
        with patch.object(task, "DEALING_GAIN", gain):
            made = {kind: told_the_mean(model, before, after, seed=seed) for kind, before, after in pairs}
        counts = sparse.vstack([cells.layers["counts"] for cells in made.values()], format="csr")
        ratio = real.ratio(counts, np.repeat(list(made), [cells.n_obs for cells in made.values()]))
        energy = {
            f"energy {kind}": metrics.energy(pca.transform(made[kind].X), pca.transform(log1p_cp10k(after.X)))
            for kind, _, after in pairs
        }
        together = [
            metrics.corr_responding(made[kind].X, log1p_cp10k(after.X), log1p_cp10k(before.X))
            for kind, before, after in pairs
        ]
        rows.append({"gain": gain, "spread / real": ratio, "corr_responding": np.mean(together)} | energy)
        print(rows[-1], flush=True)
    return pd.DataFrame(rows).set_index("gain")


def main() -> None:
    """Run and write benchmarks/results/kang_predict.csv (all rows) and .md (means over types and seeds)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--types", nargs="+")
    parser.add_argument("--gains", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.gains:
        text = "Made by `python benchmarks/kang_predict.py --gains`.\n\n"
        (args.out / "kang_predict_gains.md").write_text(text + markdown(spread_by_gain(kang())))
        return
    path = args.out / "kang_predict.csv"
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["cell_type", "seed"])
    adata = kang()
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
