"""Which cells may be learned from, and which are kept to judge the result.

A :class:`Split` names four sets of cells by position::

    train     everything a model may see; contains source
    test      the held-out cells, the truth
    source    control cells of the held-out context, to predict from
    control   other control cells of that context, which the truth is compared with

``control`` is disjoint from ``source``: an effect predicted and an effect measured against the *same* control cells
share their sampling noise, which looks like skill. Draws are made over sorted cell names, so that a split depends
on the cells and the seed, not on the order of the rows.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scidiff.data.conditions import parse_condition
from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError, closest

if TYPE_CHECKING:
    from anndata import AnnData

ROLES = ("train", "test", "source", "control")
EACH = "each"


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Positions of cells in the AnnData the split was made for, rising, and the hash of names and roles.

    Parameters
    ----------
    train, test, source, control
        Integer positions; see the head of this module. Cells in none of them were left out on purpose.
    description
        How the split was made, JSON values.
    hash
        SHA-256 over the cell names of each role: equal for the same assignment, whatever the order of rows.

    Raises
    ------
    InputError
        Sets overlap that must not, or source is not part of train.
    """

    train: np.ndarray
    test: np.ndarray
    source: np.ndarray
    control: np.ndarray
    description: dict[str, Any] = field(default_factory=dict)
    hash: str = ""

    def __post_init__(self) -> None:
        for role in ROLES:
            index = np.unique(np.asarray(getattr(self, role), dtype=np.int64))
            if index.size != len(getattr(self, role)) or (index.size and index[0] < 0):
                raise InputError(f"{role} cells of a split must be distinct positions from 0")
            index.flags.writeable = False
            object.__setattr__(self, role, index)
        for one, other in (("train", "test"), ("train", "control"), ("test", "control")):
            if shared := np.intersect1d(getattr(self, one), getattr(self, other)).size:
                raise InputError(f"{shared} cells are in both {one} and {other}; a split keeps them apart")
        if outside := np.setdiff1d(self.source, self.train).size:
            raise InputError(f"{outside} source cells are not in train; a split predicts from cells the model may see")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{role} {len(getattr(self, role))}" for role in ROLES)
        how = ", ".join(f"{key}={value!r}" for key, value in self.description.items())
        return f"Split({how}: {sizes}; {self.hash[:12]})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Split):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def verify(self, adata: AnnData) -> None:
        """Raise if the positions of this split do not point at the cells it was made for.

        Raises
        ------
        InputError
            ``adata`` has other cells, or the same ones in another order.
        """
        last = max((int(index[-1]) for role in ROLES if (index := getattr(self, role)).size), default=-1)
        if last >= adata.n_obs or _hash(adata.obs_names, self) != self.hash:
            raise InputError(
                "this split was made for other cells or another order of rows; make it again for these data"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the split as plain JSON values."""
        return {role: getattr(self, role).tolist() for role in ROLES} | {
            "description": self.description,
            "hash": self.hash,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Split:
        """Return the split that :meth:`to_dict` wrote."""
        return cls(**values)

    def to_json(self) -> str:
        """Return the split as one line of JSON."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Split:
        """Return the split that :meth:`to_json` wrote.

        Raises
        ------
        InputError
            It wrote something else, or what it wrote was damaged.
        """
        try:
            return cls.from_dict(json.loads(text))
        except InputError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"this is no split: {error}; make it again") from None


def random_split(adata: AnnData, schema: Schema, *, fraction: float = 1 / 3, seed: int = 0) -> Split:
    """Return a split that holds out a random ``fraction`` of each condition, control cells among them.

    It measures how well the seen conditions are generated and denoised, so no control cells are set aside: ``source``
    and ``control`` are empty. Every condition keeps at least one training cell.

    Raises
    ------
    InputError
        ``fraction`` is not between 0 and 1, or no condition has cells enough for it.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction {fraction} is not between 0 and 1")
    table = _checked_table(adata, schema)
    test = _draw(_strata(table), table.index, np.ones(len(table), dtype=bool), fraction, np.random.default_rng(seed))
    if not test.any():
        raise InputError(f"a fraction of {fraction:g} holds out no cell of {len(table)}; ask for more")
    return _split(adata, {"kind": "random", "fraction": fraction, "seed": seed}, train=~test, test=test)


def holdout(
    adata: AnnData,
    schema: Schema,
    *,
    context: Mapping[str, Any] | str | list[str] | None = None,
    perturbation: str | list[str] | None = None,
    combination: str | list[str] | None = None,
    dose: Any = None,
    time: Any = None,
    batch: Any = None,
    keep_combinations: bool = False,
    seed: int = 0,
) -> Split:
    """Return a split that holds out the cells that match *all* named values.

    Each argument takes a value, or a list of which any may match. Control cells are held out only where the control
    itself is named as ``perturbation``; otherwise those that match context, batch and, if there are any, time are
    halved at random, within each condition, into ``source`` and ``control``.

    Parameters
    ----------
    context
        Context column -> value; with a single context column the value alone.
    perturbation
        A perturbation, such as ``"A"``. Combinations that contain it tell what it does, so in the same context, time
        and batch they go out of training too (into no set), unless ``keep_combinations``.
    combination
        A combination, such as ``"A+B"``: only this is held out, its parts stay.
    dose, time, batch
        As in the schema, with or without a unit.

    Raises
    ------
    InputError
        Nothing is named, a value is unknown (the nearest are named), no cell matches, or none is left for training.
    """
    if perturbation is not None and combination is not None:
        raise InputError("name perturbation= or combination=, not both: a cell has one of them")
    if isinstance(context, Mapping):
        named = dict(context)
    elif context is None:
        named = {}
    elif len(schema.context) == 1:
        named = {schema.context[0]: context}
    else:
        raise InputError(
            f"context {context!r} needs its column: context={{column: value}}{closest(context, schema.context)}"
        )
    if outside := [name for name in named if name not in schema.context]:
        raise InputError(f"{outside[0]!r} is no context column of the schema{closest(outside[0], schema.context)}")
    for single in [combination] if isinstance(combination, str) else combination or []:
        if len(schema.parts(single)) < 2:
            raise InputError(f"combination {single!r} has no two parts; hold it out with perturbation={single!r}")

    table = _checked_table(adata, schema)
    where = named | {name: value for name, value in (("time", time), ("batch", batch)) if value is not None}
    what = {"perturbation": combination if perturbation is None else perturbation, "dose": dose}
    what = {name: value for name, value in what.items() if value is not None}
    if not where | what:
        raise InputError("nothing to hold out; name a context, perturbation, combination, dose, time or batch")

    is_control = schema.is_control(table)
    test = schema.select(table, where | what)
    if not _names_control(schema, what.get("perturbation")):
        test &= ~is_control
    if not test.any():
        raise InputError(_nothing_matches(schema, table, where, what))

    here = schema.select(table, where) if where else np.ones(len(table), dtype=bool)
    dropped = np.zeros(len(table), dtype=bool)
    if perturbation is not None and not keep_combinations:
        held = [set(schema.parts(value)) for value in table["perturbation"][test].unique()]
        larger = {
            v for v in table["perturbation"].dropna().unique() if any(h and h < set(schema.parts(v)) for h in held)
        }
        dropped = here & table["perturbation"].isin(larger).to_numpy() & ~test

    pool = is_control & here & ~test
    if time is not None and not pool.any():  # controls are often measured at one time only
        rest = {name: value for name, value in where.items() if name != "time"}
        pool = is_control & ~test & (schema.select(table, rest) if rest else True)
    control = _draw(_strata(table), table.index, pool, 0.5, np.random.default_rng(seed))
    source = pool & ~control
    train = ~(test | control | dropped)
    if not train.any():
        raise InputError("every cell is held out, none is left for training; hold out less")
    if schema.control is not None and not (source.any() and control.any()) and not test[is_control].any():
        warnings.warn(
            f"{int(pool.sum())} control cells match what is held out: too few to predict from some and judge by others",
            DataWarning,
            stacklevel=2,
        )
    given: dict[str, Any] = {"context": named or None, "perturbation": perturbation, "combination": combination}
    given |= {"dose": dose, "time": time, "batch": batch, "keep_combinations": keep_combinations or None}
    description: dict[str, Any] = {"kind": "holdout"} | {
        name: value for name, value in given.items() if value is not None
    }
    if dropped.any():
        description["left_out"] = int(dropped.sum())
    return _split(adata, description | {"seed": seed}, train=train, test=test, source=source, control=control)


def each_holdout(adata: AnnData, schema: Schema, rule: str) -> dict[str, dict[str, Any]]:
    """Return what a rule holds out, one after the other: name -> arguments of :func:`holdout`.

    A rule is a condition in which one value may be ``each``: ``cell_type=B`` is one holdout, ``cell_type=each`` one for
    every cell type with treated cells, ``context=each`` one for every combination of contexts,
    ``cell_type=each,perturbation=A`` every cell type of one perturbation. ``perturbation=each`` goes through single
    ones, ``combination=each`` through the others.

    Parameters
    ----------
    adata, schema
        Cells, and the roles of their obs columns.
    rule
        In the grammar of :func:`scidiff.data.parse_condition`.

    Raises
    ------
    InputError
        The rule cannot be read, names nothing, or two values are ``each``; or no treated cell matches.
    """
    asked = parse_condition(rule, schema=schema, columns=adata.obs.columns)
    each = [name for name, value in asked.items() if value == EACH]
    if not asked or len(each) > 1:
        raise InputError(f"cannot hold out {rule!r}: name a value, or each for one attribute, as in context=each")
    fixed = {name: value for name, value in asked.items() if name not in each}
    arguments = schema.by_role(fixed)
    if not each:
        return {rule: arguments}
    table = schema.table(adata)
    here = schema.select(table, {("perturbation" if k == "combination" else k): v for k, v in fixed.items()})
    treated = table[here & ~schema.is_control(table)]
    found = {
        name: arguments | more | {"context": arguments.get("context", {}) | more.get("context", {})}
        for name, more in _values(treated, schema, each[0]).items()
    }
    if not found:
        raise InputError(f"nothing to hold out by {rule!r}: no treated cell has a {each[0]}")
    return {name: {k: v for k, v in one.items() if v != {}} for name, one in found.items()}


# ---- parts ----------------------------------------------------------------------------------------------------------


def _values(treated: pd.DataFrame, schema: Schema, name: str) -> dict[str, dict[str, Any]]:
    """Every value of an attribute among treated cells: its text, and how :func:`holdout` is asked for it."""
    if name == "context":
        if not schema.context:
            raise InputError("context=each needs context columns in the schema; name some, or hold out something else")
        rows = treated[list(schema.context)].dropna().drop_duplicates().sort_values(list(schema.context))
        return {", ".join(row.values()): {"context": row} for row in rows.to_dict("records")}
    if name in ("perturbation", "combination"):
        several = name == "combination"
        known = sorted(treated["perturbation"].dropna().unique())
        return {value: {name: value} for value in known if (len(schema.parts(value)) > 1) == several}
    key = schema.key(name)
    values = sorted(treated[key].dropna().unique(), key=lambda value: (isinstance(value, str), value))
    texts = [value if isinstance(value, str) else f"{value:g}" for value in values]
    return {
        text: {"context": {key: value}} if key in schema.context else {key: value}
        for text, value in zip(texts, values, strict=True)
    }


def _checked_table(adata: AnnData, schema: Schema) -> pd.DataFrame:
    if not adata.obs_names.is_unique:
        raise InputError("cell names occur more than once; call adata.obs_names_make_unique() first")
    return schema.validate(adata)


def _strata(table: pd.DataFrame) -> np.ndarray:
    """The number of the condition of each cell."""
    if not table.shape[1]:
        return np.zeros(len(table), dtype=np.int64)
    return table.astype(str).groupby(list(table.columns), sort=True).ngroup().to_numpy()


def _draw(
    strata: np.ndarray, names: pd.Index, pool: np.ndarray, fraction: float, generator: np.random.Generator
) -> np.ndarray:
    """A mask of a random ``fraction`` of the pool within each stratum, leaving at least one cell of it undrawn."""
    order = np.argsort(names.to_numpy(dtype=str), kind="stable")
    shuffled = generator.permutation(order)
    shuffled = shuffled[pool[shuffled]]
    shuffled = shuffled[np.argsort(strata[shuffled], kind="stable")]
    _, start, size = np.unique(strata[shuffled], return_index=True, return_counts=True)
    rank = np.arange(len(shuffled)) - np.repeat(start, size)
    take = np.minimum(np.rint(fraction * size), size - 1)
    drawn = np.zeros(len(names), dtype=bool)
    drawn[shuffled[rank < np.repeat(take, size)]] = True
    return drawn


def _names_control(schema: Schema, perturbation: Any) -> bool:
    values = [perturbation] if isinstance(perturbation, str) else perturbation or []
    return schema.control is not None and schema.control in values


def _nothing_matches(schema: Schema, table: pd.DataFrame, where: Mapping[str, Any], what: Mapping[str, Any]) -> str:
    """Each value exists, but not together: name what there is beside the others."""
    wanted = {**where, **what}
    name = list(wanted)[-1]
    others = {key: value for key, value in wanted.items() if key != name}
    beside = table[schema.select(table, others)] if others else table
    text = ", ".join(f"{key}={value!r}" for key, value in wanted.items())
    return f"no treated cell has {text}{closest(wanted[name], beside[name].dropna().unique())}"


def _split(adata: AnnData, description: dict[str, Any], **masks: np.ndarray) -> Split:
    empty = np.array([], dtype=np.int64)
    index: dict[str, Any] = {role: np.flatnonzero(masks[role]) if role in masks else empty for role in ROLES}
    description = json.loads(json.dumps(description, default=_plain))
    draft = Split(**index, description=description)
    return Split(**index, description=description, hash=_hash(adata.obs_names, draft))


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays as JSON has them."""
    return value.tolist() if hasattr(value, "tolist") else list(value)


def _hash(names: pd.Index, split: Split) -> str:
    """SHA-256 over the sorted cell names of each role, and of the cells in none."""
    names = names.to_numpy(dtype=str)
    left = np.setdiff1d(np.arange(len(names)), np.concatenate([split.train, split.test, split.control]))
    digest = hashlib.sha256()
    for role, index in [(role, getattr(split, role)) for role in ROLES] + [("none", left)]:
        digest.update(json.dumps([role, sorted(names[index].tolist())]).encode())
    return digest.hexdigest()
