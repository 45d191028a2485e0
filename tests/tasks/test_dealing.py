"""Who receives new molecules: the rule whose cells are nearer to real ones, and what a cell had beyond the expected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import scidiff as sd
from scidiff.data.cells import read_cells
from scidiff.tasks.dealing import DEFAULT, RULES, beyond_expected, calibrated_dealing, rehearsals

N_GENES, PER_ARM = 80, 150
SCHEMA = sd.Schema(perturbation="drug", control="DMSO")


def screen(*, shared: float, own: float, depth: int, seed: int = 0) -> AnnData:
    """Two drugs that raise genes four-fold in every cell; cells differ along one program, and in single genes.

    ``shared``, ``own``: standard deviations of the logarithms of both.
    """
    rng = np.random.default_rng(seed)
    program = np.where(np.arange(N_GENES) < 40, np.resize([1, -1], N_GENES), 0)
    drugs = np.repeat(["DMSO", "DMSO", "A", "B"], PER_ARM)
    n = len(drugs)
    log_rate = 0.5 * rng.normal(size=N_GENES) + shared * rng.normal(size=(n, 1)) * program
    log_rate += own * rng.normal(size=(n, N_GENES))
    for drug, rising in (("A", slice(0, 40)), ("B", slice(20, 60))):
        log_rate[drugs == drug, rising] += np.log(4)
    rate = np.exp(log_rate)
    counts = rng.poisson(depth * rate / rate.sum(axis=1, keepdims=True)).astype(np.float32)
    return AnnData(
        counts,
        obs=pd.DataFrame({"drug": drugs}, index=[f"c{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]),
    )


def trained(**how: float) -> tuple[AnnData, sd.ScIDiff]:
    adata = screen(**how)
    return adata, sd.ScIDiff.fit(adata, SCHEMA, denoise_only=True, width=32, n_blocks=1, seed=0)


def distances(adata: AnnData, model: sd.ScIDiff) -> dict[str, list[float]]:
    """Return the distances of the cells that each rule makes, by condition."""
    told = rehearsals(model, read_cells(adata, SCHEMA), seed=1)
    trials = {name: replace(model, settings=model.settings | {"dealing": name}) for name in RULES}
    return {name: [one.distance(one.made(trial)) for one in told] for name, trial in trials.items()}


@pytest.fixture(scope="module")
def deep() -> tuple[AnnData, sd.ScIDiff]:
    return trained(shared=0.6, own=0.4, depth=3000)


def test_deep_cells_keep_what_they_had_and_amplified_they_are_too_far_apart(deep):
    adata, model = deep
    assert model.settings["dealing"] == "own counts"
    found = distances(adata, model)
    assert len(found["own counts"]) == 2
    assert max(found["own counts"]) < 0.01
    assert all(np.greater(found["amplified"], found["own counts"]))


def test_shallow_cells_are_amplified():
    adata, model = trained(shared=0.0, own=0.9, depth=300)
    assert model.settings["dealing"] == "amplified"
    found = distances(adata, model)
    assert np.mean(found["amplified"]) < np.mean(found["own counts"])


@pytest.mark.filterwarnings("ignore:.*measured in training")
def test_the_rule_makes_the_cells_and_is_kept_in_the_folder(deep, tmp_path):
    adata, model = deep
    control = adata[:100]
    again = sd.ScIDiff.load(model.save(tmp_path / "model"))
    assert again.settings["dealing"] == "own counts"
    own, kept = (one.predict(control, {"drug": "A"}).layers["counts"] for one in (model, again))
    assert (own != kept).nnz == 0
    other = replace(model, settings=model.settings | {"dealing": "amplified"})
    assert (own != other.predict(control, {"drug": "A"}).layers["counts"]).nnz > 0


def test_beyond_expected_is_the_closed_form(deep):
    adata, model = deep
    x = torch.from_numpy(adata.X[:20])
    cond = model.encoded(SCHEMA.table(adata[:20]), depth=adata.X[:20].sum(axis=1))
    with torch.no_grad():
        p = torch.softmax(model.posterior.expected(x, x.sum(dim=1), cond), dim=1)
        shape = model.posterior.own_counts.shape
    expected = (x + shape) / (x.sum(dim=1, keepdim=True) * p + shape)
    torch.testing.assert_close(beyond_expected(model, x, cond), expected, rtol=1e-4, atol=1e-5)


def test_too_few_cells_to_judge_leave_the_default():
    adata = screen(shared=0.6, own=0.0, depth=300)
    few = adata[np.r_[:300, 300:320]].copy()
    model = sd.ScIDiff.fit(few, SCHEMA, denoise_only=True, width=32, n_blocks=1, config=sd.TrainConfig(steps=2))
    assert calibrated_dealing(model, read_cells(few, SCHEMA), seed=0) == DEFAULT
