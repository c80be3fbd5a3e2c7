"""monosem store"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def store(
    run_yaml: Annotated[
        Path | None, typer.Argument(help="Description of the run; defaults where left out.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as store=acts. May be repeated."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows in a shard.")] = 65_536,
    window_shards: Annotated[
        int, typer.Option(min=1, help="Shards among which rows are dealt; a kill loses so many at most.")
    ] = 16,
) -> None:
    """Write the activations that a run.yaml describes into its store: all its hook points in one pass of the model.

    `monosem train` of the same run.yaml then reads them there, as often as you like: other dictionaries, other rates,
    no model in the way. Example:

        monosem store run.yaml --set store=acts --set tokens=2000000
        monosem train run.yaml --set store=acts --set sae.n_latents=8192

    Stop it or kill it: the same command goes on. On a store that is there it looks for damage, and rewrites what is
    damaged; with more tokens it writes on.
    """
    from monosem.cli.console import console
    from monosem.runs import RunConfig, run_store

    written = run_store(
        RunConfig.read(run_yaml, settings), dtype=dtype, shard_rows=shard_rows, window_shards=window_shards
    )
    index = written.store.index
    size = len(written) * index.bytes_a_row / 2**30
    console().print(
        f"{len(written):,} tokens at {', '.join(index.hooks)} in {index.dtype}, {size:,.2f} GiB: {written.store.path}",
        highlight=False,
    )
