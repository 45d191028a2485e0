"""How much trust the network's opinion of a cell deserves when it deals molecules (Kang et al. 2018).

    python benchmarks/dealing.py

Training cells of the four largest types, predicted from their controls and told their true means, so that only the
shape of the population can be wrong, by the gain on what the network sees of a cell: 0 would deal by depth alone.
"spread / real": spread within types, `scidiff.evaluation.spread`; "corr_responding": how genes go together, mean over
types; energy distance of each type. Nothing is held out: the gain is a choice of the tool, not a result.
"""

from __future__ import annotations

import argparse
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
from scidiff.evaluation.spread import Spread
from scidiff.tasks import predict as task

ASKED = {"perturbation": "IFN-beta"}
GAINS = (1.0, 1.5, 2.0, 2.5, 3.0)


def told_the_mean(model: sd.ScIDiff, source: AnnData, real: AnnData, *, seed: int) -> AnnData:
    """Return cells as the model would predict them if it knew the mean and the depth of the real ones."""
    x, true = sparse.csr_matrix(source.X), sparse.csr_matrix(real.X)
    effect = metrics.effect(log1p_cp10k(true), log1p_cp10k(x))
    ratio = (true.sum() / true.shape[0]) / (x.sum() / x.shape[0])
    after = model.schema.table(source).assign(**ASKED)
    counts = task.counts_under(model, x, after, effect, depth_ratio=ratio, seed=seed)
    return AnnData(log1p_cp10k(counts), layers={"counts": counts})


def by_gain(*, seed: int = 0) -> pd.DataFrame:
    """Return the table."""
    adata, schema = sd.data.load("kang18"), sd.data.schema_of("kang18")
    adata = adata[:, highly_variable_genes(log1p_cp10k(adata.X), 2000)].copy()
    model = sd.ScIDiff.fit(adata, schema, denoise_only=True, seed=seed)
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
    """Run and write benchmarks/results/dealing.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    (args.out / "dealing.md").write_text("Made by `python benchmarks/dealing.py`.\n\n" + markdown(by_gain()))


if __name__ == "__main__":
    main()
