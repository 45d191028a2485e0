"""Fate: where each cell will end, as it is and under a perturbation.

Cells walk over each other in the places that the network gives them (integration.fate), in the direction of their
velocity where they have one; the network also places them by half of their genes and by the other half, and cells of a
group differ as far as both say so. What a perturbation does to a context on average pushes each of its cells at every
step of the walk; where there are cells that had it, the walk ends in the shares in which these have arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scidiff.data.cells import expect_cells
from scidiff.data.scaling import log1p_cp10k
from scidiff.errors import InputError, closest, whole_numbers
from scidiff.integration.fate import Fates, Places, check_walk, fates, interval
from scidiff.integration.velocity import N_NEIGHBORS, has_velocity
from scidiff.model import TrainedModel
from scidiff.predictor import context_keys
from scidiff.tasks.predict import effect_on, perturbations, warn_of
from scidiff.tasks.velocity import Placed, directions, moves, placed, placed_by_halves, with_places

if TYPE_CHECKING:
    from anndata import AnnData

#: of the intervals
LEVEL = 0.9
#: ways in which genes are halved: with twenty rounds, each half is walked once
N_HALVINGS = 5


def fate(
    model: TrainedModel,
    adata: AnnData,
    terminal: Mapping[str, Sequence[str]],
    *,
    to: Mapping[str, Any] | None = None,
    use_velocity: bool = True,
    n_neighbors: int = N_NEIGHBORS,
    n_rounds: int = 20,
    layer: str | None = None,
    seed: int = 0,
    on_cells: Callable[[int, int], None] | None = None,
) -> AnnData:
    """Return cells with the probabilities of their ends; see :meth:`scidiff.ScIDiff.fate`."""
    expect_cells(adata)
    column, names = _terminal(adata, terminal)
    whole_numbers(seed=(seed, 0), n_neighbors=(n_neighbors, 1))
    had_it, asked = np.empty(0, dtype=str), None
    if to is not None:
        asked = perturbations(model, to).iloc[0].dropna()
        had_it = adata.obs[column].astype(str).to_numpy()[_treated(model, adata, asked)]
        adata = _controls(model, adata)
    group = adata.obs[column].astype(str).to_numpy()
    ends = pd.Index(names).get_indexer(group)
    check_walk(ends, names, n_rounds=n_rounds)  # before the long part
    moving = use_velocity and has_velocity(adata)
    n_halves = min(2 * N_HALVINGS, n_rounds // 4 * 2)
    progress = _Progress(on_cells, adata.n_obs, passes=moving + n_halves + n_rounds * (1 if to is None else 2))
    cells = placed(model, adata, layer=layer)
    moved, push, source = None, None, "none"
    if moving:
        moved, source = moves(model, adata, cells, n_neighbors=n_neighbors, on_cells=progress.cells)
    if asked is not None:
        push = _push(model, adata, cells, asked)
    free, pushed = [], []
    for i, (seen, view) in enumerate(_views(model, adata, cells, n_halves, seed=seed)):
        # what the genes it sees say of where cells go, but what the perturbation does to all
        free.append(Places(view.points, None if moved is None else directions(view, moved * seen)))
        if push is not None:
            pushed.append(replace(free[-1], push=directions(view, push)))
        if i > 0:  # each half is a pass more
            progress.rounds(moving)(i)
    options: dict[str, Any] = {"group": group, "n_neighbors": n_neighbors, "n_rounds": n_rounds, "seed": seed}
    count = progress.rounds(moving + n_halves)
    own = fates(free[0], ends, names, halves=free[1:], on_round=count, **options)
    out = with_places(adata, model, cells)
    low, high = interval(own.rounds, level=LEVEL)
    for key, values in (("fate", own.probability), ("fate_low", low), ("fate_high", high)):
        out.obsm[key] = pd.DataFrame(values, index=adata.obs_names, columns=names)
    table = _table(own, group)
    if to is not None:
        count = progress.rounds(moving + n_halves + n_rounds)
        walked = fates(pushed[0], ends, names, halves=pushed[1:], like=own, on_round=count, **options)
        changed = own.told(*_found(had_it, names, group), pushed=walked, seed=seed)
        out.obsm["fate_perturbed"] = pd.DataFrame(changed.probability, index=adata.obs_names, columns=names)
        difference = replace(changed, rounds=changed.rounds - own.rounds)
        for prefix, some in (("perturbed", changed), ("change", difference)):
            found = _table(some, group)[["probability", "low", "high"]]
            table[[prefix, f"{prefix}_low", f"{prefix}_high"]] = found
    out.uns["scidiff"] = model.provenance(
        "fate",
        {"X": "observed, log1p(CP10k)"},
        terminal={column: names},
        condition="as they are" if to is None else pd.Series(dict(to)).to_json(),
        arrived_under_it=int(np.isin(had_it, names).sum()),
        velocity=source,
        n_neighbors=n_neighbors,
        n_rounds=n_rounds,
        seed=seed,
        fate=table,
    )
    return out


@dataclass(frozen=True)
class _Progress:
    """Tells how far a fate is: every cell is passed once for its velocity, for each place, and in every round."""

    on_cells: Callable[[int, int], None] | None
    n: int
    passes: int

    def cells(self, done: int) -> None:
        if self.on_cells is not None:
            self.on_cells(done, self.n * self.passes)

    def rounds(self, before: int) -> Callable[[int], None]:
        """Return what counts rounds after this many passes."""
        return lambda done: self.cells((before + done) * self.n)


def _views(
    model: TrainedModel, adata: AnnData, cells: Placed, n_halves: int, *, seed: int
) -> Iterator[tuple[np.ndarray, Placed]]:
    """Yield genes that are seen, shape (n_genes,), and the cells' places by them: all of them, then each half."""
    yield np.ones(cells.level.shape[1], dtype=bool), cells
    yield from islice(placed_by_halves(model, adata, cells, seed=seed), n_halves)


def _terminal(adata: AnnData, terminal: Mapping[str, Sequence[str]]) -> tuple[str, list[str]]:
    """Return the column and its values that are ends."""
    if not isinstance(terminal, Mapping) or len(terminal) != 1:
        raise InputError("terminal= names one obs column and the values that are ends, as in {'cell_type': ['A', 'B']}")
    column, names = next(iter(terminal.items()))
    if column not in adata.obs:
        raise InputError(f"obs has no column {column!r}{closest(column, list(adata.obs))}")
    names = [names] if isinstance(names, str) else [str(name) for name in names]
    known = sorted(set(adata.obs[column].dropna().astype(str)))
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"no cell has {column} {unknown[0]!r}{closest(unknown[0], known)}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError("terminal= needs two ends at least, each named once")
    return column, names


def _treated(model: TrainedModel, adata: AnnData, asked: pd.Series) -> np.ndarray:
    """Return whether cells had the perturbation, in dose and time as asked where they are, shape (n_cells,)."""
    return (model.conditions_of(adata)[list(asked.index)] == asked).all(axis=1).to_numpy()


def _found(had_it: np.ndarray, names: list[str], group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where cells that had the perturbation have arrived, and how many still on the way each cell stands for.

    A cell stands for those of its ``group``; where none is on the way, all cells on the way are alike.
    """
    ends = pd.Index(names).get_indexer(had_it)
    on_the_way = pd.Series(had_it[ends < 0]).value_counts()
    over = pd.Series(group).map(on_the_way / pd.Series(group).value_counts()).fillna(0).to_numpy(dtype=float)
    return ends[ends >= 0], over if over.any() else ~np.isin(group, names)


def _controls(model: TrainedModel, adata: AnnData) -> AnnData:
    """Return the control cells: what a perturbation does is asked of those that have none."""
    if model.schema.perturbation is None or model.schema.columns["perturbation"] not in adata.obs:
        return adata
    control = model.schema.is_control(model.conditions_of(adata))
    if not control.any():
        raise InputError(f"none of the {adata.n_obs} cells is a control ({model.schema.control}): none to start from")
    return adata[control]


def _push(model: TrainedModel, adata: AnnData, cells: Placed, asked: pd.Series) -> np.ndarray:
    """Return what the perturbation does to the level of each cell, its context's mean, shape (n_cells, n_genes).

    The closed form alone: a cell is predicted in whole molecules, too few to say how the cell itself differs.
    """
    table, logged = model.conditions_of(adata), log1p_cp10k(cells.x)
    context = context_keys(table, model.schema.context)
    push = np.zeros_like(cells.level)
    for key in np.unique(context):
        rows = context == key
        own = table[list(model.schema.context)][rows].iloc[0].dropna()
        effect = effect_on(model, asked, own, np.asarray(logged[rows].mean(axis=0)).ravel())
        warn_of(model, effect, asked, own)
        push[rows] = effect.mean
    return push


def _table(found: Fates, group: np.ndarray) -> pd.DataFrame:
    """Return one row per group of cells and end: mean probability, its interval, and how reliable differences are."""
    rows = []
    for name in pd.unique(group):
        cells = group == name
        values = zip(found.names, *found.of(cells, level=LEVEL), strict=True)
        rows += [(name, int(cells.sum()), *row, found.reliable[cells][0]) for row in values]
    return pd.DataFrame(rows, columns=["group", "n", "end", "probability", "low", "high", "reliable"])
