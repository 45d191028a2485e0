"""The training loop, what it stops by, the running average of the weights, and minibatches from matrices and files."""

from scidiff.training.batches import CountBatches, ExpressionBatches, Subset
from scidiff.training.disk import StoredBatches
from scidiff.training.heldout import HeldOutCells, HeldOutMolecules
from scidiff.training.loop import TrainConfig, train

__all__ = [
    "CountBatches",
    "ExpressionBatches",
    "HeldOutCells",
    "HeldOutMolecules",
    "StoredBatches",
    "Subset",
    "TrainConfig",
    "train",
]
