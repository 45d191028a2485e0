"""Cautious draws: believed genes as predicted, others as in all cells."""

from __future__ import annotations

import torch

from scidiff.sampling.denoise import Cautious


def test_between_prediction_and_pooled_composition():
    torch.manual_seed(0)
    logits, pooled = torch.randn(4, 6), torch.log_softmax(torch.randn(6), 0)
    predict = lambda x, level, cond=None: logits + 7.0  # noqa: E731  (softmax does not see a constant)

    def ask(trust):
        return Cautious(predict, pooled, trust)(torch.zeros(4, 6), torch.zeros(4), None)

    torch.testing.assert_close(torch.softmax(ask(torch.ones(6)), 1), torch.softmax(logits, 1))
    torch.testing.assert_close(ask(torch.zeros(6)), pooled.expand(4, 6))
    some = torch.tensor([1.0, 1, 1, 0, 0, 0])
    torch.testing.assert_close(ask(some)[:, 3:], pooled[3:].expand(4, 3))
    torch.testing.assert_close(ask(some)[:, :3], torch.log_softmax(logits, 1)[:, :3])
