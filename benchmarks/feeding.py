"""Minibatches from cells on disk, beside those of scDataset (D'Ascenzo & Cultrera di Montesano 2025).

    pip install scdataset==0.3.0
    python benchmarks/feeding.py [--cells 100000] [--genes 20000] [--passes 1] [--repeats 3]

Both read the file of scale.py, csr and sorted by kind of cell, as it is and compressed as anndata does it, and give csr
tensors of 512 cells for whole passes; nothing is trained. scDataset takes `fetch` minibatches of blocks of the file at
once and shuffles them: a fetch of 16 is its default, a block as large as the fetch factor its advice. It leaves open
how cells are read. *By row* indexes a backed AnnData, as its examples do, which reads each cell by itself; the others
hand anndata a mask, and neighbours are read at once. A *worker* is a process that reads ahead; scIDiff has a thread.
*Split* takes the molecules held out from every cell. Each run is a process of its own, ways in turn; speed is the
median of the repeats and their range, the page cache is warm. Memory is what minibatches add to the largest that the
process needs, without its worker. *Kinds* is the exponential of the entropy of the 40 kinds within a minibatch, on
average and in the worst.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData, read_h5ad
from scale import BATCH, write
from scipy import sparse
from torch.utils.data import DataLoader

from scidiff.data.molecules import split_molecules
from scidiff.streaming import CellFile
from scidiff.training import StoredBatches
from scidiff.training.batches import as_tensor
from scidiff.training.disk import BUFFER

try:
    from scdataset import BlockShuffling, scDataset
except ImportError:
    sys.exit("scDataset is what this is compared with: pip install scdataset==0.3.0")

KINDS, HELD_OUT = 40, 0.05
Minibatches = Iterator[tuple[np.ndarray, torch.Tensor]]
Cells = tuple[np.ndarray, sparse.csr_matrix]


# ---- scIDiff ---------------------------------------------------------------------------------------------------------


class Whole(StoredBatches):
    """Minibatches of which nothing is held out."""

    def split(self, block: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Return all twice: who asks for what is kept gets it whole."""
        x = self.counts[self.rows(block)]
        return x, x


@dataclass(frozen=True)
class Ours:
    """Minibatches as `fit` takes them."""

    split: bool

    def __str__(self) -> str:
        return f"scIDiff{', split' if self.split else ''}"

    def of(self, path: Path) -> Minibatches:
        """Yield rows and cells for ever."""
        with CellFile(path) as file:
            cells = file.choose(None, csr_only=True)
            batches = (StoredBatches if self.split else Whole)(cells, held_out=HELD_OUT, seed=0)
            generator, step = torch.Generator(), 0
            yield np.array([], int), torch.empty(0)  # what comes before, the survey of the file, is not measured
            try:
                while True:
                    yield batches.draw(BATCH, step=(step := step + 1), rank=0, generator=generator)
            finally:
                batches.close()


# ---- scDataset -------------------------------------------------------------------------------------------------------


def by_row(adata: AnnData, rows: np.ndarray) -> Cells:
    """Return sorted rows, and their cells."""
    return rows, adata[rows].X


def by_stretch(adata: AnnData, rows: np.ndarray) -> Cells:
    """Return sorted rows, and their cells; those that are neighbours in the file are read at once."""
    mask = np.zeros(adata.n_obs, bool)
    mask[rows] = True
    return rows, adata.X[mask]


def kept(cells: Cells) -> Cells:
    """Return what is kept of the cells; to hold out the same in every pass, their blocks would have to be known."""
    rows, x = cells
    return rows, split_molecules(x, held_out=HELD_OUT, seed=0)[0]


def chosen(cells: Cells, at: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """Return one minibatch."""
    rows, x = cells
    return rows[at], as_tensor(x[at])


@dataclass(frozen=True)
class Theirs:
    """Minibatches of scDataset over a backed AnnData."""

    block: int
    fetch: int
    read: Callable[[AnnData, np.ndarray], Cells] = by_stretch
    split: bool = False
    workers: int = 0

    def __str__(self) -> str:
        words = [f"scDataset, blocks of {self.block}, fetch {self.fetch}"]
        words += ["by row"] if self.read is by_row else []
        words += ["worker"] if self.workers else []
        return ", ".join(words + (["split"] if self.split else []))

    def of(self, path: Path) -> Minibatches:
        """Yield rows and cells, pass after pass."""
        dataset = scDataset(
            read_h5ad(path, backed="r"),
            BlockShuffling(block_size=self.block),
            batch_size=BATCH,
            fetch_factor=self.fetch,
            fetch_callback=self.read,
            fetch_transform=kept if self.split else None,
            batch_callback=chosen,
            seed=0,
        )
        ahead = {"num_workers": self.workers, "prefetch_factor": self.fetch + 1} if self.workers else {}
        loader: Iterable = DataLoader(dataset, batch_size=None, **ahead)
        yield np.array([], int), torch.empty(0)
        while True:
            yield from loader


def ways(block: int) -> list[Ours | Theirs]:
    """Return all that is compared; ``block`` are the cells of a block of scIDiff."""
    same = block * BUFFER // BATCH  # fetched at once: as many cells as scIDiff has in its buffer
    return [
        Ours(split=False),
        Theirs(16, 16, read=by_row),
        Theirs(16, 16),
        Theirs(16, same),
        Theirs(block, 4),
        Theirs(block, 16),
        Theirs(block, same),
        Ours(split=True),
        Theirs(16, 16, split=True),
        Theirs(16, 16, split=True, workers=1),
        Theirs(block, same, split=True),
    ]


# ---- measuring -------------------------------------------------------------------------------------------------------


def effective_kinds(rows: np.ndarray, n_cells: int) -> float:
    """Return the exponential of the entropy of the kinds of these cells."""
    share = np.bincount(rows * KINDS // n_cells, minlength=KINDS) / len(rows)
    return float(np.exp(-np.sum(share[share > 0] * np.log(share[share > 0]))))


def drawn_at_random(n_cells: int, *, draws: int = 1000) -> list[float]:
    """Return the effective kinds of minibatches of cells drawn uniformly."""
    rng = np.random.default_rng(0)
    return [effective_kinds(rng.choice(n_cells, BATCH, replace=False), n_cells) for _ in range(draws)]


def largest() -> int:
    """Return the most memory that this process had, in kB; what its parent had is not in it, nor its workers'."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(way: Ours | Theirs, path: Path, n_cells: int, passes: int) -> dict[str, float]:
    """Return cells a second, the memory that was needed for them in GB, and how well they are mixed."""
    stream = way.of(path)
    next(stream)
    before = largest()
    started, seen, kinds = time.perf_counter(), 0, []
    for rows, _ in stream:
        seen += len(rows)
        if len(rows) == BATCH:  # the last of a pass of scDataset is smaller
            kinds.append(effective_kinds(rows, n_cells))
        if seen > passes * n_cells - BATCH:  # a whole minibatch more would have to read the next pass
            break
    rate = seen / (time.perf_counter() - started)
    stream.close()
    return {"rate": rate, "memory": (largest() - before) / 1e6, "kinds": float(np.mean(kinds)), "fewest": min(kinds)}


def block_of(path: Path) -> int:
    """Return the cells of a block of scIDiff."""
    with CellFile(path) as file:
        return StoredBatches(file.choose(None, csr_only=True), held_out=0, seed=0).block_cells


def rates(runs: list[dict[str, float]]) -> str:
    """Return the median of the cells a second, and their range."""
    found = [run["rate"] for run in runs]
    return f"{np.median(found):,.0f} | {min(found):,.0f}-{max(found):,.0f}"


def main() -> None:
    """Measure every way in processes of their own, in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path, default=Path(__file__).parent / "results" / "feeding.md")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # file, cells of a block, number of the way
    args = parser.parse_args()
    if args.one:
        path, block, number = args.one
        print(json.dumps(measure(ways(int(block))[int(number)], Path(path), args.cells, args.passes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "plain.h5ad", Path(folder) / "gzip.h5ad"
        write(plain, args.cells, args.genes)
        read_h5ad(plain).write_h5ad(packed, compression="gzip")
        block = block_of(plain)
        found: dict[tuple[str, Path], list[dict[str, float]]] = defaultdict(list)
        for _ in range(args.repeats):
            for number, way in enumerate(ways(block)):
                for path in (plain, packed):
                    command = [sys.executable, "-W", "ignore", __file__, "--one", str(path), str(block), str(number)]
                    command += ["--cells", str(args.cells), "--passes", str(args.passes)]
                    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                    found[str(way), path].append(json.loads(told.splitlines()[-1]))
                    print(way, path.stem, found[str(way), path][-1], flush=True)
    uniform = drawn_at_random(args.cells)
    lines = [
        f"Made by `python benchmarks/feeding.py --cells {args.cells} --genes {args.genes}`, "
        f"{torch.get_num_threads()} threads on {os.cpu_count()} cores; {args.repeats} runs, {args.passes} x all cells. "
        f"Minibatches drawn at random: {np.mean(uniform):.1f} kinds, fewest {min(uniform):.1f}.",
        "",
        "| minibatches | cells/s | range | gzip, cells/s | range | memory, GB | kinds | fewest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in map(str, ways(block)):
        runs = found[way, plain]
        memory = "" if "worker" in way else f"{np.median([run['memory'] for run in runs]):.2f}"
        lines.append(
            f"| {way} | {rates(runs)} | {rates(found[way, packed])} | {memory} "
            f"| {runs[0]['kinds']:.1f} | {runs[0]['fewest']:.1f} |"
        )
    print("\n".join(lines))
    args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
