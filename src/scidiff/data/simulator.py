"""A screen with planted truth: everything that later work must find again is known, and can be asked of a Lab.

The screen is made from a gene-regulatory network: TFs act on targets and on each other, cell types are programs of TF
activity along a branching differentiation, perturbations switch TFs on or off. The equations are those of
:mod:`scidiff.data.biology`, the counting that of :mod:`scidiff.data.lab`; this module only draws the numbers.

Why it is hard: a knock-out matters only where its TF is active and the target's chromatin is open; some pairs of TFs
act only together, or mask each other; a quarter of the perturbations does nothing; clones and batches differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from scidiff.data.biology import Biology
from scidiff.data.lab import CONTROL, Lab
from scidiff.errors import InputError

_TYPES = ("crispr_ko", "crispr_a", "drug")
_LAYERS = (0.2, 0.3, 0.5)  # shares of the TFs in the layers of the cascade


@dataclass(frozen=True)
class Simulation:
    """A simulated screen and its truth."""

    adata: AnnData
    """Counts in X and ``layers["counts"]`` (csr float32), layers spliced + unspliced = counts, conditions in obs."""
    network: pd.DataFrame
    """The true network, columns source, target, weight; TF -> TF weights act on logits of activity, others on log
    synthesis. A TF's own transcript follows its activity (source = target)."""
    features: pd.DataFrame
    """What a user would know of each perturbation: its TF targets, 1 raised, -1 lowered; some are wrong."""
    lab: Lab
    """Fresh cells and noise-free answers."""


def simulate(
    *,
    n_cells: int = 6000,
    n_genes: int = 2000,
    n_tfs: int = 100,
    n_states: int = 6,
    n_batches: int = 3,
    n_perturbations: int = 60,
    n_null: int = 15,
    n_duplicates: int = 10,
    n_combinations: int = 12,
    n_clones: int = 60,
    depth: float = 1500,
    depth_spread: float = 0.4,
    doses: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0),
    times: tuple[float, ...] = (6.0, 24.0, 72.0),
    control_share: float = 0.15,
    wrong_targets: float = 0.3,
    seed: int = 0,
) -> Simulation:
    """Return a simulated perturbation screen with its true network, drug features and a Lab.

    Parameters
    ----------
    n_cells, n_genes, n_tfs
        Size; TFs are among the genes (``TF001``, ..., then ``G0001``, ...).
    n_states
        Cell types: a stem state and up to three branches, each drawn by a driver TF.
    n_batches, n_clones
        Groups with multiplicative gene factors; groups with inherited deviations of TF activity.
    n_perturbations
        Single perturbations, a third each CRISPR knock-out, CRISPR activation and drug; ``n_null`` of them do
        nothing and ``n_duplicates`` nearly repeat another one.
    n_combinations
        Pairs of CRISPR perturbations measured besides, a third each additive, synergistic and epistatic.
    depth, depth_spread
        Median number of molecules per cell, and the standard deviation of its logarithm.
    doses, times
        Doses at which drugs, and hours after which all perturbations are measured. Controls have dose 0 and time 0.
    control_share
        Share of control cells.
    wrong_targets
        Share of the drug targets in ``features`` that are replaced by a wrong TF.
    seed
        Same seed, same screen and same Lab.

    Raises
    ------
    InputError
        If the numbers do not fit together.
    """
    n_active = n_perturbations - n_null - n_duplicates
    n_hit = -(-n_active // 3)  # TFs knocked out, and as many others activated
    n_gates = 2 * (n_combinations // 3)
    for name, value, least in (
        ("n_cells", n_cells, 1),
        ("n_states", n_states, 3),
        ("n_batches", n_batches, 1),
        ("n_clones", n_clones, 1),
        ("n_null", n_null, 0),
        ("n_duplicates", n_duplicates, 0),
        ("n_combinations", n_combinations, 0),
        ("the number of doses", len(doses), 1),
        ("the number of times", len(times), 1),
        ("n_perturbations", n_perturbations, n_null + n_duplicates + max(9, n_duplicates)),
        ("n_tfs", n_tfs, max(20, 2 * n_hit)),
        ("n_genes", n_genes, n_tfs + max(1, n_null)),
    ):
        if value < least:
            raise InputError(f"simulate: {name} = {value} is too small for this screen: use at least {least}")
    n_activated = len(range(1, n_active, len(_TYPES)))  # TFs that a perturbation of their own activates
    if n_gates > n_activated * (n_activated - 1) // 2:
        raise InputError(f"simulate: n_combinations = {n_combinations} is too large for {n_activated} activated TFs")
    if depth <= 0 or depth_spread < 0 or not 0 <= control_share <= 1 or not 0 <= wrong_targets <= 1:
        raise InputError(
            "simulate: depth must be > 0, depth_spread >= 0, control_share and wrong_targets within [0, 1]"
        )

    rng = np.random.default_rng([seed, 0])
    tfs = [f"TF{k + 1:03d}" for k in range(n_tfs)]
    genes = tfs + [f"G{g + 1:04d}" for g in range(n_genes - n_tfs)]
    states, paths = _lineage(n_states)
    bounds = np.round(np.cumsum([0, *_LAYERS]) * n_tfs).astype(int)
    drivers = bounds[1] + np.arange(len(paths))  # in the middle layer: they have regulators and regulate TFs
    programs = _programs(n_tfs, paths, drivers, rng)

    # like ribosomal genes in real cells: few genes hold most molecules, always open and hardly regulated
    steady = (rng.random(n_genes) < 0.05) & (np.arange(n_genes) >= n_tfs)
    cascade = _cascade(bounds, rng)
    regulation = np.where(steady, 0.0, _regulation(n_tfs, n_genes, drivers, rng))
    knocked, activated = _targets(programs, regulation, drivers, n_hit, rng)
    gates, synergy = _gates(programs, activated[:n_activated], n_gates, rng)
    decay = np.log(2) / np.clip(rng.lognormal(np.log(8), 0.5, n_genes), 2, 24)
    biology = Biology(
        programs=programs,
        cascade=cascade,
        n_layers=len(_LAYERS),
        gates=gates,
        weights=np.vstack([regulation, _gate_weights(regulation, gates, synergy)]),
        access=np.where(steady, 1.0, _access(n_genes, n_tfs, paths, rng)),
        level=np.where(steady, rng.normal(5.2, 1.0, n_genes), rng.normal(0, 2.3, n_genes)),
        splicing=decay / rng.uniform(0.08, 0.4, n_genes),
        decay=decay,
        clones=rng.normal(0, 0.4, (n_clones, n_tfs)),
        paths=paths,
        drivers=drivers,
    )
    perturbations, hits = _perturbations((n_active, n_duplicates, n_null), knocked, activated, genes, n_tfs, rng)
    factors = rng.lognormal(0, 0.2, (n_batches, n_genes))
    lab = Lab(
        biology=biology,
        genes=genes,
        tfs=tfs,
        states=states,
        perturbations=perturbations,
        combinations=_combinations(n_combinations, perturbations, gates, synergy, cascade, tfs, rng),
        hits=hits,
        batches=factors / factors.mean(0),
        dispersion=rng.lognormal(np.log(0.3), 0.5, n_genes),
        depth=depth,
        depth_spread=depth_spread,
        top_dose=max(doses),
        last_time=max(times),
        seed=seed,
    )
    adata = lab._harvest(_schedule(lab, n_cells, control_share, doses, times, rng), None, rng)
    return Simulation(adata, _network(cascade, regulation, genes, tfs), _features(lab, wrong_targets, rng), lab)


def _lineage(n_states: int) -> tuple[list[str], np.ndarray]:
    """Return the state names, and the state of each branch in each stage, (n_branches, n_stages)."""
    n_branches = min(3, n_states - 1)
    names, branches = ["stem"], [[0] for _ in range(n_branches)]
    for state in range(1, n_states):
        branch = branches[(state - 1) % n_branches]
        names.append(f"{'ABC'[(state - 1) % n_branches]}{len(branch)}")
        branch.append(state)
    n_stages = max(map(len, branches))
    return names, np.array([branch + branch[-1:] * (n_stages - len(branch)) for branch in branches])


def _inherit(paths: np.ndarray, first: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return one row per state: ``first`` for the stem, ``change(row of the parent)`` for every other state."""
    rows = {paths[0, 0]: first}
    for parents, children in zip(paths.T[:-1], paths.T[1:], strict=True):
        for parent, child in zip(parents, children, strict=True):
            if child not in rows:
                rows[child] = change(rows[parent])
    return np.array([rows[state] for state in sorted(rows)])


def _programs(n_tfs: int, paths: np.ndarray, drivers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the TF activity of each state, (n_states, n_tfs): a TF is on or off, a quarter changes per step."""

    def levels(on: np.ndarray) -> np.ndarray:
        return np.where(on, rng.uniform(0.75, 0.95, n_tfs), rng.uniform(0.03, 0.2, n_tfs))

    def step(parent: np.ndarray) -> np.ndarray:
        return np.where(rng.random(n_tfs) < 0.25, levels(parent < 0.5), parent)

    programs = _inherit(paths, levels(rng.random(n_tfs) < 0.4), step)
    programs[:, drivers] = 0.05
    programs[paths[0, 0], drivers] = 0.4  # undecided
    for driver, path in zip(drivers, paths, strict=True):
        programs[path[1:], driver] = 0.95
    return programs


def _access(n_genes: int, n_tfs: int, paths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return open (1) or closed (0) chromatin, (n_states, n_genes); TF genes are always open."""

    def draw() -> np.ndarray:
        return (rng.random(n_genes) < 0.6).astype(float)

    access = _inherit(paths, draw(), lambda parent: np.where(rng.random(n_genes) < 0.5, draw(), parent))
    access[:, :n_tfs] = 1
    return access


def _cascade(bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return TF -> TF weights, (n_tfs, n_tfs): each TF below the first layer has two regulators above it."""
    cascade = np.zeros((bounds[-1], bounds[-1]))
    for top, bottom in itertools.pairwise(bounds[1:]):
        for tf in range(top, bottom):
            cascade[rng.choice(top, 2, replace=False), tf] = _signed(2, 1.5, 3.0, rng)
    return cascade


def _regulation(n_tfs: int, n_genes: int, drivers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return TF -> gene weights, (n_tfs, n_genes): five regulators a gene on average; TFs differ in reach."""
    reach = rng.lognormal(0, 0.8, n_tfs)
    reach[drivers] = 3.0  # a driver remakes the cell
    # the k largest of log p + Gumbel noise are k draws without replacement with probabilities p
    rank = (np.log(reach)[:, None] + rng.gumbel(size=(n_tfs, n_genes))).argsort(0).argsort(0)
    chosen = rank >= n_tfs - (1 + rng.poisson(4, n_genes))
    weights = np.where(chosen, _signed((n_tfs, n_genes), 0.7, 2.2, rng), 0.0)
    weights[:, :n_tfs] = np.diag(np.full(n_tfs, 2.0))  # a TF's transcript follows its activity
    return weights


def _signed(size: int | tuple[int, int], low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Return weights of which 70 % are positive: activators outnumber repressors."""
    return rng.uniform(low, high, size) * np.where(rng.random(size) < 0.7, 1, -1)


def _gates(
    programs: np.ndarray, activated: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of TFs that act together, (n, 2), and which of them are synergistic.

    Pairs that are rarely active on their own come first, so that activating both shows the interaction.
    """
    pairs = rng.permutation(list(itertools.combinations(activated, 2)))
    pairs = pairs[programs[:, pairs].max(2).mean(0).argsort(kind="stable")[:n]]
    return pairs, rng.permutation(n) < n // 2


def _gate_weights(regulation: np.ndarray, gates: np.ndarray, synergy: np.ndarray) -> np.ndarray:
    """Return the weights of TF pairs, (n_gates, n_genes).

    Synergy: both together push the targets of either one further. Epistasis: the second TF masks the first.
    """
    first, second = regulation[gates[:, 0]], regulation[gates[:, 1]]
    weights = np.where(synergy[:, None], 1.2 * np.sign(first + second), -0.9 * first)
    weights[:, : len(regulation)] = 0  # a TF's own transcript follows its activity alone
    return weights


def _targets(
    programs: np.ndarray, regulation: np.ndarray, drivers: np.ndarray, n_hit: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the TFs that are knocked out and those that are activated, drivers first.

    As in a chosen screen they have many targets, and there is something to switch off, or on, in some states.
    """
    others = np.setdiff1d(np.arange(len(regulation)), drivers)
    n_targets = np.count_nonzero(regulation[others], axis=1)
    activity = programs[:, others].mean(0)
    knocked = others[np.argsort(-n_targets * activity)[: n_hit - len(drivers)]]
    free = ~np.isin(others, knocked)
    activated = others[free][np.argsort(-(n_targets * (1 - activity))[free])[: n_hit - len(drivers)]]
    return np.r_[drivers, rng.permutation(knocked)], np.r_[drivers, rng.permutation(activated)]


def _perturbations(
    numbers: tuple[int, int, int],
    knocked: np.ndarray,
    activated: np.ndarray,
    genes: list[str],
    n_tfs: int,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the table of single perturbations (see Lab), and emax on each TF, negative where it is switched off.

    ``numbers`` counts those that act, near-duplicates and null ones.
    """
    n_active, n_duplicates, n_null = numbers
    n = sum(numbers)
    parent = np.concatenate([np.arange(n_active), rng.choice(n_active, n_duplicates, replace=False), np.arange(n_null)])
    kind = np.array(_TYPES)[parent % 3]
    acts = np.arange(n) < n_active + n_duplicates
    twin = acts & (np.arange(n) >= n_active)

    hits = np.zeros((n, n_tfs))
    for row in range(n_active):
        # drugs hit TFs that CRISPR hits too, in the same direction: features can tell about drugs never seen
        down = rng.random() < 0.7 if kind[row] == "drug" else kind[row] == "crispr_ko"
        pool = knocked if down else activated
        if kind[row] == "drug":
            chosen, emax = rng.choice(pool, rng.integers(1, 4), replace=False), rng.uniform(0.7, 1.0)
        else:
            chosen, emax = pool[[row // 3]], 1.0 if down else 0.9
        hits[row, chosen] = -emax if down else emax
    target = [";".join(genes[k] for k in np.flatnonzero(row)) for row in hits[:n_active]]
    target += [target[i] for i in parent[twin]]
    bystanders = rng.choice(genes[n_tfs:], n_null, replace=False)
    target += ["" if k == "drug" else gene for k, gene in zip(kind[~acts], bystanders, strict=True)]
    hits[twin] = 0.95 * hits[parent[twin]]
    for own in hits[n_active : n_active + n_duplicates]:  # and a weak effect of their own
        own[rng.choice(np.flatnonzero(own == 0))] = -0.02

    names = [f"{t}_{k.removeprefix('crispr_')}" for t, k in zip(target, kind, strict=True)]
    names = [f"{name}_2" if second else name for name, second in zip(names, twin, strict=True)]
    numbered = iter(rng.permutation(np.count_nonzero(kind == "drug")) + 1)
    names = [f"drug_{next(numbered):02d}" if k == "drug" else name for k, name in zip(kind, names, strict=True)]
    ec50, hill = np.exp(rng.uniform(np.log(0.2), np.log(4), n)), rng.uniform(0.8, 2.5, n)
    ec50[twin] = ec50[parent[twin]] * rng.uniform(0.9, 1.1, n_duplicates)
    hill[twin] = hill[parent[twin]]
    curve = (kind == "drug") & acts
    peak = np.abs(hits).max(1)
    table = pd.DataFrame(
        {
            "name": names,
            "type": kind,
            "target": target,
            "direction": np.select([~acts, hits.min(1) < -0.5], ["", "inhibit"], "activate"),
            "emax": peak,
            "ec50": np.where(curve, ec50, np.nan),
            "hill": np.where(curve, hill, np.nan),
            "is_null": ~acts,
            "duplicate_of": [names[p] if second else "" for p, second in zip(parent, twin, strict=True)],
        }
    )
    order = np.argsort(names)
    return table.iloc[order].set_index("name", drop=False).rename_axis(None), hits[order]


def _combinations(
    n: int,
    perturbations: pd.DataFrame,
    gates: np.ndarray,
    synergy: np.ndarray,
    cascade: np.ndarray,
    tfs: list[str],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Return the measured pairs, columns name and interaction: those behind gates, and pairs that meet least."""
    names = ["+".join(sorted(f"{tfs[k]}_a" for k in pair)) for pair in gates]
    kinds = ["synergistic" if s else "epistatic" for s in synergy]
    crispr = perturbations[
        perturbations["type"].ne("drug") & ~perturbations["is_null"] & perturbations["duplicate_of"].eq("")
    ]
    row = {str(name): tfs.index(target) for name, target in crispr["target"].items()}
    gated = {frozenset(pair) for pair in gates.tolist()}
    free = [(a, b) for a, b in itertools.combinations(row, 2) if frozenset((row[a], row[b])) not in gated]
    below = np.linalg.matrix_power(np.eye(len(tfs)) + (cascade != 0), len(_LAYERS)) > 0  # TFs that each TF reaches
    common = [(below[row[a]] & below[row[b]]).sum() for a, b in free]
    apart = np.lexsort((rng.random(len(free)), np.array(common)))[: n - len(gates)]
    names += ["+".join(sorted(free[i])) for i in apart]
    kinds += ["additive"] * (len(names) - len(kinds))
    return pd.DataFrame({"name": names, "interaction": kinds})


def _schedule(
    lab: Lab,
    n_cells: int,
    control_share: float,
    doses: tuple[float, ...],
    times: tuple[float, ...],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Return perturbation, dose and time of every cell: equal numbers of cells, in random order."""
    n_control = round(control_share * n_cells)
    names = np.resize([*lab.perturbations["name"], *lab.combinations["name"]], n_cells - n_control)
    is_drug = np.isin(names, lab.perturbations.query("type == 'drug'")["name"])
    treated = pd.DataFrame(
        {
            "perturbation": names,
            "dose": np.where(is_drug, rng.choice(doses, names.size), 1.0),
            "time": rng.choice(times, names.size).astype(float),
        }
    )
    control = pd.DataFrame({"perturbation": [CONTROL] * n_control, "dose": 0.0, "time": 0.0})
    return pd.concat([control, treated]).iloc[rng.permutation(n_cells)].reset_index(drop=True)


def _network(cascade: np.ndarray, regulation: np.ndarray, genes: list[str], tfs: list[str]) -> pd.DataFrame:
    """Return the edges as source, target, weight."""
    weights = regulation.copy()
    weights[:, : len(tfs)] += cascade
    source, target = np.nonzero(weights)
    return pd.DataFrame(
        {"source": np.array(tfs)[source], "target": np.array(genes)[target], "weight": weights[source, target]}
    )


def _features(lab: Lab, wrong_targets: float, rng: np.random.Generator) -> pd.DataFrame:
    """Return signed targets, perturbations x TFs; a share of the drugs' targets, and all of null drugs', are wrong."""
    drug = lab.perturbations["type"].eq("drug").to_numpy()
    null = lab.perturbations["is_null"].to_numpy()
    table = np.sign(lab.hits) * (np.abs(lab.hits) > 0.5)  # weak off-target effects are not known
    rows, columns = np.nonzero(table * drug[:, None])
    for i in rng.permutation(rows.size)[: round(wrong_targets * rows.size)]:
        sign = table[rows[i], columns[i]]
        table[rows[i], columns[i]] = 0
        # neither a true target of this drug nor one already listed for it
        table[rows[i], rng.choice(np.flatnonzero((lab.hits[rows[i]] == 0) & (table[rows[i]] == 0)))] = sign
    for row in np.flatnonzero(drug & null):
        table[row, rng.integers(len(lab.tfs))] = -1
    return pd.DataFrame(table, lab.perturbations["name"].rename(None), lab.tfs)
