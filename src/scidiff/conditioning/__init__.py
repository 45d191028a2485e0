"""From the table of conditions to tensors: which attributes a cell has, and the vector a network is told about them."""

from scidiff.conditioning.encoder import ConditionEncoder
from scidiff.conditioning.vocabulary import Conditions, Vocabulary

__all__ = ["ConditionEncoder", "Conditions", "Vocabulary"]
