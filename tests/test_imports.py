"""Imports point one way: every room knows only those below it, so that each can be read and changed on its own.

The rule is read from the source (also from imports inside functions and for type checkers), not from running it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scidiff

ROOT = Path(scidiff.__file__).parent
LEAVES = {"errors", "_version"}  # everybody may know what an error is, and the version

#: room -> rooms or modules it may import
ALLOWED = {
    "errors": set(),
    "_version": set(),
    "data": set(),
    "conditioning": {"data.schema"},
    "models": {"conditioning"},
    "training": {"models", "data", "conditioning", "files"},
    "sampling": {"models", "conditioning"},  # tensors only, never data
    "integration": {"data", "files"},  # tables, never models
    "evaluation": {"data", "files", "plotting"},
    # the report (evaluation) shows the figures, and the figures draw what metrics compute; the test below holds that
    # the modules themselves form no circle
    "plotting": {"data", "evaluation.metrics", "evaluation.evaluate"},
    "storage": {"files"},  # files and tensors
    "files": set(),
    "shares": set(),
    "streaming": {"data", "files"},
    # rooms that must not know each other meet here: calibration judges samples (sampling) by their spread (evaluation)
    "predictor": {"data", "models"},
    "phenotype": {"data", "integration"},
    "model": {"conditioning", "data", "integration.attribution", "models", "predictor", "storage", "streaming"},
    "tasks": {
        "conditioning",
        "data",
        "evaluation",
        "files",
        "integration",
        "model",
        "models",
        "phenotype",
        "predictor",
        "sampling",
        "shares",
        "streaming",
    },
    "fitting": {
        "conditioning",
        "data",
        "integration.attribution",
        "model",
        "models",
        "phenotype",
        "predictor",
        "streaming",
        "tasks",
        "training",
    },
    "estimator": {"data", "fitting", "integration", "model", "phenotype", "shares", "streaming", "tasks", "training"},
    "benchmarking": {"data", "estimator", "evaluation", "files", "phenotype", "plotting", "tasks.predict", "training"},
    "studio": {"data", "estimator", "evaluation", "integration.signatures", "phenotype", "plotting", "tasks.design"},
    "demo": {"data", "estimator", "evaluation", "files", "phenotype", "training"},
    "cli": {
        "benchmarking",
        "data",
        "demo",
        "estimator",
        "evaluation",
        "files",
        "integration",
        "phenotype",
        "plotting",
        "shares",
        "storage",
        "streaming",
        "studio",
        "training",
    },
    "__main__": {"cli"},
    "__init__": {"data", "errors", "estimator", "evaluation", "integration", "phenotype", "plotting", "training"},
}


def name_of(path: Path) -> str:
    """Return the dotted name below ``scidiff``; '__init__' for the package itself, the room's name for a room's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, dotted names below ``scidiff``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the package is imported by its full name"
            for alias in node.names:  # `from scidiff.evaluation import metrics` imports a module, not a name
                longer = f"{node.module}.{alias.name}"
                found.add(longer if longer.removeprefix("scidiff.") in MODULES else str(node.module))
    ours = {name for name in found if name.split(".")[0] == "scidiff"}
    return {name.removeprefix("scidiff.") if "." in name else "__init__" for name in ours}


def within(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_every_room_has_a_rule():
    assert {name.split(".")[0] for name in MODULES} == set(ALLOWED)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module):
    room = module.split(".")[0]
    outside = {name for name in imports(MODULES[module]) if name.split(".")[0] != room} - LEAVES
    wrong = sorted(name for name in outside if not within(name, ALLOWED[room]))
    assert not wrong, (
        f"scidiff.{module} imports {wrong}; {room} may import {sorted(ALLOWED[room]) or 'nothing of ours'}"
    )


def test_no_circles():
    # a package's __init__ only gathers names of its modules: it is left out on both sides
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"} | {"__init__"}
    graph = {module: imports(path) - packages for module, path in MODULES.items() if module not in packages}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def fresh(code: str) -> str:
    """Return what a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


HEAVY = {"torch", "scanpy", "sklearn", "matplotlib", "anndata", "pandas", "scipy", "accelerate"}


def test_import_loads_no_heavy_library():
    assert fresh(f"import sys, scidiff, scidiff.cli; print(sorted({HEAVY} & set(sys.modules)))") == "[]"


def test_data_does_not_wait_for_torch():
    code = "import sys, scidiff as sd; sd.data.load, sd.data.holdout, sd.Schema, sd.InputError"
    heavy = {"torch", "scanpy", "sklearn", "matplotlib", "accelerate"}
    assert fresh(f"{code}; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_public_names():
    # in a new interpreter: here, other tests have imported submodules, which makes them attributes
    code = (
        "import scidiff as sd; print(all(getattr(sd, name) is not None for name in sd.__all__), dir(sd) == sd.__all__)"
    )
    assert fresh(code) == "True True"
    assert callable(scidiff.data.load)
    assert callable(scidiff.data.holdout)
    assert callable(scidiff.evaluation.evaluate)
    assert scidiff.__all__ == sorted(scidiff.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Scidiff'"):
        scidiff.Scidiff  # noqa: B018
