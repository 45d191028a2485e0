"""The laboratory of the simulator: fresh cells of any experiment, and the noise-free answer to it.

A cell of expected depth L in batch b is counted as::

    p_g = (u_g + s_g) B_bg / sum_h (u_h + s_h) B_bh          share of its molecules, B the batch's factors
    n_g ~ NB(mean = L p_g, variance = mean + phi_g mean^2),  unspliced_g ~ Binomial(n_g, u_g / (u_g + s_g))

with u, s from :mod:`scidiff.data.biology`. Noise-free answers leave out batch, depth and counting.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.interpolate import RegularGridInterpolator
from scipy.stats import poisson

from scidiff.data.biology import Biology, History
from scidiff.errors import InputError, closest

CONTROL = "control"
_CHUNK = 2**20  # entries of a dense block: cells are made a few hundred at a time, whatever their number
_AGES = 8  # ages at which a noise-free answer looks at a state
_DRAWS = 4  # of batch, depth and overdispersion for each cell of a noise-free answer to counting


@dataclass(frozen=True)
class Lab:
    """Runs experiments on the planted biology.

    ``perturbations`` has one row per single perturbation: name, type (crispr_ko | crispr_a | drug), target (TFs joined
    by ";"), direction, emax, ec50 and hill (strength = emax dose^hill / (dose^hill + ec50^hill); a CRISPR perturbation
    has its full strength at any dose above 0), is_null, duplicate_of. ``combinations`` names the measured pairs and
    their planted interaction.
    """

    biology: Biology
    genes: list[str]
    tfs: list[str]
    states: list[str]
    perturbations: pd.DataFrame
    combinations: pd.DataFrame
    hits: np.ndarray  # (n_perturbations, n_tfs) emax on each TF, negative where it is switched off
    batches: np.ndarray  # (n_batches, n_genes) factors, mean 1 over batches
    dispersion: np.ndarray  # (n_genes,) phi
    depth: float
    depth_spread: float
    top_dose: float
    last_time: float
    seed: int

    @property
    def terminal_states(self) -> list[str]:
        """The end of each branch, in the order of the branches."""
        return [self.states[path[-1]] for path in self.biology.paths]

    @property
    def drivers(self) -> pd.Series:
        """The TF that draws stem cells toward each terminal state."""
        return pd.Series([self.tfs[k] for k in self.biology.drivers], self.terminal_states, name="driver")

    def run(
        self,
        perturbation: str,
        *,
        dose: float | None = None,
        time: float | None = None,
        cell_type: str | None = None,
        n: int = 200,
        seed: int = 0,
    ) -> AnnData:
        """Return ``n`` fresh cells, with the columns and layers of the simulated screen.

        Parameters
        ----------
        perturbation
            One perturbation, ``"A+B"`` for several at once, or ``"control"``.
        dose
            Dose of every drug in it, default the highest of the screen; controls have 0, CRISPR alone 1.
        time
            Hours from perturbation to harvest, default the last of the screen; controls have 0.
        cell_type
            State of the cells at harvest; by default the mixture in which they occur.
        seed
            Cells depend on the request and the seed only, not on what was run before.

        Raises
        ------
        InputError
            If a name is unknown, or a number out of range.
        """
        if n < 1:
            raise InputError(f"n = {n}: ask for at least one cell")
        name, dose, time = self._request(perturbation, dose, time)
        wanted = None if cell_type is None else self._state(cell_type)
        # arms must not share random numbers: the difference of two runs would then have too little noise
        request = zlib.crc32(f"{name}|{dose}|{time}|{cell_type}".encode())
        rng = np.random.default_rng([self.seed, 1, seed, request])
        cells = self._harvest(self._requests(name, dose, time, n), wanted, rng)
        cells.obs_names = [
            f"lab_{request:08x}_{seed}_{i + 1}" for i in range(n)
        ]  # none of the screen's, nor another run's
        return cells

    def mean(
        self, perturbation: str, *, cell_type: str, dose: float | None = None, time: float | None = None
    ) -> pd.Series:
        """Return the noise-free mean expression per gene, in counts per 10,000.

        Each cell's abundances u + s are scaled to 10,000, then averaged over the clones and over ages within the
        cell type, weighted by how probable such a cell is. Batch, depth and counting noise are left out.
        """
        name, dose, time = self._request(perturbation, dose, time)
        history, weight = self._panel(name, dose, time, self._state(cell_type))
        total = np.zeros(len(self.genes))
        for rows in self._chunks(history.age.size):
            rna = np.add(*self.biology.rates(history.take(rows)))
            total += (weight[rows] / rna.sum(1)) @ rna
        return pd.Series(1e4 * total / weight.sum(), self.genes, name=name)

    def log_mean(
        self, perturbation: str, *, cell_type: str, dose: float | None = None, time: float | None = None
    ) -> pd.Series:
        """Return the mean log1p counts per 10,000 that counted cells have, were there infinitely many of them.

        Over the same cells as :meth:`mean`, and over batch, depth and counting: what averages of real cells tend to,
        far below the log of their mean where most counts are 0. The random parts are the same for every request, so
        differences are nearly free of error; the average over Poisson counts is exact.
        """
        name, dose, time = self._request(perturbation, dose, time)
        history, weight = self._panel(name, dose, time, self._state(cell_type))
        rng = np.random.default_rng([self.seed, 2])
        total = np.zeros(len(self.genes))
        for rows in self._chunks(history.age.size):
            rna = np.add(*self.biology.rates(history.take(rows))).astype(float)
            for _ in range(_DRAWS):
                n = len(rna)
                depth = self.depth * np.exp(self.depth_spread * rng.standard_normal(n))
                mean = rna * self.batches[rng.integers(len(self.batches), size=n)]
                mean *= (depth / mean.sum(1))[:, None]
                mean *= rng.standard_gamma(1 / self.dispersion, mean.shape) * self.dispersion
                total += weight[rows] @ _expected_log(mean, 1e4 / mean.sum(1))
        return pd.Series(total / (_DRAWS * weight.sum()), self.genes, name=name)

    def effect(
        self,
        perturbation: str,
        *,
        cell_type: str,
        dose: float | None = None,
        time: float | None = None,
        counted: bool = False,
    ) -> pd.Series:
        """Return the noise-free effect per gene: log1p(mean(perturbation)) - log1p(mean(control)).

        Both means are those of :meth:`mean`: counts per 10,000 averaged over cells *before* the natural logarithm.
        ``counted``: the difference of :meth:`log_mean` instead, which is what differences of means of log1p(CP10k)
        over cells estimate.
        """
        level = self.log_mean if counted else lambda *args, **kw: np.log1p(self.mean(*args, **kw))
        return level(perturbation, cell_type=cell_type, dose=dose, time=time) - level(CONTROL, cell_type=cell_type)

    def fate(self, perturbation: str = CONTROL, *, cell_type: str = "stem", dose: float | None = None) -> pd.Series:
        """Return the probability of each terminal state for cells of a state, averaged over clones.

        Stem cells decide under the settled perturbation; cells of any later state have committed.
        """
        name, dose, _ = self._request(perturbation, dose, None)
        state = self._state(cell_type)
        paths = self.biology.paths
        if state != paths[0, 0]:
            chance = np.any(paths == state, axis=1).astype(float)
        else:
            n = len(self.biology.clones)
            still = self._history(self._requests(name, dose, 0.0, n), np.zeros(n, int), np.zeros(n), np.arange(n))
            chance = self.biology.fate(still, np.full(n, np.inf)).mean(0)
        return pd.Series(chance, self.terminal_states, name=name)

    def activity(self, perturbation: str = CONTROL, *, cell_type: str, dose: float | None = None) -> pd.Series:
        """Return the settled activity of each TF, within [0, 1], averaged over clones."""
        name, dose, _ = self._request(perturbation, dose, None)
        n = len(self.biology.clones)
        still = self._history(self._requests(name, dose, 0.0, n), np.zeros(n, int), np.zeros(n), np.arange(n))
        activity = self.biology.activity(np.full(n, self._state(cell_type)), still, np.full(n, np.inf))
        return pd.Series(activity.mean(0), self.tfs, name=name)

    def truth(self, adata: AnnData) -> AnnData:
        """Return what lies behind simulated cells: X expected counts, layers spliced, unspliced and velocity.

        Velocity is d spliced / dt per hour, in expected molecules of that cell; ``obsm["tf_activity"]`` holds TF
        activities and ``obsm["fate"]`` the probabilities of the terminal states. All dense: pass the cells you need.
        """
        history, batch = self._recall(adata.obs), self._codes(adata.obs["batch"])
        n, bio = adata.n_obs, self.biology
        layers = {key: np.empty((n, len(self.genes)), np.float32) for key in ("unspliced", "spliced", "velocity")}
        for rows in self._chunks(n):
            u, s = bio.rates(history.take(rows))
            factor = self.batches[batch[rows]]
            scale = factor * (adata.obs["expected_depth"].to_numpy()[rows] / ((u + s) * factor).sum(1))[:, None]
            layers["unspliced"][rows], layers["spliced"][rows] = u * scale, s * scale
            layers["velocity"][rows] = (bio.splicing * u - bio.decay * s) * scale
        state = bio.state(history.branch, history.age)
        elapsed = np.where(history.time > 0, history.time, -1.0)
        undecided = (state == bio.paths[0, 0])[:, None]
        fate = np.where(undecided, bio.fate(history, np.full(n, np.inf)), np.eye(len(bio.paths))[history.branch])
        names = adata.obs_names
        return AnnData(
            layers["unspliced"] + layers["spliced"],
            obs=adata.obs.copy(),
            var=adata.var.copy(),
            layers=layers,
            obsm={
                "tf_activity": pd.DataFrame(bio.activity(state, history, elapsed), names, self.tfs),
                "fate": pd.DataFrame(fate, names, self.terminal_states),
            },
        )

    # --- requests -----------------------------------------------------------------------------------------------

    def _request(self, perturbation: str, dose: float | None, time: float | None) -> tuple[str, float, float]:
        """Return the canonical name of a request, its dose and its time."""
        parts = sorted({part.strip() for part in str(perturbation).split("+")} - {CONTROL})
        for part in parts:
            if part not in self.perturbations.index:
                known = [CONTROL, *self.perturbations.index]
                raise InputError(f"the simulated screen has no perturbation {part!r}{closest(part, known)}")
        for label, value in (("dose", dose), ("time", time)):
            if value is not None and not 0 <= value < np.inf:
                raise InputError(f"{label} = {value}: give a finite number of at least 0")
        if not parts:
            return CONTROL, 0.0, 0.0
        if dose is None:
            dose = self.top_dose if (self.perturbations.loc[parts, "type"] == "drug").any() else 1.0
        return "+".join(parts), float(dose), float(self.last_time if time is None else time)

    def _state(self, cell_type: str) -> int:
        if cell_type not in self.states:
            raise InputError(f"the simulated screen has no cell type {cell_type!r}{closest(cell_type, self.states)}")
        return self.states.index(cell_type)

    def _intervention(self, name: str, dose: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (keep, push), both (n_tfs,): activity becomes keep x activity + push."""
        keep, push = np.ones(len(self.tfs)), np.zeros(len(self.tfs))
        for part in [] if name == CONTROL else name.split("+"):
            row = self.perturbations.index.get_loc(part)
            ec50, hill = self.perturbations[["ec50", "hill"]].iloc[row]
            share = float(dose > 0) if np.isnan(ec50) else dose**hill / (dose**hill + ec50**hill)
            strength = np.abs(self.hits[row]) * share
            keep *= 1 - strength
            push = push * (1 - strength) + strength * (self.hits[row] > 0)
        return keep, push

    @staticmethod
    def _requests(name: str, dose: float, time: float, n: int) -> pd.DataFrame:
        return pd.DataFrame({"perturbation": [name] * n, "dose": dose, "time": time})

    # --- cells --------------------------------------------------------------------------------------------------

    def _history(self, asked: pd.DataFrame, branch: np.ndarray, age: np.ndarray, clone: np.ndarray) -> History:
        """Return the history of cells under the requests ``asked`` (perturbation, dose, time; a row per cell)."""
        arms = asked[["perturbation", "dose"]].astype({"perturbation": str})
        arm = arms.groupby(["perturbation", "dose"], sort=False).ngroup().to_numpy()
        keep, push = zip(*(self._intervention(*row) for row in arms.drop_duplicates().to_numpy()), strict=True)
        return History(branch, age, clone, asked["time"].to_numpy(float), arm, np.array(keep), np.array(push))

    def _window(self, state: int | None) -> tuple[float, float]:
        """Return the ages, hours, at which a cell can be in the state."""
        if state is None:
            return 0.0, self.biology.horizon
        stages = np.flatnonzero((self.biology.paths == state).any(0))
        return stages[0] * self.biology.state_hours, (stages[-1] + 1) * self.biology.state_hours

    def _branch_chance(self, history: History) -> np.ndarray:
        """Return P(branch), (n, n_branches): the choice is made at the end of the stem stage, perturbed or not yet."""
        return self.biology.fate(history, self.biology.state_hours - (history.age - history.time))

    def _panel(self, name: str, dose: float, time: float, state: int) -> tuple[History, np.ndarray]:
        """Return cells that cover a state evenly in age, clone and branch, and the weight of each."""
        bio, n_clones = self.biology, len(self.biology.clones)
        low, high = self._window(state)
        ages = low + (high - low) * (np.arange(_AGES) + 0.5) / _AGES
        branch = np.flatnonzero((bio.paths == state).any(1))[0]  # cells of the stem have no branch yet: any will do
        n = _AGES * n_clones
        history = self._history(
            self._requests(name, dose, time, n),
            np.full(n, branch),
            np.repeat(ages, n_clones),
            np.tile(np.arange(n_clones), _AGES),
        )
        weight = np.ones(n) if state == bio.paths[0, 0] else self._branch_chance(history)[:, branch]
        return history, weight

    def _draw(self, asked: pd.DataFrame, wanted: int | None, rng: np.random.Generator) -> History:
        """Return random cells: even ages and clones, then a branch; drawn again until they are in the state wanted."""
        n, bio = len(asked), self.biology
        cells = self._history(asked, np.zeros(n, int), np.zeros(n), np.zeros(n, int))
        low, high = self._window(wanted)
        size, todo = max(1, _CHUNK // len(self.genes)), np.arange(n)
        while todo.size:
            rows, todo = todo[:size], todo[size:]
            cells.age[rows] = rng.uniform(low, high, rows.size)
            cells.clone[rows] = rng.integers(len(bio.clones), size=rows.size)
            chance = self._branch_chance(cells.take(rows)).cumsum(1)
            cells.branch[rows] = (rng.random((rows.size, 1)) > chance[:, :-1]).sum(1)
            if wanted is not None:
                todo = np.concatenate([todo, rows[bio.state(cells.branch[rows], cells.age[rows]) != wanted]])
        return cells

    def _recall(self, obs: pd.DataFrame) -> History:
        """Return the history of simulated cells from their latent columns."""
        state = pd.Categorical(obs["cell_type"], self.states).codes
        branch = (self.biology.paths[None] == np.asarray(state)[:, None, None]).any(2).argmax(1)
        age = obs["pseudotime"].to_numpy() * self.biology.horizon
        return self._history(obs[["perturbation", "dose", "time"]], branch, age, self._codes(obs["clone"]))

    @staticmethod
    def _codes(names: pd.Series) -> np.ndarray:
        """Return the numbers at the end of batch and clone names, counted from 0."""
        return names.astype(str).str.rsplit("_", n=1).str[-1].astype(int).to_numpy() - 1

    def _chunks(self, n: int) -> list[slice]:
        size = max(1, _CHUNK // len(self.genes))
        return [slice(start, start + size) for start in range(0, n, size)]

    def _harvest(self, asked: pd.DataFrame, wanted: int | None, rng: np.random.Generator) -> AnnData:
        """Return counted cells for the requests ``asked`` (perturbation, dose, time; a row per cell)."""
        n = len(asked)
        history = self._draw(asked, wanted, rng)
        batch = rng.integers(len(self.batches), size=n)
        depth = self.depth * np.exp(self.depth_spread * rng.standard_normal(n))
        blocks = [self._count(history.take(rows), batch[rows], depth[rows], rng) for rows in self._chunks(n)]
        unspliced, spliced = (sparse.vstack(side, format="csr") for side in zip(*blocks, strict=True))
        counts = unspliced + spliced

        types = self.perturbations["type"].to_dict() | {CONTROL: CONTROL}
        state = self.biology.state(history.branch, history.age)
        obs = pd.DataFrame(
            {
                "perturbation": pd.Categorical(asked["perturbation"]),
                "perturbation_type": pd.Categorical([types.get(p, "combination") for p in asked["perturbation"]]),
                "cell_type": pd.Categorical(np.array(self.states)[state]),
                "dose": asked["dose"].to_numpy(float),
                "time": asked["time"].to_numpy(float),
                "batch": pd.Categorical([f"batch_{b + 1}" for b in batch]),
                "clone": pd.Categorical([f"clone_{c + 1:03d}" for c in history.clone]),
                "pseudotime": history.age / self.biology.horizon,
                "expected_depth": depth,
            },
            index=[f"cell_{i + 1}" for i in range(n)],
        )
        var = pd.DataFrame(
            {
                "is_tf": np.isin(self.genes, self.tfs),
                "splicing_rate": self.biology.splicing,
                "decay_rate": self.biology.decay,
                "dispersion": self.dispersion,
            },
            index=self.genes,
        )
        layers = {"counts": counts.copy(), "spliced": spliced, "unspliced": unspliced}
        return AnnData(counts, obs=obs, var=var, layers=layers, uns={"scidiff": {"simulated": True, "seed": self.seed}})

    def _count(
        self, history: History, batch: np.ndarray, depth: np.ndarray, rng: np.random.Generator
    ) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Return the unspliced and spliced molecules of a block of cells."""
        u, s = self.biology.rates(history)
        rna = u + s
        mean = rna * self.batches.astype(np.float32)[batch]
        mean *= (depth / mean.sum(1))[:, None].astype(np.float32)
        shape = (1 / self.dispersion).astype(np.float32)
        mean *= rng.standard_gamma(np.broadcast_to(shape, mean.shape), dtype=np.float32) / shape
        counts = sparse.csr_matrix(rng.poisson(mean))
        cells = np.repeat(np.arange(len(depth)), np.diff(counts.indptr))
        share = u[cells, counts.indices] / rna[cells, counts.indices]
        unspliced = rng.binomial(counts.data, share)
        sides = []
        for data in (unspliced, counts.data - unspliced):
            side = sparse.csr_matrix(
                (data.astype(np.float32), counts.indices.copy(), counts.indptr.copy()), shape=mean.shape
            )
            side.eliminate_zeros()
            sides.append(side)
        return sides[0], sides[1]


def _expected_log(mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return E log1p(factor n), n ~ Poisson(mean), (n_cells, n_genes), for a ``factor`` of each cell, (n_cells,).

    The sum over n on a grid of means and factors, linear in between; its second-order expansion for large means.
    """
    large = 100.0
    means = np.geomspace(1e-4, large, 300)
    factors = np.geomspace(factor.min() / 1.001, factor.max() * 1.001, 40)
    n = np.arange(200)
    table = np.log1p(factors[:, None] * n) @ poisson.pmf(n[:, None], means)
    grid = RegularGridInterpolator((np.log(factors), np.log(means)), table)
    wide = np.broadcast_to(np.log(factor)[:, None], mean.shape)
    # below the grid there is at most one molecule
    low = np.minimum(mean / means[0], 1)
    some = grid(np.stack([wide, np.log(np.clip(mean, means[0], means[-1]))], axis=-1)) * low
    x = mean * factor[:, None]
    many = np.log1p(x) - x * factor[:, None] / (2 * (1 + x) ** 2)
    return np.where(mean > large, many, some)
