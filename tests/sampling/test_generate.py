"""From conditions to cells in chunks: nothing depends on where a chunk ends but the random numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from scidiff.conditioning import Vocabulary
from scidiff.data.schema import Schema
from scidiff.models.gaussian import GaussianNoise
from scidiff.models.thinning import Thinning
from scidiff.sampling import generate as module
from scidiff.sampling.generate import generate
from scidiff.sampling.solvers import ddim, ddpm, heun

COND = Vocabulary.learn(pd.DataFrame(index=range(700)), Schema()).encode(
    pd.DataFrame(index=range(700)), depth=torch.arange(1, 701).numpy()
)


class Known:
    """A denoiser that ignores what it sees: a fixed composition, or standard normal cells around a mean."""

    device = torch.device("cpu")

    def __init__(self, process) -> None:
        self.process = process
        self.mean = torch.tensor([1.0, -2.0, 0.5])
        self.anchor = SimpleNamespace(base=self.mean)

    def __call__(self, x, level, cond):
        assert len(x) == len(level) == len(cond)
        if isinstance(self.process, Thinning):
            return self.mean.log_softmax(0).expand_as(x)
        return self.mean + (x - self.mean) / (1 + level.to(x)[:, None] ** 2)


def cells(denoiser, *, seed: int = 0, **options) -> list[torch.Tensor]:
    chunks = []
    generate(
        denoiser,
        COND,
        n_steps=options.pop("n_steps", 12),
        generator=torch.Generator().manual_seed(seed),
        on_cells=chunks.append,
        **options,
    )
    return chunks


def test_thinning_gives_each_cell_its_own_depth():
    chunks = cells(Known(Thinning()))
    assert [len(chunk) for chunk in chunks] == [256, 256, 188]
    x = torch.cat(chunks)
    assert torch.equal(x.sum(1), COND.depth)
    share = x.sum(0) / x.sum()
    torch.testing.assert_close(share, torch.tensor([1.0, -2.0, 0.5]).softmax(0), atol=0.01, rtol=0)


@pytest.mark.parametrize("solver", [None, heun, ddim, ddpm])
def test_gaussian_cells_have_the_mean_and_spread_of_the_data(solver):
    x = torch.cat(cells(Known(GaussianNoise()), solver=solver, n_steps=60))
    assert x.shape == (700, 3)
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, -2.0, 0.5]), atol=0.16, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(3), atol=0.15, rtol=0)


@pytest.mark.parametrize("process", [Thinning(), GaussianNoise()])
def test_seeds(process):
    one, same, other = (torch.cat(cells(Known(process), seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_guided_denoiser_is_the_one_that_is_sampled(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 400)
    chunks = cells(Known(Thinning()), guided=lambda x, level, cond: torch.tensor([0.0, -1e9, -1e9]).expand_as(x))
    assert [len(chunk) for chunk in chunks] == [400, 300]
    assert not torch.cat(chunks)[:, 1:].any()
