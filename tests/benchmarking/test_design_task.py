"""The design benchmark on a planted screen: who moves the genes that were not asked for, and who does not."""

from __future__ import annotations

import json
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.benchmarking import benchmark_design
from scidiff.benchmarking.design import HALF, OURS, TARGETS_ONLY, TOLD, summary
from scidiff.estimator import ScIDiff

N_GENES = 60
SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context=["kind"])


def cells(kind: str, drug: str, n: int = 80) -> AnnData:
    """A drug raises ten genes threefold, lowers ten others to a third, in every kind of cell."""
    rng = np.random.default_rng([len(kind), *map(ord, kind + drug)])
    share = np.exp(np.random.default_rng(list(map(ord, kind))).normal(size=N_GENES))
    share[:10] *= 3.0 if drug == "A" else 1.0
    share[10:20] *= 1 / 3 if drug == "A" else 1.0
    counts = rng.poisson(1500 * share / share.sum(), size=(n, N_GENES)).astype(np.float32)
    obs = pd.DataFrame({"drug": drug, "kind": kind}, index=[f"{kind}-{drug}-{i}" for i in range(n)])
    return AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{g}" for g in range(N_GENES)]))


@pytest.fixture(scope="module")
def screen() -> AnnData:
    return ad.concat([cells(kind, drug) for kind in ("B", "T") for drug in ("DMSO", "A")])


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(ScIDiff, "fit", partial(ScIDiff.fit, width=32, n_blocks=1))


def test_the_other_genes_follow_and_a_run_goes_on(screen, small, tmp_path):
    ask = partial(benchmark_design, screen, SCHEMA, out=tmp_path / "judged", n=100, targets=["G0", "G1"], fast=True)
    table = ask(settings=["unlabelled"]).table
    score = summary(table, "pearson_other").iloc[0]
    assert score[HALF] > 0.97
    assert score[OURS] > 0.85
    assert score[OURS] > score[TARGETS_ONLY] + 0.3
    assert {OURS, TOLD, HALF} <= set(table["method"])
    assert abs(summary(table, "reached").iloc[0][OURS] - 1) < 0.25
    found = json.loads((tmp_path / "judged" / "verdict.json").read_text())
    (one,) = found["by"].values()
    assert one["of_ceiling"] == pytest.approx(score[OURS] / score[HALF], abs=1e-3)
    assert "of what half of the real cells reach" in (tmp_path / "judged" / "report.html").read_text()
    again = ask(settings=["unlabelled"], resume=True).table
    pd.testing.assert_frame_equal(again[["method", "metric"]], table[["method", "metric"]])
    np.testing.assert_allclose(again["value"], table["value"], rtol=1e-4)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"schema": sd.Schema(perturbation="drug", control="DMSO")}, "one context="),
        ({"settings": ["hidden"]}, "unknown setting 'hidden'"),
        ({"perturbation": "C"}, "unknown perturbation 'C'"),
        ({"contexts": ["NK"]}, "NK has too few cells"),
        ({"targets": ["G99"]}, "gene 'G99' is not in the data"),
        ({"genes": ["G1"]}, "chooses its own genes"),
        ({"one": True}, "one only"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_is_written(screen, tmp_path, asked, message):
    cells_ = screen[screen.obs["kind"] == "B"].copy() if asked.pop("one", False) else screen
    schema = asked.pop("schema", SCHEMA)
    with pytest.raises(sd.InputError, match=message):
        benchmark_design(cells_, schema, out=tmp_path / "judged", **asked)
    assert not (tmp_path / "judged").exists()
