"""What a matrix is, what is refused, and that sparse stays sparse and the caller's object untouched."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scidiff.data.cells import COUNT_LAYERS, Cells, matrix_scale, read_cells
from scidiff.data.checking import check, guess_schema
from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError
from scidiff.files import read_h5ad
from scidiff.streaming import CellFile

SCHEMA = Schema(perturbation="condition", control="control", context="cell_type")


def counts(n_cells: int = 40, n_genes: int = 30) -> np.ndarray:
    x = np.random.default_rng(0).poisson(1.5, (n_cells, n_genes))
    x[:, 0] += 1  # no empty cells
    return x


def data(x=None, **layers) -> ad.AnnData:
    x = sparse.csr_matrix(counts(), dtype=np.float32) if x is None else x
    n = x.shape[0]
    obs = pd.DataFrame(
        {"condition": np.tile(["control", "IFN"], n)[:n], "cell_type": np.repeat(["T", "B"], (n + 1) // 2)[:n]},
        index=[f"cell{i}" for i in range(n)],
    )
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(x.shape[1])]), layers=layers)


def normalised(x: np.ndarray) -> np.ndarray:
    return np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))


# ---- what it is -----------------------------------------------------------------------------------------------------

FORMS = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "coo": sparse.coo_matrix,
    "csr_array": sparse.csr_array,
    "dense": np.asarray,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint16"])
def test_counts_in_any_form(form, dtype):
    stored = FORMS[form](counts().astype(dtype))
    assert matrix_scale(stored if form != "coo" else stored.tocsr()) == "counts"
    if form == "coo":
        stored = stored.tocsr()  # AnnData holds no coo
    cells = read_cells(data(stored), SCHEMA)
    assert isinstance(cells.x, sparse.csr_matrix)
    assert cells.x.dtype == np.float32
    assert cells.scale == "counts"
    np.testing.assert_array_equal(cells.x.toarray(), counts())


def test_scales_are_told_apart():
    x = counts().astype(float)
    assert matrix_scale(x) == "counts"
    assert matrix_scale(normalised(x)) == "log1p"
    assert matrix_scale(normalised(x) - normalised(x).mean(axis=0)) == "scaled"
    assert matrix_scale(np.expm1(normalised(x))) == "other"
    assert matrix_scale(sparse.csr_matrix(normalised(x))) == "log1p"


def test_counts_that_lost_precision_become_integers_again():
    x = counts().astype(np.float32)
    total = x.sum(axis=1, keepdims=True)
    blurred = np.expm1(np.log1p(x / total * 1e4)) / 1e4 * total
    assert not np.array_equal(blurred, x)
    np.testing.assert_array_equal(read_cells(data(blurred), SCHEMA).x.toarray(), x)


def test_log_expression_is_kept_as_it_came():
    x = normalised(counts()).astype(np.float32)
    dense = read_cells(data(x), SCHEMA)
    assert dense.scale == "log1p"
    assert isinstance(dense.x, np.ndarray)
    thin = read_cells(data(sparse.csr_matrix(x)), SCHEMA)
    assert isinstance(thin.x, sparse.csr_matrix)
    np.testing.assert_array_equal(thin.x.toarray(), dense.x)


# ---- where it is ----------------------------------------------------------------------------------------------------


def test_counts_are_sought_in_layer_then_x_then_raw():
    x = sparse.csr_matrix(counts(), dtype=np.float32)
    logged = sparse.csr_matrix(normalised(counts()), dtype=np.float32)
    both = data(logged, counts=x)
    np.testing.assert_array_equal(read_cells(both, SCHEMA).x.toarray(), counts())
    assert read_cells(both, SCHEMA, layer="X").scale == "log1p"

    kept = data(x)
    kept.raw = kept.copy()
    kept.X = logged
    kept = kept[:, 5:9].copy()  # raw keeps all genes
    with pytest.warns(DataWarning, match="counts were taken from raw"):
        cells = read_cells(kept, SCHEMA)
    assert cells.genes == [f"gene{i}" for i in range(30)]
    np.testing.assert_array_equal(cells.x.toarray(), counts())


@pytest.mark.parametrize("name", COUNT_LAYERS)
def test_counts_are_found_in_layers_by_other_names(name, tmp_path):
    adata = data(sparse.csr_matrix(normalised(counts()), dtype=np.float32), **{name: sparse.csr_matrix(counts())})
    with pytest.warns(DataWarning, match=f"counts were taken from layers..{name}"):
        np.testing.assert_array_equal(read_cells(adata, SCHEMA).x.toarray(), counts())
    assert check(adata).scale == "counts"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with CellFile(tmp_path / "cells.h5ad") as file, pytest.warns(DataWarning, match="taken from layers"):
        np.testing.assert_array_equal(file.choose(None)[:].toarray(), counts())
    adata.layers[name] = adata.X * 0.5
    assert read_cells(adata, SCHEMA).scale == "log1p"


def test_a_layer_that_nobody_would_guess_is_named_by_the_user():
    adata = data(sparse.csr_matrix(normalised(counts()), dtype=np.float32), mine=sparse.csr_matrix(counts()))
    found = check(adata)
    assert found.scale == "log1p"
    assert "if one of the layers holds counts, name it: 'mine'" in str(found)
    told = check(adata, layer="mine")
    assert told.scale == "counts"
    assert "layers['mine']: counts (sparse int64, used)" in str(told)


def test_log_expression_behind_a_scaled_x():
    logged = normalised(counts()).astype(np.float32)
    adata = data(logged)
    adata.raw = adata.copy()
    adata.X = logged - logged.mean(axis=0)
    with pytest.warns(DataWarning, match="X is not usable; log expression was taken from raw"):
        assert read_cells(adata, SCHEMA).scale == "log1p"


@pytest.mark.parametrize("stride", [None, 3])
def test_backed_files_and_views(tmp_path, stride):
    data().write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    part = backed if stride is None else backed[::stride]
    np.testing.assert_array_equal(read_cells(part, SCHEMA).x.toarray(), counts()[::stride])
    np.testing.assert_array_equal(read_cells(data()[::stride], SCHEMA).x.toarray(), counts()[::stride])


def test_callers_matrix_is_never_written():
    x = sparse.csr_matrix(counts(), dtype=np.float32)
    x.data[::2] += 1e-4  # needs rounding
    x = sparse.csr_matrix((np.r_[x.data, 0], np.r_[x.indices, 3], np.r_[x.indptr[:-1], x.nnz + 1]), shape=x.shape)
    adata = data(x)
    before = [array.copy() for array in (adata.X.data, adata.X.indices, adata.X.indptr)]
    cells = read_cells(adata, SCHEMA)
    assert cells.x.has_canonical_format
    assert (cells.x.data == np.rint(cells.x.data)).all()
    assert (cells.x.data != 0).all()
    for array, old in zip((adata.X.data, adata.X.indices, adata.X.indptr), before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_a_wide_sparse_matrix_is_never_made_dense():
    at = np.arange(2000)
    adata = ad.AnnData(
        sparse.csr_matrix((np.ones(2000, np.float32), (at, at * 20)), shape=(2000, 50_000))
    )  # 400 MB dense
    import tracemalloc

    tracemalloc.start()
    read_cells(adata)
    check(adata)
    assert tracemalloc.get_traced_memory()[1] < 40e6  # names and conditions; a mask of cells x genes has 100e6
    tracemalloc.stop()


# ---- genes ----------------------------------------------------------------------------------------------------------


def test_genes_are_aligned_by_name():
    genes = [f"gene{i}" for i in (7, 3, 20, 0)]
    cells = read_cells(data(), SCHEMA, genes=genes)
    assert cells.genes == genes
    np.testing.assert_array_equal(cells.x.toarray(), counts()[:, [7, 3, 20, 0]])


@pytest.mark.parametrize("form", [sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize("scale", [np.asarray, normalised])
def test_few_missing_genes_are_zero_with_a_warning(form, scale):
    genes = ["new", *(f"gene{i}" for i in range(9, -1, -1))]
    x = scale(counts().astype(np.float32))
    with pytest.warns(DataWarning, match="1 of 11 genes are not in the data: 'new'; they are filled with zeros"):
        cells = read_cells(data(form(x)), SCHEMA, genes=genes)
    got = cells.x.toarray() if sparse.issparse(cells.x) else cells.x
    np.testing.assert_allclose(got, np.c_[np.zeros(40), x[:, 9::-1]], rtol=1e-6)


def test_too_few_genes_say_what_else_would_match():
    genes = [f"GENE{i}" for i in range(30)]
    with pytest.raises(InputError, match=r"30 of 30 genes are not in the data: 'GENE0', .* same species"):
        read_cells(data(), SCHEMA, genes=genes)
    adata = data()
    adata.var["symbol"] = [f"S{i}" for i in range(30)]
    with pytest.raises(InputError, match="100% match var column 'symbol'"):
        read_cells(adata, SCHEMA, genes=[f"S{i}" for i in range(30)])
    with pytest.raises(InputError, match="at least 80% are needed"):
        read_cells(data(), SCHEMA, genes=["gene0", "a", "b"])
    with pytest.raises(InputError, match="more than once: 'gene1'"):
        read_cells(data(), SCHEMA, genes=["gene1", "gene1"])


# ---- what is refused ------------------------------------------------------------------------------------------------


def _broken(kind: str) -> ad.AnnData:
    x = sparse.csr_matrix(counts(), dtype=np.float32)
    adata = data(x)
    if kind == "nan":
        adata.X[2, 0] = np.nan
    elif kind == "inf":
        adata.X = adata.X.toarray()
        adata.X[3, 4] = np.inf
    elif kind == "negative":
        adata.X[0, 0] = -1
    elif kind == "scaled":
        adata.X = normalised(counts()) - 1
    elif kind == "cp10k":
        adata.X = np.expm1(normalised(counts()))
    elif kind == "log in counts layer":
        adata.layers["counts"] = normalised(counts())
    elif kind == "no cells":
        adata = adata[:0].copy()
    elif kind == "no genes":
        adata = adata[:, :0].copy()
    elif kind == "no matrix":
        adata.X = None
    elif kind == "double genes":
        adata.var_names = ["gene0", *adata.var_names[1:-1], "gene0"]
    elif kind == "double cells":
        adata.obs_names = ["cell0", *adata.obs_names[1:-1], "cell0"]
    elif kind == "empty cell":
        x = counts()
        x[5] = 0
        adata.X = sparse.csr_matrix(x)
    elif kind == "no column":
        del adata.obs["cell_type"]
    return adata


BROKEN = {
    "nan": "X has the value nan (first in cell 'cell2', gene 'gene0')",
    "inf": "X has the value inf (first in cell 'cell3', gene 'gene4')",
    "negative": "X has negative values (lowest -1)",
    "scaled": "was centred or scaled",
    "cp10k": "neither counts nor logs",
    "log in counts layer": "layers['counts'] has fractions",
    "no cells": "empty: 0 cells x 30 genes",
    "no genes": "empty: 40 cells x 0 genes",
    "no matrix": "has no matrix",
    "double genes": "gene names occur more than once: 'gene0'",
    "double cells": "cell names occur more than once: 'cell0'",
    "empty cell": "1 of 40 cells have only zeros in X: 'cell5'",
    "no column": "no obs column 'cell_type'",
}


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("kind", BROKEN)
def test_bad_data_is_refused_in_one_line_and_found_by_check(kind):
    adata = _broken(kind)
    with pytest.raises(InputError) as caught:
        read_cells(adata, SCHEMA)
    assert BROKEN[kind] in str(caught.value)
    assert "\n" not in str(caught.value)
    found = check(adata, SCHEMA)
    assert not found.ok
    assert any(BROKEN[kind] in finding.text for finding in found.findings if finding.level == "problem")


@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_a_sparse_matrix_of_a_damaged_file(tmp_path, part):
    import h5py

    data().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        del file[f"X/{part}"]
        file[f"X/{part}"] = h5py.Empty("f")
        file[f"X/{part}"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with pytest.raises(InputError, match=r"X is no sound sparse matrix|cannot be read"):
        read_cells(read_h5ad(tmp_path / "a.h5ad"))


def test_wrong_objects_and_layers():
    with pytest.raises(InputError, match="expected an AnnData, got ndarray"):
        read_cells(counts(), SCHEMA)
    with pytest.raises(InputError, match="no layer 'count'; nearest: 'counts'"):
        read_cells(data(counts=counts()), SCHEMA, layer="count")
    with pytest.raises(InputError, match="2 genes"):
        Cells(x=counts(), genes=["a", "b"], conditions=pd.DataFrame(index=range(40)), scale="counts")


# ---- check ----------------------------------------------------------------------------------------------------------


def test_check_of_good_data():
    found = check(data())
    assert found.ok
    assert found.schema == SCHEMA
    assert found.scale == "counts"
    total = counts().sum(axis=1)
    assert found.depth["median_molecules"] == np.median(total)
    assert found.depth["zero_fraction"] == pytest.approx((counts() == 0).mean())
    assert json.loads(json.dumps(found.to_dict()))["schema"]["control"] == "control"
    assert "condition" in str(found)


def test_check_lists_all_problems_and_weak_spots():
    adata = data()
    adata.obs_names = ["cell0", *adata.obs_names[1:-1], "cell0"]
    x = counts()
    x[5] = 0
    adata.X = sparse.csr_matrix(x)
    adata.obs["cell_type"] = np.where(adata.obs["condition"] == "control", "T", "B")
    found = check(adata, Schema(perturbation="condition", control="ctrl", context="cell_type"))
    problems = [finding.text for finding in found.findings if finding.level == "problem"]
    assert len(problems) == 3
    notes = [finding.text for finding in check(adata, SCHEMA).findings if finding.level == "note"]
    assert "no control cells, so no effects, for 1 value of cell_type: 'B'" in notes


@pytest.mark.parametrize(
    ("columns", "roles"),
    [
        ({"stim": ["vehicle (DMSO)", "drug", "drug", "drug"]}, {"perturbation": "stim", "control": "vehicle (DMSO)"}),
        ({"target": ["non-targeting", "NT5E", "A", "B"]}, {"perturbation": "target", "control": "non-targeting"}),
        ({"target": ["NT5E", "CTRL1", "A", "B"]}, {}),
        ({"Cell Type": ["T", "B", "T", "B"]}, {"context": ("Cell Type",)}),
        ({"cell_type": ["T"] * 4}, {}),
        ({"time": ["6h", "24h", "2 d", "6h"]}, {"time": "time"}),
        ({"time": ["early", "late", "late", "early"]}, {}),
        ({"dose": ["1", "1+1", "1", "1"]}, {}),
        ({"dose": ["10 uM", "0", "100 nM", "0"]}, {"dose": "dose"}),
        (
            {"condition": ["ctrl", "X", "ctrl", "X"], "sample": ["s1", "s2", "s1", "s2"]},
            {"perturbation": "condition", "control": "ctrl"},  # the sample is the condition again
        ),
        (
            {"condition": ["ctrl", "X", "ctrl", "X"], "sample": ["s1", "s1", "s2", "s2"]},
            {"perturbation": "condition", "control": "ctrl", "batch": "sample"},
        ),
    ],
)
def test_guessed_roles(columns, roles):
    assert guess_schema(pd.DataFrame(columns)) == Schema(**roles)
