"""Randomness that belongs to a step, not to a history: a resumed run draws what the killed one would have drawn."""

from __future__ import annotations

import numpy as np
import torch


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Return the source of all randomness of one step in one process."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))
