"""What is in a data set, and what is wrong with it: the answer of ``scidiff check``.

Where :func:`scidiff.data.cells.read_cells` stops at the first thing it cannot use, :func:`check` goes on and lists all,
by the same rules. It also guesses the schema: perturbation columns are told by a value that is a word for *control*,
the others by their names and by whether their values vary and can be read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.data.cells import Matrix, choose, empty_cells, listing, load, matrices, name_problems, why_no_counts
from scidiff.data.quantities import to_numbers
from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError

if TYPE_CHECKING:
    from anndata import AnnData

Level = Literal["ok", "note", "problem"]

#: fewer cells than this in a condition give no useful mean
FEW_CELLS = 20

_CONTROL_WORDS = """control controls ctrl ctl con dmso vehicle veh untreated unstimulated unstim unperturbed mock pbs
    nontargeting nontarget nt ntc scramble scrambled negative neg negctrl safe targeting safetargeting none"""
_NAMES = {
    "perturbation": "perturbation condition treatment perturbation_name gene_target target_gene gene target drug"
    " compound pert_iname product_name stimulation stim label cytokine guide_identity",
    "context": "cell_type celltype cell_types cell_line cellline cell_type_original annotation tissue cell_id",
    "dose": "dose dose_value pert_dose dose_val concentration conc dosage",
    "time": "time timepoint time_point hours day days pert_time time_info age_days",
    "batch": "batch replicate rep library plate det_plate lane gem_group donor donor_id patient patient_id individual"
    " subject sample sample_id orig_ident",
}


@dataclass(frozen=True)
class Finding:
    """One thing found: its level (``ok``, ``note`` = can be used, ``problem`` = cannot) and the words for it."""

    level: Level
    text: str


@dataclass(frozen=True)
class Check:
    """What :func:`check` found. ``print`` it to read it.

    Parameters
    ----------
    n_cells, n_genes
        Size of the data.
    scale
        What the matrix to be used holds: ``"counts"`` or ``"log1p"``; None where nothing can be used.
    depth
        Molecules and genes per cell, and the share of zeros; empty where there are no counts.
    schema
        The schema given, or the one guessed.
    findings
        All findings, in the order of looking.
    """

    n_cells: int
    n_genes: int
    scale: str | None
    depth: dict[str, float]
    schema: Schema
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing found makes the data unusable."""
        return not any(finding.level == "problem" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        return {
            "ok": self.ok,
            "n_cells": self.n_cells,
            "n_genes": self.n_genes,
            "scale": self.scale,
            "depth": self.depth,
            "schema": self.schema.to_dict(),
            "findings": [{"level": finding.level, "text": finding.text} for finding in self.findings],
        }

    def __str__(self) -> str:
        marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
        settings = {name: value for name, value in self.schema.to_dict().items() if value not in (None, [], "+")}
        lines = [f"{self.n_cells} cells x {self.n_genes} genes, {self.scale or 'no usable matrix'}"]
        lines += [f"{marks[finding.level]}  {finding.text}" for finding in self.findings]
        lines += ["schema   " + (", ".join(f"{name}={value!r}" for name, value in settings.items()) or "no roles")]
        return "\n".join(lines)


def check(adata: AnnData, schema: Schema | None = None, *, layer: str | None = None) -> Check:
    """Return what ``adata`` holds, all problems found, and a schema (guessed if none is given). Raises nothing.

    ``layer`` is read instead of searching for counts.
    """
    findings: list[Finding] = []

    def attempt(step: Callable[[], Any]) -> Any:
        """The result of a step; its warnings become notes, its error a problem."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DataWarning)
            try:
                result = step()
            except InputError as error:
                result = None
                findings.append(Finding("problem", str(error)))
        notes = [str(one.message) for one in caught if issubclass(one.category, DataWarning)]
        findings.extend(Finding("note", text) for text in notes)
        return result

    matrix = attempt(lambda: choose(adata, layer))
    depth: dict[str, float] = {}
    if matrix is not None:
        findings += _describe(adata, matrix)
        findings += [Finding("problem", text) for text in name_problems(adata, matrix.genes)]
        findings += [Finding("problem", text) for text in empty_cells(matrix.x, matrix.where, adata.obs_names)]
        depth = _depth(matrix) if matrix.scale == "counts" else {}
        if depth:
            text = "depth: median {median_molecules:.0f} molecules of {median_genes:.0f} genes a cell"
            findings.append(Finding("ok", (text + " ({min_molecules:.0f} to {max_molecules:.0f})").format(**depth)))
    schema = guess_schema(adata.obs) if schema is None else schema
    table = attempt(lambda: schema.validate(adata))
    if table is not None:
        findings += _conditions(schema, table)
    scale = None if matrix is None else matrix.scale
    return Check(adata.n_obs, adata.n_vars, scale, depth, schema, tuple(findings))


def guess_schema(obs: pd.DataFrame) -> Schema:
    """Return the roles that the columns of ``obs`` seem to have."""
    roles: dict[str, Any] = {}
    values = {column: obs[column].dropna().unique().tolist() for column in obs}
    for column in _candidates(obs, "perturbation"):
        control = next((value for value in values[column] if _is_control_word(value)), None)
        if control is not None and len(values[column]) > 1:
            roles |= {"perturbation": column, "control": str(control)}
            break
    for column in _candidates(obs, "context"):
        if len(values[column]) > 1 and column not in roles.values():
            roles["context"] = (column,)
            break
    for role in ("dose", "time"):
        for column in _candidates(obs, role):
            if _varies(values[column], role):
                roles[role] = column
                break
    for column in _candidates(obs, "batch"):
        free = column not in roles.values() and column not in roles.get("context", ())
        if free and len(values[column]) > 1 and _crosses(obs[column], obs.get(roles.get("perturbation"))):
            roles["batch"] = column
            break
    return Schema(**roles)


# ---- parts ----------------------------------------------------------------------------------------------------------


def _describe(adata: AnnData, matrix: Matrix) -> Iterator[Finding]:
    """What each matrix holds."""
    places = {matrix.where: (matrix.x, matrix.genes)} | {where: more for where, *more in matrices(adata)}
    for where, (stored, genes) in places.items():
        try:
            one = matrix if where == matrix.where else load(where, stored, genes, adata.obs_names)
        except InputError as error:
            yield Finding("note", f"{error} (not used)")
            continue
        kind = "sparse" if sparse.issparse(one.x) else "dense"
        use = "used" if where == matrix.where else "not used"
        text = "counts" if one.scale == "counts" else why_no_counts(one).removeprefix(f"{where} has ")
        yield Finding("ok", f"{where}: {text} ({kind} {one.x.dtype}, {use})")
    if matrix.scale == "log1p":
        more = f"; if one of the layers holds counts, name it: {listing(adata.layers)}" if adata.layers else ""
        yield Finding("note", f"no raw counts: only the Gaussian process can be used, which cannot design{more}")


def _depth(matrix: Matrix) -> dict[str, float]:
    total = np.asarray(matrix.x.sum(axis=1, dtype=np.float64)).ravel()
    seen = np.asarray((matrix.x != 0).sum(axis=1)).ravel()
    return {
        "median_molecules": float(np.median(total)),
        "min_molecules": float(total.min()),
        "max_molecules": float(total.max()),
        "median_genes": float(np.median(seen)),
        "zero_fraction": float(1 - seen.sum() / (matrix.x.shape[0] * matrix.x.shape[1])),
    }


def _conditions(schema: Schema, table: pd.DataFrame) -> Iterator[Finding]:
    """How many conditions there are, and whether each has cells and controls."""
    for name in table:
        values = table[name].dropna().unique()
        unit = table.attrs["units"].get(name)
        shown = ", ".join(map(str, values[:4])) + (", ..." if len(values) > 4 else "")
        yield Finding("ok", f"{name}: {len(values)} values ({shown})" + (f" in {unit}" if unit else ""))
    if not table.shape[1]:
        yield Finding("note", "no conditions: cells can be generated, denoised and designed, not perturbed")
        return
    if schema.perturbation is not None and schema.control is None:
        yield Finding("note", f"no control named: give the value of {schema.perturbation!r} that marks untreated cells")
    sizes = table.astype(str).groupby([name for name in table if name != "batch"] or list(table)).size()
    if n_small := int((sizes < FEW_CELLS).sum()):
        smallest = sizes.idxmin()
        label = " / ".join(map(str, smallest)) if isinstance(smallest, tuple) else str(smallest)
        text = f"{n_small} of {len(sizes)} conditions have fewer than {FEW_CELLS} cells"
        yield Finding("note", f"{text} (least: {label}, {sizes.min()})")
    is_control = schema.is_control(table)
    for name in schema.context if schema.control is not None else ():
        if bare := sorted(set(table[name].dropna()) - set(table.loc[is_control, name].dropna())):
            values = "1 value" if len(bare) == 1 else f"{len(bare)} values"
            yield Finding("note", f"no control cells, so no effects, for {values} of {name}: {listing(bare)}")


def _candidates(obs: pd.DataFrame, role: str) -> list[str]:
    """Columns of ``obs`` whose name fits a role, the best name first."""
    plain = {re.sub(r"[^a-z0-9]+", "_", str(column).casefold()): column for column in obs}
    return [plain[name] for name in _NAMES[role].split() if name in plain]


def _is_control_word(value: object) -> bool:
    """Whether all words of a value mean control: 'vehicle (DMSO)', 'non-targeting', not 'NT5E'."""
    text = re.sub(r"non[ _-]?target", "nontarget", str(value).casefold())
    words = re.findall(r"[a-z0-9]+", text)
    return bool(words) and all(word in _CONTROL_WORDS.split() for word in words)


def _varies(values: list[object], role: str) -> bool:
    """Whether the values can be read as doses or times and more than control and one level are among them."""
    try:
        numbers, _ = to_numbers([part for value in values for part in str(value).split("+")], role)
    except InputError:
        return False
    return len(np.unique(numbers[numbers != 0])) > 1


def _crosses(batch: pd.Series, perturbation: pd.Series | None) -> bool:
    """Whether some batch holds several perturbations; otherwise it is the perturbation under another name."""
    return perturbation is None or perturbation.astype(str).groupby(batch.astype(str)).nunique().max() > 1
