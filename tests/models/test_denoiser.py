"""The one contract: an untrained denoiser is its anchor, and a trained one comes near the ideal."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scidiff.conditioning import ConditionEncoder, Vocabulary
from scidiff.data.schema import Schema
from scidiff.models.anchor import Anchor
from scidiff.models.denoiser import Denoiser
from scidiff.models.gaussian import GaussianNoise
from scidiff.models.networks import Backbone
from scidiff.models.thinning import Thinning
from scidiff.training import CountBatches, HeldOutCells, TrainConfig, train

N_GENES = 8


def make(process, x, conditions: pd.DataFrame, schema: Schema) -> tuple[Denoiser, Vocabulary]:
    vocabulary = Vocabulary.learn(conditions, schema, depth=np.asarray(x.sum(axis=1)).ravel())
    control = schema.is_control(conditions)
    torch.manual_seed(0)
    denoiser = Denoiser(
        process,
        anchor=Anchor.fit(x, vocabulary.encode(conditions), control=control, counts=isinstance(process, Thinning)),
        encoder=ConditionEncoder(vocabulary, 16),
        backbone=Backbone(x.shape[1], width=16, n_blocks=1),
    )
    return denoiser, vocabulary


@pytest.fixture
def screen():
    rng = np.random.default_rng(0)
    schema = Schema(perturbation="drug", control="ctrl")
    table = pd.DataFrame({"perturbation": rng.choice(["ctrl", "A", "B"], 90)})
    x = sparse.csr_matrix(rng.poisson(3, (90, N_GENES)).astype(np.float32))
    return x, table, schema


def test_untrained_thinning_returns_the_anchor_exactly(screen):
    x, table, schema = screen
    denoiser, vocabulary = make(Thinning(), x, table, schema)
    cond = vocabulary.encode(table)
    out = denoiser(torch.from_numpy(x.toarray()), torch.from_numpy(x.toarray()).sum(1), cond)
    torch.testing.assert_close(out.softmax(1), denoiser.anchor(cond).softmax(1))
    assert (denoiser.anchor(cond).softmax(1).std(0) > 1e-4).all()  # drugs do differ


def test_untrained_gaussian_is_wiener_around_the_anchor(screen):
    x, table, schema = screen
    denoiser, vocabulary = make(GaussianNoise(), x.toarray(), table, schema)
    cond = vocabulary.encode(table)
    x_noisy, sigma = torch.randn(90, N_GENES), torch.rand(90) * 3 + 0.1
    anchor = denoiser.anchor(cond)
    ideal = anchor + (x_noisy - anchor) / (1 + sigma[:, None] ** 2)
    torch.testing.assert_close(denoiser(x_noisy, sigma, cond), ideal)
    torch.testing.assert_close(denoiser.score(x_noisy, sigma, cond), (ideal - x_noisy) / sigma[:, None] ** 2)


def test_counts_have_no_score(screen):
    x, table, schema = screen
    denoiser, vocabulary = make(Thinning(), x, table, schema)
    with pytest.raises(TypeError, match="no gradient"):
        denoiser.score(torch.zeros(1, N_GENES), torch.ones(1), vocabulary.encode(table)[:1])


def test_training_comes_near_the_ideal_loss():
    """Cells of two kinds, unlabelled: only the molecules say which. The ideal denoiser is known."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(N_GENES, 1.0), size=2)
    kind = rng.random(3000) < 0.4
    x = sparse.csr_matrix(np.stack([rng.multinomial(80, p[int(k)]) for k in kind]).astype(np.float32))
    schema, table = Schema(), pd.DataFrame(index=range(3000))
    denoiser, vocabulary = make(Thinning(), x, table, schema)
    cells, cond = CountBatches(x), vocabulary.encode(table)

    def ideal(x_noisy, level, cond):
        log_odds = torch.log(torch.tensor([0.6, 0.4])) + x_noisy.to_dense() @ torch.from_numpy(p.T).float().log()
        return (log_odds.softmax(1) @ torch.from_numpy(p).float()).log()

    judge = HeldOutCells(cells, cond, np.arange(2000, 3000), seed=9)
    before = judge(denoiser)

    class Ideal(torch.nn.Module):
        process, device = Thinning(), torch.device("cpu")

        def forward(self, x_noisy, level, cond):
            return ideal(x_noisy, level, cond)

    best = judge(Ideal())
    config = TrainConfig(steps=400, precision="fp32", batch_size=128, learning_rate=1e-2, weight_decay=0.1)
    train(denoiser, CountBatches(x[:2000]), cond[:2000], config=config)
    after = judge(denoiser)
    assert best < after < before
    assert after - best < 0.1 * (before - best)
