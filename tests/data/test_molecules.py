"""Splitting molecules: nothing is lost, the split is binomial, and the parts are independent given Poisson counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scidiff.data.molecules import split_molecules
from scidiff.errors import InputError


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.99))
def test_the_parts_add_up(seed, share):
    counts = sparse.random(20, 15, density=0.3, random_state=np.random.default_rng(seed), format="csr")
    counts.data = np.ceil(counts.data * 5)
    before = counts.toarray()
    kept, held = split_molecules(counts, held_out=share, seed=seed)
    assert (kept.toarray() + held.toarray() == before).all()
    assert (kept.data > 0).all()
    assert (held.data > 0).all()
    assert (counts.toarray() == before).all()


def test_poisson_counts_split_into_independent_parts():
    """n ~ Poisson(4) split at .25: Poisson(3) and Poisson(1), uncorrelated; 40,000 draws, five standard errors."""
    n = np.random.default_rng(0).poisson(4.0, (200, 200))
    kept, held = (part.toarray().ravel() for part in split_molecules(sparse.csr_matrix(n), held_out=0.25, seed=1))
    assert kept.mean() == pytest.approx(3, abs=5 * (3 / 40_000) ** 0.5)
    assert held.var() == pytest.approx(1, abs=5 * (3 / 40_000) ** 0.5)
    assert abs(np.corrcoef(kept, held)[0, 1]) < 5 / 200


def test_a_share_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"held_out=1\.0"):
        split_molecules(sparse.eye(3, format="csr"), held_out=1.0, seed=0)
