"""scIDiff: diffusion models of single-cell expression.

The public names. Each is imported when it is first used (PEP 562), so that ``import scidiff`` takes no time and
``sd.data`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scidiff._version import __version__

if TYPE_CHECKING:
    from scidiff import data, evaluation, integration, plotting
    from scidiff.data.schema import Schema
    from scidiff.errors import DataWarning, InputError
    from scidiff.estimator import ScIDiff
    from scidiff.phenotype import Phenotype
    from scidiff.training.loop import TrainConfig

__all__ = [
    "DataWarning",
    "InputError",
    "Phenotype",
    "ScIDiff",
    "Schema",
    "TrainConfig",
    "__version__",
    "data",
    "evaluation",
    "integration",
    "plotting",
]


def __getattr__(name: str) -> Any:
    homes = {
        "DataWarning": "scidiff.errors",
        "InputError": "scidiff.errors",
        "Phenotype": "scidiff.phenotype",
        "ScIDiff": "scidiff.estimator",
        "Schema": "scidiff.data.schema",
        "TrainConfig": "scidiff.training.loop",
    }
    if name in homes:
        return getattr(import_module(homes[name]), name)
    if name in __all__:
        return import_module(f"scidiff.{name}")
    raise AttributeError(f"module 'scidiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
