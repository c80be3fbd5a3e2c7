"""monosem demo"""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    output: Annotated[str, typer.Option(help="The run folder.")] = "runs/demo",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on.")] = 1_000_000,
    features: Annotated[int, typer.Option(min=0, help="Features to show.")] = 24,
    explore: Annotated[bool, typer.Option("--explore", help="Open the explorer on them, at the end.")] = False,
) -> None:
    """Train a TopK SAE on the bundled language model, evaluate it, explain its features: a few minutes, offline."""
    import time

    from monosem.cli.console import console
    from monosem.features import print_features
    from monosem.runs import demo_config, run_evaluation, run_training
    from monosem.work import job

    out = console()
    config = demo_config(output).model_copy(update={"tokens": tokens})
    start = time.monotonic()
    out.print(
        f"Training a {config.sae.architecture} SAE of {config.sae.n_latents:,} latents at {config.hook} "
        f"of the {config.model} model, on {tokens:,} tokens.",
        highlight=False,
    )
    with job():
        run, model = run_training(config, evaluated=True)
        report = run_evaluation(run, model)
    store = run.features()
    print_features(out, store.features(store.notable(features)), 4, store.explanations())
    out.print(*report.fitting(out.width))
    minutes = (time.monotonic() - start) / 60
    out.print(f"{minutes:.1f} minutes. Run folder: {run.path} (its README.md says what is in it)")
    out.print(f"More features: monosem top {run.path} 17 256 1024, monosem explore {run.path}")
    if explore:
        from monosem.cli.explore import show

        show([run.path])
