"""Cautious draws: believed genes as predicted, others as in all cells, own counts always."""

from __future__ import annotations

import torch

from scidiff.models.own_counts import OwnCounts
from scidiff.sampling.denoise import Cautious

SOME = torch.tensor([1.0, 1, 1, 0, 0, 0])


class Fixed:
    """Predicts the same logits for any cells, then updates them by own counts, if it has any."""

    def __init__(self, logits, own_counts=None):
        self.logits, self.own_counts = logits, own_counts

    def expected(self, x_noisy, level, cond):
        return self.logits + 7.0  # softmax does not see a constant

    def updated(self, prediction, x_noisy, level):
        return prediction if self.own_counts is None else self.own_counts(prediction, x_noisy, level)


def made():
    torch.manual_seed(0)
    return torch.randn(4, 6), torch.log_softmax(torch.randn(6), 0)


def ask(denoiser, pooled, trust, x=None):
    x = torch.zeros(4, 6) if x is None else x
    return torch.softmax(Cautious(denoiser, pooled, trust)(x, x.sum(1), None), 1)


def test_full_trust_is_the_prediction():
    logits, pooled = made()
    torch.testing.assert_close(ask(Fixed(logits), pooled, torch.ones(6)), logits.softmax(1))


def test_no_trust_is_the_pooled_composition():
    logits, pooled = made()
    torch.testing.assert_close(ask(Fixed(logits), pooled, torch.zeros(6)), pooled.exp().expand(4, 6))


def test_genes_without_trust_keep_their_share():
    """Also in cells where the believed genes are predicted to take nearly all, and in proportion among themselves."""
    logits, pooled = made()
    logits[0, :3] += 8
    p = ask(Fixed(logits), pooled, SOME)
    torch.testing.assert_close(p[:, 3:], pooled[3:].exp().expand(4, 3))
    believed = logits.softmax(1)[:, :3]
    torch.testing.assert_close(p[:, :3] / p[:, :3].sum(1, keepdim=True), believed / believed.sum(1, keepdim=True))


def test_own_counts_are_believed_without_trust():
    logits, pooled = made()
    own, x = OwnCounts(6), torch.poisson(torch.full((4, 6), 2.0))
    expected = own(pooled.expand(4, 6), x, x.sum(1)).softmax(1)
    torch.testing.assert_close(ask(Fixed(logits, own), pooled, torch.zeros(6), x), expected)
    assert (expected - pooled.exp()).abs().max() > 0.05
