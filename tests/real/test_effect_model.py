"""The closed-form effect model on real cells: it must beat what anyone would try first, on disjoint control cells."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

import scidiff as sd
from scidiff.data.scaling import highly_variable_genes, log1p_cp10k
from scidiff.models.effect_groups import GroupStats
from scidiff.models.effects import EffectModel

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def folder(real_data, monkeypatch):
    monkeypatch.setenv("SCIDIFF_DATA", str(real_data))


def trained(x, adata, schema, split) -> EffectModel:
    """Return the model of a split's training cells, x being log1p(CP10k)."""
    table = schema.table(adata[split.train])
    conditions = table.assign(perturbation=[schema.parts(value) for value in table["perturbation"]])
    depth = np.asarray(adata[split.train].X.sum(axis=1)).ravel()
    return EffectModel.fit(GroupStats.of(x[split.train], pd.DataFrame(conditions), depth=depth))


def mean(x, cells: np.ndarray) -> np.ndarray:
    return np.asarray(x[cells].mean(axis=0)).ravel()


def test_interferon_in_a_held_out_cell_type():
    adata, schema = sd.data.load("kang18"), sd.data.schema_of("kang18")
    adata = adata[~adata.obs["cell_type"].isin(["Mk", "Eryth"])].copy()
    everything = log1p_cp10k(adata.X)
    scores = []
    for cell_type in ("CD4 T", "CD14 Mono", "B", "NK"):
        split = sd.data.holdout(adata, schema, context=cell_type, perturbation="IFN-beta", seed=0)
        x = everything[:, highly_variable_genes(everything[split.train], 2000)]
        model = trained(x, adata, schema, split)
        answer = model.predict({"cell_type": cell_type}, ("IFN-beta",), control_mean=mean(x, split.source))
        truth = mean(x, split.test) - mean(x, split.control)
        measured = model.process.measured
        near = 1 / ((measured.controls[measured.rows["context"]] - mean(x, split.source)) ** 2).sum(axis=1)
        rivals = [measured.effect[:, :-1].mean(axis=0), near @ measured.effect[:, :-1] / near.sum()]
        scores.append([np.corrcoef(effect, truth)[0, 1] for effect in (answer.mean, *rivals)])
        assert answer.kind == "context"
    ours, shift, weighted = np.mean(scores, axis=0)
    assert ours > shift + 0.05
    assert ours > weighted + 0.01


def test_pairs_of_activated_genes():
    adata = sd.data.load("norman19")
    adata = adata[adata.obs["cell_type"] == "k562"].copy()
    schema = sd.Schema(perturbation="condition", control="control")
    x = log1p_cp10k(adata.X, total=adata.obs["ncounts"].to_numpy())
    errors = []
    pairs = ("KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2")
    for pair, seed in itertools.product(pairs, range(4)):  # 50 control cells a side: splits differ
        split = sd.data.holdout(adata, schema, combination=pair, seed=seed)
        model = trained(x, adata, schema, split)
        measured = model.process.measured
        alone = {parts: measured.effect[i, :-1] for i, parts in enumerate(measured.rows["parts"])}
        truth = mean(x, split.test) - mean(x, split.control)
        parts = tuple(pair.split("+"))
        guesses = model.predict({}, parts).mean, sum(alone[part,] for part in parts)
        errors.append([np.mean((guess - truth) ** 2) for guess in guesses])
    ours, additive = np.mean(errors, axis=0)
    assert ours < 0.65 * additive
