"""The command line does what the Python interface does, says it in the agreed way, and survives interruptions."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from safetensors.numpy import load_file
from scipy import sparse

import scidiff as sd
from scidiff import cli, demo
from scidiff.cli import main
from scidiff.evaluation.effects import evaluate_effects

SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context="cell_type")
ROLES = ["--perturbation", "drug", "--control", "DMSO", "--context", "cell_type"]


def screen(n: int = 240, seed: int = 0) -> AnnData:
    """Return cells of two types, half of them under a drug that doubles the first ten of 40 genes."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "drug": np.resize(["DMSO", "A"], n),
            "cell_type": rng.choice(["CD4 T", "CD8 T"], n),
            "well": rng.choice(["w1", "w2"], n),
            "hours": rng.choice([6.0, 24.0], n),
        },
        index=[f"cell{seed}-{i}" for i in range(n)],
    )
    rate = np.ones((n, 40)) * np.exp(np.random.default_rng(99).normal(size=40))
    rate[obs["drug"] == "A", :10] *= 2
    counts = sparse.csr_matrix(rng.poisson(rate * 4), dtype=np.float32)
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(40)]))


@pytest.fixture(scope="module", autouse=True)
def small_models() -> Iterator[None]:
    """Networks are smaller than outside of tests: nothing here depends on their size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sd.ScIDiff, "fit", staticmethod(partial(sd.ScIDiff.fit, width=64, n_blocks=1)))
        yield


@pytest.fixture(scope="module")
def box(tmp_path_factory) -> Path:
    """A folder with cells.h5ad and a model that the command line trained on it, a condition held out."""
    folder = tmp_path_factory.mktemp("box")
    screen().write_h5ad(folder / "cells.h5ad")
    held_out = 'cell_type="CD4 T",perturbation=A'
    words = ["train", folder / "cells.h5ad", "--out", folder / "model", *ROLES, "--steps", 20, "--holdout", held_out]
    assert run(*words, "--quiet") == 0
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty working directory with cells.h5ad."""
    monkeypatch.chdir(tmp_path)
    screen().write_h5ad("cells.h5ad")
    return tmp_path


def run(*words: object) -> int:
    return main([str(word) for word in words])


def answer(capsys, *words: object) -> dict:
    """Return the JSON that a verb prints; nothing else may be on stdout."""
    capsys.readouterr()
    assert run(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


# ---- each verb ------------------------------------------------------------------------------------------------------


def test_check_says_what_python_says_and_names_a_command_that_trains(place, capsys):
    found = sd.data.check(screen())
    told = answer(capsys, "check", "cells.h5ad")
    assert told == {"data": "cells.h5ad", "warnings": []} | found.to_dict()
    assert run("check", "cells.h5ad") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:-1] == str(found).splitlines()
    command = shlex.split(said[-1].removeprefix("next"))
    assert command[:3] == ["scidiff", "train", "cells.h5ad"]
    assert run(*command[1:], "--steps", 2, "--quiet") == 0
    assert sd.ScIDiff.load("model").schema == found.schema


def test_check_of_bad_data_reports_and_fails(place, capsys):
    cells = screen()
    cells.X = cells.X.toarray() - 1
    cells.write_h5ad("cells.h5ad")
    assert run("check", "cells.h5ad", "--json") == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["ok"] is False
    assert said.err.count("\n") == 1


def test_held_out_cells_are_those_of_data_holdout_and_are_not_trained_on(box):
    split = sd.data.holdout(screen(), SCHEMA, context={"cell_type": "CD4 T"}, perturbation="A", seed=0)
    stored = sd.data.Split.from_json((box / "model" / "split.json").read_text())
    assert stored == split
    model = sd.ScIDiff.load(box / "model")
    assert model.settings["n_cells"] == len(split.train)
    assert model.settings["split"] == split.hash
    seen = model.population.conditions
    assert not ((seen["cell_type"] == "CD4 T") & (seen["perturbation"] == "A")).any()
    assert not list(box.glob("*.partial"))


def test_train_passes_every_option_on(place, capsys):
    Path("genes.txt").write_text("G3\nG1\nG2\n\n")
    Path("features.csv").write_text("drug,size,charge\nA,1,0\nB,2,1\n")
    words = ["--dose", "hours", "--batch", "well", "--combination-sep", "none", "--genes", "genes.txt", "--seed", 5]
    words += ["--features", "features.csv", "--noise", "gaussian", "--layer", "X", "--steps", 3]
    told = answer(capsys, "train", "cells.h5ad", "--out", "m", *ROLES, *words)
    model = sd.ScIDiff.load("m")
    wanted = {"dose": "hours", "batch": "well", "combination_sep": None}
    assert model.schema == sd.Schema(perturbation="drug", control="DMSO", context="cell_type", **wanted)
    assert model.genes == ["G3", "G1", "G2"]
    assert model.vocabulary.parts == ("A", "B")  # B is known from its features alone
    assert (model.settings["noise"], model.settings["n_features"]) == ("gaussian", 2)
    assert (model.settings["training"]["seed"], model.settings["training"]["steps"]) == (5, 3)
    expected = {"model": "m", "process": "gaussian", "n_cells": 240, "n_genes": 3, "steps": 3, "seed": 5}
    assert {name: told[name] for name in expected} == expected


def test_train_without_conditions_and_with_a_number_of_genes(place):
    assert run("train", "cells.h5ad", "--out", "m", "--genes", 12, "--steps", 2, "--time", "hours", "--quiet") == 0
    model = sd.ScIDiff.load("m")
    assert len(model.genes) == 12
    assert list(model.schema.columns) == ["time"]


def test_generate_writes_the_cells_that_python_returns(box, tmp_path, capsys):
    out = tmp_path / "cells.h5ad"
    words = ["--n", 30, "--condition", "drug=A", "--condition", 'cell_type="CD8 T"', "--depth", 90, "--guidance", 1.5]
    told = answer(capsys, "generate", box / "model", "--out", out, *words, "--steps", 5, "--seed", 3)
    condition = {"perturbation": "A", "cell_type": "CD8 T"}
    expected = sd.ScIDiff.load(box / "model").generate(30, condition, depth=90, guidance=1.5, n_steps=5, seed=3)
    cells = anndata.read_h5ad(out)
    assert (cells.X != expected.X).nnz == 0
    counts = cells.layers["counts"]
    assert (counts != expected.layers["counts"]).nnz == 0
    assert sparse.isspmatrix_csr(counts)
    np.testing.assert_array_equal(counts.sum(axis=1), 90)
    assert (cells.obs["drug"] == "A").all()
    assert (cells.obs["cell_type"] == "CD8 T").all()
    assert sd.Schema.from_dict(json.loads(cells.uns["scidiff"]["schema"])) == SCHEMA
    assert (told["n_cells"], told["n_genes"]) == cells.shape


def test_seed_decides(box, tmp_path):
    def draw(name: str, seed: int) -> np.ndarray:
        assert run("generate", box / "model", "--out", tmp_path / name, "--n", 20, "--seed", seed, "--quiet") == 0
        return anndata.read_h5ad(tmp_path / name).layers["counts"].toarray()

    once, again, other = draw("a.h5ad", 1), draw("b.h5ad", 1), draw("c.h5ad", 2)
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


def test_evaluate_writes_the_table_that_python_returns(place, capsys):
    sets = {"generated": screen(400, 1), "real": screen(300, 2), "reference": screen(300, 3)}
    sets["generated"].uns["scidiff"] = {"schema": json.dumps(SCHEMA.to_dict())}
    for name, cells in sets.items():
        cells.write_h5ad(f"{name}.h5ad")
    words = ["--reference", "reference.h5ad", "--out", "scores.csv", "--seed", 2]
    told = answer(capsys, "evaluate", "generated.h5ad", "real.h5ad", *words)
    generated, real = sets.pop("generated"), sets.pop("real")
    expected = sd.evaluation.evaluate(generated, real, schema=SCHEMA, seed=2, **sets)
    written = pd.read_csv("scores.csv", dtype={"better": str}, keep_default_na=False)
    pd.testing.assert_frame_equal(written, expected)
    values = pd.DataFrame(told["table"])["value"].astype(float)
    np.testing.assert_allclose(values, expected["value"], atol=1e-9)


def test_predict_then_evaluate_is_what_python_does(box, tmp_path, capsys):
    split = sd.data.Split.from_json((box / "model" / "split.json").read_text())
    files = {name: str(tmp_path / f"{name}.h5ad") for name in ("source", "control", "test", "made")}
    for name in ("source", "control", "test"):
        screen()[getattr(split, name)].copy().write_h5ad(files[name])
    asked = ["--to", "perturbation=A", "--where", 'drug=DMSO,cell_type="CD4 T"', "--seed", 3]
    told = answer(capsys, "predict", box / "model", files["source"], "--out", files["made"], *asked)
    made = anndata.read_h5ad(files["made"])
    model = sd.ScIDiff.load(box / "model")
    expected = model.predict(anndata.read_h5ad(files["source"]), {"drug": "A"}, seed=3)
    assert (made.layers["counts"] != expected.layers["counts"]).nnz == 0
    assert told["n_cells"] == made.n_obs == len(split.source)
    assert told["condition"] == [{"perturbation": "A"}]
    (strongest,) = told["strongest"].values()
    assert {gene.split()[0] for gene in strongest} <= {f"G{i}" for i in range(10)}
    assert run("predict", box / "model", files["source"], "--out", files["made"], *asked, "--no-network") == 0
    assert "cell_type=CD4 T perturbation=A: G" in capsys.readouterr().out
    plain = anndata.read_h5ad(files["made"])
    assert (plain.layers["counts"] != made.layers["counts"]).nnz > 0
    assert not plain.uns["scidiff"]["network"]

    words = ["--source", files["source"], "--control", files["control"], "--out", tmp_path / "scores.csv"]
    told = answer(capsys, "evaluate", files["made"], files["test"], *words)
    real, source, control = (anndata.read_h5ad(files[name]) for name in ("test", "source", "control"))
    scores = evaluate_effects(plain, real, source=source, control=control, schema=SCHEMA)
    assert [row["metric"] for row in told["table"]] == scores["metric"].tolist()
    np.testing.assert_allclose([row["value"] for row in told["table"]], scores["value"], atol=1e-9)
    assert run("evaluate", files["made"], files["test"], *words) == 0
    assert "pearson_delta" in capsys.readouterr().out


def test_predict_warns_of_what_was_measured(box, tmp_path, capsys):
    words = ["--to", "perturbation=A", "--where", 'cell_type="CD8 T"', "--out", tmp_path / "made.h5ad"]
    told = answer(capsys, "predict", box / "model", box / "cells.h5ad", *words)
    assert any("A in cell_type=CD8 T: measured in training" in warning for warning in told["warnings"])
    assert told["n_cells"] == ((screen().obs[["drug", "cell_type"]] == ["DMSO", "CD8 T"]).all(axis=1)).sum()


def test_trajectory_is_what_python_does(box, tmp_path, capsys):
    asked = ["--to", "perturbation=A", "--where", 'drug=DMSO,cell_type="CD8 T"', "--steps", 3, "--seed", 3]
    told = answer(capsys, "trajectory", box / "model", box / "cells.h5ad", "--out", tmp_path / "path.h5ad", *asked)
    made = anndata.read_h5ad(tmp_path / "path.h5ad")
    where = {"drug": "DMSO", "cell_type": "CD8 T"}
    expected = sd.ScIDiff.load(box / "model").trajectory(screen(), {"drug": "A"}, where=where, steps=3, seed=3)
    assert (made.layers["counts"] != expected.layers["counts"]).nnz == 0
    assert made.obs["frame"].tolist() == expected.obs["frame"].tolist()
    assert (told["n_paths"], told["n_frames"], told["stops"]) == (made.n_obs // 4, 4, [0, 1])
    words = ["--along", "time=6:24", "--out", tmp_path / "other.h5ad"]
    assert run("trajectory", box / "model", box / "cells.h5ad", *words) == 1
    assert "unknown attribute 'time'" in capsys.readouterr().err


def test_cells_follow_velocity_as_in_python(box, tmp_path, capsys):
    cells = screen()
    cells.layers["Ms"] = cells.X.toarray()
    cells.layers["velocity"] = np.random.default_rng(0).normal(size=cells.shape)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    words = [box / "model", tmp_path / "cells.h5ad", "--out", tmp_path / "flow.h5ad", "--velocity", 2, "--steps", 2]
    told = answer(capsys, "trajectory", *words, "--where", "drug=DMSO")
    made = anndata.read_h5ad(tmp_path / "flow.h5ad")
    expected = sd.ScIDiff.load(box / "model").trajectory(cells, velocity=2, where={"drug": "DMSO"}, steps=2)
    assert (made.layers["counts"] != expected.layers["counts"]).nnz == 0
    assert told["stops"] == [0, 2]
    assert run("trajectory", *words, "--to", "perturbation=A") == 1
    assert "leave out to=" in capsys.readouterr().err


def test_fate_is_what_python_does(box, tmp_path, capsys):
    cells = screen()
    cells.obs["state"] = np.random.default_rng(0).choice(["way", "way", "left", "right"], cells.n_obs)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    asked = ["--terminal", "state=left", "--terminal", "state=right", "--rounds", 2, "--seed", 3]
    words = [box / "model", tmp_path / "cells.h5ad", "--out", tmp_path / "fate.h5ad", *asked]
    told = answer(capsys, "fate", *words)
    made = anndata.read_h5ad(tmp_path / "fate.h5ad")
    ends = {"state": ["left", "right"]}
    expected = sd.ScIDiff.load(box / "model").fate(cells, ends, n_rounds=2, seed=3)
    np.testing.assert_allclose(made.obsm["fate"], expected.obsm["fate"])
    assert told["n_cells"] == cells.n_obs
    assert {(row["group"], row["end"]) for row in told["fate"]} >= {("way", "left"), ("way", "right")}
    assert run("fate", *words, "--to", "perturbation=A") == 0
    said = capsys.readouterr().out
    assert "way -> left: " in said
    assert "changed by" in said
    assert run("fate", *words, "--terminal", "state=up") == 1
    assert "no cell has state 'up'" in capsys.readouterr().err


def test_evaluate_without_a_recorded_schema_compares_all_cells(place, capsys):
    screen(400, 1).write_h5ad("other.h5ad")
    told = answer(capsys, "evaluate", "other.h5ad", "cells.h5ad", "--out", "scores.csv")
    expected = sd.evaluation.evaluate(screen(400, 1), screen())
    assert {row["metric"] for row in told["table"]} == set(expected["metric"])


@pytest.fixture
def small_demo(monkeypatch):
    numbers = {"n_cells": 260, "n_genes": 60, "n_tfs": 20, "n_states": 3, "n_perturbations": 9, "n_combinations": 0}
    numbers |= {"n_null": 0, "n_duplicates": 0, "n_batches": 1, "n_clones": 2, "doses": (1.0,), "times": (24.0,)}
    monkeypatch.setattr(demo, "run", partial(demo.run, screen=numbers, training={"steps": 4}))


def test_demo_leaves_everything_it_names(place, small_demo, capsys):
    told = answer(capsys, "demo", "--out", "shown/here")
    for name in ("screen", "model", "cells", "scores", "report"):
        assert Path(told[name]).exists()
    screened, cells = (anndata.read_h5ad(told[name]) for name in ("screen", "cells"))
    split = sd.data.Split.from_json(Path(told["model"], "split.json").read_text())
    split.verify(screened)
    assert sd.ScIDiff.load(told["model"]).settings["n_cells"] == len(split.train)
    # the generated cells have the conditions of the held-out ones, one for one
    schema = sd.ScIDiff.load(told["model"]).schema
    held_out, made = (schema.table(one).reset_index(drop=True) for one in (screened[split.test], cells))
    pd.testing.assert_frame_equal(held_out, made)
    scores = pd.read_csv(told["scores"])
    assert {"value", "ceiling", "multinomial", "Gaussian PCA"} <= set(scores.columns)
    report = Path(told["report"]).read_text()
    assert "held out" in report
    assert all(warning in report for warning in told["warnings"])


# ---- how it speaks --------------------------------------------------------------------------------------------------


def test_result_on_stdout_progress_on_stderr_and_quiet_is_quiet(box, tmp_path, capsys):
    words = ["generate", box / "model", "--out", tmp_path / "c.h5ad", "--n", 10]
    assert run(*words) == 0
    said = capsys.readouterr()
    assert said.out == f"10 cells x 40 genes written to {tmp_path / 'c.h5ad'}\n"
    assert said.err == "generating: 10 of 10\n"
    assert run(*words, "--quiet") == 0
    assert tuple(capsys.readouterr()) == ("", "")


def test_what_libraries_print_stays_off_stdout(place, monkeypatch, capsys):
    fit = sd.ScIDiff.fit
    monkeypatch.setattr(sd.ScIDiff, "fit", lambda *args, **options: print("chatter") or fit(*args, **options))
    answer(capsys, "train", "cells.h5ad", "--out", "m", "--steps", 2)


def test_data_warnings_are_one_line_each_and_in_the_json(place, capsys):
    cells = screen()
    cells.obs["drug"] = cells.obs["drug"].where(cells.obs["cell_type"] == "CD4 T")
    cells.write_h5ad("cells.h5ad")
    n_missing = (cells.obs["cell_type"] == "CD8 T").sum()
    assert run("train", "cells.h5ad", "--out", "m", *ROLES, "--steps", 2, "--json", "--quiet") == 0
    said = capsys.readouterr()
    (warning,) = json.loads(said.out)["warnings"]
    assert warning.startswith(f"{n_missing} of 240 cells have no value in obs column 'drug'")
    assert said.err == f"warning: {warning}\n"


def test_help_and_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"{sd.__version__}\n"
    assert run() == 0
    shown = capsys.readouterr().out
    for verb in ("check", "train", "generate", "denoise", "predict", "trajectory", "evaluate", "demo"):
        assert verb in shown
        assert run(verb, "--help") == 0
        text = capsys.readouterr().out
        assert all(option in text for option in ("--seed", "--quiet", "--json"))


def test_a_bug_is_one_line_and_shows_where_on_request(place, monkeypatch, capsys):
    def broken(*args: object, layer=None) -> None:
        raise ZeroDivisionError("of the\nlead")

    monkeypatch.setattr(sd.data, "check", broken)
    monkeypatch.delenv("SCIDIFF_TRACEBACK", raising=False)
    assert run("check", "cells.h5ad") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: a bug: ZeroDivisionError: of the lead;")
    assert said.count("\n") == 1
    monkeypatch.setenv("SCIDIFF_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run("check", "cells.h5ad")


def test_as_a_program(place):
    words = [sys.executable, "-m", "scidiff", "check"]
    fine = subprocess.run([*words, "cells.h5ad", "--json"], capture_output=True, text=True, check=False)
    assert fine.returncode == 0
    assert json.loads(fine.stdout)["n_cells"] == 240
    wrong = subprocess.run([*words, "cels.h5ad"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == "error: there is no file cels.h5ad; nearest: 'cells.h5ad'\n"
    with subprocess.Popen([*words, "cells.h5ad"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as unread:
        unread.stdout.close()  # as by `| head`, which has seen enough
        assert unread.stderr.read() == b""
    assert unread.returncode > 0


# ---- interruptions --------------------------------------------------------------------------------------------------


def interrupt_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C in step ``step`` of training."""

    @contextlib.contextmanager
    def progress(talk: cli.Talk, what: str):
        def advance(done: int, total: int, note: str = "") -> None:
            if done == step:
                raise KeyboardInterrupt

        yield advance

    patch.setattr(cli.Talk, "progress", progress)


LONG = ["train", "cells.h5ad", *ROLES, "--steps", 70, "--quiet"]  # the loop writes its state every 50 steps


def test_an_interrupted_run_goes_on_to_the_same_model(place, monkeypatch, capsys):
    assert run(*LONG, "--out", "straight") == 0
    with monkeypatch.context() as patch:
        interrupt_at(60, patch)
        assert run(*LONG, "--out", "m") == 130
    assert capsys.readouterr().err == "error: interrupted; the same command with --resume goes on\n"
    assert not Path("m").exists()
    assert run(*LONG, "--out", "m") == 1  # without --resume it is not thrown away
    assert "--resume" in capsys.readouterr().err
    assert run(*LONG, "--out", "m", "--seed", 1, "--resume") == 1
    assert "other seed" in capsys.readouterr().err
    assert run(*LONG, "--out", "m", "--resume") == 0
    one, other = (load_file(Path(name, "weights.safetensors")) for name in ("straight", "m"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert sorted(path.name for path in place.iterdir()) == ["cells.h5ad", "m", "straight"]


def test_interrupted_before_there_is_anything_to_keep(place, monkeypatch, capsys):
    interrupt_at(3, monkeypatch)
    assert run(*LONG, "--out", "m") == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert os.listdir() == ["cells.h5ad"]


def test_a_disk_that_is_full_at_the_end_costs_no_training(place, monkeypatch, capsys):
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sd.ScIDiff, "save", full)
        assert run(*LONG, "--out", "m") == 1
    assert capsys.readouterr().err == "error: cannot write m: No space left on device\n"
    assert sorted(os.listdir()) == ["cells.h5ad", "m.partial"]
    interrupt_at(50, monkeypatch)  # would stop a run that begins anew
    assert run(*LONG, "--out", "m", "--resume") == 0
    assert sorted(os.listdir()) == ["cells.h5ad", "m"]


def test_resume_with_nothing_to_resume_begins(place):
    assert run("train", "cells.h5ad", "--out", "m", "--steps", 2, "--resume", "--quiet") == 0
    assert sorted(os.listdir()) == ["cells.h5ad", "m"]


def test_only_one_of_several_processes_writes(place, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sd.ScIDiff, "fit", lambda *args, **options: None)  # the loop itself has a test of processes
    assert run("train", "cells.h5ad", "--out", "m", "--steps", 2, "--json") == 0
    assert tuple(capsys.readouterr()) == ("", "")
    assert os.listdir() == ["cells.h5ad"]


def test_a_zarr_store_is_known_again_without_reading_its_chunks(place, monkeypatch):
    """Stores can hold millions of files. A chunk that was written again counts as other data, also of the same size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on versions of the format
        screen().write_zarr("cells.zarr")
    monkeypatch.setattr("scidiff.storage.file_hash", lambda path: pytest.fail(f"read {path}"))
    before = cli.train._content(Path("cells.zarr"))
    assert cli.train._content(Path("cells.zarr")) == before
    chunk = next(path for path in Path("cells.zarr/X/data").rglob("*") if path.is_file())
    told = chunk.stat()
    chunk.write_bytes(chunk.read_bytes())
    os.utime(chunk, ns=(told.st_atime_ns, told.st_mtime_ns + 1))
    assert cli.train._content(Path("cells.zarr")) != before
