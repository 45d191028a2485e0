"""What several verbs take: arguments and options, with what the help says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
