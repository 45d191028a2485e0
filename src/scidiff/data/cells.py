"""From an AnnData to a matrix that can be trusted.

What a matrix holds is told from its values::

    scaled   some value is negative
    counts   all values are integers, however they are stored
    log1p    fractions, none above 20 (the log of a hundred million)
    other    fractions above that: normalised but not logged, or expected counts

Counts are sought in ``layers["counts"]``, ``X``, layers by other names for counts (``COUNT_LAYERS``) and ``raw``, in
this order; without any, log expression is taken from the first of these that holds it. What cannot be used is refused
in one line; what is changed is said in a :class:`DataWarning`. Sparse matrices stay sparse, and nothing is written into
the caller's object.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError, closest

if TYPE_CHECKING:
    from anndata import AnnData

Scale = Literal["counts", "log1p", "scaled", "other"]

LOG_LIMIT = 20.0
#: how far a count may be from an integer: normalising and undoing it in float32 leaves errors of this size
INTEGER_TOLERANCE = 1e-3
#: values looked at together, so that temporary arrays stay small beside the matrix
BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class Cells:
    """Expression and conditions of cells, checked.

    Parameters
    ----------
    x
        Shape (n_cells, n_genes), float32. Counts: csr. Log expression: csr, or dense where it came dense.
    genes
        Names of the columns of ``x``.
    conditions
        Canonical conditions of the rows of ``x``, from :meth:`Schema.table`.
    scale
        ``"counts"``, or ``"log1p"``: natural log of 1 + normalised counts, or other log expression as it came.
    """

    x: sparse.csr_matrix | np.ndarray
    genes: list[str]
    conditions: pd.DataFrame
    scale: Literal["counts", "log1p"]

    def __post_init__(self) -> None:
        if self.x.shape != (len(self.conditions), len(self.genes)):
            raise InputError(
                f"x is {self.x.shape}, but there are {len(self.conditions)} cells, {len(self.genes)} genes"
            )
        if self.scale not in ("counts", "log1p"):
            raise InputError(f"scale {self.scale!r} is not 'counts' or 'log1p'")


def read_cells(
    adata: AnnData,
    schema: Schema | None = None,
    *,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    min_overlap: float = 0.8,
) -> Cells:
    """Return the expression and conditions of the cells in ``adata``.

    Parameters
    ----------
    adata
        In memory, a view, or backed; left as it is.
    schema
        Roles of the obs columns; None for cells without conditions.
    genes
        Names the columns of the result shall have, in this order (a model's genes). Those missing from the data are
        filled with zeros, with a warning. None keeps the genes of the data.
    layer
        Layer to read instead of searching for counts; ``"X"`` means ``adata.X``.
    min_overlap
        Share of ``genes`` the data must have.

    Raises
    ------
    InputError
        No cells or genes; duplicate names; NaN, infinite or negative values; cells without any molecule; neither counts
        nor log expression; too few of ``genes``; or a column of the schema is missing.
    """
    matrix = choose(adata, layer)
    for problem in (*name_problems(adata, matrix.genes), *empty_cells(matrix.x, matrix.where, adata.obs_names)):
        raise InputError(problem)
    x = _to_float32(matrix)
    names = list(matrix.genes)
    if genes is not None:
        x = _align(x, names, list(genes), adata.var, min_overlap)
        names = list(genes)
        if emptied := int((np.asarray(abs(x).sum(axis=1)).ravel() == 0).sum()):
            warnings.warn(f"{emptied} cells have no molecule of the genes asked for", DataWarning, stacklevel=2)
    scale: Literal["counts", "log1p"] = "counts" if matrix.scale == "counts" else "log1p"
    return Cells(x=x, genes=names, conditions=(schema or Schema()).table(adata), scale=scale)


# ---- what there is --------------------------------------------------------------------------------------------------


class Matrix(NamedTuple):
    """A matrix of an AnnData: where it lies, its values (csr or ndarray), its gene names, and what it holds."""

    where: str
    x: sparse.csr_matrix | np.ndarray
    genes: pd.Index
    scale: Scale


def stored_values(x: sparse.csr_matrix | np.ndarray) -> np.ndarray:
    """Return the values in memory as a vector: the stored ones of a sparse matrix, all of a dense one."""
    return np.asarray(x.data) if sparse.issparse(x) else np.asarray(x).reshape(-1)


def matrix_scale(x: sparse.spmatrix | np.ndarray) -> Scale:
    """Return what the values of a finite matrix are: see the head of this module."""
    values = stored_values(x)
    whole, highest = True, 0.0
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        if block.min() < 0:
            return "scaled"
        highest = max(highest, float(block.max()))
        if whole and not np.issubdtype(block.dtype, np.integer) and block.dtype != bool:
            whole = bool((np.abs(block - np.rint(block)) <= INTEGER_TOLERANCE).all())
    if whole:
        return "counts"
    return "log1p" if highest <= LOG_LIMIT else "other"


#: other names that layers of counts go by
COUNT_LAYERS = ("raw_counts", "counts_raw", "raw", "umi", "umi_counts", "count")


def matrices(adata: AnnData) -> Iterator[tuple[str, Any, pd.Index]]:
    """Yield place, matrix as stored, and gene names, in the order in which counts are sought."""
    if "counts" in adata.layers:
        yield "layers['counts']", adata.layers["counts"], adata.var_names
    if adata.X is not None:
        yield "X", adata.X, adata.var_names
    for name in COUNT_LAYERS:
        if name in adata.layers:
            yield f"layers[{name!r}]", adata.layers[name], adata.var_names
    if adata.raw is not None:
        yield "raw", adata.raw.X, adata.raw.var_names


def expect_cells(adata: AnnData) -> None:
    """Refuse what is no AnnData, or has no cells or genes."""
    if not hasattr(adata, "obs_names"):
        raise InputError(f"expected an AnnData, got {type(adata).__name__}; read a file with anndata.read_h5ad")
    if 0 in adata.shape:
        raise InputError(f"the data are empty: {adata.n_obs} cells x {adata.n_vars} genes")


def choose(adata: AnnData, layer: str | None = None) -> Matrix:
    """Return the matrix to use: the first with counts, else the first with log expression.

    Raises
    ------
    InputError
        There is none, it is empty, or it has NaN or infinite values.
    """
    expect_cells(adata)
    places = matrices(adata) if layer is None else iter([_named(adata, layer)])
    unusable, logged = [], None
    for where, stored, genes in places:
        matrix = load(where, stored, genes, adata.obs_names)
        if matrix.scale == "counts":
            if layer is None and where not in ("layers['counts']", "X"):
                warnings.warn(
                    f"X holds no counts; counts were taken from {where} ({len(genes)} genes)", DataWarning, stacklevel=3
                )
            return matrix
        if where == "layers['counts']" and layer is None:
            raise InputError(f"{why_no_counts(matrix)}; remove that layer, or name the one to read")
        if matrix.scale == "log1p":
            logged = logged or matrix
        else:
            unusable.append(matrix)
    if logged is not None:
        if unusable:
            warnings.warn(
                f"{unusable[0].where} is not usable; log expression was taken from {logged.where}",
                DataWarning,
                stacklevel=3,
            )
        return logged
    if not unusable:
        raise InputError("the AnnData has no matrix: put raw counts in X or in layers['counts']")
    raise InputError(f"{why_no_counts(unusable[0])}; put raw counts in layers['counts'] or log1p expression in X")


def load(where: str, stored: Any, genes: pd.Index, cells: pd.Index) -> Matrix:
    """Return a stored matrix in memory, sparse as csr, with what it holds.

    Raises
    ------
    InputError
        It has NaN or infinite values; the first cell and gene are named.
    """
    x = stored.to_memory() if hasattr(stored, "to_memory") else stored
    if hasattr(x, "check_format"):  # of a damaged file: compiled code would read beyond the end
        try:
            x.check_format()
        except Exception as error:  # its vectors may be anything
            raise InputError(f"{where} is no sound sparse matrix: {error}") from None
    x = sparse.csr_matrix(x) if sparse.issparse(x) else np.asarray(x)
    if sparse.issparse(x) and not x.has_canonical_format:
        x = x.copy()  # scipy sorts in place even when it compares, and these arrays are the caller's
        x.sum_duplicates()
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool):
        raise InputError(f"{where} has values of type {x.dtype}; numbers are needed")
    values = stored_values(x)
    for start in range(0, values.size, BLOCK):
        bad = np.flatnonzero(~np.isfinite(values[start : start + BLOCK]))
        if bad.size:
            at = start + int(bad[0])
            row = int((x.indptr <= at).sum()) - 1 if sparse.issparse(x) else at // x.shape[1]
            column = x.indices[at] if sparse.issparse(x) else at % x.shape[1]
            raise InputError(
                f"{where} has the value {values[at]} (first in cell {cells[row]!r}, gene {genes[column]!r}): "
                "remove such cells or genes, or write 0 where nothing was seen"
            )
    return Matrix(where, x, genes, matrix_scale(x))


def why_no_counts(matrix: Matrix) -> str:
    """Return in words why a matrix holds no counts."""
    values = stored_values(matrix.x)
    if matrix.scale == "scaled":
        return f"{matrix.where} has negative values (lowest {values.min():.3g}): it was centred or scaled, not counted"
    if matrix.scale == "log1p":
        return f"{matrix.where} has fractions up to {values.max():.3g}: log expression, not counts"
    return (
        f"{matrix.where} has fractions up to {values.max():.6g}: neither counts nor logs "
        "(normalised counts need sc.pp.log1p, expected counts need rounding)"
    )


def name_problems(adata: AnnData, genes: pd.Index) -> Iterator[str]:
    """Yield what is wrong with the names of cells and genes."""
    for what, names in (("cell", adata.obs_names), ("gene", genes)):
        if not names.is_unique:
            double = names[names.duplicated()].unique()
            axis = "obs" if what == "cell" else "var"
            yield f"{what} names occur more than once: {listing(double)}; call adata.{axis}_names_make_unique() first"


def empty_cells(x: sparse.csr_matrix | np.ndarray, where: str, cells: pd.Index) -> Iterator[str]:
    """Yield a complaint if cells have no non-zero value."""
    empty = np.asarray((x != 0).sum(axis=1)).ravel() == 0
    if empty.any():
        yield (
            f"{int(empty.sum())} of {len(cells)} cells have only zeros in {where}: {listing(cells[empty])}; "
            "remove them with sc.pp.filter_cells(adata, min_counts=1)"
        )


def listing(names: Iterable[object], n: int = 3) -> str:
    """Return the first ``n`` names, quoted, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(repr(str(name)) for name in names[:n]) + more


# ---- how it is converted --------------------------------------------------------------------------------------------


def _named(adata: AnnData, layer: str) -> tuple[str, Any, pd.Index]:
    if layer == "X":
        return "X", adata.X, adata.var_names
    if layer not in adata.layers:
        raise InputError(f"no layer {layer!r}{closest(layer, adata.layers)}")
    return f"layers[{layer!r}]", adata.layers[layer], adata.var_names


def _to_float32(matrix: Matrix) -> sparse.csr_matrix | np.ndarray:
    """float32, counts as exact integers in csr without stored zeros; memory is shared where nothing changes."""
    if matrix.scale != "counts" and not sparse.issparse(matrix.x):
        return matrix.x.astype(np.float32, copy=False)
    x = sparse.csr_matrix(matrix.x, dtype=np.float32)
    inexact = matrix.scale == "counts" and not np.array_equal(x.data, np.rint(x.data))
    if inexact or np.count_nonzero(x.data) < x.nnz:
        x = x.copy()
        if matrix.scale == "counts":
            np.rint(x.data, out=x.data)
        x.eliminate_zeros()
    return x


def _align(
    x: sparse.csr_matrix | np.ndarray, have: list[str], want: list[str], var: pd.DataFrame, min_overlap: float
) -> sparse.csr_matrix | np.ndarray:
    """Columns of ``x`` reordered to ``want``; missing ones are zero."""
    if len(set(want)) < len(want):
        raise InputError(
            f"genes asked for more than once: {listing(pd.Index(want)[pd.Index(want).duplicated()].unique())}"
        )
    if have == want:
        return x
    position = pd.Index(have).get_indexer(want)
    missing = [name for name, at in zip(want, position, strict=True) if at < 0]
    if missing:
        text = f"{len(missing)} of {len(want)} genes are not in the data: {listing(missing, 5)}"
        if not want or len(missing) > (1 - min_overlap) * len(want):
            raise InputError(f"{text}; at least {min_overlap:.0%} are needed{_other_names(want, have, var)}")
        warnings.warn(f"{text}; they are filled with zeros", DataWarning, stacklevel=3)
    present = np.flatnonzero(position >= 0)
    found = x[:, position[present]]
    if not missing:
        return found
    if not sparse.issparse(found):
        out = np.zeros((x.shape[0], len(want)), dtype=np.float32)
        out[:, present] = found
        return out
    return sparse.csr_matrix((found.data, present[found.indices], found.indptr), shape=(x.shape[0], len(want)))


def _other_names(want: list[str], have: list[str], var: pd.DataFrame) -> str:
    """A hint where the genes would match under other names: another case, or a column of var."""
    share = len(set(want) & set(have)) / max(len(want), 1)
    folded = len({name.casefold() for name in want} & {name.casefold() for name in have}) / max(len(want), 1)
    if folded > max(2 * share, 0.5):
        return f"; {folded:.0%} match when upper and lower case are ignored: is it the same species?"
    for column in var.columns:
        matched = len(set(want) & set(var[column].astype(str))) / max(len(want), 1)
        if matched > max(2 * share, 0.5):
            return f"; {matched:.0%} match var column {column!r}: set adata.var_names from it"
    return ""


def choose_genes(cells: Cells, genes: Sequence[str] | int | None) -> Cells:
    """Return cells with the genes asked for: a list, or those of these (training) cells that vary most."""
    if genes is None:
        return cells
    if isinstance(genes, str) or not isinstance(genes, Integral | Iterable):
        raise InputError(f"genes={genes!r}: give a list of names, or a number")
    if isinstance(genes, int | Integral):
        from scidiff.data.scaling import highly_variable_genes, overdispersed_genes

        places = (overdispersed_genes if cells.scale == "counts" else highly_variable_genes)(cells.x, int(genes))
    else:
        index = pd.Index(cells.genes)
        if not len(genes):
            raise InputError("the list of genes is empty; name some, or give their number")
        if len(set(genes)) < len(genes):
            double = pd.Index(genes)[pd.Index(genes).duplicated()][0]
            raise InputError(f"gene {double!r} is asked for more than once; name each gene once")
        if missing := [gene for gene in genes if gene not in index]:
            raise InputError(
                f"{len(missing)} of {len(genes)} genes asked for are not in the data, first {missing[0]!r}"
                f"{closest(missing[0], cells.genes)}"
            )
        places = index.get_indexer(list(genes))
    x = cells.x[:, places]
    empty = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel() == 0
    if cells.scale == "counts" and empty.any():
        raise InputError(f"{int(empty.sum())} cells have no molecule of the {len(places)} genes chosen; choose more")
    return Cells(x=x, genes=[cells.genes[i] for i in places], conditions=cells.conditions, scale=cells.scale)


def usual_genes(cells: Cells, n: int) -> list[str]:
    """Return the ``n`` most variable genes as most tools choose them, so that scores can be compared with theirs."""
    from scidiff.data.scaling import highly_variable_genes, log1p_cp10k

    logged = log1p_cp10k(cells.x) if cells.scale == "counts" else cells.x
    return [cells.genes[i] for i in highly_variable_genes(logged, n)]
