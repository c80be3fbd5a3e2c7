"""monosem top"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from monosem.models import SubjectModel
    from monosem.runs import Run


def top(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    latents: Annotated[list[int] | None, typer.Argument(help="Latents to show; some notable ones if left out.")] = None,
    passages: Annotated[int, typer.Option("--passages", "-n", help="Passages per latent.")] = 6,
    count: Annotated[int, typer.Option(help="How many notable latents, if none are named.")] = 20,
    save: Annotated[Path | None, typer.Option(help="Write a picture instead: FILE.svg or FILE.html.")] = None,
) -> None:
    """Print the passages on which latents fire most, one per document, with tokens shaded by activation.

    Also the tokens that each latent promotes and suppresses at the output (logit lens).
    """
    from monosem.cli.console import PICTURES, console, picture, save_picture
    from monosem.errors import ConfigError
    from monosem.models import load_model
    from monosem.runs import Run

    opened = Run(run)
    examples = opened.examples()
    for latent in latents or []:
        if not 0 <= latent < examples.n_latents:
            raise ConfigError(f"there is no latent {latent}: this SAE has 0 to {examples.n_latents - 1}")
    if save is not None and save.suffix not in PICTURES:
        raise ConfigError(f"--save {save}: a picture is written as {' or '.join(PICTURES)}")
    model = load_model(opened.config.model)
    out = console() if save is None else picture()
    show(out, opened, model, latents or notable(opened, model, count), passages)
    if save is not None:
        save_picture(out, save, f"monosem top {run}")


def notable(run: Run, model: SubjectModel, n: int) -> list[int]:
    """Some latents of a run to look at first."""
    from monosem.features import peaks_on_a_word

    return run.examples().notable(n, peaks_on_a_word(model.tokenizer))


def show(console: Console, run: Run, model: SubjectModel, latents: Sequence[int], n_passages: int) -> None:
    """Print features of a run."""
    from monosem.analysis import logit_lens
    from monosem.errors import ConfigError
    from monosem.features import print_features

    sae = run.sae()
    try:
        effects = logit_lens(sae, model, latents)
    except ConfigError:
        effects = None
    print_features(console, latents, run.examples(), model.tokenizer, effects, n_passages)
