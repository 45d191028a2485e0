"""The command line: one function per verb, and what all verbs share.

Every verb reads files, calls one function of the package and writes one file or folder, whole or not at all. Results
go to stdout (``--json``: as one JSON object and nothing else), progress and warnings to stderr. Whatever a user can
cause ends in one line on stderr: exit code 1 for bad input, 2 for a bad command line, 130 after Ctrl-C.

Heavy libraries are imported by the verbs that need them, so that ``scidiff --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scidiff._version import __version__
from scidiff.errors import DataWarning, InputError, closest
from scidiff.files import (
    check_cells_place,
    check_file_place,
    check_folder_place,
    discard,
    locked,
    read_genes,
    read_h5ad,
    read_names,
    read_table,
    reason,
    whole_file,
    write_h5ad,
    writing,
)
from scidiff.shares import Share

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from scidiff.data import Schema
    from scidiff.estimator import ScIDiff
    from scidiff.streaming import CellFile

app = typer.Typer()

#: typer brings a click of its own from some version on; its usage errors have this base in all of them
UsageError: Any = typer.BadParameter.__mro__[1]

# ---- options that verbs share ---------------------------------------------------------------------------------------

Data = Annotated[Path, typer.Argument(help="Cells, an h5ad file.", show_default=False)]
Model = Annotated[Path, typer.Argument(help="Model folder, made by scidiff train.", show_default=False)]
Perturbation = Annotated[str | None, typer.Option(help="obs column with what was done to a cell.")]
Control = Annotated[str | None, typer.Option(help="Its value in untreated cells.")]
Context = Annotated[list[str] | None, typer.Option(help="obs column with what a cell is: cell type, patient; repeat.")]
Dose = Annotated[str | None, typer.Option(help="obs column with the dose.")]
Time = Annotated[str | None, typer.Option(help="obs column with the time.")]
Batch = Annotated[str | None, typer.Option(help="obs column with the batch.")]
Condition = Annotated[
    list[str] | None,
    typer.Option(help='name=value,... in roles or obs columns: cell_type="CD4 T",perturbation=IFN-beta'),
]
Layer = Annotated[str | None, typer.Option(help="Layer to read instead of looking for counts.")]
Seed = Annotated[int, typer.Option(min=0, help="Makes the result reproducible.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Neither progress nor result: only warnings and errors.")]
OneShare = Annotated[
    str | None, typer.Option("--share", help="Do one of several shares, as in 3/16, into a file named after it.")
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout, and nothing else there.")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``argv`` defaults to the words after the program's name."""
    words = list(sys.argv[1:] if argv is None else argv)
    # threads that spin while they wait for each other make training ten times slower on a machine with other work
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        # entered here and not by calling the command, which would print errors as boxes of many lines
        command = typer.main.get_command(app)
        if "_SCIDIFF_COMPLETE" in os.environ:  # the shell asks what could come next
            command.main(prog_name="scidiff")
        with command.make_context("scidiff", words or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort) as error:
        return _fail(str(error) or "interrupted", code=130)
    except UsageError as error:
        return _fail(f"{error.format_message()} (see scidiff --help)", code=2)
    except InputError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(reason(error))
    except MemoryError as error:
        return _fail(f"not enough memory, ask for fewer cells or genes ({error})")
    except Exception as error:
        if os.environ.get("SCIDIFF_TRACEBACK"):
            raise
        return _fail(f"a bug: {type(error).__name__}: {error}; SCIDIFF_TRACEBACK=1 shows where, please report it")
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Diffusion models of single-cell expression: train on an h5ad file, generate cells, judge them."""


# ---- verbs ----------------------------------------------------------------------------------------------------------


@app.command()
def check(data: Data, seed: Seed = 0, quiet: Quiet = False, as_json: Json = False) -> None:
    """Say what a file holds: scale, depth, conditions, a schema that fits, and every problem."""
    del seed  # every verb takes it; nothing is drawn here
    with Talk(quiet=quiet, as_json=as_json) as talk:
        from scidiff.data import check

        found = check(read_h5ad(data))
        text = f"{found}\nnext     {_train_command(data, found.schema)}" if found.ok else str(found)
        talk.result({"data": str(data)} | found.to_dict(), text)
    problems = [finding.text for finding in found.findings if finding.level == "problem"]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{data} cannot be used: {problems[0]}{more}")


@app.command()
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
    leader = os.environ.get("RANK", "0") == "0"  # of several processes (accelerate launch) one speaks and writes
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


@app.command()
def generate(
    model: Model,
    out: Annotated[Path, typer.Option(help="File for the cells (.h5ad).", show_default=False)],
    n: Annotated[int, typer.Option("--n", help="Number of cells.")] = 500,
    condition: Condition = None,
    depth: Annotated[float | None, typer.Option(help="Molecules per cell; by default as in training.")] = None,
    guidance: Annotated[float, typer.Option(help="Above 1: exaggerate what sets the condition apart.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 20,
    share: OneShare = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write new cells of a model: counts in layers/counts, log1p(CP10k) in X."""
    with Talk(quiet=quiet, as_json=as_json) as talk:
        one = Share.asked(share)
        out, n, seed = one.file(out), len(one.among(range(n), what="cells")), one.seed(seed)
        check_file_place(out, ".h5ad")
        from scidiff.data import parse_condition
        from scidiff.estimator import ScIDiff

        trained = ScIDiff.load(model)
        asked = parse_condition(condition, schema=trained.schema)
        with talk.progress("generating") as advance:
            cells = trained.generate(
                n,
                asked,
                depth=depth,
                guidance=guidance,
                n_steps=steps,
                seed=seed,
                on_cells=lambda done: advance(done, n),
            )
        write_h5ad(out, cells)
        talk.result(
            {"cells": str(out), "n_cells": cells.n_obs, "n_genes": cells.n_vars, "condition": asked, "seed": seed},
            f"{cells.n_obs} cells x {cells.n_vars} genes written to {out}",
        )


@app.command()
def denoise(
    model: Model,
    data: Annotated[Path, typer.Argument(help="Cells, an h5ad file or zarr store.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File for the cells (.h5ad or .zarr).", show_default=False)],
    scale: Annotated[
        list[str] | None, typer.Option(help="log1p (default), rate, expected_counts or expected_log; repeat.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Posterior draws, as many layers of counts.")] = 0,
    depth: Annotated[float | None, typer.Option(help="Molecules per cell, of draws and expected scales.")] = None,
    genes: Annotated[Path | None, typer.Option(help="File of gene names to write; by default all.")] = None,
    layer: Layer = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Leave aside what obs says of the cells.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store means as float16: three digits, half the space.")] = False,
    share: OneShare = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write cells without the noise of counting few molecules; files may be larger than memory."""
    with Talk(quiet=quiet, as_json=as_json) as talk:
        one = Share.asked(share)
        out = one.file(out)
        check_cells_place(out, inputs=[data])
        kept = None if genes is None else read_names(genes)
        from scidiff.estimator import ScIDiff

        trained = ScIDiff.load(model)
        with talk.progress("denoising") as advance:
            cells = trained.denoise_file(
                data,
                out,
                scales=scale or ("log1p",),
                draws=draws,
                depth=depth,
                labels=not no_labels,
                genes=kept,
                layer=layer,
                share=one,
                half=half,
                seed=seed,
                on_cells=advance,
            )
        written = cells.uns["scidiff"]["scales"]
        talk.result(
            {"cells": str(out), "n_cells": cells.n_obs, "n_genes": cells.n_vars, "scales": written, "seed": seed},
            f"{cells.n_obs} cells x {cells.n_vars} genes written to {out}",
            *(f"{name:<16} {what}" for name, what in written.items()),
        )


@app.command()
def predict(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="File for the cells (.h5ad).", show_default=False)],
    to: Annotated[
        list[str],
        typer.Option(help="What is done to the cells: perturbation=A+B,dose=10; repeat for more.", show_default=False),
    ],
    where: Annotated[
        list[str] | None, typer.Option(help="Cells to start from, as name=value,...; by default all control cells.")
    ] = None,
    no_network: Annotated[
        bool, typer.Option("--no-network", help="Spread new molecules over cells by depth alone.")
    ] = False,
    with_controls: Annotated[
        bool,
        typer.Option("--with-controls", help="Also the control cells themselves, as cell-eval and others expect."),
    ] = False,
    layer: Layer = None,
    share: OneShare = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write control cells as they would be under a perturbation, one for one, with effects and their intervals."""
    with Talk(quiet=quiet, as_json=as_json) as talk:
        one = Share.asked(share)
        out = one.file(out)
        check_file_place(out, ".h5ad", inputs=[data])
        source = read_h5ad(data)
        from scidiff.data import parse_condition
        from scidiff.estimator import ScIDiff

        trained = ScIDiff.load(model)
        asked = [parse_condition(text, schema=trained.schema) for text in to]
        if chosen := parse_condition(where, schema=trained.schema, columns=source.obs.columns):
            source = source[trained.schema.select(source, chosen)]
        if one.of > 1:
            source = source[_of_contexts(source, trained.schema, one)]
        with talk.progress("predicting") as advance:
            cells = trained.predict(
                source,
                asked,
                network=not no_network,
                layer=layer,
                seed=seed,
                on_cells=lambda done: advance(done, len(asked) * source.n_obs),
            )
        if with_controls:
            cells = _with_controls(cells, source, trained, layer)
        write_h5ad(out, cells)
        effects = cells.uns["scidiff"]["effects"]
        talk.result(
            {"cells": str(out), "n_cells": cells.n_obs, "n_genes": cells.n_vars, "condition": asked, "seed": seed}
            | {"strongest": _strongest(effects)},
            f"{cells.n_obs} cells x {cells.n_vars} genes written to {out}",
            *(f"{label}: {', '.join(genes)}" for label, genes in _strongest(effects).items()),
        )


@app.command()
def trajectory(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="File for the frames (.h5ad).", show_default=False)],
    along: Annotated[
        str | None, typer.Option(help="What changes on the way, from where to where: day=2:6, dose=0:10.")
    ] = None,
    to: Annotated[
        list[str] | None, typer.Option(help="The condition at the end: perturbation=A, or cell_type=B.")
    ] = None,
    velocity: Annotated[
        float | None, typer.Option(help="How long cells follow their RNA velocity, in times that splicing takes.")
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="Which cells to start from, as name=value,...")] = None,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 20,
    paths: Annotated[int | None, typer.Option(help="Between populations: paths; by default one a cell.")] = None,
    growth: Annotated[
        float | None, typer.Option(help="Between populations: cells at the end for one at the start.")
    ] = None,
    no_network: Annotated[
        bool, typer.Option("--no-network", help="Paths between observed cells; or as in scidiff predict.")
    ] = False,
    layer: Layer = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write cells on their way, frame by frame: along time, dose or RNA velocity, or to another condition."""
    with Talk(quiet=quiet, as_json=as_json) as talk:
        check_file_place(out, ".h5ad", inputs=[data])
        source = read_h5ad(data)
        from scidiff.data import parse_condition
        from scidiff.estimator import ScIDiff

        trained = ScIDiff.load(model)
        with talk.progress("moving") as advance:
            cells = trained.trajectory(
                source,
                parse_condition(to, schema=trained.schema),
                along=None if along is None else _span(along),
                velocity=velocity,
                where=parse_condition(where, schema=trained.schema, columns=source.obs.columns),
                steps=steps,
                n_paths=paths,
                growth=growth,
                network=not no_network,
                layer=layer,
                seed=seed,
                on_cells=advance,
            )
        write_h5ad(out, cells)
        n_frames = steps + 1
        talk.result(
            {"cells": str(out), "n_paths": cells.n_obs // n_frames, "n_frames": n_frames, "n_genes": cells.n_vars}
            | {"stops": list(map(float, cells.uns["scidiff"]["stops"])), "seed": seed},
            f"{cells.n_obs // n_frames} paths x {n_frames} frames x {cells.n_vars} genes written to {out}",
        )


@app.command()
def fate(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="File for the cells (.h5ad).", show_default=False)],
    terminal: Annotated[
        list[str], typer.Option(help="An end, as column=value: cell_type=Alpha; repeat.", show_default=False)
    ],
    to: Annotated[list[str] | None, typer.Option(help="What is done to the cells: perturbation=A.")] = None,
    no_velocity: Annotated[
        bool, typer.Option("--no-velocity", help="Leave spliced and unspliced molecules out of it.")
    ] = False,
    rounds: Annotated[int, typer.Option(help="Halves of the cells that the intervals are made from.")] = 20,
    layer: Layer = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write where each cell will end, with intervals, on its own and under a perturbation."""
    with Talk(quiet=quiet, as_json=as_json) as talk:
        check_file_place(out, ".h5ad", inputs=[data])
        source = read_h5ad(data)
        from scidiff.data import parse_condition
        from scidiff.estimator import ScIDiff

        trained = ScIDiff.load(model)
        ends: dict[str, list[str]] = {}
        for text in terminal:
            for name, value in parse_condition(text, schema=trained.schema, columns=source.obs.columns).items():
                ends.setdefault(trained.schema.columns.get(name, name), []).append(value)
        with talk.progress("walking") as advance:
            cells = trained.fate(
                source,
                ends,
                to=parse_condition(to, schema=trained.schema) or None,
                use_velocity=not no_velocity,
                n_rounds=rounds,
                layer=layer,
                seed=seed,
                on_cells=lambda done: advance(done, source.n_obs),
            )
        write_h5ad(out, cells)
        table = cells.uns["scidiff"]["fate"]
        change = "change" in table
        talk.result(
            {"cells": str(out), "n_cells": cells.n_obs, "seed": seed, "fate": _records(table)},
            f"fates of {cells.n_obs} cells written to {out}",
            *(
                f"{r.group} -> {r.end}: {r.probability:.3f} ({r.low:.3f} to {r.high:.3f})"
                + (f", changed by {r.change:+.3f} ({r.change_low:+.3f} to {r.change_high:+.3f})" if change else "")
                for r in table.itertuples()
                if r.group not in set(table["end"])
            ),
        )


@app.command()
def design(
    model: Model,
    out: Annotated[Path, typer.Option(help="File for the cells (.h5ad).", show_default=False)],
    up: Annotated[
        list[str] | None,
        typer.Option(help="What shall be up: GENE, GENE=2.5 (mean log1p CP10k), GENE>2.5 (every cell), SET, TF:NAME."),
    ] = None,
    down: Annotated[list[str] | None, typer.Option(help="What shall be down, written in the same way.")] = None,
    phenotype: Annotated[Path | None, typer.Option(help="A YAML file with keys up, down, clamp, sets, ...")] = None,
    sets: Annotated[Path | None, typer.Option(help="Gene sets (.gmt) that --up and --down may name.")] = None,
    network: Annotated[
        Path | None, typer.Option(help="Table with columns source, target, weight, for TF:NAME in --up and --down.")
    ] = None,
    signature: Annotated[Path | None, typer.Option(help="Table gene, change: cells shall move along it.")] = None,
    clamp: Annotated[list[str] | None, typer.Option(help="GENE=LEVEL that every cell shall have exactly.")] = None,
    n: Annotated[int, typer.Option("--n", help="Number of cells.")] = 500,
    condition: Annotated[
        list[str] | None, typer.Option(help="The context: cell_type=CD8 T; default: that of the cells of --from.")
    ] = None,
    start: Annotated[Path | None, typer.Option("--from", help="Cells to change, an h5ad file.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Which cells of --from: name=value,...")] = None,
    keep: Annotated[
        float | None,
        typer.Option(help="With --from: share of molecules to begin with; by default all that can stay."),
    ] = None,
    depth: Annotated[float | None, typer.Option(help="Molecules per cell; by default as in training.")] = None,
    guidance: Annotated[float, typer.Option(help="Above 1: exaggerate what sets the context apart.")] = 1.0,
    particles: Annotated[int, typer.Option(help="Draw each cell by weight from so many: closer, and slower.")] = 1,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 20,
    layer: Layer = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write cells that have a phenotype and are otherwise like real ones: --up IL2RA --down LAG3,TIGIT."""
    with Talk(quiet=quiet, as_json=as_json) as talk:
        check_file_place(out, ".h5ad", inputs=[path for path in (start, phenotype, sets, network, signature) if path])
        from scidiff.data import parse_condition
        from scidiff.estimator import ScIDiff
        from scidiff.phenotype import asked_phenotype

        wanted = asked_phenotype(
            up=up, down=down, clamp=clamp, file=phenotype, sets=sets, network=network, signature=signature
        )
        if where and start is None:
            raise InputError("--where chooses among the cells of --from; give that file too")
        trained = ScIDiff.load(model)
        source = None if start is None else read_h5ad(start)
        if source is not None and (chosen := parse_condition(where, schema=trained.schema, columns=source.obs.columns)):
            source = source[trained.schema.select(source, chosen)]
        with talk.progress("designing") as advance:
            cells = trained.design(
                wanted,
                n,
                parse_condition(condition, schema=trained.schema),
                cells=source,
                keep=keep,
                depth=depth,
                guidance=guidance,
                particles=particles,
                n_steps=steps,
                layer=layer,
                seed=seed,
                on_cells=lambda done: advance(done, n if source is None else source.n_obs),
            )
        write_h5ad(out, cells)
        told = cells.uns["scidiff"]
        levels, real = told["levels"], told["realism"]
        talk.result(
            {"cells": str(out), "n_cells": cells.n_obs, "verdict": told["verdict"], "text": told["text"], "seed": seed}
            | {"levels": _records(levels.reset_index()), "realism": _no_nan(real), "strength": told["strength"]},
            f"{cells.n_obs} cells x {cells.n_vars} genes written to {out}",
            *told["text"],
            *(
                f"{name}: {row['designed']:.2f} reached, {row['wanted']:.2f} wanted, "
                f"{row['typical real cells']:.2f} typical ({row['scale']})"
                for name, row in levels.iterrows()
            ),
            f"distance to real cells {real['distance']:.2f} (1: as real ones), novel {real['novelty']:.0%} (real: 5%)",
        )


@app.command()
def attribute(
    model: Model,
    cells: Annotated[
        Path | None, typer.Argument(help="Cells that show the phenotype, an h5ad file.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="File for the ranking (.csv).")] = Path("ranking.csv"),
    reference: Annotated[
        Path | None, typer.Option(help="Cells to compare with; by default control cells that the model keeps.")
    ] = None,
    up: Annotated[list[str] | None, typer.Option(help="Instead of cells: genes that go up, A,B.")] = None,
    down: Annotated[list[str] | None, typer.Option(help="Instead of cells: genes that go down.")] = None,
    effect: Annotated[Path | None, typer.Option(help="Instead of cells: a table gene, change of log1p CP10k.")] = None,
    phenotype: Annotated[
        Path | None,
        typer.Option(help="Instead of cells: a YAML file as in design; which treatment moves cells there?"),
    ] = None,
    design_of: Annotated[
        Path | None,
        typer.Option("--design", help="Instead of cells: a YAML file as in design; cells are made that have it."),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=2, help="With --design: number of cells.")] = 500,
    condition: Annotated[
        list[str] | None, typer.Option(help="With --phenotype and --design: the context, cell_type=CD8 T.")
    ] = None,
    real: Annotated[
        Path | None, typer.Option(help="Real cells with the phenotype, kept out of training: do they say the same?")
    ] = None,
    network: Annotated[
        Path | None, typer.Option(help="Regulators and targets: CollecTRI, SCENIC+, ...; or the name collectri.")
    ] = None,
    signatures: Annotated[
        Path | None, typer.Option(help="Signatures of drugs: .gmt, .gctx, .gct or a table; or the name l1000.")
    ] = None,
    signature_table: Annotated[
        Path | None, typer.Option(help="Which of the signatures to read, and their drugs and doses (LINCS siginfo).")
    ] = None,
    gene_table: Annotated[
        Path | None, typer.Option(help="Symbols of the genes in the signatures (LINCS geneinfo).")
    ] = None,
    targets: Annotated[
        Path | None, typer.Option(help="What drugs bind: DrugBank, drug2cell, a table; beside --signatures or alone.")
    ] = None,
    drug_names: Annotated[
        Path | None, typer.Option(help="DrugBank's vocabulary, to know a drug by all its names.")
    ] = None,
    each_dose: Annotated[bool, typer.Option("--each-dose", help="Rank every dose of a drug on its own.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also a page to search and sort the ranking (.html).")] = None,
    cells_out: Annotated[
        Path | None,
        typer.Option(help="Also the cells (.h5ad), with the ranking in uns and regulators' activity in obsm."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch collectri or l1000 from their publishers without asking.")
    ] = False,
    reverse: Annotated[bool, typer.Option("--reverse", help="Rank what would undo the phenotype.")] = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="Rank pairs of perturbations.")] = False,
    layer: Layer = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Rank the perturbations, regulators and drugs that would cause a phenotype."""
    with Talk(quiet=quiet, as_json=as_json) as talk:
        if cells is not None and design_of is not None:
            raise InputError("--design makes the cells to ask about; leave out CELLS")
        if cells_out is not None and cells is None and design_of is None:
            raise InputError("--cells-out writes the cells of CELLS again; there are none")
        if signatures is None and (signature_table or gene_table):
            raise InputError("--signature-table and --gene-table say what is in --signatures; give these too")
        network, signatures = (_fetched(path, consent=download) for path in (network, signatures))
        given = [cells, reference, effect, phenotype, design_of, real, network, signatures, targets, drug_names]
        files = [path for path in [*given, signature_table, gene_table] if path]
        for place, suffix in ((out, ".csv"), (report, ".html"), (cells_out, ".h5ad")):
            if place is not None:
                check_file_place(place, suffix, inputs=files)
        from scidiff.data import parse_condition
        from scidiff.estimator import ScIDiff
        from scidiff.integration import agreement, read_drug_names, read_drug_targets, read_network, read_signatures
        from scidiff.phenotype import Phenotype, listed, read_signature

        adata = None if cells is None else read_h5ad(cells)
        edges = None if network is None else read_network(network)
        drugs = None
        if signatures is not None:
            drugs = read_signatures(signatures, table=signature_table, gene_table=gene_table)
        trained = ScIDiff.load(model)
        context = parse_condition(condition, schema=trained.schema) or None
        if design_of is not None:
            with talk.progress("designing") as advance:
                wish = Phenotype.from_yaml(design_of)
                adata = trained.design(wish, n, context, seed=seed, on_cells=lambda done: advance(done, n))
            context = None  # which the cells have
        own_layer = layer if design_of is None else None
        rank = functools.partial(
            trained.attribute,
            reference=None if reference is None else read_h5ad(reference),
            network=edges,
            signatures=drugs,
            targets=None if targets is None else read_drug_targets(targets),
            drug_names=None if drug_names is None else read_drug_names(drug_names),
            direction="reverse" if reverse else "mimic",
            each_dose=each_dose,
            pairs=pairs,
        )
        table = rank(
            adata,
            layer=own_layer,
            up=listed(up or []),
            down=listed(down or []),
            effect=None if effect is None else read_signature(effect),
            phenotype=None if phenotype is None else Phenotype.from_yaml(phenotype),
            condition=context,
        )
        alike = None if real is None else agreement(table, rank(read_h5ad(real), layer=layer))
        with whole_file(out) as part:
            table.to_csv(part, index=False, float_format="%.6g")
        if report is not None:
            from scidiff.evaluation import write_ranking

            sources = {"cells": cells, "effect": effect, "phenotype": phenotype, "designed": design_of}
            sources |= {"reference": reference, "model": model, "network": network, "signatures": signatures}
            sources |= {"targets": targets, "drug names": drug_names}
            asked: dict[str, Any] = {name: path.name for name, path in sources.items() if path}
            asked |= {name: listed(genes) for name, genes in (("up", up), ("down", down)) if genes}
            asked |= {"condition": ", ".join(condition)} if condition else {}
            asked["direction"] = "what would undo it" if reverse else "what would cause it"
            if design_of is not None and adata is not None:
                asked["designed cells"] = list(adata.uns["scidiff"]["text"])
            asked |= {"real cells": real.name} if real else {}
            asked |= {f"as in real cells ({kind})": said for kind, said in _agreeing(alike)}
            write_ranking(report, table, about=asked, network=edges)
        if cells_out is not None:
            write_h5ad(cells_out, _with_ranking(adata, table, edges, own_layer))
        best = table.groupby("kind", sort=False).head(5)
        told = ("kind", "name", "rank", "consensus_rank", "direction", "gain", "se")
        written = [str(place) for place in (out, report, cells_out) if place]
        talk.result(
            {"table": str(out), "best": _records(best[[name for name in told if name in best]])}
            | {"report": report and str(report), "cells": cells_out and str(cells_out)}
            | {"agreement": None if alike is None else _records(alike), "seed": seed},
            *(f"{kind}: {', '.join(map(str, rows['name']))}" for kind, rows in best.groupby("kind", sort=False)),
            *(f"{kind}, as in real cells: {said}" for kind, said in _agreeing(alike)),
            f"{len(table)} candidates written to {', '.join(written)}",
        )


@app.command()
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
        talk.result({"scores": str(out), "table": _records(scores)}, *_score_table(scores), f"written to {out}")


@app.command()
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
            known = {name: asked[name] for name in ("split", "seeds", "genes", "layer", "seed") if name in asked}
            with writing(export):
                places = export_splits(read_h5ad(data), schema, folder=export, **known)
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
            {"report": str(out / "report.html"), "verdict": found, "table": _records(results.table)},
            *found["text"],
            f"written to {out}",
        )


@app.command()
def studio(
    model: Model,
    data: Annotated[
        Path | None, typer.Argument(help="Real cells to show beside (.h5ad); by default those that the model keeps.")
    ] = None,
    network: Annotated[Path | None, typer.Option(help="Regulators and targets: CollecTRI, SCENIC+, ...")] = None,
    signatures: Annotated[Path | None, typer.Option(help="Signatures of drugs: .gmt, .gctx, .gct or a table.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of this machine; 0: any that is free.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address of the page.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Open a page on this machine to look at a model, design cells and rank causes; Ctrl-C ends it."""
    from scidiff.studio.server import check_installed, listen, serve

    check_installed()
    with listen(port) as place:  # before the files are read: nobody shall wait for a port that is taken
        with Talk(quiet=quiet, as_json=as_json):
            from scidiff.estimator import ScIDiff
            from scidiff.integration import read_network, read_signatures
            from scidiff.studio.session import Session

            session = Session(
                ScIDiff.load(model),
                model.resolve().name,
                data=None if data is None else read_h5ad(data),
                network=None if network is None else read_network(network),
                signatures=None if signatures is None else read_signatures(signatures),
            )

        def announce(address: str) -> None:
            print(json.dumps({"address": address}) if as_json else f"the studio is at {address}", flush=True)

        serve(session, place, announce=announce, browser=not no_browser)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it writes.")] = Path("demo"),
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Do it all on a simulated screen: check, split, train, generate, score, and write a report."""
    with Talk(quiet=quiet, as_json=as_json) as talk:
        from scidiff.demo import run

        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        done = run(out, seed=seed, progress=talk.progress)
        places = [f"{name:<8} {path}" for name, path in done.files.items()]
        talk.result(
            {name: str(path) for name, path in done.files.items()} | {"table": _records(done.scores)},
            *_score_table(done.scores),
            "\n".join(places),
        )


# ---- what the user sees ---------------------------------------------------------------------------------------------

Advance = Callable[..., None]


class Talk:
    """What a verb says: its result on stdout, progress and each distinct DataWarning as one line on stderr.

    Used as a context, in which nothing else reaches stdout; the result is printed when it ends well.
    """

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self.quiet, self.as_json = quiet, as_json
        self.warnings: list[str] = []
        self._result: tuple[dict[str, Any], tuple[Any, ...]] | None = None

    def __enter__(self) -> Talk:
        self._context = contextlib.ExitStack()
        self._context.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # those of libraries are for programmers
        warnings.simplefilter("always", DataWarning)
        warnings.showwarning = self._warn  # type: ignore[assignment]
        self._context.enter_context(contextlib.redirect_stdout(sys.stderr))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._context.close()
        if kind is not None or self._result is None:
            return
        facts, shown = self._result
        if self.as_json:
            print(json.dumps(facts | {"warnings": self.warnings}))
        elif not self.quiet:
            from rich.console import Console

            for one in shown:
                print(one) if isinstance(one, str) else Console().print(one)

    def result(self, facts: dict[str, Any], *shown: Any) -> None:
        """Keep the result: JSON values for machines; texts and tables for people."""
        self._result = facts, shown

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Advance]:
        """Show a progress bar; yield ``advance(done, total, note="")``. In a log file: a line at every tenth."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = "{task.description}", BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        show_bar = console.is_terminal and not self.quiet
        with Progress(
            *columns, TextColumn("{task.fields[note]}"), console=console, transient=True, disable=not show_bar
        ) as bar:
            task = bar.add_task(what, total=None, note="")
            tenth = 0

            def advance(done: int, total: int, note: str = "") -> None:
                nonlocal tenth
                bar.update(task, completed=done, total=total, note=note)
                if not console.is_terminal and not self.quiet and done * 10 // total > tenth:
                    tenth = done * 10 // total
                    print(f"{what}: {done} of {total}  {note}".rstrip(), file=sys.stderr, flush=True)

            yield advance

    def _warn(self, message: Warning | str, *where: object) -> None:
        text = " ".join(str(message).split())
        if text not in self.warnings:
            self.warnings.append(text)
            print(f"warning: {text}", file=sys.stderr)


def _fail(message: str, *, code: int = 1) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _train_command(data: Path, schema: Schema) -> str:
    """The command that trains on a file with this schema."""
    words = ["scidiff", "train", str(data), "--out", "model"]
    for role, value in schema.to_dict().items():
        values = value if isinstance(value, list) else [value]
        if role != "combination_sep":
            words += [word for one in values if one is not None for word in (f"--{role}", one)]
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
        f"({facts['steps']} steps, {facts['seconds']:.0f} s, held-out loss {best['heldout']:.4g})"
    )
    if split is None:
        return facts, text
    sizes = {role: len(getattr(split, role)) for role in ("train", "test", "source", "control")}
    listed = ", ".join(f"{role} {size}" for role, size in sizes.items())
    return facts | {"split": sizes | {"hash": split.hash}}, f"{text}\nheld out as in {out / 'split.json'}: {listed}"


def _score_table(scores: pd.DataFrame) -> list[Any]:
    """The scores as a rich table, a column for each method, and their notes as lines."""
    from rich.table import Table

    from scidiff.plotting import format_score

    names = [name for name in ("condition", "metric") if name in scores]
    hidden = ("loss", "n_predicted", "n_real", "n_control")
    numbers = [name for name in scores.select_dtypes("number") if name not in hidden]
    table = Table()
    for column in (*names, *numbers, "better"):
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
    for row in scores.to_dict("records"):
        table.add_row(*(row[name] for name in names), *(format_score(row[name]) for name in numbers), row["better"])
    rows = scores[scores["note"] != ""].to_dict("records")
    return [table, *(f"{' '.join(row[name] for name in names)}: {row['note']}" for row in rows)]


def _strongest(effects: pd.DataFrame, n: int = 5) -> dict[str, list[str]]:
    """The genes that change most in each condition, with the effect and its 90 % interval."""
    out = {}
    for label, rows in effects.groupby("condition", sort=False):
        rows = rows.loc[rows["effect"].abs().nlargest(n).index]
        out[label] = [f"{r.gene} {r.effect:+.2f} ({r.low:+.2f} to {r.high:+.2f})" for r in rows.itertuples()]
    return out


def _with_controls(predicted: AnnData, source: AnnData, model: ScIDiff, layer: str | None) -> AnnData:
    """The control cells among ``source``, on the scale of the predicted ones, and those."""
    from anndata import AnnData, concat

    from scidiff.data import log1p_cp10k, read_cells

    control = source[model.schema.is_control(model.conditions_of(source))]
    cells = read_cells(control, genes=model.genes, layer=layer)
    counted = cells.scale == "counts"
    before = AnnData(log1p_cp10k(cells.x) if counted else cells.x, obs=control.obs.copy(), var=predicted.var)
    if "counts" in predicted.layers:
        before.layers["counts"] = cells.x
    before.obs_names = [f"{name}-control" for name in before.obs_names]
    both = concat([before, predicted], join="outer")
    both.uns = predicted.uns
    return both


def _of_contexts(source: AnnData, schema: Schema, share: Share) -> np.ndarray:
    """Return a mask of the cells of a share of the contexts: those of one are predicted together."""
    import numpy as np

    if not schema.context:
        raise InputError("cells are shared out by context, and this model knows none: predict them in one process")
    table = schema.table(source)[list(schema.context)]
    kinds = table.groupby(list(table), dropna=False, observed=True).ngroup().to_numpy()
    return np.isin(kinds, share.among(range(kinds.max() + 1), what="contexts"))


def _span(text: str) -> dict[str, tuple[str, str]]:
    """The attribute and the two ends of NAME=FROM:TO."""
    name, _, ends = text.partition("=")
    begin, _, end = ends.partition(":")
    if not (name.strip() and begin.strip() and end.strip()) or ":" in end:
        raise InputError(f"cannot read {text!r}: write NAME=FROM:TO, as in day=2:6")
    return {name.strip(): (begin.strip(), end.strip())}


def _named_cells(text: str) -> tuple[str, AnnData]:
    """The name and the cells of NAME=FILE."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise InputError(f"cannot read {text!r}: write NAME=FILE, as in scGen=scgen.h5ad")
    return name, read_h5ad(Path(path))


def _no_nan(numbers: dict[str, float]) -> dict[str, float | None]:
    """The numbers as JSON values; undefined ones as null."""
    return {name: value if value == value else None for name, value in numbers.items()}


def _fetched(path: Path | None, *, consent: bool) -> Path | None:
    """The file of a name such as collectri, fetched if that is allowed here or now; any other path as it is."""
    if path is None or path.exists():
        return path
    from scidiff.integration.download import RESOURCES, download, terms

    name = str(path)
    if name not in RESOURCES:
        return path
    try:
        return download(name)
    except InputError:
        if not consent and not (sys.stdin.isatty() and typer.confirm(f"Fetch {name}? {terms(name)}", err=True)):
            raise
        return download(name, consent=True)


def _with_ranking(adata: AnnData, table: pd.DataFrame, edges: pd.DataFrame | None, layer: str | None) -> AnnData:
    """The cells with their ranking, and with the activity of regulators where there is a network."""
    from scidiff.data import read_cells
    from scidiff.integration import annotated, regulator_activity

    activity = None
    if edges is not None:
        activity = regulator_activity(read_cells(adata, layer=layer).x, adata.var_names, edges)
    return annotated(adata, table, activity=activity)


def _agreeing(alike: pd.DataFrame | None) -> list[tuple[str, str]]:
    """For every kind of candidates, how the ranking agrees with that of real cells."""
    rows = [] if alike is None else alike.itertuples()
    return [(row.kind, f"{row.score} r = {row.correlation:.2f}, {row.shared} of the first 10 shared") for row in rows]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON values; undefined numbers as null."""
    return json.loads(table.to_json(orient="records"))


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


# ---- unfinished runs -------------------------------------------------------------------------------------------------


def _model_place(out: Path, unfinished: Path, *, resume: bool) -> None:
    check_folder_place(out)
    if out.exists() and not (out / "manifest.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"cannot write {out}: it exists and is not a model; choose another place")
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
    """A hash of what a file holds: a run must not go on with other data."""
    from scidiff.storage import file_hash

    if path.is_dir():  # a zarr store
        return " ".join(file_hash(part) for part in sorted(path.rglob("*")) if part.is_file())
    return file_hash(path)


def _recorded_schema(generated: AnnData) -> Schema | None:
    """The schema of the model that made these cells, if they say so."""
    from scidiff.data import Schema

    recorded = generated.uns.get("scidiff", {}).get("schema")
    return None if recorded is None else Schema.from_dict(json.loads(recorded))
