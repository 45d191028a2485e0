"""generate, denoise and predict: a model's cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scidiff.cli.options import (
    Condition,
    Data,
    Depth,
    Guidance,
    Json,
    Layer,
    Model,
    NewCells,
    Number,
    OneShare,
    Quiet,
    Seed,
    Steps,
    Where,
)
from scidiff.cli.talk import Talk
from scidiff.errors import InputError
from scidiff.files import check_cells_place, check_file_place, read_h5ad, read_names, write_h5ad
from scidiff.shares import Share

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from scidiff.data import Schema
    from scidiff.estimator import ScIDiff


def generate(
    model: Model,
    out: NewCells,
    n: Number = 500,
    condition: Condition = None,
    depth: Depth = None,
    guidance: Guidance = 1.0,
    steps: Steps = 20,
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
                on_cells=advance,
            )
        write_h5ad(out, cells)
        talk.result(
            {"cells": str(out), "n_cells": cells.n_obs, "n_genes": cells.n_vars, "condition": asked, "seed": seed},
            f"{cells.n_obs} cells x {cells.n_vars} genes written to {out}",
        )


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


def predict(
    model: Model,
    data: Data,
    out: NewCells,
    to: Annotated[
        list[str],
        typer.Option(help="What is done to the cells: perturbation=A+B,dose=10; repeat for more.", show_default=False),
    ],
    where: Where = None,
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
                on_cells=advance,
            )
        if with_controls:
            cells = _with_controls(cells, source, trained, layer)
        write_h5ad(out, cells)
        strongest = _strongest(cells.uns["scidiff"]["effects"])
        talk.result(
            {"cells": str(out), "n_cells": cells.n_obs, "n_genes": cells.n_vars, "condition": asked, "seed": seed}
            | {"strongest": strongest},
            f"{cells.n_obs} cells x {cells.n_vars} genes written to {out}",
            *(f"{label}: {', '.join(genes)}" for label, genes in strongest.items()),
        )


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


def _controls(source: AnnData, schema: Schema) -> np.ndarray:
    """Return a mask of the cells to start from: controls, and all where nothing says what was done to them."""
    import numpy as np

    told = schema.columns.get("perturbation") in source.obs
    return schema.is_control(schema.table(source)) if told else np.ones(source.n_obs, dtype=bool)


def _of_contexts(source: AnnData, schema: Schema, share: Share) -> np.ndarray:
    """Return a mask of the cells of a share of the contexts: those of one are predicted together."""
    import numpy as np

    if not schema.context:
        raise InputError("cells are shared out by context, and this model knows none: predict them in one process")
    kinds = schema.table(source).groupby(list(schema.context), dropna=False, observed=True).ngroup().to_numpy()
    there = np.unique(kinds[_controls(source, schema)])
    return np.isin(kinds, share.among(list(there), what="contexts with control cells"))
