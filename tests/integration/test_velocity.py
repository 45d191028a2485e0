"""RNA velocity: the steady state is exact where cells are at rest, and planted kinetics are found again."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scidiff as sd
from scidiff.data import simulate
from scidiff.integration.velocity import at_common_depth, has_velocity, mean_over, nearest, read_velocity, steady_state


def rising_and_falling(n: int = 400, seed: int = 0) -> tuple[ad.AnnData, np.ndarray]:
    """Return cells along 20 hours, in the end at rest, and ds/dt: of 40 genes half rise, half fall from 0 on."""
    rng = np.random.default_rng(seed)
    t, beta, gamma = rng.uniform(0, 20, (n, 1)), 0.8, rng.uniform(0.2, 0.6, 40)
    on = np.arange(40) < 20
    top = rng.uniform(20, 60, 40)
    u_end, s_end = np.where(on, top, 0), np.where(on, top * beta / gamma, 0)
    u_start, s_start = top - u_end, top * beta / gamma - s_end
    fast, slow = np.exp(-beta * t), np.exp(-gamma * t)
    u = u_end + (u_start - u_end) * fast
    s = s_end + (s_start - s_end) * slow + (u_start - u_end) * beta / (gamma - beta) * (fast - slow)
    layers = {"spliced": sparse.csr_matrix(rng.poisson(s)), "unspliced": sparse.csr_matrix(rng.poisson(u))}
    genes = pd.DataFrame(index=[f"g{i}" for i in range(40)])
    return ad.AnnData(sparse.csr_matrix(layers["spliced"]), var=genes, layers=layers), beta * u - gamma * s


def test_planted_kinetics():
    cells, truth = rising_and_falling()
    found = read_velocity(cells)
    assert found.known[20:].all()  # genes that fall; those that rise bulge off the line
    assert found.source == "spliced and unspliced"
    v, true = found.v[:, found.known], truth[:, found.known]
    cosine = (v * true).sum(1) / np.linalg.norm(v, axis=1) / np.linalg.norm(true, axis=1)
    assert np.mean(cosine) > 0.8
    moving = np.abs(true) > np.quantile(np.abs(true), 0.5)
    assert np.mean(np.sign(v[moving]) == np.sign(true[moving])) > 0.9


def test_velocity_of_the_simulator():
    size = {"n_cells": 1800, "n_genes": 400, "n_tfs": 40, "n_states": 4, "n_batches": 1, "control_share": 1.0}
    few = {"n_perturbations": 15, "n_null": 3, "n_duplicates": 2, "n_combinations": 0}
    simulation = simulate(**size, **few, depth=6000, seed=2)
    cells = simulation.adata
    found = read_velocity(cells)
    hours = cells.obs["pseudotime"] * simulation.lab.biology.horizon - simulation.lab.biology.state_hours
    moving = ((cells.obs["cell_type"] != "stem") & (hours < 12)).to_numpy()
    true = simulation.lab.truth(cells[moving]).layers["velocity"][:, found.known]
    v = (found.v * cells.var["splicing_rate"].to_numpy())[moving][:, found.known]  # per hour
    cosine = (v * true).sum(1) / np.linalg.norm(v, axis=1) / np.linalg.norm(true, axis=1)
    assert np.mean(cosine) > 0.5
    fast = np.abs(true) > np.median(np.abs(true))
    assert np.mean(np.sign(v[fast]) == np.sign(true[fast])) > 0.65


def test_slope_is_exact_at_rest():
    rng = np.random.default_rng(0)
    s, gamma = rng.gamma(2, 5, (200, 6)), rng.uniform(0.1, 1, 6)
    found = steady_state(s, s * gamma, list("abcdef"))
    np.testing.assert_allclose(found.gamma, gamma, rtol=1e-6)
    np.testing.assert_allclose(found.v, 0, atol=1e-4)


def test_genes_on_no_line_have_no_velocity():
    rng = np.random.default_rng(0)
    s = rng.gamma(2, 5, (300, 2))
    found = steady_state(s, np.stack([0.5 * s[:, 0], rng.gamma(2, 5, 300)], axis=1), ["line", "cloud"])
    assert found.known.tolist() == [True, False]
    assert (found.v[:, 1] == 0).all()
    assert np.isnan(found.gamma[1])


def test_computed_velocities_come_first():
    cells, _ = rising_and_falling(100)
    cells.layers["Ms"] = np.full(cells.shape, 2.0)
    cells.layers["velocity"] = np.ones(cells.shape)
    cells.layers["velocity"][:, 3] = np.nan  # scVelo: no velocity
    cells.var["velocity_genes"] = np.arange(40) != 5
    found = read_velocity(cells)
    assert found.source == "velocity"
    assert np.flatnonzero(~found.known).tolist() == [3, 5]
    assert (found.v[:, [3, 5]] == 0).all()
    assert (found.s == 2).all()
    del cells.layers["velocity"]
    cells.layers["Mu"] = cells.layers["Ms"] * np.linspace(0.5, 1.5, 40)
    cells.layers["Ms"] = np.random.default_rng(0).gamma(2, 5, cells.shape)
    cells.layers["Mu"] = 0.5 * cells.layers["Ms"]
    assert read_velocity(cells).source == "Ms and Mu"


def test_genes_are_aligned_by_name():
    cells, _ = rising_and_falling(150)
    whole = read_velocity(cells)
    part = read_velocity(cells, genes=["g27", "not there", "g22"])
    assert part.genes == ["g27", "not there", "g22"]
    np.testing.assert_array_equal(part.v, np.stack([whole.v[:, 27], np.zeros(150), whole.v[:, 22]], axis=1))
    assert part.known.tolist() == [whole.known[27], False, whole.known[22]]
    with pytest.raises(sd.InputError, match="none of the 1 genes"):
        read_velocity(cells, genes=["nobody"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.layers.pop("unspliced"), "layers 'velocity', 'Ms' and 'Mu', or 'spliced' and 'unspliced'"),
        (lambda a: a.layers.update(spliced=-a.layers["spliced"]), "'spliced' has negative"),
        (lambda a: a.layers.update(unspliced=a.layers["unspliced"] * 0), "no gene has a velocity"),
    ],
)
def test_what_cannot_be_used_is_refused(change, message):
    cells, _ = rising_and_falling(60)
    change(cells)
    with pytest.raises(sd.InputError, match=message):
        read_velocity(cells)


def test_has_velocity():
    cells, _ = rising_and_falling(20)
    assert has_velocity(cells)
    del cells.layers["spliced"]
    assert not has_velocity(cells)


def test_moments():
    points = np.array([[0.0], [1.0], [5.0], [6.0]])
    near = nearest(points, 1)
    assert near.ravel().tolist() == [1, 0, 3, 2]
    x = np.array([[1.0], [3.0], [10.0], [20.0]])
    np.testing.assert_allclose(mean_over(x, near).ravel(), [2, 2, 15, 15])
    np.testing.assert_allclose(mean_over(sparse.csr_matrix(x), near), mean_over(x, near))
    counts = sparse.csr_matrix([[1, 1], [4, 0], [0, 0], [3, 7]])
    np.testing.assert_allclose(at_common_depth(counts).toarray().sum(axis=1), [4, 4, 0, 4])
