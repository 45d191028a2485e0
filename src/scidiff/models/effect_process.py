"""One Gaussian process over conditions: what was measured, and what follows for a condition that was not.

For gene g, context k, parts P of a perturbation at doses d and time t, the effect on mean log1p(CP10k) is::

    D_g(k, P, d, t) = sum_{p in P} a_p(d, t) E_gp(k) + I_gP              a_p: size by dose and time (effect_curves)
    Cov(E_gp(k), E_gp(l)) = r_p [b_g + c_g K_g(k, l)] + o_gp             r, b, c, o, Var(I_gP) = i_g: effect_prior
    K_g(k, l) = exp(-|z_k - z_l|^2 / (length med)) + own y_gk y_gl       z: control centroid, y: own control level

Contexts of several attributes, as patient and cell state, may be alike by name: .7 [same value] + .3 exp(...).

Measured effects add sampling noise, and those that share control cells share the noise of these (effect_measured). So
everything is one conditional Gaussian: contexts inform each other, singles and combinations inform each other, seen
effects are shrunk by what their cells can support, and a posterior variance comes with every mean (Rasmussen & Williams
2006, eq. 2.23-24). K is averaged over lengths, ``own`` and attributes, or no kernel at all, by how well each predicts
when one training context at a time is left out, or one patient, where it is patients that lack effects. y is clipped
to the training range: a line must not be followed beyond the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from scidiff.models.effect_curves import Curves, alike
from scidiff.models.effect_measured import Measured
from scidiff.models.effect_prior import FEW_CONTEXTS, Prior

LENGTHS, OWN = (0.0, 1.0, 2.0, 4.0), (0.0, 0.1, 0.3)
SHARED = 0.7  # of the likeness of contexts that have an attribute's value in common, where attributes count
MAX_FOLDS, MAX_ASKED = 10, 20  # contexts left out, and effects asked for in each, where the kernel is chosen
OWN_SHAPE = 0.1  # share of an effect's variance that need not follow the common dose or time curve
OWN_TIME = 0.5  # ... nor be constant in time, where time is not counted from the perturbation
MAX_ROWS, FEW_ROWS = 64, 16  # measured effects that an answer conditions on: those that bear on it most
MAX_ENTRIES = 2**17  # of the matrices solved at once: as many as fit into the cache of a processor


class Kernel(NamedTuple):
    """How alike contexts are taken to be: ``length`` and ``own`` of the module head, and the attribute that counts.

    Length 0: however near their control cells, contexts differ independently. ``shared`` "": no attribute counts.
    """

    length: float
    own: float
    shared: str = ""

    @classmethod
    def candidates(cls, contexts: pd.DataFrame) -> list[Kernel]:
        """Return the kernels that contexts may have: of attributes, those that some of them have in common."""
        names = [str(name) for name in contexts if contexts[name].nunique() < len(contexts)]
        return [cls(length, own, shared) for shared in ("", *names) for length in LENGTHS for own in OWN]


NO_KERNEL = Kernel(0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Place:
    """A context among those of training: weights, shape (n_contexts + 1,), the last for a new one.

    Of a new one: ``control``, the mean expression of its control cells, None where unknown, and its attributes.
    """

    weights: np.ndarray
    control: np.ndarray | None = None
    attributes: Mapping[str, object] = field(default_factory=dict)

    @property
    def new(self) -> bool:
        """Whether this is none of the training contexts."""
        return bool(self.weights[-1])


@dataclass(frozen=True, eq=False)
class Asked:
    """A condition whose effect is asked for; NaN doses and times: as measured, on average."""

    parts: tuple[str, ...]
    dose: tuple[float, ...]
    time: float
    place: Place


@dataclass(frozen=True, eq=False)
class _Design:
    """Conditions as numbers: size and log dose of each part, shape (n, n_parts), and time (n,)."""

    size: np.ndarray
    log_dose: np.ndarray
    time: np.ndarray

    @classmethod
    def of(cls, parts: Iterable, dose: Iterable, time: np.ndarray, names: list[str], curves: Curves) -> _Design:
        parts, dose = list(parts), list(dose)
        size = curves.sizes(parts, dose, time, names)
        log_dose, column = np.full(size.shape, np.nan), {name: j for j, name in enumerate(names)}
        for (some, amounts), rows in alike(zip(parts, dose, strict=True)).items():
            log_dose[np.array(rows)[:, None], [column[part] for part in some]] = np.log(amounts)
        return cls(size, log_dose, time)

    def take(self, rows: np.ndarray) -> _Design:
        return _Design(self.size[rows], self.log_dose[rows], self.time[rows])

    def stacked(self, more: _Design) -> _Design:
        """These conditions and more, which may have further parts."""
        wider = ((0, 0), (0, more.size.shape[1] - self.size.shape[1]))
        size, log_dose = np.pad(self.size, wider), np.pad(self.log_dose, wider, constant_values=np.nan)
        return _Design(
            np.vstack([size, more.size]), np.vstack([log_dose, more.log_dose]), np.append(self.time, more.time)
        )


@dataclass(frozen=True, eq=False)
class _Bearing:
    """Measured effects that bear on one asked for, and prior covariances of a gene with b_g = i_g = 1 in one context.

    The condition asked for comes after the n measured ones. ``near``: their positions, (n,); ``size``: of their parts,
    (n + 1, n_parts); ``additive``, ``joint``: covariances of sums of parts and of interactions, (n + 1, n + 1);
    ``clear``: for each part asked for that was measured alone, its number in the prior and its share of ``additive``.
    """

    near: np.ndarray
    size: np.ndarray
    additive: np.ndarray
    joint: np.ndarray
    clear: list[tuple[int, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Process:
    """The process with its settings.

    Parameters
    ----------
    measured, curves, prior
        What it is made of.
    kernels
        Their weights, in all 1: K_g is the weighted sum.
    limit
        Measured effects that one answer conditions on.
    """

    measured: Measured
    curves: Curves
    prior: Prior
    kernels: Mapping[Kernel, float] = field(default_factory=lambda: {NO_KERNEL: 1.0})
    limit: int = MAX_ROWS

    @property
    def own(self) -> float:
        """Weight of the gene's own control level."""
        return sum(weight * kernel.own for kernel, weight in self.kernels.items())

    @classmethod
    def fit(cls, measured: Measured) -> Process:
        """Return the process that the measured effects support."""
        curves = Curves.fit(measured)
        full = curves.full_size(measured)
        return cls(measured, curves, Prior.fit(full), best_kernels(full))

    @cached_property
    def full(self) -> Process:
        """The process of effects at the top dose and the last time: a coarser and faster answer."""
        return Process(self.curves.full_size(self.measured), Curves(), self.prior, self.kernels, FEW_ROWS)

    def place(self, k: int | None = None) -> Place:
        """Return the place of training context ``k``, or the average of all by their control cells."""
        n = len(self.measured.contexts)
        if k is None:
            return Place(np.append(self.measured.controls_n / self.measured.controls_n.sum(), 0.0))
        return Place(np.eye(n + 1)[k])

    def posterior(self, ask: Asked, *, genes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of the true effect, shape (n_genes + 1,) each; the last is the log depth ratio.

        ``genes``: positions of those that are asked for, all by default; mean and variance have this shape then.
        """
        return self.given(ask, self.bearing(ask), genes)

    def given(self, ask: Asked, bearing: _Bearing, genes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance given the effects that bear on the one asked for; see :meth:`posterior`."""
        near, additive, n = bearing.near, bearing.additive, len(bearing.near)
        genes = np.arange(len(self.prior.average)) if genes is None else genes
        rows, measured = self.measured.rows.iloc[near], self.measured
        kernel, levels = self._contexts(ask.place)
        at = np.vstack([np.eye(len(kernel))[rows["context"].to_numpy(int)], ask.place.weights])
        # every covariance is a sum of matrices that all genes have in common, each times a number of the gene
        shapes = [additive, additive * (at @ kernel @ at.T), bearing.joint, *(own for _, own in bearing.clear)]
        numbers = [self.prior.between, self.prior.across, self.prior.interaction]
        numbers += [self.prior.outlier[part] for part, _ in bearing.clear]
        reference = rows["reference"].to_numpy(int)
        for control in np.unique(reference):  # those that share control cells share their noise
            mine = np.append(reference == control, False).astype(float)
            shapes.append(np.outer(mine, mine))
            numbers.append(measured.reference_noise[control])
        shape, number = np.reshape(shapes, (len(shapes), -1)), np.array(numbers)[:, genes].T
        noise = measured.noise[near][:, genes].T + 1e-9
        level = (at @ levels[:, genes]).T * np.sqrt(self.own * self.prior.across[genes])[:, None]

        total = bearing.size.sum(axis=1)
        mean = total[n] * self.prior.average[genes]
        gap = (measured.effect[near][:, genes] - total[:n, None] * self.prior.average[genes]).T
        variance = np.empty_like(mean)
        step = max(1, MAX_ENTRIES // (n + 1) ** 2)
        for g in (slice(start, start + step) for start in range(0, len(mean), step)):
            cov = (number[g] @ shape).reshape(-1, n + 1, n + 1)
            if self.own:
                cov += level[g, :, None] * level[g, None, :] * additive
            cross = cov[:, :n, n:]
            np.einsum("gii->gi", cov)[:, :n] += noise[g]
            weights = np.linalg.solve(cov[:, :n, :n], cross)[:, :, 0]
            mean[g] += (weights * gap[g]).sum(axis=1)
            variance[g] = cov[:, n, n] - (weights * cross[:, :, 0]).sum(axis=1)
        return mean, np.maximum(variance, 0)

    # ---- what is like what -------------------------------------------------------------------------------------------

    @cached_property
    def _rows(self) -> _Design:
        rows = self.measured.rows
        return _Design.of(rows["parts"], rows["dose"], rows["time"].to_numpy(float), self.measured.parts, self.curves)

    def bearing(self, ask: Asked) -> _Bearing:
        """Return the measured effects that bear on a condition, and how."""
        near = self._near(ask)
        names = [*self.measured.parts, *(part for part in ask.parts if part not in self.measured.parts)]
        asked = _Design.of([ask.parts], [ask.dose], np.array([ask.time]), names, self.curves)
        rows = self._rows.take(near).stacked(asked)
        used = np.flatnonzero(rows.size.any(axis=0))
        size, names = rows.size[:, used], [names[j] for j in used]
        alike = self._alike_in_time(rows.time)
        additive, clear = np.zeros(alike.shape), []
        for column, (name, strength) in enumerate(zip(names, self.prior.strengths(names), strict=True)):
            one = np.outer(size[:, column], size[:, column]) * alike
            if name in self.curves.dose:  # a gene's own shape along the dose
                one *= 1 - OWN_SHAPE + OWN_SHAPE * _near_in(rows.log_dose[:, used[column]], 1.0)
            additive += strength * one
            if name in ask.parts and name in self.prior.parts:
                clear.append((self.prior.parts.index(name), one))
        several = [parts if len(parts) > 1 else None for parts in [*self.measured.rows["parts"].iloc[near], ask.parts]]
        equal = np.array([[one is not None and one == other for other in several] for one in several])
        amplitude = np.sqrt((size**2).sum(axis=1))
        return _Bearing(near, size, additive, np.outer(amplitude, amplitude) * equal, clear)

    def _clock(self, time: np.ndarray | float) -> np.ndarray:
        """Times in units in which effects change: logarithmic where they count from the perturbation."""
        if self.curves.time is not None:
            return np.log(np.maximum(time, 1e-12))
        measured = self.measured.rows["time"].dropna()
        return np.asarray(time) / ((np.ptp(measured) / 2 if len(measured) else 0) or 1)

    def _alike_in_time(self, time: np.ndarray) -> np.ndarray:
        """How alike the shapes of effects are at two times, (n, n), in units of their sizes."""
        near, measured = _near_in(self._clock(time), 1.0), self.measured.rows["time"].dropna()
        if self.curves.time is not None:
            # some genes are early, some late: in molecules they stray from the common curve early as much as late
            share = np.nan_to_num(self.curves.time(np.maximum(time, measured.min())), nan=1.0)
            return 1 - OWN_SHAPE + OWN_SHAPE * near / np.outer(share, share)
        return 1 - OWN_TIME + OWN_TIME * near if len(measured) and np.ptp(measured) else np.ones_like(near)

    def _near(self, ask: Asked) -> np.ndarray:
        """Positions of the measured effects that bear on a condition most: alike, of many cells, in like contexts."""
        n = len(self.measured.rows)
        if n <= self.limit:
            return np.arange(n)
        names = self.measured.parts
        column = [names.index(part) for part in ask.parts if part in names]
        there = [np.log(dose) for part, dose in zip(ask.parts, ask.dose, strict=True) if part in names]
        related = np.abs(self._rows.size[:, column]) @ self.prior.strengths([names[j] for j in column])
        times = self._clock(self._rows.time)[:, None]
        for at, wanted in ((self._rows.log_dose[:, column], there), (times, self._clock(ask.time))):
            related *= np.exp(-np.nansum((at - np.asarray(wanted)) ** 2, axis=1) / 20)
        context = self.measured.rows["context"].to_numpy(int)
        kernel = self._contexts(ask.place)[0] @ ask.place.weights
        # others tell about the control cells that they share
        bearing = (related + 1e-3) * (0.3 + kernel[context]) * np.sqrt(self.measured.rows["n"].to_numpy())
        return np.sort(np.argsort(-bearing, kind="stable")[: self.limit])

    def _contexts(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """Kernel of contexts, a new one last, (n + 1, n + 1), and clipped control levels y, (n + 1, n_genes + 1)."""
        new = place.control
        controls, noise = self.measured.controls, self.measured.controls_noise.sum(axis=1)
        n, n_genes = controls.shape
        whole, levels = np.zeros((n + 1, n + 1)), np.zeros((n + 1, n_genes + 1))
        whole[n, n] = new is None  # of a context without control cells nothing is known
        z = controls if new is None else np.vstack([controls, new])
        noise = np.append(noise, 0.0)[: len(z)]
        square = (z**2).sum(axis=1)
        distance = square[:, None] + square - 2 * z @ z.T - noise[:, None] - noise
        distance = np.maximum(distance, 0) * (1 - np.eye(len(z)))
        typical = max(np.median(distance[:n, :n][np.triu_indices(n, 1)]), 1e-12) if n > 1 else 1.0
        near = {length: np.exp(-distance / (length * typical)) if length else np.eye(len(z)) for length in LENGTHS}
        for one, weight in self.kernels.items():
            alike = near[one.length]
            if one.shared:
                values = [*self.measured.contexts[one.shared], place.attributes.get(one.shared)][: len(z)]
                same = np.array([[value == other for other in values] for value in values])
                alike = SHARED * same + (1 - SHARED) * alike
            whole[: len(z), : len(z)] += weight * alike
        if self.own:
            y = (z - controls.mean(axis=0)) / np.maximum(controls.std(axis=0), 1e-6)
            levels[: len(z), :-1] = np.clip(y, y[:n].min(axis=0), y[:n].max(axis=0))
        return whole, levels


def best_kernels(measured: Measured) -> dict[Kernel, float]:
    """Return weights of context kernels by how well they predict contexts that are left out, some at a time.

    Of few contexts, what looks best may be chance: kernels within a standard error of the best count nearly as much.

    Parameters
    ----------
    measured
        Effects at full size, one for each perturbation and context.
    """
    rows = measured.rows
    context = rows["context"].to_numpy(int)
    fold = left_out_together(measured)[context]
    folds = np.unique(fold)
    if len(folds) < FEW_CONTEXTS:
        return {NO_KERNEL: 1.0}
    folds = folds[np.unique(np.linspace(0, len(folds) - 1, MAX_FOLDS).astype(int))]
    signal = (measured.effect[:, :-1] ** 2).sum(axis=1) - measured.noise[:, :-1].sum(axis=1)
    kernels = Kernel.candidates(measured.contexts)
    table = []
    for one in folds:
        prior = Prior.fit(measured.without(fold == one))
        elsewhere = set(rows["parts"][fold != one])
        asked = [row for row in np.argsort(-signal) if fold[row] == one and rows["parts"].iloc[row] in elsewhere]
        lost, size = np.zeros(len(kernels)), 0.0
        for row in asked[:MAX_ASKED]:
            parts, truth = rows["parts"].iloc[row], measured.effect[row, :-1]
            others = measured.without((fold == one) | np.array([parts != some for some in rows["parts"]]))
            process = Process(others, Curves(), prior, dict.fromkeys(kernels, 1 / len(kernels)))
            ask = Asked(parts, (np.nan,) * len(parts), np.nan, process.place(context[row]))
            bearing = process.bearing(ask)
            for i, kernel in enumerate(kernels):
                guess = replace(process, kernels={kernel: 1.0}).given(ask, bearing)[0]
                lost[i] += ((truth - guess[:-1]) ** 2).sum()
            size += (truth**2).sum()
        if asked:
            table.append(lost / size)
    if len(table) < FEW_CONTEXTS:
        return {NO_KERNEL: 1.0}
    worse = np.array(table).T - np.array(table)[:, np.mean(table, axis=0).argmin()]
    standard_error = worse.std(axis=1, ddof=1) / np.sqrt(len(table)) + 1e-12
    weight = np.exp(-worse.mean(axis=1) / standard_error)
    weight[weight < 0.05] = 0
    return {kernel: float(w) for kernel, w in zip(kernels, weight / weight.sum(), strict=True) if w}


def left_out_together(measured: Measured) -> np.ndarray:
    """Return for each context the fold it is left out in, (n_contexts,): alone, or with all of a patient.

    What has to be predicted decides: where an attribute has whole values without any effect, as a patient of whom there
    are control cells only, the others are left out value by value. Otherwise its other states would give it away.
    """
    contexts = measured.contexts
    known = np.isin(np.arange(len(contexts)), measured.rows["context"])
    for name in contexts:
        value = contexts[name].astype(str).factorize()[0]
        if FEW_CONTEXTS <= len(np.unique(value[known])) < len(np.unique(value)):
            return value
    return np.arange(len(contexts))


def _near_in(at: np.ndarray, spread: float) -> np.ndarray:
    """exp(-difference^2 / 2 spread^2), (n, n); a missing value is near to all others."""
    return np.exp(-(np.nan_to_num(at[:, None] - at) ** 2) / (2 * spread**2))
