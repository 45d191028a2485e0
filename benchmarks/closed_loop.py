"""The whole loop, closed: a phenotype, an intervention chosen for it, the experiment done, the phenotype measured.

    python benchmarks/closed_loop.py [--cells 6000]

On the simulator at its default difficulty: 152 treatments (perturbations and doses) in 5,100 of 6,000 cells, six cell
types and three times, two cells of each condition. With --cells 60000 the same screen has twenty. A phenotype is three
genes that shall go up and three that shall go down in a random cell type, drawn from genes that some treatment moves
there. Each method names one of the treatments of the screen; its score is the mean change of the six genes in
log1p(CP10k), signed, at the last time. "best of 5 run" may do experiments first: the laboratory runs the five
treatments that a method names first, and the one that did best in 400 cells is its choice.

The laboratory runs each choice: 400 fresh cells and as many controls ("measured"). Which choice is how good is judged
by the simulator's noise-free answer ("score"), and "best possible" is the treatment that is best by it: no method can
be better, and the luck of 400 cells decides nothing. The noise-free answer for a cell type takes two minutes; --truth
keeps it.
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
MOVED = 0.3  # least true change, in log1p(CP10k), of a gene that a phenotype may name
FRESH = 400  # cells of an experiment
TRIED = 5  # experiments before the choice
TRIAL = f", best of {TRIED} run"


def main() -> None:
    """Run all phenotypes, write closed_loop.csv and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phenotypes", type=int, default=50)
    parser.add_argument("--cell-types", type=int, default=6, help="draw from the first of them only")
    parser.add_argument("--cells", type=int, default=6000, help="of the screen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--truth", type=Path, help="npz file that keeps the noise-free answer")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    simulation = simulate(n_cells=args.cells, seed=args.seed)
    adata, lab = simulation.adata, simulation.lab
    model = sd.ScIDiff.fit(adata, SCHEMA, config=sd.TrainConfig(steps=1), width=8, n_blocks=1, seed=args.seed)
    treated = adata.obs[adata.obs["perturbation"] != "control"]
    treatments = treated[["perturbation", "dose"]].drop_duplicates().astype({"perturbation": str})
    treatments = treatments.sort_values(["perturbation", "dose"], ignore_index=True)
    place = {name_of(row): i for i, row in treatments.iterrows()}
    time, genes = float(treated["time"].max()), np.array(lab.genes)
    states = sorted(adata.obs["cell_type"].unique())[: args.cell_types]
    truth = true_effects(lab, treatments, states, time, args.truth)
    rng = np.random.default_rng(args.seed)
    rows = []
    for i in range(args.phenotypes):
        state = states[rng.integers(len(states))]
        effects = truth[state]
        up = rng.choice(np.flatnonzero(effects.max(axis=0) > MOVED), N_GENES, replace=False)
        falling = np.setdiff1d(np.flatnonzero(effects.min(axis=0) < -MOVED), up)
        down = rng.choice(falling, N_GENES, replace=False)
        wish = np.zeros(len(genes))
        wish[up], wish[down] = 0.5 / N_GENES, -0.5 / N_GENES
        asked = {"up": list(genes[up]), "down": list(genes[down])}
        ranked = {
            "predicted gain": list(
                model.attribute(phenotype=sd.Phenotype(**asked), condition={"cell_type": state})["name"]
            ),
            "gene names": list(model.attribute(**asked)["name"]),
            "cosine": nearest(model.library, np.sign(wish)),
        }
        chosen = {method: names[0] for method, names in ranked.items()}
        chosen |= {"random": rng.choice(list(place)), "best possible": list(place)[int(np.argmax(effects @ wish))]}
        control = mean(lab.run("control", cell_type=state, n=FRESH, seed=i))
        for method in ("predicted gain", "cosine"):  # other cells than those that measure the choice
            names = ranked[method][:TRIED]
            tried = [wish @ run(lab, treatments.loc[place[name]], state, time, args.phenotypes + i) for name in names]
            chosen[method + TRIAL] = names[int(np.argmax(tried))]
        for method, name in chosen.items():
            fresh = run(lab, treatments.loc[place[name]], state, time, i)
            score, measured = effects[place[name]] @ wish, wish @ (fresh - control)
            rows.append((i, state, method, name, score, measured))
        print(i, state, {row[2]: round(row[4], 3) for row in rows[-len(chosen) :]}, flush=True)
    table = pd.DataFrame(rows, columns=["phenotype", "cell_type", "method", "treatment", "score", "measured"])
    name = "closed_loop" if args.cells == 6000 else f"closed_loop_{args.cells}"
    table.to_csv(args.out / f"{name}.csv", index=False, float_format="%.5g")
    text = summary(table)
    called = f"--phenotypes {args.phenotypes} --cell-types {args.cell_types} --cells {args.cells} --seed {args.seed}"
    (args.out / f"{name}.md").write_text(f"Made by `python benchmarks/closed_loop.py {called}`.\n\n{text}")
    print(text)


def true_effects(
    lab, treatments: pd.DataFrame, states: list[str], time: float, path: Path | None
) -> dict[str, np.ndarray]:
    """Return the true change of mean log1p(CP10k) of every treatment in each state, shape (n_treatments, n_genes)."""
    known = dict(np.load(path)) if path is not None and path.exists() else {}
    for state in states:
        if state not in known:
            control = lab.log_mean("control", cell_type=state).to_numpy()
            known[state] = np.array(
                [
                    lab.log_mean(row.perturbation, cell_type=state, dose=float(row.dose), time=time).to_numpy()
                    - control
                    for row in treatments.itertuples()
                ]
            )
            if path is not None:
                np.savez(path, **known)
    return known


def summary(table: pd.DataFrame) -> str:
    """Return Markdown: a row for each method."""
    methods = list(dict.fromkeys(table["method"]))
    score, measured = (
        table.pivot(index="phenotype", columns="method", values=value)[methods] for value in ("score", "measured")
    )
    share = score.div(score["best possible"], axis=0)
    lines = ["| chosen by | score | share of the best | phenotypes with >= 90 % of it | above cosine, p | measured |\n"]
    lines.append("|---|---|---|---|---|---|\n")
    for method in methods:
        peer = "cosine" + TRIAL if method.endswith(TRIAL) else "cosine"  # that did as many experiments
        better = score[method] - score[peer]
        p = f"{wilcoxon(better, alternative='greater').pvalue:.2g}" if better.any() else ""
        reached = f"{share[method].mean():.0%} | {(share[method] >= 0.9).mean():.0%}"
        lines.append(f"| {method} | {score[method].mean():.3f} | {reached} | {p} | {measured[method].mean():.3f} |\n")
    return "".join(lines)


def run(lab, treatment: pd.Series, state: str, time: float, seed: int) -> np.ndarray:
    """Return mean log1p(CP10k) of fresh cells of a treatment."""
    dose = float(treatment["dose"])
    return mean(lab.run(treatment["perturbation"], dose=dose, time=time, cell_type=state, n=FRESH, seed=seed))


def nearest(library, signs: np.ndarray) -> list[str]:
    """Return the treatments, that whose effect as measured has the highest cosine with the signs first."""
    effects = library.measured[0]
    return [library.names[at] for at in np.argsort(-(effects @ signs) / np.linalg.norm(effects, axis=1), kind="stable")]


def name_of(row: pd.Series) -> str:
    """Return what the model calls a treatment."""
    parts = str(row["perturbation"]).split("+")
    return "+".join(f"{part} @ {float(row['dose']):g}" for part in parts)


def mean(cells) -> np.ndarray:
    """Return mean log1p(CP10k)."""
    return np.asarray(log1p_cp10k(cells.X).mean(axis=0)).ravel()


if __name__ == "__main__":
    main()
