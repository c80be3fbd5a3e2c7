"""monosem train"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


def train(
    run_yaml: Annotated[
        Path | None, typer.Argument(help="Description of the run; defaults where left out.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as sae.k=32. May be repeated."),
    ] = None,
    evaluation: Annotated[bool, typer.Option(help="Evaluate on held-out text afterwards.")] = True,
    architectures: Annotated[
        bool, typer.Option("--list", help="List the architectures and the keys, and stop.")
    ] = False,
) -> None:
    """Train SAEs as a YAML file describes, into a run folder; the same command goes on where a run has stopped.

    Example: `monosem train run.yaml --set hook=mlp_out.1 --set sae.n_latents=8192 --set output=runs/mlp`

    A run.yaml holds any of these keys:

        output: runs/run          # the run folder
        model: bundled            # or a folder, or a Hugging Face id
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

    `monosem train --list` prints every key and every architecture.
    """
    from monosem.cli.console import console
    from monosem.runs import RunConfig, require_held_out, run_evaluation, run_evaluations, run_training

    out = console()
    if architectures:
        _list(out)
        return
    config = RunConfig.read(run_yaml, settings)
    if evaluation:
        require_held_out(config)
    run, model = run_training(config)
    if evaluation:
        out.print((run_evaluations if config.several else run_evaluation)(run, model).table())
    look = f"monosem {'explore' if config.several else 'top'} {run.path}"
    out.print(f"Run folder: {run.path}." + ("" if model is None else f" To look at features: {look}"))


def _list(console: Console) -> None:
    from pydantic import BaseModel
    from rich.table import Table

    from monosem.runs import RunConfig
    from monosem.sae import SAE

    table = Table(title="Architectures", title_justify="left", box=None)
    for column in ("sae.architecture", "good for", "its own parameters"):
        table.add_column(column)
    for name, kind in sorted(SAE.registry.items()):
        table.add_row(name, kind.good_for, ", ".join(kind.parameters_of()))
    console.print(table, "")
    keys = Table(title="Keys", title_justify="left", box=None)
    for column in ("key", "default", "meaning"):
        keys.add_column(column)

    def add(model: type[BaseModel], prefix: str) -> None:
        documented = _attribute_docs(model)
        for name, info in model.model_fields.items():
            if isinstance(info.default, BaseModel):
                add(type(info.default), f"{prefix}{name}.")
            else:
                keys.add_row(
                    f"{prefix}{name}", "" if info.default is None else str(info.default), documented.get(name, "")
                )

    add(RunConfig, "")
    console.print(keys)


def _attribute_docs(model: type) -> dict[str, str]:
    """The docstrings under the fields of a class."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            docs[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return docs
