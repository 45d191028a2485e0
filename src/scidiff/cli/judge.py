"""evaluate and benchmark: how good cells and methods are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scidiff.cli.options import Batch, Context, Control, Data, Dose, Json, Layer, Perturbation, Quiet, Seed, Time
from scidiff.cli.talk import Talk, records, score_table
from scidiff.errors import InputError, closest
from scidiff.files import check_file_place, read_genes, read_h5ad, read_table, whole_file, writing

if TYPE_CHECKING:
    from anndata import AnnData

    from scidiff.data import Schema


def evaluate(
    generated: Annotated[Path, typer.Argument(help="Cells of a model, an h5ad file.", show_default=False)],
    real: Annotated[Path, typer.Argument(help="Real cells it has not seen, an h5ad file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File for the scores (.csv).", show_default=False)],
    source: Annotated[Path | None, typer.Option(help="Cells a prediction started from.")] = None,
    control: Annotated[Path | None, typer.Option(help="Other control cells, to compare the real ones with.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Training cells, for the noise ceiling.")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score generated or predicted cells against real ones, each score beside that of real cells."""
    with Talk(quiet=quiet, as_json=as_json) as talk:
        given = {"generated": generated, "real": real, "source": source, "control": control, "reference": reference}
        paths = {name: path for name, path in given.items() if path is not None}
        check_file_place(out, ".csv", inputs=paths.values())
        cells = {name: read_h5ad(path) for name, path in paths.items()}
        schema = _recorded_schema(cells["generated"])

        from scidiff.evaluation import evaluate
        from scidiff.evaluation.effects import evaluate_effects

        as_effects = {"source", "control"} <= cells.keys() and schema is not None and schema.control is not None
        with talk.progress("scoring"):
            score: Any = evaluate_effects if as_effects else evaluate
            scores = score(cells.pop("generated"), cells.pop("real"), **cells, schema=schema, seed=seed)
        with whole_file(out) as part:
            scores.to_csv(part, index=False)
        talk.result({"scores": str(out), "table": records(scores)}, *score_table(scores), f"written to {out}")


def benchmark(
    data: Data,
    task: Annotated[
        str,
        typer.Option(
            help="denoise: shall these cells be denoised, and with what? predict: who predicts perturbed cells best? "
            "design: do cells designed from a few genes follow biology?",
            show_default=False,
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for table and report.", show_default=False)] = None,
    perturbation: Perturbation = None,
    control: Control = None,
    context: Context = None,
    dose: Dose = None,
    time: Time = None,
    batch: Batch = None,
    genes: Annotated[str, typer.Option(help="File of gene names, or a number of most variable ones.")] = "2000",
    layer: Layer = None,
    splits: Annotated[
        int | None, typer.Option(min=1, help="denoise: random splits to average over.  [default: 3]")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="predict: what to hold out: cell_type=B, or context=each, batch=each, combination=each, ..."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="predict, design: halvings of the cells, each with its training.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="predict: table, a row per perturbation, a column per feature.")
    ] = None,
    states: Annotated[
        int | None, typer.Option(min=2, help="predict: look for at most so many cell states, as a context.")
    ] = None,
    predicted: Annotated[
        list[str] | None, typer.Option(help="predict: NAME=FILE, cells another tool made of an export; repeat.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="predict: write what is held out of what, for other tools, and stop.")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="A first impression: few cells and short training, or none.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare methods on the cells of an h5ad file; write results.csv, verdict.json and report.html."""
    with Talk(quiet=quiet, as_json=as_json) as talk:
        from scidiff.benchmarking import TASKS, export_splits

        if task not in TASKS:
            raise InputError(f"unknown task {task!r}{closest(task, TASKS)}")
        own: dict[str, dict[str, Any]] = {
            "denoise": {"splits": splits},
            "predict": {
                "split": split,
                "seeds": seeds,
                "features": None if features is None else read_table(features),
                "states": states,
                "predicted": None if not predicted else dict(_named_cells(text) for text in predicted),
            },
            "design": {"seeds": seeds},
        }
        for other, options in own.items():
            given = [name for name, value in options.items() if value is not None and name not in own[task]]
            if given:
                raise InputError(f"--{given[0]} belongs to --task {other}")
        asked = {name: value for name, value in own[task].items() if value is not None}
        asked |= {"genes": read_genes(genes), "layer": layer, "seed": seed}
        from scidiff.data import Schema

        schema = Schema(
            perturbation=perturbation, control=control, context=context or (), dose=dose, time=time, batch=batch
        )
        if export is not None:
            if task != "predict":
                raise InputError("--export belongs to --task predict")
            if unused := asked.keys() - {"split", "seeds", "genes", "layer", "seed"}:
                raise InputError(f"--{min(unused)} has no part in --export; leave it out")
            with writing(export):
                places = export_splits(read_h5ad(data), schema, folder=export, **asked)
            talk.result({"folders": list(map(str, places))}, *map(str, places))
            return
        if out is None:
            raise InputError("name a folder for the results with --out")
        results = TASKS[task](
            read_h5ad(data),
            schema,
            out=out,
            dataset=data.stem,
            fast=fast,
            resume=resume,
            progress=talk.progress,
            **asked,
        )
        found = json.loads((out / "verdict.json").read_text())
        talk.result(
            {"report": str(out / "report.html"), "verdict": found, "table": records(results.table)},
            *found["text"],
            f"written to {out}",
        )


def _named_cells(text: str) -> tuple[str, AnnData]:
    """The name and the cells of NAME=FILE."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise InputError(f"cannot read {text!r}: write NAME=FILE, as in scGen=scgen.h5ad")
    return name, read_h5ad(Path(path))


def _recorded_schema(generated: AnnData) -> Schema | None:
    """The schema of the model that made these cells, if they say so."""
    from scidiff.data import Schema

    recorded = generated.uns.get("scidiff", {}).get("schema")
    return None if recorded is None else Schema.from_dict(json.loads(recorded))
