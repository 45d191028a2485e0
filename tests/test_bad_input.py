"""Every row of bad_input.md: one clear line that names the offending thing, a failing exit code, nothing written.

The table says what a user does and what he is told; the functions here do it, one for each row, under the row's name.
For a command line a function returns the words after ``scidiff``; for Python, the call that fails. Where the shell and
Python can both be given the input, ``OTHER_WAY`` has the other of the two, and the answer must be the same.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from scipy import sparse

import scidiff as sd
from scidiff.benchmarking import benchmark_denoising, benchmark_design, benchmark_prediction
from scidiff.cli import main
from scidiff.storage import file_hash

TABLE = Path(__file__).with_name("bad_input.md")
SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context="cell_type")
ROLES = ["--perturbation", "drug", "--control", "DMSO", "--context", "cell_type"]
SMALL = {"width": 8, "n_blocks": 1}
CONFIG = {"steps": 2, "batch_size": 8}


def table_rows() -> list[list[str]]:
    """Return name, entry, other entry, input and message of every row of the table."""
    lines = [line.strip().strip("|").split("|") for line in TABLE.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def good() -> AnnData:
    """Return 120 cells of two types under DMSO, A, B and A+B, 30 genes, no gene or cell without counts."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "drug": np.resize(["DMSO", "A", "B", "A+B"], 120),
            "cell_type": np.repeat(["CD4 T", "CD8 T"], 60),
            "amount": np.resize(["0 uM", "1 uM", "10 uM", "plenty"], 120),
        },
        index=[f"cell{i}" for i in range(120)],
    )
    counts = sparse.csr_matrix(1 + rng.poisson(2.0, (120, 30)), dtype=np.float32)
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(30)]))


def fitted() -> sd.ScIDiff:
    return sd.ScIDiff.fit(good(), SCHEMA, **SMALL, config=sd.TrainConfig(**CONFIG))


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> Path:
    """A folder with good cells, generated cells and a model."""
    folder = tmp_path_factory.mktemp("originals")
    good().write_h5ad(folder / "cells.h5ad")
    model = fitted()
    model.save(folder / "model")
    model.generate(400).write_h5ad(folder / "generated.h5ad")
    return folder


class Box:
    """A fresh copy of the originals as working directory, and the ways to spoil it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.taken: socket.socket | None = None

    def spoil(self, edit: Callable[[AnnData], AnnData | None]) -> str:
        """Change the cells in cells.h5ad; return the name of that file."""
        cells = good()
        changed = edit(cells)
        (cells if changed is None else changed).write_h5ad("cells.h5ad")
        return "cells.h5ad"

    def text(self, name: str, content: str) -> str:
        Path(name).write_text(content)
        return name

    def edit_json(self, name: str, **values: object) -> None:
        """Change values in a JSON file; None removes one."""
        before = json.loads(Path(name).read_text()) | values
        Path(name).write_text(json.dumps({key: value for key, value in before.items() if value is not None}))

    def no_permission(self, place: str) -> None:
        """Deny access to one place, also to root, whom no mode of a file stops."""
        allowed = os.access
        self.patch.setattr(os, "access", lambda path, mode: Path(path) != Path(place) and allowed(path, mode))

    def no_cache(self) -> None:
        """Let nothing be in the user's cache."""
        self.patch.setattr("pooch.os_cache", lambda name: Path("cache", name))

    def full_disk(self) -> None:
        def fail(*args: object, **options: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch.setattr(os, "replace", fail)

    def unfinished(self, request: str) -> None:
        Path("new.partial").mkdir()
        self.text("new.partial/request.json", request)


@pytest.fixture
def box(originals, tmp_path, monkeypatch) -> Iterator[Box]:
    folder = shutil.copytree(originals, tmp_path / "work")
    monkeypatch.chdir(folder)
    made = Box(folder, monkeypatch)
    yield made
    if made.taken is not None:
        made.taken.close()


# ---- the ways to spoil cells ----------------------------------------------------------------------------------------


def dense(cells: AnnData, value: float) -> None:
    """Make X dense with one value at cell1, G2."""
    cells.X = cells.X.toarray()
    cells.X[1, 2] = value


def scaled(cells: AnnData) -> None:
    x = cells.X.toarray()
    cells.X = (x - x.mean(axis=0)) / x.std(axis=0)


def normalised(cells: AnnData) -> None:
    x = cells.X.toarray()
    cells.X = x / x.sum(axis=1, keepdims=True) * 1e4


def logged(cells: AnnData) -> None:
    normalised(cells)
    cells.X = np.log1p(cells.X)


def emptied(cells: AnnData) -> None:
    x = cells.X.toarray()
    x[3:7] = 0
    cells.X = sparse.csr_matrix(x)


def double_genes(cells: AnnData) -> None:
    cells.var_names = ["G0", "G0", *cells.var_names[2:]]


def double_cells(cells: AnnData) -> None:
    cells.obs_names = ["cell0", "cell0", *cells.obs_names[2:]]


def set_drug(cells: AnnData, value: str) -> None:
    cells.obs["drug"] = cells.obs["drug"].replace({"A": value})


def no_b_in_cd8(cells: AnnData) -> AnnData:
    return cells[(cells.obs["drug"] != "B") | (cells.obs["cell_type"] != "CD8 T")].copy()


def other_column(cells: AnnData) -> None:
    cells.obs["perturbation"] = "x"


# ---- one function for each row --------------------------------------------------------------------------------------


def train(*words: str, data: str = "cells.h5ad", out: str = "new") -> list[str]:
    return ["train", data, "--out", out, *ROLES, "--steps", "2", *words]


def generate(*words: str, model: str = "model", out: str = "out.h5ad") -> list[str]:
    return ["generate", model, "--out", out, "--n", "3", *words]


def evaluate(*words: str, out: str = "scores.csv") -> list[str]:
    return ["evaluate", "generated.h5ad", "cells.h5ad", "--out", out, *words]


def predict(to: str = "drug=A", *words: str, data: str = "cells.h5ad", out: str = "out.h5ad") -> list[str]:
    return ["predict", "model", data, "--out", out, *words, "--to", to]


def trajectory(*words: str, out: str = "out.h5ad") -> list[str]:
    return ["trajectory", "model", "cells.h5ad", "--out", out, *words]


def denoise(*words: str, data: str = "cells.h5ad", out: str = "out.h5ad") -> list[str]:
    return ["denoise", "model", data, "--out", out, *words]


def design(*words: str, out: str = "out.h5ad") -> list[str]:
    return ["design", "model", "--out", out, "--n", "3", *words]


def attribute(*words: str, out: str = "ranking.csv") -> list[str]:
    return ["attribute", "model", "--out", out, *words]


def benchmark(task: str, *words: str, data: str = "cells.h5ad", out: str = "judged") -> list[str]:
    return ["benchmark", data, "--task", task, "--out", out, *words]


def other_hdf5(box: Box) -> list[str]:
    with h5py.File("tenx.h5", "w") as file:
        file["matrix/data"] = np.zeros(3)
    return ["check", "tenx.h5"]


def damaged_inside(words: list[str]) -> list[str]:
    with h5py.File("cells.h5ad", "a") as file:
        del file["X/indptr"]
    return words


def truncated(box: Box) -> list[str]:
    Path("cells.h5ad").write_bytes(Path("cells.h5ad").read_bytes()[:5000])
    return ["check", "cells.h5ad"]


def not_readable(box: Box) -> list[str]:
    box.no_permission("cells.h5ad")
    return ["check", "cells.h5ad"]


def out_no_permission(box: Box) -> list[str]:
    box.no_permission(".")
    return train()


def out_not_a_model(box: Box) -> list[str]:
    Path("new").mkdir()
    box.text("new/thesis.txt", "years of work")
    return train()


def unfinished(box: Box) -> list[str]:
    box.unfinished("{}")
    return train()


def resume_other_data(box: Box) -> list[str]:
    box.unfinished(json.dumps({"data": "a hash of other cells"}))
    return train("--resume")


def resume_damaged(box: Box) -> list[str]:
    box.unfinished("{")
    return train("--resume")


def model_manifest_damaged(box: Box) -> list[str]:
    box.text("model/manifest.json", '{"format": 1, ')
    return generate()


def model_weights_damaged(box: Box) -> list[str]:
    weights = Path("model/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    return generate()


def model_weights_missing(box: Box) -> list[str]:
    Path("model/weights.safetensors").unlink()
    return generate()


def model_newer(box: Box) -> list[str]:
    box.edit_json("model/manifest.json", format=99)
    return generate()


def disk_full(box: Box, words: list[str]) -> list[str]:
    box.full_disk()
    return [*words, "--quiet"]


def data_without_network(box: Box) -> Callable:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no network")

    box.patch.setenv("SCIDIFF_DATA", str(box.folder))
    box.patch.setattr("pooch.os_cache", lambda name: str(box.folder / "cache"))
    box.patch.setattr("pooch.retrieve", refuse)
    return partial(sd.data.load, "norman19")


def few_shared_genes(box: Box) -> list[str]:
    box.spoil(genes_of_another_kind)
    return evaluate()


def few_real_cells(box: Box) -> list[str]:
    box.spoil(lambda cells: cells[:5].copy())
    return evaluate()


def real_without_conditions(box: Box) -> list[str]:
    box.spoil(lambda cells: setattr(cells, "obs", cells.obs[["cell_type"]]))
    return evaluate()


def split_of_other_cells(box: Box) -> Callable:
    split = sd.data.random_split(good(), SCHEMA)
    return partial(split.verify, good()[::-1])


def fit(edit: Callable[[AnnData], AnnData | None] | None = None, **options: object) -> Callable:
    """Return the call of ScIDiff.fit on spoiled cells."""
    cells = good()
    changed = None if edit is None else edit(cells)
    options = {"config": sd.TrainConfig(**CONFIG)} | SMALL | options
    return partial(sd.ScIDiff.fit, cells if changed is None else changed, options.pop("schema", SCHEMA), **options)


def asked(*arguments: object, **options: object) -> Callable:
    """Return the call of ScIDiff.generate."""
    return partial(fitted().generate, *arguments, **options)


def of_logs() -> tuple[sd.ScIDiff, AnnData]:
    """Return a model of log expression, and the cells."""
    cells = good()
    logged(cells)
    return sd.ScIDiff.fit(cells, SCHEMA, **SMALL, config=sd.TrainConfig(**CONFIG)), cells


def depth_without_counts(box: Box) -> Callable:
    return partial(of_logs()[0].generate, 3, depth=100)


def scale_without_counts(box: Box) -> Callable:
    model, cells = of_logs()
    return partial(model.denoise, cells, scales=["rate"])


def no_perturbation_to_learn(box: Box) -> Callable:
    model = sd.ScIDiff.fit(good(), sd.Schema(context="cell_type"), **SMALL, config=sd.TrainConfig(**CONFIG))
    return partial(model.predict, good(), {"drug": "A"})


def draws_without_molecules(box: Box) -> Callable:
    model = sd.ScIDiff.fit(good(), SCHEMA, noise="gaussian", **SMALL, config=sd.TrainConfig(**CONFIG))
    return partial(model.denoise, good(), draws=1)


def nothing_the_model_knows(box: Box) -> Callable:
    cells = good()
    x = sparse.hstack([cells.X, np.ones((120, 1))]).tolil()
    x[:2, :30] = 0
    genes = pd.DataFrame(index=[*cells.var_names, "other"])
    return partial(fitted().denoise, AnnData(x.tocsr(), obs=cells.obs, var=genes))


def design_from_logs(box: Box) -> Callable:
    return partial(of_logs()[0].design, sd.Phenotype(up=["G1"]), 3)


def design_of_a_denoiser(box: Box) -> Callable:
    model = sd.ScIDiff.fit(good(), SCHEMA, denoise_only=True, **SMALL, config=sd.TrainConfig(**CONFIG))
    return partial(model.design, sd.Phenotype(up=["G1"]), 3)


def nothing_to_name(box: Box) -> Callable:
    model = sd.ScIDiff.fit(good(), sd.Schema(context="cell_type"), **SMALL, config=sd.TrainConfig(**CONFIG))
    return partial(model.attribute, up=["G1"])


def no_control_to_compare_with(box: Box) -> Callable:
    cells = good()
    treated = cells[cells.obs["drug"] != "DMSO"].copy()
    return partial(fitted().attribute, treated, reference=treated)


def benchmark_damaged(box: Box) -> list[str]:
    Path("judged").mkdir()
    box.text("judged/request.json", "{")
    return benchmark("predict", *ROLES, "--split", "cell_type=each", "--resume")


def existing_store(box: Box, words: list[str]) -> list[str]:
    Path(words[words.index("--out") + 1]).mkdir()
    return words


def damaged_store(box: Box) -> list[str]:
    Path("cells.zarr").mkdir()
    return denoise(data="cells.zarr")


def genes_of_another_kind(cells: AnnData) -> None:
    cells.var_names = [f"ENSG{i}" for i in range(30)]


def features(box: Box, text: str) -> list[str]:
    return train("--features", box.text("features.csv", text))


def module(box: Box, name: str, sets: str, *words: str) -> list[str]:
    return train("--module", f"{name}={box.text('sets.gmt', sets)}", *words)


def fate(*ends: str, out: str = "out.h5ad") -> list[str]:
    return ["fate", "model", "cells.h5ad", "--out", out, *(word for end in ends for word in ("--terminal", end))]


def weights_of_a_stranger(box: Box) -> list[str]:
    box.text("model/weights.safetensors", "none")
    box.edit_json(
        "model/manifest.json", weights_sha256=file_hash(Path("model/weights.safetensors")), manifest_sha256=None
    )
    return generate()


def by_genes(cells: AnnData) -> None:
    cells.X = cells.X.tocsc()


def sparse_logs(cells: AnnData) -> None:
    logged(cells)
    cells.X = sparse.csr_matrix(cells.X)


def beyond_the_genes(words: list[str]) -> list[str]:
    with h5py.File("cells.h5ad", "a") as file:
        file["X/indices"][3] = 30
    return words


def port_in_use(box: Box) -> list[str]:
    box.taken = socket.create_server(("127.0.0.1", 0))  # closed with the box
    return ["studio", "model", "--no-browser", "--port", str(box.taken.getsockname()[1])]


CASES: dict[str, Callable[[Box], list[str] | Callable]] = {
    # files
    "no file": lambda box: ["check", "missing.h5ad"],
    "misspelt file": lambda box: ["check", "cels.h5ad"],
    "folder as file": lambda box: ["check", "model"],
    "text as h5ad": lambda box: ["check", box.text("notes.h5ad", "hello")],
    "truncated h5ad": truncated,
    "other HDF5": other_hdf5,
    "h5ad damaged inside": lambda box: damaged_inside(["check", "cells.h5ad"]),
    "file not readable": not_readable,
    # matrices
    "scaled": lambda box: train(data=box.spoil(scaled)),
    "scaled, check": lambda box: ["check", box.spoil(scaled), "--quiet"],
    "scaled, Python": lambda box: fit(scaled),
    "normalised, not logged": lambda box: train(data=box.spoil(normalised)),
    "log for thinning": lambda box: train("--noise", "thinning", data=box.spoil(logged)),
    "negative": lambda box: train(data=box.spoil(lambda cells: dense(cells, -1))),
    "NaN": lambda box: train(data=box.spoil(lambda cells: dense(cells, np.nan))),
    "infinite": lambda box: fit(lambda cells: dense(cells, np.inf)),
    "no cells": lambda box: train(data=box.spoil(lambda cells: cells[:0].copy())),
    "no genes": lambda box: fit(lambda cells: cells[:, :0].copy()),
    "all-zero cells": lambda box: train(data=box.spoil(emptied)),
    "no matrix": lambda box: fit(lambda cells: AnnData(obs=cells.obs, var=cells.var)),
    "no AnnData": lambda box: partial(sd.data.read_cells, np.zeros((3, 3))),
    # names
    "duplicate genes": lambda box: train(data=box.spoil(double_genes)),
    "duplicate cells": lambda box: train(data=box.spoil(double_cells)),
    "unknown layer": lambda box: train("--layer", "countz"),
    "gene mismatch": lambda box: partial(sd.data.read_cells, good(), genes=["G0", *(f"H{i}" for i in range(9))]),
    "unknown gene": lambda box: train("--genes", box.text("genes.txt", "G0\nG1\ng29\n")),
    "no gene": lambda box: train("--genes", box.text("genes.txt", "\n")),
    "genes twice": lambda box: train("--genes", box.text("genes.txt", "G0\nG1\nG0\n")),
    "genes neither number nor file": lambda box: train("--genes", "all"),
    "zero genes": lambda box: train("--genes", "0"),
    # schema
    "missing column": lambda box: ["train", "cells.h5ad", "--out", "new", "--perturbation", "drugs"],
    "missing control": lambda box: ["train", "cells.h5ad", "--out", "new", *ROLES[:2], "--control", "dmso"],
    "control without perturbation": lambda box: ["train", "cells.h5ad", "--out", "new", "--control", "DMSO"],
    "two roles": lambda box: train("--batch", "cell_type"),
    "dose in words": lambda box: train("--dose", "amount"),
    "empty part": lambda box: train(data=box.spoil(lambda cells: set_drug(cells, "A+"))),
    # conditions
    "no grammar": lambda box: train("--holdout", "CD4 T"),
    "unclosed quote": lambda box: train("--holdout", 'cell_type="CD4 T'),
    "two values": lambda box: train("--holdout", "drug=A,drug=B"),
    "unknown attribute": lambda box: train("--holdout", "celltype=CD4 T"),
    "unknown value held out": lambda box: train("--holdout", "cell_type=CD4"),
    "one attribute twice": lambda box: train("--holdout", "perturbation=A", "--holdout", "drug=C"),
    "held out together": lambda box: train("--holdout", "drug=B,cell_type=CD8 T", data=box.spoil(no_b_in_cd8)),
    "role or column": lambda box: train("--holdout", "perturbation=A", data=box.spoil(other_column)),
    "nothing held out": lambda box: partial(sd.data.holdout, good(), SCHEMA),
    # settings of training
    "unknown noise": lambda box: train("--noise", "thining"),
    "no steps": lambda box: [*train(), "--steps", "0"],
    "share of everything": lambda box: partial(sd.TrainConfig, heldout=1.0),
    "random split of everything": lambda box: partial(sd.data.random_split, good(), SCHEMA, fraction=1.0),
    "split of other cells": split_of_other_cells,
    "features in words": lambda box: features(box, "drug,size\nA,large\nB,small\n"),
    "features without commas": lambda box: features(box, "drug size\nA 1\nB 2\n"),
    "features twice": lambda box: features(box, "drug,size\nA,1\nA,2\nB,3\n"),
    "features missing": lambda box: features(box, "drug,size\nA,1\nC,2\n"),
    "endless dose": lambda box: train(
        "--dose", "amount", data=box.spoil(lambda cells: cells.obs.__setitem__("amount", "1e999999999 uM"))
    ),
    "on disk by genes": lambda box: train("--on-disk", data=box.spoil(by_genes)),
    "on disk, dense": lambda box: train("--on-disk", data=box.spoil(logged)),
    "on disk, logs": lambda box: train("--on-disk", data=box.spoil(sparse_logs)),
    "on disk, damaged": lambda box: beyond_the_genes(train("--on-disk")),
    "on disk, Gaussian noise": lambda box: train("--on-disk", "--noise", "gaussian"),
    "on disk, modules": lambda box: module(box, "IFN", "IFN\tna\tG1\tG2\tG3\n", "--on-disk"),
    "module of no column": lambda box: train("--module", "IFN"),
    "module of words": lambda box: train("--module", "amount"),
    "module named as a role": lambda box: train("--module", "dose"),
    "module without a file": lambda box: train("--module", "IFN=sets.gmt"),
    "module not in its file": lambda box: module(box, "IFN", "IFNG\tna\tG1\tG2\tG3\n"),
    "module of other genes": lambda box: module(box, "IFN", "IFN\tna\tG1\tA\tB\tC\n"),
    # the command line
    "unknown verb": lambda box: ["trian", "cells.h5ad"],
    "unknown option": lambda box: train("--perturbatoin", "drug"),
    "missing option": lambda box: ["train", "cells.h5ad"],
    "no number": lambda box: [*train(), "--steps", "many"],
    "negative seed": lambda box: generate("--seed", "-1"),
    # places to write to
    "no folder": lambda box: train(out="models/new"),
    "no permission": out_no_permission,
    "not a model": out_not_a_model,
    "file instead of folder": lambda box: train(out="cells.h5ad"),
    "unfinished run": unfinished,
    "resumed with other data": resume_other_data,
    "resumed from a damaged run": resume_damaged,
    "folder instead of file": lambda box: generate(out="model"),
    "wrong suffix": lambda box: generate(out="out.csv"),
    "over its input": lambda box: evaluate("--reference", box.text("scores.csv", "")),
    "disk full": lambda box: disk_full(box, generate()),
    # models
    "no model": lambda box: generate(model="modle"),
    "no manifest": lambda box: generate(model="."),
    "manifest damaged": model_manifest_damaged,
    "weights damaged": model_weights_damaged,
    "weights missing": model_weights_missing,
    "newer version": model_newer,
    "manifest changed": lambda box: box.edit_json("model/manifest.json", scale="log1p") or generate(),
    "weights of a stranger": weights_of_a_stranger,
    "part of a manifest missing": lambda box: (
        box.edit_json("model/manifest.json", genes=None, manifest_sha256=None) or generate()
    ),
    "save over something else": lambda box: partial(fitted().save, "cells.h5ad"),
    # requests
    "unknown context": lambda box: generate("--condition", "cell_type=CD4"),
    "unknown perturbation": lambda box: generate("--condition", "perturbation=A+C"),
    "unknown attribute of a model": lambda box: generate("--condition", "dose=1"),
    "unknown value, Python": lambda box: asked(3, {"cell_type": "cd8 t"}),
    "no cells asked": lambda box: generate("--n", "0"),
    "more cells than memory": lambda box: generate("--n", "1000000000000"),
    "no sampler steps": lambda box: generate("--steps", "0"),
    "no depth": lambda box: generate("--depth", "0"),
    "NaN depth": lambda box: generate("--depth", "nan"),
    "depths for other cells": lambda box: asked(3, depth=np.array([100.0, 200.0])),
    "depth without counts": depth_without_counts,
    "infinite guidance": lambda box: generate("--guidance", "inf"),
    "no conditions": lambda box: asked(3, pd.DataFrame({"drug": []})),
    # denoising
    "damaged store": damaged_store,
    "no store": lambda box: denoise(data="cells.zarr"),
    "denoised over its input": lambda box: denoise(out="cells.h5ad"),
    "store over another": lambda box: existing_store(box, denoise(out="out.zarr")),
    "neither h5ad nor zarr": lambda box: denoise(out="out.csv"),
    "disk full when denoising": lambda box: disk_full(box, denoise()),
    "denoised cells damaged inside": lambda box: damaged_inside(denoise()),
    "unknown scale": lambda box: denoise("--scale", "log"),
    "negative draws": lambda box: denoise("--draws", "-1"),
    "no depth of draws": lambda box: denoise("--depth", "0"),
    "gene unknown to the model": lambda box: denoise("--genes", box.text("genes.txt", "G1\ng29\n")),
    "no gene list": lambda box: denoise("--genes", "gens.txt"),
    "all-zero cells to denoise": lambda box: denoise(data=box.spoil(emptied)),
    "NaN to denoise": lambda box: denoise(data=box.spoil(lambda cells: dense(cells, np.nan))),
    "genes of another kind": lambda box: denoise(data=box.spoil(genes_of_another_kind)),
    "logs for a model of counts": lambda box: denoise(data=box.spoil(logged)),
    "no molecule of the model's genes": nothing_the_model_knows,
    "scale without counts": scale_without_counts,
    "draws without molecules": draws_without_molecules,
    # prediction
    "predict nothing": lambda box: predict()[:-2],
    "perturbation never measured": lambda box: predict("perturbation=C"),
    "context to change to": lambda box: predict("drug=A,cell_type=CD8 T"),
    "no perturbation named": lambda box: predict("batch=x"),
    "no cell to start from": lambda box: predict("drug=A", "--where", "cell_type=NK"),
    "no control cell": lambda box: predict("drug=A", "--where", "drug=A"),
    "predicted over its input": lambda box: predict("drug=A", out="cells.h5ad"),
    "logs to predict from": lambda box: predict("drug=A", data=box.spoil(logged)),
    "no perturbation to learn": no_perturbation_to_learn,
    # trajectories
    "a path to nowhere": lambda box: trajectory(),
    "a path without ends": lambda box: trajectory("--along", "day"),
    "a path along no number": lambda box: trajectory("--along", "cell_type=0:1"),
    "a path along no attribute": lambda box: trajectory("--along", "time=0:1"),
    "a path of treated cells": lambda box: trajectory("--to", "drug=A", "--where", "drug=A"),
    "a path to an unknown context": lambda box: trajectory("--to", "cell_type=NK"),
    "a path of no steps": lambda box: trajectory("--to", "drug=A", "--steps", "0"),
    "a path that grows under a drug": lambda box: trajectory("--to", "drug=A", "--growth", "2"),
    "a path with velocity, without network": lambda box: trajectory("--velocity", "2", "--no-network"),
    "a path over its input": lambda box: trajectory("--to", "drug=A", out="cells.h5ad"),
    # fates
    "a fate with one end": lambda box: fate("cell_type=CD4 T"),
    "a fate that no cell has": lambda box: fate("cell_type=NK", "cell_type=CD4 T"),
    "a fate in no column": lambda box: fate("celltype=A", "celltype=B"),
    "fates of two columns": lambda box: fate("drug=A", "cell_type=CD4 T"),
    "all have ended": lambda box: fate("cell_type=CD4 T", "cell_type=CD8 T"),
    "fates of one round": lambda box: [*fate("drug=A", "drug=B"), "--rounds", "1"],
    "fates over their input": lambda box: fate("drug=A", "drug=B", out="cells.h5ad"),
    # design
    "design nothing": lambda box: design(),
    "gene to design unknown": lambda box: design("--up", "g29"),
    "level in words": lambda box: design("--up", "G1=high"),
    "level out of range": lambda box: design("--up", "G1=50"),
    "no wish": lambda box: design("--up", "=2"),
    "up and down": lambda box: design("--up", "G1", "--down", "G1"),
    "line break in a wish": lambda box: design("--up", "G1\rG2"),
    "clamp without level": lambda box: design("--clamp", "G1"),
    "clamped and steered": lambda box: design("--up", "G1", "--clamp", "G1=0"),
    "clamped beyond a cell": lambda box: design("--clamp", "G1=9", "--clamp", "G2=9"),
    "TF without network": lambda box: design("--up", "TF:STAT1"),
    "unknown TF": lambda box: design("--up", "TF:STAT", "--network", box.text("net.csv", "source,target\nSTAT1,G1\n")),
    "network without columns": lambda box: design("--up", "TF:A", "--network", box.text("net.csv", "a,b\nA,G1\n")),
    "sets without tabs": lambda box: design("--up", "exhaustion", "--sets", box.text("sets.gmt", "exhaustion G1 G2\n")),
    "signature without numbers": lambda box: design("--signature", box.text("change.csv", "gene,change\nG1,up\n")),
    "no phenotype file": lambda box: design("--phenotype", "wish.yaml"),
    "phenotype with unknown key": lambda box: design("--phenotype", box.text("wish.yaml", "upp: [G1]\n")),
    "phenotype of no keys": lambda box: design("--phenotype", box.text("wish.yaml", "G1\n")),
    "context to design unknown": lambda box: design("--up", "G1", "--condition", "cell_type=CD4"),
    "keep without cells": lambda box: design("--up", "G1", "--keep", "0.2"),
    "keep more than all": lambda box: design("--up", "G1", "--from", "cells.h5ad", "--keep", "2"),
    "where without cells": lambda box: design("--up", "G1", "--where", "cell_type=CD8 T"),
    "no cell to change": lambda box: design("--up", "G1", "--from", "cells.h5ad", "--where", "cell_type=NK"),
    "logs to change": lambda box: design("--up", "G1", "--from", box.spoil(logged)),
    "no cells to design": lambda box: ["design", "model", "--out", "out.h5ad", "--up", "G1", "--n", "0"],
    "designed over its input": lambda box: design("--up", "G1", "--from", "cells.h5ad", out="cells.h5ad"),
    "designed into a folder": lambda box: design("--up", "G1", out="model"),
    "no phenotype": lambda box: partial(fitted().design, "G1", 3),
    "design without counts": design_from_logs,
    "design with a denoiser": design_of_a_denoiser,
    # attribution
    "nothing to attribute": lambda box: attribute(),
    "cells and genes": lambda box: attribute("cells.h5ad", "--up", "G1"),
    "attribute up and down": lambda box: attribute("--up", "G1", "--down", "G1"),
    "no cells to attribute": lambda box: attribute("missing.h5ad"),
    "attributed genes unknown": lambda box: attribute("--up", "g29"),
    "effect of other genes": lambda box: attribute("--effect", box.text("effect.csv", "gene,change\nENSG1,2\n")),
    "effect without numbers": lambda box: attribute("--effect", box.text("effect.csv", "gene,change\nG1,up\n")),
    "no network file": lambda box: attribute("--up", "G1", "--network", "net.tsv"),
    "no network in the file": lambda box: attribute("--up", "G1", "--network", box.text("net.csv", "a,b\nA,G1\n")),
    "network as pickle": lambda box: attribute("--up", "G1", "--network", box.text("net.pkl", "x")),
    "network of other genes": lambda box: attribute(
        "--up", "G1", "--network", box.text("net.csv", "source,target,weight\nSTAT1,ISG15,1\n")
    ),
    "no signatures": lambda box: attribute("--up", "G1", "--signatures", box.text("drugs.csv", "a;b\n")),
    "signatures of other genes": lambda box: attribute(
        "--up", "G1", "--signatures", box.text("drugs.csv", "drug,target,weight\naspirin,PTGS2,-1\n")
    ),
    "attributed over its input": lambda box: attribute(
        "--effect", box.text("e.csv", "gene,change\nG1,2\n"), out="e.csv"
    ),
    "a public network not fetched": lambda box: box.no_cache() or attribute("--up", "G1", "--network", "collectri"),
    "too few targets": lambda box: attribute("--up", "G1", "--targets", box.text("t.csv", "drug,target\nA,G1\n")),
    "doses without signatures": lambda box: attribute("--up", "G1", "--each-dose"),
    "tables without signatures": lambda box: attribute("--up", "G1", "--gene-table", box.text("g.txt", "gene_id\n1\n")),
    "cells given and to be made": lambda box: attribute("cells.h5ad", "--design", box.text("w.yaml", "up: [G1]\n")),
    "cells to write, none given": lambda box: attribute("--up", "G1", "--cells-out", "again.h5ad"),
    "report as table": lambda box: attribute("--up", "G1", "--report", "page.csv"),
    "attributed into a folder": lambda box: attribute("--up", "G1", out="model"),
    "nothing to name": nothing_to_name,
    "no control to compare with": no_control_to_compare_with,
    # benchmarks
    "unknown task": lambda box: benchmark("denoize"),
    "no folder for results": lambda box: ["benchmark", "cells.h5ad", "--task", "predict", *ROLES],
    "split of another task": lambda box: benchmark("design", *ROLES, "--split", "cell_type=each"),
    "splits of another task": lambda box: benchmark("predict", *ROLES, "--splits", "2"),
    "export of another task": lambda box: benchmark("design", *ROLES, "--export", "folder"),
    "states in an export": lambda box: benchmark("predict", *ROLES, "--export", "folder", "--states", "4"),
    "results into a model": lambda box: benchmark("predict", *ROLES, "--split", "cell_type=each", out="model"),
    "benchmark without perturbation": lambda box: benchmark("predict", "--context", "cell_type"),
    "split of unknown attribute": lambda box: benchmark("predict", *ROLES, "--split", "celltype=each"),
    "split without value": lambda box: benchmark("predict", *ROLES, "--split", "cell_type"),
    "predicted without name": lambda box: benchmark("predict", *ROLES, "--predicted", "other.h5ad"),
    "benchmark resumed from a damaged run": benchmark_damaged,
    "design benchmark without context": lambda box: benchmark("design", *ROLES[:4]),
    "design benchmark of chosen genes": lambda box: benchmark(
        "design", *ROLES, "--genes", box.text("genes.txt", "G0\nG1\n")
    ),
    "design benchmark of logs": lambda box: benchmark("design", *ROLES, data=box.spoil(logged)),
    "design benchmark of few cells": lambda box: benchmark("design", *ROLES),
    "denoise benchmark of logs": lambda box: benchmark("denoise", data=box.spoil(logged)),
    # evaluation
    "source without control": lambda box: evaluate("--source", "cells.h5ad"),
    "shared control cells": lambda box: evaluate("--source", "cells.h5ad", "--control", "cells.h5ad"),
    "few shared genes": few_shared_genes,
    "few real cells": few_real_cells,
    "real column missing": real_without_conditions,
    # data sets
    "unknown data set": lambda box: partial(sd.data.load, "kang"),
    "no network": data_without_network,
    # the studio
    "studio of no model": lambda box: ["studio", "modle", "--no-browser"],
    "studio of no cells": lambda box: ["studio", "model", "missing.h5ad", "--no-browser"],
    "studio at a port in use": port_in_use,
    "studio at no port": lambda box: ["studio", "model", "--port", "70000"],
    # what is typed in Python only
    "features twice, Python": lambda box: fit(features=pd.DataFrame({"size": [1, 2, 3]}, index=["A", "A", "B"])),
    "features without columns, Python": lambda box: fit(features=pd.DataFrame(index=["A", "B"])),
    "features in words, Python": lambda box: fit(features=pd.DataFrame({"size": ["large", "small"]}, index=["A", "B"])),
    "genes in a word": lambda box: fit(genes="all"),
    "no genes named": lambda box: fit(genes=[]),
    "a network without width": lambda box: fit(width=0),
    "schema as a dict": lambda box: fit(schema={"perturbation": "drug"}),
    "settings as a dict": lambda box: fit(config={"steps": 2}),
    "condition as text": lambda box: asked(3, "cell_type=CD4 T"),
    "half a cell": lambda box: asked(2.5),
    "effect in words": lambda box: partial(fitted().attribute, effect={"G1": "up"}),
    "network by its name": lambda box: partial(fitted().attribute, up=["G1"], network="net.csv"),
    "features by their path": lambda box: fit(features="features.csv"),
    "no cells to learn from": lambda box: fit(lambda cells: cells[:0].copy()),
    "a seed in words": lambda box: fit(seed="1"),
    "conditions as texts": lambda box: partial(fitted().predict, good(), ["drug=A"]),
    "half a draw": lambda box: partial(fitted().denoise, good(), draws=1.5),
    "cells to change by their path": lambda box: partial(fitted().design, sd.Phenotype(up=["G1"]), cells="cells.h5ad"),
    "a path of a path": lambda box: partial(fitted().trajectory, "cells.h5ad", {"drug": "A"}),
    "ends as text": lambda box: partial(fitted().fate, good(), "CD4 T"),
    "signatures by their path": lambda box: partial(fitted().attribute, up=["G1"], signatures="drugs.csv"),
    "targets by their path": lambda box: partial(fitted().attribute, up=["G1"], targets="targets.csv"),
    "paths to evaluate": lambda box: partial(sd.evaluation.evaluate, "a.h5ad", "b.h5ad"),
    "one gene as text": lambda box: partial(fitted().denoise, good(), genes="G1"),
}


# ---- the same by the other way --------------------------------------------------------------------------------------


def fitting(cells: str | None = None, schema: sd.Schema = SCHEMA, **options: Any) -> Callable:
    """Return the call of ScIDiff.fit on the cells in memory that cells.h5ad holds by now, or on a file."""
    config = sd.TrainConfig(**CONFIG)
    return partial(sd.ScIDiff.fit, cells or read_h5ad("cells.h5ad"), schema, config=config, **SMALL, **options)


def of_model(verb: str, *arguments: Any, **options: Any) -> Callable:
    """Return the call of a verb of the good model."""
    return partial(getattr(sd.ScIDiff.load("model"), verb), *arguments, **options)


def on_cells(verb: str, *arguments: Any, **options: Any) -> Callable:
    """Return the call of a verb on the cells that cells.h5ad holds by now."""
    return of_model(verb, read_h5ad("cells.h5ad"), *arguments, **options)


def loading(folder: str = "model") -> Callable:
    return partial(sd.ScIDiff.load, folder)


def to_file(source: str = "cells.h5ad", out: str = "out.h5ad") -> Callable:
    return of_model("denoise_file", source, out)


def held_out(**what: Any) -> Callable:
    return partial(sd.data.holdout, read_h5ad("cells.h5ad"), SCHEMA, **what)


def parsing(*texts: str) -> Callable:
    return partial(sd.data.parse_condition, texts)


def wish(*up: str, **options: Any) -> Callable:
    return partial(sd.Phenotype, up=up, **options)


def designing(wishes: sd.Phenotype | None = None, n: int = 3, *condition: dict, **options: Any) -> Callable:
    return of_model("design", wishes or sd.Phenotype(up=["G1"]), n, *condition, **options)


def judging(task: Callable, schema: sd.Schema | None = SCHEMA, out: str = "judged", **options: Any) -> Callable:
    return partial(task, read_h5ad("cells.h5ad"), schema, out=out, **options)


def scoring(**options: Any) -> Callable:
    generated, real = read_h5ad("generated.h5ad"), read_h5ad("cells.h5ad")
    return partial(sd.evaluation.evaluate, generated, real, schema=SCHEMA, **options)


#: row -> the other way to give the same input. For Python it is called when the words of the row are ready: what these
#: have spoilt, cells, files and models, Python is given
OTHER_WAY: dict[str, Callable[[Box], list[str] | Callable]] = {
    # files
    "no file": lambda box: fitting("missing.h5ad"),
    "misspelt file": lambda box: fitting("cels.h5ad"),
    "folder as file": lambda box: fitting("model"),
    "text as h5ad": lambda box: fitting("notes.h5ad"),
    "truncated h5ad": lambda box: fitting("cells.h5ad"),
    "other HDF5": lambda box: fitting("tenx.h5"),
    "h5ad damaged inside": lambda box: fitting("cells.h5ad"),
    # matrices
    "scaled": lambda box: fitting(),
    "normalised, not logged": lambda box: fitting(),
    "log for thinning": lambda box: fitting(noise="thinning"),
    "negative": lambda box: fitting(),
    "NaN": lambda box: fitting(),
    "infinite": lambda box: train(data=box.spoil(lambda cells: dense(cells, np.inf))),
    "no cells": lambda box: partial(sd.data.read_cells, read_h5ad("cells.h5ad")),
    "no genes": lambda box: train(data=box.spoil(lambda cells: cells[:, :0].copy())),
    "all-zero cells": lambda box: fitting(),
    "no matrix": lambda box: train(data=box.spoil(lambda cells: AnnData(obs=cells.obs, var=cells.var))),
    # names
    "duplicate genes": lambda box: fitting(),
    "duplicate cells": lambda box: fitting(),
    "unknown layer": lambda box: fitting(layer="countz"),
    "unknown gene": lambda box: fitting(genes=["G0", "G1", "g29"]),
    "genes twice": lambda box: fitting(genes=["G0", "G1", "G0"]),
    "zero genes": lambda box: fitting(genes=0),
    # schema
    "missing column": lambda box: fitting(schema=sd.Schema(perturbation="drugs")),
    "missing control": lambda box: fitting(schema=sd.Schema(perturbation="drug", control="dmso")),
    "control without perturbation": lambda box: partial(sd.Schema, control="DMSO"),
    "two roles": lambda box: partial(sd.Schema, context="cell_type", batch="cell_type"),
    "dose in words": lambda box: fitting(schema=replace(SCHEMA, dose="amount")),
    "empty part": lambda box: fitting(),
    # conditions
    "no grammar": lambda box: parsing("CD4 T"),
    "unclosed quote": lambda box: parsing('cell_type="CD4 T'),
    "two values": lambda box: parsing("drug=A,drug=B"),
    "unknown attribute": lambda box: of_model("generate", 3, {"celltype": "CD4 T"}),
    "unknown value held out": lambda box: held_out(context={"cell_type": "CD4"}),
    "one attribute twice": lambda box: of_model("generate", 3, {"perturbation": "A", "drug": "C"}),
    "held out together": lambda box: held_out(perturbation="B", context={"cell_type": "CD8 T"}),
    "role or column": lambda box: partial(
        sd.data.parse_condition, "perturbation=A", schema=SCHEMA, columns=read_h5ad("cells.h5ad").obs
    ),
    "nothing held out": lambda box: train("--holdout", ""),
    # settings of training
    "unknown noise": lambda box: fitting(noise="thining"),
    "no steps": lambda box: partial(sd.TrainConfig, steps=0),
    "features missing": lambda box: fitting(features=pd.read_csv("features.csv", index_col="drug")),
    "endless dose": lambda box: fitting(schema=replace(SCHEMA, dose="amount")),
    "on disk by genes": lambda box: fitting("cells.h5ad"),
    "on disk, dense": lambda box: fitting("cells.h5ad"),
    "on disk, logs": lambda box: fitting("cells.h5ad"),
    "on disk, damaged": lambda box: fitting("cells.h5ad"),
    "on disk, Gaussian noise": lambda box: fitting("cells.h5ad", noise="gaussian"),
    "on disk, modules": lambda box: fitting("cells.h5ad", modules={"IFN": ["G1", "G2", "G3"]}),
    "module of no column": lambda box: fitting(schema=replace(SCHEMA, modules=["IFN"])),
    "module of words": lambda box: fitting(schema=replace(SCHEMA, modules=["amount"])),
    "module named as a role": lambda box: partial(sd.Schema, modules=["dose"]),
    "module without a file": lambda box: partial(sd.integration.read_gene_sets, "sets.gmt"),
    "module of other genes": lambda box: fitting(modules={"IFN": ["G1", "A", "B", "C"]}),
    # the command line
    "negative seed": lambda box: of_model("generate", 3, seed=-1),
    # places to write to
    "not a model": lambda box: of_model("save", "new"),
    # models
    "no model": lambda box: loading("modle"),
    "no manifest": lambda box: loading("."),
    "manifest damaged": lambda box: loading(),
    "weights damaged": lambda box: loading(),
    "weights missing": lambda box: loading(),
    "newer version": lambda box: loading(),
    "manifest changed": lambda box: loading(),
    "weights of a stranger": lambda box: loading(),
    "part of a manifest missing": lambda box: loading(),
    "save over something else": lambda box: train(out="cells.h5ad"),
    # requests
    "unknown context": lambda box: of_model("generate", 3, {"cell_type": "CD4"}),
    "unknown perturbation": lambda box: of_model("generate", 3, {"perturbation": "A+C"}),
    "unknown attribute of a model": lambda box: of_model("generate", 3, {"dose": 1}),
    "unknown value, Python": lambda box: generate("--condition", "cell_type=cd8 t"),
    "no cells asked": lambda box: of_model("generate", 0),
    "no sampler steps": lambda box: of_model("generate", 3, n_steps=0),
    "no depth": lambda box: of_model("generate", 3, depth=0),
    "NaN depth": lambda box: of_model("generate", 3, depth=np.nan),
    "depth without counts": lambda box: of_logs()[0].save("logs") and generate("--depth", "100", model="logs"),
    "infinite guidance": lambda box: of_model("generate", 3, guidance=np.inf),
    # denoising
    "damaged store": lambda box: to_file("cells.zarr"),
    "no store": lambda box: to_file("cells.zarr"),
    "denoised over its input": lambda box: to_file(out="cells.h5ad"),
    "store over another": lambda box: to_file(out="out.zarr"),
    "neither h5ad nor zarr": lambda box: to_file(out="out.csv"),
    "disk full when denoising": lambda box: to_file(),
    "denoised cells damaged inside": lambda box: to_file(),
    "unknown scale": lambda box: on_cells("denoise", scales=["log"]),
    "negative draws": lambda box: on_cells("denoise", draws=-1),
    "no depth of draws": lambda box: on_cells("denoise", depth=0),
    "gene unknown to the model": lambda box: on_cells("denoise", genes=["G1", "g29"]),
    "all-zero cells to denoise": lambda box: on_cells("denoise"),
    "NaN to denoise": lambda box: on_cells("denoise"),
    "genes of another kind": lambda box: on_cells("denoise"),
    "logs for a model of counts": lambda box: on_cells("denoise"),
    # prediction
    "perturbation never measured": lambda box: on_cells("predict", {"perturbation": "C"}),
    "context to change to": lambda box: on_cells("predict", {"drug": "A", "cell_type": "CD8 T"}),
    "no perturbation named": lambda box: on_cells("predict", {"batch": "x"}),
    "no control cell": lambda box: of_model("predict", good()[good().obs["drug"] == "A"], {"drug": "A"}),
    "logs to predict from": lambda box: on_cells("predict", {"drug": "A"}),
    # trajectories
    "a path to nowhere": lambda box: on_cells("trajectory"),
    "a path along no number": lambda box: on_cells("trajectory", along={"cell_type": (0, 1)}),
    "a path along no attribute": lambda box: on_cells("trajectory", along={"time": (0, 1)}),
    "a path of treated cells": lambda box: on_cells("trajectory", {"drug": "A"}, where={"drug": "A"}),
    "a path to an unknown context": lambda box: on_cells("trajectory", {"cell_type": "NK"}),
    "a path of no steps": lambda box: on_cells("trajectory", {"drug": "A"}, steps=0),
    "a path that grows under a drug": lambda box: on_cells("trajectory", {"drug": "A"}, growth=2),
    "a path with velocity, without network": lambda box: on_cells("trajectory", velocity=2, network=False),
    # fates
    "a fate with one end": lambda box: on_cells("fate", {"cell_type": ["CD4 T"]}),
    "a fate that no cell has": lambda box: on_cells("fate", {"cell_type": ["NK", "CD4 T"]}),
    "a fate in no column": lambda box: on_cells("fate", {"celltype": ["A", "B"]}),
    "fates of two columns": lambda box: on_cells("fate", {"drug": ["A"], "cell_type": ["CD4 T"]}),
    "all have ended": lambda box: on_cells("fate", {"cell_type": ["CD4 T", "CD8 T"]}),
    "fates of one round": lambda box: on_cells("fate", {"drug": ["A", "B"]}, n_rounds=1),
    # design
    "design nothing": lambda box: wish(),
    "gene to design unknown": lambda box: designing(sd.Phenotype(up=["g29"])),
    "level in words": lambda box: wish("G1=high"),
    "level out of range": lambda box: wish("G1=50"),
    "no wish": lambda box: wish("=2"),
    "up and down": lambda box: wish("G1", down=["G1"]),
    "clamped and steered": lambda box: wish("G1", clamp={"G1": 0}),
    "clamped beyond a cell": lambda box: wish(clamp={"G1": 9, "G2": 9}),
    "TF without network": lambda box: wish("TF:STAT1"),
    "unknown TF": lambda box: wish("TF:STAT", network=sd.integration.read_network("net.csv")),
    "network without columns": lambda box: partial(sd.integration.read_network, "net.csv"),
    "sets without tabs": lambda box: partial(sd.integration.read_gene_sets, "sets.gmt"),
    "signature without numbers": lambda box: wish(signature=pd.read_csv("change.csv", index_col=0)["change"]),
    "no phenotype file": lambda box: partial(sd.Phenotype.from_yaml, "wish.yaml"),
    "phenotype with unknown key": lambda box: partial(sd.Phenotype.from_yaml, "wish.yaml"),
    "phenotype of no keys": lambda box: partial(sd.Phenotype.from_yaml, "wish.yaml"),
    "context to design unknown": lambda box: designing(None, 3, {"cell_type": "CD4"}),
    "keep without cells": lambda box: designing(keep=0.2),
    "keep more than all": lambda box: designing(cells=good(), keep=2.0),
    "logs to change": lambda box: designing(cells=read_h5ad("cells.h5ad")),
    "no cells to design": lambda box: designing(n=0),
    # attribution
    "nothing to attribute": lambda box: of_model("attribute"),
    "cells and genes": lambda box: on_cells("attribute", up=["G1"]),
    "attribute up and down": lambda box: of_model("attribute", up=["G1"], down=["G1"]),
    "attributed genes unknown": lambda box: of_model("attribute", up=["g29"]),
    "effect of other genes": lambda box: of_model("attribute", effect={"ENSG1": 2}),
    "no network file": lambda box: partial(sd.integration.read_network, "net.tsv"),
    "no network in the file": lambda box: partial(sd.integration.read_network, "net.csv"),
    "network as pickle": lambda box: partial(sd.integration.read_network, "net.pkl"),
    "network of other genes": lambda box: of_model(
        "attribute", up=["G1"], network=sd.integration.read_network("net.csv")
    ),
    "no signatures": lambda box: partial(sd.integration.read_signatures, "drugs.csv"),
    "signatures of other genes": lambda box: of_model(
        "attribute", up=["G1"], signatures=sd.integration.read_signatures("drugs.csv")
    ),
    "a public network not fetched": lambda box: partial(sd.integration.download, "collectri"),
    "too few targets": lambda box: of_model("attribute", up=["G1"], targets=sd.integration.read_drug_targets("t.csv")),
    "doses without signatures": lambda box: of_model("attribute", up=["G1"], each_dose=True),
    "no control to compare with": lambda box: attribute(
        box.spoil(lambda cells: cells[cells.obs["drug"] != "DMSO"].copy()), "--reference", "cells.h5ad"
    ),
    # benchmarks
    "results into a model": lambda box: judging(benchmark_prediction, out="model", split="cell_type=each"),
    "benchmark without perturbation": lambda box: judging(benchmark_prediction, sd.Schema(context="cell_type")),
    "split of unknown attribute": lambda box: judging(benchmark_prediction, split="celltype=each"),
    "split without value": lambda box: judging(benchmark_prediction, split="cell_type"),
    "benchmark resumed from a damaged run": lambda box: judging(
        benchmark_prediction, split="cell_type=each", resume=True
    ),
    "design benchmark without context": lambda box: judging(benchmark_design, replace(SCHEMA, context=())),
    "design benchmark of chosen genes": lambda box: judging(benchmark_design, genes=["G0", "G1"]),
    "design benchmark of logs": lambda box: judging(benchmark_design),
    "design benchmark of few cells": lambda box: judging(benchmark_design),
    "denoise benchmark of logs": lambda box: judging(benchmark_denoising, None),
    # evaluation
    "source without control": lambda box: scoring(source=good()),
    "shared control cells": lambda box: scoring(source=good(), control=good()),
    "few shared genes": lambda box: scoring(),
    "few real cells": lambda box: scoring(),
    "real column missing": lambda box: scoring(),
}


# ---- the tests ------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder and what files hold."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_table_and_functions_agree():
    names = [name for name, *_ in table_rows()]
    assert len(names) == len(set(names)) >= 60
    assert names == list(CASES)
    others = {name: other for name, _, other, *_ in table_rows() if other != "–"}
    assert list(others) == list(OTHER_WAY)
    assert sum(": " not in other for other in others.values()) >= 80


def entry_of(action: list[str] | Callable) -> str:
    """Return what is called, as the table names it: ``scidiff train``, ``ScIDiff.fit``, ``data.load``."""
    if not callable(action):
        return f"scidiff {action[0]}"
    call = action.func
    owner = getattr(call, "__self__", None)
    names = [call.__name__] if owner is None else [getattr(owner, "__name__", type(owner).__name__), call.__name__]
    return ".".join(names if hasattr(sd, names[0]) else [call.__module__.split(".")[1], *names])


def answer(action: list[str] | Callable, capsys: pytest.CaptureFixture) -> tuple[str, int | None]:
    """Return the line that a user is told, and the exit code of a command."""
    if callable(action):
        with pytest.raises(sd.InputError) as caught:
            action()
        assert not re.search(r"(^|\s)--\w", str(caught.value)), "an option of the shell, which nobody typed"
        return str(caught.value), None
    code = main(action)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.endswith("\n")
    return said.err.removeprefix("error: ")[:-1], code


def check(entry: str, message: str, action: list[str] | Callable, box: Box, capsys: pytest.CaptureFixture) -> None:
    """One line, the one of the table; a failing exit code; nothing written."""
    before = contents(box.folder)
    assert entry_of(action) == entry
    told, code = answer(action, capsys)
    assert code in (None, 2 if "see scidiff --help" in message else 1)
    assert len(told.splitlines()) == 1
    assert re.fullmatch(re.escape(message).replace("…", ".+"), told), told
    assert contents(box.folder) == before


@pytest.mark.parametrize("row", [pytest.param(row, id=row[0]) for row in table_rows()])
def test_one_clear_line(row, box, capsys):
    name, entry, _, _, message = row
    check(entry, message, CASES[name](box), box, capsys)


@pytest.mark.filterwarnings("ignore:(Variable|Observation) names are not unique")  # of anndata, when it reads
@pytest.mark.parametrize("row", [pytest.param(row, id=row[0]) for row in table_rows() if row[2] != "–"])
def test_the_same_by_the_other_way(row, box, capsys):
    name, entry, other, _, message = row
    if entry.startswith("scidiff"):
        CASES[name](box)
    other, _, own_message = other.partition(": ")
    assert other.startswith("scidiff") != entry.startswith("scidiff")
    check(other, own_message or message, OTHER_WAY[name](box), box, capsys)
