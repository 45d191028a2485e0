"""A model trained on a file: every cell once a pass, whatever stops it, and no worse than one trained in memory."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from anndata.io import write_elem
from scipy import sparse

import scidiff as sd
from scidiff import fitting
from scidiff.cli import main
from scidiff.streaming import CellFile
from scidiff.training import StoredBatches, disk

SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context="cell_type")
SMALL = {"width": 16, "n_blocks": 1, "config": sd.TrainConfig(steps=60, batch_size=64, evaluate_every=20)}


class Made:
    """Counts that are made when they are asked for, as if read; remembers how many cells were."""

    def __init__(self, n_cells: int, n_genes: int = 20) -> None:
        self.n_cells, self.n_genes, self.read = n_cells, n_genes, 0
        self.n_values = 8 * n_cells

    def __len__(self) -> int:
        return self.n_cells

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        made = [np.random.default_rng(row).poisson(0.8, self.n_genes) for row in range(rows.start, rows.stop)]
        self.read += len(made)
        return sparse.csr_matrix(np.stack(made).astype(np.float32))


@pytest.fixture
def short_blocks(monkeypatch):
    monkeypatch.setattr(disk, "BLOCK_CELLS", (8, 8))
    monkeypatch.setattr(disk, "BUFFER", 3)


def stream(batches: StoredBatches, n: int, steps: range, rank: int = 0) -> tuple[np.ndarray, torch.Tensor]:
    drawn = [batches.draw(n, step=step, rank=rank, generator=torch.Generator()) for step in steps]
    batches.close()
    return np.concatenate([rows for rows, _ in drawn]), torch.cat([x.to_dense() for _, x in drawn])


@pytest.mark.parametrize("n", [7, 40])  # fewer than a buffer has, and more
def test_every_cell_once_in_each_pass(short_blocks, n):
    cells = Made(101)
    rows, x = stream(StoredBatches(cells, held_out=0, seed=0), n, range(1, 45))
    for number in range(len(rows) // 101):
        of_pass = rows[101 * number : 101 * (number + 1)]
        assert sorted(of_pass) == list(range(101))
        assert (of_pass != np.sort(of_pass)).any()
    np.testing.assert_array_equal(x, cells[slice(0, 101)].toarray()[rows])
    assert (rows[:101] != rows[101:202]).any()


def test_molecules_held_out_are_the_same_in_every_pass_and_add_up(short_blocks):
    cells = Made(101)
    batches = StoredBatches(cells, held_out=0.3, seed=4)
    whole, some = cells[slice(0, 101)], np.arange(5, 101, 3)
    kept, held, depth = batches.gather(np.arange(101))
    np.testing.assert_array_equal((kept + held).toarray(), whole.toarray())
    np.testing.assert_array_equal(depth, whole.toarray().sum(1))
    assert held.sum() / whole.sum() == pytest.approx(0.3, abs=0.04)
    rows, x = stream(batches, 10, range(1, 31))  # three passes
    np.testing.assert_array_equal(x, kept.toarray()[rows])
    again = batches.gather(some)
    np.testing.assert_array_equal(again[0].toarray(), kept.toarray()[some])
    np.testing.assert_array_equal(again[1].toarray(), held.toarray()[some])
    assert (StoredBatches(cells, held_out=0.3, seed=5).gather(some)[1] != again[1]).nnz


def test_any_step_is_found_by_counting(short_blocks):
    cells = Made(101)
    rows, x = stream(StoredBatches(cells, held_out=0.1, seed=0), 10, range(1, 60))
    cells.read = 0
    later, y = stream(StoredBatches(cells, held_out=0.1, seed=0), 10, range(37, 60))
    np.testing.assert_array_equal(rows[360:], later)
    assert torch.equal(x[360:], y)
    assert cells.read <= len(later) + 3 * 24  # what was before is not read: a buffer to begin in, two ahead


def test_processes_go_their_own_ways(short_blocks):
    first, second = (stream(StoredBatches(Made(101), held_out=0, seed=0), 10, range(1, 8), rank)[0] for rank in (0, 1))
    assert (first != second).mean() > 0.9


def test_a_sorted_file_is_mixed():
    n = 4000
    batches = StoredBatches(Made(n), held_out=0, seed=0)
    batches.block_cells, batches.n_blocks = 20, 200  # as many blocks as a file of a hundred thousand cells
    rows, _ = stream(batches, 100, range(1, 41))
    tenths = np.stack([np.bincount(part // 400, minlength=10) for part in rows.reshape(40, 100)])
    # a tenth of each step is of each tenth of the file: drawn at random the variance is 9, and 64 blocks add to it
    assert tenths.mean() == 10
    assert tenths.var() < 3 * 9


def test_the_end_of_a_pass_is_mixed_as_its_beginning(short_blocks):
    batches = StoredBatches(Made(80), held_out=0, seed=0)  # ten blocks, three at a time: none is left over alone
    rows, _ = stream(batches, 8, range(1, 101))
    assert min(len(set(some // 8)) for some in rows.reshape(-1, 8)) > 1


def test_memory_does_not_grow_with_the_cells(short_blocks):
    peaks = []
    for n_cells in (400, 8000):
        batches = StoredBatches(Made(n_cells), held_out=0.1, seed=0)
        tracemalloc.start()
        stream(batches, 16, range(1, 26))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 8 * 8000 * 4  # beside the order of the cells


# ---- the whole way ---------------------------------------------------------------------------------------------------


def cells(n: int = 900, n_genes: int = 30) -> ad.AnnData:
    """Two kinds of cells and two drugs, planted, sorted as files often are."""
    rng = np.random.default_rng(0)
    kind, drug = np.repeat([0, 1], n // 2), np.tile(np.repeat([0, 1, 2], n // 6), 2)
    rate = rng.lognormal(0, 1, n_genes) * rng.lognormal(0, 1, (2, n_genes))[kind]
    rate *= rng.lognormal(0, 0.5, (3, n_genes))[drug]
    counts = rng.poisson(60 * rate / rate.sum(1, keepdims=True))
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical.from_codes(drug, ["DMSO", "A", "B"]),
            "cell_type": pd.Categorical.from_codes(kind, ["T", "B"]),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=var)


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def from_file(h5ad) -> sd.ScIDiff:
    return sd.ScIDiff.fit(h5ad, SCHEMA, **SMALL)


def lowest(model: sd.ScIDiff, stage: str) -> float:
    return float(model.history.loc[model.history["stage"] == stage, "heldout"].min())


def test_as_good_as_in_memory(from_file):
    in_memory = sd.ScIDiff.fit(cells(), SCHEMA, **SMALL)
    for stage in ("denoise", "sample"):
        assert lowest(from_file, stage) == pytest.approx(lowest(in_memory, stage), rel=0.03)
    # what does not hang on the molecules held out is the same
    assert from_file.vocabulary == in_memory.vocabulary
    assert from_file.population.to_dict() == in_memory.population.to_dict()
    np.testing.assert_array_equal(from_file.population.log_depth, in_memory.population.log_depth)
    np.testing.assert_array_equal(from_file.reference.x.toarray(), in_memory.reference.x.toarray())
    np.testing.assert_array_equal(from_file.trust, in_memory.trust)
    ours, theirs = (model.predictor.to_arrays()[0] for model in (from_file, in_memory))
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)
    assert from_file.settings["n_cells"] == 900
    made = from_file.generate(5, {"cell_type": "B", "perturbation": "A"})
    assert (made.layers["counts"].sum(axis=1) > 0).all()


def test_a_sample_teaches_the_closed_forms_and_all_cells_the_networks(h5ad, from_file, monkeypatch):
    monkeypatch.setattr(fitting, "CELLS_IN_MEMORY", 240)
    seen = []
    draw = StoredBatches.draw
    monkeypatch.setattr(StoredBatches, "draw", lambda *a, **k: seen.append(draw(*a, **k)) or seen[-1])
    model = sd.ScIDiff.fit(h5ad, SCHEMA, **SMALL)
    assert model.population.to_dict() == from_file.population.to_dict()
    assert len(model.reference) == 240  # forty of every condition
    assert len(np.unique(np.concatenate([rows for rows, _ in seen]))) == 900
    assert lowest(model, "denoise") == pytest.approx(lowest(from_file, "denoise"), rel=0.03)


def test_rare_conditions_are_kept_whole():
    conditions = pd.DataFrame({"cell_type": np.repeat(["often", "rare", "some"], [500, 7, 60])})
    rows = fitting._evenly(conditions, 100, seed=0)
    kept = conditions.iloc[rows]["cell_type"].value_counts()
    assert kept["rare"] == 7
    assert abs(kept["often"] - kept["some"]) <= 1
    assert (np.diff(rows) > 0).all()
    assert len(np.unique(fitting._evenly(pd.DataFrame(index=range(50)), 20, seed=0))) == 20


def test_some_cells_and_genes_of_a_file(h5ad):
    rows, genes = np.arange(1, 900, 2), [f"g{i}" for i in range(25, 5, -1)]
    options = SMALL | {"config": replace(SMALL["config"], steps=2), "denoise_only": True}
    with CellFile(h5ad) as file:
        model = sd.ScIDiff.fit(file[rows], SCHEMA, genes=genes, **options)
        assert file[rows][slice(3)].obs_names.equals(file.obs_names[rows[:3]])
    expected = sd.ScIDiff.fit(cells()[rows], SCHEMA, genes=genes, **options)
    assert model.genes == genes
    np.testing.assert_array_equal(model.reference.x.toarray(), expected.reference.x.toarray())
    variable = sd.ScIDiff.fit(h5ad, SCHEMA, genes=10, **options)
    assert variable.genes == sd.ScIDiff.fit(cells(), SCHEMA, genes=10, **options).genes


def test_goes_on_after_an_interruption(h5ad, from_file, tmp_path):
    class Stop(Exception):
        pass

    def stop(at) -> None:
        if at.step == 85:  # in the second stage
            raise Stop

    with pytest.raises(Stop):
        sd.ScIDiff.fit(h5ad, SCHEMA, checkpoint=tmp_path, on_step=stop, **SMALL)
    resumed = sd.ScIDiff.fit(h5ad, SCHEMA, checkpoint=tmp_path, **SMALL)
    columns = ["step", "loss", "heldout"]
    pd.testing.assert_frame_equal(resumed.history[columns], from_file.history[columns], check_exact=True)


def test_zarr_is_the_same(from_file, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on versions of the format
        cells().write_zarr(tmp_path / "cells.zarr")
        model = sd.ScIDiff.fit(tmp_path / "cells.zarr", SCHEMA, denoise_only=True, **SMALL)
    assert lowest(model, "denoise") == lowest(from_file, "denoise")


def dense(adata: ad.AnnData) -> None:
    adata.X = adata.X.toarray()


def by_genes(adata: ad.AnnData) -> None:
    adata.X = sparse.csc_matrix(adata.X)


def logged(adata: ad.AnnData) -> None:
    adata.X = adata.X.log1p()


def emptied(adata: ad.AnnData) -> None:
    adata.X.data[adata.X.indptr[3] : adata.X.indptr[4]] = 0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (dense, {}, "X of .* is stored as a dense matrix.*csr_matrix"),
        (by_genes, {}, r"X of .* is stored by genes \(csc\).*csr_matrix"),
        (logged, {}, "holds no counts but log expression.*read_h5ad"),
        (emptied, {}, "1 of 900 cells have only zeros in X: 'cell3'"),
        (None, {"layer": "count"}, "no layer 'count'"),
        (None, {"noise": "gaussian"}, "Gaussian noise needs all cells in memory.*read_h5ad"),
        (None, {"modules": {"m": ["g0", "g1", "g2"]}}, "modules need all cells in memory.*read_h5ad"),
        (None, {"genes": ["g0", "gene"]}, "1 of 2 genes asked for are not in the data, first 'gene'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(change, options, message, tmp_path):
    adata = cells()
    if change is not None:
        change(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(sd.InputError, match=message) as refused:
        sd.ScIDiff.fit(tmp_path / "cells.h5ad", SCHEMA, **SMALL, **options)
    assert "\n" not in str(refused.value)


def test_command(h5ad, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fitting, "CELLS_IN_MEMORY", 100)
    roles = "--perturbation drug --control DMSO --context cell_type --holdout drug=A,cell_type=T --steps 2 --json"
    command = f"train {h5ad} --out {tmp_path / 'model'} {roles}".split()
    assert main([*command, "--on-disk"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["n_cells"] == told["split"]["train"] < 900
    assert len(sd.ScIDiff.load(tmp_path / "model").reference) == 100


@pytest.mark.parametrize(("share", "expected"), [(0.0, True), (1.0, False)])
def test_files_that_would_fill_memory_stay_on_disk(share, expected, h5ad, monkeypatch):
    monkeypatch.setattr("scidiff.streaming.SHARE_OF_MEMORY", share)
    with CellFile(h5ad) as file:
        assert file.exceeds_memory is expected
        assert sum(matrix.n_bytes for matrix in file._matrices().values()) == 8 * cells().X.nnz


def test_a_file_that_says_it_has_no_matrix(tmp_path):
    # write_elem, unlike write_h5ad, stores that there is no raw; such are the files that denoise_file writes
    with h5py.File(tmp_path / "cells.h5ad", "w") as stored:
        write_elem(stored, "/", ad.AnnData(obs=cells().obs, var=cells().var))
    with CellFile(tmp_path / "cells.h5ad") as file:
        assert not file.exceeds_memory
        with pytest.raises(sd.InputError, match="no matrix: put raw counts"):
            file.choose(None)
