"""The command line: one function per verb, and what all verbs share.

Every verb reads files, calls one function of the package and writes one file or folder, whole or not at all. Results
go to stdout (``--json``: as one JSON object and nothing else), progress and warnings to stderr. Whatever a user can
cause ends in one line on stderr: exit code 1 for bad input, 2 for a bad command line, 130 after Ctrl-C.

Heavy libraries are imported by the verbs that need them, so that ``scidiff --help`` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from scidiff._version import __version__
from scidiff.cli import cells, judge, pages, paths, phenotypes, train
from scidiff.cli.talk import Talk, fail
from scidiff.errors import InputError
from scidiff.files import reason

__all__ = ["Talk", "UsageError", "app", "main"]

app = typer.Typer()
for verb in (
    train.check,
    train.train,
    cells.generate,
    cells.denoise,
    cells.predict,
    paths.trajectory,
    paths.fate,
    phenotypes.design,
    phenotypes.attribute,
    judge.evaluate,
    judge.benchmark,
    pages.studio,
    pages.demo,
):
    app.command()(verb)

#: typer brings a click of its own from some version on; its usage errors have this base in all of them
UsageError: Any = typer.BadParameter.__mro__[1]


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
        return fail(str(error) or "interrupted", code=130)
    except UsageError as error:
        return fail(f"{error.format_message()} (see scidiff --help)", code=2)
    except InputError as error:
        return fail(str(error))
    except BrokenPipeError:  # whoever read the output has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
        return 128 + signal.SIGPIPE
    except OSError as error:
        return fail(reason(error))
    except MemoryError as error:
        return fail(f"not enough memory, ask for fewer cells or genes ({error})")
    except Exception as error:
        if os.environ.get("SCIDIFF_TRACEBACK"):
            raise
        return fail(f"a bug: {type(error).__name__}: {error}; SCIDIFF_TRACEBACK=1 shows where, please report it")
    finally:
        _leave_group()
    return 0


def _leave_group() -> None:
    """Part from the other processes of a launch: threads that still talk to them could end the exit in a crash."""
    if "torch.distributed" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


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
