"""Cells on disk: time and memory of training and denoising against the number of cells, and of processes.

    python benchmarks/scale.py [--cells 10000 100000 1000000] [--genes 20000] [--steps 40] [--processes 1 2] [--whole]

Files are simulated, csr without compression, about 600 molecules a cell; speed does not depend on biology. Each is read
and trained on in a process of its own, whose largest memory is reported. *Reading* are the two passes before training
(is it counts; depths and the sample of cells in memory); *feeding* is what minibatches reach without a network, kept
molecules split from those held out; *training* are steps of the stage that denoises, with the size that networks have
where cells are many, also where they are few; a pass over all cells takes as long as cells / training. *Denoising* is
of 2,000 genes into float16 zarr, measured on a share of the file. With --whole, training is one whole pass over the
largest file, and all of its cells are denoised: *in all* is what reading, training and denoising took. From 50,000
cells on, memory holds a sample of so many, and grows only with what is known of each cell: names, conditions, depth.
Processes: the same minibatches of the smallest file, cut among processes of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem
from throughput import fake_cells

import scidiff as sd
from scidiff.model import SIZE
from scidiff.shares import Share
from scidiff.streaming import RUN, CellFile
from scidiff.training import StoredBatches
from scidiff.training.batches import Batches

POOL, DEPTH = 4096, 600
BATCH = 512  # of the stage that denoises
DENOISED = 10_000  # cells, about
SCHEMA = sd.Schema(perturbation="drug", control="none", context="cell_type")


def write(path: Path, n_cells: int, n_genes: int) -> None:
    """Write a file of cells drawn from a pool, sorted by type and drug, a stretch at a time."""
    rng = np.random.default_rng(0)
    pool = fake_cells(POOL, n_genes, depth=DEPTH).X
    pool.sum_duplicates()
    kinds = np.arange(n_cells) * 40 // n_cells
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(kinds // 10, list("TBMN")),
            "drug": pd.Categorical.from_codes(kinds % 10, ["none", *"ABCDEFGHI"]),
        },
        index=np.arange(n_cells).astype(str),
    )
    with h5py.File(path, "w") as file:
        write_elem(file, "/", AnnData(obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])))
        for start in range(0, n_cells, POOL):
            x = pool[rng.permutation(POOL)[: n_cells - start]]
            if start:
                sparse_dataset(file["X"]).append(x)
            else:
                write_elem(file, "X", x, dataset_kwargs={"indptr_dtype": np.int64})


def measure(path: Path, steps: int, *, whole: bool) -> dict[str, float]:
    """Return seconds, cells a second, and the largest memory of this process in GB."""
    began = time.monotonic()
    with CellFile(path) as file:
        started = time.monotonic()
        batches = StoredBatches(file.choose(None, csr_only=True), held_out=0.05, seed=0)
        batches.gather(np.arange(0, len(batches), max(len(batches) // 50_000, 1)))
        reading = time.monotonic() - started
        feeding = feed(batches, 2 * 64 * batches.block_cells)
        batches.close()
    model, training = trained(path, -(-len(batches) // BATCH) if whole else steps)
    of = 1 if whole else max(1, len(batches) // DENOISED)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        opened: list[float] = []
        made = model.denoise_file(
            path,
            Path(folder) / "out.zarr",
            genes=model.genes[:2000],
            half=True,
            share=Share(1, of),
            on_cells=lambda done, n: opened.append(time.monotonic()),
        )
    each = (opened[-1] - opened[0]) / (len(made) - RUN) if len(opened) > 1 else (opened[-1] - started) / len(made)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rates = {"reading": reading, "feeding": feeding, "training": training, "denoising": 1 / each, "memory": memory}
    return rates | ({"in all": time.monotonic() - began} if whole else {})


def trained(path: Path, steps: int) -> tuple[sd.ScIDiff, float]:
    """Return a model of the file, trained for some steps, and the cells a second of the second half of them."""
    looks: list[float] = []
    model = sd.ScIDiff.fit(
        path,
        SCHEMA,
        denoise_only=True,
        **SIZE,
        config=sd.TrainConfig(steps=steps * 4 // 3, evaluate_every=10**6),
        on_step=lambda at: looks.append(time.monotonic()),
    )
    if not looks:  # of several processes, one tells
        return model, float("nan")
    half = len(looks) // 2
    each = (looks[-2] - looks[half]) / (len(looks) - 2 - half)  # the last step looks at what was held out
    return model, BATCH / each


def against_processes(path: Path, processes: list[int], steps: int) -> list[str]:
    """Return lines of a table: cells a second of so many processes of one thread each."""
    lines, alone = ["", "| processes | training, cells/s | of one |", "|---|---|---|"], None
    for n in processes:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n), __file__]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        told = subprocess.run(
            [sys.executable, *command, "--rate", str(path), "--steps", str(steps)],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        ).stdout
        rate = max(
            json.loads(line)["rate"] for line in told.splitlines() if line.startswith('{"rate": ') and "NaN" not in line
        )
        alone = alone or rate
        lines.append(f"| {n} | {rate:,.0f} | {rate / alone:.2f} |")
        print(lines[-1], flush=True)
    return lines


def feed(batches: Batches, n_cells: int) -> float:
    """Return the cells a second that minibatches reach."""
    generator, started = torch.Generator(), time.monotonic()
    steps = -(-min(n_cells, len(batches)) // BATCH)
    for step in range(1, steps + 1):
        batches.draw(BATCH, step=step, rank=0, generator=generator)
    return BATCH * steps / (time.monotonic() - started)


def main() -> None:
    """Measure each size in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--whole", action="store_true", help="one pass over the largest file, and all of it denoised")
    parser.add_argument("--write", type=Path, default=Path(__file__).parent / "results" / "scale.md")
    for hidden in ("--one", "--rate"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.steps, whole=args.whole)))
        return
    if args.rate:
        torch.set_num_threads(1)
        print(json.dumps({"rate": trained(args.rate, args.steps)[1]}))
        return
    rows, processes = [], []
    for n_cells in sorted(args.cells):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cells.h5ad"
            write(path, n_cells, args.genes)
            command = [sys.executable, __file__, "--one", str(path), "--steps", str(args.steps)]
            command += ["--whole"] if args.whole and n_cells == max(args.cells) else []
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"cells": n_cells, "file, GB": path.stat().st_size / 1e9} | json.loads(told.splitlines()[-1]))
            print(rows[-1], flush=True)
            if n_cells == min(args.cells) and args.processes:
                processes = against_processes(path, args.processes, args.steps)
    called = f"--cells {' '.join(map(str, args.cells))} --steps {args.steps}{' --whole' if args.whole else ''}"
    lines = [
        f"Made by `python benchmarks/scale.py {called}`. Files of "
        f"{args.genes:,} genes, {torch.get_num_threads()} threads on {os.cpu_count()} cores.",
        "",
        "| cells | file, GB | reading, s | feeding, cells/s | training, cells/s | a pass, min "
        "| denoising, cells/s | all cells, min | memory, GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        a_pass = row["cells"] / row["training"] / 60
        lines.append(
            f"| {row['cells']:,} | {row['file, GB']:.2f} | {row['reading']:.1f} | {row['feeding']:,.0f} "
            f"| {row['training']:,.0f} | {a_pass:.1f} | {row['denoising']:,.0f} "
            f"| {row['cells'] / row['denoising'] / 60:.1f} | {row['memory']:.2f} |"
        )
    if len(rows) > 1:
        table = pd.DataFrame(rows)
        slopes = {name: np.polyfit(table["cells"], table[name], 1) for name in ("reading", "memory")}
        lines += ["", *(f"{name}: {b:.3g} + {1e6 * a:.3g} for each million cells" for name, (a, b) in slopes.items())]
    if args.whole:
        lines += [
            "",
            f"{rows[-1]['cells']:,} cells in all: {rows[-1]['in all'] / 60:.0f} min, each seen once in training.",
        ]
    text = "\n".join([*lines, *processes])
    print(text)
    args.write.write_text(text + "\n")


if __name__ == "__main__":
    main()
