"""How the size of an effect depends on dose and on time, when its direction in gene space does not.

    effect_g(dose, time) = E_g  s(dose)  u(time)
    s(d) ~ d^h / (d^h + EC50^h)  (Hill 1910)          u(t) ~ 1 - exp(-t / T)  (first-order kinetics of RNA)

One curve stands for all genes, so thousands of genes vote on two numbers. With E_g profiled out, and the noise of gene
g in group i being sigma_g^2 / n_i, the log-likelihood of a curve needs only the groups' inner products
Q_ij = sum_g D_ig D_jg / sigma_g^2, where D are effects::

    l(s) = 1/2 sum_blocks (s n)' Q (s n) / sum_i n_i s_i^2          block: groups that differ in dose (or time) alone

What single genes do beside the common curve is left to the process that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from scidiff.models.effect_measured import Measured

#: what is believed before data are seen: spread of log Hill slope, log EC50 and log time constant
SLOPE_SD, EC50_SD, SCALE_SD = 0.5, 1.5, 1.5
#: genes of a cell vary together: as evidence, one counts for this many independent ones
INDEPENDENT = 0.3
ENOUGH_CELLS = 20  # of a group that stands alone in the fit of a curve
SMALLEST = 1e-3  # share of the full effect below which a group tells nothing about it


@dataclass(frozen=True)
class Hill:
    """Size of an effect at a dose, as a share of that at the ``top`` dose; exactly 0 at dose 0, rising."""

    ec50: float
    slope: float
    top: float

    def __call__(self, dose: np.ndarray | float) -> np.ndarray:
        """Return the share, in the shape of ``dose``."""
        power, half = np.asarray(dose, dtype=float) ** self.slope, self.ec50**self.slope
        return power / (power + half) * (1 + half / self.top**self.slope)


@dataclass(frozen=True)
class Saturation:
    """Size of an effect after a time, as a share of that after the ``last`` time; exactly 0 at time 0, rising."""

    scale: float
    last: float

    def __call__(self, time: np.ndarray | float) -> np.ndarray:
        """Return the share, in the shape of ``time``."""
        return np.expm1(-np.asarray(time, dtype=float) / self.scale) / np.expm1(-self.last / self.scale)


@dataclass(frozen=True)
class Curves:
    """The dose curve of each part with several doses, and the time curve of all.

    Parameters
    ----------
    dose
        Part -> Hill curve.
    usual
        Part -> mean size over the measured groups: the size where the dose is not told.
    time
        None where one time was measured, or times are not times since the perturbation.
    """

    dose: Mapping[str, Hill] = field(default_factory=dict)
    usual: Mapping[str, float] = field(default_factory=dict)
    time: Saturation | None = None

    @classmethod
    def fit(cls, measured: Measured) -> Curves:
        """Return the curves of perturbations measured alone, each with the noise of its cells."""
        rows = measured.rows.assign(at=np.arange(len(measured.rows)))
        rows = rows[[len(parts) == 1 for parts in rows["parts"]]]
        rows = rows.assign(part=[p[0] for p in rows["parts"]], amount=[d[0] for d in rows["dose"]])
        dose, screens = {}, []
        for part, own in rows.groupby("part"):
            if own["amount"].notna().all() and own["amount"].nunique() > 1:
                dose[part] = fit_hill(*_along("amount", own, ["context", "time"], measured))
            if measured.since and own["time"].notna().all() and own["time"].nunique() > 1:
                screens.append(_along("time", own, ["context", "amount"], measured))
        usual = {part: float(np.mean(curve(measured.doses(part)))) for part, curve in dose.items()}
        return cls(dose, usual, fit_saturation(screens) if screens else None)

    def sizes(
        self, parts: Sequence[tuple[str, ...]], dose: Sequence[tuple[float, ...]], time: np.ndarray, names: list[str]
    ) -> np.ndarray:
        """Return s(dose) u(time) of each part in each condition, 0 where it is not there, (n_conditions, n_names)."""
        size = np.zeros((len(parts), len(names)))
        column = {name: j for j, name in enumerate(names)}
        for (some, amounts), rows in alike(zip(parts, dose, strict=True)).items():
            for part, amount in zip(some, amounts, strict=True):
                curve = self.dose.get(part)
                known = self.usual.get(part, 1.0) if curve is None or not np.isfinite(amount) else curve(amount)
                size[rows, column[part]] = known
        if self.time is not None:
            size *= np.where(np.isfinite(time), self.time(np.nan_to_num(time)), 1.0)[:, None]
        return size

    def full_size(self, measured: Measured) -> Measured:
        """Return one effect for each perturbation and context: as at the top dose and the last time.

        Least squares over the groups, each weighted by its cells. The control cells of a context count as one set.
        """
        rows = measured.rows.assign(at=np.arange(len(measured.rows)))
        size = self.sizes(rows["parts"], rows["dose"], rows["time"].to_numpy(float), measured.parts)
        here = size > 0
        # one part of a combination may be near its full effect and another far from it: the mean size stands for both
        rows["size"] = np.maximum(size.sum(axis=1) / np.maximum(here.sum(axis=1), 1), SMALLEST)
        table, effect, noise = list[tuple](), [], []
        control: dict[Any, dict[int, np.ndarray]] = {}
        for (parts, k), own in rows.groupby(["parts", "context"], sort=False):
            n, size, at = own["n"].to_numpy(), own["size"].to_numpy(), own["at"].to_numpy()
            weight = n * size / (n * size**2).sum()
            shares = pd.Series(weight).groupby(own["reference"].to_numpy()).sum()
            control.setdefault(k, {})[len(table)] = shares.to_numpy() ** 2 @ measured.reference_noise[shares.index]
            effect.append(weight @ measured.effect[at])
            noise.append(weight**2 @ measured.noise[at])
            table.append((k, list(control).index(k), parts, (np.nan,) * len(parts), np.nan, n.sum()))
        # a small effect made large makes the noise of control cells large too: only the least of it is shared by all
        shared = {k: np.min(list(values.values()), axis=0) for k, values in control.items()}
        for k, values in control.items():
            for row, value in values.items():
                noise[row] = noise[row] + value - shared[k]
        return replace(
            measured,
            rows=pd.DataFrame(table, columns=["context", "reference", "parts", "dose", "time", "n"]),
            effect=np.array(effect),
            noise=np.array(noise),
            reference_noise=np.array(list(shared.values())),
        )

    def to_dict(self) -> dict:
        """Return the curves as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> Curves:
        """Return the curves that :meth:`to_dict` wrote."""
        time = values["time"]
        dose = {part: Hill(**curve) for part, curve in values["dose"].items()}
        return cls(dose, values["usual"], None if time is None else Saturation(**time))


def alike(conditions: Iterable[Any]) -> dict[Any, list[int]]:
    """Return the positions of each distinct condition: what is said of conditions needs to be said of few."""
    rows: dict[Any, list[int]] = {}
    for row, condition in enumerate(conditions):
        rows.setdefault(condition, []).append(row)
    return rows


def _along(
    name: str, rows: pd.DataFrame, others: list[str], measured: Measured
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Doses or times, inner products, cells and blocks of groups, for the fit of a curve.

    A block is one context and time (dose); groups of few cells are joined over times (doses), then over contexts too.
    """
    for number in (2, 1, 0):
        by = others[:number]
        block = rows.groupby(by, dropna=False).ngroup() if by else pd.Series(0, index=rows.index)
        joined = rows.groupby([block, rows[name]])
        if joined["n"].sum().median() >= ENOUGH_CELLS:
            break
    join = np.zeros((joined.ngroups, len(rows)))
    join[joined.ngroup(), np.arange(len(rows))] = rows["n"]
    n = join.sum(axis=1)
    join /= n[:, None]
    keys = np.array(list(joined.groups), dtype=float)
    return keys[:, 1], join @ measured.inner(rows["at"].to_numpy()) @ join.T, n, keys[:, 0]


def fit_hill(dose: np.ndarray, inner: np.ndarray, n: np.ndarray, block: np.ndarray) -> Hill:
    """Return the most probable Hill curve of one perturbation.

    Parameters
    ----------
    dose, n, block
        Doses above 0, cells, and the block of each group, shape (n_groups,).
    inner
        Q of the module head without the noise's own share, shape (n_groups, n_groups).
    """
    low, high = np.log(dose.min()), np.log(dose.max())
    centre = (low + high) / 2
    best, best_score = None, -np.inf
    for ec50 in np.linspace(low - 2, high + 2, 41):
        for slope in np.linspace(np.log(0.4), np.log(4), 16):
            curve = Hill(float(np.exp(ec50)), float(np.exp(slope)), float(np.exp(high)))
            score = support(curve, dose, inner, n, block)
            score -= ((ec50 - centre) / EC50_SD) ** 2 / 2 + (slope / SLOPE_SD) ** 2 / 2
            if best is None or score > best_score:
                best, best_score = curve, score
    assert best is not None
    return best


def fit_saturation(screens: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> Saturation:
    """Return the most probable time constant shared by perturbations: for each (time, inner, n, block), as above."""
    first = min(time.min() for time, *_ in screens)
    last = max(time.max() for time, *_ in screens)
    centre = np.log(first * last) / 2

    def score(curve: Saturation) -> float:
        before = ((np.log(curve.scale) - centre) / SCALE_SD) ** 2 / 2
        return sum(support(curve, *screen) for screen in screens) - before

    return max((Saturation(float(s), float(last)) for s in np.geomspace(first / 20, last * 5, 81)), key=score)


def support(
    curve: Callable[[np.ndarray], np.ndarray], at: np.ndarray, inner: np.ndarray, n: np.ndarray, block: np.ndarray
) -> float:
    """Return the log-likelihood of a curve, l(s) of the module head, up to a constant."""
    share = curve(at)
    same = block[:, None] == block
    weighted = share * n
    size = same @ (weighted * share)  # of each group's block
    return float(INDEPENDENT / 2 * ((weighted / size)[:, None] * inner * same * weighted).sum())
