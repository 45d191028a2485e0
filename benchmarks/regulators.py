"""Which regulators stand behind interferon? Known answers, of cells that had it and of cells designed without it told.

    SCIDIFF_DATA=folder python benchmarks/regulators.py

PBMC with and without interferon beta (Kang et al. 2018), CollecTRI. Interferon works through STAT1, STAT2 and IRF9. A
model that knows types of cells, and nothing of who was stimulated, is trained on two thirds of the cells. *observed*:
the effect is that of the stimulated cells held out. *designed*: cells with ISG15, IFI6, IFIT3 and MX1 at the level of
stimulated cells of training; these four are no evidence. *observed, without the four*: the stimulated cells held out,
with the same genes left out: as well as a perfect design could do. Ranks are among all regulators with five targets,
of ``in_silico`` among the 30 tried. ``rewired`` is what the column ``rank`` follows.

*Spread of scores*: resting cells of one type against those of all others; the range of the middle half of all
regulators, over that of a standard normal. Most regulators do not tell types apart: a score whose null is right spreads
by little more than 1.

*In silico, by chance*: cosines of regulons with as many targets, alike in expression, drawn at random for each of the
30. *never seen*: the same with a model that was trained without any stimulated cell.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.data.scaling import row_sums
from scidiff.integration import rank_regulators, read_network
from scidiff.integration.regulons import weights_of
from scidiff.tasks.in_silico import in_silico

TYPES = ("CD4 T", "CD14 Mono", "B", "NK")
TRUE = ("STAT1", "IRF9", "STAT2")
RESPONSE = ("ISG15", "IFI6", "IFIT3", "MX1")
METHODS = ("rewired", "ulm", "mlm", "aucell", "in_silico", "consensus")
N_RANDOM = 4  # random regulons for each regulator that was tried


def trained(cells, folder: Path | None, seed: int) -> sd.ScIDiff:
    """Return the model of these cells, from the folder if it is there."""
    if folder is not None and folder.exists():
        return sd.ScIDiff.load(folder)
    seen = np.ravel((cells.X > 0).mean(axis=0))
    genes = list(cells.var_names[seen >= 0.05])
    model = sd.ScIDiff.fit(cells, sd.Schema(context="cell_type"), genes=genes, seed=seed)
    if folder is not None:
        model.save(folder)
    return model


def places(table: pd.DataFrame) -> dict[str, list[float]]:
    """Return the ranks of the true regulators by every method, missing where they were not ranked."""
    rows = table[table["kind"] == "tf"].set_index("name")
    sign = np.sign(rows["rewired"])
    ranks = {name: (-rows[name] * sign).rank() for name in METHODS if name in rows}
    ranks["consensus"] = rows["consensus_rank"]
    return {name: [float(rank.get(tf, np.nan)) for tf in TRUE] for name, rank in ranks.items()}


def told(kind: str, cells: str, table: pd.DataFrame) -> list[tuple]:
    """Return the rows of the result for one ranking."""
    return [(kind, cells, method, *place) for method, place in places(table).items()]


def by_chance(model: sd.ScIDiff, table: pd.DataFrame, effect: np.ndarray, cells, network: pd.DataFrame) -> np.ndarray:
    """Return the cosines of random regulons."""
    rng = np.random.default_rng(0)
    names, weights = weights_of(network, pd.Index(model.genes), 1)
    tried = names.get_indexer(table.loc[table["in_silico"].notna(), "name"])
    x = sparse.csr_matrix(cells[:, model.genes].X)
    order = np.argsort(np.ravel(x.mean(axis=0)), kind="stable")
    place = np.argsort(order)
    columns = []
    for i in np.repeat(tried, N_RANDOM):
        own = slice(weights.indptr[i], weights.indptr[i + 1])
        near = place[weights.indices[own]] + rng.integers(-40, 41, own.stop - own.start)
        genes = order[np.clip(near, 0, len(order) - 1)]
        columns.append(sparse.csc_matrix((weights.data[own], (genes, 0 * genes)), shape=(len(order), 1)))
    cond = model.encoded(model.labels_of(cells, use=True), depth=row_sums(x))
    return in_silico(model, effect, sparse.hstack(columns, format="csc"), x, cond)


def as_if_designed(cells: AnnData) -> AnnData:
    """Return real cells marked as if the four genes had been steered, so that these are no evidence."""
    cells = cells.copy()
    cells.uns["scidiff"] = {"verb": "design", "genes": list(RESPONSE)}
    return cells


def spread(adata: AnnData, network: pd.DataFrame) -> pd.DataFrame:
    """Return how far scores spread between resting cells of one type and all others, in standard normal's."""
    resting = adata[adata.obs["condition"] == "control"]
    x, rows = sparse.csr_matrix(sd.data.log1p_cp10k(resting.X)), []
    for kind in TYPES:
        own = (resting.obs["cell_type"] == kind).to_numpy()
        cells = x[np.flatnonzero(own)], x[np.flatnonzero(~own)]
        effect = pd.Series(np.ravel(cells[0].mean(axis=0) - cells[1].mean(axis=0)), adata.var_names)
        scores = rank_regulators(effect, network, cells=cells, multivariate=False, per_cell=False)[["rewired", "ulm"]]
        rows.append((kind, *(scores.quantile(0.75) - scores.quantile(0.25)) / 1.349))
    return pd.DataFrame(rows, columns=["type", "rewired", "ulm"])


def timing(network: pd.DataFrame) -> str:
    """Return the seconds that all regulators take on 5,000 cells of 9,000 genes."""
    rng = np.random.default_rng(0)
    known = pd.Index(network["target"].unique())
    genes = known.append(pd.Index([f"other {i}" for i in range(9000 - len(known))]))
    cells = [sparse.random(2500, 9000, 0.08, format="csr", rng=rng) for _ in range(2)]
    effect = pd.Series(np.ravel(cells[0].mean(axis=0) - cells[1].mean(axis=0)), genes)
    started = time.process_time()
    table = rank_regulators(effect, network, cells=tuple(cells), min_targets=1, min_detected=0)
    return (
        f"{len(table)} regulators, {len(network)} edges, 5,000 cells x 9,000 genes: all columns in "
        f"{time.process_time() - started:.0f} s of one core."
    )


def main() -> None:
    """Run and write benchmarks/results/regulators.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, help="folder in which models are kept from one run to the next")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    network = read_network(Path(os.environ.get("SCIDIFF_DATA", ".")) / "collectri_human.tsv.gz")
    adata, schema = sd.data.load("kang18"), sd.data.schema_of("kang18")
    split = sd.data.random_split(adata, schema, fraction=1 / 3, seed=args.seed)
    train, test = adata[split.train].copy(), adata[split.test]
    resting = train[train.obs["condition"] == "control"].copy()
    models = {
        "seen": trained(train, args.models and args.models / "seen", args.seed),
        "never seen": trained(resting, args.models and args.models / "never_seen", args.seed),
    }
    ranks, chance = [], []
    for kind in TYPES:
        held_out = test[(test.obs["cell_type"] == kind) & (test.obs["condition"] != "control")]
        for name, model in models.items():
            table = model.attribute(held_out, reference=resting, network=network)
            change = effect_of(held_out, resting[resting.obs["cell_type"] == kind], model.genes)
            random = by_chance(model, table, change, resting[resting.obs["cell_type"] == kind], network)
            own = table.set_index("name")["in_silico"]
            chance.append((name, kind, *own[list(TRUE)], np.mean(random), np.std(random), np.quantile(random, 0.95)))
            if name == "seen":
                ranks += told(kind, "observed", table)
                table = model.attribute(as_if_designed(held_out), reference=resting, network=network)
                ranks += told(kind, "observed, without the four", table)
        stimulated = train[(train.obs["cell_type"] == kind) & (train.obs["condition"] != "control")]
        levels = np.ravel(sd.data.log1p_cp10k(stimulated[:, models["seen"].genes].X).mean(axis=0))
        wish = [f"{gene}={levels[models['seen'].genes.index(gene)]:.3f}" for gene in RESPONSE]
        designed = models["seen"].design(sd.Phenotype(up=wish), 200, {"cell_type": kind}, seed=args.seed)
        table = models["seen"].attribute(designed, reference=resting, network=network)
        ranks += told(kind, "designed", table)
        print(kind, flush=True)
    text = f"Made by `python benchmarks/regulators.py --seed {args.seed}`; what it does stands at its head.\n\n"
    text += "Ranks:\n\n" + markdown(pd.DataFrame(ranks, columns=["type", "cells", "method", *TRUE]), "{:.0f}")
    columns = ["stimulated cells", "type", *TRUE, "random: mean", "random: SD", "random: 95 %"]
    text += "\nIn silico, cosines:\n\n" + markdown(pd.DataFrame(chance, columns=columns), "{:.2f}")
    text += "\nSpread of scores:\n\n" + markdown(spread(adata, network), "{:.2f}")
    text += f"\n{timing(network)}\n"
    (args.out / "regulators.md").write_text(text)
    print(text)


def effect_of(treated, control, genes: list[str]) -> np.ndarray:
    """Return the change of mean log1p(CP10k), of the model's genes as the model counts them."""
    mean = [np.ravel(sd.data.log1p_cp10k(cells[:, genes].X).mean(axis=0)) for cells in (treated, control)]
    return mean[0] - mean[1]


def markdown(table: pd.DataFrame, number: str) -> str:
    """Return a table as markdown."""
    rows = [[one if isinstance(one, str) else number.format(one) for one in row] for row in table.to_numpy(object)]
    lines = [list(table.columns), ["---"] * table.shape[1], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
