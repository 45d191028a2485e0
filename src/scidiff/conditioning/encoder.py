"""One vector for everything a model is told about a cell.

    c = sum_a e_a[code]  +  sum_{p in parts} m_p(dose_p) v_p  +  curve(time)  +  sum_m curve_m(score_m)  +  depth

Combinations are sums over a set, so A+B is B+A. A dose multiplies its perturbation's vector by a Hill curve
``m(d) = d^h / (d^h + k^h)``, monotone, with m(0) = 0: dose 0 is the control, exactly. A null attribute has a learned
vector of its own, so "unknown" is not "control".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scidiff.conditioning.vocabulary import Conditions, Vocabulary


class ConditionEncoder(nn.Module):
    """Return the condition vector of each cell, shape (n_cells, width).

    Parameters
    ----------
    vocabulary
        Known values, learned from training cells.
    width
        Length of the vector.
    features
        Optional description of the single perturbations, shape (n_parts, n_features), rows in the order of
        ``vocabulary.parts`` (fingerprints, gene sets, embeddings). A linear map of it is added to the free vectors.
    """

    part_features: Tensor | None

    def __init__(self, vocabulary: Vocabulary, width: int, *, features: Tensor | None = None) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {_key(name): nn.Embedding(len(values) + 1, width) for name, values in vocabulary.categories.items()}
        )
        n_parts = len(vocabulary.parts)
        self.parts = nn.Embedding(n_parts + 1, width, padding_idx=0)
        self.curve = DoseCurve(torch.tensor(vocabulary.doses or [1.0] * n_parts))
        self.has_dose = vocabulary.dose_range is not None
        nulls = ("perturbation", "time", *(["dose"] if self.has_dose else []))
        nulls += tuple(map(_key, vocabulary.modules))
        self.null = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name in nulls})
        self.scores = nn.ModuleDict(
            {_key(name): SmoothCurve(bounds, width) for name, bounds in vocabulary.modules.items()}
        )
        self.time = SmoothCurve(vocabulary.time_range or (0.0, 1.0), width, n_values=vocabulary.n_times)
        self.depth_scale = vocabulary.depth
        self.depth = nn.Linear(2, width)
        self.has_perturbation = "perturbation" in vocabulary.attributes
        self.has_time = vocabulary.time_range is not None
        self.register_buffer("part_features", None if features is None else features.float())
        self.from_features = nn.Linear(features.shape[1], width, bias=False) if features is not None else None

    def forward(self, cond: Conditions) -> Tensor:
        """Return the vectors, shape (n_cells, width)."""
        out = self._depth(cond.depth.log())
        for name, code in cond.codes.items():
            if name != "perturbation":
                out = out + self.tables[_key(name)](code)
        if self.has_perturbation:
            unknown = (cond.codes["perturbation"] == 0)[:, None]
            out = out + torch.where(unknown, self.null["perturbation"], self._perturbation(cond))
        if self.has_dose:
            unknown = (cond.doses.isnan() & (cond.parts > 0)).any(dim=1)[:, None]
            out = out + torch.where(unknown, self.null["dose"], 0.0)
        if self.has_time:
            out = out + self._smooth(cond.time, self.time, self.null["time"])
        for name, score in cond.modules.items():
            out = out + self._smooth(score, self.scores[_key(name)], self.null[_key(name)])
        return out

    @staticmethod
    def _smooth(value: Tensor, curve: nn.Module, null: Tensor) -> Tensor:
        return torch.where(value.isnan()[:, None], null, curve(value.nan_to_num()))

    def _perturbation(self, cond: Conditions) -> Tensor:
        vectors = self.parts(cond.parts)
        if self.from_features is not None:
            assert self.part_features is not None
            described = torch.cat([self.part_features.new_zeros(1, self.part_features.shape[1]), self.part_features])
            vectors = vectors + self.from_features(described)[cond.parts]
        return (self.curve(cond.parts, cond.doses)[..., None] * vectors).sum(dim=1)

    def _depth(self, log_depth: Tensor) -> Tensor:
        mean, sd = self.depth_scale
        z = ((log_depth - mean) / sd).clamp(-3, 3)  # beyond three deviations the map would extrapolate
        return self.depth(torch.stack([z.nan_to_num(), z.isfinite().float()], dim=1))


class DoseCurve(nn.Module):
    """Monotone response to dose, one Hill curve per part, in [0, 1]; an unknown dose counts as full effect.

    Parameters
    ----------
    middle
        Dose of half effect to start from, shape (n_parts,).
    """

    def __init__(self, middle: Tensor) -> None:
        super().__init__()
        # the first entry belongs to the empty slot
        self.log_middle = nn.Parameter(torch.cat([torch.zeros(1), middle.float().clamp_min(1e-12).log()]))
        self.log_slope = nn.Parameter(torch.zeros(len(middle) + 1))

    def forward(self, parts: Tensor, doses: Tensor) -> Tensor:
        """Return m(dose), the shape of ``parts``; 0 at dose 0 and in empty slots."""
        slope, middle = self.log_slope[parts].exp(), self.log_middle[parts]
        given = doses.nan_to_num().clamp_min(0)
        response = torch.sigmoid(slope * (given.clamp_min(1e-30).log() - middle)) * (given > 0)
        return torch.where(doses.isnan(), 1.0, response) * (parts > 0)


class SmoothCurve(nn.Module):
    """Smooth vector-valued curve over a continuous attribute: a line and slow waves over the training range.

    Outside the range it goes on along its line while the waves stay at their ends. Two values in training make it a
    line, three add half a wave, and so on: what no value tells would keep its random beginning.

    Parameters
    ----------
    bounds
        Smallest and largest training value.
    width
        Length of the vector.
    n_values
        Different values in training; None: many.
    """

    def __init__(self, bounds: tuple[float, float], width: int, *, n_values: int | None = None) -> None:
        super().__init__()
        self.low, self.span = bounds[0], (bounds[1] - bounds[0]) or 1.0  # one time only: any unit will do
        waves = [(wave, math.pi * k) for k in (1, 2) for wave in (torch.sin, torch.cos)]
        self.waves = waves if n_values is None else waves[: max(n_values - 2, 0)]
        self.map = nn.Linear(1 + len(self.waves), width)

    def forward(self, value: Tensor) -> Tensor:
        """Return the curve at each value, shape (n_cells, width)."""
        u = (value - self.low) / self.span
        inside = u.clamp(0, 1)
        return self.map(torch.stack([u, *(wave(inside * f) for wave, f in self.waves)], dim=1))


def _key(name: str) -> str:
    """A module name made of an obs column: torch allows no dots."""
    return "of_" + name.replace(".", "_dot_")
