"""Exponential moving average of the weights: what is evaluated, saved and sampled from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Running average of a module's parameters.

    The decay of a step warms up, ``min(decay, (1 + step) / (10 + step))``, so that short trainings forget their random
    start.
    """

    #: steps between updates: an average over hundreds of steps needs no more
    EVERY = 4

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the weights after optimiser step number ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step)) ** self.EVERY
        names, parameters = zip(*module.named_parameters(), strict=True)
        torch._foreach_lerp_([self.weights[name] for name in names], [p.detach() for p in parameters], 1 - decay)

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Within the block, the module has the averaged weights."""
        own = copy_weights(module)
        load_weights(module, self.weights)
        try:
            yield
        finally:
            load_weights(module, own)


def copy_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the parameters by name (no buffers)."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@torch.no_grad()
def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy parameters into the module."""
    for name, p in module.named_parameters():
        p.copy_(weights[name])
