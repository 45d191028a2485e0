"""Who receives the new molecules of a predicted cell: what the two rules of `scidiff.tasks.dealing` do, and others.

    python benchmarks/dealing.py [--data kang18 norman19 zhao21 papalexi21]

Conditions of the training cells, made from their controls and told their true means, so that only the shape of the
population can be wrong; the largest ones, at most 200 cells and controls each. Nothing is held out: which rule is used
is calibrated in this way in every training. "gain": how much louder the network says what it sees in a cell; "own": a
cell keeps what it had of a gene beyond the expected. energy distance in 50 principal components; variances of genes;
"corr_responding", how genes that respond go together. All means over conditions.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from kang_generate import markdown
from predict import TASKS

import scidiff as sd
from scidiff.data.cells import read_cells, usual_genes
from scidiff.data.scaling import log1p_cp10k
from scidiff.evaluation import metrics
from scidiff.tasks import dealing
from scidiff.tasks.dealing import RULES, Dealing

GENES, CONDITIONS = 2000, 6
TRIED = {
    "gain 1": Dealing(gain=1.0, own=False),
    **RULES,
    "own counts, gain 1.5": Dealing(gain=1.5, own=True),
    "own counts, gain 2": Dealing(gain=2.0, own=True),
}


def table_of(name: str, *, seed: int = 0) -> pd.DataFrame:
    """Return a row per rule, mean scores over conditions."""
    adata, schema = TASKS[name].cells(name), sd.data.schema_of(name)
    genes = usual_genes(read_cells(adata), GENES)
    model = sd.ScIDiff.fit(adata, schema, genes=genes, denoise_only=True, seed=seed)
    cells, rows = read_cells(adata, schema, genes=model.genes), []
    with patch.object(dealing, "RULES", TRIED), patch.object(dealing, "REHEARSED", CONDITIONS):
        for one in dealing.rehearsals(model, cells, seed=seed):
            real, before = log1p_cp10k(one.real), log1p_cp10k(one.source)
            for rule in TRIED:
                made = one.made(replace(model, settings=model.settings | {"dealing": rule}))
                logged = log1p_cp10k(made)
                rows.append(
                    {
                        "rule": rule + (" (chosen)" if rule == model.settings["dealing"] else ""),
                        "energy": one.distance(made),
                        "r2_var": metrics.r2_var(logged, real),
                        "corr_responding": metrics.corr_responding(logged, real, before),
                    }
                )
    return pd.DataFrame(rows).groupby("rule", sort=False).mean()


def main() -> None:
    """Run and write benchmarks/results/dealing.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    text = "Made by `python benchmarks/dealing.py`; what each column is says the head of that file.\n"
    for name in args.data:
        table = table_of(name)
        print(name, table, sep="\n", flush=True)
        text += f"\n## {name}\n\n{markdown(table)}"
    (args.out / "dealing.md").write_text(text)


if __name__ == "__main__":
    main()
