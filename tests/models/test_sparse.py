"""Sparse cells against scipy, with empty cells and stored zeros among them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import sparse

from scidiff.models.sparse import csr_tensor, depth_of, flat_index, per_entry, to_dense, without_zeros


@pytest.fixture(params=[np.int32, np.int64])
def cells(request) -> sparse.csr_matrix:
    m = sparse.random(9, 7, density=0.4, format="csr", random_state=0, dtype=np.float32)
    m.data[::3] = 0  # stored zeros, as thinning leaves them
    m = sparse.vstack([m[:4], sparse.csr_matrix((2, 7), dtype=np.float32), m[4:]], format="csr")
    m.indices, m.indptr = m.indices.astype(request.param), m.indptr.astype(request.param)
    assert len(m.data) > m.count_nonzero()
    return m


def tensor(m: sparse.csr_matrix) -> torch.Tensor:
    return csr_tensor(*map(torch.from_numpy, (m.indptr, m.indices, m.data)), m.shape[1])


def test_depth(cells):
    expected = torch.from_numpy(np.asarray(cells.sum(axis=1)).ravel())
    torch.testing.assert_close(depth_of(tensor(cells)), expected)
    torch.testing.assert_close(depth_of(torch.from_numpy(cells.toarray())), expected)


def test_places(cells):
    rows = np.repeat(np.arange(cells.shape[0]), np.diff(cells.indptr))
    of_cells = torch.randn(cells.shape[0])
    assert torch.equal(per_entry(tensor(cells), of_cells), of_cells[torch.from_numpy(rows)])
    assert np.array_equal(flat_index(tensor(cells)), np.ravel_multi_index((rows, cells.indices), cells.shape))


def test_dense(cells):
    assert np.array_equal(to_dense(tensor(cells), torch.float32), cells.toarray())
    assert to_dense(tensor(cells), torch.bfloat16).dtype == torch.bfloat16


def test_without_zeros(cells):
    pruned = without_zeros(tensor(cells))
    expected = cells.copy()
    expected.eliminate_zeros()
    for got, want in zip(
        (pruned.crow_indices(), pruned.col_indices(), pruned.values()),
        (expected.indptr, expected.indices, expected.data),
        strict=True,
    ):
        assert np.array_equal(got, want)


def test_nothing_at_all():
    empty = tensor(sparse.csr_matrix((3, 5), dtype=np.float32))
    assert not depth_of(empty).any()
    assert len(without_zeros(empty).values()) == 0
    assert not to_dense(empty, torch.float32).any()


def test_no_notice_of_torch_reaches_the_user(cells, monkeypatch):
    """Neither of this torch, told to repeat what it usually says once, nor of 2.11, which warns who declined checks."""
    plain = torch.sparse_csr_tensor

    def as_in_2_11(*args, **options):
        warnings.warn("Sparse invariant checks are implicitly disabled. Memory errors ...", stacklevel=2)
        return plain(*args, **options)

    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        for make in (plain, as_in_2_11):
            monkeypatch.setattr(torch, "sparse_csr_tensor", make)
            assert torch.equal(tensor(cells).to_dense(), torch.from_numpy(cells.toarray()))
    finally:
        torch.set_warn_always(always)
