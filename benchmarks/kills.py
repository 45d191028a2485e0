"""What `kill -9` and Ctrl-C leave behind, at moments drawn at random.

    python benchmarks/kills.py [--kills 50] [--interrupts 16] [--seed 0] [--write TABLE.md]

A command runs in a process of its own, with a small network, and is killed: half of the times after a random time, half
of the times just before one of the files that it opens to write, renames or deletes. Then its output must be absent, or
an older one, or the new one, whole; the same command, with ``--resume`` where it says so, must end with the result of a
run that nobody disturbed, to the last digit, and leave nothing else in the folder. After Ctrl-C the command must say so
in one line, end with exit code 130 and leave what a kill may leave.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.cli import main as command
from scidiff.estimator import ScIDiff

ROLES = ["--perturbation", "drug", "--control", "DMSO", "--context", "cell_type"]
TRAIN = ["train", "cells.h5ad", "--out", "new", *ROLES, "--steps", "12"]
#: events of Python by which a process changes what is on the disk
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate")


@dataclass(frozen=True)
class Task:
    """A command, where its output is, and what there is to compare of it."""

    words: list[str]
    out: str
    content: Callable[[Path], str]


# ---- what is compared ------------------------------------------------------------------------------------------------


def of_model(place: Path) -> str:
    manifest = json.loads((place / "manifest.json").read_text())
    digest = hashlib.sha256((place / "weights.safetensors").read_bytes())
    del manifest["manifest_sha256"]
    for row in manifest["history"]:
        del row["seconds"]
    return digest.hexdigest() + json.dumps(manifest)


def of_bytes(place: Path) -> str:
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def of_cells(place: Path) -> str:
    cells = anndata.read_h5ad(place)
    digest = hashlib.sha256(cells.obs.to_csv().encode() + cells.var.to_csv().encode())
    for x in (cells.X, *cells.layers.values()):
        digest.update(x.toarray().tobytes() if sparse.issparse(x) else np.asarray(x).tobytes())
    return digest.hexdigest()


def of_benchmark(place: Path) -> str:
    table = pd.read_csv(place / "results.csv").drop(columns="seconds")
    assert (place / "report.html").stat().st_size > 10_000
    order = ["part", "split", "method", "metric"]
    return table[~table["metric"].str.contains("second")].sort_values(order).to_csv(index=False)


JUDGE = ["benchmark", "cells.h5ad", "--out", "new", "--fast", "--genes", "20", "--task"]
DENOISE = ["denoise", "model", "cells.h5ad", "--draws", "1"]
KILLED = {
    "train": Task(TRAIN, "new", of_model),
    "train, cells on disk": Task([*TRAIN, "--on-disk"], "new", of_model),
    "denoise, h5ad": Task([*DENOISE, "--out", "new.h5ad"], "new.h5ad", of_cells),
    "denoise, zarr": Task([*DENOISE, "--out", "new.zarr"], "new.zarr", of_bytes),
    "predict": Task(
        ["predict", "model", "cells.h5ad", "--out", "new.h5ad", "--to", "perturbation=A"], "new.h5ad", of_cells
    ),
    "benchmark": Task(
        [*JUDGE, "denoise", "--splits", "1"],
        "new",
        of_benchmark,
    ),
}
DESIGN = ["design", "model", "--out", "new.h5ad", "--up", "G1", "--n", "40", "--steps", "8"]
FATE = [
    "fate",
    "model",
    "cells.h5ad",
    "--out",
    "new.h5ad",
    "--terminal",
    "day=2",
    "--terminal",
    "day=6",
    "--rounds",
    "2",
]
PATH = ["trajectory", "model", "cells.h5ad", "--out", "new.h5ad", "--to", "perturbation=A", "--steps", "3"]
INTERRUPTED = KILLED | {
    "check": Task(["check", "cells.h5ad"], "nothing", of_bytes),
    "generate": Task(["generate", "model", "--out", "new.h5ad", "--n", "200"], "new.h5ad", of_cells),
    "design": Task(DESIGN, "new.h5ad", of_cells),
    "trajectory": Task(PATH, "new.h5ad", of_cells),
    "fate": Task(FATE, "new.h5ad", of_cells),
    "attribute": Task(["attribute", "model", "cells.h5ad", "--out", "new.csv"], "new.csv", of_bytes),
    "evaluate": Task(["evaluate", "other.h5ad", "cells.h5ad", "--out", "new.csv"], "new.csv", of_bytes),
}


def screen(n: int = 200, seed: int = 0) -> anndata.AnnData:
    """Return cells of three types under a control and two drugs, 20 genes."""
    rng = np.random.default_rng(seed)
    kind, drug = rng.choice(3, n), rng.choice(3, n)
    rate = np.exp(np.random.default_rng(9).normal(0.5, 1, (3, 20)))[kind]
    rate[drug == 1, :8] *= 2
    rate[drug == 2, 8:16] *= 2
    obs = pd.DataFrame(
        {
            "drug": np.array(["DMSO", "A", "B"])[drug],
            "cell_type": np.array(["T", "B", "NK"])[kind],
            "day": rng.choice(["2", "4", "4", "6"], n),
        },
        index=[f"c{seed}-{i}" for i in range(n)],
    )
    return anndata.AnnData(
        sparse.csr_matrix(rng.poisson(rate), dtype=np.float32),
        obs=obs,
        var=pd.DataFrame(index=[f"G{i}" for i in range(20)]),
    )


# ---- one run ---------------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a process ended, what it said on stderr, and how often it was about to change something on the disk."""

    code: int
    said: str
    changes: int
    seconds: float


def run(words: list[str], folder: Path, *, after: float = 0, before: int = 0, by: int = signal.SIGKILL) -> Ended:
    """Run a command in ``folder`` in a process, to be stopped ``after`` seconds, ``before`` a change, or not at all."""
    said, count = folder.with_name("said.txt"), folder.with_name("count.txt")
    said.write_text("")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the command begins, which is to answer it
    started = time.monotonic()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (open(at, "w", closefd=False) for at in (1, 2))  # noqa: SIM115
        changes = _count_changes(folder, before, by)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            code = command([*words, "--quiet"])
        except KeyboardInterrupt:  # before its first line
            print("error: interrupted", file=sys.stderr)
            code = 130
        sys.stderr.flush()
        count.write_text(json.dumps([changes(), sorted(sys.modules)]))
        os._exit(code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    if after:
        time.sleep(after)
        os.kill(child, by)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - started
    changes, modules = json.loads(count.read_text()) if code >= 0 else (0, [])
    for name in modules:  # loaded here once, not in every process
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    return Ended(code, said.read_text(), changes, seconds)


def _count_changes(folder: Path, before: int, by: int) -> Callable[[], int]:
    """Count what Python is about to change in a folder; stop this process before the ``before``-th change."""
    n = 0

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal n
        if event not in CHANGES or (event == "open" and not _writes(details)):
            return
        path = details[0]
        if isinstance(path, str | Path) and os.path.abspath(path).startswith(str(folder)):
            n += 1
            if n == before:
                os.kill(os.getpid(), by)

    sys.addaudithook(watch)
    return lambda: n


def _writes(details: tuple[Any, ...]) -> bool:
    _, mode, flags = details
    return any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


# ---- one trial -------------------------------------------------------------------------------------------------------


class Box:
    """A folder with cells and a model, in which commands are tried."""

    def __init__(self, folder: Path) -> None:
        self.originals, self.folder = folder / "originals", folder / "work"
        self.originals.mkdir()
        screen().write_h5ad(self.originals / "cells.h5ad")
        screen(150, 1).write_h5ad(self.originals / "other.h5ad")
        small = ["train", "cells.h5ad", "--out", "model", *ROLES, "--steps", "4"]
        assert run(small, self.originals).code == 0
        self.undisturbed: dict[str, tuple[str, Ended, list[str]]] = {}

    def fresh(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.originals, self.folder)
        return self.folder

    def straight(self, task: Task) -> tuple[str, Ended, list[str]]:
        """Return what a run leaves that nobody disturbs, how it ended, and the names in the folder."""
        key = " ".join(task.words)
        if key not in self.undisturbed:
            for _ in range(2):  # the first time it loads libraries
                folder = self.fresh()
                ended = run(task.words, folder)
            assert ended.code == 0, ended.said
            found = task.content(folder / task.out) if (folder / task.out).exists() else ""
            self.undisturbed[key] = found, ended, sorted(os.listdir(folder))
        return self.undisturbed[key]

    def state(self, task: Task, wanted: str, older: str) -> str:
        """Return what the output is: absent, older, new, unfinished (a benchmark can be gone on with), or broken."""
        place = self.folder / task.out
        if not place.exists():
            return "absent"
        try:
            content = task.content(place)
        except Exception as error:
            unfinished = task.content is of_benchmark and not (place / "verdict.json").exists()
            return "unfinished" if unfinished else f"broken ({type(error).__name__})"
        return "new" if content == wanted else "older" if content == older else "broken"

    def older(self, task: Task) -> str:
        """Put an older result into the place of the output of a task; return its content."""
        place = self.folder / task.out
        if task.content is of_model:
            shutil.copytree(self.folder / "model", place)
        elif task.content is of_cells:
            shutil.copy(self.folder / "other.h5ad", place)
        else:
            return ""
        return task.content(place)

    def trial(self, task: Task, random: Random, *, by_time: bool, by: int = signal.SIGKILL) -> dict[str, str]:
        """Stop a run; return what it left and what came of the next one."""
        wanted, straight, names = self.straight(task)
        moment: dict[str, Any] = {"after": random.uniform(0, 0.9 * straight.seconds)}
        if not by_time:
            moment = {"before": random.randint(1, max(straight.changes, 1))}
        folder = self.fresh()
        older = self.older(task) if random.random() < 0.5 else "none"
        ended = run(task.words, folder, by=by, **moment)
        if ended.code == 0:  # it was faster
            return self.trial(task, random, by_time=False, by=by) if straight.changes else {"left": "new"}
        left = self.state(task, wanted, older)
        if left == "absent" and list(folder.glob(f".{task.out}.*.old")):
            left = "older"  # comes back when it is looked for
        told = {"left": left, "code": str(ended.code), "said": ended.said.strip()}
        again = run(task.words, folder)
        resumed = bool(again.code)
        if resumed:
            if "--resume" not in again.said:
                return told | {"next": f"failed: {again.said.strip()}"}
            again = run([*task.words, "--resume"], folder)
        after = self.state(task, wanted, older) if wanted else "absent"
        same = again.code == 0 and after == ("new" if wanted else "absent")
        clean = sorted(os.listdir(folder)) == names
        how = "resumed" if resumed else "done again"
        return told | {
            "next": how if same and clean else f"failed: {after}, {again.said}, {sorted(os.listdir(folder))}"
        }


def kills(n: int, *, seed: int, box: Box) -> dict[str, list[dict[str, str]]]:
    """Return what came of ``n`` kills, spread over the commands, by command."""
    random, out = Random(seed), {name: [] for name in KILLED}
    *quick, slow = KILLED
    for i in range(n):
        name = slow if i % 10 == 9 else quick[i % len(quick)]
        out[name].append(box.trial(KILLED[name], random, by_time=i // 10 % 2 == 1))
        print(f"kill {i + 1} of {n}: {name}: {out[name][-1]}", file=sys.stderr, flush=True)
    return out


def interrupts(n: int, *, seed: int, box: Box) -> dict[str, list[dict[str, str]]]:
    """Return what came of ``n`` times Ctrl-C."""
    random, out = Random(seed), {name: [] for name in INTERRUPTED}
    for i in range(n):
        name = list(INTERRUPTED)[i % len(INTERRUPTED)]
        made = box.trial(INTERRUPTED[name], random, by_time=True, by=signal.SIGINT)
        lines = [line for line in made.get("said", "").splitlines() if not line.startswith("warning: ")]
        if made.get("code") != "130" or len(lines) != 1 or not lines[0].startswith("error: interrupted"):
            made["next"] = f"failed: exit code {made.get('code')}, {lines}"
        out[name].append(made)
        print(f"Ctrl-C {i + 1} of {n}: {name}: {made}", file=sys.stderr, flush=True)
    return out


def as_table(found: dict[str, list[dict[str, str]]]) -> str:
    states = ["absent", "older", "new", "unfinished"]
    header = "| command | stopped | output absent | an older one | the new one | to be gone on with | broken "
    lines = [f"{header}| then done again | then resumed | same result |", "|" + "---|" * 10]
    total: Counter[str] = Counter()
    for name, trials in found.items():
        counts = Counter(trial["left"] if trial["left"] in states else "broken" for trial in trials)
        counts |= Counter(trial["next"] for trial in trials if not trial["next"].startswith("failed"))
        counts["all"] = len(trials)
        counts["same"] = counts["done again"] + counts["resumed"]
        total += counts
        lines.append(_row(name, counts, states))
    return "\n".join([*lines, _row("**all**", total, states)])


def _row(name: str, counts: Counter[str], states: list[str]) -> str:
    keys = ["all", *states, "broken", "done again", "resumed", "same"]
    return f"| {name} | {' | '.join(str(counts[key]) for key in keys)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--interrupts", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    ScIDiff.fit = partial(ScIDiff.fit, width=8, n_blocks=1)  # what is tried here hangs on no size
    with tempfile.TemporaryDirectory() as folder:
        box = Box(Path(folder).resolve())
        killed = kills(asked.kills, seed=asked.seed, box=box)
        interrupted = interrupts(asked.interrupts, seed=asked.seed, box=box)
    tables = {"kill -9": killed, "Ctrl-C": interrupted}
    text = "\n\n".join(f"{what}:\n\n{as_table(found)}" for what, found in tables.items() if any(found.values()))
    print(text)
    failed = [(name, one) for found in tables.values() for name, trials in found.items() for one in trials]
    failed = [
        (name, one) for name, one in failed if one["next"].startswith("failed") or one["left"].startswith("broken")
    ]
    for name, one in failed:
        print(f"{name}: {one}")
    if asked.write:
        how = f"`python benchmarks/kills.py --kills {asked.kills} --interrupts {asked.interrupts}`"
        asked.write.write_text(f"{how}: what commands leave that are stopped at random moments.\n\n{text}\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
