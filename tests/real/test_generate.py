"""A tiny model of real cells: the anchor and a few steps of training already put it in the right place."""

from __future__ import annotations

import numpy as np
import pytest

from scidiff.data.catalog import load, schema_of
from scidiff.data.scaling import highly_variable_genes, log1p_cp10k
from scidiff.estimator import ScIDiff
from scidiff.training import TrainConfig

pytestmark = pytest.mark.real

TINY = {"width": 16, "n_blocks": 1, "config": TrainConfig(steps=30, batch_size=64, evaluate_every=30)}


def profile(counts) -> np.ndarray:
    """log1p(CP10k) of all molecules of some cells together."""
    total = np.asarray(counts.sum(axis=0)).ravel()
    return np.log1p(1e4 * total / total.sum())


@pytest.fixture(autouse=True)
def folder(real_data, monkeypatch):
    monkeypatch.setenv("SCIDIFF_DATA", str(real_data))


@pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
def test_kang_interferon_in_the_right_cells_and_genes():
    adata, schema = load("kang18"), schema_of("kang18")
    genes = adata.var_names[highly_variable_genes(log1p_cp10k(adata.X), 200)].union(["ISG15", "IFI6", "CD3D", "LYZ"])
    genes = [gene for gene in genes if gene in adata.var_names]
    adata = adata[np.asarray(adata[:, genes].X.sum(axis=1)).ravel() > 20].copy()
    model = ScIDiff.fit(adata, schema, genes=genes, **TINY)
    made = {
        (kind, drug): model.generate(60, {"cell_type": kind, "condition": drug})
        for kind in ("CD4 T", "CD14 Mono")
        for drug in ("control", "IFN-beta")
    }

    def level(kind: str, drug: str, gene: str) -> float:
        return float(made[kind, drug][:, gene].X.mean())

    for kind in ("CD4 T", "CD14 Mono"):
        for gene in ("ISG15", "IFI6"):
            assert level(kind, "IFN-beta", gene) > level(kind, "control", gene) + 1
    assert level("CD14 Mono", "control", "LYZ") > level("CD4 T", "control", "LYZ") + 1
    obs = adata.obs
    for (kind, drug), cells in made.items():
        real = adata[(obs["cell_type"] == kind) & (obs["condition"] == drug), genes]
        if real.n_obs > 100:  # fewer are too noisy to compare with
            assert np.corrcoef(profile(real.X), profile(cells[:, genes].layers["counts"]))[0, 1] > 0.93
            depth = [np.median(np.asarray(m.sum(axis=1))) for m in (real.X, cells.layers["counts"])]
            assert depth[1] == pytest.approx(depth[0], rel=0.35)


@pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
def test_norman_anchor_of_unseen_doubles():
    """The shrunk sum of parts is nearer to doubles never trained on than the control or the plain sum of effects."""
    adata, schema = load("norman19"), schema_of("norman19")
    adata = adata[adata.obs["cell_type"] == "k562"]
    is_ = schema.table(adata)["perturbation"].to_numpy()
    pairs = ["KLF1+MAP2K6", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "KLF1+TGFBR2", "MAPK1+TGFBR2"]
    model = ScIDiff.fit(adata[~np.isin(is_, pairs)].copy(), schema, **(TINY | {"config": TrainConfig(steps=1)}))
    control = profile(adata[is_ == "control"].X)
    errors = []
    for pair in pairs:
        request = schema.conditions({"condition": pair, "cell_type": "k562"}, known=model.vocabulary.known)
        said = profile(model.denoiser.anchor(model.vocabulary.encode(request)).softmax(1).numpy())
        plain = sum(profile(adata[is_ == part].X) for part in pair.split("+")) - control
        truth = profile(adata[is_ == pair].X)
        errors.append([np.linalg.norm(guess - truth) for guess in (said, plain, control)])
    anchor, plain, nothing = np.mean(errors, axis=0)
    assert anchor < 0.9 * nothing
    assert anchor < 0.9 * plain


@pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
def test_l1000_has_no_counts_and_a_dose():
    adata, schema = load("lincs_a375"), schema_of("lincs_a375")
    model = ScIDiff.fit(adata, schema, genes=list(adata.var_names[:100]), **TINY)
    assert model.settings["noise"] == "gaussian"
    cells = model.generate(200)
    np.testing.assert_allclose(cells.X.mean(axis=0), np.asarray(adata.X[:, :100]).mean(axis=0), atol=0.6)
    assert "counts" not in cells.layers
    drug = model.vocabulary.parts[0]
    untreated = model.generate(2, {schema.perturbation: drug, "dose": 0}, n_steps=2)
    assert np.isfinite(untreated.X).all()
