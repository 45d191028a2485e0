"""Randomness that belongs to a step, not to a history: a resumed run draws what the killed one would have drawn."""

from __future__ import annotations

import numpy as np
import torch


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Return the source of all randomness of one step in one process."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


def moved(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """Return a source of randomness on this device that goes on from ``generator``: itself, if it is there."""
    if generator.device.type == device.type:
        return generator
    seed = torch.randint(2**62, (), generator=generator)
    return torch.Generator(device).manual_seed(int(seed))
