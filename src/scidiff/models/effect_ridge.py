"""What a perturbation never measured does, from what is known about it: kernel ridge on features of perturbations.

    E_new = sum_p w_p E_p,      w = (K + alpha I)^-1 k_new,      K = intercept + linear or Gaussian kernel of features

The effect is a weighted sum of measured effects, so weights learned once serve every context, dose and time. Kernel and
alpha are those with the smallest error when each perturbation is left out in turn, e_p = [(K + alpha I)^-1 E]_p /
[(K + alpha I)^-1]_pp (Rasmussen & Williams 2006, eq. 5.12). Where no kernel is better than the mean of the others by a
standard error, the features carry nothing, and the mean is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from scidiff.errors import InputError, expect

MEAN_ONLY = -1.0  # length of the kernel that sees no features
LENGTHS = (MEAN_ONLY, 0.0, 0.5, 1.0, 2.0)  # 0: linear; else Gaussian, in units of the usual distance
INTERCEPT = 100.0  # prior variance of the mean over perturbations, in units of the kernel: nearly free


@dataclass(frozen=True, eq=False)
class FeatureRidge:
    """Weights of measured perturbations for one that was not.

    Parameters
    ----------
    features
        Standardised features, index = names of perturbations, measured or not.
    parts
        Names of the measured perturbations with features.
    length, alpha
        The kernel and the ridge that were chosen.
    gain
        Share of the leave-one-out squared error of the mean of perturbations that features remove; 0 if nothing.
    error
        Leave-one-out mean squared error of each gene in units of its predictive variance, shape (n_genes,).
    """

    features: pd.DataFrame
    parts: list[str]
    length: float
    alpha: float
    gain: float
    error: np.ndarray

    @classmethod
    def fit(cls, features: pd.DataFrame, parts: Sequence[str], effects: np.ndarray) -> FeatureRidge:
        """Return the ridge for the measured effects of ``parts``, shape (n_parts, n_genes).

        Raises
        ------
        InputError
            Features are not numbers, a name occurs twice, or fewer than three measured perturbations have features.
        """
        features = checked_features(features)
        known = [i for i, part in enumerate(parts) if part in features.index]
        if len(known) < 3:
            raise InputError(f"features name {len(known)} of the measured perturbations; three or more are needed")
        names, effects = [parts[i] for i in known], effects[known]
        spread = features.std(ddof=0)
        if not (spread > 0).any():
            raise InputError("features are the same for all perturbations; give columns that differ")
        features = ((features - features.mean()) / spread)[spread.index[spread > 0]]
        errors = {}
        for length in LENGTHS:
            kernel = _kernel(features.loc[names].to_numpy(), features.loc[names].to_numpy(), length)
            for alpha in np.geomspace(0.03, 100, 12):
                errors[length, float(alpha)] = (_left_out(kernel, alpha, effects)[0] ** 2).sum(axis=1)
        mean_only = min((key for key in errors if key[0] == MEAN_ONLY), key=lambda key: errors[key].sum())
        best = min(errors, key=lambda key: errors[key].sum())
        better = errors[mean_only] - errors[best]
        if better.sum() <= np.std(better) * np.sqrt(len(better)):
            best, better = mean_only, np.zeros(1)
        kernel = _kernel(features.loc[names].to_numpy(), features.loc[names].to_numpy(), best[0])
        residual, variance = _left_out(kernel, best[1], effects)
        error = (residual**2 / variance[:, None]).mean(axis=0)
        return cls(features, names, *best, float(better.sum() / errors[mean_only].sum()), error)

    def weights(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight of each of ``parts`` for a new one, and the predictive variance per gene."""
        known = self.features.loc[self.parts].to_numpy()
        new = self.features.loc[[part]].to_numpy()
        kernel = _kernel(known, known, self.length) + self.alpha * np.eye(len(known))
        cross = _kernel(new, known, self.length)[0]
        weights = np.linalg.solve(kernel, cross)
        own = _kernel(new, new, self.length)[0, 0]
        return weights, self.error * max(own - weights @ cross + self.alpha, self.alpha)

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict]:
        """Return arrays and JSON values that :meth:`from_arrays` reads."""
        about = {"parts": self.parts, "length": self.length, "alpha": self.alpha, "gain": self.gain}
        about |= {"index": list(self.features.index), "columns": [str(name) for name in self.features.columns]}
        return {"ridge_features": self.features.to_numpy(), "ridge_error": self.error}, about

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], about: Mapping) -> FeatureRidge:
        """Return the ridge that :meth:`to_arrays` wrote."""
        features = pd.DataFrame(arrays["ridge_features"], index=about["index"], columns=about["columns"])
        return cls(features, about["parts"], about["length"], about["alpha"], about["gain"], arrays["ridge_error"])


def checked_features(features: pd.DataFrame) -> pd.DataFrame:
    """Return features as floats; InputError where they cannot be used."""
    expect(features, pd.DataFrame, "features as a DataFrame", "give one row per perturbation, its name in the index")
    if features.shape[1] == 0:
        raise InputError("features have no columns; give one row per perturbation, one column per feature")
    try:
        numbers = features.astype(float)
    except (TypeError, ValueError):
        raise InputError("features must be numbers, one row per perturbation; encode text columns first") from None
    numbers.index = numbers.index.astype(str)
    if not np.isfinite(numbers.to_numpy()).all():
        raise InputError("features have missing or infinite values; fill them in or drop those rows")
    if not numbers.index.is_unique:
        raise InputError(f"features name {numbers.index[numbers.index.duplicated()][0]!r} more than once; keep one row")
    return numbers


def _kernel(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    if length == MEAN_ONLY:
        return np.full((len(a), len(b)), INTERCEPT)
    if length == 0:
        return INTERCEPT + a @ b.T / a.shape[1]
    # standardised features: two unrelated perturbations are 2 x n_features apart on average
    distance = cdist(a, b, "sqeuclidean") / a.shape[1]
    return INTERCEPT + np.exp(-distance / (2 * 2 * length**2))


def _left_out(kernel: np.ndarray, alpha: float, effects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave-one-out residuals (n_parts, n_genes) and predictive variances (n_parts,), up to one factor a gene."""
    inverse = np.linalg.inv(kernel + alpha * np.eye(len(kernel)))
    variance = 1 / np.diag(inverse)
    return (inverse @ effects) * variance[:, None], variance
