"""Cells denoised in runs are those denoised at once, whatever the file; and a file is judged before any work on it."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scidiff as sd
from scidiff import streaming
from scidiff.cli import main

SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context="cell_type")
SMALL = {"width": 8, "n_blocks": 1, "config": sd.TrainConfig(steps=3, batch_size=32)}


def cells(n: int = 700, n_genes: int = 12, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical(np.resize(["DMSO", "A", "B"], n)),
            "cell_type": np.resize(["T", "T", "B", "B"], n),
            "age": rng.normal(50, 10, n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    x = sparse.csr_matrix(rng.poisson(np.linspace(1, 4, n_genes), (n, n_genes)), dtype=np.float32)
    return ad.AnnData(x, obs=obs, var=pd.DataFrame({"length": 1.0}, index=[f"g{i}" for i in range(n_genes)]))


def expression(n: int = 700) -> ad.AnnData:
    adata = cells(n)
    adata.X = np.log2(adata.X.toarray() + 1.5).astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def model() -> sd.ScIDiff:
    return sd.ScIDiff.fit(cells(200), SCHEMA, **SMALL)


@pytest.fixture(scope="module")
def logged() -> sd.ScIDiff:
    return sd.ScIDiff.fit(expression(200), SCHEMA, **SMALL)


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    monkeypatch.setattr(streaming, "RUN", 256)


def write(adata: ad.AnnData, path: Path) -> Path:
    if path.suffix == ".h5ad":
        adata.write_h5ad(path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on versions of the format
            adata.write_zarr(path)
    return path


def read(path: Path) -> ad.AnnData:
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def dense(x: sparse.csr_matrix | np.ndarray) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else x


def assert_same(one: ad.AnnData, other: ad.AnnData) -> None:
    """Equal to the last bit, also in what is sparse."""
    assert set(one.layers) == set(other.layers)
    for x, y in [(one.X, other.X), *((one.layers[name], other.layers[name]) for name in one.layers)]:
        assert sparse.issparse(x) == sparse.issparse(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(dense(x), dense(y))
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)
    assert one.uns["scidiff"] == other.uns["scidiff"]


def check_same(model: sd.ScIDiff, adata: ad.AnnData, folder: Path, source: str, out: str, **options: object) -> None:
    """Denoise at once and in runs; compare the two files."""
    head = model.denoise_file(write(adata, folder / source), folder / out, **options)
    whole = read(write(model.denoise(read(folder / source), **options), folder / f"whole{Path(out).suffix}"))
    assert_same(read(folder / out), whole)
    assert head.shape == whole.shape


# ---- the same as at once --------------------------------------------------------------------------------------------

EVERYTHING = {"scales": ["log1p", "rate", "expected_counts", "expected_log"], "draws": 2, "seed": 3}


@pytest.mark.parametrize(
    ("source", "out"),
    [("in.h5ad", "out.h5ad"), ("in.zarr", "out.zarr"), ("in.h5ad", "out.zarr"), ("in.zarr", "out.h5ad")],
)
def test_runs_give_what_one_call_gives(model, tmp_path, source, out):
    check_same(model, cells(), tmp_path, source, out, **EVERYTHING)


@pytest.mark.parametrize("run", [256, 512, 1024])
def test_the_length_of_runs_does_not_matter(model, tmp_path, monkeypatch, run):
    monkeypatch.setattr(streaming, "RUN", run)
    check_same(model, cells(), tmp_path, "in.h5ad", "out.h5ad", depth=np.linspace(100, 200, 700).round(), **EVERYTHING)


def test_genes_and_labels_are_treated_alike(model, tmp_path):
    adata = cells(600)[:, ::-1].copy()
    adata.obs["cell_type"] = np.resize(["T", "B", "NK"], 600)
    with pytest.warns(sd.DataWarning) as told:
        check_same(model, adata, tmp_path, "in.h5ad", "out.h5ad", genes=["g3", "g0"], draws=1)
    assert len({str(one.message) for one in told}) == 1  # with the same number of cells
    check_same(model, adata, tmp_path, "in.h5ad", "out2.h5ad", labels=False)


@pytest.mark.parametrize("as_sparse", [False, True])
def test_log_expression(logged, tmp_path, as_sparse):
    adata = expression()
    if as_sparse:
        adata.X = sparse.csr_matrix(adata.X)
    else:
        adata.X[256:512] = np.rint(adata.X[256:512])  # a run that looks like counts
    check_same(logged, adata, tmp_path, "in.h5ad", "out.h5ad")


def counts_in_a_layer(adata: ad.AnnData) -> None:
    adata.layers["counts"] = adata.X
    adata.X = adata.X.toarray() - 1


def counts_in_raw(adata: ad.AnnData) -> None:
    """X looks like counts for as long as one run."""
    adata.raw = adata.copy()
    x = adata.X.toarray()
    x[600:] += 0.5
    adata.X = x


def dense_integers(adata: ad.AnnData) -> None:
    adata.X = adata.X.toarray().astype(np.int32)


def by_genes(adata: ad.AnnData) -> None:
    adata.X = adata.X.tocsc()


@pytest.mark.parametrize(
    ("edit", "warning"),
    [
        (counts_in_a_layer, None),
        (dense_integers, None),
        (counts_in_raw, "counts were taken from raw"),
        (by_genes, "stored by genes"),
    ],
)
def test_counts_are_found_as_in_memory(model, tmp_path, edit, warning):
    adata = cells()
    edit(adata)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", sd.DataWarning)
        check_same(model, adata, tmp_path, "in.h5ad", "out.h5ad", draws=1)
    told = [str(one.message) for one in told if issubclass(one.category, sd.DataWarning)]
    assert all(warning in text for text in told) if warning else not told
    assert bool(told) == bool(warning)


# ---- what is wrong is said first, in the same words ------------------------------------------------------------------


def late(adata: ad.AnnData, value: float) -> None:
    """A value in the last run."""
    x = adata.X.toarray()
    x[650, 2] = value
    adata.X = x


def without_molecules(adata: ad.AnnData) -> None:
    x = adata.X.toarray()
    x[[3, 300, 690]] = 0
    adata.X = sparse.csr_matrix(x)


def other_genes(adata: ad.AnnData) -> None:
    adata.var_names = [f"h{i}" for i in range(12)]


def double_genes(adata: ad.AnnData) -> None:
    adata.var_names = ["g0", "g0", *adata.var_names[2:]]


def double_cells(adata: ad.AnnData) -> None:
    adata.obs_names = ["cell1", "cell1", *adata.obs_names[2:]]


@pytest.mark.filterwarnings("ignore:.*not unique:UserWarning")
@pytest.mark.parametrize(
    "edit",
    [
        lambda adata: late(adata, np.nan),
        lambda adata: late(adata, -1),
        lambda adata: late(adata, 0.5),
        lambda adata: late(adata, 1000.5),
        without_molecules,
        other_genes,
        double_genes,
        double_cells,
        lambda adata: setattr(adata, "X", None),
    ],
    ids=["nan", "negative", "log", "fractions", "without_molecules", "other_genes", "genes", "cells", "no_matrix"],
)
def test_errors_are_those_of_the_cells_in_memory(model, tmp_path, edit):
    adata = cells()
    edit(adata)
    source = write(adata, tmp_path / "in.h5ad")
    with pytest.raises(sd.InputError) as at_once:
        model.denoise(ad.read_h5ad(source))
    with pytest.raises(sd.InputError) as in_runs:
        model.denoise_file(source, tmp_path / "out.h5ad")
    assert str(in_runs.value) == str(at_once.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5ad"]


def test_cells_without_the_models_genes_are_counted_in_the_whole_file(model, tmp_path):
    adata = cells()
    x = sparse.hstack([adata.X, np.ones((700, 1))]).tolil()
    x[[3, 300, 690], :12] = 0
    wide = ad.AnnData(x.tocsr(), obs=adata.obs, var=pd.DataFrame(index=[*adata.var_names, "other"]))
    message = "3 cells have only zeros in the model's genes: 'cell3', 'cell300', 'cell690'; leave them out"
    with pytest.raises(sd.InputError, match=message):
        model.denoise_file(write(wide, tmp_path / "in.h5ad"), tmp_path / "out.h5ad")


@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_what_is_interrupted_leaves_nothing(model, tmp_path, name, stop):
    source = write(cells(), tmp_path / "in.h5ad")

    def interrupt(done: int, total: int) -> None:
        assert total == 700
        if done > 256:
            raise stop

    with pytest.raises(stop):
        model.denoise_file(source, tmp_path / name, on_cells=interrupt)
    assert list(tmp_path.iterdir()) == [source]


def test_an_older_result_stays_until_the_new_one_is_whole(model, tmp_path):
    source, out = write(cells(), tmp_path / "in.h5ad"), tmp_path / "out.h5ad"
    out.write_text("older")

    def look(done: int, total: int) -> None:
        assert out.read_text() == "older"

    model.denoise_file(source, out, on_cells=look)
    assert read(out).n_obs == 700


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_cells(tmp_path):
    n_genes, peaks = 400, []
    broad = sd.ScIDiff.fit(cells(100, n_genes), SCHEMA, **SMALL)
    for n in (512, 5120):
        adata = cells(512, n_genes)
        source = write(ad.concat([adata] * (n // 512), index_unique="-"), tmp_path / f"{n}.h5ad")
        tracemalloc.start()
        broad.denoise_file(source, tmp_path / "out.h5ad", labels=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    whole = 5120 * n_genes * 4  # a dense matrix, 8 MB
    assert peaks[1] - peaks[0] < 0.3 * whole  # obs, and a few numbers per cell


# ---- the command ----------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture, *words: object) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_the_command_does_what_python_does(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("model")
    write(cells(300), Path("in.h5ad"))
    Path("genes.txt").write_text("g4\ng2\n")
    words = ["--genes", "genes.txt", "--scale", "rate", "--scale", "expected_counts", "--draws", 1, "--depth", 90]
    said = run(capsys, "denoise", "model", "in.h5ad", "--out", "out.h5ad", *words, "--no-labels", "--seed", 5, "--json")
    options = {"scales": ["rate", "expected_counts"], "draws": 1, "depth": 90, "labels": False}
    whole = model.denoise(read(Path("in.h5ad")), genes=["g4", "g2"], seed=5, **options)
    assert_same(read(Path("out.h5ad")), read(write(whole, Path("whole.h5ad"))))
    told = json.loads(said)
    assert told["n_cells"] == 300
    assert set(told["scales"]) == {"X", *whole.layers}


def test_the_command_shows_what_it_wrote(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("model")
    write(cells(300), Path("in.h5ad"))
    said = run(capsys, "denoise", "model", "in.h5ad", "--out", "out.zarr").splitlines()
    assert said[0] == "300 cells x 12 genes written to out.zarr"
    assert "denoised         log1p(CP10k) of the posterior mean rate" in said
    assert run(capsys, "denoise", "model", "in.h5ad", "--out", "other.h5ad", "--quiet") == ""


def test_shares_joined_are_the_whole(model, tmp_path):
    """Three processes on one file: the cells of their files, one after the other, are those of one process."""
    from scidiff.shares import Share

    source = write(cells(), tmp_path / "in.h5ad")
    model.denoise_file(source, tmp_path / "whole.h5ad", draws=1)
    shares = [Share(i + 1, 3) for i in range(3)]
    for share in shares:
        model.denoise_file(source, share.file(tmp_path / "out.h5ad"), share=share, draws=1)
    parts = [ad.read_h5ad(share.file(tmp_path / "out.h5ad")) for share in shares]
    assert [len(part) for part in parts] == [256, 256, 188]
    whole, joined = ad.read_h5ad(tmp_path / "whole.h5ad"), ad.concat(parts)
    assert list(joined.obs_names) == list(whole.obs_names)
    for layer in ("denoised", "draw_1"):
        np.testing.assert_array_equal(dense(joined.layers[layer]), dense(whole.layers[layer]))
    with pytest.raises(sd.InputError, match=r"share 1/4 is empty: of 3 runs"):
        model.denoise_file(source, tmp_path / "none.h5ad", share=Share(1, 4))


def test_processes_of_a_launcher_write_files_of_their_own(model, tmp_path, monkeypatch):
    """Predict by context, generate by number; the cells of all shares are those asked for."""
    model.save(tmp_path / "model")
    source = write(cells(), tmp_path / "in.h5ad")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        at = ["--quiet", "--out"]
        assert main(["generate", str(tmp_path / "model"), "--n", "5", *at, str(tmp_path / "new.h5ad")]) == 0
        asked = ["--to", "perturbation=A", *at, str(tmp_path / "predicted.h5ad")]
        assert main(["predict", str(tmp_path / "model"), str(source), *asked]) == 0
    new, predicted = (
        [ad.read_h5ad(tmp_path / f"{name}.{i}-of-2.h5ad") for i in (1, 2)] for name in ("new", "predicted")
    )
    assert [len(part) for part in new] == [2, 3]
    assert dense(new[0].layers["counts"])[0].tolist() != dense(new[1].layers["counts"])[0].tolist()
    assert [set(part.obs["cell_type"]) for part in predicted] == [{"B"}, {"T"}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.DataWarning)
        whole = model.predict(cells(), {"drug": "A"})  # in one process: the same cells
    together = ad.concat(predicted)[whole.obs_names]
    np.testing.assert_array_equal(dense(together.layers["counts"]), dense(whole.layers["counts"]))


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_half_precision_keeps_three_digits_and_counts(model, tmp_path, suffix):
    source, out = write(cells(), tmp_path / "in.h5ad"), tmp_path / f"out{suffix}"
    whole = model.denoise(cells(), draws=1)
    model.denoise_file(source, out, half=True, draws=1)
    made = read(out)
    assert made.layers["denoised"].dtype == np.float16
    np.testing.assert_allclose(made.layers["denoised"].astype(float), whole.layers["denoised"], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(dense(made.layers["draw_1"]), dense(whole.layers["draw_1"]))
