"""States are found again where they were planted, whatever patients and treatments do to whole populations."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from scidiff.data.schema import Schema
from scidiff.data.states import find_states
from scidiff.errors import InputError

SCHEMA = Schema(perturbation="drug", control="none", context="patient")


def tumours(n_states: int = 3, n: int = 120, seed: int = 0) -> ad.AnnData:
    """Return counts of four patients, half of the cells treated; patients and the drug move all states alike."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        [(f"p{p}", drug) for p in range(4) for drug in ("none", "A") for _ in range(n)], columns=["patient", "drug"]
    )
    obs["true"] = rng.choice(n_states, len(obs), p=np.arange(n_states, 0, -1) / np.arange(1, n_states + 1).sum())
    obs.index = [f"cell{i}" for i in range(len(obs))]
    patient, drug, state = rng.normal(size=(4, 80)), rng.normal(size=80), 1.2 * rng.normal(size=(n_states, 80))
    log_rate = patient[obs["patient"].str[1].astype(int)] + np.outer(obs["drug"] == "A", drug) + state[obs["true"]]
    rate = np.exp(log_rate)
    counts = rng.poisson(400 * rate / rate.sum(axis=1, keepdims=True))
    return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs)


def test_planted_states_are_found_in_every_patient_and_arm():
    adata = tumours()
    found = find_states(adata, SCHEMA)
    assert sorted(found.unique()) == ["state 1", "state 2", "state 3"]
    for _, cells in adata.obs.groupby(["patient", "drug"]):
        assert adjusted_rand_score(cells["true"], found[cells.index]) > 0.85
    control = adata.obs["drug"] == "none"
    assert found[control].value_counts().index.tolist() == ["state 1", "state 2", "state 3"]  # the largest first


def test_states_do_not_depend_on_treated_cells():
    adata = tumours(seed=1)
    only = adata[(adata.obs["drug"] == "none").to_numpy()].copy()
    pd.testing.assert_series_equal(find_states(only, SCHEMA), find_states(adata, SCHEMA)[only.obs_names])


def test_too_few_cells_are_refused():
    with pytest.raises(InputError, match="30 control cells are too few"):
        find_states(tumours()[:30].copy(), SCHEMA)
    with pytest.raises(InputError, match="from 2 on"):
        find_states(tumours(), SCHEMA, at_most=1)
