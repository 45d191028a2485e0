"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

# two threads that spin for each other on busy cores are many times slower than one; torch reads this when it loads
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

torch.set_num_threads(1)  # the tensors of tests are small: a second thread waits longer than it computes

REAL_DATA = Path(os.environ.get("SCIDIFF_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data files; the test is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA}: set SCIDIFF_DATA to the folder that holds the h5ad files")
    return REAL_DATA
