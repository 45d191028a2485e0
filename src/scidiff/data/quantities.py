"""Doses and times as numbers of one unit.

Files write the same dose as ``10``, ``"10 uM"``, ``"10000nM"`` or ``"1+0.5"``. A value with a unit is converted to the
unit of its family: micromolar for molar concentrations, ng/ml for mass per volume, hours for time. A value without a
unit is taken as it stands. One column keeps to one family, or the numbers could not be compared. The conversion
is done in fractions, so that ``"100 nM"`` and ``"0.1 uM"`` become the same float.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from numbers import Real

import numpy as np
import pandas as pd

from scidiff.errors import InputError

_F = Fraction
#: spelling -> (unit of the family, how many of it one of these is)
_DOSE = {
    **{
        name: ("uM", _F(size))
        for name, size in (("m", "1e6"), ("mm", "1e3"), ("um", 1), ("nm", "1e-3"), ("pm", "1e-6"))
    },
    **{f"{name}/ml": ("ng/ml", _F(size)) for name, size in (("g", "1e9"), ("mg", "1e6"), ("ug", "1e3"), ("ng", 1))},
    **{f"{name}/l": ("ng/ml", _F(size)) for name, size in (("g", "1e6"), ("mg", "1e3"), ("ug", 1), ("ng", "1e-3"))},
    "pg/ml": ("ng/ml", _F("1e-3")),
    "u/ml": ("U/ml", _F(1)),
    "iu/ml": ("U/ml", _F(1)),
    "gy": ("Gy", _F(1)),
    "%": ("%", _F(1)),
}
_TIME = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), ("h", _F(1, 3600))),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), ("h", _F(1, 60))),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), ("h", _F(1))),
    **dict.fromkeys(("d", "day", "days"), ("h", _F(24))),
    **dict.fromkeys(("w", "wk", "week", "weeks"), ("h", _F(168))),
}
UNITS = {"dose": _DOSE, "time": _TIME}

_PATTERN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\D*?)\s*")


def to_numbers(values: Sequence[object], role: str) -> tuple[np.ndarray, str | None]:
    """Return the values as floats of one unit, and that unit (None where no value names one).

    Parameters
    ----------
    values
        Numbers, strings with or without a unit, or missing (None, NaN: they stay NaN).
    role
        ``"dose"`` or ``"time"``: which units are known.

    Raises
    ------
    InputError
        A value is no finite number, has an unknown unit, or a negative dose; or the values mix units that cannot
        be converted into each other, or values with and without a unit (0 needs none).
    """
    numbers = np.full(len(values), np.nan)
    families: dict[str | None, object] = {}  # unit of the family -> a value that uses it, for the message
    for i, value in enumerate(values):
        if pd.isna(value):
            continue
        numbers[i], family = _to_number(value, role)
        if numbers[i] != 0 or family is not None:
            families.setdefault(family, value)
    if len(families) > 1:
        (_, one), (_, other) = list(families.items())[:2]
        raise InputError(f"{role} mixes {one!r} and {other!r}, which have no common unit: give all values in one unit")
    return numbers, next(iter(families), None)


def _to_number(value: object, role: str) -> tuple[float, str | None]:
    if isinstance(value, Real) and not isinstance(value, bool):
        number, family = float(value), None
    else:
        match = _PATTERN.fullmatch(str(value))
        unit = match[2].casefold().replace("µ", "u").replace("μ", "u").replace(" ", "") if match else ""
        if match is None or (unit and unit not in UNITS[role]):
            examples = {"dose": "10, '10 uM', '100 ng/ml'", "time": "6, '24h', '3 d'"}[role]
            raise InputError(
                f"{role} {value!r} cannot be read; write a number with or without a unit, such as {examples}"
            )
        family, size = UNITS[role][unit] if unit else (None, Fraction(1))
        number = float(match[1])
        if np.isfinite(number) and number:  # a fraction of 1e999999999 would never end
            number = float(Fraction(match[1]) * size)
    if not np.isfinite(number):
        raise InputError(f"{role} {value!r} is not finite; leave it empty where it is not known")
    if role == "dose" and number < 0:
        raise InputError(f"dose {value!r} is negative; give doses as amounts, not as logarithms")
    return number, family
