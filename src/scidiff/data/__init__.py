"""Cells and their conditions: reading, checking, scaling, splitting, public data sets. The only room that reads obs."""

from scidiff.data.catalog import available, load, schema_of
from scidiff.data.cells import Cells, read_cells
from scidiff.data.checking import Check, check
from scidiff.data.conditions import parse_condition
from scidiff.data.scaling import Standardizer, log1p_cp10k
from scidiff.data.schema import Schema
from scidiff.data.simulator import Lab, Simulation, simulate
from scidiff.data.splits import Split, holdout, random_split

__all__ = [
    "Cells",
    "Check",
    "Lab",
    "Schema",
    "Simulation",
    "Split",
    "Standardizer",
    "available",
    "check",
    "holdout",
    "load",
    "log1p_cp10k",
    "parse_condition",
    "random_split",
    "read_cells",
    "schema_of",
    "simulate",
]
