"""Trajectories: how given cells get somewhere, frame by frame, along time, along a dose, or to another condition.

    under a perturbation    stops are what predict makes of the cells, at each dose or time that was measured
    between populations     stops are cells of other times, coupled by optimal transport; all but the first renewed
    along RNA velocity      no stops: cells flow, step by step (tasks.velocity)

Between two stops a cell changes molecule by molecule (sampling.trajectory), each gene at the pace of its effect in
closed form, or each cell at its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scidiff.data.cells import expect_cells, read_cells
from scidiff.data.scaling import fit_pca, log1p_cp10k, row_sums
from scidiff.errors import DataWarning, InputError, whole_numbers
from scidiff.model import TrainedModel
from scidiff.predictor import context_keys
from scidiff.sampling.generate import generate
from scidiff.sampling.trajectory import (
    Coupling,
    Matrix,
    arrived,
    asynchronous,
    by_composition,
    draw_each,
    draw_spread,
    frames,
)
from scidiff.tasks.predict import predict
from scidiff.tasks.requests import gene_table, obs_column
from scidiff.tasks.velocity import flow

if TYPE_CHECKING:
    from anndata import AnnData

#: principal components in which populations are coupled, and cells of each of which the coupling is fitted
N_COMPONENTS, N_COUPLED = 50, 1000
#: share of its molecules that a renewed cell keeps, and steps in which the others are drawn
KEPT, RENEWING_STEPS = 0.5, 6


def trajectory(
    model: TrainedModel,
    adata: AnnData,
    to: Mapping[str, Any] | None = None,
    *,
    along: Mapping[str, tuple[Any, Any]] | None = None,
    velocity: float | None = None,
    where: Mapping[str, Any] | None = None,
    steps: int = 20,
    n_paths: int | None = None,
    growth: float | None = None,
    network: bool = True,
    layer: str | None = None,
    seed: int = 0,
    on_cells: Callable[[int, int], None] | None = None,
) -> AnnData:
    """Return the frames of paths; see :meth:`scidiff.ScIDiff.trajectory`."""
    whole_numbers(steps=(steps, 1), n_paths=(n_paths, 1), seed=(seed, 0))
    expect_cells(adata)
    if growth is not None and not 0 < growth < np.inf:
        raise InputError(f"growth={growth} must be above 0: how many cells there are at the end for one at the start")
    if velocity is not None:
        if to or along or growth is not None or n_paths is not None or not network:
            raise InputError("velocity= leads the cells: leave out to=, along=, growth=, n_paths= and network=False")
        return _flowing(model, adata, velocity, where=where, steps=steps, layer=layer, seed=seed, on_cells=on_cells)
    if not to and not along:
        raise InputError("say where to: to={'perturbation': 'A'}, along={'time': (2, 6)}, or velocity=10")
    axis = Axis.of(model, along)
    asked = model.schema.conditions(to or {}).iloc[0].dropna()
    if "perturbation" not in asked:  # of perturbations, those never seen may have features: predict knows
        model.schema.conditions(to or {}, known=model.vocabulary.known)
    if axis.role in asked:
        raise InputError(f"{axis.role} is given by to= and by along=; the path ends where along= does")
    chosen = model.schema.select(adata, where) if where else np.ones(adata.n_obs, dtype=bool)
    how: dict[str, Any] = {"network": network, "layer": layer, "seed": seed}
    if "perturbation" in asked:
        if growth is not None or n_paths is not None:
            raise InputError("growth= and n_paths= are for populations; under a perturbation each cell has one path")
        legs = _predicted(model, adata[chosen], asked.to_dict(), axis, **how)
    else:
        legs = _coupled(model, adata, chosen, asked.to_dict(), axis, n_paths=n_paths, growth=growth, **how)
    made = _filmed(model, legs, axis, steps, seed=seed, on_cells=on_cells)
    made.var = gene_table(adata, model.genes)
    made.uns["scidiff"] = model.provenance(
        "trajectory",
        {"X": "log1p(CP10k)" if model.counted else "training scale"}
        | ({"counts": "counts"} if model.standardizer is None else {}),
        condition=asked.to_json(),
        along="share of the effect" if axis.role is None else axis.role,
        stops=[legs[0].begin, *(leg.end for leg in legs)],
        steps=steps,
        growth="none" if growth is None else float(growth),
        network=network,
        seed=seed,
    )
    return made


@dataclass(frozen=True)
class Axis:
    """What changes along a path: time, dose, or (None) the share of an effect, and from where to where."""

    role: str | None
    begin: float
    end: float

    @classmethod
    def of(cls, model: TrainedModel, along: Mapping[str, tuple[Any, Any]] | None) -> Axis:
        """Return the axis that a user named; raise :class:`InputError` for what is none."""
        if not along:
            return cls(None, 0.0, 1.0)
        if len(along) > 1:
            raise InputError(f"a path runs along one attribute, not {' and '.join(along)}")
        ((name, ends),) = along.items()
        role = model.schema.key(str(name))
        if role not in ("time", "dose"):
            raise InputError(f"{name} is no number: a path runs along time or dose; another {name} is named with to=")
        if isinstance(ends, str) or np.size(ends) != 2:
            raise InputError(f"along {name} needs where it begins and ends, as in (2, 6), not {ends!r}")
        begin, end = model.schema.conditions([{role: value} for value in ends], known=model.vocabulary.known)[role]
        if pd.isna(begin) or pd.isna(end) or begin == end:
            raise InputError(f"a path from {name} {ends[0]} to {ends[1]} goes nowhere; give two numbers that differ")
        return cls(role, float(begin), float(end))

    def stops(self, between: np.ndarray) -> list[float]:
        """Return begin, the distinct numbers that lie strictly between, and end, in the order of the path."""
        inside = [float(p) for p in np.unique(between) if min(self.begin, self.end) < p < max(self.begin, self.end)]
        return [self.begin, *(inside if self.end > self.begin else inside[::-1]), self.end]


@dataclass(frozen=True, eq=False)
class Leg:
    """The part of all paths that lies between two stops.

    Parameters
    ----------
    begin, end
        Positions of the stops.
    start, finish
        The cells there, path by path: counts (csr) or log expression (dense), shape (n_paths, n_genes).
    obs
        What is said of them at both stops, index: names of the paths.
    clock
        Share of the way -> what the clock shows, as :meth:`scidiff.sampling.trajectory.Bridge.at` takes it.
    kind
        The row of the clock that each path follows, shape (n_paths,).
    """

    begin: float
    end: float
    start: Matrix
    finish: Matrix
    obs: tuple[pd.DataFrame, pd.DataFrame]
    clock: Callable[[float], np.ndarray]
    kind: np.ndarray


def _filmed(
    model: TrainedModel,
    legs: list[Leg],
    axis: Axis,
    steps: int,
    *,
    seed: int,
    on_cells: Callable[[int, int], None] | None,
) -> AnnData:
    """Return all frames, stacked."""
    positions = np.linspace(axis.begin, axis.end, steps + 1)
    cells: list[Matrix] = []
    told: list[pd.DataFrame] = []
    rng = np.random.default_rng([seed, 2])
    ahead = np.sign(axis.end - axis.begin)
    passed = np.zeros(steps + 1, dtype=int)  # stops that lie behind each frame
    for leg in legs[:-1]:
        passed += (positions - leg.end) * ahead >= 0
    for i, leg in enumerate(legs):
        share = np.clip((positions - leg.begin) / (leg.end - leg.begin), 0, 1)
        mine = np.flatnonzero(passed == i)
        clocks = [leg.clock(share[k]) for k in mine]
        for k, clock, x in zip(mine, clocks, frames(leg.start, leg.finish, clocks, leg.kind, rng=rng), strict=True):
            obs = leg.obs[0]
            if leg.obs[1] is not obs:  # between populations: what is said of the nearer of the two cells
                nearer = clock[leg.kind, 0] >= 0.5
                obs = pd.concat([leg.obs[0][~nearer], leg.obs[1][nearer]]).reindex(obs.index)
            names = [f"{name}-{k}" for name in obs.index]
            if axis.role is not None:
                obs = obs.assign(**{model.schema.columns[axis.role]: positions[k]})
            told.append(obs.assign(frame=k, position=positions[k]).set_axis(names, axis=0))
            cells.append(x)
            if on_cells is not None:
                on_cells(sum(len(one) for one in told), (steps + 1) * len(obs))
    return _stacked(model, cells, told)


def _stacked(model: TrainedModel, cells: list[Matrix], told: list[pd.DataFrame]) -> AnnData:
    """Return frames, cells and what is said of them, as one AnnData."""
    from anndata import AnnData

    obs = pd.concat(told)
    for name in ("dose", "time"):
        if (column := model.schema.columns.get(name)) in obs:
            obs[column] = obs_column(obs[column].astype(object))
    var = pd.DataFrame(index=pd.Index(model.genes))
    if model.standardizer is not None:
        return AnnData(np.concatenate(cells).astype(np.float32), obs=obs, var=var)
    counts = sparse.vstack(cells, format="csr")
    return AnnData(log1p_cp10k(counts), obs=obs, var=var, layers={"counts": counts})


# ---- along RNA velocity ----------------------------------------------------------------------------------------------


def _flowing(
    model: TrainedModel,
    adata: AnnData,
    length: float,
    *,
    where: Mapping[str, Any] | None,
    steps: int,
    layer: str | None,
    seed: int,
    on_cells: Callable[[int, int], None] | None,
) -> AnnData:
    """Return the frames of cells that follow the velocity of the observed cells around them."""
    if not 0 < length < np.inf:
        raise InputError(f"velocity={length}: say how long to follow it, above 0, in units of 1 / splicing rate")
    chosen = model.schema.select(adata, where) if where else np.ones(adata.n_obs, dtype=bool)
    start = np.flatnonzero(chosen)
    if not len(start):
        raise InputError(f"no cell to start from: none matches {where}")
    cells: list[Matrix] = []
    told: list[pd.DataFrame] = []
    flowing = flow(model, adata, start, dt=length / steps, steps=steps, layer=layer, seed=seed)
    obs = adata.obs.iloc[start].assign(cell=adata.obs_names[start])
    for k, (x, near) in enumerate(flowing):
        cells.append(x)
        names = [f"{name}-{k}" for name in obs.index]
        position = k * length / steps
        told.append(obs.assign(frame=k, position=position, near=adata.obs_names[near]).set_axis(names, axis=0))
        if on_cells is not None:
            on_cells((k + 1) * len(obs), (steps + 1) * len(obs))
    made = _stacked(model, cells, told)
    made.var = gene_table(adata, model.genes)
    made.uns["scidiff"] = model.provenance(
        "trajectory",
        {"X": "log1p(CP10k)", "counts": "counts"},
        along="velocity, 1 / splicing rate",
        stops=[0.0, float(length)],
        steps=steps,
        seed=seed,
    )
    return made


# ---- under a perturbation --------------------------------------------------------------------------------------------


def _predicted(
    model: TrainedModel,
    source: AnnData,
    asked: dict[str, Any],
    axis: Axis,
    *,
    network: bool,
    layer: str | None,
    seed: int,
) -> list[Leg]:
    """Return legs between what the cells are predicted to be where the perturbation was measured."""
    if axis.role is None:
        stops, untouched, conditions = [0.0, 1.0], [True, False], [asked]
    else:
        stops = axis.stops(_measured(model, asked["perturbation"], axis.role))
        untouched = [position == 0 and _starts_at_0(model, axis.role) for position in stops]
        conditions = [asked | {axis.role: stop} for stop, given in zip(stops, untouched, strict=True) if not given]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*measured in training", DataWarning)
        predicted = predict(model, source, conditions, network=network, layer=layer, seed=seed)
    n = predicted.n_obs // len(conditions)
    source = source[predicted.obs_names[:n]]  # its control cells
    given = _values(model, read_cells(source, genes=model.genes, layer=layer).x)
    there = predicted.X if model.standardizer is not None else predicted.layers["counts"]
    made = iter([there[k * n : (k + 1) * n] for k in range(len(conditions))])
    cells = [given if same else next(made) for same in untouched]

    table = model.conditions_of(source)
    kinds, first, kind = np.unique(context_keys(table, model.schema.context), return_index=True, return_inverse=True)
    contexts = [table.iloc[i][list(model.schema.context)].dropna().to_dict() for i in first]
    logged = log1p_cp10k(given) if model.standardizer is None else given
    base = np.array([np.asarray(logged[kind == k].mean(axis=0)).ravel() for k in range(len(kinds))])
    if axis.role is None:
        whole = predicted.uns["scidiff"]["effects"]["effect"].to_numpy().reshape(base.shape)
        level = partial(_share_of, base, whole)
    else:
        level = partial(_closed_form, model, asked, axis.role, contexts, base)
    told = predicted.obs[:n].assign(cell=source.obs_names)
    legs = []
    for (begin, start), (end, finish) in pairwise(zip(stops, cells, strict=True)):
        clock = partial(_pace, level, begin, end, level(begin), level(end))
        legs.append(Leg(begin, end, start, finish, (told, told), clock, kind.ravel()))
    return legs


def _values(model: TrainedModel, x: Matrix) -> Matrix:
    """Return what paths are made of: counts (csr), or where noise is Gaussian log expression (dense)."""
    if model.standardizer is None:
        return sparse.csr_matrix(x)
    logged: Any = log1p_cp10k(x) if model.counted else x
    return logged.toarray() if sparse.issparse(logged) else np.asarray(logged)


def _measured(model: TrainedModel, perturbation: str, role: str) -> np.ndarray:
    """Return the doses, or times, at which a perturbation (for doses: any part of it) was measured."""
    if model.predictor is None:
        return np.zeros(0)  # predict will say what is missing
    measured = model.predictor.effects.process.measured
    if role == "time":
        return measured.rows["time"].dropna().to_numpy(float)
    return np.concatenate([np.zeros(0), *(measured.doses(part) for part in model.schema.parts(perturbation))])


def _starts_at_0(model: TrainedModel, role: str) -> bool:
    """Whether cells at 0 are the control cells: always at dose 0, at time 0 if it counts from the perturbation."""
    return role == "dose" or (model.predictor is not None and model.predictor.effects.process.curves.time is not None)


def _share_of(base: np.ndarray, effect: np.ndarray, share: float) -> np.ndarray:
    """Return the mean CP10k of every context after a share of an effect, shape (n_contexts, n_genes)."""
    return np.expm1(base + share * effect)


def _closed_form(
    model: TrainedModel,
    asked: Mapping[str, Any],
    role: str,
    contexts: list[dict[str, Any]],
    base: np.ndarray,
    position: float,
) -> np.ndarray:
    """Return the mean CP10k of every context at a dose or time, shape (n_contexts, n_genes)."""
    assert model.predictor is not None
    dose = position if role == "dose" else model.schema.dose_parts(asked["dose"]) if "dose" in asked else None
    time = position if role == "time" else asked.get("time")
    parts = model.schema.parts(asked["perturbation"])
    ask = partial(model.predictor.effects.predict, perturbation=parts, dose=dose, time=time)
    effects = [ask(context, control_mean=mean).mean for context, mean in zip(contexts, base, strict=True)]
    return np.expm1(base + np.array(effects))


def _pace(
    level: Callable[[float], np.ndarray], begin: float, end: float, low: np.ndarray, high: np.ndarray, share: float
) -> np.ndarray:
    """Return how far each gene has come on its way from ``low`` to ``high``, shape (n_contexts, n_genes)."""
    if share <= 0 or share >= 1:
        return np.full(low.shape, float(share >= 1))
    way = high - low
    moves = np.abs(way) > 1e-6
    come = (level(begin + share * (end - begin)) - low) / np.where(moves, way, 1)
    return np.clip(np.where(moves, come, share), 0, 1)


# ---- between populations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Population:
    """Observed cells: counts or log expression, shape (n_cells, n_genes), and canonical conditions with their names."""

    x: Matrix
    table: pd.DataFrame

    def __getitem__(self, rows: np.ndarray) -> Population:
        return Population(self.x[rows], self.table.iloc[rows])


def _coupled(
    model: TrainedModel,
    adata: AnnData,
    chosen: np.ndarray,
    asked: Mapping[str, Any],
    axis: Axis,
    *,
    n_paths: int | None,
    growth: float | None,
    network: bool,
    layer: str | None,
    seed: int,
) -> list[Leg]:
    """Return legs between cells of one population and their partners in the next."""
    renew = network and model.standardizer is None
    if renew and "sample" not in set(model.history["stage"]):
        raise InputError("this model was trained to denoise only; network=False gives paths between observed cells")
    rng = np.random.default_rng([seed, 1])
    stops, populations = _populations(model, adata, chosen, asked, axis, layer=layer)
    chain = _chain(populations, n_paths=n_paths, uneven=growth is not None, rng=rng)
    cells = [population[rows] for population, rows in zip(populations, chain, strict=True)]
    if renew:  # all but the first, which are those given
        cells[1:] = [Population(_renewed(model, some, seed=seed + k), some.table) for k, some in enumerate(cells[1:])]
    names = cells[0].table.index
    again = pd.Series(names).groupby(names).cumcount().to_numpy()
    paths = pd.Index([f"{name}_{k}" if k else str(name) for name, k in zip(names, again, strict=True)])
    earliness, total = rng.standard_normal(len(paths)), 1.0 if growth is None else growth
    legs = []
    for (begin, end), (now, then) in zip(pairwise(stops), pairwise(cells), strict=True):
        depths = (row_sums(now.x), row_sums(then.x)) if model.standardizer is None else None
        clock = partial(_passing, total ** ((end - begin) / (axis.end - axis.begin)), earliness, depths)
        told = {"cell": names.to_numpy(), "toward": then.table.index.to_numpy()}
        obs = tuple(
            some.table.rename(columns=model.schema.columns).apply(obs_column).set_axis(paths, axis=0).assign(**told)
            for some in (now, then)
        )
        legs.append(Leg(begin, end, now.x, then.x, obs, clock, np.arange(len(paths))))
    return legs


def _populations(
    model: TrainedModel, adata: AnnData, chosen: np.ndarray, asked: Mapping[str, Any], axis: Axis, *, layer: str | None
) -> tuple[list[float], list[Population]]:
    """Return the positions of stops and the cells there: of those given, or where none is, of those the model keeps."""
    if axis.role == "dose":
        raise InputError("whose dose? name it, as in to={'perturbation': 'A'}")
    given = read_cells(adata, genes=model.genes, layer=layer)
    model.refuse_cells(given.scale, adata.obs_names[row_sums(abs(given.x)) == 0])
    own = Population(_values(model, given.x), model.conditions_of(adata))
    names = [f"reference {i}" for i in range(len(model.reference))]
    kept = Population(_values(model, model.reference.x), model.reference.conditions.set_axis(names, axis=0))
    start = chosen & _matching(own.table, {} if axis.role is None else {"time": axis.begin})
    if not start.any():
        raise InputError(f"no cell to start from: {_none_of(own.table[chosen], axis.begin)}")
    if "perturbation" in own.table:
        treatments = own.table["perturbation"][start].unique()
        if len(treatments) > 1:
            raise InputError(f"cells of {len(treatments)} perturbations to start from; choose those of one with where=")
        asked = {"perturbation": treatments[0], **asked}

    def at(position: float) -> Population | None:
        condition = dict(asked) if axis.role is None else {**asked, "time": position}
        return next((some[rows] for some in (own, kept) if (rows := _matching(some.table, condition)).any()), None)

    times = [some.table["time"].dropna().to_numpy(float) for some in (own, kept)] if axis.role else []
    after = [(stop, cells) for stop in axis.stops(np.concatenate([[], *times]))[1:] if (cells := at(stop)) is not None]
    if not after or after[-1][0] != axis.end:
        where = _none_of(pd.concat([own.table, kept.table]), axis.end) if axis.role else f"none is of {dict(asked)}"
        raise InputError(f"no cell to go to, neither given nor kept by the model: {where}")
    return [axis.begin, *(stop for stop, _ in after)], [own[start], *(cells for _, cells in after)]


def _matching(table: pd.DataFrame, condition: Mapping[str, Any]) -> np.ndarray:
    """Return a mask of the cells that have all these values; a missing one matches missing ones."""
    mask = np.ones(len(table), dtype=bool)
    for name, value in condition.items():
        column = table[name]
        if name == "time":
            mask &= np.isclose(column.to_numpy(float), float(value))
        else:
            mask &= (column.isna() if pd.isna(value) else column == value).to_numpy(bool)
    return mask


def _none_of(table: pd.DataFrame, time: float) -> str:
    """Say that no cell has a time, and which times there are."""
    if "time" not in table or not len(table):
        return "none was chosen"
    there = ", ".join(f"{value:g}" for value in np.unique(table["time"].dropna()))
    return f"none is of time {time:g}" + (f", only of {there}" if there else "")


def _chain(
    populations: list[Population], *, n_paths: int | None, uneven: bool, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the cells that every path goes through, indices for each population, shape (n_paths,) each."""
    logged = [log1p_cp10k(cells.x) if sparse.issparse(cells.x) else cells.x for cells in populations]
    stack = sparse.vstack(logged, format="csr") if sparse.issparse(logged[0]) else np.concatenate(logged)
    pca = fit_pca(stack, min(N_COMPONENTS, min(stack.shape) - 1))
    places = [pca.transform(x) for x in logged]
    chain = [np.arange(len(places[0]))]  # one path for each cell given
    for k, (start, goal) in enumerate(pairwise(places)):
        from_, to = (rng.permutation(len(some))[:N_COUPLED] for some in (start, goal))
        plan = Coupling.fit(start[from_], goal[to], uneven=uneven)
        if k == 0 and n_paths is not None:
            # as many as were asked for: ends evenly, then the past of each
            chance, descendants = plan.partners(start[from_])
            joint = chance * descendants[:, None]
            ends = draw_spread(joint.sum(axis=0), n_paths, rng=rng)
            chain = [from_[draw_each(joint[:, ends].T, rng=rng)], to[ends]]
            continue
        ahead = [draw_each(plan.partners(some)[0], rng=rng) for some in _parts(start[chain[-1]])]
        chain.append(to[np.concatenate(ahead)])
    return chain


def _parts(x: np.ndarray) -> list[np.ndarray]:
    """Rows in parts of which all partners fit into memory."""
    return np.array_split(x, -(-len(x) // N_COUPLED))


def _passing(
    growth: float, earliness: np.ndarray, depths: tuple[np.ndarray, np.ndarray] | None, share: float
) -> np.ndarray:
    """Return the clock of each path between two populations, shape (n_paths, 1)."""
    clock = asynchronous(float(arrived(share, growth)), earliness)
    return (clock if depths is None else by_composition(clock, *depths))[:, None]


def _renewed(model: TrainedModel, cells: Population, *, seed: int) -> sparse.csr_matrix:
    """Return new cells like observed ones: half of the molecules of each, the others drawn anew given those."""
    counts = sparse.csr_matrix(cells.x, dtype=np.float32, copy=True)
    depth = row_sums(counts)
    counts.data = np.random.default_rng([seed, 3]).binomial(counts.data.astype(np.int64), KEPT).astype(np.float32)
    made: list[sparse.csr_matrix] = []
    generate(
        model.denoiser,
        model.encoded(cells.table, depth=depth),
        n_steps=RENEWING_STEPS,
        gain=model.settings["gain"],
        start=torch.from_numpy(counts.toarray()),
        generator=torch.Generator(model.denoiser.device).manual_seed(seed),
        on_cells=lambda x: made.append(sparse.csr_matrix(x.numpy())),
    )
    return sparse.vstack(made, format="csr")
