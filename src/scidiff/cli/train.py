"""check and train: from a file of cells to a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scidiff.cli.options import Batch, Context, Control, Data, Dose, Json, Layer, Perturbation, Quiet, Seed, Time
from scidiff.cli.talk import Talk
from scidiff.errors import InputError
from scidiff.files import check_folder_place, discard, locked, read_genes, read_h5ad, read_table, reason, writing
from scidiff.shares import Share

if TYPE_CHECKING:
    from anndata import AnnData

    from scidiff.data import Schema
    from scidiff.estimator import ScIDiff
    from scidiff.streaming import CellFile


def check(data: Data, layer: Layer = None, seed: Seed = 0, quiet: Quiet = False, as_json: Json = False) -> None:
    """Say what a file holds: scale, depth, conditions, a schema that fits, and every problem."""
    del seed  # every verb takes it; nothing is drawn here
    with Talk(quiet=quiet, as_json=as_json) as talk:
        from scidiff.data import check

        found = check(read_h5ad(data), layer=layer)
        text = f"{found}\nnext     {_train_command(data, found.schema, layer)}" if found.ok else str(found)
        talk.result({"data": str(data)} | found.to_dict(), text)
    problems = [finding.text for finding in found.findings if finding.level == "problem"]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{data} cannot be used: {problems[0]}{more}")


def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the model.", show_default=False)],
    perturbation: Perturbation = None,
    control: Control = None,
    context: Context = None,
    dose: Dose = None,
    time: Time = None,
    batch: Batch = None,
    combination_sep: Annotated[
        str, typer.Option(help="Between the parts of a combination; none: there are none.")
    ] = "+",
    features: Annotated[Path | None, typer.Option(help="Table: a row per perturbation, a column per feature.")] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(help="What cells can be asked to have: obs COLUMN, SET=FILE.gmt or TF=NETWORK; repeat."),
    ] = None,
    holdout: Annotated[
        list[str] | None, typer.Option(help="Condition to keep out of training; the split is stored as split.json.")
    ] = None,
    noise: Annotated[str | None, typer.Option(help="thinning (for counts) or gaussian.")] = None,
    genes: Annotated[str | None, typer.Option(help="File of gene names, or a number of most variable ones.")] = None,
    layer: Layer = None,
    on_disk: Annotated[
        bool | None,
        typer.Option(
            "--on-disk/--in-memory",
            help="Leave the cells in the file, of which memory holds a sample. Default: where they would fill memory.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of training at most.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model on the cells of an h5ad file."""
    leader = Share.asked(None).number == 1  # of several processes (accelerate launch) one speaks and writes
    with Talk(quiet=quiet or not leader, as_json=as_json and leader) as talk:
        unfinished = out.with_name(f"{out.name}.partial")
        if leader:
            _model_place(out, unfinished, resume=resume)
        asked_genes = None if genes is None else read_genes(genes)
        table = None if features is None else read_table(features)
        adata = _cells_to_train(data, on_disk=on_disk)

        from dataclasses import replace

        from scidiff.data import Schema, parse_condition
        from scidiff.data import holdout as hold_out
        from scidiff.estimator import ScIDiff
        from scidiff.phenotype import asked_modules
        from scidiff.training import TrainConfig

        config = TrainConfig(steps=steps, seed=seed)
        scored, modules = asked_modules(module or ())
        schema = Schema(
            perturbation=perturbation,
            control=control,
            context=context or (),
            dose=dose,
            time=time,
            batch=batch,
            combination_sep=None if combination_sep == "none" else combination_sep,
            modules=scored,
        )
        split = None
        if holdout:
            condition = parse_condition(holdout, schema=schema, columns=adata.obs.columns)
            split = hold_out(adata, schema, **schema.by_role(condition), seed=seed)
        asked = {
            "data": _content(data),
            "schema": schema.to_dict(),
            "holdout": split and split.hash,
            "features": features and _content(features),
            "modules": modules or None,
            "genes": asked_genes,
            "layer": layer,
            "noise": noise,
            "steps": steps,
            "seed": seed,
        }
        kept = _resumable(unfinished, asked) if leader else contextlib.nullcontext()
        with kept, talk.progress("training") as advance:
            model = ScIDiff.fit(
                adata if split is None else adata[split.train],
                schema,
                noise=noise,
                genes=asked_genes,
                layer=layer,
                features=table,
                modules=modules,
                config=config,
                checkpoint=unfinished,
                on_step=lambda at: advance(at.step, at.steps, f"loss {at.loss:.4g}"),
            )
        if not leader:
            return
        if split is not None:
            model = replace(model, settings=model.settings | {"split": split.hash})
        with writing(out):
            model.save(out, files=None if split is None else {"split.json": split.to_json()})
        discard(unfinished)
        talk.result(*_training_result(out, model, split))


def _train_command(data: Path, schema: Schema, layer: str | None) -> str:
    """The command that trains on a file with this schema."""
    words = ["scidiff", "train", str(data), "--out", "model"]
    for role, value in schema.to_dict().items():
        values = value if isinstance(value, list) else [value]
        if role != "combination_sep":
            words += [word for one in values if one is not None for word in (f"--{role}", one)]
    words += [] if layer is None else ["--layer", layer]
    return shlex.join(words)


def _training_result(out: Path, model: ScIDiff, split: Any) -> tuple[dict[str, Any], str]:
    stages = dict(list(model.history.groupby("stage", sort=False)))
    run = stages["sample"]
    best = run.loc[run["heldout"].idxmin()]
    n_cells, process = model.settings["n_cells"], model.settings["noise"]
    facts = {
        "model": str(out),
        "process": process,
        "n_cells": n_cells,
        "n_genes": len(model.genes),
        "steps": int(run["step"].iloc[-1]),
        "best_step": int(best["step"]),
        "heldout_loss": float(best["heldout"]),
        "seconds": round(sum(float(stage["seconds"].iloc[-1]) for stage in stages.values()), 1),
        "seed": model.settings["training"]["seed"],
    }
    text = (
        f"{process} model of {n_cells} cells x {len(model.genes)} genes written to {out} "
        f"({facts['seconds']:.0f} s; held-out loss {best['heldout']:.4g}, the least, at step {facts['best_step']} of "
        f"{facts['steps']} of the network that samples)"
    )
    if split is None:
        return facts, text
    sizes = {role: len(getattr(split, role)) for role in ("train", "test", "source", "control")}
    listed = ", ".join(f"{role} {size}" for role, size in sizes.items())
    return facts | {"split": sizes | {"hash": split.hash}}, f"{text}\nheld out as in {out / 'split.json'}: {listed}"


def _cells_to_train(data: Path, *, on_disk: bool | None) -> AnnData | CellFile:
    """The cells of a file, or, where asked or where memory could not hold a training on them, the open file."""
    if on_disk is False:
        return read_h5ad(data)
    from scidiff.streaming import CellFile

    file = CellFile(data)
    if on_disk or file.exceeds_memory:
        return file
    file.close()
    return read_h5ad(data)


def _model_place(out: Path, unfinished: Path, *, resume: bool) -> None:
    from scidiff.storage import refuse_other

    check_folder_place(out)
    refuse_other(out)
    if unfinished.exists() and not resume:
        raise InputError(f"{unfinished} holds an unfinished run: go on with --resume, or delete it")


@contextlib.contextmanager
def _resumable(folder: Path, asked: dict[str, Any]) -> Iterator[None]:
    """Keep in ``folder`` what a run was asked to do; when it is cut short, keep the folder if the run can go on."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with locked(folder / "request.json") as request:
        if text := request.read():
            _same_request(folder, text, asked)
        else:  # new, or killed before it could be written
            request.write(json.dumps(asked))
            request.flush()
        try:
            yield
        except BaseException as error:
            if not any(folder.glob("*/run.json")):
                discard(folder)
            elif isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("interrupted; the same command with --resume goes on") from None
            raise


def _same_request(folder: Path, text: str, asked: dict[str, Any]) -> None:
    try:
        before = dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder} holds no run to resume: {reason(error)}; delete it") from None
    for name, value in json.loads(json.dumps(asked)).items():
        if before.get(name) != value:
            raise InputError(f"{folder} holds a run with other {name}; ask for the same, or delete that folder")


def _content(path: Path) -> str:
    """A hash of what a file holds: a run must not go on with other data.

    Of a zarr store, whose chunks can be millions, only names, sizes and times of change are looked at.
    """
    from scidiff.storage import file_hash

    if not path.is_dir():
        return file_hash(path)
    found = hashlib.sha256()
    for part in sorted(path.rglob("*")):
        if part.is_file():
            told = part.stat()
            found.update(f"{part.relative_to(path).as_posix()} {told.st_size} {told.st_mtime_ns}\n".encode())
    return found.hexdigest()
