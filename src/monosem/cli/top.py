"""monosem top"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def top(
    run: Annotated[str, typer.Argument(help="The run folder; or a published dictionary, by name or path.")],
    latents: Annotated[list[int] | None, typer.Argument(help="Latents to show; some notable ones if left out.")] = None,
    passages: Annotated[int, typer.Option("--passages", "-n", help="Passages per latent.")] = 6,
    count: Annotated[int, typer.Option(help="How many notable latents, if none are named.")] = 20,
    save: Annotated[Path | None, typer.Option(help="Write a picture instead: FILE.svg or FILE.html.")] = None,
) -> None:
    """Print the passages on which latents fire most, one per text, with tokens shaded by activation.

    Also what they mean, if that is explained (`monosem explain`), and the tokens that each latent promotes and
    suppresses at the output (logit lens).
    """
    from monosem.cli.console import PICTURES, console, picture, save_picture
    from monosem.errors import ConfigError
    from monosem.features import print_features
    from monosem.files import require_place
    from monosem.runs import open_run

    require_place(save)
    opened = open_run(run)
    store = opened.features()
    for latent in latents or []:
        if not 0 <= latent < store.n_latents:
            raise ConfigError(f"there is no latent {latent}: this SAE has 0 to {store.n_latents - 1}")
    if save is not None and save.suffix not in PICTURES:
        raise ConfigError(f"--save {save}: a picture is written as {' or '.join(PICTURES)}")
    out = console() if save is None else picture()
    print_features(out, store.features(latents or store.notable(count)), passages, store.explanations())
    if save is not None:
        save_picture(out, save, f"monosem top {run}")
