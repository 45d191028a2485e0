"""design and attribute: cells that have a phenotype, and what would cause one."""

from __future__ import annotations

import functools
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scidiff.cli.options import (
    Depth,
    Download,
    Guidance,
    Json,
    Layer,
    Model,
    Network,
    NewCells,
    Number,
    Quiet,
    Seed,
    Signatures,
    Steps,
    fetched,
)
from scidiff.cli.talk import Talk, no_nan, records
from scidiff.errors import InputError
from scidiff.files import check_file_place, read_h5ad, whole_file, write_h5ad

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def design(
    model: Model,
    out: NewCells,
    up: Annotated[
        list[str] | None,
        typer.Option(help="What shall be up: GENE, GENE=2.5 (mean log1p CP10k), GENE>2.5 (every cell), SET, TF:NAME."),
    ] = None,
    down: Annotated[list[str] | None, typer.Option(help="What shall be down, written in the same way.")] = None,
    phenotype: Annotated[Path | None, typer.Option(help="A YAML file with keys up, down, clamp, sets, ...")] = None,
    sets: Annotated[
        Path | None, typer.Option(help="Gene sets (.gmt) that --up and --down may name; or the name hallmark.")
    ] = None,
    network: Network = None,
    download: Download = False,
    signature: Annotated[Path | None, typer.Option(help="Table gene, change: cells shall move along it.")] = None,
    clamp: Annotated[list[str] | None, typer.Option(help="GENE=LEVEL that every cell shall have exactly.")] = None,
    n: Number = 500,
    condition: Annotated[
        list[str] | None, typer.Option(help="The context: cell_type=CD8 T; default: that of the cells of --from.")
    ] = None,
    start: Annotated[Path | None, typer.Option("--from", help="Cells to change, an h5ad file.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Which cells of --from: name=value,...")] = None,
    keep: Annotated[
        float | None,
        typer.Option(help="With --from: share of molecules to begin with; by default all that can stay."),
    ] = None,
    depth: Depth = None,
    guidance: Guidance = 1.0,
    particles: Annotated[int, typer.Option(help="Draw each cell by weight from so many: closer, and slower.")] = 1,
    steps: Steps = 20,
    layer: Layer = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write cells that have a phenotype and are otherwise like real ones: --up IL2RA --down LAG3,TIGIT."""
    with Talk(quiet=quiet, as_json=as_json) as talk:
        sets, network = (fetched(path, consent=download) for path in (sets, network))
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
                on_cells=advance,
            )
        write_h5ad(out, cells)
        told = cells.uns["scidiff"]
        levels, real = told["levels"], told["realism"]
        talk.result(
            {"cells": str(out), "n_cells": cells.n_obs, "verdict": told["verdict"], "text": told["text"], "seed": seed}
            | {"levels": records(levels.reset_index()), "realism": no_nan(real), "strength": told["strength"]}
            | {"seen_in": records(told["seen_in"]), "overshot": records(told["overshot"])},
            f"{cells.n_obs} cells x {cells.n_vars} genes written to {out}",
            *told["text"],
            *(
                f"{name}: {row['designed']:.2f} reached, {row['wanted']:.2f} wanted ({row['basis']}), "
                f"{row['typical real cells']:.2f} typical ({row['scale']})"
                for name, row in levels.iterrows()
            ),
            f"distance to real cells {real['distance']:.2f} (1: as real ones), novel {real['novelty']:.0%} (real: 5%)"
            + ("" if isnan(real["auc"]) else f", told from them at an AUC of {real['auc']:.2f} (.5: not)"),
        )


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
    network: Network = None,
    signatures: Signatures = None,
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
    download: Download = False,
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
        network, signatures = (fetched(path, consent=download) for path in (network, signatures))
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
                adata = trained.design(wish, n, context, seed=seed, on_cells=advance)
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
            {"table": str(out), "best": records(best[[name for name in told if name in best]])}
            | {"report": report and str(report), "cells": cells_out and str(cells_out)}
            | {"agreement": None if alike is None else records(alike), "seed": seed},
            *(f"{kind}: {', '.join(map(str, rows['name']))}" for kind, rows in best.groupby("kind", sort=False)),
            *(f"{kind}, as in real cells: {said}" for kind, said in _agreeing(alike)),
            f"{len(table)} candidates written to {', '.join(written)}",
        )


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
