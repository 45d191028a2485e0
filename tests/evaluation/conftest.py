"""A small screen with planted truth: two cell types, a treatment that changes known genes, counts."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scidiff.data.schema import Schema

N_GENES = 80
SCHEMA = Schema(perturbation="condition", control="control", context="cell_type")


def draw_cells(conditions: pd.DataFrame, seed: int) -> ad.AnnData:
    """Return fresh cells of the planted populations, multinomial with varying depth."""
    truth = np.random.default_rng(99)
    base = np.exp(truth.normal(size=N_GENES))
    of_type = {"B": np.ones(N_GENES), "T": np.exp(truth.normal(size=N_GENES))}
    drug = np.ones(N_GENES)
    drug[:15] = np.exp(truth.choice([-1, 1], 15) * 1.2)
    of_condition = {"control": np.ones(N_GENES), "drug": drug}
    rng = np.random.default_rng(seed)
    rates = [base * of_type[t] * of_condition[c] for c, t in conditions[["condition", "cell_type"]].to_numpy()]
    depths = rng.integers(150, 600, len(conditions))
    counts = [rng.multinomial(depth, rate / rate.sum()) for depth, rate in zip(depths, rates, strict=True)]
    obs = conditions.set_axis([f"cell{seed}-{i}" for i in range(len(conditions))], axis=0)
    genes = pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)])
    return ad.AnnData(sp.csr_matrix(np.array(counts, dtype=np.float32)), obs=obs, var=genes)


def conditions_of(n: int, seed: int, condition: str | None = None) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    drawn = rng.choice(["control", "drug"], n) if condition is None else np.full(n, condition)
    return pd.DataFrame({"condition": drawn, "cell_type": rng.choice(["B", "T"], n, p=[0.3, 0.7])})


def fresh(n: int, seed: int, condition: str | None = None) -> ad.AnnData:
    return draw_cells(conditions_of(n, seed, condition), seed)


@pytest.fixture(scope="session")
def schema() -> Schema:
    return SCHEMA


@pytest.fixture(scope="session")
def cells():
    """Function that draws ``n`` fresh cells with a seed, of one condition or of all."""
    return fresh
