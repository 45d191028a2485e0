"""In-silico perturbation on a network of which the couplings are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

from scidiff.tasks.in_silico import DOSE, MAX_CELLS, in_silico

N = 40
TARGETS, DRIVEN, FREE = slice(0, 5), slice(10, 20), slice(20, 40)


class Coupled:
    """A posterior in which ten genes follow the first five, with the sign and strength given."""

    device = torch.device("cpu")

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def expected(self, x, level, cond):
        logits = torch.zeros(len(x), N)
        share = x[:, TARGETS].sum(dim=1) / level
        logits[:, DRIVEN] = self.strength * share[:, None]
        return logits


class Anyone:
    """Conditions of which nothing depends."""

    def __getitem__(self, rows):
        return self

    def to(self, device):
        return self


def regulons(*signs: dict[int, float]) -> sparse.csc_matrix:
    dense = np.zeros((N, len(signs)))
    for i, one in enumerate(signs):
        for gene, sign in one.items():
            dense[gene, i] = sign
    return sparse.csc_matrix(dense)


@pytest.fixture
def counts() -> sparse.csr_matrix:
    return sparse.csr_matrix(np.random.default_rng(0).poisson(5, (130, N)).astype(np.float32))


@pytest.fixture
def effect() -> np.ndarray:
    out = np.zeros(N)
    out[DRIVEN] = 1.0
    return out


RAISES, LOWERS = dict.fromkeys(range(5), 1.0), dict.fromkeys(range(5), -3.0)


@pytest.mark.parametrize("strength", [4.0, -4.0])
def test_the_regulator_of_what_drives_the_effect_is_found_with_its_sign(counts, effect, strength):
    model = SimpleNamespace(posterior=Coupled(strength))
    other = dict.fromkeys(range(30, 35), 1.0)
    raises, lowers, none = in_silico(model, effect, regulons(RAISES, LOWERS, other), counts, Anyone())
    sign = np.sign(strength)
    assert sign * raises > 0.5  # not 1: what the others lose to these has the other sign
    assert sign * lowers < -0.5
    # more of genes that nothing follows dilutes the first five by as much: less of what follows them
    assert sign * none < 0


def test_the_own_targets_are_no_evidence(counts, effect):
    """The effect is that of the targets alone: nothing is left to compare."""
    alone = np.zeros(N)
    alone[TARGETS] = 5.0
    assert np.isnan(in_silico(SimpleNamespace(posterior=Coupled(4.0)), alone, regulons(RAISES), counts, Anyone())[0])
    both = effect + alone
    same = [
        in_silico(SimpleNamespace(posterior=Coupled(4.0)), e, regulons(RAISES), counts, Anyone())[0]
        for e in (effect, both)
    ]
    assert same[0] == pytest.approx(same[1])


def test_where_nothing_responds_or_is_known_there_is_no_score(counts, effect):
    still = SimpleNamespace(posterior=Coupled(0.0))
    assert np.isnan(in_silico(still, effect, regulons(RAISES), counts, Anyone())[0])
    coupled = SimpleNamespace(posterior=Coupled(4.0))
    masked = effect.copy()
    masked[DRIVEN] = np.nan  # steered genes
    assert np.isnan(in_silico(coupled, masked, regulons(RAISES), counts, Anyone())[0])


def test_what_is_moved_and_in_how_many_cells(counts, effect):
    seen = []

    class Spy(Coupled):
        def expected(self, x, level, cond):
            seen.append((x.clone(), level.clone()))
            return super().expected(x, level, cond)

    in_silico(SimpleNamespace(posterior=Spy(4.0)), effect, regulons(RAISES | {7: -1.0}), counts, Anyone())
    (before, molecules), (after, level) = seen
    assert len(before) == MAX_CELLS
    usual = torch.softmax(Coupled(4.0).expected(before, molecules, None), dim=1)
    added = (after - before)[:, :5] / (molecules[:, None] * usual[:, :5])
    assert added.numpy() == pytest.approx(DOSE - 1, rel=1e-4)
    lost = (before - after)[:, 7] / (molecules * usual[:, 7])
    assert (lost <= 1 - 1 / DOSE + 1e-4).all()
    assert (after >= 0).all()
    assert torch.equal((after - before)[:, 8:], torch.zeros(MAX_CELLS, N - 8))
    torch.testing.assert_close(level, after.sum(dim=1))
