"""Can predicted combinations be told apart? Perturbation discrimination (pds) over all that was held out in turn.

    python benchmarks/peers/pds.py norman19 --seeds 3 CellFlow=cellflow.h5ad scIDiff=ours.h5ad

A unit of `benchmarks/predict.py` is one combination, and pds needs several: here the predicted effect of each unit
(from training cells that lack it) is looked up among the true effects of all units of the seed,

    d_pred = mean(predicted) - mean(source)     d_true = mean(held-out cells) - mean(control)     1 - rank / P

the target genes left out; 1 is best, .5 chance. Beside the tools of the files stand closed forms and one half of the
real cells in the place of a prediction, looked up among the other halves. Goes to benchmarks/results/pds_<data>.md.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from table import RESULTS, markdown

import scidiff as sd
from scidiff.benchmarking.predict import HELD_OUT, Ours, Screen, Unit, fit
from scidiff.benchmarking.predict_report import CEILING, CLOSED
from scidiff.errors import InputError
from scidiff.evaluation.evaluate import log_expression
from scidiff.evaluation.metrics import effect, pds
from scidiff.evaluation.shifts import SHIFTS
from scidiff.training import TrainConfig

sys.path.append(str(Path(__file__).parents[1]))
from predict import TASKS

SIMPLE = ("perturbed mean", "matching mean", "additive")


def predicted(unit: Unit, files: Mapping[str, anndata.AnnData]) -> Iterator[tuple[str, anndata.AnnData]]:
    """Yield the name of every method and the cells it predicts; those that refuse are missing."""
    for name in (*SIMPLE, CLOSED):
        try:
            if name == CLOSED:
                model = fit(unit.train, unit.schema, TrainConfig(steps=1), None, lambda *told: None)
                yield name, unit.predicted(Ours(model, network=False))
            else:
                yield name, unit.predicted(SHIFTS[name].fit(unit.train, unit.schema))
        except InputError:
            continue
    for name, cells in files.items():
        here = cells[(cells.obs[HELD_OUT].astype(str) == unit.label).to_numpy()]
        if here.n_obs:
            yield name, here


def scores(units: list[Unit], files: Mapping[str, anndata.AnnData]) -> pd.DataFrame:
    """Return pds, units x methods, NaN where a method predicts nothing."""
    genes = list(units[0].train.var_names)
    targets = [[genes.index(part) for part in unit.schema.parts(unit.name) if part in genes] for unit in units]
    x = {(unit.name, role): log_expression(getattr(unit, role), genes) for unit in units for role in ROLES}
    effects: dict[str, dict[str, np.ndarray]] = {CEILING: {}}
    true, halved = [], []
    for unit in units:
        test, control, source = (x[unit.name, role] for role in ROLES)
        true.append(effect(test, control))
        halved.append(effect(test[1::2], control[1::2]))
        effects[CEILING][unit.name] = effect(test[::2], control[::2])
        for name, cells in predicted(unit, files):
            effects.setdefault(name, {})[unit.name] = effect(log_expression(cells, genes), source)
    nothing = np.full(len(genes), np.nan)
    told = {}
    for name, by_unit in effects.items():
        asked = np.array([by_unit.get(unit.name, nothing) for unit in units])
        found = pds(asked, np.array(halved if name == CEILING else true), targets=targets)
        told[name] = np.where(np.isfinite(asked).all(axis=1), found, np.nan)
    return pd.DataFrame(told, index=[unit.name for unit in units])


ROLES = ("test", "control", "source")


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=[name for name, task in TASKS.items() if task.split == "combination=each"])
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # they warn the users of single predictions; here the scores tell
    task = TASKS[args.data]
    schema = sd.data.schema_of(args.data)
    screen = Screen.of(task.cells(args.data), schema, split=task.split, genes=None, layer=None)
    files = {name: anndata.read_h5ad(file) for name, file in (one.split("=", 1) for one in args.files)}
    each = [
        scores([screen.unit(name, seed=seed) for name in screen.units], files).assign(seed=seed)
        for seed in range(args.seeds)
    ]
    table = pd.concat(each).set_index("seed", append=True)
    rows = {}
    for tool in files:
        here = table[table[tool].notna()]
        rows[f"where {tool} predicts ({len(here)})"] = here.mean()
    by_unit = table.groupby(level=0, sort=False).mean()
    wide = pd.concat([pd.DataFrame(rows).T, by_unit])[[CEILING, *SIMPLE, CLOSED, *files]]
    command = " ".join(["benchmarks/peers/pds.py", *sys.argv[1:]])
    text = f"Made by `python {command}`: pds among {len(by_unit)}, mean over the seeds that a method predicts.\n\n"
    (RESULTS / f"pds_{args.data}.md").write_text(text + markdown(wide.rename_axis("held out")))


if __name__ == "__main__":
    main()
