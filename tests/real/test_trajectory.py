"""Paths of real cells: a day that was left out lies on the way, and lineages end where their markers say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scidiff.data.catalog import load, schema_of
from scidiff.data.scaling import fit_pca, log1p_cp10k
from scidiff.estimator import ScIDiff
from scidiff.evaluation.metrics import energy
from scidiff.training import TrainConfig

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def days(real_data) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCIDIFF_DATA", str(real_data))
        adata = load("weinreb20")
    return {day: adata[adata.obs["day"] == day].copy() for day in (2, 4, 6)} | {
        "train": adata[adata.obs["day"] != 4].copy()
    }


@pytest.fixture(scope="module")
def paths(days):
    """Frames of days 2 to 6 in steps of one day, between observed cells: the network has no part in them."""
    tiny = {"width": 8, "n_blocks": 1, "config": TrainConfig(steps=2)}
    model = ScIDiff.fit(days["train"], schema_of("weinreb20"), **tiny)
    how = {"along": {"day": (2, 6)}, "steps": 4, "growth": 16, "network": False}
    return model.trajectory(days["train"], n_paths=days[6].n_obs, **how)


def test_the_day_left_out_lies_on_the_way(days, paths):
    """Halfway between pairs 2.2 (by optimal transport) to 2.6, copy of day 2 8.7, of day 6 .71, half of day 4 .09."""
    pca = fit_pca(log1p_cp10k(days["train"].X), 50)
    real = pca.transform(log1p_cp10k(days[4].X))
    distance = [energy(pca.transform(paths[paths.obs["frame"] == k].X), real) for k in range(5)]
    assert distance[2] < 0.67
    assert distance[2] < energy(pca.transform(log1p_cp10k(days[6].X)), real)
    assert distance[2] == min(distance)


def test_undifferentiated_cells_are_as_many_as_on_the_day_left_out(days, paths):
    middle = paths.obs[paths.obs["frame"] == 2]["cell_type"]
    assert np.mean(middle == "undiff") == pytest.approx(np.mean(days[4].obs["cell_type"] == "undiff"), abs=0.05)


def test_basophils_of_day_2_stay_basophils(days, paths):
    """Two cells of day 2 are committed; their partners are known by type, which the coupling was not told."""
    committed = days[2].obs_names[days[2].obs["cell_type"] == "Baso"]
    last = paths.obs[paths.obs["frame"] == 4]
    ends = last.loc[last["cell"].isin(committed), "cell_type"]
    assert len(ends) > 5
    others = last.loc[~last["cell"].isin(committed), "cell_type"]
    share = pd.Series({"committed": (ends == "Baso").mean(), "others": (others == "Baso").mean()})
    assert share["committed"] > 2 * share["others"]
