"""Generate: new cells of conditions, from nothing.

A table of conditions is completed as in training (what was left open, depths), sampled in chunks, and handed back as
AnnData.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scidiff.data.cells import Cells
from scidiff.data.scaling import row_sums
from scidiff.errors import InputError, closest, whole_numbers
from scidiff.model import TrainedModel
from scidiff.sampling.generate import generate as sample
from scidiff.sampling.guidance import ClassifierFree
from scidiff.tasks.requests import as_cells, checked_depth

if TYPE_CHECKING:
    from anndata import AnnData

#: factors on what a cell's molecules say that calibration may choose from; beyond, the network itself is at fault
GAINS = (0.9, 1.4)
#: with fewer, the spread of real cells is too uncertain to calibrate to
MIN_CELLS_TO_CALIBRATE = 200


def generate(
    model: TrainedModel,
    n: int = 1,
    condition: Mapping[str, Any] | pd.DataFrame | None = None,
    *,
    depth: float | np.ndarray | None = None,
    guidance: float | Mapping[str, float] = 1.0,
    n_steps: int = 20,
    solver: Callable[..., torch.Tensor] | None = None,
    seed: int = 0,
    on_cells: Callable[[int, int], None] | None = None,
) -> AnnData:
    """Return new cells; see :meth:`scidiff.ScIDiff.generate`."""
    whole_numbers(n=(n, 1), n_steps=(n_steps, 1), seed=(seed, 0))
    _refuse_useless(model, depth=depth, solver=solver, guidance=guidance)
    if "sample" not in set(model.history["stage"]):
        raise InputError("this model was trained to denoise only; fit one without denoise_only to generate cells")
    # three streams, so that two conditions asked for with one seed share their noise: paired cells
    of_conditions, of_depths, of_noise = np.random.SeedSequence(seed).spawn(3)
    asked = model.schema.conditions({} if condition is None else condition, known=model.vocabulary.known)
    if not len(asked):
        raise InputError("the table of conditions has no rows")
    asked = asked.loc[np.repeat(asked.index, n)].reset_index(drop=True)
    table = model.population.complete(asked, rng=np.random.default_rng(of_conditions))
    depths = None
    if model.counted and depth is None:
        depths = model.population.draw_depth(table, rng=np.random.default_rng(of_depths))
    elif depth is not None:
        depths = checked_depth(depth, len(table))
    cond = model.vocabulary.encode(table, depth=depths)
    guided = ClassifierFree(model.denoiser, guidance)
    chunks: list[Any] = []

    def collect(x: torch.Tensor) -> None:
        chunks.append(sparse.csr_matrix(x.numpy()) if model.standardizer is None else x.numpy())
        if on_cells is not None:
            on_cells(sum(chunk.shape[0] for chunk in chunks), len(table))

    sample(
        model.denoiser,
        cond,
        n_steps=n_steps,
        guided=guided,
        solver=solver,
        gain=model.settings["gain"],
        generator=torch.Generator(model.denoiser.device).manual_seed(int(of_noise.generate_state(1)[0])),
        on_cells=collect,
    )
    stack = sparse.vstack(chunks, format="csr") if model.standardizer is None else np.concatenate(chunks)
    made = as_cells(model, stack, table)
    scales = {"X": "log1p(CP10k)" if model.counted else "training scale"}
    made.uns["scidiff"] = model.provenance(
        "generate",
        scales | ({"counts": "counts"} if model.standardizer is None else {}),
        condition="as in training" if condition is None else asked.to_json(orient="records"),
        depth="as in training" if depth is None else "as asked",
        seed=seed,
        n_steps=n_steps,
        solver=getattr(getattr(solver, "func", solver), "__name__", "default"),
        guidance=dict(guidance) if isinstance(guidance, Mapping) else float(guidance),
    )
    return made


def calibrated_gain(model: TrainedModel, cells: Cells, *, seed: int) -> float:
    """Return the gain at which generated cells spread within their conditions as the training cells do.

    Bisected on training cells (at most 1,200), generated in their own conditions and depths with the same noise.
    """
    from scidiff.evaluation.spread import Spread

    rows = np.random.default_rng(seed).permutation(len(cells.conditions))[:1200]
    table = cells.conditions.iloc[rows].reset_index(drop=True)
    condition = table.astype(str).agg("|".join, axis=1).to_numpy() if table.shape[1] else np.zeros(len(rows))
    counts = sparse.csr_matrix(cells.x[rows])
    if len(rows) < MIN_CELLS_TO_CALIBRATE or counts.shape[1] < 3:
        return 1.0
    real = Spread.of(counts, condition)
    compared, depth = slice(1, None, 2), row_sums(counts)

    def ratio(gain: float) -> float:
        trial = replace(model, settings=model.settings | {"gain": gain})
        made = generate(trial, 1, table[compared].reset_index(drop=True), depth=depth[compared], seed=seed)
        return real.ratio(made.layers["counts"], condition[compared])

    low, high = GAINS
    for _ in range(5):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) < 1 else (low, middle)
    return round((low + high) / 2, 3)


def _refuse_useless(model: TrainedModel, *, depth: Any, solver: Any, guidance: Any) -> None:
    """Raise for a request that this model could only ignore."""
    if depth is not None and not model.counted:
        raise InputError("depth= needs a model trained on counts; this one was trained on log expression")
    if solver is not None and model.standardizer is None:
        raise InputError("solver= is for Gaussian noise; thinning has one sampler, with n_steps=")
    known = model.vocabulary.attributes
    if isinstance(guidance, Mapping) and (unknown := [name for name in guidance if name not in known]):
        raise InputError(f"guidance names {unknown[0]!r}, not an attribute of this model{closest(unknown[0], known)}")
