"""monosem plan"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    run_yaml: Annotated[
        Path | None, typer.Argument(help="Description of the run; defaults where left out.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as sae.k=32. May be repeated."),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="h100, h200, a100 or cpu; what there is here if not given.", show_default=False)
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Devices (on a CPU: processes) that share the work.")] = 1,
    store: Annotated[bool, typer.Option("--store", help="Plan `monosem store` of it in place of training.")] = False,
    evaluation: Annotated[bool, typer.Option(help="Plan the evaluation afterwards too.")] = True,
    dtype: Annotated[str, typer.Option(help="Of stored numbers: bfloat16, float16 or float32.")] = "bfloat16",
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine first, for half a minute at most.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Predict what a run will take: memory by part, disk, arithmetic, tokens a second, hours. Nothing is loaded.

    Shapes come from the model's config.json (of a hub id, its config alone is fetched). What cannot fit is refused,
    with what would. Example:

        monosem plan run.yaml --hardware h100 --gpus 8
        monosem plan run.yaml --set sae.n_latents=65536 --calibrate
    """
    import json

    from monosem import planning
    from monosem.cli.console import console
    from monosem.errors import ConfigError
    from monosem.runs import RunConfig

    made = planning.plan(
        RunConfig.read(run_yaml, settings),
        hardware=hardware,
        gpus=gpus,
        store=store,
        evaluation=evaluation,
        dtype=dtype,
        calibrate=calibrate,
    )
    if as_json:
        print(json.dumps(made.to_dict(), indent=2))
    else:
        console().print(made.table())
    if not made.fits:
        raise ConfigError(made.refusal)
