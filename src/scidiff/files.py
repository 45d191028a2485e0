"""Files in and out of the command line: what cannot be read is named in one line, what is written is written whole."""

from __future__ import annotations

import contextlib
import glob
import mmap
import os
import shutil
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from scidiff.errors import InputError, closest

if TYPE_CHECKING:
    from io import RawIOBase

    import h5py
    import pandas as pd
    from anndata import AnnData


def read_h5ad(path: Path) -> AnnData:
    """Return the cells of an h5ad file.

    Raises
    ------
    InputError
        There is no such file, it is not one, or it has no cells or genes.
    """
    check_h5ad(path)
    import anndata

    with reading(path):
        adata = anndata.read_h5ad(path)
    check_tables(path, obs=adata.obs, var=adata.var)
    if 0 in adata.shape:
        raise InputError(f"{path} is empty: {adata.n_obs} cells x {adata.n_vars} genes")
    return adata


def check_h5ad(path: Path) -> None:
    """Refuse what is no h5ad file, by its outline."""
    check_file(path)
    try:
        with open_hdf5(path) as file:
            is_anndata = {"obs", "var"} <= set(file)
    except Exception as error:  # damaged files raise anything
        raise InputError(f"{path} is damaged or no h5ad file: {reason(error)}") from error
    if not is_anndata:
        raise InputError(f"{path} is no h5ad file: it has no obs and var; convert it with anndata's write_h5ad")


#: how a heap of strings begins in an HDF5 file, and how many bytes of a file are searched for one: half a second
HEAP, SEARCHED = b"GCOL\x01\0\0\0", 1 << 30
#: where an encoded type of varying length says of what form it is
VLEN_FORM = 3


def open_hdf5(path: Path) -> h5py.File:
    """Return an HDF5 file, open for reading; raise what h5py raises, and ValueError for what would end the process.

    A heap holds objects one after the other: number (0: free space), bytes, content in units of eight. libhdf5 2.0
    does not notice that the next one begins no later than this one, and cannot be stopped; and it dies of values
    of varying length that are neither text nor a sequence.
    """
    import h5py

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as seen:
        heap = seen.find(HEAP, 0, SEARCHED)
        while heap >= 0:
            end = min(heap + int.from_bytes(seen[heap + 8 : heap + 16], "little"), len(seen))
            at = heap + 16
            while at + 16 <= end:
                number, length = struct.unpack_from("<H6xQ", seen, at)
                step = (16 + (length + 7) // 8 * 8 if number else length) % 2**64
                if not 0 < step < 2**63:
                    raise ValueError(f"its strings at byte {heap} have no end")
                at += step
            heap = seen.find(HEAP, heap + 1, SEARCHED)
    file = h5py.File(path)
    try:
        for name in _unreadable(file):
            raise ValueError(f"{name} is neither text nor a sequence")
    except BaseException:
        file.close()
        raise
    return file


def _unreadable(file: h5py.File) -> list[str]:
    """Return the names of values and attributes whose type says that their length varies, and as what says nothing."""
    import h5py
    from h5py import h5t

    def is_lost(kind: h5t.TypeID) -> bool:
        if isinstance(kind, h5t.TypeCompoundID):
            return any(is_lost(kind.get_member_type(i)) for i in range(kind.get_nmembers()))
        if isinstance(kind, h5t.TypeVlenID) and kind.encode()[VLEN_FORM] & 0xF > 1:  # 0: a sequence, 1: text
            return True
        return isinstance(kind, (h5t.TypeVlenID, h5t.TypeArrayID)) and is_lost(kind.get_super())

    def look(name: str, item: h5py.HLObject) -> None:
        named = {f"{name}/{key}": item.attrs.get_id(key) for key in item.attrs}
        named |= {name: item.id} if isinstance(item, h5py.Dataset) else {}
        lost.extend(place for place, one in named.items() if is_lost(one.get_type()))

    lost: list[str] = []
    look("", file)
    file.visititems(look)
    return lost


def check_tables(path: Path, **tables: pd.DataFrame) -> None:
    """Refuse tables of cells and genes that hold something else than text, numbers and truth values."""
    import pandas as pd

    for name, table in tables.items():
        if not isinstance(table, pd.DataFrame):
            raise InputError(f"{path} cannot be read: its {name} is no table")
        for column, values in table.items():
            values = values.cat.categories if isinstance(values.dtype, pd.CategoricalDtype) else values
            if values.dtype.kind == "V" or pd.api.types.infer_dtype(values, skipna=True) == "mixed":
                raise InputError(f"{path} cannot be read: {name} column {column!r} holds neither text nor numbers")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of any failure which file could not be read: a damaged file can raise anything."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read: {type(error).__name__}: {reason(error)}") from error


def read_genes(text: str) -> int | list[str]:
    """Return the number in ``text``, or the genes in the file it names, one a line.

    Raises
    ------
    InputError
        It is neither, or the file names no gene.
    """
    try:
        return int(text)
    except ValueError:
        pass
    if not os.path.exists(text):
        raise InputError(f"genes {text!r} is neither a number nor a file")
    return read_names(Path(text))


def read_names(path: Path) -> list[str]:
    """Return the genes that a file names, one a line.

    Raises
    ------
    InputError
        There is no such file, or it names no gene.
    """
    check_file(path)
    try:
        genes = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text file; write one gene name a line") from None
    if not genes:
        raise InputError(f"{path} names no genes; write one a line")
    return genes


def read_table(path: Path) -> pd.DataFrame:
    """Return a table of numbers with named rows, from a .csv or (tab-separated) .tsv file.

    Raises
    ------
    InputError
        The file cannot be read, a row occurs twice, or a column holds something else than numbers.
    """
    check_file(path)
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t" if path.suffix in (".tsv", ".txt") else ",", index_col=0)
    except ValueError as error:  # pandas' parser errors and wrong encodings are ValueErrors
        raise InputError(f"{path} cannot be read as a table: {reason(error)}") from error
    if not table.shape[1]:
        raise InputError(f"{path} has no columns beside the names; is it separated by commas (.csv) or tabs (.tsv)?")
    for column in table.columns.difference(table.select_dtypes(["number", "bool"]).columns, sort=False):
        raise InputError(f"{path}: column {column!r} has values that are no numbers")
    if not table.index.is_unique:
        raise InputError(f"{path}: row {table.index[table.index.duplicated()][0]!r} occurs more than once")
    return table


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a place beside ``path`` to write to; it takes its name when all is written, and goes if that fails."""
    with part_of(path) as part, writing(path):
        yield part
        os.replace(part, path)


def write_h5ad(path: Path, adata: AnnData) -> None:
    """Write cells to a file, compressed; whole or not at all."""
    with whole_file(path) as part, hdf5(part) as (file, _):
        write_cells(file, adata, dataset_kwargs={"compression": "gzip"})


def write_cells(group: Any, adata: AnnData, **options: Any) -> None:
    """Write cells to an open file or store, as AnnData's own methods do."""
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    write_elem(group, "/", adata, **options)
    if adata.raw is None and "raw" in group:
        del group["raw"]  # a note that there is none, which anndata before 0.11 cannot read


@contextlib.contextmanager
def hdf5(path: Path) -> Iterator[tuple[h5py.File, Disk]]:
    """Yield a new HDF5 file to write to, and its disk; an error of the disk is raised at the end at the latest."""
    import h5py

    with path.open("w+b", buffering=0) as raw:
        disk = Disk(raw)
        try:
            with h5py.File(disk, "w") as file:
                yield file, disk
        finally:
            disk.check()


class Disk:
    """A file that remembers its first error, and in memory what it could not take.

    HDF5 that meets an error of the disk can neither go on nor close, and what it wrote it may read again.
    """

    def __init__(self, raw: RawIOBase) -> None:
        self._raw = raw
        self._lost: list[tuple[int, bytes]] = []  # places, and what belongs there
        self.error: OSError | None = None
        self.tell, self.flush = raw.tell, raw.flush

    def check(self) -> None:
        """Raise the error, if there was one."""
        if self.error is not None:
            raise self.error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = self._raw.seek(offset, whence)
        if whence == os.SEEK_END and self._lost:
            at = self._raw.seek(max(at, offset + max(start + len(data) for start, data in self._lost)))
        return at

    def write(self, data: memoryview) -> int:
        rest = memoryview(data)
        while rest and self.error is None:
            try:
                rest = rest[self._raw.write(rest) :]  # a disk that is nearly full takes a part
            except OSError as error:
                self.error = error
        if rest:
            self._lost.append((self._raw.tell(), bytes(rest)))
            self._raw.seek(len(rest), os.SEEK_CUR)
        return len(data)

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readinto(self, buffer: memoryview) -> int:
        into, first = memoryview(buffer).cast("B"), self._raw.tell()
        n = self._raw.readinto(into) or 0
        if not self._lost:
            return n
        into[n:] = bytes(len(into) - n)
        for start, data in self._lost:
            low, high = max(start, first), min(start + len(data), first + len(into))
            if low < high:
                into[low - first : high - first] = data[low - start : high - start]
        return len(into)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._raw.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


@contextlib.contextmanager
def part_of(path: Path) -> Iterator[Path]:
    """Yield a hidden place beside ``path``, for a file or a folder; what is left there at the end goes.

    So does what processes of this machine left that were killed: theirs is the only way to leave anything.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if maker_is_gone(left):
            remove(left)
    part = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    remove(part)  # of a killed process that had our number: in a container all do
    try:
        yield part
    finally:
        remove(part)


def maker_is_gone(part: Path) -> bool:
    """Whether the process that made a part ran on this machine and runs no more."""
    host, _, pid = part.stem.rpartition("-")
    if not (host.endswith(f".{socket.gethostname()}") and pid.isdecimal()):
        return False
    try:
        os.kill(int(pid), 0)  # asks, and does nothing
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        pass
    return False


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Delete a folder that has a meaning: nobody finds half of it."""
    with part_of(folder) as part:
        os.replace(folder, part)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """Open a file, made if need be, for this process alone; the system unlocks it when that ends, however it ends.

    Raises
    ------
    InputError
        Another process has it.
    """
    import fcntl

    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise InputError(
                f"another process works in {path.parent}: wait for its end, or choose another place"
            ) from None
        except OSError:  # some file systems know no locks
            pass
        file.seek(0)
        yield file


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of any failure what could not be written: full disks come as several types of error."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error


def check_file(path: Path) -> None:
    """Refuse a path that no file has; the nearest name in its folder is told."""
    # not the methods of the path: they raise an error where a name is longer than names can be
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, not a file")
    if not os.path.exists(path):
        hint = closest(path.name, os.listdir(path.parent)) if os.path.isdir(path.parent) else ""
        raise InputError(f"there is no file {path}{hint if 'nearest' in hint else ''}")


def check_folder_place(path: Path) -> None:
    """Refuse, before any work is done, a place that nothing can be written to."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {folder}; create it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {path}: no permission to write in {folder}")


def check_file_place(path: Path, suffix: str, *, inputs: Iterable[Path] = ()) -> None:
    """Refuse, before any work is done, a place that no file with this suffix can be written to."""
    check_folder_place(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a {suffix} file")
    if path.suffix != suffix:
        raise InputError(f"cannot write {path}: the file is {suffix[1:]}, let its name end in {suffix}")
    if path.resolve() in [one.resolve() for one in inputs]:
        raise InputError(f"cannot write {path}: it is one of the inputs")


def check_cells_place(path: Path, *, inputs: Iterable[Path]) -> None:
    """Refuse, before any work is done, a place that no .h5ad or .zarr can be written to."""
    if path.suffix != ".zarr":
        return check_file_place(path, ".h5ad", inputs=inputs)
    check_folder_place(path)
    if path.resolve() in [one.resolve() for one in inputs]:
        raise InputError(f"cannot write {path}: it is one of the inputs")
    if path.exists():
        raise InputError(f"cannot write {path}: it exists, and folders are not overwritten; choose another place")


def reason(error: BaseException) -> str:
    """What the system says is wrong, with the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return f"{error}" or type(error).__name__
