"""monosem eval"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Suite(StrEnum):
    core = "core"
    full = "full"


def evaluate(
    run: Annotated[str, typer.Argument(help="The run folder; or a published dictionary, by name or path.")],
    text: Annotated[str | None, typer.Option(help="Held-out text: a file, a folder, or bundled:held_out.")] = None,
    images: Annotated[str | None, typer.Option(help="Held-out images: a folder, an IDX or .npz file.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to read.")] = None,
    loss_tokens: Annotated[int | None, typer.Option(min=0, help="Tokens for the model's losses.")] = None,
    suite: Annotated[Suite | None, typer.Option(help="core: what one pass says; full: all that is known.")] = None,
    last_words: Annotated[str | None, typer.Option(help="A file of passages whose last word is to be guessed.")] = None,
    untrained_tokens: Annotated[
        int | None, typer.Option(min=1, help="full: tokens to train the SAE of the untrained model on.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of a dictionary whose files do not say it: its model.")] = None,
    hook: Annotated[str | None, typer.Option(help="Likewise: the hook point that it reads.")] = None,
) -> None:
    """Measure a trained SAE on held-out text, beside its controls; rewrites evaluation.json, features/ and figures/.

    Of a run of several dictionaries, all of them: rewrites results.json and results.svg too. Killed, the same command
    goes on where it was.
    """
    from monosem.cli.console import console
    from monosem.runs import open_run, run_evaluation, run_evaluations

    opened = open_run(run, model, hook)
    given = {"text": text, "images": images, "tokens": tokens, "loss_tokens": loss_tokens, "last_words": last_words}
    given["untrained_tokens"] = untrained_tokens
    changes = {name: value for name, value in given.items() if value is not None}
    changes |= {} if suite is None else {"suite": suite.value}
    config = opened.config.evaluation.model_copy(update=changes)
    out = console()
    if opened.config.several:
        out.print(run_evaluations(opened, config=config).table())
    else:
        out.print(*run_evaluation(opened, config=config).fitting(out.width))
