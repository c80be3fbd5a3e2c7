"""monosem harvest"""

from __future__ import annotations

from typing import Annotated

import typer


def harvest(
    run: Annotated[str, typer.Argument(help="The run folder; or a published dictionary, by name or path.")],
    text: Annotated[
        str | None, typer.Option(help="What to read: a file, a folder, bundled or bundled:held_out.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="What an image model reads: a folder, an IDX or .npz file, or hub:owner/name.")
    ] = None,
    vectors: Annotated[
        str | None,
        typer.Option(help="What a dictionary of vectors reads: a .npy, .safetensors or .parquet file."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens, positions of images or rows of vectors to read, at most.")
    ] = 1_000_000,
    keep_state: Annotated[
        bool, typer.Option("--keep-state", help="Keep what it takes to go on later with more --tokens.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Of a dictionary whose files do not say it: its model.")] = None,
    hook: Annotated[str | None, typer.Option(help="Likewise: the hook point that it reads.")] = None,
) -> None:
    """Harvest every latent's statistics and passages in one pass over a text; rewrites the run's features/.

    Of crosscoders and cross-layer transcoders also what each source has of a latent; of ready vectors the rows on which
    it fires most, in place of passages.

    Without --text, --images or --vectors it reads what the run is evaluated on. Stop it or kill it: the same command
    goes on.

    A dictionary of another library (monosem saes lists published ones) gets a run folder of its own in runs/.
    """
    from monosem.cli.console import console
    from monosem.runs import open_run, run_harvest

    out = console()
    for member in open_run(run, model, hook).members.values():
        store = run_harvest(member, text, tokens, keep_state, images=images, vectors=vectors)
        silent = store.count("count = 0")
        out.print(
            f"{store.n_latents:,} latents over {store.n_tokens:,} {store.things}, "
            f"{silent:,} of which never fired: {store.path}",
            highlight=False,
        )
        out.print(f"To look at them: monosem top {member.path}", highlight=False)
