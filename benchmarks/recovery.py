"""Which perturbation made these cells? Recovery of perturbations from cells that the library never saw.

    SCIDIFF_DATA=folder python benchmarks/recovery.py [--seeds 8]

Three tasks. *norman halves*: K562, 33 perturbations; half of the cells of each makes the library, the other half (its
own controls with it) is the query; mean of the seeds. *papalexi replicates*: THP-1, 25 knock-outs; each replicate is
the query once, the other two make the library. *norman doubles*: the library holds single perturbations only; every
double whose parts it holds is ranked among all pairs, its controls being the other half of the control cells.

Methods: empirical-Bayes LDA; cosine of effects; and, from the names of the 20 genes most up and 20 most down alone,
signs. A calibrated posterior of as many queries as there are has the expected calibration error ``ece_chance`` by
chance alone. Norman is used on the published log expression: 500 genes are too few to normalise by.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from scidiff.data import load
from scidiff.data.scaling import log1p_cp10k
from scidiff.evaluation.metrics import discounted, ece
from scidiff.integration.attribution import Library, Query, cosine, empirical_bayes_lda, from_genes

CONTROL, LISTED = "control", 20


def by_names(library: Library, query: Query) -> pd.DataFrame:
    """Return the ranking that the names of the genes most changed in the query give."""
    z = (query.mean - query.control) / library.spread
    genes = np.array(library.genes)[np.argsort(z, kind="stable")]
    return from_genes(library, up=genes[-LISTED:], down=genes[:LISTED])


SINGLES = {"empirical-Bayes LDA": empirical_bayes_lda, "cosine": cosine, "gene names only": by_names}


def result(table: pd.DataFrame, truth: str) -> dict[str, float]:
    """Return the rank of the true name (ties and NaN count against it), and whether and how surely the first is it."""
    score = table["score"].fillna(-np.inf)
    own = score[table["name"] == truth].iloc[0]
    rank = int((score >= own).sum())
    return {"rank": rank, "right": table["name"].iloc[0] == truth, "posterior": table["posterior"].iloc[0]}


def norman() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return expression, condition and genes of the K562 cells."""
    adata = load("norman19")
    adata = adata[(adata.obs["cell_type"] == "k562").to_numpy()]
    return adata.layers["lognorm"].toarray(), adata.obs["condition"].astype(str).to_numpy(), list(adata.var_names)


def halves(groups: np.ndarray, seed: int) -> np.ndarray:
    """Return which cells are in the library, half of every group."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(groups), dtype=bool)
    for name in np.unique(groups):
        cells = rng.permutation(np.flatnonzero(groups == name))
        chosen[cells[: len(cells) // 2]] = True
    return chosen


def recovered(x, groups: np.ndarray, known: np.ndarray, library: Library) -> Iterator[dict]:
    """Yield the result of every method for every condition of the cells that are not ``known``."""
    control = x[~known & (groups == CONTROL)]
    for name in library.names:
        query = Query.of(x[~known & (groups == name)], control)
        for method, rank in SINGLES.items():
            yield {"method": method, "truth": name, "candidates": len(library.names)} | result(
                rank(library, query), name
            )


def norman_halves(seeds: int) -> Iterator[dict]:
    """Yield rows of the first task."""
    x, groups, genes = norman()
    for seed in range(seeds):
        known = halves(groups, seed)
        library = Library.of(x[known], groups[known], control=CONTROL, genes=genes, seed=seed)
        yield from ({"split": seed} | row for row in recovered(x, groups, known, library))


def papalexi_replicates(_: int) -> Iterator[dict]:
    """Yield rows of the second task."""
    adata = load("papalexi21")
    x = log1p_cp10k(adata.X)
    groups, batch = (adata.obs[name].astype(str).to_numpy() for name in ("perturbation", "replicate"))
    for left_out in np.unique(batch):
        known = batch != left_out
        library = Library.of(x[known], groups[known], control=CONTROL, genes=list(adata.var_names), batch=batch[known])
        yield from ({"split": left_out} | row for row in recovered(x, groups, known, library))


def norman_doubles(seeds: int) -> Iterator[dict]:
    """Yield rows of the third task."""
    x, groups, genes = norman()
    single = np.array(["+" not in name for name in groups])
    names = set(groups[single])
    doubles = [name for name in np.unique(groups[~single]) if names >= set(name.split("+"))]
    for seed in range(seeds):
        half = halves(groups, seed)
        known = single & ((groups != CONTROL) | half)
        library = Library.of(x[known], groups[known], control=CONTROL, genes=genes, seed=seed)
        for double in doubles:
            query = Query.of(x[groups == double], x[(groups == CONTROL) & ~half])
            truth = "+".join(sorted(double.split("+")))
            for method in (empirical_bayes_lda, cosine):
                table = method(library, query, pairs=True)
                name = "empirical-Bayes LDA" if method is empirical_bayes_lda else "cosine"
                yield {"split": seed, "method": name, "truth": truth, "candidates": len(table)} | result(table, truth)


TASKS = {
    "norman halves": norman_halves,
    "papalexi replicates": papalexi_replicates,
    "norman doubles": norman_doubles,
}


def scores(rows: pd.DataFrame) -> pd.Series:
    """Return the scores of the rows of one task and method."""
    rank, posterior = rows["rank"].to_numpy(), rows["posterior"].to_numpy()
    rng = np.random.default_rng(0)
    return pd.Series(
        {
            "recall@1": np.mean(rank <= 1),
            "recall@5": np.mean(rank <= 5),
            "mrr": np.mean(1 / rank),
            "ndcg": np.mean(discounted(rank)),
            "ece": ece(posterior, rows["right"].to_numpy(dtype=float)),
            "ece_chance": np.mean([ece(posterior, rng.random(len(posterior)) < posterior) for _ in range(100)]),
            "queries": len(rows),
            "candidates": rows["candidates"].iloc[0],
        }
    )


def main() -> None:
    """Run and write benchmarks/results/recovery.csv (a row per query) and .md (scores)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    started = time.process_time()
    rows = pd.DataFrame([{"task": task} | row for task, make in TASKS.items() for row in make(args.seeds)])
    args.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(args.out / "recovery.csv", index=False, float_format="%.5g")
    table = pd.DataFrame({key: scores(group) for key, group in rows.groupby(["task", "method"], sort=False)}).T
    text = (
        f"Made by `python benchmarks/recovery.py --seeds {args.seeds}` in {time.process_time() - started:.0f} s of one"
        " core; what the tasks and columns are stands at its head.\n\n"
        "| task | method | " + " | ".join(table.columns) + " |\n" + "|---" * (2 + table.shape[1]) + "|\n"
    )
    for (task, method), row in table.iterrows():
        values = [
            f"{value:.0f}" if name in ("queries", "candidates") else f"{value:.3f}" for name, value in row.items()
        ]
        text += f"| {task} | {method} | " + " | ".join(values) + " |\n"
    (args.out / "recovery.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
