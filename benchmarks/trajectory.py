"""Paths between what was measured: a held-out day of real cells, and planted curves of dose and time.

    SCIDIFF_DATA=folder python benchmarks/trajectory.py [--parts weinreb simulator] [--out trajectory_runs]

*weinreb*: mouse haematopoiesis in vitro (Weinreb et al. 2020), days 2 (34 cells), 4 and 6. Day 4 is held out;
populations at the middle of the way from day 2 to day 6 are scored by their energy distance to it, in 50 principal
components. Two sets of these: of the training cells (``energy``), where copies of training cells look
worse than they are, since the components know their noise; and of one half of the held-out cells, scored on the other
(``energy_fair``; mean of both ways). ``gain`` is what a method wins on the copy of day 6, the better of the two nearest
days, in ``energy_fair`` (``gain_training``: in ``energy``), with a 95 % interval over resampled cells of days 2 and 4.
Two snapshots do not say how much cells multiply in between, and with it when they change. That these divide once a day,
16-fold in four days, comes from outside the data; other numbers stand beside it.

*simulator*: control cells on their way along dose and time against the noise-free truth: three drugs, three cell types,
screens with more and more cells in each condition. ``error`` is that of the effects along the path, root of the summed
squares beside that of the true ones (``median``: over conditions); ``closed form`` the error of the effect that the
model believes in at that dose and time; ``size`` the slope of effects on true ones, 1 is right. All of 24 hours and of
dose 1 are held out; 4 units of dose and 36 hours were never measured by anybody.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from effects import DOSES, SCREEN, TIMES
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import scidiff as sd
from scidiff.data.scaling import fit_pca, log1p_cp10k
from scidiff.evaluation.metrics import energy, gene_means

RESULTS = Path(__file__).parent / "results"
SEEDS = 5
COPY, OURS, OBSERVED = "copy of day 6", "**scIDiff**, 16-fold growth", "... between observed cells"

#: of the simulator: along what, from where to where, in how many steps, under what else, frames that are scored
BETWEEN, MEASURED = "not measured", "measured"
PATHS = (
    ("dose", (0, 10), 10, {"time": 48.0}, {1: BETWEEN, 4: BETWEEN, 10: MEASURED}),
    ("time", (0, 72), 12, {"dose": 3.0}, {1: MEASURED, 4: BETWEEN, 6: BETWEEN, 12: MEASURED}),
)

#: early cells and a seed -> log1p(CP10k) of cells at the middle of the way
Method = Callable[[AnnData, int], object]


# ---- a held-out day --------------------------------------------------------------------------------------------------


class Judge:
    """Energy distance to held-out cells, in components of the training cells and in those of other held-out ones."""

    def __init__(self, train: sparse.csr_matrix, real: sparse.csr_matrix) -> None:
        self.real = real
        self.half = np.random.default_rng(0).permutation(real.shape[0]) % 2
        self.of_train = fit_pca(train, 50)
        self.of_half = [fit_pca(real[self.half == k], 50) for k in (0, 1)]

    def __call__(self, x, rows: np.ndarray) -> tuple[float, float]:
        """Return both distances of log1p(CP10k) cells to the real cells ``rows``."""
        biased = energy(self.of_train.transform(x), self.of_train.transform(self.real[rows]))
        fair = [
            energy(pca.transform(x), pca.transform(self.real[rows[self.half[rows] != k]]))
            for k, pca in enumerate(self.of_half)
        ]
        return biased, float(np.mean(fair))


def middle(early: AnnData, late: AnnData, *, paired: bool, rng: np.random.Generator) -> np.ndarray:
    """Return cells halfway between pairs in log1p(CP10k): pairs by chance, or by exact optimal transport."""
    a, b = (log1p_cp10k(cells.X).toarray() for cells in (early, late))
    a, b = a[rng.permutation(np.resize(np.arange(len(a)), len(b)))], b[rng.permutation(len(b))]
    if paired:
        pca = fit_pca(np.concatenate([a, b]), 50)
        _, to = linear_sum_assignment(cdist(pca.transform(a), pca.transform(b), "sqeuclidean"))
        b = b[to]
    return (a + b) / 2


def weinreb(out: Path, resamples: int) -> pd.DataFrame:
    """Return scores of every method, a row each."""
    adata = sd.data.load("weinreb20")
    days = {day: adata[adata.obs["day"] == day].copy() for day in (2, 4, 6)}
    train = adata[adata.obs["day"] != 4].copy()
    folder = out / "weinreb"
    if not folder.is_dir():
        sd.ScIDiff.fit(train, sd.data.schema_of("weinreb20"), seed=0).save(folder)
    model, late, n = sd.ScIDiff.load(folder), days[6], days[6].n_obs
    real = log1p_cp10k(days[4].X)
    judge = Judge(log1p_cp10k(train.X), real)
    rng = np.random.default_rng(0)

    def paths(**how) -> Method:
        def halfway(early: AnnData, seed: int):
            both = anndata.concat([early, late])
            made = model.trajectory(both, along={"day": (2, 6)}, steps=2, n_paths=n, seed=seed, **how)
            return made[made.obs["frame"] == 1].X

        return halfway

    methods: dict[str, Method] = {
        COPY: lambda early, seed: log1p_cp10k(late.X),
        "copy of day 2": lambda early, seed: log1p_cp10k(early.X),
        "linear interpolation in PCA": lambda early, seed: middle(early, late, paired=False, rng=rng),
        "optimal-transport displacement": lambda early, seed: middle(early, late, paired=True, rng=rng),
        "the network, told the time": lambda early, seed: model.generate(n, {"day": 4}, seed=seed).X,
        OURS: paths(growth=16),
        OBSERVED: paths(growth=16, network=False),
        "... 4-fold": paths(growth=4),
        "... 64-fold": paths(growth=64),
        "... numbers stay the same": paths(),
    }
    everything = np.arange(real.shape[0])
    halves = (judge.of_train.transform(real[judge.half == k]) for k in (0, 1))
    rows = [{"method": "half of day 4 (the ceiling)", "energy": energy(*halves)}]
    for name, method in methods.items():
        seeds = range(1 if name.startswith("copy") else SEEDS)
        scores = np.mean([judge(method(days[2], seed), everything) for seed in seeds], axis=0)
        rows.append({"method": name, "energy": scores[0], "energy_fair": scores[1]})
        print(rows[-1], flush=True)
    gains: dict[str, list[np.ndarray]] = {OURS: [], OBSERVED: []}
    for draw in range(resamples):  # what repeated cells do to a distance cancels in differences
        early = days[2][rng.integers(days[2].n_obs, size=days[2].n_obs)].copy()
        early.obs_names = [f"early{i}" for i in range(early.n_obs)]
        cells = rng.integers(real.shape[0], size=real.shape[0])
        base = np.array(judge(methods[COPY](early, draw), cells))
        for name, found in gains.items():
            found.append(base - judge(methods[name](early, draw), cells))
    for row in rows:
        for k, column in enumerate(("gain_training", "gain") if gains.get(row["method"]) else ()):
            found = np.array(gains[row["method"]])[:, k]
            low, high = np.quantile(found, [0.025, 0.975])
            row[column] = f"{found.mean():+.3f} ({low:+.3f} to {high:+.3f})"
    return pd.DataFrame(rows)


# ---- planted curves --------------------------------------------------------------------------------------------------


def simulator(numbers: Sequence[int]) -> pd.DataFrame:
    """Return the errors of effects along paths for each number of cells in a condition."""
    lab = sd.data.simulate(n_cells=100, **SCREEN, doses=DOSES, times=TIMES, seed=0).lab
    drugs = list(lab.perturbations.query("type == 'drug'")["name"])
    level = lru_cache(maxsize=None)(
        lambda name, kind, dose, time: lab.log_mean(name, cell_type=kind, dose=dose, time=time).to_numpy()
    )
    rows = []
    for number in numbers:
        cells = screen(lab, drugs, number)
        small = {"width": 16, "n_blocks": 1, "denoise_only": True, "config": sd.TrainConfig(steps=5)}
        schema = sd.Schema(
            perturbation="perturbation", control="control", context="cell_type", dose="dose", time="time"
        )
        model = sd.ScIDiff.fit(cells, schema, **small)
        control = cells[cells.obs["perturbation"] == "control"]
        control = anndata.concat([control[control.obs["cell_type"] == kind][:200] for kind in lab.states])
        for name, (axis, ends, steps, to, at) in itertools.product(drugs, PATHS):
            made = model.trajectory(
                control, {"perturbation": name} | to, along={axis: ends}, steps=steps, network=False
            )
            for kind, (frame, where) in itertools.product(lab.states, at.items()):
                some = made[(made.obs["frame"] == frame) & (made.obs["cell_type"] == kind)]
                base = gene_means(log1p_cp10k(control[control.obs["cell_type"] == kind].X))
                asked = to | {axis: float(some.obs["position"].iloc[0])}
                true = level(name, kind, **asked) - level("control", kind, None, None)
                believed = model.predictor.effects.predict({"cell_type": kind}, (name,), **asked).mean
                found = gene_means(some.X) - base
                errors = [np.sum((effect - true) ** 2) for effect in (found, believed)]
                rows.append((axis, where, f"{number} a condition", *errors, found @ true, true @ true))
    table = pd.DataFrame(rows, columns=["along", "at", "cells", "path", "believed", "product", "square"])
    table["each"] = np.sqrt(table["path"] / table["square"])
    groups = table.groupby(["along", "at", "cells"], sort=False)
    total = groups[["path", "believed", "product", "square"]].sum()
    return (
        pd.DataFrame(
            {
                "error": np.sqrt(total["path"] / total["square"]),
                "median": groups["each"].median(),
                "closed form": np.sqrt(total["believed"] / total["square"]),
                "size": total["product"] / total["square"],
            }
        )
        .reset_index()
        .sort_values(["along", "at"], kind="stable")
    )


def screen(lab: sd.data.Lab, drugs: Sequence[str], n: int) -> AnnData:
    """Return ``n`` cells of each dose, time and cell type, and ten times as many controls; dose 1 and 24 h left out."""
    measured = [(name, d, t) for name in drugs for d in DOSES for t in TIMES if d != 1 and t != 24]
    asked = [("control", None, None), *measured]
    made = [
        lab.run(name, dose=dose, time=time, cell_type=kind, n=n if dose else 10 * n)
        for kind in lab.states
        for name, dose, time in asked
    ]
    cells = anndata.concat(made)
    return AnnData(cells.X, obs=cells.obs[["perturbation", "cell_type", "dose", "time"]].copy(), var=made[0].var[[]])


# ---- tables ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run what is asked for and write benchmarks/results/trajectory.{csv,md}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--resamples", type=int, default=30)
    parser.add_argument("--cells", type=int, nargs="+", default=[10, 100, 1000], help="of a simulated condition")
    parser.add_argument("--out", type=Path, default=Path("trajectory_runs"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    args.out.mkdir(exist_ok=True)
    work = {"weinreb": lambda: weinreb(args.out, args.resamples), "simulator": lambda: simulator(args.cells)}
    place = RESULTS / "trajectory.csv"
    table = pd.read_csv(place) if place.exists() else pd.DataFrame({"task": []})
    for part in args.parts:
        table = pd.concat([table[table["task"] != part], work[part]().assign(task=part)])
    table.to_csv(place, index=False, float_format="%.6g")
    text = "Made by `python benchmarks/trajectory.py`; what tasks and columns are stands at its head.\n"
    for part, title in TITLES.items():
        rows = table[table["task"] == part].drop(columns="task").dropna(axis=1, how="all")
        text += f"\n{title}\n\n{markdown(rows)}"
    (RESULTS / "trajectory.md").write_text(text)
    print(text)


TITLES = {"weinreb": "Day 4 of Weinreb et al., held out:", "simulator": "The simulator's curves:"}


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    head = f"| {' | '.join(table.columns)} |\n{'|---' * table.shape[1]}|\n"
    rows = [["" if v != v else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in table.to_numpy()]
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
