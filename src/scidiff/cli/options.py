"""What several verbs take: arguments and options, with what the help says of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from scidiff.errors import InputError

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
NewCells = Annotated[Path, typer.Option("--out", help="File for the cells (.h5ad).", show_default=False)]
Number = Annotated[int, typer.Option("--n", help="Number of cells.")]
Depth = Annotated[float | None, typer.Option(help="Molecules per cell; by default as in training.")]
Guidance = Annotated[float, typer.Option(help="Above 1: exaggerate what sets the condition apart.")]
Steps = Annotated[int, typer.Option(help="Steps of the sampler.")]
Where = Annotated[list[str] | None, typer.Option(help="Start from these cells only: name=value,...")]
Network = Annotated[
    Path | None, typer.Option(help="Regulators and targets: CollecTRI, SCENIC+, ...; or the name collectri.")
]
Signatures = Annotated[
    Path | None, typer.Option(help="Signatures of drugs: .gmt, .gctx, .gct or a table; or the name l1000.")
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch collectri, hallmark or l1000 from their publishers without asking.")
]
Layer = Annotated[str | None, typer.Option(help="Layer to read instead of looking for counts.")]
Seed = Annotated[int, typer.Option(min=0, help="Makes the result reproducible.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Neither progress nor result: only warnings and errors.")]
OneShare = Annotated[
    str | None, typer.Option("--share", help="Do one of several shares, as in 3/16, into a file named after it.")
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout, and nothing else there.")]


def fetched(path: Path | None, *, consent: bool) -> Path | None:
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
