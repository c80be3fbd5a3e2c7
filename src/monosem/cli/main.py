"""`monosem`: commands, and how errors are shown."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console

from monosem.cli.demo import demo
from monosem.cli.eval import evaluate
from monosem.cli.explore import explore
from monosem.cli.harvest import harvest
from monosem.cli.info import info
from monosem.cli.top import top
from monosem.cli.train import TrainCommand, train
from monosem.errors import Interrupted, MonosemError

app = typer.Typer(
    name="monosem",
    help="Find, measure, show and use the features inside neural networks with sparse autoencoders.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"monosem {metadata.version('monosem')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""
    if debug:
        os.environ["MONOSEM_DEBUG"] = "1"


app.command()(demo)
app.command(cls=TrainCommand)(train)
app.command(name="eval")(evaluate)
app.command()(harvest)
app.command()(explore)
app.command()(top)
app.command()(info)


def run() -> None:
    """Run the command line: expected errors end in one line and exit code 2, a stopped run in 130."""
    if "--debug" in sys.argv:
        os.environ["MONOSEM_DEBUG"] = "1"
        sys.argv.remove("--debug")
    console = Console(stderr=True, soft_wrap=True)

    def say(message: Warning | str, *_: object) -> None:
        console.print(f"warning: {message}", markup=False, highlight=False, style="yellow")

    try:
        with warnings.catch_warnings():
            warnings.showwarning = say
            app()
    except Interrupted as stopped:
        console.print(f"{stopped}", markup=False, highlight=False)
        sys.exit(130)
    except (MonosemError, OSError) as error:
        if os.environ.get("MONOSEM_DEBUG"):
            raise
        console.print(f"monosem: {error}", markup=False, highlight=False, style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("stopped")
        sys.exit(130)


if __name__ == "__main__":
    run()
