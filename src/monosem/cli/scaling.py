"""monosem scaling"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def scaling(
    run_yaml: Annotated[
        Path | None, typer.Argument(help="Description of one dictionary, as for `train`.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as sae.k=32. May be repeated."),
    ] = None,
    widths: Annotated[
        str | None, typer.Option(help="Numbers of latents, 512,1024,2048; sae.n_latents and its halves if not given.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Numbers of tokens, 250000,500000; tokens and its halves if not given.")
    ] = None,
    most: Annotated[float | None, typer.Option(help="Leave out what has more compute, latents x tokens.")] = None,
    metric: Annotated[str, typer.Option(help="The held-out loss: fvu, kl or ce.")] = "fvu",
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Latents x tokens to spend, such as 1e10; may be repeated."),
    ] = None,
    overhead: Annotated[
        float, typer.Option(help="What a token costs beside the dictionary, in latents: the model's pass.")
    ] = 0.0,
) -> None:
    """Sweep width and tokens from one pass, fit the scaling law, and recommend both for a budget.

    Example: `monosem scaling run.yaml --widths 512,1024,2048,4096 --tokens 125000,250000,500000,1000000 --budget 1e10`

    Every width is trained on every number of tokens, each with a schedule of its own; all read the same batches, so
    that the model runs once for all. Then loss = floor + a (latents / N0)^-alpha + b (tokens / D0)^-beta is fitted to
    the held-out losses, with 95 % intervals, and the split of a budget with the least loss is said, with its interval;
    or why the fit is too poor to say it.

    The run folder holds every dictionary (`512x250000/`), `scaling.json` and `scaling.svg`. Stop it, kill it: the same
    command goes on.
    """
    from monosem.analysis.scaling import require_budget
    from monosem.cli.console import console
    from monosem.runs import RunConfig, require_held_out, run_scaling
    from monosem.runs.scaling import FIGURE, numbers

    for compute in budget or (1.0,):
        require_budget(compute, overhead)
    config = RunConfig.read(run_yaml, settings)
    require_held_out(config)
    out = console()
    sweep = run_scaling(
        config,
        None if widths is None else numbers(widths, "--widths"),
        None if tokens is None else numbers(tokens, "--tokens"),
        most,
        metric,
    )
    out.print(sweep.table())
    out.print(sweep.law.table())
    if sweep.law.too_poor:
        out.print(f"No recommendation: {sweep.law.too_poor}. Sweep more widths and tokens.", soft_wrap=True)
    largest = float(sweep.law.compute.max())
    for compute in () if sweep.law.too_poor else budget or (largest, 4 * largest, 16 * largest):
        out.print(str(sweep.recommend(compute, overhead)), soft_wrap=True)
    out.print(f"Run folder: {config.output}; figure: {Path(config.output) / FIGURE}")
