"""Reference cells: how many of each condition, which of them agree with a condition, and that they are kept whole."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.data.reference import AT_MOST, PER_CONDITION, Reference


def population(sizes: dict[tuple[str, str | None], int]) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """Cells that bear their number as the count of the first gene."""
    rows = [key for key, n in sizes.items() for _ in range(n)]
    table = pd.DataFrame(rows, columns=["cell_type", "perturbation"], dtype=object)
    table["dose"] = np.where(table["perturbation"] == "A", 0.5, np.nan)
    x = np.zeros((len(rows), 3), dtype=np.float32)
    x[:, 0] = np.arange(1, len(rows) + 1)
    return sparse.csr_matrix(x), table


SIZES = {("B", "A"): 700, ("B", None): 30, **{(f"T{i}", "A"): 60 for i in range(10)}}


def numbers(reference: Reference) -> np.ndarray:
    return reference.x[:, [0]].toarray().ravel().astype(int) - 1


def test_small_conditions_are_whole_and_large_ones_sampled():
    x, table = population(SIZES)
    reference = Reference.of(x, table, seed=0)
    sizes = reference.conditions.groupby(["cell_type", "perturbation"], dropna=False).size()
    assert sizes["B", "A"] == PER_CONDITION
    assert sizes.drop(("B", "A")).tolist() == [30] + [60] * 10
    kept = numbers(reference)
    assert len(set(kept)) == len(reference)
    pd.testing.assert_frame_equal(reference.conditions, table.iloc[kept].reset_index(drop=True))
    assert kept[kept < 700].mean() == np.clip(kept[kept < 700].mean(), 300, 400)  # from all over
    same, other = (Reference.of(x, table, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(numbers(same), kept)
    assert set(numbers(other)) != set(kept)


def test_few_conditions_have_more_cells_and_there_is_an_end():
    x, table = population({("B", "A"): 3000})
    assert len(Reference.of(x, table, seed=0)) == 2000
    assert len(Reference.of(x, table[[]], seed=0)) == 2000  # an atlas without conditions
    x, table = population({(f"T{i}", "A"): 210 for i in range(110)})
    reference = Reference.of(x, table, seed=0)
    assert len(reference) == AT_MOST
    sizes = reference.conditions.groupby("cell_type").size()
    assert sizes.max() - sizes.min() <= 1


def test_conditions_agree_where_they_say_something():
    x, table = population(SIZES)
    reference = Reference.of(x, table, seed=0)
    assert reference.where({"cell_type": None, "dose": np.nan}).all()
    assert reference.where({"cell_type": "B"}).sum() == PER_CONDITION + 30
    assert reference.where({"cell_type": "B", "perturbation": "A"}).sum() == PER_CONDITION
    assert reference.where({"dose": 0.5}).sum() == PER_CONDITION + 600
    assert not reference.where({"cell_type": "C"}).any()


def test_a_file_holds_it_all():
    x, table = population(SIZES)
    for conditions in (table, table[[]]):
        reference = Reference.of(x, conditions, seed=0)
        arrays, about = reference.to_arrays()
        again = Reference.from_arrays(arrays, json.loads(json.dumps(about)), n_genes=3)
        assert (again.x != reference.x).nnz == 0
        assert len(again) == len(reference)
        for asked in ({"cell_type": "T3"}, {"dose": 0.5}, {"perturbation": None}):
            np.testing.assert_array_equal(again.where(asked), reference.where(asked))
        assert again.conditions.isna().equals(reference.conditions.isna())
