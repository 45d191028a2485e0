"""What one verb writes the others read, from a file, in a model of every role: two contexts, dose, time and batch."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scidiff as sd

SCHEMA = sd.Schema(
    perturbation="drug",
    control="none",
    context=["cell_type", "tissue"],
    dose="dose",
    time="hours",
    batch="plate",
)


def cells(n: int = 640, n_genes: int = 30) -> AnnData:
    """Every condition a few times; drugs raise a block of genes, in blood half of it."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "drug": rng.choice(["none", "none", "A", "B", "A+B"], n),
            "cell_type": rng.choice(["T", "B"], n),
            "tissue": rng.choice(["blood", "node"], n),
            "hours": rng.choice([6.0, 24.0], n),
            "plate": rng.choice(["p1", "p2"], n),
        },
        index=[f"c{i}" for i in range(n)],
    )
    obs["dose"] = np.select([obs["drug"] == "none", obs["drug"] == "A+B"], ["0", "1+2"], "1")
    rate = np.tile(np.exp(rng.normal(size=n_genes)), (n, 1))
    rate[obs["drug"].str.contains("A").to_numpy(), :5] *= 4
    rate[obs["drug"].str.contains("B").to_numpy(), 5:10] *= 4
    counts = rng.poisson(400 * rate / rate.sum(axis=1, keepdims=True)).astype(np.float32)
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


@pytest.fixture(scope="module")
def model() -> sd.ScIDiff:
    return sd.ScIDiff.fit(cells(), SCHEMA, width=24, n_blocks=1, config=sd.TrainConfig(steps=160))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory) -> dict[str, Path]:
    """Files of what each verb makes, where as little as possible is asked for."""
    folder, control = tmp_path_factory.mktemp("verbs"), cells()[cells().obs["drug"] == "none"][:60].copy()
    asked = sd.Phenotype(up=["g0"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = {
            "generate": model.generate(60),
            "generate, of one": model.generate(60, {"drug": "none", "cell_type": "T"}),
            "denoise": model.denoise(control),
            "predict": model.predict(control, {"drug": "A", "dose": 1}),
            "predict, dose not said": model.predict(control, [{"drug": "A"}, {"drug": "A+B"}]),
            "design": model.design(asked, n=40),
            "design, of one": model.design(asked, n=40, condition={"cell_type": "T"}),
            "trajectory": model.trajectory(control[:10].copy(), to={"drug": "A", "dose": 1}, steps=3),
        }
    for name, some in made.items():
        some.write_h5ad(folder / f"{name}.h5ad")
    return {name: folder / f"{name}.h5ad" for name in made}


NAMES = (
    *("generate", "generate, of one", "denoise", "predict", "predict, dose not said"),
    *("design", "design, of one", "trajectory"),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_what_a_verb_writes_the_others_read(model, written, name):
    made = ad.read_h5ad(written[name])
    table = SCHEMA.table(made)
    assert set(table["cell_type"].dropna()) <= {"T", "B"}
    assert set(table["tissue"].dropna()) <= {"blood", "node"}
    counted = made.copy()
    if "counts" in made.layers:
        counted.X = made.layers["counts"]
    assert model.denoise(counted).n_obs == made.n_obs
    control = SCHEMA.is_control(table)
    if control.any():
        again = model.predict(counted[control].copy(), {"drug": "B", "dose": 1})
        assert again.n_obs == control.sum()


@pytest.mark.filterwarnings("ignore")
def test_designed_and_predicted_cells_are_attributed(model, written):
    for name in ("design", "design, of one", "predict", "predict, dose not said"):
        ranked = model.attribute(ad.read_h5ad(written[name]))
        assert len(ranked) > 0


@pytest.mark.filterwarnings("ignore")
def test_cells_keep_the_time_they_had_and_a_dose_that_is_not_said_is_not_known(model):
    control = cells()[cells().obs["drug"] == "none"][:60].copy()
    made = SCHEMA.table(model.predict(control, {"drug": "A"}))
    assert (made["time"].to_numpy() == control.obs["hours"].to_numpy()).all()
    assert made["dose"].isna().all()
    assert (SCHEMA.table(model.predict(control, {"drug": "A", "time": 24}))["time"] == 24).all()


@pytest.mark.filterwarnings("ignore")
def test_cells_of_several_predictions_have_names_of_their_own(model):
    control = cells()[cells().obs["drug"] == "none"][:2].copy()
    control.obs_names = ["a", "a-1"]
    made = model.predict(control, [{"drug": "A"}, {"drug": "B"}])
    assert made.obs_names.is_unique
    assert list(made.obs_names[:2]) == ["a", "a-1"]
