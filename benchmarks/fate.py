"""Velocity and fate on real and simulated cells: a few minutes for each part (pancreas: for each seed).

    python benchmarks/fate.py                                # all of it
    python benchmarks/fate.py --parts pancreas --plain plain.h5ad
    python benchmarks/peers/cellrank_fate.py plain.h5ad cellrank.csv      # where CellRank is installed
    python benchmarks/fate.py --parts pancreas --cellrank cellrank.csv

pancreas    Markers of the four lineages are left out before anything is learned. Scores: cross-boundary direction of
            the velocity (both velocities in the places that the plain one has), and the AUC of fates against markers:
            a cell is positive with more of a lineage's markers than 95 % of the ductal cells, within Ngn3 high and
            within Pre-endocrine cells, mean over lineages with 20 positives. Mean and spread of seeds, each a training;
            90 % intervals of what CellRank is behind: bootstrap over cells.
            How fates are walked was decided with an eye on these cells (seed 0): it is no blind test.
weinreb     Undifferentiated cells of days 2 and 4 whose clones later are mostly neutrophils or mostly monocytes; five
            folds over clones, of held-out clones only these cells are seen. "told": cells of the other clones whose
            fate is known are ends too. 90 % intervals, of differences also: bootstrap over clones.
simulator   Fates of stem cells and how perturbing the driver TF of an end changes them, against the truth. "told": some
            eighty cells had the perturbation, half of them have arrived; "push alone": they are not shown. "treated
            cells": the shares in which these have arrived, nothing else.
influence   AUROC of one-molecule influence for CollecTRI edges (activating or not) among TFs and genes of the pancreas.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

import scidiff as sd
from scidiff.data import simulate
from scidiff.data.scaling import fit_pca, highly_variable_genes, log1p_cp10k
from scidiff.evaluation.metrics import cross_boundary_direction
from scidiff.integration import read_network
from scidiff.integration.fate import Places, fates
from scidiff.integration.velocity import at_common_depth, nearest, read_velocity

RESULTS = Path(__file__).parent / "results"
LINEAGES = {
    "Alpha": ("Gcg", "Arx", "Irx1", "Irx2"),
    "Beta": ("Ins1", "Ins2", "Pdx1", "Nkx6-1", "Iapp", "Mafa", "Pax4", "G6pc2"),
    "Delta": ("Sst", "Hhex"),
    "Epsilon": ("Ghrl",),
}
EDGES = [
    ("Ductal", "Ngn3 low EP"),
    ("Ngn3 low EP", "Ngn3 high EP"),
    ("Ngn3 high EP", "Pre-endocrine"),
    *(("Pre-endocrine", lineage) for lineage in LINEAGES),
]
Row = tuple[str, str, str, float]


def trained(place: Path | None, name: str, *args: Any, **options: Any) -> sd.ScIDiff:
    """Return the model kept in a folder of ``place``, or train it, and keep it there."""
    if place is not None and (place / name).exists():
        return sd.ScIDiff.load(place / name)
    model = sd.ScIDiff.fit(*args, denoise_only=True, n_blocks=2, **options)
    if place is not None:
        place.mkdir(exist_ok=True)
        model.save(place / name)
    return model


def without_markers() -> tuple[ad.AnnData, dict[str, np.ndarray]]:
    """Return the pancreas without the markers, spliced counts in X, and the markers per 10,000 of each lineage."""
    adata = sd.data.load("pancreas")
    depth = np.asarray(adata.layers["spliced"].sum(axis=1)).ravel()
    levels = {}
    for lineage, genes in LINEAGES.items():
        have = [gene for gene in genes if gene in adata.var_names]
        levels[lineage] = 1e4 * np.asarray(adata[:, have].layers["spliced"].sum(axis=1)).ravel() / depth
    steered = {gene for genes in LINEAGES.values() for gene in genes}
    adata = adata[:, [gene not in steered for gene in adata.var_names]].copy()
    adata.X = adata.layers["spliced"].astype(np.float32)
    return adata, levels


def pancreas(seed: int, models: Path | None, *, cellrank: Path | None, plain: Path | None) -> list[Row]:
    """Return scores of velocity and fate."""
    adata, levels = without_markers()
    label = adata.obs["cell_type"].astype(str).to_numpy()
    steady = read_velocity(adata)
    logged = at_common_depth(adata.X).log1p()
    pca = fit_pca(logged, 30)
    raw = pca.transform(logged)
    directions = {"steady state": steady.v / (1 + steady.s) @ pca.components_.T}
    if plain is not None:
        out = ad.AnnData(logged, obs=adata.obs, var=adata.var.assign(velocity_genes=steady.known))
        out.layers.update(Ms=steady.s, velocity=steady.v)
        out.obsm["X_pca"] = raw
        out.write_h5ad(plain)
    model = trained(models, f"pancreas{seed}", adata, seed=seed, layer="spliced", width=256)
    moved = model.velocity(adata, layer="spliced")
    shift = np.log1p(steady.s * np.exp(_log_rate_change(moved))) - np.log1p(steady.s)
    directions["scIDiff"] = shift @ pca.components_.T
    rows: list[Row] = []
    places = np.log1p(steady.s) @ pca.components_.T
    for method, direction in directions.items():
        found = cross_boundary_direction(places, direction, label, EDGES, neighbors=nearest(raw))
        rows += [("pancreas", method, f"CBDir {a} to {b}", value) for (a, b), value in found.items()]
        rows.append(("pancreas", method, "CBDir, mean", float(np.mean(list(found.values())))))

    names = list(LINEAGES)
    ends = pd.Index(names).get_indexer(label)
    made = {
        "scIDiff": model.fate(adata, {"cell_type": names}, layer="spliced", seed=seed).obsm["fate"],
        "scIDiff without velocity": model.fate(
            adata, {"cell_type": names}, layer="spliced", use_velocity=False, seed=seed
        ).obsm["fate"],
        "the same walk on steady state": fates(Places(raw, directions["steady state"]), ends, names).probability,
        "marginal": np.random.default_rng(seed).dirichlet(np.ones(len(names)), adata.n_obs),
    }
    if cellrank is not None:
        made["CellRank on steady state"] = pd.read_csv(cellrank, index_col=0)[names]
    made = {method: pd.DataFrame(np.asarray(chance), columns=names) for method, chance in made.items()}
    for group in ("Ngn3 high EP", "Pre-endocrine"):
        for method, chance in made.items():
            rows += _agreement(method, group, chance, levels, label)
        if cellrank is not None:
            rows += _ahead(made["scIDiff"], made["CellRank on steady state"], group, levels, label, seed)
    through = ["Ngn3 low EP", "Ngn3 high EP", *names]
    via = model.fate(adata, {"cell_type": through}, layer="spliced", seed=seed).obsm["fate"]
    ductal = via.loc[label == "Ductal", through[:2]].sum(axis=1)
    rows.append(("pancreas", "scIDiff", "ductal cells that come to Ngn3 states first", float(ductal.mean())))
    return rows + regulators(model, adata)


def _log_rate_change(moved: ad.AnnData) -> np.ndarray:
    """Return the change of the log rate behind a change of log1p(CP10k)."""
    now = moved.layers["denoised"]
    return np.log(np.expm1(now + moved.layers["velocity"]).clip(1e-6)) - np.log(np.expm1(now).clip(1e-6))


def _agreement(
    method: str, group: str, chance: pd.DataFrame, levels: dict[str, np.ndarray], label: np.ndarray
) -> list[Row]:
    rows: list[Row] = []
    inside = label == group
    for lineage, level in levels.items():
        positive = (level > np.quantile(level[label == "Ductal"], 0.95))[inside]
        if 20 <= positive.sum() <= inside.sum() - 20:
            score = roc_auc_score(positive, chance[lineage][inside])
            rows.append(("pancreas", method, f"AUC {lineage} in {group}", float(score)))
    return [*rows, ("pancreas", method, f"AUC in {group}, mean", float(np.mean([row[3] for row in rows])))]


def _ahead(
    own: pd.DataFrame, other: pd.DataFrame, group: str, levels: dict[str, np.ndarray], label: np.ndarray, seed: int
) -> list[Row]:
    """Return how far fates agree with markers better than others do, by bootstrap over the cells of a group."""
    rng = np.random.default_rng(seed)
    weights, inside = rng.multinomial((n := (label == group).sum()), np.full(n, 1 / n), 200), label == group
    gains = []
    for lineage, level in levels.items():
        positive = (level > np.quantile(level[label == "Ductal"], 0.95))[inside]
        if 20 <= positive.sum() <= n - 20:
            values = (own[lineage][inside], other[lineage][inside])
            first, second = ([roc_auc_score(positive, v, sample_weight=w) for w in weights] for v in values)
            gains.append(np.subtract(first, second))
    low, high = np.quantile(np.mean(gains, axis=0), [0.05, 0.95])
    what = f"AUC in {group}, mean, less CellRank's"
    return [("pancreas", "scIDiff", f"{what}, {q} of bootstrap", float(v)) for q, v in (("5%", low), ("95%", high))]


def regulators(model: sd.ScIDiff, adata: ad.AnnData) -> list[Row]:
    """Return how well influence and plain correlation tell edges of CollecTRI."""
    network = read_network(Path(os.environ["SCIDIFF_DATA"]) / "collectri_human.tsv.gz")
    human = pd.Series(model.genes, index=[gene.upper() for gene in model.genes])
    human = human[~human.index.duplicated(keep=False)]
    inside = network["source"].isin(human.index) & network["target"].isin(human.index)
    known = network[inside & (network["source"] != network["target"])]
    sources = sorted(human[known["source"]].unique())
    table = model.influence(adata, sources, layer="spliced")[human.to_numpy()]
    logged = pd.DataFrame(log1p_cp10k(adata[:, human.to_numpy()].X).toarray(), columns=human.to_numpy())
    z = (logged - logged.mean()) / logged.std().clip(1e-9)
    correlation = z[sources].T @ z / len(z)
    edge = pd.DataFrame(False, index=sources, columns=human.to_numpy())
    for source, target in zip(human[known["source"]], human[known["target"]], strict=True):
        edge.loc[source, target] = True
    other = np.array([[source != target for target in edge.columns] for source in sources])
    rows: list[Row] = [("influence", "CollecTRI", "share of edges inside the model's genes", float(inside.mean()))]
    for method, values in (("scIDiff", table), ("correlation", correlation)):
        # within each source, as some have influence on everything
        per_source = [
            roc_auc_score(edge.to_numpy()[i, other[i]], np.abs(values.to_numpy()[i, other[i]]))
            for i in range(len(sources))
            if edge.to_numpy()[i, other[i]].any()
        ]
        rows.append(("influence", method, "AUROC of edges within a TF, mean", float(np.mean(per_source))))
        error = np.std(per_source) / np.sqrt(len(per_source))
        rows.append(("influence", method, "AUROC of edges within a TF, standard error", float(error)))
    return rows


def weinreb(seed: int, models: Path | None) -> list[Row]:
    """Return AUC, neutrophil against monocyte, of cells whose clones are known."""
    adata = sd.data.load("weinreb20")
    day, kind = adata.obs["day"].astype(int).to_numpy(), adata.obs["cell_type"].astype(str).to_numpy()
    clone = adata.obs["clone"].astype(str).to_numpy()
    asked, truth = [], []
    for i in np.flatnonzero((kind == "undiff") & (day < day.max())):
        later = (clone == clone[i]) & (day > day[i])
        neutrophils, monocytes = ((later & (kind == name)).sum() for name in ("Neutrophil", "Monocyte"))
        if neutrophils != monocytes:
            asked.append(i)
            truth.append(neutrophils > monocytes)
    asked, truth = np.array(asked), np.array(truth)
    clones = np.random.default_rng(seed).permutation(np.unique(clone))
    fold = pd.Series(np.arange(len(clones)) % 5, index=clones)[clone].to_numpy()
    counts = log1p_cp10k(adata.X)
    ends = [name for name, n in pd.Series(kind).value_counts().items() if n >= 15 and name != "undiff"]
    two = ["Neutrophil", "Monocyte"]
    knn = {f"{k} nearest early cells": k for k in (5, 15)}
    score = {name: np.zeros(len(asked)) for name in ("scIDiff", "scIDiff, told", *knn, "marginal")}
    for k in range(5):
        held = fold == k
        # of held-out clones nothing but the cells that are asked about; the network sees none of them
        seen = ~held | np.isin(np.arange(len(kind)), asked)
        model = trained(models, f"weinreb{seed}_{k}", adata[~held], sd.Schema(time="day"), seed=seed, width=128)
        now = held[asked]
        told = kind.copy()
        told[asked[~now]] = np.where(truth[~now], *two)
        for name, end in (("scIDiff", kind), ("scIDiff, told", told)):
            cells = adata[seen].copy()
            cells.obs["end"] = end[seen]
            chance = model.fate(cells, {"end": ends}, seed=seed).obsm["fate"].loc[adata.obs_names[asked[now]], two]
            score[name][now] = chance[two[0]] / chance.sum(axis=1)
        genes = highly_variable_genes(counts[~held], 2000)
        points = fit_pca(counts[~held][:, genes], 30).transform(counts[:, genes])
        for name, n in knn.items():
            early = KNeighborsClassifier(n).fit(points[asked[~now]], truth[~now])
            score[name][now] = early.predict_proba(points[asked[now]])[:, 1]
        score["marginal"][now] = truth[~now].mean()
    rng, names = np.random.default_rng(seed), np.unique(clone[asked])
    cells_of = {name: np.flatnonzero(clone[asked] == name) for name in names}
    picks = [np.concatenate([cells_of[name] for name in rng.choice(names, len(names))]) for _ in range(1000)]
    picks = [pick for pick in picks if len(set(truth[pick])) == 2]
    drawn = {
        method: np.array([roc_auc_score(truth[pick], values[pick]) for pick in picks])
        for method, values in score.items()
    }
    rows: list[Row] = [("weinreb", "", "cells asked about", len(asked)), ("weinreb", "", "of clones", len(names))]
    for method, values in score.items():
        rows.append(("weinreb", method, "AUC neutrophil v. monocyte", float(roc_auc_score(truth, values))))
        rows += _quantiles(method, "AUC", drawn[method])
        rows += _quantiles(method, "AUC less that of 5 nearest", drawn[method] - drawn["5 nearest early cells"])
    return rows


def _quantiles(method: str, score: str, drawn: np.ndarray) -> list[Row]:
    return [("weinreb", method, f"{score}, {q:.0%} of bootstrap", float(np.quantile(drawn, q))) for q in (0.05, 0.95)]


def simulated(seed: int, models: Path | None) -> pd.DataFrame:
    """Return what one simulation says of fates and their change under perturbations of the driver TFs: kind, value."""
    schema = sd.Schema(
        perturbation="perturbation", control="control", context=["cell_type"], dose="dose", time="time", batch="batch"
    )
    size = {"n_cells": 4000, "n_genes": 600, "n_tfs": 60, "n_states": 4, "control_share": 0.5, "times": (72.0,)}
    few = {"n_perturbations": 24, "n_null": 4, "n_duplicates": 3, "n_combinations": 0}
    simulation = simulate(**size, **few, seed=seed)
    lab = simulation.lab
    model = trained(models, f"sim{seed}", simulation.adata, schema, width=128, config=sd.TrainConfig(steps=200), seed=0)
    perturbation = simulation.adata.obs["perturbation"]
    control = simulation.adata[perturbation == "control"].copy()
    ends, own = {"cell_type": lab.terminal_states}, lab.fate()
    options = {"layer": "counts", "n_rounds": 8, "seed": seed}
    rows = []
    for end, driver in lab.drivers.items():
        for suffix, kind in (("_ko", "knock-out"), ("_a", "activation")):
            true, treated = lab.fate(driver + suffix), simulation.adata[perturbation == driver + suffix].copy()
            asked = {"perturbation": driver + suffix, "dose": 1.0, "time": 72.0}
            arrived = treated.obs["cell_type"][treated.obs["cell_type"].isin(own.index)]
            found = {"treated cells": (arrived == end).mean()}
            for method, cells in (("scIDiff, told", ad.concat([control, treated])), ("scIDiff, push alone", control)):
                made = model.fate(cells, ends, to=asked, **options)
                table = made.uns["scidiff"]["fate"]
                stem = table[table["group"] == "stem"].set_index("end")
                found[method] = stem["perturbed"][end]
            for method, value in found.items():
                right = np.sign(value - stem["probability"][end]) == np.sign(true[end] - own[end])
                rows += [(kind, method, "right", right), (kind, method, "error", abs(value - true[end]))]
    stems = (control.obs["cell_type"] == "stem").to_numpy()
    cells, true = made.obsm["fate"].to_numpy()[stems], lab.truth(control[stems]).obsm["fate"].to_numpy()
    alike = np.abs(true - true.mean(axis=0)).mean()
    rows += [
        ("own", "scIDiff", "largest", (stem["probability"] - own).abs().max()),
        ("own", "scIDiff", "cells", np.abs(cells - true).mean()),
        ("own", "all cells alike", "cells", alike),
    ]
    return pd.DataFrame(rows, columns=["kind", "method", "score", "value"]).astype({"value": float})


def of_simulations(made: pd.DataFrame) -> list[Row]:
    """Return the scores of all simulations together."""
    rows: list[Row] = []
    for (kind, method, score), value in made.groupby(["kind", "method", "score"], sort=False)["value"]:
        said = {
            "largest": {"mean probability of an end: largest error": value.max()},
            "cells": {"a cell's probability: mean error": value.mean()},
            "right": {f"driver {kind}: cases": len(value), f"driver {kind}: right direction": value.mean()},
            "error": {
                f"driver {kind}: mean error of the probability": value.mean(),
                f"driver {kind}: errors up to .1": (value <= 0.1).mean(),
                f"driver {kind}: largest error": value.max(),
            },
        }[score]
        rows += [("simulator", method, name, float(found)) for name, found in said.items()]
    return rows


def main() -> None:
    """Run the parts asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("pancreas", "weinreb", "simulator"), default=None)
    parser.add_argument("--cellrank", type=Path)
    parser.add_argument("--plain", type=Path)
    parser.add_argument("--models", type=Path, help="folder in which models are kept, so that they are trained once")
    parser.add_argument("--seeds", type=int, default=3, help="trainings on the pancreas")
    parser.add_argument("--simulations", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seeds = range(args.seeds)
    work = {
        "pancreas": lambda: [
            (*row, seed)
            for seed in seeds
            for row in pancreas(seed, args.models, cellrank=args.cellrank, plain=args.plain if seed == 0 else None)
        ],
        "weinreb": lambda: [(*row, 0) for row in weinreb(0, args.models)],
        "simulator": lambda: [
            (*row, 0)
            for row in of_simulations(pd.concat([simulated(seed, args.models) for seed in range(args.simulations)]))
        ],
    }
    place = RESULTS / "fate.csv"
    for part in args.parts or work:
        table = pd.DataFrame(work[part](), columns=["data", "method", "score", "value", "seed"])
        print(table.to_string(), flush=True)
        if place.exists():
            before = pd.read_csv(place, keep_default_na=False)
            table = pd.concat([before[~before["data"].isin(table["data"])], table], ignore_index=True)
        table.to_csv(place, index=False, float_format="%.4g")
        (RESULTS / "fate.md").write_text(markdown(table))


def markdown(table: pd.DataFrame) -> str:
    """Return a section for each data set: scores x methods, mean over seeds and their spread."""
    text = "Made by `python benchmarks/fate.py`; what each score is says the head of that file.\n"
    for name, rows in table.groupby("data", sort=False):
        cells = rows.groupby(["score", "method"], sort=False)["value"].agg(["mean", "std", "size"])
        shown = [f"{mean:.3g}" + (f" ± {std:.2g}" if n > 1 and std > 5e-4 else "") for mean, std, n in cells.to_numpy()]
        wide = (
            pd.Series(shown, index=cells.index)
            .unstack()
            .reindex(index=rows["score"].unique(), columns=rows["method"].unique(), fill_value="")
        )
        text += f"\n## {name}\n"
        if (n := rows["seed"].nunique()) > 1:
            text += f"\n{n} seeds: mean ± standard deviation.\n"
        text += f"\n| | {' | '.join(wide)} |\n|---{'|---' * wide.shape[1]}|\n"
        text += "".join(f"| {score} | {' | '.join(values.fillna(''))} |\n" for score, values in wide.iterrows())
    return text


if __name__ == "__main__":
    main()
