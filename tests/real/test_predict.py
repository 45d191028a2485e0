"""Predictions on published measurements: interferon in a cell type never stimulated, a drug at a dose left out."""

from __future__ import annotations

import numpy as np
import pytest

from scidiff.data.catalog import load, schema_of
from scidiff.data.scaling import highly_variable_genes, log1p_cp10k
from scidiff.data.splits import holdout
from scidiff.estimator import ScIDiff
from scidiff.evaluation.effects import evaluate_effects
from scidiff.evaluation.shifts import SimilarityShift
from scidiff.training import TrainConfig

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")]


@pytest.fixture(autouse=True)
def folder(real_data, monkeypatch):
    monkeypatch.setenv("SCIDIFF_DATA", str(real_data))


def test_kang_interferon_in_b_cells_that_never_saw_it():
    adata, schema = load("kang18"), schema_of("kang18")
    split = holdout(adata, schema, context="B", perturbation="IFN-beta", seed=0)
    adata = adata[:, highly_variable_genes(log1p_cp10k(adata[split.train].X), 2000)].copy()
    train, source = adata[split.train].copy(), adata[split.source].copy()
    model = ScIDiff.fit(train, schema, width=64, n_blocks=1, config=TrainConfig(steps=30), seed=0)
    asked = {"perturbation": "IFN-beta"}
    made = {"model": model.predict(source, asked), "shift": SimilarityShift.fit(train, schema).predict(source, asked)}
    scores = {}
    for name, cells in made.items():
        real, control = adata[split.test], adata[split.control]
        table = evaluate_effects(cells, real, source=source, control=control, schema=schema, reference=train)
        scores[name] = table.set_index("metric")["value"]
    assert scores["model"]["pearson_delta"] > 0.80
    assert scores["model"]["energy"] < 0.35
    assert scores["model"]["energy"] < scores["shift"]["energy"]
    assert scores["model"]["r2_var"] > scores["shift"]["r2_var"]
    effects = made["model"].uns["scidiff"]["effects"].set_index("gene")
    strongest = effects["effect"].nlargest(10).index
    assert len({"ISG15", "IFI6", "IFIT3", "ISG20", "MX1", "IFIT1", "LY6E", "IFITM1"} & set(strongest)) >= 4
    assert (effects.loc[strongest, "low"] > 0).all()


def test_a_drug_moves_bulk_profiles_at_a_dose_left_out():
    """Trametinib at 1.11 uM in A375: one well among others of its dose curve, 26 of DMSO to start from."""
    adata, schema = load("lincs_a375"), schema_of("lincs_a375")
    table = schema.table(adata)
    control = schema.is_control(table)
    left_out = ((table["perturbation"] == "trametinib") & np.isclose(table["dose"], 1.11)).to_numpy()
    assert left_out.sum() == 1
    tiny = {"genes": list(adata.var_names[:300]), "width": 16, "n_blocks": 1, "config": TrainConfig(steps=20)}
    model = ScIDiff.fit(adata[~left_out].copy(), schema, **tiny)
    start = adata[control, model.genes].X
    true = adata[left_out, model.genes].X[0] - start.mean(axis=0)
    for network in (True, False):
        made = model.predict(adata[control], {"perturbation": "trametinib", "dose": 1.11}, network=network)
        moved = made.X.mean(axis=0) - start.mean(axis=0)
        np.testing.assert_allclose(moved, made.uns["scidiff"]["effects"]["effect"], atol=1e-3)
        assert np.corrcoef(moved, true)[0, 1] > 0.8
        assert "counts" not in made.layers
        assert made.n_obs == control.sum()
