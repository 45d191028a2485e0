"""trajectory and fate: cells on their way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scidiff.cli.options import Data, Json, Layer, Model, NewCells, Quiet, Seed, Where
from scidiff.cli.talk import Talk, records
from scidiff.errors import InputError
from scidiff.files import check_file_place, read_h5ad, write_h5ad


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
    where: Where = None,
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


def fate(
    model: Model,
    data: Data,
    out: NewCells,
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
                on_cells=advance,
            )
        write_h5ad(out, cells)
        table = cells.uns["scidiff"]["fate"]
        change = "change" in table
        talk.result(
            {"cells": str(out), "n_cells": cells.n_obs, "seed": seed, "fate": records(table)},
            f"fates of {cells.n_obs} cells written to {out}",
            *(
                f"{r.group} -> {r.end}: {r.probability:.3f} ({r.low:.3f} to {r.high:.3f})"
                + (f", changed by {r.change:+.3f} ({r.change_low:+.3f} to {r.change_high:+.3f})" if change else "")
                for r in table.itertuples()
                if r.group not in set(table["end"])
            ),
        )


def _span(text: str) -> dict[str, tuple[str, str]]:
    """The attribute and the two ends of NAME=FROM:TO."""
    name, _, ends = text.partition("=")
    begin, _, end = ends.partition(":")
    if not (name.strip() and begin.strip() and end.strip()) or ":" in end:
        raise InputError(f"cannot read {text!r}: write NAME=FROM:TO, as in day=2:6")
    return {name.strip(): (begin.strip(), end.strip())}
