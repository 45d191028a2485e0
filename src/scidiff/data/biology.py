"""The equations of the simulator: transcription factors set rates, and molecules follow with their own delays.

One idea holds it together. Whatever changes a cell (differentiation, a knock-out, a drug) changes the activities of
its transcription factors; between two such changes they are constant, so unspliced and spliced molecules have an exact
solution and a cell is a short list of segments::

    activity     a_k = expit(drive[state, k] + clone_k + sum_j a_j V_jk)           V acyclic: layers of TFs
    intervention a_k <- keep_k a_k + push_k                                       knock-out: (0, 0), activation: (0, 1)
    synthesis    log(alpha_g / gamma_g) = level_g - silencing (1 - open) + open sum_f (f(a) - f(a_stem)) W_fg
                 f(a): activities, and products of pairs that act together; open: chromatin of gene g in the state
    kinetics     du/dt = alpha - beta u,    ds/dt = beta u - gamma s
    fate         P(branch b) = softmax_b(gain a_driver(b)) when the cell leaves the stem state

An intervention reaches the TFs it hits at once and one layer further down after every ``hop_hours``. The switching
kinetics are those that RNA velocity assumes (La Manno et al. 2018; Bergen et al. 2020, eq. 1-4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, softmax


@dataclass(frozen=True)
class History:
    """What happened to each of n cells. Ages and times are in hours."""

    branch: np.ndarray  # (n,) lineage branch; without meaning as long as the cell is in the stem state
    age: np.ndarray  # (n,) time since the stem state began to count
    clone: np.ndarray  # (n,) index of the clone
    time: np.ndarray  # (n,) time since the intervention; 0 for untreated cells
    arm: np.ndarray  # (n,) row of the intervention in the two tables below
    keep: np.ndarray  # (n_arms, n_tfs) share of each TF's activity that the intervention leaves
    push: np.ndarray  # (n_arms, n_tfs) activity that it adds

    def take(self, rows: np.ndarray | slice) -> History:
        """Return the history of some of the cells."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ("branch", "age", "clone", "time", "arm")})


@dataclass(frozen=True)
class Biology:
    """The planted truth as arrays, and what follows from it for any cell."""

    programs: np.ndarray  # (n_states, n_tfs) TF activity of each state, within (0, 1)
    cascade: np.ndarray  # (n_tfs, n_tfs) TF -> TF weights, in logits of activity
    n_layers: int  # of the TF cascade: no path in it has more edges than n_layers - 1
    gates: np.ndarray  # (n_gates, 2) pairs of TFs that act together
    weights: np.ndarray  # (n_tfs + n_gates, n_genes) effect on log synthesis of a TF, or a pair, at full activity
    access: np.ndarray  # (n_states, n_genes) chromatin: 1 open, 0 closed to regulation
    level: np.ndarray  # (n_genes,) log abundance of spliced RNA in the stem state
    splicing: np.ndarray  # (n_genes,) beta, per hour
    decay: np.ndarray  # (n_genes,) gamma, per hour
    clones: np.ndarray  # (n_clones, n_tfs) inherited deviations, in logits of activity
    paths: np.ndarray  # (n_branches, n_stages) state that a branch occupies in each stage; column 0 is the stem
    drivers: np.ndarray  # (n_branches,) TF that draws cells into the branch
    fate_gain: float = 5.0
    state_hours: float = 24.0
    hop_hours: float = 4.0
    silencing: float = 1.5  # fall of log synthesis in closed chromatin

    @property
    def horizon(self) -> float:
        """Age at which cells leave the experiment, hours."""
        return self.paths.shape[1] * self.state_hours

    def state(self, branch: np.ndarray, clock: np.ndarray) -> np.ndarray:
        """Return the state, shape (n,), of cells of a branch at an age of ``clock`` hours."""
        stage = np.clip(np.floor_divide(clock, self.state_hours).astype(int), 0, self.paths.shape[1] - 1)
        return self.paths[branch, stage]

    def activity(self, state: np.ndarray, history: History, elapsed: np.ndarray) -> np.ndarray:
        """Return TF activities, shape (n, n_tfs), ``elapsed`` hours after the intervention (below 0: before it)."""
        # the drive is what is missing to the planted program once the regulators of each TF have had their say
        logits = np.log(self.programs / (1 - self.programs)) - self.programs @ self.cascade
        drive = logits[state] + self.clones[history.clone]
        keep, push = history.keep[history.arm], history.push[history.arm]
        activity = np.zeros_like(drive)
        for _ in range(self.n_layers):  # layer after layer reaches its value, and keeps it
            activity = expit(drive + activity @ self.cascade)
        for hop in range(self.n_layers):
            reached = (elapsed >= hop * self.hop_hours)[:, None]
            untouched = activity if hop == 0 else expit(drive + activity @ self.cascade)
            activity = np.where(reached, keep * untouched + push, activity)
        return activity

    def synthesis(self, state: np.ndarray, activity: np.ndarray) -> np.ndarray:
        """Return alpha, molecules per hour up to a common factor, float32 of shape (n, n_genes)."""
        gain = self._with_gates(activity) - self._with_gates(self.programs[:1])
        drive = gain.astype(np.float32) @ self.weights.astype(np.float32)
        drive *= self.access.astype(np.float32)[state]
        drive += (self.level - self.silencing * (1 - self.access)).astype(np.float32)[state]
        return np.exp(drive, out=drive) * self.decay.astype(np.float32)

    def rates(self, history: History) -> tuple[np.ndarray, np.ndarray]:
        """Return unspliced and spliced abundances at harvest, two float32 arrays of shape (n, n_genes).

        Exact for the piecewise constant synthesis of the module head; every cell starts in the steady state of the
        untreated stem.
        """
        n = history.age.size
        beta, gamma = self.splicing.astype(np.float32), self.decay.astype(np.float32)
        onset = history.age - history.time
        switches = np.broadcast_to(self.state_hours * np.arange(1, self.paths.shape[1]), (n, self.paths.shape[1] - 1))
        hops = onset[:, None] + self.hop_hours * np.arange(self.n_layers)
        end = history.age[:, None]
        edges = np.hstack([np.minimum(np.sort(np.hstack([switches, hops]), axis=1), end), end])

        stem = self.state(history.branch, np.zeros(n))
        alpha = self.synthesis(stem, self.activity(stem, history, np.full(n, -1.0)))
        u, s = alpha / beta, alpha / gamma
        for first, last in zip(edges.T[:-1], edges.T[1:], strict=True):
            rows = np.flatnonzero(last > first)
            part, middle = history.take(rows), (first[rows] + last[rows]) / 2
            state = self.state(part.branch, middle)
            alpha = self.synthesis(state, self.activity(state, part, middle - onset[rows]))
            span = (last - first)[rows, None].astype(np.float32)
            spliced, decayed = np.exp(-beta * span), np.exp(-gamma * span)
            u_goal, s_goal = alpha / beta, alpha / gamma
            u_gap = u[rows] - u_goal
            s[rows] = s_goal + (s[rows] - s_goal) * decayed + u_gap * (beta / (gamma - beta)) * (spliced - decayed)
            u[rows] = u_goal + u_gap * spliced
        return u, s

    def fate(self, history: History, elapsed: np.ndarray) -> np.ndarray:
        """Return the probability of each branch, (n, n_branches), for stem cells that decide at ``elapsed``."""
        stem = self.paths[history.branch, 0]
        return softmax(self.fate_gain * self.activity(stem, history, elapsed)[:, self.drivers], axis=1)

    def _with_gates(self, activity: np.ndarray) -> np.ndarray:
        return np.hstack([activity, activity[:, self.gates[:, 0]] * activity[:, self.gates[:, 1]]])
