"""monosem train"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from monosem.cli.console import console


class TrainCommand(TyperCommand):
    """Its help ends in the architectures; only then are they, and torch, imported."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from monosem.cli.listing import list_architectures

        super().format_help(ctx, formatter)
        list_architectures(console())


def train(
    run_yaml: Annotated[
        Path | None, typer.Argument(help="Description of the run; defaults where left out.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as sae.k=32. May be repeated."),
    ] = None,
    evaluation: Annotated[bool, typer.Option(help="Evaluate on held-out text afterwards.")] = True,
    keys: Annotated[bool, typer.Option("--list", help="List every key of a run.yaml, and stop.")] = False,
) -> None:
    """Train SAEs as a YAML file describes, into a run folder; the same command goes on where a run has stopped.

    Example: `monosem train run.yaml --set hook=mlp_out.1 --set sae.n_latents=8192 --set output=runs/mlp`

    A run.yaml holds any of these keys:

        output: runs/run          # the run folder
        model: bundled            # or a folder, a GGUF file, a Hugging Face id
        hook: resid_post.2        # monosem info MODEL lists them
        text: bundled             # or a file (.txt .jsonl .parquet), a folder, hub:owner/name
        images: photos            # in place of text, for a model of images: a folder, an IDX or .npz file
        tokens: 1000000
        sae: {architecture: topk, n_latents: 4096, k: 32}
        activations: {context_length: 256, buffer_tokens: 131072, exclude_special: true}
        training: {lr: 0.002, batch_size: 2048}
        evaluation: {text: bundled:held_out, tokens: 500000}

    Several dictionaries from one pass of the model, each in a folder of its own:

        hooks: attn_out.*                     # in place of hook: a dictionary for each
        grid: {sae.k: [16, 32]}               # and for every combination of these
        dictionaries:                         # or by name, with what each has of its own
          wide: {sae: {n_latents: 8192}}
          mlp: {hook: mlp_in.2, target: mlp_out.2, sae: {architecture: transcoder}}

    `monosem train --list` prints every key; the architectures are below.
    """
    from monosem.evaluation import EvaluationReport
    from monosem.runs import RunConfig, require_held_out, run_evaluation, run_evaluations, run_training
    from monosem.work import job

    out = console()
    if keys:
        from monosem.cli.listing import list_keys

        list_keys(out)
        return
    config = RunConfig.read(run_yaml, settings)
    if evaluation:
        require_held_out(config)
    with job():
        run, model = run_training(config, evaluated=evaluation)
        report = (run_evaluations if config.several else run_evaluation)(run, model) if evaluation else None
    if report is not None:
        out.print(*(report.fitting(out.width) if isinstance(report, EvaluationReport) else [report.table()]))
    harvested = any((member.path / "features").is_dir() for member in run.members.values())
    look = f" To look at features: monosem {'explore' if config.several else 'top'} {run.path}"
    out.print(f"Run folder: {run.path}." + (look if harvested else ""))
