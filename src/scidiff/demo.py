"""The main job from beginning to end on a simulated screen: check, split, train, generate, evaluate, design, report.

A random third of every condition is held out. The model generates as many cells of the same conditions, and both it
and the baselines are scored against the held-out cells, beside the score of real cells (the training ones). Then the
loop is closed: cells are designed to have a phenotype, the model names the treatment that should give it, the
laboratory of the simulator does the experiment, and the fresh cells are looked at.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scidiff.errors import DataWarning
from scidiff.files import whole_file, write_h5ad

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scidiff.data.lab import Lab
    from scidiff.estimator import ScIDiff

#: a small screen with enough cells of each condition to judge them
SCREEN: Mapping[str, Any] = {
    "n_cells": 6000,
    "n_genes": 1000,
    "n_tfs": 60,
    "n_states": 3,
    "n_batches": 2,
    "n_perturbations": 12,
    "n_null": 2,
    "n_duplicates": 1,
    "n_combinations": 3,
    "n_clones": 20,
    "doses": (1.0, 10.0),
    "times": (24.0,),
}

#: the phenotype of the demonstration: so many genes that shall be up, in so many designed and fresh cells
N_UP, N_DESIGNED = 3, 300

#: the screen's effects are many and weak, and need longer training with less shrinkage than cells of few conditions:
#: a minute or two on two cores
TRAINING: Mapping[str, Any] = {"steps": 2000, "weight_decay": 0.5}


@dataclass(frozen=True)
class Demo:
    """What the demonstration made: files by name, and the scores with a column for each baseline."""

    files: dict[str, Path]
    scores: pd.DataFrame


def _silent(what: str) -> AbstractContextManager[Callable[..., None]]:
    return contextlib.nullcontext(lambda *args: None)


def run(
    folder: Path,
    *,
    seed: int = 0,
    screen: Mapping[str, Any] = SCREEN,
    training: Mapping[str, Any] = TRAINING,
    progress: Callable[[str], AbstractContextManager[Callable[..., None]]] = _silent,
) -> Demo:
    """Return scores and files after doing it all in ``folder``, which exists.

    Parameters
    ----------
    folder
        Where screen.h5ad, model, cells.h5ad, scores.csv, designed.h5ad and report.html go, in place of older ones.
    seed
        Makes everything reproducible.
    screen
        Arguments of :func:`scidiff.data.simulate`.
    training
        Arguments of :class:`scidiff.TrainConfig`.
    progress
        ``progress(what)`` is a context that yields ``advance(done, total, note)``.
    """
    from scidiff.data import Schema, check, random_split, simulate
    from scidiff.estimator import ScIDiff
    from scidiff.evaluation import ConditionalMultinomial, GaussianPCA, evaluate, write_report
    from scidiff.training import TrainConfig

    names = "screen.h5ad", "model", "cells.h5ad", "scores.csv", "designed.h5ad", "report.html"
    files = {Path(name).stem: folder / name for name in names}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", DataWarning)
        with progress("simulating"):
            simulation = simulate(**screen, seed=seed)
            adata = simulation.adata
        schema = Schema(perturbation="perturbation", control="control", context="cell_type", dose="dose", batch="batch")
        found = check(adata, schema)
        split = random_split(adata, schema, fraction=1 / 3, seed=seed)
        seen, heldout = adata[split.train].copy(), adata[split.test].copy()

        with progress("training") as advance:
            model = ScIDiff.fit(
                seen,
                schema,
                config=TrainConfig(**training, seed=seed),
                on_step=lambda at: advance(at.step, at.steps, f"loss {at.loss:.4g}"),
            )
        conditions = schema.table(heldout)
        with progress("generating") as advance:
            cells = model.generate(1, conditions, seed=seed, on_cells=advance)
        with progress("scoring"):
            scores = evaluate(cells, heldout, schema=schema, reference=seen, seed=seed)
            baselines = {}
            for name, method in (("multinomial", ConditionalMultinomial), ("Gaussian PCA", GaussianPCA)):
                other = method.fit(seen, schema).generate(conditions, seed=seed)
                baselines[name] = evaluate(other, heldout, schema=schema, reference=seen, seed=seed)

        with progress("designing") as advance:
            designed, loop = close_loop(model, simulation.lab, seed=seed, on_cells=advance)

    for text in (texts := list(dict.fromkeys(str(one.message) for one in caught))):
        warnings.warn(text, DataWarning, stacklevel=2)

    write_h5ad(files["screen"], adata)
    model.save(files["model"], files={"split.json": split.to_json()})
    write_h5ad(files["cells"], cells)
    write_h5ad(files["designed"], designed)
    table = scores.copy()
    for i, (name, other) in enumerate(baselines.items()):
        table.insert(3 + i, name, other["value"])
    with whole_file(files["scores"]) as part:
        table.to_csv(part, index=False)
    write_report(
        files["report"],
        title="scIDiff on a simulated screen",
        about={
            "data": "simulated from a gene-regulatory network: knock-outs, activations, drugs in two doses, pairs",
            "cells": f"{adata.n_obs:,}, of which {len(split.test):,} held out (a random third of every condition)",
            "genes": adata.n_vars,
            "median depth": "{median_molecules:.0f} molecules of {median_genes:.0f} genes".format(**found.depth),
            "conditions": f"{len(schema.table(adata).drop_duplicates())} (perturbation, dose, cell type, batch)",
            "noise process": model.settings["noise"],
            "seed": seed,
        },
        history=model.history,
        real=heldout,
        generated=cells,
        color="cell_type",
        scores=scores,
        baselines=baselines,
        extra_sections=[("From a phenotype to an experiment", loop)],
        warnings=[finding.text for finding in found.findings if finding.level == "note"] + texts,
    )
    return Demo(files, table)


def close_loop(
    model: ScIDiff, lab: Lab, *, seed: int, on_cells: Callable[[int, int], None]
) -> tuple[AnnData, list[str | pd.DataFrame]]:
    """Return designed cells, and what became of the phenotype in the laboratory: a text and a table of its genes.

    The phenotype: the genes that the strongest treatment of training raises most in the commonest cell type, as high as
    in the highest tenth of its cells. The model is not told which treatment that is.
    """
    import numpy as np
    import pandas as pd

    from scidiff.data.scaling import log1p_cp10k
    from scidiff.phenotype import Phenotype

    assert model.library is not None
    effects = model.library.shrunk
    state = model.reference.conditions["cell_type"].value_counts().index[0]
    strongest = effects[int(np.argmax(np.square(effects).sum(axis=1)))]
    genes = [model.genes[i] for i in np.argsort(-strongest)[:N_UP]]
    phenotype = Phenotype(up=genes)
    designed = model.design(phenotype, N_DESIGNED, {"cell_type": state}, seed=seed, on_cells=on_cells)
    named = model.attribute(phenotype=phenotype, condition={"cell_type": state})["name"].iloc[0]
    parts = [part.split(" @ ") for part in named.split("+")]
    perturbation, dose = "+".join(part for part, *_ in parts), float(parts[0][1]) if parts[0][1:] else None
    fresh = lab.run(perturbation, dose=dose, cell_type=state, n=N_DESIGNED, seed=seed)
    control = lab.run("control", cell_type=state, n=N_DESIGNED, seed=seed)
    levels = {
        name: np.asarray(log1p_cp10k(cells[:, genes].X, total=_depth(cells)).mean(axis=0)).ravel()
        for name, cells in (("control cells", control), ("designed cells", _counted(designed)), ("experiment", fresh))
    }
    text = (
        f"Asked for: {', '.join(genes)} up in {state} cells. Designed cells: {designed.uns['scidiff']['text'][0]}. Of "
        f"all treatments of the screen the model names {named}; the laboratory ran it on fresh cells. Mean "
        "log1p(CP10k):"
    )
    return designed, [text, pd.DataFrame({"gene": genes, **levels}).round(2)]


def _counted(cells: AnnData) -> AnnData:
    """Return cells with their counts as X."""
    cells = cells.copy()
    cells.X = cells.layers["counts"]
    return cells


def _depth(cells: AnnData):
    from scidiff.data.scaling import row_sums

    return row_sums(cells.X)
