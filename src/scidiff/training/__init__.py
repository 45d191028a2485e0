"""The training loop, the running average of the weights, and minibatches from matrices."""

from scidiff.training.batches import CountBatches, ExpressionBatches
from scidiff.training.loop import TrainConfig, train

__all__ = ["CountBatches", "ExpressionBatches", "TrainConfig", "train"]
