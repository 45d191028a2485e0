"""Signatures dose by dose: which dose of a drug does it, and whether more of the drug does more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scidiff.data.quantities import to_numbers
from scidiff.errors import InputError
from scidiff.integration.drug_identity import UNKNOWN

MIN_DOSES = 3  # to see whether more of a drug does more


@dataclass(frozen=True, eq=False)
class Doses:
    """The doses of every drug in a library. Made by :meth:`of`.

    Parameters
    ----------
    code
        The drug and dose of every signature, 0 to n_doses - 1, (n_signatures,).
    drug, dose, number, names
        Of every dose of a drug, (n_doses,): the code of the drug; the dose as the library writes it; as a number (NaN
        where it is none); and what it is called, ``A @ 10``.
    """

    code: np.ndarray
    drug: np.ndarray
    dose: pd.Series
    number: np.ndarray
    names: pd.Index

    @classmethod
    def of(cls, dose: pd.Series, drug: np.ndarray, names: pd.Index) -> Doses:
        """Return the doses of signatures, of drugs with these codes and names."""
        number = np.array([_number(one) for one in dose])
        alike = [str(one) if np.isnan(x) else x for one, x in zip(dose, number, strict=True)]
        code = pd.factorize(pd.Series(zip(drug, alike, strict=True)))[0]
        first = np.unique(code, return_index=True)[1]
        written = dose.iloc[first].reset_index(drop=True)
        called = [_called(names[i], one) for i, one in zip(drug[first], written, strict=True)]
        return cls(code, drug[first], written, number[first], pd.Index(called))

    def best(self, scores: np.ndarray) -> pd.Series:
        """Return the dose of every drug with the highest score, the scores being those of the doses."""
        return self.dose.iloc[pd.Series(scores).groupby(self.drug).idxmax()].reset_index(drop=True)

    def trend(self, scores: np.ndarray) -> np.ndarray:
        """Return the rank correlation of the doses of every drug with their scores; NaN for fewer than three doses."""
        table = pd.DataFrame({"drug": self.drug, "dose": self.number, "score": scores}).dropna()
        trend = np.full(self.drug.max() + 1, np.nan)
        for drug, one in table.groupby("drug"):
            if len(one) >= MIN_DOSES and np.ptp(one["score"]) > 0:
                trend[drug] = one["dose"].corr(one["score"], method="spearman")
        return trend


def _called(drug: str, dose: object) -> str:
    if _unknown(dose):
        return drug
    return f"{drug} @ {dose:g}" if isinstance(dose, float) else f"{drug} @ {dose}"


def _unknown(dose: object) -> bool:
    return str(dose).strip().lower() in UNKNOWN


def _number(dose: object) -> float:
    """Return a dose in the unit of its family, NaN where it is not known or is no amount."""
    if _unknown(dose):
        return np.nan
    try:
        return float(to_numbers([dose], "dose")[0][0])
    except InputError:
        return np.nan
