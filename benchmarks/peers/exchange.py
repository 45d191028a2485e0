"""What the scripts beside this one share: an environment of their own, exported cells in, predicted cells out.

It needs the standard library to make the environment, and there only anndata, pandas, numpy and scipy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PLACE = Path(os.environ.get("SCIDIFF_PEERS", Path.home() / ".cache" / "scidiff-peers"))


def in_environment(name: str, *requirements: str, python: str = "python3") -> None:
    """Go on in the virtual environment ``name`` (below SCIDIFF_PEERS), which is made and filled where it is missing.

    ``python``: the interpreter that the packages need, on the PATH.
    """
    place = PLACE / name
    if Path(sys.prefix).resolve() == place.resolve():
        sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]  # scripts are named as packages are
        return
    inside = str(place / "bin" / "python")
    if not (place / "ready").exists():
        if shutil.which(python) is None:
            sys.exit(f"{name} needs {python} on the PATH")
        print(f"making {place}", file=sys.stderr, flush=True)
        subprocess.run([python, "-m", "venv", "--clear", place], check=True)
        subprocess.run([inside, "-m", "pip", "install", "--quiet", *requirements], check=True)
        (place / "ready").touch()
    os.execv(inside, [inside, *sys.argv])


@dataclass
class Unit:
    """One thing held out: training cells, control cells to start from, conditions asked for, and the schema.

    ``trained_at``: the CPU-seconds of the process when training ended, see :meth:`trained`.
    """

    name: str
    train: Any
    source: Any
    asked: list[dict[str, Any]]
    schema: dict[str, Any]
    trained_at: float | None = None

    @property
    def columns(self) -> dict[str, str]:
        """The obs column of each role that has one."""
        return {role: self.schema[role] for role in ("perturbation", "dose", "time") if self.schema[role]}

    def contexts(self, adata) -> Any:
        """Return the context of every cell as one text."""
        columns = list(self.schema["context"])
        return adata.obs[columns].astype(str).agg("|".join, axis=1) if columns else adata.obs_names.map(lambda _: "all")

    def is_control(self, adata) -> Any:
        """Return a mask of the control cells."""
        return (adata.obs[self.schema["perturbation"]].astype(str) == self.schema["control"]).to_numpy()

    def parts(self, perturbation: str) -> list[str]:
        """Return the single perturbations of a combination."""
        sep = self.schema["combination_sep"]
        return perturbation.split(sep) if sep else [perturbation]

    def known(self) -> list[dict[str, Any]]:
        """Return the conditions asked for of which the training cells have every part, alone or in a combination."""
        names = self.train.obs[self.schema["perturbation"]].astype(str).unique()
        seen = {part for name in names for part in self.parts(name)}
        return [condition for condition in self.asked if seen.issuperset(self.parts(condition["perturbation"]))]

    def trained(self) -> None:
        """Take down that training ends here and predicting begins."""
        self.trained_at = time.process_time()

    def cells(self, source, x, condition: dict[str, Any]) -> Any:
        """Return the log expression ``x`` of cells made from ``source``, labelled with the condition asked for.

        Values that no cell can have, below 0 or above log1p(1e4), become the nearest possible one.
        """
        import anndata
        import numpy as np
        from scipy import sparse

        obs = source.obs.copy()
        for role, value in condition.items():
            obs[self.columns[role]] = value
        name = "-".join(map(str, condition.values()))
        obs.index = [f"{self.name}-{name}-{cell}" for cell in source.obs_names]
        x = sparse.csr_matrix(np.clip(np.asarray(x, dtype=np.float32), 0, np.float32(np.log1p(1e4))))
        return anndata.AnnData(x, obs=obs, var=source.var[[]])

    def dealt(self, means, condition: dict[str, Any]) -> list[Any]:
        """Return cells with molecules drawn (Poisson) about the mean counts of every source cell.

        From few source cells several are drawn each, 400 in all, as scIDiff does; the benchmark takes distances draw by
        draw.
        """
        import numpy as np

        rng, made = np.random.default_rng(0), []
        for draw in range(-(-400 // len(means))):
            counts = rng.poisson(means)
            depth = np.maximum(counts.sum(axis=1, keepdims=True), 1)
            cells = self.cells(self.source, np.log1p(1e4 * counts / depth), condition)
            cells.obs["scidiff_draw"] = draw
            cells.obs_names += f", draw {draw}"
            made.append(cells)
        return made


def units(folder: Path) -> Iterator[Unit]:
    """Yield what `scidiff benchmark --task predict --export` wrote."""
    import anndata
    import pandas as pd

    for place in sorted(path.parent for path in folder.glob("*/asked.csv")):
        train, source = (anndata.read_h5ad(place / f"{name}.h5ad") for name in ("train", "source"))
        asked = pd.read_csv(place / "asked.csv").to_dict("records")
        yield Unit(place.name, train, source, asked, json.loads((place / "schema.json").read_text()))


def logged(adata) -> Any:
    """Return a copy with log1p(CP10k) in ``X``, dense; log expression stays as it is."""
    import numpy as np
    from scipy import sparse

    out = adata.copy()
    x = np.asarray(out.X.todense() if sparse.issparse(out.X) else out.X, dtype=np.float32)
    if (x == np.rint(x)).all():
        x = np.log1p(1e4 * x / np.maximum(x.sum(axis=1, keepdims=True), 1))
    out.X = x
    return out


def run(predict: Callable[[Unit, argparse.Namespace], list[Any]], *, package: str, **settings: int) -> None:
    """Predict every unit of the folder in the first argument, and write the file in the second.

    Units that the file holds already are not predicted again; those of which a part was never seen are left out.
    What each cost goes into a table beside it (OUT without .h5ad, and .costs.csv): CPU-seconds of training and of
    predicting, cells predicted, seconds, the peak memory of the process so far, the version of the ``package``, and the
    settings.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__.split("\n")[0])
    parser.add_argument("export", type=Path, help="folder written by scidiff benchmark --task predict --export")
    parser.add_argument("out", type=Path, help="predicted cells, one h5ad file for all units")
    for name, value in settings.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    import anndata
    import pandas as pd

    try:
        tool = f"{package} {version(package)}"
    except PackageNotFoundError:  # imported from a checkout
        tool = f"{package} {import_module(package).__version__}"
    chosen = ", ".join(f"{getattr(args, name)} {name}" for name in settings) or "defaults"
    costs = args.out.with_suffix(".costs.csv")
    made = [anndata.read_h5ad(args.out)] if args.out.exists() else []
    spent = pd.read_csv(costs, dtype={"unit": str}).to_dict("records") if made else []
    done = {row["unit"] for row in spent}
    for unit in units(args.export):
        if unit.name in done or not unit.known():
            continue
        print(unit.name, ", ".join(str(list(condition.values())) for condition in unit.asked), flush=True)
        cpu, start = time.process_time(), time.perf_counter()
        cells = predict(unit, args)
        if not cells:
            continue
        made += cells
        row = {"unit": unit.name, "train_cells": unit.train.n_obs, "cells": sum(one.n_obs for one in cells)}
        row |= {"cpu_s": round(time.process_time() - cpu, 1), "seconds": round(time.perf_counter() - start, 1)}
        row |= {"train_cpu_s": round(unit.trained_at - cpu, 1)} if unit.trained_at else {}
        row |= {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
        spent.append(row | {"tool": tool, "settings": chosen})
        made = [anndata.concat(made, join="outer", fill_value=0)]
        made[0].write_h5ad(args.out, compression="gzip")
        pd.DataFrame(spent).to_csv(costs, index=False)
