"""Velocity and fate of the pancreas, markers of the four lineages left out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scidiff.data.catalog import load
from scidiff.data.scaling import fit_pca
from scidiff.estimator import ScIDiff
from scidiff.evaluation.metrics import cross_boundary_direction
from scidiff.integration.velocity import at_common_depth, nearest, read_velocity

pytestmark = [pytest.mark.real, pytest.mark.slow]

ENDS = ("Alpha", "Beta", "Delta", "Epsilon")
EDGES = [
    ("Ngn3 low EP", "Ngn3 high EP"),
    ("Ngn3 high EP", "Pre-endocrine"),
    *(("Pre-endocrine", end) for end in ENDS),
]
MARKERS = ("Gcg", "Arx", "Irx1", "Irx2", "Ins1", "Ins2", "Pdx1", "Nkx6-1", "Iapp", "Mafa", "Pax4", "G6pc2", "Sst",
           "Hhex", "Ghrl")  # fmt: skip


@pytest.fixture(scope="module")
def cells(real_data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCIDIFF_DATA", str(real_data))
        adata = load("pancreas")
    return adata[:, ~adata.var_names.isin(MARKERS)].copy()


@pytest.fixture(scope="module")
def model(cells):
    return ScIDiff.fit(cells, layer="spliced", width=256, n_blocks=2, denoise_only=True, seed=0)


def test_velocity_crosses_boundaries_as_development_does(cells, model):
    """In the places of the plain steady-state velocity, and better than it."""
    steady = read_velocity(cells)
    logged = at_common_depth(sparse.csr_matrix(cells.layers["spliced"])).log1p()
    pca = fit_pca(logged, 30)
    moved = model.velocity(cells, layer="spliced")
    label, near = cells.obs["cell_type"], nearest(pca.transform(logged))
    places = np.log1p(steady.s) @ pca.components_.T

    def score(change: np.ndarray) -> float:
        found = cross_boundary_direction(places, change @ pca.components_.T, label, EDGES, neighbors=near)
        return float(np.mean(list(found.values())))

    plain, ours = score(steady.v / (1 + steady.s)), score(moved.layers["velocity"])
    assert plain > 0.15
    assert ours >= plain


def test_ductal_cells_pass_ngn3_states(cells, model):
    through = ["Ngn3 low EP", "Ngn3 high EP", *ENDS]
    found = model.fate(cells, {"cell_type": through}, layer="spliced", n_rounds=4).obsm["fate"]
    ductal = (cells.obs["cell_type"] == "Ductal").to_numpy()
    assert found.loc[ductal, through[:2]].sum(axis=1).mean() > 0.95
