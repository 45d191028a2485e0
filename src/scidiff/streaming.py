"""Cells in files larger than memory: read in runs of rows, written run by run, whole or not at all.

    with CellFile(source) as file, appended(target, file.obs) as sink:
        cells = file.choose(genes)                       # first pass: what the file holds, every problem
        for rows in runs(file.n_obs):
            sink.append(work(cells[rows], rows))         # second pass: one run of rows in memory

A file is judged as if it were in memory, before any work on it: what a matrix holds hangs on its smallest, its largest
and its most fractional value, and those of all runs are seen in the first pass. Files are .h5ad or .zarr; ``obs`` and
``var`` are held in memory, matrices never are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.data.cells import choose, empty_cells, load, name_problems, read_cells, stored_values
from scidiff.errors import DataWarning, InputError
from scidiff.files import check_h5ad, reading, writing

if TYPE_CHECKING:
    from anndata import AnnData

#: rows in memory at a time; a multiple of the cells that are sampled together
RUN = 1024
#: values in one chunk of a stored dense matrix: one MiB, as HDF5 caches
STORED_CHUNK = 1 << 18


def runs(n: int) -> Iterator[slice]:
    """Yield the rows of ``n`` cells, ``RUN`` at a time."""
    return (slice(start, min(start + RUN, n)) for start in range(0, n, RUN))


# ---- reading --------------------------------------------------------------------------------------------------------


class CellFile:
    """An h5ad or zarr file, open for reading; used as a context.

    Parameters
    ----------
    path
        The file, or the folder of a zarr store.

    Raises
    ------
    InputError
        There is none, it cannot be read, or it has no cells or genes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix == ".zarr":
            _check_zarr(path)
        else:
            check_h5ad(path)
        from anndata.io import read_elem

        with reading(path):
            self._group = _open(path, path.suffix, "r")
            self.obs: pd.DataFrame = read_elem(self._group["obs"])
            self.var: pd.DataFrame = read_elem(self._group["var"])
        if not (len(self.obs) and len(self.var)):
            raise InputError(f"{path} is empty: {len(self.obs)} cells x {len(self.var)} genes")

    def __enter__(self) -> CellFile:
        return self

    def __exit__(self, *error: object) -> None:
        _close(self._group)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.obs)

    def choose(self, genes: Sequence[str], *, layer: str | None = None) -> StoredCells:
        """Return the cells with these genes: :func:`scidiff.data.cells.read_cells`, its warnings and its errors.

        Reads the matrix once, from end to end.
        """
        from anndata import AnnData

        stored = self._matrices()
        surveys = {where: _Survey(matrix, genes) for where, matrix in stored.items()}
        raw = None
        if "raw" in stored:
            raw = SimpleNamespace(X=surveys["raw"], var_names=stored["raw"].var.index)
        stand_in = SimpleNamespace(
            obs_names=self.obs.index,
            var_names=self.var.index,
            shape=(self.n_obs, len(self.var)),
            X=surveys.get("X"),
            raw=raw,
            layers={name: surveys[_layer(name)] for name in self._group.get("layers", ())},
        )
        chosen = choose(stand_in, layer)
        matrix, survey = stored[chosen.where], surveys[chosen.where]
        empty = empty_cells(survey.highest[:, None], chosen.where, self.obs.index)
        for problem in (*name_problems(stand_in, chosen.genes), *empty):
            raise InputError(problem)
        # a cell in which every gene is seen says what there is to say of the genes
        read_cells(AnnData(np.ones((1, len(chosen.genes)), np.float32), var=matrix.var), genes=genes)
        scale: Literal["counts", "log1p"] = "counts" if chosen.scale == "counts" else "log1p"
        seen = survey.highest_wanted > (0.5 if scale == "counts" else 0)  # counts are rounded
        return StoredCells(matrix, list(genes), scale=scale, empty=self.obs.index[~seen])

    def _matrices(self) -> dict[str, StoredMatrix]:
        """Return the matrices by the names that messages give them; none is read."""
        from anndata.io import read_elem

        group, cells, found = self._group, self.obs.index, {}
        with reading(self.path):
            if "X" in group:
                found["X"] = StoredMatrix("X", group["X"], cells, self.var, path=self.path)
            for name in group.get("layers", ()):
                found[_layer(name)] = StoredMatrix(_layer(name), group["layers"][name], cells, self.var, path=self.path)
            if "raw" in group and "X" in group["raw"]:
                var = read_elem(group["raw"]["var"])
                found["raw"] = StoredMatrix("raw", group["raw"]["X"], cells, var, path=self.path)
        return found


class StoredMatrix:
    """A matrix on disk; rows of it come as csr or ndarray, as stored."""

    def __init__(self, where: str, stored: Any, cells: pd.Index, var: pd.DataFrame, *, path: Path) -> None:
        self.where, self.cells, self.var, self.path = where, cells, var, path
        self._stored = stored

    def __getitem__(self, rows: slice) -> sparse.csr_matrix | np.ndarray:
        with reading(self.path):
            return self._by_rows[rows]

    @property
    def is_sparse(self) -> bool:
        return not hasattr(self._stored, "shape")  # a sparse matrix is a group of three vectors

    @cached_property
    def _by_rows(self) -> Any:
        if not self.is_sparse:
            return self._stored
        from anndata.io import sparse_dataset

        matrix = sparse_dataset(self._stored)
        if matrix.format == "csr":
            return matrix
        warnings.warn(
            f"{self.where} is stored by genes (csc): all of it is read into memory; store it as csr to save memory",
            DataWarning,
            stacklevel=2,
        )
        return matrix.to_memory().tocsr()


class StoredCells:
    """Cells of a file that were found to be usable, expression aligned to the genes asked for.

    ``cells[rows]`` is ``x`` of :class:`scidiff.data.cells.Cells`, of a run of rows.
    """

    def __init__(
        self, matrix: StoredMatrix, genes: list[str], *, scale: Literal["counts", "log1p"], empty: pd.Index
    ) -> None:
        self._matrix, self.genes = matrix, genes
        self.scale = scale
        self.empty = empty  # names of cells that have none of the genes

    def __getitem__(self, rows: slice) -> sparse.csr_matrix | np.ndarray:
        from anndata import AnnData

        names = pd.DataFrame(index=self._matrix.cells[rows])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # all was said when the file was judged
            run = read_cells(AnnData(self._matrix[rows], obs=names, var=self._matrix.var), genes=self.genes, layer="X")
        # a run of log expression may happen to be all integers
        x: Any = run.x
        dense = self.scale == "log1p" and not self._matrix.is_sparse and sparse.issparse(x)
        return x.toarray() if dense else x


class _Survey:
    """Stands for a stored matrix where one in memory is expected, and gives the values that tell what it holds."""

    def __init__(self, matrix: StoredMatrix, genes: Sequence[str]) -> None:
        self._matrix = matrix
        places = matrix.var.index.get_indexer(list(genes)) if matrix.var.index.is_unique else np.array([], int)
        self._places = places[places >= 0]
        #: largest absolute value of each cell, in all genes and in those asked for, shape (n_cells,)
        self.highest, self.highest_wanted = np.zeros(len(matrix.cells)), np.zeros(len(matrix.cells))

    def to_memory(self) -> np.ndarray:
        """Return the smallest, the largest and the most fractional value of each run of rows."""
        matrix, found = self._matrix, []
        for rows in runs(len(matrix.cells)):
            x = load(matrix.where, matrix[rows], matrix.var.index, matrix.cells[rows]).x
            x = x.astype(np.float32) if x.dtype == bool else x
            values = stored_values(x)
            if values.size:
                found += [values.min(), values.max(), values[np.abs(values - np.rint(values)).argmax()]]
            self.highest[rows], self.highest_wanted[rows] = _highest(x), _highest(x[:, self._places])
        return np.asarray(found)


def _highest(x: sparse.csr_matrix | np.ndarray) -> np.ndarray:
    if not x.shape[1]:
        return np.zeros(x.shape[0])
    highest = abs(x).max(axis=1)
    return highest.toarray().ravel() if sparse.issparse(highest) else highest


# ---- writing --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def appended(path: Path, obs: pd.DataFrame) -> Iterator[CellSink]:
    """Yield a sink for the cells of ``obs``; the file takes its name when all are written, and goes if that fails."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            group = _open(part, path.suffix, "w")
        try:
            yield CellSink(path, group, obs)
        finally:
            with writing(path):
                _close(group)
        with writing(path):
            os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


class CellSink:
    """An h5ad or zarr file to which cells are appended."""

    def __init__(self, path: Path, group: Any, obs: pd.DataFrame) -> None:
        self._path, self._group, self._obs = path, group, obs
        #: what all cells share: obs, var and uns
        self.head: AnnData | None = None

    def append(self, part: AnnData) -> None:
        """Append the next cells: ``X`` and ``layers``; ``var`` and ``uns`` are taken from the first ones."""
        with writing(self._path):
            if self.head is None:
                self._start(part)
            _append(self._group, "X", part.X)
            for name, x in part.layers.items():
                _append(self._group["layers"], name, x)

    def _start(self, part: AnnData) -> None:
        from anndata import AnnData
        from anndata.io import write_elem

        self.head = AnnData(obs=self._obs, var=part.var, uns=part.uns)
        self.head.strings_to_categoricals()  # as write_h5ad does
        write_elem(self._group, "/", self.head)


def _append(group: Any, name: str, x: sparse.csr_matrix | np.ndarray) -> None:
    """Append rows to a matrix of a file; the first rows create it."""
    from anndata.io import sparse_dataset, write_elem

    options: dict[str, Any]
    in_hdf5 = hasattr(group, "file")
    if name in group and sparse.issparse(x):
        sparse_dataset(group[name]).append(x)
    elif name in group:
        stored = group[name]
        start = stored.shape[0]
        stored.resize((start + x.shape[0], x.shape[1]))
        stored[start:] = x
    elif sparse.issparse(x):
        # more than 2^31 values may come
        options = {"indptr_dtype": np.int64} | ({"compression": "gzip"} if in_hdf5 else {})
        write_elem(group, name, x, dataset_kwargs=options)
    else:
        n_rows = 1 << max(0, (STORED_CHUNK // x.shape[1]).bit_length() - 1)  # a power of two: runs end with a chunk
        options = {"chunks": (min(n_rows, RUN), x.shape[1])}
        if in_hdf5:  # digits of means hardly compress: the fastest level, bytes of like meaning side by side
            options |= {"maxshape": (None, x.shape[1]), "compression": "gzip", "compression_opts": 1, "shuffle": True}
        write_elem(group, name, x, dataset_kwargs=options)


# ---- stores ---------------------------------------------------------------------------------------------------------


def _open(path: Path, suffix: str, mode: Literal["r", "w"]) -> Any:
    if suffix == ".zarr":
        import zarr
        from anndata import settings

        return zarr.open_group(str(path), mode=mode, zarr_format=settings.zarr_write_format if mode == "w" else None)
    import h5py

    return h5py.File(path, mode)


def _close(group: Any) -> None:
    if hasattr(group, "close"):  # a zarr store is written as it goes
        group.close()


def _check_zarr(path: Path) -> None:
    if not path.is_dir():
        raise InputError(f"there is no zarr store {path}")
    try:
        is_anndata = {"obs", "var"} <= set(_open(path, ".zarr", "r"))
    except Exception as error:
        raise InputError(f"{path} is damaged or no zarr store: {type(error).__name__}") from error
    if not is_anndata:
        raise InputError(f"{path} is no zarr store of cells: it has no obs and var; write it with anndata's write_zarr")


def _layer(name: str) -> str:
    return f"layers[{name!r}]"
