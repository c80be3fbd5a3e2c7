"""monosem export"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

KEY = "NEURONPEDIA_API_KEY"


class Target(StrEnum):
    """What an SAE, or its features, can be written for."""

    SAELENS = "saelens"
    DICTIONARY_LEARNING = "dictionary_learning"
    SPARSIFY = "sparsify"
    GEMMA_SCOPE = "gemma_scope"
    CIRCUIT_TRACER = "circuit_tracer"
    MONOSEM = "monosem"
    HUB = "hub"
    NEURONPEDIA = "neuronpedia"


def export(
    sae: Annotated[str, typer.Argument(help="A run folder, an SAE folder, or the name of a published one.")],
    output: Annotated[Path, typer.Argument(help="The folder to write into, made if need be.")],
    to: Annotated[Target, typer.Option(help="What is to read it.")] = Target.SAELENS,
    fold: Annotated[
        bool, typer.Option("--fold", help="Move into the weights what the format has no place for: transform, b_dec.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="For hub: OWNER/NAME of the repository. For neuronpedia: MODEL/SOURCE there.")
    ] = None,
    upload: Annotated[bool, typer.Option("--upload", help=f"For neuronpedia: send it, with the key in {KEY}.")] = False,
) -> None:
    """Write an SAE in the files of another library, which gives the same codes and reconstructions there.

    What a format cannot hold exactly is refused, with what to do instead; nothing is written then. For hub, a folder
    with a model card is made, in the files of up to three libraries. For neuronpedia, the features of a run are written
    as batches of its upload API, and sent with --upload; what was sent is not sent again. (A static site of features
    is written by monosem explore --export.)
    """
    from monosem.cli.console import console
    from monosem.errors import ConfigError

    if (name is None) == (to in (Target.HUB, Target.NEURONPEDIA)):
        wanted = {Target.HUB: "OWNER/NAME", Target.NEURONPEDIA: "MODEL/SOURCE"}.get(to)
        raise ConfigError(f"--to {to.value} needs --name {wanted}" if wanted else f"--to {to.value} takes no --name")
    if upload and to is not Target.NEURONPEDIA:
        raise ConfigError("--upload is for --to neuronpedia; a folder for the hub is uploaded by `hf upload`")
    if to is Target.NEURONPEDIA:
        said = _features(sae, output, name or "", upload)
    elif to is Target.HUB:
        said = _hub(sae, output, name or "")
    else:
        said = _library(sae, output, to, fold)
    console().print(said, soft_wrap=True, highlight=False, markup=False)


def _library(sae: str, output: Path, to: Target, fold: bool) -> str:
    from monosem import load_sae
    from monosem.interop.export import LOADS, export_sae
    from monosem.work import doing, job

    with job(), doing("reading"):
        loaded = load_sae(sae)
    with job(), doing("writing"):
        folder = export_sae(loaded, output, to.value, fold=fold)  # type: ignore[arg-type]
    return f"Written: {folder}. Read it there: {LOADS[to.value].format(path=str(folder))}"


def _hub(sae: str, output: Path, name: str) -> str:
    from monosem import load_sae
    from monosem.runs import Run
    from monosem.runs.publish import publish
    from monosem.work import doing, job

    measured = (Path(sae) / "run.yaml").is_file() and (Path(sae) / "evaluation.json").is_file()
    with job(), doing("writing"):
        folder = publish(load_sae(sae), output, name, Run(sae).evaluation() if measured else None)
    more = "" if measured else " It has no figures: monosem eval makes evaluation.json in a run folder."
    return f"Written: {folder}. Read README.md, then: hf upload {name} {folder}.{more}"


def _features(run: str, output: Path, name: str, upload: bool) -> str:
    from monosem.errors import ConfigError
    from monosem.features import FeatureStore
    from monosem.features.neuronpedia import upload as send
    from monosem.features.neuronpedia import write_batches
    from monosem.work import job

    model_id, _, source = name.partition("/")
    key = os.environ.get(KEY, "")
    if upload and not key:
        raise ConfigError(f"--upload needs your key for Neuronpedia in the environment: {KEY}")
    folder = Path(run) / "features"
    store = FeatureStore(folder if folder.is_dir() else run)
    with job():
        written = write_batches(store, output, model_id=model_id, source=source)
        if not upload:
            return f"Written: {len(written)} batches in {output}. Nothing was sent: --upload does."
        sent = send(output, key)
    return f"Sent: {sent} batches; {len(written) - sent} had been sent before."
