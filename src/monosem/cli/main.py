"""`monosem`: commands, and how errors are shown."""

from __future__ import annotations

import os
import re
import sys
import warnings
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from monosem.cli.compare import compare
from monosem.cli.compare_texts import compare_texts
from monosem.cli.demo import demo
from monosem.cli.embed import embed
from monosem.cli.eval import evaluate
from monosem.cli.explain import explain
from monosem.cli.explore import explore
from monosem.cli.export import export
from monosem.cli.graph import graph
from monosem.cli.harvest import harvest
from monosem.cli.heads import heads
from monosem.cli.info import info
from monosem.cli.plan import plan
from monosem.cli.probe import probe
from monosem.cli.rate import rate
from monosem.cli.saes import saes
from monosem.cli.scaling import scaling
from monosem.cli.score import score
from monosem.cli.serve import serve
from monosem.cli.steer import steer
from monosem.cli.store import store
from monosem.cli.token_sets import token_sets
from monosem.cli.top import top
from monosem.cli.train import TrainCommand, train
from monosem.errors import ConfigError, Interrupted, MonosemError

app = typer.Typer(
    name="monosem",
    help="Find, measure, show and use the features inside neural networks with sparse autoencoders.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)
"""What torch says, and numpy's error of its own kind does not need."""
TOGETHER = ("train", "store", "harvest", "eval")
"""Commands that several processes, started by torchrun, do together."""


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
app.command()(probe)
app.command(name="compare-texts")(compare_texts)
app.command()(compare)
app.command()(harvest)
app.command()(explain)
app.command()(embed)
app.command()(explore)
app.command()(steer)
app.command()(serve)
app.command()(graph)
app.command()(heads)
app.command()(rate)
app.command()(top)
app.command(name="token-sets")(token_sets)
app.command()(score)
app.command()(info)
app.command()(saes)
app.command()(export)
app.command()(store)
app.command()(plan)
app.command()(scaling)


def run() -> None:
    """Run the command line: every error ends in one line.

    Exit codes: 2 for what the user can mend, 1 for a fault of monosem, 130 for a stopped run.
    """
    if "--debug" in sys.argv:
        os.environ["MONOSEM_DEBUG"] = "1"
        sys.argv.remove("--debug")
    console = Console(stderr=True, soft_wrap=True)

    def print_line(words: object, style: str | None = None) -> None:
        line = str(words).encode("utf-8", "replace").decode()
        console.print(line, markup=False, highlight=False, style=style)

    def say(message: Warning | str, *_: object) -> None:
        print_line(f"warning: {message}", "yellow")

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        from monosem.ranks import first_to_fail
    else:
        first_to_fail = _yes
    try:
        with warnings.catch_warnings():
            warnings.showwarning = say
            if several:
                _run_together()
            else:
                app()
    except Interrupted as stopped:
        if first_to_fail():
            print_line(stopped)
        sys.exit(130)
    except KeyboardInterrupt as stopped:
        if first_to_fail():
            print_line(str(stopped) or "stopped")
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("MONOSEM_DEBUG"):
            raise
        lacking = _of_memory(error)
        expected = isinstance(error, MonosemError | OSError) or lacking is not None
        if not first_to_fail():
            sys.exit(2 if expected else 1)
        print_line(f"monosem: {_cut(lacking or str(error))}" if expected else _report(error), "red")
        sys.exit(2 if expected else 1)


def _cut(line: str) -> str:
    """Without the middle of words (paths, settings) that nobody would read to their end."""
    return re.sub(r"\S{400,}", lambda word: f"{word[0][:150]}...{word[0][-150:]}", line)


def _of_memory(error: Exception) -> str | None:
    """What to say where memory did not suffice, of the machine or of a GPU; None of other errors."""
    words = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not NO_MEMORY.search(words):
        return None
    found = re.search(r"tried to allocate ([\d.]+ ?\w+)", words, re.IGNORECASE)
    wanted = f" ({found[1]} more were wanted)" if found else ""
    return (
        f"not enough memory{wanted}: take less of what is large (sae.n_latents, training.batch_size, "
        "activations.buffer_tokens); monosem plan says what a run takes"
    )


def _yes() -> bool:
    return True


def _run_together() -> None:
    """Run a command as one of the processes that torchrun has started.

    Raises:
        ConfigError: the command is of one process.
    """
    from monosem.ranks import working_together

    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if command not in TOGETHER:
        raise ConfigError(
            f"monosem {command} is of one process: call it without torchrun, which is for {', '.join(TOGETHER)}"
        )
    with ExitStack() as quiet:
        if int(os.environ.get("RANK", "0")):  # the first process speaks for all
            nowhere = quiet.enter_context(Path(os.devnull).open("w"))
            quiet.enter_context(redirect_stdout(nowhere))
            quiet.enter_context(redirect_stderr(nowhere))
        with working_together():
            try:
                app()
            except SystemExit as ended:
                if ended.code:
                    raise


def _report(error: Exception) -> str:
    """The last resort: an error that nothing has foreseen, in a line that asks for a report."""
    import traceback

    from monosem.files import one_line

    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"monosem: a fault of monosem {metadata.version('monosem')}, not yours: {one_line(repr(error))} "
        f"(in {Path(place.filename).name}, line {place.lineno}). Please report it with what the same command prints "
        "with --debug."
    )


if __name__ == "__main__":
    run()
