"""Cells in files larger than memory: read in runs of rows, written run by run, whole or not at all.

    with CellFile(source) as file, appended(target, file.obs) as sink:
        cells = file.choose(genes)                       # first pass: what the file holds, every problem
        for rows in runs(file.n_obs):
            sink.append(work(cells[rows], rows))         # second pass: one run of rows in memory

A file is judged as if it were in memory, before any work on it: what a matrix holds hangs on its smallest, its largest
and its most fractional value, and those of all runs are seen in the first pass. Files are .h5ad or .zarr; ``obs`` and
``var`` are held in memory, matrices never are. ``file[rows]`` is the same file with some of its cells.
"""

from __future__ import annotations

import contextlib
import copy
import os
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
from scidiff.files import Disk, check_h5ad, check_tables, hdf5, part_of, reading, write_cells, writing

if TYPE_CHECKING:
    from anndata import AnnData

#: rows in memory at a time; a multiple of the cells that are sampled together
RUN = 1024
#: values in one chunk of a stored dense matrix: one MiB, as HDF5 caches
STORED_CHUNK = 1 << 18
#: cells that are trained on in memory are there about five times: counts, both parts of their molecules, logarithms
SHARE_OF_MEMORY = 1 / 8


def runs(n: int) -> Iterator[slice]:
    """Yield the rows of ``n`` cells, ``RUN`` at a time."""
    return (slice(start, min(start + RUN, n)) for start in range(0, n, RUN))


# ---- reading --------------------------------------------------------------------------------------------------------


def opened(cells: AnnData | CellFile | str | Path) -> contextlib.AbstractContextManager[AnnData | CellFile]:
    """Return a context of cells: a path is opened as a :class:`CellFile`, and closed at the end."""
    return CellFile(Path(cells)) if isinstance(cells, str | Path) else contextlib.nullcontext(cells)


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
        check_tables(path, obs=self.obs, var=self.var)
        if not (len(self.obs) and len(self.var)):
            raise InputError(f"{path} is empty: {len(self.obs)} cells x {len(self.var)} genes")
        self._rows: np.ndarray | None = None

    def __getitem__(self, rows: np.ndarray | slice) -> CellFile:
        """Return the same open file with some of its cells, in the order of the file."""
        chosen = copy.copy(self)
        rows = np.sort(np.arange(self.n_obs)[rows])
        chosen.obs = self.obs.iloc[rows]
        chosen._rows = rows if self._rows is None else self._rows[rows]
        return chosen

    def __enter__(self) -> CellFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        _close(self._group)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.obs)

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return self.obs.index

    @property
    def exceeds_memory(self) -> bool:
        """Whether training on its cells in memory could need more memory than the machine has."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with reading(self.path):
            return sum(matrix.n_bytes for matrix in self._matrices().values()) > SHARE_OF_MEMORY * memory

    def choose(self, genes: Sequence[str] | None, *, layer: str | None = None, csr_only: bool = False) -> StoredCells:
        """Return the cells with these genes: :func:`scidiff.data.cells.read_cells`, its warnings and its errors.

        Reads the matrix once, from end to end. ``genes=None``: all that the matrix has. With ``csr_only``, matrices
        that are not stored as csr are refused.
        """
        with reading(self.path):
            return self._chosen(genes, layer, csr_only=csr_only)

    def _chosen(self, genes: Sequence[str] | None, layer: str | None, *, csr_only: bool) -> StoredCells:
        from anndata import AnnData

        stored = self._matrices()
        surveys = {where: _Survey(matrix, genes, csr_only=csr_only) for where, matrix in stored.items()}
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
        genes = list(chosen.genes) if genes is None else list(genes)
        # a cell in which every gene is seen says what there is to say of the genes
        read_cells(AnnData(np.ones((1, len(chosen.genes)), np.float32), var=matrix.var), genes=genes)
        scale: Literal["counts", "log1p"] = "counts" if chosen.scale == "counts" else "log1p"
        seen = survey.highest_wanted > (0.5 if scale == "counts" else 0)  # counts are rounded
        return StoredCells(matrix, genes, scale=scale, empty=self.obs.index[~seen], n_values=survey.n_values)

    def _matrices(self) -> dict[str, StoredMatrix]:
        """Return the matrices by the names that messages give them; none is read."""
        from anndata.io import read_elem

        group, found = self._group, {}
        with reading(self.path):
            if _holds(group, "X"):
                found["X"] = (group["X"], self.var)
            found |= {_layer(name): (group["layers"][name], self.var) for name in group.get("layers", ())}
            if _holds(group, "raw") and _holds(group["raw"], "X"):
                found["raw"] = (group["raw"]["X"], read_elem(group["raw"]["var"]))
        return {
            where: StoredMatrix(where, matrix, self.obs.index, var, path=self.path, rows=self._rows)
            for where, (matrix, var) in found.items()
        }


class StoredMatrix:
    """A matrix on disk, or the ``rows`` of it that belong to ``cells``; they come as csr or ndarray, as stored."""

    def __init__(
        self,
        where: str,
        stored: Any,
        cells: pd.Index,
        var: pd.DataFrame,
        *,
        path: Path,
        rows: np.ndarray | None = None,
    ) -> None:
        self.where, self.cells, self.var, self.path = where, cells, var, path
        self._stored, self._rows = stored, rows

    def __getitem__(self, rows: slice) -> sparse.csr_matrix | np.ndarray:
        with reading(self.path):
            if self._rows is None:
                return self._by_rows[rows]
            wanted = self._rows[rows]
            # stretches of the file, none long, so that cells far apart do not fetch all between them
            pieces = np.split(wanted, np.flatnonzero(np.diff(wanted // RUN)) + 1)
            parts = [self._by_rows[piece[0] : piece[-1] + 1][piece - piece[0]] for piece in pieces]
        return sparse.vstack(parts, format="csr") if self.is_sparse else np.concatenate(parts)

    @property
    def is_sparse(self) -> bool:
        return not hasattr(self._stored, "shape")  # a sparse matrix is a group of three vectors

    @property
    def layout(self) -> str:
        """How it is stored: csr, csc or dense."""
        if not self.is_sparse:
            return "dense"
        return str(self._stored.attrs.get("encoding-type", "in an old format")).removesuffix("_matrix")

    @property
    def n_bytes(self) -> int:
        """Its size in memory, in single precision."""
        return 8 * self._stored["data"].shape[0] if self.is_sparse else 4 * int(np.prod(self._stored.shape))

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
        self,
        matrix: StoredMatrix,
        genes: list[str],
        *,
        scale: Literal["counts", "log1p"],
        empty: pd.Index,
        n_values: int,
    ) -> None:
        self._matrix, self.genes = matrix, genes
        self.scale = scale
        self.empty = empty  # names of cells that have none of the genes
        self.n_values = n_values  # that are stored, or not zero, of all genes of the matrix

    def __len__(self) -> int:
        return len(self._matrix.cells)

    @property
    def var(self) -> pd.DataFrame:
        """What the file says of all genes of the matrix."""
        return self._matrix.var

    def of_genes(self, genes: Sequence[str]) -> StoredCells:
        """Return the same cells with some of their genes; which cells are then empty is not known."""
        return StoredCells(self._matrix, list(genes), scale=self.scale, empty=self.empty, n_values=self.n_values)

    def __getitem__(self, rows: slice) -> sparse.csr_matrix | np.ndarray:
        stored, names, var = self._matrix[rows], self._matrix.cells[rows], self._matrix.var
        # an AnnData is slow to make where runs are many
        adata: Any = SimpleNamespace(
            X=stored, shape=stored.shape, obs=pd.DataFrame(index=names), obs_names=names, var=var, var_names=var.index
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # all was said when the file was judged
            run = read_cells(adata, genes=self.genes, layer="X")
        # a run of log expression may happen to be all integers
        x: Any = run.x
        dense = self.scale == "log1p" and not self._matrix.is_sparse and sparse.issparse(x)
        return x.toarray() if dense else x


class _Survey:
    """Stands for a stored matrix where one in memory is expected, and gives the values that tell what it holds."""

    def __init__(self, matrix: StoredMatrix, genes: Sequence[str] | None, *, csr_only: bool = False) -> None:
        self._matrix, self._csr_only = matrix, csr_only
        self._places: np.ndarray | None = None
        if genes is not None:
            places = matrix.var.index.get_indexer(list(genes)) if matrix.var.index.is_unique else np.array([], int)
            self._places = places[places >= 0]
        self.n_values = 0
        #: largest absolute value of each cell, in all genes and in those asked for, shape (n_cells,)
        self.highest, self.highest_wanted = np.zeros(len(matrix.cells)), np.zeros(len(matrix.cells))

    def to_memory(self) -> np.ndarray:
        """Return the smallest, the largest and the most fractional value of each run of rows."""
        matrix, found = self._matrix, []
        if self._csr_only and matrix.layout != "csr":
            stored = {"dense": "as a dense matrix", "csc": "by genes (csc)"}.get(matrix.layout, matrix.layout)
            raise InputError(
                f"{matrix.where} of {matrix.path} is stored {stored}, and cells cannot be drawn from it quickly: "
                "write the file with scipy.sparse.csr_matrix of it, or load the cells and train on them in memory"
            )
        for rows in runs(len(matrix.cells)):
            x = load(matrix.where, matrix[rows], matrix.var.index, matrix.cells[rows]).x
            x = x.astype(np.float32) if x.dtype == bool else x
            values = stored_values(x)
            if values.size:
                found += [values.min(), values.max(), values[np.abs(values - np.rint(values)).argmax()]]
            self.n_values += len(x.data) if sparse.issparse(x) else int(np.count_nonzero(x))
            self.highest[rows] = _highest(x)
            self.highest_wanted[rows] = self.highest[rows] if self._places is None else _highest(x[:, self._places])
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
    with part_of(path) as part:
        store = contextlib.ExitStack()
        with writing(path):
            if path.suffix == ".zarr":
                group, disk = _open(part, ".zarr", "w"), None
            else:
                group, disk = store.enter_context(hdf5(part))
        try:
            sink = CellSink(path, group, obs, disk=disk)
            yield sink
            with writing(path):
                sink.finish()
        finally:
            with writing(path):
                store.close()
        with writing(path):
            os.replace(part, path)


class CellSink:
    """An h5ad or zarr file to which cells are appended."""

    def __init__(self, path: Path, group: Any, obs: pd.DataFrame, *, disk: Disk | None = None) -> None:
        self._path, self._group, self._obs, self._disk = path, group, obs, disk
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
            if self._disk is not None:
                self._disk.check()

    def finish(self) -> None:
        """Give sparse matrices the smallest places of their values: scikit-learn, and so scanpy, reads no others."""
        from anndata.io import write_elem

        if self.head is None:
            return
        layers = self._group["layers"]
        for matrix in (self._group["X"], *(layers[name] for name in layers)):
            if not hasattr(matrix, "shape") and matrix["indptr"][-1] <= np.iinfo(np.int32).max:
                places = matrix["indptr"][:].astype(np.int32)
                del matrix["indptr"]
                write_elem(matrix, "indptr", places)

    def _start(self, part: AnnData) -> None:
        from anndata import AnnData

        self.head = AnnData(obs=self._obs, var=part.var, uns=part.uns)
        write_cells(self._group, self.head)


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


def _holds(group: Any, name: str) -> bool:
    """Whether a group has this, and does not say that there is none."""
    return name in group and getattr(group[name], "shape", ()) is not None


def _layer(name: str) -> str:
    return f"layers[{name!r}]"
