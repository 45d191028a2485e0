"""The running average by hand, and minibatches against the matrix."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from scidiff.data.scaling import Standardizer
from scidiff.training import CountBatches, ExpressionBatches
from scidiff.training.ema import Average, copy_weights, load_weights


def test_average_by_hand():
    module = nn.Linear(1, 1, bias=False)
    path = [0.0, 1.0, 5.0, -2.0, 3.0]
    with torch.no_grad():
        module.weight.fill_(path[0])
    average = Average(module, 0.3)
    assert average.EVERY == 4
    expected = path[0]
    for step, value in enumerate(path[1:], start=1):
        with torch.no_grad():
            module.weight.fill_(value)
        average.update(module, step)
        decay = min(0.3, (1 + step) / (10 + step)) ** 4  # 2/11, 3/12, then 0.3; one update stands for four steps
        expected = decay * expected + (1 - decay) * value
        assert float(average.weights["weight"]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert module.weight.item() == path[-1]


def test_applied_only_within_the_block():
    module = nn.Linear(2, 2)
    average = Average(module, 0.9)
    own = {name: p + 1 for name, p in copy_weights(module).items()}
    load_weights(module, own)
    with contextlib.suppress(KeyboardInterrupt), average.applied_to(module):
        assert torch.equal(module.weight, average.weights["weight"])
        raise KeyboardInterrupt
    assert torch.equal(module.weight, own["weight"])
    assert not torch.equal(module.weight, average.weights["weight"])


def test_counts_are_taken_as_they_are():
    x = sparse.random(30, 12, density=0.3, format="csr", random_state=0, dtype=np.float32)
    rows = np.array([3, 3, 29, 0])
    batch = CountBatches(x).take(rows)
    assert batch.layout == torch.sparse_csr
    np.testing.assert_array_equal(batch.to_dense(), x[rows].toarray())
    assert len(CountBatches(x)) == 30


@pytest.mark.parametrize("layout", [sparse.csr_matrix, np.asarray])
def test_expression_is_standardised(layout):
    dense = np.random.default_rng(0).gamma(1, 1, (50, 6)).astype(np.float32)
    dense[:, 2] = 1.5  # a gene that never varies
    batches = ExpressionBatches(layout(dense), Standardizer.fit(dense))
    out = batches.take(np.arange(50))
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(0, correction=0), [1, 1, 0, 1, 1, 1], atol=1e-4)
    assert torch.equal(batches.take(np.array([7])), out[7:8])
