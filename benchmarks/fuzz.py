"""Damaged and hostile input, by the thousand: nothing but InputError may come out of what reads it.

    python benchmarks/fuzz.py [--minutes 10] [--seed 0] [--only NAME ...] [--write TABLE.md]

Each target is a reader with a few sound inputs. An input is changed at random (bits, pieces left out, doubled or put
elsewhere, words and numbers that have broken readers before, the end cut off, two inputs joined; in HDF5 and JSON whole
parts, too) and read. A finding is any other exception than InputError, an answer that takes more than ten seconds of a
processor, or a process that dies: files that a library in C opens are read in a process of their own. All targets have
the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.cli import main as command
from scidiff.data.quantities import to_numbers
from scidiff.files import read_h5ad, read_names, read_table
from scidiff.integration import (
    read_drug_names,
    read_drug_targets,
    read_gene_sets,
    read_network,
    read_signatures,
)
from scidiff.phenotype import asked_phenotype, read_signature
from scidiff.streaming import CellFile

#: seconds of a processor that an answer may take
PATIENCE = 10
#: words that readers have stumbled over
WORDS = [
    *("", " ", "\t", "\n", "\r\n", ",", ";", "=", "+", "|", ":", '"', "'", "\\", "\0", "\ufeff", "é", "基", "🧬"),
    *("nan", "NaN", "inf", "-inf", "1e999", "1e999999999", "1e-999999999", "-1", "0", "1_000", "٣", "0x10", "9" * 400),
    *("None", "null", "true", "[]", "{}", "[[[", "{{", "()", "__import__('os').system('false')", "#1.3", "%s", "{0}"),
    *("&a [*a]", "*a", "!!python/object/apply:os.system [false]", "!Regulon", "<!DOCTYPE x>", "&amp;", "</drug>"),
    *("gene", "drug", "weight", "A" * 70_000, "source", "target", "up", "down", "TF:", "G1>2", "=2", "10 uM", "3 d"),
]

Input = bytes | str


@dataclass(frozen=True)
class Target:
    """What is fed, and with what to begin."""

    read: Callable[[Any], object]
    #: sound inputs: texts, bytes, or what ``change`` knows
    sound: list[Any]
    #: name of the file to write the input to; None: the input is handed over as it is
    file: str | None = None
    change: Callable[[Random, list[Any]], Any] | None = None
    #: read in a process of its own
    apart: bool = False


@dataclass
class Tally:
    """What became of the inputs of one target."""

    read: int = 0
    refused: int = 0
    findings: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


# ---- changes ---------------------------------------------------------------------------------------------------------


def changed(random: Random, sound: list[Input]) -> Input:
    """Return one of the sound inputs after one to four changes."""
    text = random.choice(sound)
    for _ in range(random.randint(1, 4)):
        at, other = sorted(random.choices(range(len(text) + 1), k=2))
        word: Any = random.choice(WORDS)
        word = word.encode() if isinstance(text, bytes) else word
        flipped = text[at:other][::-1]
        match random.randrange(8):
            case 0:
                text = text[:at] + word + text[at:]
            case 1:
                text = text[:at] + word + text[other:]
            case 2:
                text = text[:at] + text[other:]
            case 3:
                text = text[:other] + text[at:]
            case 4:
                text = text[:at] + flipped + text[other:]
            case 5:
                text = text[:at]
            case 6:
                text = text[:at] + random.choice(sound)[at:]
            case 7:
                text = text[:at] + _one(random, text) + text[at + 1 :]
    return text


def _one(random: Random, like: Input) -> Input:
    return (
        bytes([random.randrange(256)])
        if isinstance(like, bytes)
        else chr(random.choice([random.randrange(128), 0x660]))
    )


def changed_json(random: Random, sound: list[Any]) -> Any:
    """Return a JSON value with one to three of its parts left out or replaced."""
    value = json.loads(json.dumps(random.choice(sound)))
    for _ in range(random.randint(1, 3)):
        places = list(_places(value))
        holder, key = random.choice(places)
        other = random.choice(
            [None, 0, -1, 1e308, float("nan"), "", "A", [], {}, [1], [[None]], {"a": 1}, True, random.choice(WORDS)]
        )
        if random.random() < 0.3:
            del holder[key]
        elif random.random() < 0.3:
            holder[key] = random.choice(places)[0]
            with contextlib.suppress(ValueError, RecursionError):
                json.dumps(value)
                continue
            holder[key] = other  # it would have held itself
        else:
            holder[key] = other
        if not value:
            break
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list) and value[key]:
            yield from _places(value[key])


def changed_hdf5(random: Random, sound: list[bytes]) -> bytes:
    """Return an HDF5 file in which parts are gone, others or elsewhere; sometimes just other bytes."""
    if random.random() < 0.2:
        return changed(random, sound)
    memory = io.BytesIO(random.choice(sound))
    with h5py.File(memory, "a") as file:
        for _ in range(random.randint(1, 3)):
            names: list[str] = []
            file.visit(names.append)
            if not names:
                break
            name, other = random.choices(names, k=2)
            match random.randrange(6):
                case 0:
                    del file[name]
                case 1:
                    del file[name]
                    file[name] = _values(random)
                case 2:
                    with contextlib.suppress(Exception):  # into itself
                        file.copy(other, f"{name}_copy")
                        del file[name]
                        file.move(f"{name}_copy", name)
                case 3:
                    for key in list(file[name].attrs):
                        if random.random() < 0.5:
                            del file[name].attrs[key]
                case 4:
                    for key in list(file[name].attrs):
                        with contextlib.suppress(Exception):
                            file[name].attrs[key] = random.choice(
                                ["", "csr_matrix", "dataframe", 7, -1, [1, 2], "x" * 99]
                            )
                case 5:
                    if isinstance(file[name], h5py.Dataset) and file[name].size:
                        values = file[name][()]
                        del file[name]
                        with contextlib.suppress(Exception):
                            flat = np.asarray(values).ravel()
                            flat = random.choice([flat[:-1], flat[::-1], flat[:0], np.concatenate([flat, flat])])
                            file[name] = flat if random.random() < 0.7 else flat[None]
    return memory.getvalue()


def _values(random: Random) -> Any:
    return random.choice(
        [
            np.array([np.nan, np.inf, -1.0]),
            np.zeros((0, 3)),
            np.zeros((2, 2, 2)),
            np.array([-1, 10**9]),
            np.array([1 + 2j]),
            np.array([b"\xff", b"A"]),
            np.array([("a", 1)], dtype=[("x", "S1"), ("y", int)]),
            "text",
            h5py.Empty("f"),
            np.arange(30),
            True,
        ]
    )


# ---- sound inputs ----------------------------------------------------------------------------------------------------


def cells() -> AnnData:
    """Return 40 cells of two types under a control and two drugs, with doses and times as people write them."""
    rng = np.random.default_rng(0)
    drug = np.resize(["DMSO", "A", "B", "A+B"], 40)
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical(drug),
            "cell_type": np.resize(["CD4 T", "CD4 T", "CD8 T", "CD8 T"], 40),
            "dose": np.resize(["0", "1 uM", "10 uM", "100 nM"], 40),
            "day": rng.choice([2.0, 4.0], 40),
        },
        index=[f"c{i}" for i in range(40)],
    )
    x = sparse.csr_matrix(1 + rng.poisson(2.0, (40, 12)), dtype=np.float32)
    adata = AnnData(x, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(12)]), layers={"spliced": x.copy()})
    adata.raw = adata.copy()
    return adata


SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context="cell_type", dose="dose", time="day")


def h5ad_bytes(adata: AnnData) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        adata.write_h5ad(place := Path(folder, "cells.h5ad"))
        return place.read_bytes()


def gctx_bytes() -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["0/DATA/0/matrix"] = np.arange(12, dtype=np.float32).reshape(3, 4)
        file["0/META/COL/id"] = np.array([b"s1", b"s2", b"s3"])
        file["0/META/COL/pert_iname"] = np.array([b"A", b"B", b"A"])
        file["0/META/ROW/id"] = np.array([b"G0", b"G1", b"G2", b"G3"])
    return memory.getvalue()


def loom_bytes() -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["row_attrs/Gene"] = np.array([b"G0", b"G1", b"G2"])
        file["row_attrs/Regulons"] = np.array([(1, 0), (0, 1), (1, 1)], dtype=[("STAT1(+)", "i4"), ("IRF1(-)", "i4")])
    return memory.getvalue()


def h5mu_bytes() -> bytes:
    from anndata.io import write_elem

    memory = io.BytesIO()
    table = pd.DataFrame(
        {"TF": ["A", "A"], "Gene": ["G0", "G1"], "eRegulon_name": ["A_direct_+/+"] * 2, "rho_TF2G": 0.5}
    )
    with h5py.File(memory, "w") as file:
        write_elem(file, "uns", {"direct_e_regulon_metadata": table})
    return memory.getvalue()


GMT = b"STAT1(+)\tabout\tG0\tG1\tG2,0.5\nIRF1 up\tna\tG3\tG4\nIRF1 down\tdown\tG5\n"
EDGES = b"source,target,weight\nSTAT1,G0,1\nSTAT1,G1,-0.5\nIRF1,G1,2\n"
TRRUST = b"STAT1\tG0\tActivation\t123\nSTAT1\tG1\tRepression\t5;6\nIRF1\tG1\tUnknown\t7\n"
EREGULONS = b"TF\tGene\teRegulon_name\trho_TF2G\nA\tG0\tA_direct_+/+\t0.4\nA\tG1\tA_direct_-/+\t-0.3\n"
PYSCENIC = (
    b",,Enrichment,Enrichment\n,,Context,TargetGenes\nTF,MotifID,,\n"
    b"STAT1,m1,\"frozenset({'activating'})\",\"[('G0', 0.5), ('G1', np.float64(0.25))]\"\n"
)
REGULONS = (
    b"- !Regulon\n  name: STAT1(+)\n  gene2weight: {G0: 1.0, G1: 0.5}\n  transcription_factor: STAT1\n"
    b"- name: IRF1(-)\n  genes: [G2, G3]\n  weights: [1, 2]\n"
)
GCT = b"#1.3\n2\t2\t1\t1\nid\tgene_symbol\ts1\ts2\npert_iname\tna\tA\tB\ng1\tG0\t1.5\t-2\ng2\tG1\t0\t3\n"
WIDE = b"gene,A,B\nG0,1,2\nG1,-0.5,1e-3\n"
LONG = b"drug\ttarget\tweight\nA\tG0\t1\nA\tG1\t-1\nB\tG1\t2\n"
DRUGBANK = (
    b'<?xml version="1.0"?><drugbank xmlns="http://www.drugbank.ca"><drug><drugbank-id primary="true">DB1</drugbank-id>'
    b"<name>Agent</name><targets><target><actions><action>inhibitor</action></actions><polypeptide>"
    b"<gene-name>EGFR</gene-name></polypeptide></target></targets></drug></drugbank>"
)
DRUG2CELL = b'{"CHEMBL1|A": ["G0", "G1"], "L01": {"CHEMBL2|B": ["G2"], "C": {"genes": ["G3"]}}}'
LINKS = b"ID,Name,Gene Name,Drug IDs\n1,EGFR kinase,EGFR,DB1; DB2\n"
TARGETS = b"drug,identifier,target,action\nA,DB1,EGFR|ERBB2,inhibitor\n"
NAMES = b"DrugBank ID,Common name,Synonyms,Standard InChI Key\nDB1,Agent A,A | Aone,KEY\nDB2,B,,\n"
PHENOTYPE = (
    b"up: [G0, G1=2.5, 'inflamed']\ndown:\n  - G2>1.5\nclamp: {G3: 0}\n"
    b"sets: {inflamed: [G4, G5, G6]}\nsignature: {G7: 1.5, G8: -2}\n"
)
CONDITIONS = ['cell_type="CD4 T",drug=A', "perturbation=A+B,dose=10 uM", 'a="x ""y"" z",b=2', "day=2"]
WISHES = ["G0,G1=2.5", "inflamed,TF:STAT1", "G2>1.5", '"a,b"=1,G3<0.5']


# ---- targets ---------------------------------------------------------------------------------------------------------


def targets(folder: Path) -> dict[str, Target]:
    """Return everything that reads what a user or a stranger wrote."""
    model = sd.ScIDiff.fit(
        cells(), SCHEMA, width=8, n_blocks=1, config=sd.TrainConfig(steps=2, batch_size=8, evaluate_every=2)
    )
    place = model.save(folder / "model")
    manifest = json.loads((place / "manifest.json").read_text())
    known = SCHEMA.table(cells())
    sound_cells = [h5ad_bytes(cells()), h5ad_bytes(_dense())]
    network = pd.DataFrame({"source": ["STAT1"] * 3, "target": ["G0", "G1", "G2"]})
    return {
        "conditions": Target(lambda text: _conditions(text, known), CONDITIONS),
        "conditions, command line": Target(partial(_command, place), CONDITIONS),
        "phenotypes, command line": Target(partial(_wish, model, network), WISHES),
        "phenotype.yaml": Target(lambda path: sd.Phenotype.from_yaml(path).matrix(model.genes), [PHENOTYPE], "p.yaml"),
        "doses and times": Target(_quantity, ["10 uM", "1.5e-3 mg/ml", "24h", "3 days", "0", "-2 d"]),
        "Schema.from_dict": Target(_schema, [SCHEMA.to_dict()], change=changed_json),
        "Split.from_json": Target(_split, [sd.data.random_split(cells(), SCHEMA).to_dict()], change=changed_json),
        "Schema.table": Target(_table, [cells().obs.to_dict("list")], change=changed_json),
        "model folder, manifest": Target(partial(_model, folder, place), [manifest], change=changed_json),
        "model folder, weights": Target(
            partial(_weights, folder, place), [(place / "weights.safetensors").read_bytes()], apart=True
        ),
        "h5ad": Target(_h5ad, sound_cells, "c.h5ad", changed_hdf5, apart=True),
        "h5ad, on disk": Target(_on_disk, sound_cells, "c.h5ad", changed_hdf5, apart=True),
        "gene list": Target(read_names, [b"G0\nG1\n\nG2\n"], "genes.txt"),
        "feature table": Target(read_table, [b"drug,size,charge\nA,1,0\nB,2,1\n"], "f.csv"),
        "signature": Target(read_signature, [b"gene,change\nG0,1.5\nG1,-2\n", b"gene\tx\nG0\t1\n"], "s.csv"),
        "gene sets": Target(read_gene_sets, [GMT], "s.gmt"),
        "network, table": Target(read_network, [EDGES, TRRUST, EREGULONS, PYSCENIC], "n.csv"),
        "network, GMT": Target(read_network, [GMT], "n.gmt"),
        "network, YAML": Target(read_network, [REGULONS], "n.yaml"),
        "network, loom": Target(read_network, [loom_bytes()], "n.loom", changed_hdf5, apart=True),
        "network, h5mu": Target(read_network, [h5mu_bytes()], "n.h5mu", changed_hdf5, apart=True),
        "signatures, table": Target(read_signatures, [WIDE, LONG, GCT], "s.csv"),
        "signatures, GMT": Target(read_signatures, [GMT], "s.gmt"),
        "signatures, GCTX": Target(read_signatures, [gctx_bytes()], "s.gctx", changed_hdf5, apart=True),
        "drug targets, table": Target(read_drug_targets, [LINKS, TARGETS], "t.csv"),
        "drug targets, XML": Target(read_drug_targets, [DRUGBANK], "t.xml"),
        "drug targets, JSON": Target(read_drug_targets, [DRUG2CELL], "t.json"),
        "drug names": Target(read_drug_names, [NAMES], "n.csv"),
    }


def _dense() -> AnnData:
    adata = cells()
    return AnnData(np.log1p(adata.X.toarray() * 1000), obs=adata.obs, var=adata.var)


def _conditions(text: str, known: pd.DataFrame) -> None:
    asked = sd.data.parse_condition(text, schema=SCHEMA, columns=cells().obs.columns)
    SCHEMA.conditions(asked, known)
    SCHEMA.select(cells(), asked)


def _command(model: Path, text: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        out = model.with_name("made.h5ad")
        code = command(["generate", str(model), "--n", "2", "--steps", "2", "--out", str(out), "--condition", text])
    lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    if code not in (0, 1, 2) or bool(code) != (len(lines) == 1) or "a bug:" in said.getvalue():
        raise AssertionError(f"exit code {code}: {said.getvalue()[-300:]}")
    if code:
        raise sd.InputError(lines[0])


def _wish(model: sd.ScIDiff, network: pd.DataFrame, text: str) -> None:
    wanted = asked_phenotype(up=[text])
    wanted.matrix(model.genes)
    sd.Phenotype(up=text.split(","), network=network, sets={"inflamed": ["G4", "G5", "G6"]}).matrix(model.genes)


def _quantity(text: str) -> None:
    for role in ("dose", "time"):
        to_numbers([text, text], role)


def _schema(values: Any) -> None:
    if not isinstance(values, dict):
        raise sd.InputError("no mapping")
    sd.Schema.from_dict(values).table(cells())


def _split(values: Any) -> None:
    sd.data.Split.from_json(json.dumps(values)).verify(cells())


def _table(columns: Any) -> None:
    adata = cells()
    for name, values in columns.items():
        values = values if isinstance(values, list | dict) else [values]
        plain = [str(value) if isinstance(value, list | dict) else value for value in values or [None]]
        adata.obs[name] = np.resize(np.array(plain, dtype=object), 40)
    SCHEMA.validate(adata)
    sd.data.check(adata)


def _model(folder: Path, sound: Path, manifest: Any) -> None:
    """A manifest that was changed, once by chance and once by somebody who knows how to hide it."""
    from scidiff.storage import _text_hash

    place = folder / "other"
    place.mkdir(exist_ok=True)
    text = json.dumps(manifest)
    (place / "manifest.json").write_text(text)
    with contextlib.suppress(FileExistsError):
        (place / "weights.safetensors").symlink_to(sound / "weights.safetensors")
    with contextlib.suppress(sd.InputError):
        sd.ScIDiff.load(place)
    if isinstance(manifest, dict) and manifest.pop("manifest_sha256", None):
        (place / "manifest.json").write_text(json.dumps(manifest | {"manifest_sha256": _text_hash(manifest)}))
    sd.ScIDiff.load(place)


def _weights(folder: Path, sound: Path, content: bytes) -> None:
    """Weights of a stranger: their hash is right."""
    from scidiff.storage import file_hash

    place = folder / "strange"
    place.mkdir(exist_ok=True)
    (place / "weights.safetensors").write_bytes(content)
    about = json.loads((sound / "manifest.json").read_text())
    about["weights_sha256"] = file_hash(place / "weights.safetensors")
    (place / "manifest.json").write_text(json.dumps(about))
    sd.ScIDiff.load(place)


def _h5ad(path: Path) -> None:
    adata = read_h5ad(path)
    sd.data.check(adata)
    sd.data.read_cells(adata, SCHEMA)


def _on_disk(path: Path) -> None:
    with CellFile(path) as file:
        stored = file.choose(None)
        SCHEMA.table(file)
        stored[slice(0, 7)]


# ---- the run ---------------------------------------------------------------------------------------------------------


class TooLongError(Exception):
    """An answer took longer than :data:`PATIENCE`."""


def _too_long(*_: object) -> None:
    raise TooLongError


def answer(target: Target, value: Any, folder: Path) -> tuple[str, str]:
    """Return "read", "refused", or what went wrong, and where."""
    if target.file is not None:
        path = folder / target.file
        path.write_bytes(value)
        value = path
    # compiled code never comes to a handler of Python: a process of its own just dies
    signal.signal(signal.SIGPROF, signal.SIG_DFL if target.apart else _too_long)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(value)
        return "read", ""
    except sd.InputError as error:
        return ("refused", "") if len(f"{error}".splitlines()) == 1 else ("a message of many lines", f"{error}")
    except Exception as error:
        at = [frame for frame in traceback.extract_tb(error.__traceback__) if "scidiff" in frame.filename]
        where = f"{Path(at[-1].filename).name}:{at[-1].lineno}" if at else "?"
        return f"{type(error).__name__} in {where}", f"{error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def in_a_process(target: Target, seed: int, n: int, folder: Path) -> list[tuple[str, str]]:
    """Return the answers to ``n`` inputs, asked in a process that may die of one."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with open(writing, "w") as out:
            for i in range(n):
                random = Random(f"{seed} {i}")
                print(
                    json.dumps(answer(target, (target.change or changed)(random, target.sound), folder)),
                    file=out,
                    flush=True,
                )
        os._exit(0)
    os.close(writing)
    with open(reading) as told:
        answers = [tuple(json.loads(line)) for line in told]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        answers.append((f"the process died ({status})", f"input {seed} {len(answers)}"))
    return answers


def fuzz(seconds: float, *, seed: int = 0, only: list[str] | None = None) -> dict[str, Tally]:
    """Return what became of all inputs that could be tried in this time, by target."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = {name: target for name, target in targets(folder).items() if not only or name in only}
        tallies = {name: Tally() for name in chosen}
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            for name, target in chosen.items():
                stop = time.monotonic() + max(min(seconds / len(chosen) / 10, 5), 0.02)
                while time.monotonic() < stop:
                    number += 1
                    if target.apart:
                        answers = in_a_process(target, seed + number, 20, folder)
                    else:
                        value = (target.change or changed)(Random(f"{seed} {number}"), target.sound)
                        answers = [answer(target, value, folder)]
                    for what, example in answers:
                        if what in ("read", "refused"):
                            setattr(tallies[name], what, getattr(tallies[name], what) + 1)
                        else:
                            tallies[name].findings[what] += 1
                            tallies[name].examples.setdefault(what, example)
    return tallies


def as_table(tallies: dict[str, Tally]) -> str:
    rows = [f"| {name} | {t.read:,} | {t.refused:,} | {t.findings.total()} |" for name, t in tallies.items()]
    total = [sum(getattr(t, what) for t in tallies.values()) for what in ("read", "refused")]
    found = sum(t.findings.total() for t in tallies.values())
    rows.append(f"| **all** | {total[0]:,} | {total[1]:,} | {found} |")
    return "\n".join(
        ["| reader | read all the same | refused in one line | anything else |", "|---|---|---|---|", *rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    tallies = fuzz(60 * asked.minutes, seed=asked.seed, only=asked.only)
    table = as_table(tallies)
    print(table)
    for name, tally in tallies.items():
        for what, n in tally.findings.most_common():
            print(f"{name}: {what}, {n} times; {tally.examples[what]}")
    if asked.write:
        how = f"`python benchmarks/fuzz.py --minutes {asked.minutes:g}`: what became of damaged and hostile input."
        asked.write.write_text(f"{how}\n\n{table}\n")


if __name__ == "__main__":
    main()
