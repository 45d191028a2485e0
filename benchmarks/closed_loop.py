"""The whole loop, closed: a phenotype, an intervention chosen for it, the experiment done, the phenotype measured.

    python benchmarks/closed_loop.py

On the simulator at its default difficulty. A phenotype is three genes that shall go up and three that shall go down in
a random cell type, drawn from genes that some treatment moves there. Each method names one of the treatments of the
screen, at a dose; the laboratory runs it, and its score is the mean change of the six genes in fresh cells, signed. The
best possible treatment is known to the simulator only.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

import scidiff as sd
from scidiff.data import simulate
from scidiff.data.scaling import log1p_cp10k

SCHEMA = sd.Schema(
    perturbation="perturbation", control="control", context=["cell_type"], dose="dose", time="time", batch="batch"
)
N_GENES = 3  # up, and as many down
FRESH = 400  # cells of an experiment


def main() -> None:
    """Run all phenotypes, write closed_loop.csv and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phenotypes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    simulation = simulate(seed=args.seed)
    adata, lab = simulation.adata, simulation.lab
    model = sd.ScIDiff.fit(adata, SCHEMA, config=sd.TrainConfig(steps=1), width=8, n_blocks=1, seed=args.seed)
    treated = adata.obs[adata.obs["perturbation"] != "control"]
    treatments = treated[["perturbation", "dose"]].drop_duplicates().astype({"perturbation": str})
    time = float(treated["time"].max())
    rng = np.random.default_rng(args.seed)
    states = sorted(adata.obs["cell_type"].unique())
    truth: dict[str, np.ndarray] = {}
    rows = []
    for i in range(args.phenotypes):
        state = states[rng.integers(len(states))]
        if state not in truth:
            truth[state] = np.array([lab_effect(lab, row, state, time) for _, row in treatments.iterrows()])
        effects = truth[state]
        up = rng.choice(np.flatnonzero(effects.max(axis=0) > 0.3), N_GENES, replace=False)
        down = rng.choice(np.setdiff1d(np.flatnonzero(effects.min(axis=0) < -0.3), up), N_GENES, replace=False)
        wish = np.zeros(effects.shape[1])
        wish[up], wish[down] = 0.5 / N_GENES, -0.5 / N_GENES
        names = np.array(lab.genes)
        phenotype = sd.Phenotype(up=list(names[up]), down=list(names[down]))
        chosen = {
            "predicted gain": model.attribute(phenotype=phenotype, condition={"cell_type": state})["name"].iloc[0],
            "gene names": model.attribute(up=list(names[up]), down=list(names[down]))["name"].iloc[0],
            "cosine": nearest(model.library, np.sign(wish)),
            "random": name_of(treatments.iloc[rng.integers(len(treatments))]),
            "best possible": name_of(treatments.iloc[int(np.argmax(effects @ wish))]),
        }
        control = mean(lab.run("control", cell_type=state, n=FRESH, seed=i))
        for method, name in chosen.items():
            perturbation, dose = parsed(name)
            fresh = lab.run(perturbation, dose=dose, time=time, cell_type=state, n=FRESH, seed=i)
            rows.append((i, state, method, name, float(wish @ (mean(fresh) - control))))
        print(i, state, {method: round(row[-1], 3) for method, row in zip(chosen, rows[-5:], strict=True)}, flush=True)
    table = pd.DataFrame(rows, columns=["phenotype", "cell_type", "method", "treatment", "score"])
    table.to_csv(args.out / "closed_loop.csv", index=False, float_format="%.5g")
    wide = table.pivot(index="phenotype", columns="method", values="score")[list(chosen)]
    share = wide.div(wide["best possible"], axis=0)
    lines = [f"Made by `python benchmarks/closed_loop.py --phenotypes {args.phenotypes} --seed {args.seed}`.\n\n"]
    lines.append(
        "| chosen by | mean score | phenotypes with >= 90 % of the best | against cosine, p |\n|---|---|---|---|\n"
    )
    for method in wide:
        better = wide[method] - wide["cosine"]
        p = wilcoxon(better, alternative="greater").pvalue if method != "cosine" and better.any() else np.nan
        lines.append(f"| {method} | {wide[method].mean():.3f} | {(share[method] >= 0.9).mean():.0%} | {p:.2g} |\n")
    (args.out / "closed_loop.md").write_text("".join(lines))
    print("".join(lines))


def lab_effect(lab, row: pd.Series, state: str, time: float) -> np.ndarray:
    """Return the true change of mean log1p(CP10k) of a treatment."""
    effect = lab.effect(row["perturbation"], cell_type=state, dose=float(row["dose"]), time=time)
    return np.asarray(effect, dtype=float)


def nearest(library, signs: np.ndarray) -> str:
    """Return the treatment whose effect, as measured, has the highest cosine with the signs."""
    effects = library.measured[0]
    return library.names[int(np.argmax(effects @ signs / np.linalg.norm(effects, axis=1)))]


def name_of(row: pd.Series) -> str:
    """Return what the model calls a treatment."""
    parts = str(row["perturbation"]).split("+")
    return "+".join(f"{part} @ {float(row['dose']):g}" for part in parts)


def parsed(name: str) -> tuple[str, float]:
    """Return perturbation and dose of a name."""
    parts = [part.split(" @ ") for part in name.split("+")]
    return "+".join(part[0] for part in parts), float(parts[0][1])


def mean(cells) -> np.ndarray:
    """Return mean log1p(CP10k)."""
    return np.asarray(log1p_cp10k(cells.X).mean(axis=0)).ravel()


if __name__ == "__main__":
    main()
