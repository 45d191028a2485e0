"""Which drug was it? Every score of drug signatures on one L1000 plate (GSE70138, A375 cells, 24 h).

    python benchmarks/connectivity.py [--splits 20]

59 drugs, each in five or six wells at as many doses; log2 expression. Two questions:

1. Half of a drug's wells at random are the library, the other half is the query: which drug was it? What all drugs have
   in common is estimated on the library alone. `from control`: the query is a difference to DMSO, as if it came from
   elsewhere, and nothing of the library is taken off it.
2. All wells of a drug are the query, the other drugs are the library: does one with the same target come first?

The wells of a drug are neighbours on this plate, so that the place of a well helps to answer the first question: the
column `DMSO blocks` says how often half of a block of untreated wells finds its own other half among four blocks
(chance .25). It cannot help with the second question, which is therefore what to choose a score by.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from kang_generate import markdown

import scidiff as sd
from scidiff.integration import connectivity
from scidiff.integration.connectivity import WhitenedSpearman, centred_ranks, group_means

MIN_WELLS = 4
TARGETS = {  # the principal target of those drugs that share it with another one
    "BRAF / MEK": ["vemurafenib", "PLX-4720", "PD-184352", "PD-0325901", "AZD-8330", "trametinib"],
    "PI3K / mTOR": ["NVP-BEZ235", "torin-2", "GSK-1059615", "buparlisib", "SAR-245408", "TGX-221", "AZD-6482"],
    "AKT / PDK1": ["AKT-inhibitor-1-2", "GSK-690693", "BX-912"],
    "HSP90": ["geldanamycin", "radicicol"],
    "EGFR / ERBB2": ["erlotinib", "neratinib", "pelitinib", "CP-724714"],
    "Aurora kinases": ["tozasertib", "barasertib"],
    "JAK": ["ruxolitinib", "CYT387", "TG-101348"],
    "MET": ["PHA-665752", "SU-11274", "foretinib", "crizotinib"],
    "ABL / SRC": ["dasatinib", "nilotinib"],
    "CDK": ["CGP-60474", "roscovitine"],
    "VEGFR / FGFR": ["brivanib", "dovitinib"],
}
PLAIN = {
    "spearman": connectivity.spearman,
    "zhang": connectivity.zhang,
    "cosine": connectivity.cosine,
    "weighted_connectivity": connectivity.weighted_connectivity,
    "xsum": connectivity.xsum,
}


def read_plate() -> tuple[np.ndarray, dict[str, np.ndarray], list[np.ndarray]]:
    """Return log2 expression less the mean of DMSO, the wells of each drug, and the blocks of DMSO wells."""
    plate = sd.data.load("lincs_a375")
    values, drug = np.asarray(plate.X, dtype=float), plate.obs["pert_iname"].astype(str).to_numpy()
    counts = pd.Series(drug[drug != "DMSO"]).value_counts()
    wells = {name: np.flatnonzero(drug == name) for name in sorted(counts.index[counts >= MIN_WELLS])}
    row = plate.obs["det_well"].astype(str).str[0].replace({"B": "A"}).to_numpy()  # rows A and B are one block
    blocks = [np.flatnonzero((drug == "DMSO") & (row == one)) for one in np.unique(row[drug == "DMSO"])]
    return values - values[drug == "DMSO"].mean(axis=0), wells, blocks


def halves(wells: list[np.ndarray], rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the library's and the query's wells of every drug."""
    shuffled = [rng.permutation(one) for one in wells]
    return [one[: len(one) // 2] for one in shuffled], [one[len(one) // 2 :] for one in shuffled]


def all_scores(values: np.ndarray, library: list[np.ndarray], queries: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores of every method, (n_queries, n_drugs), for wells of the library's drugs and of the queries."""
    signatures = values[np.concatenate(library)]
    codes = np.repeat(np.arange(len(library)), [len(one) for one in library])
    drugs = group_means(signatures, codes)
    centre = drugs.mean(axis=0)
    means = [values[one].mean(axis=0) for one in queries]
    whitened = WhitenedSpearman.fit(signatures, codes)

    def ranks(wells: np.ndarray) -> np.ndarray:
        return centred_ranks((wells - whitened.centre) / whitened.scale)

    unwhitened = group_means(ranks(signatures), codes) - whitened.mean
    scores = {
        "whitened_spearman": [whitened(values[one]) for one in queries],
        "whitened_spearman, query is a mean": [whitened(mean) for mean in means],
        "whitened_spearman, from control": [whitened(values[one], same_units=False) for one in queries],
        "without whitening": [
            connectivity.cosine(ranks(values[one]).mean(axis=0) - whitened.mean, unwhitened) for one in queries
        ],
    }
    scores |= {name: [score(mean - centre, drugs - centre) for mean in means] for name, score in PLAIN.items()}
    return {name: np.array(rows) for name, rows in scores.items()}


def recovery(values: np.ndarray, wells: list[np.ndarray], blocks: list[np.ndarray], seed: int) -> pd.DataFrame:
    """Return how well every score finds the drug of the other half of its wells, one row per score."""
    rng = np.random.default_rng(seed)
    library, queries = halves(wells, rng)
    rows = {}
    for score, found in all_scores(values, library, queries).items():
        rank = 1 + (found > np.diag(found)[:, None]).sum(axis=1)  # of the true drug
        rows[score] = {"recall@1": (rank == 1).mean(), "recall@5": (rank <= 5).mean(), "mrr": (1 / rank).mean()}
    more, asked = halves(blocks, rng)
    for score, found in all_scores(values, library + more, asked).items():
        rows[score]["DMSO blocks"] = (found[:, -len(more) :].argmax(axis=1) == np.arange(len(more))).mean()
    return pd.DataFrame(rows).T.rename_axis("score").reset_index().assign(seed=seed)


def same_target(values: np.ndarray, wells: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return how early drugs with the target of the query come, itself left out, mean over drugs; one row per score."""
    target = pd.Series({drug: name for name, drugs in TARGETS.items() for drug in drugs})
    rows: dict[str, list[dict[str, float]]] = {}
    for drug in target.index:
        others = [name for name in wells if name != drug]
        alike = np.array([target.get(name) == target[drug] for name in others])
        for score, found in all_scores(values, [wells[name] for name in others], [wells[drug]]).items():
            hits = alike[np.argsort(-found[0], kind="stable")]
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            first = {"target recall@1": hits[0], "target mrr": 1 / (1 + hits.argmax())}
            rows.setdefault(score, []).append(first | {"target mean precision": precision[hits].mean()})
    return pd.DataFrame({score: pd.DataFrame(each).astype(float).mean() for score, each in rows.items()}).T


def main() -> None:
    """Run and write benchmarks/results/connectivity.csv (one row per split and score) and .md (means)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    started = time.perf_counter()
    values, wells, blocks = read_plate()
    table = pd.concat([recovery(values, list(wells.values()), blocks, seed) for seed in range(args.splits)])
    grouped = table.drop(columns="seed").groupby("score", sort=False)
    shown = grouped.mean().join(grouped[["recall@1", "mrr"]].sem().add_suffix(" SE")).join(same_target(values, wells))
    shown = shown[["recall@1", "recall@1 SE", "recall@5", "mrr", "mrr SE", *shown.columns[-3:], "DMSO blocks"]]
    print(shown.round(3).to_string(), f"\n{time.perf_counter() - started:.0f} s")
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "connectivity.csv", index=False, float_format="%.4f")
    n_targets = sum(map(len, TARGETS.values()))
    text = (
        f"Made by `python benchmarks/connectivity.py --splits {args.splits}`: {len(wells)} drugs, means over splits; "
        f"same target: {n_targets} drugs. What the columns are is said in the script.\n\n"
    )
    (args.out / "connectivity.md").write_text(text + markdown(shown))


if __name__ == "__main__":
    main()
