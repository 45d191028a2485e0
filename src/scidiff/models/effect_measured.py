"""Effects as they were measured: treated mean less control mean, and which of them share control cells.

    D_i = mean(treated_i) - mean(control_r(i))      Cov(D_i, D_j) = [i = j] s_i^2 + [r(i) = r(j)] s_r(i)^2

The control cells of a group are those of its context, and of its time where control cells of that time exist. The last
column of every matrix of effects is the log of molecules per cell: the depth ratio is one more gene.

What A does follows from A alone, or from A + B where B is known in turn. Where neither A nor B is, only their sum is
known: "A + B" counts as one part then, and nothing is said of either.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from scidiff.errors import DataWarning, InputError
from scidiff.models.effect_groups import GroupStats

#: the arrays of Measured, as they are stored
ARRAYS = ("effect", "noise", "reference_noise", "controls", "controls_noise", "controls_n")
JOINED = " + "  # between the names of parts that cannot be told apart


class NothingMeasured(InputError):
    """The cells say nothing of any effect: none is treated where there are controls to compare with."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Measured effects.

    Parameters
    ----------
    rows
        One row per effect: ``context`` and ``reference`` (integers), ``parts`` and ``dose`` (tuples, NaN: unknown),
        ``time`` (NaN: unknown), ``n`` treated cells.
    effect, noise
        D and s_i^2 of the module head, shape (n_rows, n_genes + 1).
    reference_noise
        s_r^2 of each set of control cells, shape (n_references, n_genes + 1).
    contexts
        Attributes of each context.
    controls, controls_noise, controls_n
        Mean expression of the control cells of each context and its sampling variance, shape (n_contexts, n_genes);
        their number.
    since
        Times count from the perturbation: control cells were taken before all others.
    """

    rows: pd.DataFrame
    effect: np.ndarray
    noise: np.ndarray
    reference_noise: np.ndarray
    contexts: pd.DataFrame
    controls: np.ndarray
    controls_noise: np.ndarray
    controls_n: np.ndarray
    since: bool

    @classmethod
    def of(cls, stats: GroupStats) -> Measured:
        """Return the effects in groups of cells.

        Raises
        ------
        NothingMeasured
            There are no control cells, or no treated cells of a context that has some.
        """
        table, columns = stats.table, stats.context_columns
        treatment = [canonical(parts, dose) for parts, dose in zip(table["perturbation"], _doses(table), strict=True)]
        control = np.array([not parts for parts, _ in treatment])
        if not control.any():
            raise NothingMeasured("no control cells: the effect of a perturbation is a difference to control")
        attributes = table[columns].astype(object).where(table[columns].notna(), None)
        keys = [tuple(values) for values in attributes.to_numpy()]
        places = list(dict.fromkeys(key for key, untreated in zip(keys, control, strict=True) if untreated))
        number = {key: i for i, key in enumerate(places)}
        context = np.array([number.get(key, -1) for key in keys])
        if lost := np.count_nonzero(~control & (context < 0)):
            groups = "1 perturbed group has" if lost == 1 else f"{lost} perturbed groups have"
            text = f"{groups} no control cells of the same context: what they show is left out"
            warnings.warn(text, DataWarning, stacklevel=3)
        treated = np.flatnonzero(~control & (context >= 0))
        if not len(treated):
            raise NothingMeasured("no perturbed cells with control cells of their context; there is no effect to learn")

        time = table["time"].to_numpy(float) if "time" in table else np.full(len(table), np.nan)
        references, reference = [], []
        for row in treated:
            own = np.flatnonzero(control & (context == context[row]))
            then = own[time[own] == time[row]]
            cells = tuple(then if len(then) else own)
            if cells not in references:
                references.append(cells)
            reference.append(references.index(cells))
        value = np.column_stack([stats.mean, stats.log_depth])
        variance = np.column_stack([stats.variance, stats.log_depth_variance])
        base, base_noise = _pooled(references, value, variance, stats.n)
        pools = [np.flatnonzero(control & (context == k)) for k in range(len(places))]
        controls, controls_noise = _pooled(pools, value, variance, stats.n)
        rows = pd.DataFrame(
            {
                "context": context[treated],
                "reference": reference,
                "parts": [treatment[row][0] for row in treated],
                "dose": [treatment[row][1] for row in treated],
                "time": time[treated],
                "n": stats.n[treated].astype(float),
            }
        )
        known = _told_apart(rows["parts"])
        together = [joined(*row, known) for row in zip(rows["parts"], rows["dose"], strict=True)]
        rows["parts"], rows["dose"] = [parts for parts, _ in together], [dose for _, dose in together]
        timed = time[treated][np.isfinite(time[treated])]
        return cls(
            rows=rows,
            effect=value[treated] - base[reference],
            noise=variance[treated],
            reference_noise=base_noise,
            contexts=pd.DataFrame(places, columns=columns, index=range(len(places)), dtype=object),
            controls=controls[:, :-1],
            controls_noise=controls_noise[:, :-1],
            controls_n=np.array([stats.n[pool].sum() for pool in pools], dtype=float),
            since=bool(len(timed) and np.nanmax([0.0, *time[control]]) < timed.min()),
        )

    @property
    def has_gaps(self) -> bool:
        """Whether a perturbation was measured in some contexts and not in others."""
        return bool(self.rows.groupby("parts")["context"].nunique().min() < len(self.contexts))

    @cached_property
    def parts(self) -> list[str]:
        """Names of the measured parts, sorted."""
        return sorted({part for parts in self.rows["parts"] for part in parts})

    def doses(self, part: str) -> np.ndarray:
        """Return the known doses at which a part was measured, one for each group."""
        pairs = zip(self.rows["parts"], self.rows["dose"], strict=True)
        doses = np.array([dose[parts.index(part)] for parts, dose in pairs if part in parts], dtype=float)
        return doses[np.isfinite(doses)]

    def without(self, drop: np.ndarray) -> Measured:
        """Return the effects that are not in the mask ``drop``; the control cells stay."""
        rows = self.rows[~drop].reset_index(drop=True)
        return replace(self, rows=rows, effect=self.effect[~drop], noise=self.noise[~drop])

    def inner(self, rows: np.ndarray) -> np.ndarray:
        """Return sum_g D_ig D_jg / sigma_g^2, less what noise adds on average, shape (n, n).

        ``sigma_g^2`` is the variance of a gene within groups, per cell, kept from 0 by a tenth of the mean over genes:
        the few molecules of a silent gene, where they fall into groups of one cell, would seem to have no noise at all.
        """
        cell = (self.noise * self.rows["n"].to_numpy()[:, None]).mean(axis=0)[:-1]
        cell = np.maximum(cell + cell.mean() / 10, 1e-6)
        effect, reference = self.effect[rows, :-1], self.rows["reference"].to_numpy(int)[rows]
        own = np.diag((self.noise[rows, :-1] / cell).sum(axis=1))
        shared = (self.reference_noise[reference, :-1] / cell).sum(axis=1)
        return (effect / cell) @ effect.T - own - shared[:, None] * (reference[:, None] == reference)

    def to_dict(self) -> dict:
        """Return what is no array as JSON values."""
        known = self.rows["time"].notna()
        rows = self.rows.assign(
            parts=self.rows["parts"].map(list),
            dose=[[None if np.isnan(amount) else amount for amount in dose] for dose in self.rows["dose"]],
            time=self.rows["time"].astype(object).where(known, None),
        )
        contexts = {"columns": list(self.contexts.columns), "values": self.contexts.to_numpy().tolist()}
        return {"rows": rows.to_dict("list"), "contexts": contexts, "since": self.since}

    @classmethod
    def from_dict(cls, arrays: Mapping[str, np.ndarray], about: Mapping) -> Measured:
        """Return the effects from their arrays and what :meth:`to_dict` wrote."""
        rows = pd.DataFrame(about["rows"])
        rows["parts"] = [tuple(parts) for parts in rows["parts"]]
        rows["dose"] = [tuple(np.nan if amount is None else amount for amount in dose) for dose in rows["dose"]]
        rows["time"] = rows["time"].astype(float)
        values = about["contexts"]["values"]
        contexts = pd.DataFrame(values, columns=about["contexts"]["columns"], index=range(len(values)), dtype=object)
        return cls(rows=rows, contexts=contexts, since=about["since"], **arrays)


def canonical(
    perturbation: str | Sequence[str], dose: float | Sequence[float] | None
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return sorted parts and the dose of each, NaN where unknown; a part at dose 0 is not there.

    Raises
    ------
    InputError
        The doses are not one, or one for each part, or one is negative.
    """
    parts = (perturbation,) if isinstance(perturbation, str) else tuple(perturbation)
    doses = tuple(np.atleast_1d(np.nan if dose is None else np.asarray(dose, dtype=float)))
    doses = doses * len(parts) if len(doses) == 1 else doses
    if len(doses) != len(parts) and len(parts):
        raise InputError(f"{len(doses)} doses for {len(parts)} parts of {'+'.join(parts)!r}; give one, or one each")
    if any(amount < 0 for amount in doses):
        raise InputError(f"dose {min(doses):g} is negative; give 0 for no perturbation")
    pairs = sorted((part, float(amount)) for part, amount in zip(parts, doses, strict=False) if amount != 0)
    return tuple(part for part, _ in pairs), tuple(amount for _, amount in pairs)


def joined(
    parts: tuple[str, ...], doses: tuple[float, ...], known: Collection[str]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return parts and doses with those that are not ``known`` as one; its dose is theirs if they have the same."""
    apart = [(part, dose) for part, dose in zip(parts, doses, strict=True) if part in known]
    others = [(part, dose) for part, dose in zip(parts, doses, strict=True) if part not in known]
    if len(others) > 1:
        dose = others[0][1] if len({dose for _, dose in others}) == 1 else np.nan
        others = [(JOINED.join(part for part, _ in others), dose)]
    pairs = sorted(apart + others)
    return tuple(part for part, _ in pairs), tuple(dose for _, dose in pairs)


def _told_apart(measured: Iterable[tuple[str, ...]]) -> set[str]:
    """Names of the parts whose own effects follow from what was measured."""
    combinations, known = set(measured), set[str]()
    while new := {part for parts in combinations for part in parts if set(parts) - known == {part}}:
        known |= new
    return known


def _doses(table: pd.DataFrame) -> Sequence:
    return table["dose"].tolist() if "dose" in table else [None] * len(table)


def _pooled(
    pools: Sequence[Sequence[int] | np.ndarray], value: np.ndarray, variance: np.ndarray, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the cells of several groups and its sampling variance, a row for each pool."""
    means, variances = [], []
    for pool in map(list, pools):
        share = n[pool] / n[pool].sum()
        means.append(share @ value[pool])
        variances.append(share**2 @ variance[pool])
    return np.array(means), np.array(variances)
