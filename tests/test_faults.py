"""What holds of every verb: JSON alone on stdout, and when something fails one line, an exit code, no half of anything.

Whole processes that are killed are in benchmarks/kills.py, of which a few are tried here; damaged and hostile files in
benchmarks/fuzz.py, of which ten seconds are.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import pickle
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scidiff as sd
from scidiff import storage
from scidiff.benchmarking.results import Results
from scidiff.cli import main
from scidiff.files import hdf5, locked, open_hdf5, part_of, read_h5ad, whole_file

ROOT = Path(__file__).parents[1]
SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context="cell_type")
ROLES = ["--perturbation", "drug", "--control", "DMSO", "--context", "cell_type"]


def screen(n: int = 240, seed: int = 0) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "drug": np.resize(["DMSO", "A", "B"], n),
            "cell_type": rng.choice(["T", "B"], n),
            "day": rng.choice(["2", "4", "4", "6"], n),
        },
        index=[f"c{seed}-{i}" for i in range(n)],
    )
    rate = np.full((n, 30), 2.0)
    rate[obs["drug"] == "A", :8] *= 2
    rate[obs["drug"] == "B", 8:16] *= 2
    x = sparse.csr_matrix(rng.poisson(rate), dtype=np.float32)
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(30)]))


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    screen().write_h5ad(folder / "cells.h5ad")
    screen(150, 1).write_h5ad(folder / "other.h5ad")
    (folder / "net.csv").write_text("source,target\n" + "".join(f"TF,G{i}\n" for i in range(8)))
    config = sd.TrainConfig(steps=4, batch_size=32)
    sd.ScIDiff.fit(screen(), SCHEMA, width=8, n_blocks=1, config=config).save(folder / "model")
    return folder


@pytest.fixture
def box(originals, tmp_path, monkeypatch) -> Path:
    folder = shutil.copytree(originals, tmp_path / "work")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sd.ScIDiff, "fit", partial(sd.ScIDiff.fit, width=8, n_blocks=1))
    return folder


FATE = ["fate", "model", "cells.h5ad", "--out", "new.h5ad", "--rounds", "2", "--no-velocity"]
FATE += ["--terminal", "day=2", "--terminal", "day=6"]

#: verbs, their words, and what they write; the demo is in test_cli, benchmarks that are stopped in benchmarking
VERBS = {
    "check": (["check", "cells.h5ad"], None),
    "train": (["train", "cells.h5ad", "--out", "new", *ROLES, "--steps", "2"], "new"),
    "train, on disk": (["train", "cells.h5ad", "--out", "new", *ROLES, "--steps", "2", "--on-disk"], "new"),
    "generate": (["generate", "model", "--out", "new.h5ad", "--n", "8", "--steps", "4"], "new.h5ad"),
    "denoise": (["denoise", "model", "cells.h5ad", "--out", "new.h5ad"], "new.h5ad"),
    "denoise, zarr": (["denoise", "model", "cells.h5ad", "--out", "new.zarr"], "new.zarr"),
    "predict": (["predict", "model", "cells.h5ad", "--out", "new.h5ad", "--to", "perturbation=A"], "new.h5ad"),
    "trajectory": (
        ["trajectory", "model", "cells.h5ad", "--out", "new.h5ad", "--to", "perturbation=A", "--steps", "2"],
        "new.h5ad",
    ),
    "fate": (FATE, "new.h5ad"),
    "design": (["design", "model", "--out", "new.h5ad", "--up", "G1", "--n", "8", "--steps", "4"], "new.h5ad"),
    "attribute": (["attribute", "model", "--up", "G1,G2,G3", "--network", "net.csv", "--out", "new.csv"], "new.csv"),
    "evaluate": (["evaluate", "other.h5ad", "cells.h5ad", "--out", "new.csv"], "new.csv"),
    "benchmark, export": (
        ["benchmark", "cells.h5ad", "--task", "predict", *ROLES, "--split", "cell_type=each", "--export", "new"],
        "new",
    ),
}
WRITERS = {name: verb for name, verb in VERBS.items() if verb[1]}


def strict(text: str) -> dict:
    """Return the one JSON object of a text; NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


# ---- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_json_is_one_object_and_alone_on_stdout(box, capsys, verb):
    words, out = VERBS[verb]
    assert main([*words, "--json"]) == 0
    said = capsys.readouterr()
    told = strict(said.out)
    assert isinstance(told["warnings"], list)
    assert out is None or Path(out).exists()
    if out:
        assert out in json.dumps(told)
    assert not [name for name in os.listdir() if name.startswith(".")]


def test_json_of_the_studio_is_its_address(box, capsys, monkeypatch):
    pytest.importorskip("nicegui")
    from scidiff.studio import server

    monkeypatch.setattr(server, "serve", lambda session, place, *, announce, browser: announce("http://127.0.0.1:1/x/"))
    assert main(["studio", "model", "--no-browser", "--json"]) == 0
    assert strict(capsys.readouterr().out) == {"address": "http://127.0.0.1:1/x/"}


# ---- when something fails --------------------------------------------------------------------------------------------


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("verb", WRITERS)
def test_ctrl_c_at_the_last_moment(box, capsys, monkeypatch, verb):
    replace, last = os.replace, WRITERS[verb][1]

    def interrupted(source: object, target: object) -> None:
        if Path(target).name == last:
            raise KeyboardInterrupt
        replace(source, target)

    before = names(box)
    monkeypatch.setattr(os, "replace", interrupted)
    assert main([*WRITERS[verb][0], "--quiet"]) == 130
    said = capsys.readouterr()
    assert said.out == ""
    (told,) = [line for line in said.err.splitlines() if not line.startswith("warning: ")]
    assert told.startswith("error: interrupted")
    assert not {name for name in names(box) - before if not name.startswith("new.partial")}


@pytest.mark.parametrize("verb", WRITERS)
def test_a_disk_that_is_full(box, capfd, verb):
    """Files may not grow beyond two kilobytes, which every library that writes learns from the system."""
    before, (soft, hard) = names(box), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        code = main([*WRITERS[verb][0], "--quiet"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capfd.readouterr()
    if verb in ("attribute", "evaluate") and code == 0:
        return  # its table is smaller
    assert (code, said.out) == (1, "")
    (told,) = [line for line in said.err.splitlines() if not line.startswith("warning: ")]
    assert re.match("error: cannot write .*new.*(File too large|error 27)", told), told
    assert names(box) == before


def test_what_a_full_disk_did_not_take_can_be_read_until_the_end(tmp_path):
    """HDF5 reads again what it has written; were it not there, the library would crash."""
    written = {f"{i}": np.random.default_rng(i).integers(0, 9, (40, 60)) for i in range(20)}
    found = {}

    def write_and_read() -> None:
        with hdf5(tmp_path / "new.h5") as (file, disk):
            for name, values in written.items():
                file.create_dataset(name, data=values, chunks=(8, 8), compression="gzip")
                file.flush()
            assert disk.error is not None
            for name in written:
                file[name].id.refresh()  # from the file, not from what the library remembers
                found[name] = file[name][:]

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_and_read()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    np.testing.assert_equal(found, written)


def test_checkpoints_on_a_full_disk(box, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert main(["train", "cells.h5ad", "--out", "new", "--steps", "2"]) == 1
    assert "error: cannot write new.partial/denoise: No space left on device\n" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(box, capsys):
    words = ["train", "cells.h5ad", "--out", "new", "--steps", "2", "--quiet"]
    stage = Path("new.partial/denoise")
    shutil.copytree("model", "older")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sd.ScIDiff, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        assert main([*words]) == 1
    (tensors,) = stage.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:100])
    capsys.readouterr()
    assert main([*words, "--resume"]) == 1
    assert capsys.readouterr().err == f"error: {stage} holds a run that is damaged (SafetensorError); delete it\n"


def test_a_benchmark_that_was_stopped_at_once_is_begun_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Results.open(tmp_path / "b", dataset="d", asked={"seed": 0})
    (tmp_path / "b" / ".request.json.elsewhere-1.part").write_text("{")  # another machine's that was killed
    Results.open(tmp_path / "b", dataset="d", asked={"seed": 0})
    with pytest.raises(sd.InputError, match="go on with --resume"):
        Results.open(tmp_path / "b", dataset="d", asked={"seed": 0})


# ---- several processes -----------------------------------------------------------------------------------------------

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


def test_a_training_that_runs_is_not_resumed_by_another(box, capsys):
    Path("new.partial").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, "new.partial/request.json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    words = ["train", "cells.h5ad", "--out", "new", "--steps", "2", "--resume", "--quiet"]
    assert main(words) == 1
    assert "another process works in new.partial" in capsys.readouterr().err
    holder.kill()  # the lock goes with its holder, however that ends
    holder.communicate()
    assert main(words) == 0
    assert not Path("new.partial").exists()


def test_a_lock_is_this_process_own(tmp_path):
    with locked(tmp_path / "x") as file, locked(tmp_path / "x"):
        file.write("text")
    assert (tmp_path / "x").read_text() == "text"


def test_of_two_writers_of_a_model_the_last_one_wins_whole(tmp_path, monkeypatch):
    """The other one writes just when ours has moved the older model away."""
    write = storage.write_model
    place = write(tmp_path / "m", {"genes": ["older"]}, {})
    replace, busy = os.replace, []

    def meddled(source: Path, target: Path) -> None:
        replace(source, target)
        if source == place and not busy:
            busy.append(True)
            write(place, {"genes": ["other"]}, {}, files={"split.json": "{}"})

    monkeypatch.setattr(os, "replace", meddled)
    numbers = [os.getpid(), os.getppid()]  # those of two processes that are there
    monkeypatch.setattr(os, "getpid", lambda: numbers[len(busy)])
    write(place, {"genes": ["ours"]}, {})
    assert busy
    assert storage.read_model(place)[0]["genes"] == ["ours"]
    assert {path.name for path in place.iterdir()} == {"manifest.json", "weights.safetensors"}
    assert os.listdir(tmp_path) == ["m"]


def test_an_older_model_comes_back_when_its_successor_was_killed_on_the_way(tmp_path):
    place = storage.write_model(tmp_path / "m", {"genes": ["older"]}, {})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    hidden = tmp_path / f".m.{socket.gethostname()}-{gone.pid}.old"
    for use in (storage.read_model, lambda path: storage.write_model(path, {"genes": ["newer"]}, {})):
        place.rename(hidden)
        use(place)
        assert os.listdir(tmp_path) == ["m"]
    hidden.mkdir()  # killed after the new one came
    storage.write_model(place, {"genes": ["newest"]}, {})
    assert os.listdir(tmp_path) == ["m"]


def test_what_killed_processes_left_goes(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    dead, alive, elsewhere, other = (
        tmp_path / name
        for name in (
            f".out.h5ad.{host}-{gone.pid}.part",
            f".out.h5ad.{host}-{os.getppid()}.part",
            f".out.h5ad.{host}x-{gone.pid}.part",
            f".other.h5ad.{host}-{gone.pid}.part",
        )
    )
    dead.mkdir()
    (dead / "chunk").write_text("half")
    for path in (alive, elsewhere, other):
        path.write_text("half")
    own = tmp_path / f".out.h5ad.{host}-{os.getpid()}.part"  # of one with the number that is ours now
    own.mkdir()
    with whole_file(tmp_path / "out.h5ad") as part:
        part.write_text("whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "out.h5ad", alive, elsewhere, other])


def test_a_part_goes_whatever_happens(tmp_path):
    def work() -> None:
        with part_of(tmp_path / "x") as part:
            part.mkdir()
            (part / "a").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not list(tmp_path.iterdir())


# ---- strangers -------------------------------------------------------------------------------------------------------


class Trap:
    """What runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_files_of_strangers_run_no_code(box):
    mark = box / "ran"
    packed = pickle.dumps(Trap(mark))
    pickle.loads(packed)
    assert mark.exists()
    mark.unlink()  # so the trap works; now into every place that reads files
    tag = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]"
    np.savez("trap.npz", x=np.array([Trap(mark)], dtype=object))
    Path("trap.pkl").write_bytes(packed)
    Path("trap.yaml").write_text(f"up: {tag}\n")
    Path("net.yaml").write_text(f"- name: {tag}\n  genes: [G1]\n")
    Path("reg.csv").write_text(
        ",,Enrichment,Enrichment\n,,Context,TargetGenes\nTF,MotifID,,\n"
        f"A,m,activating,\"[(__import__('pathlib').Path('{mark}').touch(), 1)]\"\n"
    )
    readers = [
        sd.ScIDiff.load,
        sd.Phenotype.from_yaml,
        sd.integration.read_network,
        sd.integration.read_signatures,
        sd.integration.read_gene_sets,
        sd.integration.read_drug_targets,
        sd.integration.read_drug_names,
    ]
    for name in ("trap.npz", "trap.pkl", "trap.yaml", "net.yaml", "reg.csv"):
        for suffix in ("", ".csv", ".gmt", ".yaml", ".h5ad", ".gctx", ".json", ".xml", ".loom"):
            disguised = shutil.copy(name, f"disguised-{name}{suffix}")
            for read in readers:
                with pytest.raises(sd.InputError):
                    print(f"{read.__name__} made of {disguised}: {read(disguised)}")
            assert main(["check", disguised, "--quiet"]) == 1
    Path("model/weights.safetensors").write_bytes(packed)
    about = json.loads(Path("model/manifest.json").read_text())
    about |= {"weights_sha256": storage.file_hash(Path("model/weights.safetensors"))}
    about.pop("manifest_sha256")
    Path("model/manifest.json").write_text(json.dumps(about))
    with pytest.raises(sd.InputError, match="cannot be read"):
        sd.ScIDiff.load("model")
    assert not mark.exists()


@pytest.mark.parametrize(("number", "length"), [(0, 0), (1, 2**64 - 16), (1, 2**64 - 24)])
def test_strings_that_libhdf5_would_read_for_ever(tmp_path, number, length):
    path = tmp_path / "a.h5ad"
    screen().write_h5ad(path)
    with open_hdf5(path) as file:  # sound: nothing is refused
        assert len(file["obs/_index"].asstr()[:]) == 240
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    struct.pack_into("<H6xQ", content, heap + 16, number, length)
    path.write_bytes(content)
    with pytest.raises(sd.InputError, match=f"a.h5ad is damaged or no h5ad file: its strings at byte {heap} have no"):
        read_h5ad(path)


# ---- what others read ------------------------------------------------------------------------------------------------


def test_predicted_cells_beside_controls_as_harnesses_take_them(box, capsys):
    words = ["predict", "model", "cells.h5ad", "--out", "new.h5ad", "--to", "perturbation=A", "--to", "perturbation=B"]
    assert main([*words, "--with-controls"]) == 0
    made, real = anndata.read_h5ad("new.h5ad"), screen()
    control = real[real.obs["drug"] == "DMSO"]
    sizes = made.obs["drug"].value_counts().to_dict()
    assert sizes == {"DMSO": control.n_obs, "A": control.n_obs, "B": control.n_obs}
    assert made.obs_names.is_unique
    np.testing.assert_allclose(np.expm1(made.X.toarray()).sum(axis=1), 1e4, rtol=1e-3)
    before = made[made.obs["drug"] == "DMSO"]
    assert [name.removesuffix("-control") for name in before.obs_names] == list(control.obs_names)
    assert (before.layers["counts"] != control.X).nnz == 0
    assert list(made.var_names) == list(real.var_names)
    assert "effects" in made.uns["scidiff"]


def test_cell_eval_reads_them(box):
    cell_eval = pytest.importorskip("cell_eval")
    words = ["predict", "model", "cells.h5ad", "--out", "new.h5ad", "--to", "perturbation=A", "--to", "perturbation=B"]
    assert main([*words, "--with-controls", "--quiet"]) == 0
    real = screen()
    real.X = sd.data.log1p_cp10k(real.X)
    judge = cell_eval.MetricsEvaluator(
        adata_pred=anndata.read_h5ad("new.h5ad"), adata_real=real, control_pert="DMSO", pert_col="drug", num_threads=1
    )
    results, _ = judge.compute(profile="minimal", write_csv=False)
    assert set(results["perturbation"]) == {"A", "B"}


@pytest.mark.parametrize("verb", ["generate", "denoise", "predict", "trajectory", "fate", "design"])
def test_scanpy_takes_the_cells_of_every_verb(box, verb):
    import matplotlib
    import scanpy as sc

    matplotlib.use("agg")
    assert main([*VERBS[verb][0], "--quiet"]) == 0
    cells = anndata.read_h5ad("new.h5ad")
    sc.pp.pca(cells, n_comps=3)
    sc.pp.neighbors(cells, n_neighbors=5)
    sc.pl.pca(cells, color=["cell_type", "G1"] if "cell_type" in cells.obs else ["G1"], show=False)
    if "drug" in cells.obs and cells.obs["drug"].notna().any():  # of designed cells no drug is known
        sc.pl.dotplot(cells, ["G1", "G2"], groupby="drug", show=False)
    matplotlib.pyplot.close("all")


def test_completions_for_the_shell(box):
    def asked(**environment: str) -> str:
        words = [sys.executable, "-m", "scidiff"]
        return subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ | environment).stdout

    assert "_SCIDIFF_COMPLETE=complete_bash" in asked(_SCIDIFF_COMPLETE="source_bash")
    assert asked(_SCIDIFF_COMPLETE="complete_bash", COMP_WORDS="scidiff tr", COMP_CWORD="1").split() == [
        "train",
        "trajectory",
    ]


# ---- a few of very many ----------------------------------------------------------------------------------------------


def from_benchmarks(name: str):
    found = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look there
    found.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ten_seconds_of_damaged_and_hostile_input():
    """Damage that ends libhdf5 itself, in circles or a crash, is no answer of ours; `benchmarks/fuzz.py` counts it."""
    tallies = from_benchmarks("fuzz").fuzz(10, seed=0)
    answers = {(name, said) for name, tally in tallies.items() if tally.findings for said in tally.examples}
    wrong = {(name, said) for name, said in answers if not said.startswith("the process died")}
    assert not wrong, wrong
    assert sum(tally.refused for tally in tallies.values()) > 100


@pytest.mark.slow
def test_a_few_kills():
    words = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills", "3", "--interrupts", "2"]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr


def test_values_of_no_form_that_libhdf5_would_die_of(tmp_path):
    path = tmp_path / "a.h5ad"
    screen().write_h5ad(path)
    form = bytes.fromhex("19010000100000001000000001000000")  # varying length: text in ASCII
    with h5py.File(path, "a") as file:
        kept = file["uns"]
        kept["sequence"] = np.array([np.arange(3), np.arange(2)], dtype=h5py.vlen_dtype(np.uint8))
        kept["pairs"] = np.array([("a", 1.0)], dtype=[("name", h5py.string_dtype("ascii")), ("value", float)])
        file["X"].attrs.create("note", "a", dtype=h5py.string_dtype("ascii"))
    open_hdf5(path).close()  # sound: nothing is refused
    content = path.read_bytes()
    at = content.index(form, content.index(b"note\0"))
    path.write_bytes(content[: at + 1] + b"\x04" + content[at + 2 :])
    with pytest.raises(sd.InputError, match=r"h5ad is damaged or no h5ad file: X/note is neither text"):
        read_h5ad(path)
