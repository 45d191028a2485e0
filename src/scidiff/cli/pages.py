"""studio and demo: pages to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from scidiff.cli.options import Download, Json, Model, Network, Quiet, Seed, Signatures, fetched
from scidiff.cli.talk import Talk, records, score_table
from scidiff.files import read_h5ad, writing


def studio(
    model: Model,
    data: Annotated[
        Path | None, typer.Argument(help="Real cells to show beside (.h5ad); by default those that the model keeps.")
    ] = None,
    network: Network = None,
    signatures: Signatures = None,
    download: Download = False,
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
            network, signatures = (fetched(path, consent=download) for path in (network, signatures))
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
            {name: str(path) for name, path in done.files.items()} | {"table": records(done.scores)},
            *score_table(done.scores),
            "\n".join(places),
        )
